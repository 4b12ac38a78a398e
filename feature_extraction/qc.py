"""A picture of one slide for people: thumbnail, outline of the tissue, the tiles that were kept, and the figures.

Drawn from the thumbnail of the scanned area only; the slide's label and macro image are never opened.
"""

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from PIL import Image, ImageDraw, ImageFont

from feature_extraction.mpp import Mpp

MAX_SIDE, MIN_SIDE, MIN_WIDTH, CAPTION_HEIGHT = 1024, 480, 420, 30
"""Of the picture, in its own pixels; small thumbnails are enlarged up to `MIN_SIDE`."""
OUTLINE, TILES, INK, SOFT = (0, 114, 178), (0, 158, 115), (28, 37, 48), (92, 103, 115)
"""Okabe and Ito's blue and green: told apart with any colour vision, and unlike any stain."""
TINT, LINE_TINT = 0.22, 0.75
MIN_TILE_PX = 6
"""Tiles drawn smaller than this are tinted: their borders would hide the tissue."""
JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptTiles:
    """Which tiles of a slide were kept.

    Attributes:
        origin_lv0: x, y of the thumbnail's corner.
        pixel_lv0: Width and height of one thumbnail pixel in level-0 pixels.
        coords_lv0: Top-left corners of the kept tiles.
        size_lv0: Width and height of a tile.
        n_grid: Tiles of the grid, kept or not.
        mpp: Of the slide.
    """

    origin_lv0: tuple[int, int]
    pixel_lv0: tuple[float, float]
    coords_lv0: Int64[np.ndarray, "tile 2"]
    size_lv0: tuple[float, float]
    n_grid: int
    mpp: Mpp

    def caption(self) -> str:
        """Tiles kept of the grid, the slide's mpp and its source; PIL's own font has no µ."""
        both = f"{self.mpp.x:.4g}" if self.mpp.x == self.mpp.y else f"{self.mpp.x:.4g} x {self.mpp.y:.4g}"
        return f"{len(self.coords_lv0):,} of {self.n_grid:,} tiles · mpp {both} ({self.mpp.source})"


def qc_picture(
    thumbnail: UInt8[np.ndarray, "row column 3"], is_tissue: Bool[np.ndarray, "row column"], kept: KeptTiles
) -> bytes:
    """A JPEG, at most `MAX_SIDE` wide and high: tissue outlined blue, kept tiles green, one line of figures below.

    Args:
        thumbnail: The scanned area.
        is_tissue: On the thumbnail.
        kept: The tiles.
    """
    n_rows, n_columns = thumbnail.shape[:2]
    largest = min(MAX_SIDE / n_columns, (MAX_SIDE - CAPTION_HEIGHT) / n_rows)
    scale = min(largest, max(1.0, MIN_SIDE / max(n_rows, n_columns)))
    size = (max(1, round(n_columns * scale)), max(1, round(n_rows * scale)))
    picture = np.array(
        Image.fromarray(thumbnail).resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    )
    corners = (kept.coords_lv0 - kept.origin_lv0) / kept.pixel_lv0 * (size[0] / n_columns, size[1] / n_rows)
    side = np.array(kept.size_lv0) / kept.pixel_lv0 * (size[0] / n_columns, size[1] / n_rows)
    _draw_tiles(picture, corners, side)
    shown = np.asarray(Image.fromarray(is_tissue).resize(size, Image.Resampling.NEAREST))
    picture[_edge(shown)] = OUTLINE
    stream = io.BytesIO()
    # Full colour resolution: halved, a coloured line one pixel wide fades into the tissue.
    _captioned(picture, kept.caption()).save(stream, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def _draw_tiles(picture: UInt8[np.ndarray, "row column 3"], corners: np.ndarray, side: np.ndarray) -> None:
    """Borders of tiles, or a tint over them where they are small; in place."""
    n_rows, n_columns = picture.shape[:2]
    limit = np.array([n_columns, n_rows])
    start = np.clip(np.rint(corners), 0, limit).astype(np.int64)
    end = np.clip(np.rint(corners + side), 0, limit).astype(np.int64)
    if side.min() < MIN_TILE_PX:
        _blend(picture, _covered(start, end, (n_rows, n_columns)), TINT)
        return
    lines = Image.new("L", (n_columns, n_rows))
    draw = ImageDraw.Draw(lines)
    for (left, top), (right, bottom) in zip(start.tolist(), (np.maximum(end, start + 1) - 1).tolist(), strict=True):
        draw.rectangle((left, top, right, bottom), outline=1)
    _blend(picture, np.asarray(lines) > 0, LINE_TINT)


def _covered(
    start: Int64[np.ndarray, "box 2"], end: Int64[np.ndarray, "box 2"], size: tuple[int, int]
) -> Bool[np.ndarray, "row column"]:
    """Pixels under any of many boxes, by one summed difference."""
    change = np.zeros((size[0] + 1, size[1] + 1), np.int32)
    np.add.at(change, (start[:, 1], start[:, 0]), 1)
    np.add.at(change, (end[:, 1], end[:, 0]), 1)
    np.add.at(change, (start[:, 1], end[:, 0]), -1)
    np.add.at(change, (end[:, 1], start[:, 0]), -1)
    return change.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)[:-1, :-1] > 0


def _blend(picture: UInt8[np.ndarray, "row column 3"], where: Bool[np.ndarray, "row column"], share: float) -> None:
    mixed = picture[where] * (1 - share) + np.array(TILES) * share
    picture[where] = mixed.astype(np.uint8)


def _edge(is_tissue: Bool[np.ndarray, "row column"]) -> Bool[np.ndarray, "row column"]:
    """Pixels of tissue beside pixels that are not, and the neighbours of those: a line two pixels wide."""
    edge = np.zeros_like(is_tissue)
    is_step = is_tissue[1:] != is_tissue[:-1]
    edge[1:] |= is_step
    edge[:-1] |= is_step
    is_step = is_tissue[:, 1:] != is_tissue[:, :-1]
    edge[:, 1:] |= is_step
    edge[:, :-1] |= is_step
    return edge


def _captioned(picture: UInt8[np.ndarray, "row column 3"], caption: str) -> Image.Image:
    """The picture on white with a line of text below; narrow pictures get a margin, so that the line fits."""
    n_rows, n_columns = picture.shape[:2]
    width = max(n_columns, MIN_WIDTH)
    canvas = Image.new("RGB", (width, n_rows + CAPTION_HEIGHT), "white")
    canvas.paste(Image.fromarray(picture), ((width - n_columns) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    draw.line((0, n_rows, width, n_rows), fill=SOFT)
    draw.text((8, n_rows + CAPTION_HEIGHT // 2), caption, fill=INK, font=ImageFont.load_default(15), anchor="lm")
    return canvas
