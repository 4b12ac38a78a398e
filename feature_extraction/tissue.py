"""Where the tissue is, on a thumbnail, and how much of it each tile holds.

Tissue is more saturated than glass. Otsu's threshold on the saturation finds the valley between the two where both are
there; where only glass is, Otsu would still cut noise in two, so the threshold has a floor. Black background
(fluorescence) is noise of high saturation, so dark pixels are never tissue. (Otsu 1979, IEEE Trans. SMC 9, 62-66.)
"""

from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from scipy import ndimage

from feature_extraction.pens import extremes, find_pens

LEVELS = 256
CLEANING = ("min_area_um2", "max_hole_um2")
USED_BY = {
    "none": (),
    "saturation_otsu": ("mpp", "min_saturation", "max_saturation", "min_brightness", *CLEANING, "min_fraction", "pen"),
    "geojson": ("mpp", "min_fraction", "content_sha256"),
    "model": ("mpp", *CLEANING, "min_fraction", "content_sha256"),
}
"""Each method, and the fields of the rule that change what it finds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TissueRule:
    """How tissue is told from glass.

    Attributes:
        method: ``saturation_otsu``; ``geojson`` (annotations); ``model`` (a segmentation network); or ``none`` to keep
            every tile.
        mpp: Micrometres per pixel of the thumbnail it is decided on.
        min_saturation: Floor of the threshold (0..1), so that bare glass stays empty.
        max_saturation: Ceiling of the threshold, so that dark stain or a pen mark does not hide pale tissue.
        min_brightness: Darker pixels (0..1, brightest channel) are background.
        min_area_um2: Specks below this area are dropped.
        max_hole_um2: Holes below this area are filled.
        min_fraction: A tile is kept when at least this share of it is tissue.
        pen: Whether strokes of blue, green and black pens are left out.
        path: GeoJSON file or folder, or the network; never written to any output.
        content_sha256: Of the file at ``path``, empty for a folder; stands for it in fingerprints and headers.
    """

    method: str = "saturation_otsu"
    mpp: float = 8.0
    min_saturation: float = 0.06
    max_saturation: float = 0.08
    min_brightness: float = 0.12
    min_area_um2: float = 4_000.0
    max_hole_um2: float = 4_000.0
    min_fraction: float = 0.25
    pen: bool = True
    path: str | None = None
    content_sha256: str = ""

    def described(self) -> dict[str, object]:
        """The method and what of this rule changes its result, as plain data without any path."""
        content = asdict(self)
        return {"method": self.method, **{name: content[name] for name in USED_BY[self.method]}}


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTissue:
    """What a thumbnail shows.

    Attributes:
        is_tissue: Where there is tissue.
        pen_share: Pen strokes' share of everything that is not glass (0..1).
    """

    is_tissue: Bool[np.ndarray, "row column"]
    pen_share: float = 0.0


def find_tissue(thumbnail: UInt8[np.ndarray, "row column 3"], rule: TissueRule) -> FoundTissue:
    """Tissue by its saturation, without pen strokes."""
    smooth = ndimage.gaussian_filter(thumbnail.astype(np.float32), sigma=(1, 1, 0))
    darkest, brightest = extremes(smooth)
    saturation = (brightest - darkest) / np.maximum(brightest, 1.0)
    lit = brightest >= rule.min_brightness * 255
    if not lit.any():
        return FoundTissue(is_tissue=np.zeros(thumbnail.shape[:2], dtype=bool))
    threshold = np.clip(otsu_threshold(saturation[lit]), rule.min_saturation, rule.max_saturation)
    is_stained = lit & (saturation > threshold)
    if not rule.pen:
        return FoundTissue(is_tissue=cleaned(is_stained, rule))
    is_pen = is_stained & find_pens(smooth, is_stained, rule.mpp)
    return FoundTissue(
        is_tissue=cleaned(is_stained & ~is_pen, rule), pen_share=float(is_pen.sum() / max(1, is_stained.sum()))
    )


def cleaned(is_tissue: Bool[np.ndarray, "row column"], rule: TissueRule) -> Bool[np.ndarray, "row column"]:
    """Without specks, small holes filled; areas by the rule."""
    pixel_um2 = rule.mpp**2
    is_tissue = _without_small(is_tissue, rule.min_area_um2 / pixel_um2)
    return ~_without_small(~is_tissue, rule.max_hole_um2 / pixel_um2)


def otsu_threshold(values: Float32[np.ndarray, " value"]) -> float:
    """The cut of values in 0..1 that separates two groups with the largest variance between them."""
    counts, edges = np.histogram(values, bins=LEVELS, range=(0.0, 1.0))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = sums / below - (sums[-1] - sums) / above
        between = np.where((below > 0) & (above > 0), below * above * gap**2, -1.0)
    return float(edges[int(np.argmax(between)) + 1])


def tissue_fraction(
    is_tissue: Bool[np.ndarray, "row column"],
    origin_lv0: tuple[int, int],
    pixel_lv0: tuple[float, float],
    coords_lv0: Int64[np.ndarray, "tile 2"],
    size_lv0: tuple[float, float],
) -> Float32[np.ndarray, " tile"]:
    """Share of each tile's area that is tissue, exact to fractions of a thumbnail pixel.

    Args:
        is_tissue: The thumbnail's tissue.
        origin_lv0: x, y of the thumbnail's corner.
        pixel_lv0: Width and height of one thumbnail pixel in level-0 pixels.
        coords_lv0: Top-left x, y of each tile.
        size_lv0: Width and height of a tile.
    """
    total = np.zeros((is_tissue.shape[0] + 1, is_tissue.shape[1] + 1))
    total[1:, 1:] = is_tissue.cumsum(axis=0).cumsum(axis=1)
    left = (coords_lv0[:, 0] - origin_lv0[0]) / pixel_lv0[0]
    top = (coords_lv0[:, 1] - origin_lv0[1]) / pixel_lv0[1]
    width, height = size_lv0[0] / pixel_lv0[0], size_lv0[1] / pixel_lv0[1]

    def area_above_left(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        # Bilinear interpolation of the summed-area table is the exact area under a fractional corner.
        return ndimage.map_coordinates(total, [y, x], order=1, mode="nearest")

    area = (
        area_above_left(left + width, top + height)
        - area_above_left(left, top + height)
        - area_above_left(left + width, top)
        + area_above_left(left, top)
    )
    return np.clip(area / (width * height), 0.0, 1.0).astype(np.float32)


def _without_small(flags: Bool[np.ndarray, "row column"], min_pixels: float) -> Bool[np.ndarray, "row column"]:
    """Drop connected groups (4 neighbours) of fewer than ``min_pixels`` True pixels."""
    labels = np.empty(flags.shape, np.int32)
    ndimage.label(flags, output=labels)
    sizes = np.bincount(labels.ravel())
    keep = sizes >= min_pixels
    keep[0] = False
    return keep[labels]
