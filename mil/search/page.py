"""The tiles that a search found, as pictures: a contact sheet, and a page that needs no other file."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, StrictUndefined
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from feature_extraction.slide import Slide

TEMPLATE = "page.html.j2"
SIDE_PX = 224
"""Of a picture of a tile, in the page."""
CELL_PX, GAP_PX, COLUMNS, LINE_PX = 140, 14, 8, 17
INK, SOFT, PAPER, EMPTY = (28, 37, 48), (92, 103, 115), (255, 255, 255), (238, 241, 244)
JPEG_QUALITY = 88


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownHit:
    """A hit as it is shown.

    Attributes:
        rank: From 1.
        slide_id: The slide.
        patient_id: Empty when unknown.
        x_lv0: Left edge of the tile.
        y_lv0: Its upper edge.
        score: Probability or cosine, 0..1 or -1..1.
        percentile: How many of a hundred tiles of the cohort score lower.
        pixels: The tile, None when the slide is not at hand.
    """

    rank: int
    slide_id: str
    patient_id: str
    x_lv0: int
    y_lv0: int
    score: float
    percentile: float
    pixels: UInt8[np.ndarray, "row column 3"] | None

    @property
    def rarity(self) -> str:
        """How many tiles of the cohort score as high: unlike a rounded percentile never too many or none."""
        return f"1 in {round(100 / max(1e-9, 100 - self.percentile)):,}"

    @property
    def data_url(self) -> str:
        """The picture as a URL that holds it, empty without one."""
        return "" if self.pixels is None else jpeg_url(self.pixels)


def jpeg_url(pixels: UInt8[np.ndarray, "row column 3"]) -> str:
    """A picture as a URL that holds it."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def tile_picture(
    slide: Slide, corner_lv0: tuple[int, int], size_lv0: tuple[float, float], side_px: int = SIDE_PX
) -> UInt8[np.ndarray, "side side 3"]:
    """A tile as a square picture, from the coarsest level that is fine enough.

    Raises:
        SlideError: It cannot be decoded.
    """
    level = slide.level_for(max(1.0, min(size_lv0) / side_px))
    factor = slide.downsamples[level]
    corner = (round(corner_lv0[0] / factor), round(corner_lv0[1] / factor))
    size = (max(1, round(size_lv0[0] / factor)), max(1, round(size_lv0[1] / factor)))
    pixels = slide.read_region(corner, level, size)
    how = Image.Resampling.LANCZOS if size[0] > side_px else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(pixels).resize((side_px, side_px), how))


def page_html(hits: Mapping[str, Sequence[ShownHit]], *, score_name: str, notes: Sequence[str]) -> str:
    """The page's text; every string in it is escaped, nothing in it is fetched, nothing in it runs.

    Args:
        hits: Query to its hits by rank.
        score_name: What the score is.
        notes: Said below the heading.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("mil.search") / TEMPLATE).read_text(encoding="utf-8"))
    return template.render(hits=hits, score_name=score_name, notes=notes)


def contact_sheet_png(hits: Mapping[str, Sequence[ShownHit]], *, score_name: str, notes: Sequence[str]) -> bytes:
    """All pictures on one sheet: a heading for each query, below it its tiles in rows by rank.

    Args:
        hits: Query to its hits by rank.
        score_name: What the score is.
        notes: Written at the foot.
    """
    step, row_px = CELL_PX + GAP_PX, CELL_PX + 2 * LINE_PX + GAP_PX
    rows = [-(-len(found) // COLUMNS) for found in hits.values()]
    height = 2 * GAP_PX + sum(3 * LINE_PX + n_rows * row_px for n_rows in rows) + len(notes) * LINE_PX
    width = GAP_PX + COLUMNS * step
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    heading, small = (ImageFont.truetype(findfont("DejaVu Sans"), size) for size in (17, 11))
    top = GAP_PX
    for (name, found), n_rows in zip(hits.items(), rows, strict=True):
        draw.text((GAP_PX, top), _cut(draw, name, heading, width - 2 * GAP_PX), fill=INK, font=heading)
        top += 2 * LINE_PX
        for place, hit in enumerate(found):
            corner = (GAP_PX + place % COLUMNS * step, top + place // COLUMNS * row_px)
            _draw_hit(sheet, draw, hit, corner, small, score_name)
        top += n_rows * row_px + LINE_PX
    for note in notes:
        draw.text((GAP_PX, top), _cut(draw, note, small, width - 2 * GAP_PX), fill=SOFT, font=small)
        top += LINE_PX
    stream = io.BytesIO()
    sheet.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _draw_hit(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    hit: ShownHit,
    corner: tuple[int, int],
    font: ImageFont.FreeTypeFont,
    score_name: str,
) -> None:
    """One tile with its two lines."""
    x, y = corner
    if hit.pixels is None:
        draw.rectangle((x, y, x + CELL_PX - 1, y + CELL_PX - 1), fill=EMPTY)
        draw.text((x + 10, y + CELL_PX // 2 - 8), "no picture", fill=SOFT, font=font)
    else:
        sheet.paste(Image.fromarray(hit.pixels).resize((CELL_PX, CELL_PX), Image.Resampling.LANCZOS), corner)
    first = f"{hit.rank}  {score_name} {hit.score:.3f}"
    draw.text((x, y + CELL_PX + 3), _cut(draw, first, font, CELL_PX), fill=INK, font=font)
    draw.text((x, y + CELL_PX + 3 + LINE_PX), _cut(draw, hit.slide_id, font, CELL_PX), fill=SOFT, font=font)


def _cut(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width_px: int) -> str:
    """``text`` on one line, as much of it as fits."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    if draw.textlength(line, font=font) <= width_px:
        return line
    while line and draw.textlength(f"{line}…", font=font) > width_px:
        line = line[:-1]
    return f"{line}…"
