"""The tissue of one slide, by whichever method its rule names."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from feature_extraction.errors import InputError, SlideError
from feature_extraction.files import as_record, sha256_of_file
from feature_extraction.grid import Grid
from feature_extraction.slide import Slide, SlideInfo
from feature_extraction.tissue import USED_BY, TissueRule, cleaned, find_tissue, tissue_fraction
from feature_extraction.tissue_given import Affine, annotated_area, annotation_bytes, rasterize

FOUND = "found"
"""Key of a feature file's ``tissue`` under which stands what was found; the rest is what it was found by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TissueFacts:
    """How much tissue a slide has.

    Attributes:
        n_grid: Tiles of the whole grid, None when unknown.
        tissue_share: Tissue's share of the scanned area (0..1), None when unknown.
        pen_share: Pen strokes' share of everything that is not glass (0..1), None when unknown.
    """

    n_grid: int | None = None
    tissue_share: float | None = None
    pen_share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideTissue:
    """The tissue of one slide.

    Attributes:
        thumbnail: What it was decided on, white for ``none``.
        is_tissue: On that.
        pixel_lv0: Width and height of one of its pixels in level-0 pixels.
        pen_share: Pen strokes' share of everything that is not glass (0..1).
        found_by: What determined it, as plain data without any path.
    """

    thumbnail: UInt8[np.ndarray, "row column 3"]
    is_tissue: Bool[np.ndarray, "row column"]
    pixel_lv0: tuple[float, float]
    pen_share: float
    found_by: Mapping[str, object]

    def fraction(self, grid: Grid) -> Float32[np.ndarray, " tile"]:
        """Tissue's share of each tile of the grid."""
        if self.is_tissue.all():
            return np.ones(grid.n_columns * grid.n_rows, np.float32)
        return tissue_fraction(self.is_tissue, grid.origin_lv0, self.pixel_lv0, grid.coords_lv0(), grid.size_lv0)

    def described(self, grid: Grid) -> dict[str, object]:
        """For a feature file: how tissue was found, and how much."""
        facts = TissueFacts(
            n_grid=grid.n_columns * grid.n_rows,
            tissue_share=float(self.is_tissue.mean()),
            pen_share=self.pen_share,
        )
        return {**self.found_by, FOUND: asdict(facts)}


def read_tissue_rule(content: Mapping[str, object]) -> TissueRule:
    """The rule that a configuration asks for; a given file is hashed and a network tried, so that faults show early.

    Raises:
        InputError: An unknown method, no such file, or a network that cannot be used.
    """
    rule = as_record(TissueRule, content, "tissue")
    if rule.method not in USED_BY:
        raise InputError(f"tissue.method={rule.method}: unknown; known: {', '.join(USED_BY)}")
    if not rule.mpp > 0:
        raise InputError(f"tissue.mpp={rule.mpp}: expected µm per pixel above 0")
    if rule.method not in ("geojson", "model"):
        return rule
    path = Path(str(rule.path))
    if rule.path is None or not (path.is_file() or (path.is_dir() and rule.method == "geojson")):
        expected = "a GeoJSON file or a folder of them" if rule.method == "geojson" else "an .onnx or TorchScript file"
        raise InputError(f"tissue.path={rule.path}: no such file; tissue={rule.method} needs {expected}")
    rule = replace(rule, content_sha256=sha256_of_file(path) if path.is_file() else "")
    if rule.method == "model":
        from feature_extraction.tissue_model import check_network

        check_network(path, rule.content_sha256)
    return rule


def require_one_slide(rule: TissueRule, n_slides: int) -> None:
    """A single annotation file belongs to a single slide.

    Raises:
        InputError: There are more slides than one.
    """
    if rule.method == "geojson" and rule.content_sha256 and n_slides > 1:
        raise InputError(
            f"tissue.path={rule.path}: one annotation file for {n_slides} slides; give a folder with <slide_id>.geojson"
        )


def segment(
    slide: Slide, info: SlideInfo, rule: TissueRule, on_progress: Callable[[], None] = lambda: None
) -> SlideTissue:
    """Find the tissue of a slide. ``none`` reads nothing of it and calls everything tissue.

    Raises:
        SlideError: The slide cannot be decoded, has no annotation, or the network fails on it.
    """
    downsample = max(1.0, rule.mpp / max(info.mpp.x, info.mpp.y))
    width, height = info.bounds_lv0[2:]
    if rule.method == "none":
        size = (max(1, round(height / downsample)), max(1, round(width / downsample)))
        thumbnail = np.full((*size, 3), 255, np.uint8)
    else:
        thumbnail = slide.thumbnail(info.bounds_lv0, downsample, on_progress)
    pixel_lv0 = (width / thumbnail.shape[1], height / thumbnail.shape[0])
    origin_lv0 = (float(info.bounds_lv0[0]), float(info.bounds_lv0[1]))
    if rule.method == "model":
        is_tissue, pen_share, found_by = _by_model(slide.slide_id, thumbnail, rule, on_progress), 0.0, rule.described()
    else:
        is_tissue, pen_share, found_by = _find(slide.slide_id, thumbnail, (origin_lv0, pixel_lv0), rule)
    return SlideTissue(
        thumbnail=thumbnail, is_tissue=is_tissue, pixel_lv0=pixel_lv0, pen_share=pen_share, found_by=found_by
    )


def is_found_by(tissue: str, rule: TissueRule, slide_id: str) -> bool:
    """Whether a feature file's ``tissue`` was found by what a run would find it by now, its annotation included.

    Args:
        tissue: JSON, as in the file's header.
        rule: Of the run.
        slide_id: The slide.

    Raises:
        SlideError: The slide has no readable annotation any more.
    """
    expected = rule.described()
    if rule.method == "geojson":
        expected = _described_given(rule, annotation_bytes(Path(str(rule.path)), slide_id))
    return {key: value for key, value in json.loads(tissue).items() if key != FOUND} == expected


def facts_in(tissue: Mapping[str, object]) -> TissueFacts:
    """The facts in what a plan or a feature file says of its tissue; unknown in files of an earlier version."""
    found = tissue.get(FOUND)
    return as_record(TissueFacts, cast("dict[str, object]", found), "tissue") if found else TissueFacts()


def _find(
    slide_id: str,
    thumbnail: UInt8[np.ndarray, "row column 3"],
    affine: Affine,
    rule: TissueRule,
) -> tuple[Bool[np.ndarray, "row column"], float, Mapping[str, object]]:
    """The mask, the share of pens, and what determined them, without a network."""
    if rule.method == "none":
        return np.ones(thumbnail.shape[:2], dtype=bool), 0.0, rule.described()
    if rule.method == "geojson":
        data = annotation_bytes(Path(str(rule.path)), slide_id)
        is_tissue = rasterize(annotated_area(data, slide_id), affine, (thumbnail.shape[0], thumbnail.shape[1]))
        return is_tissue, 0.0, _described_given(rule, data)
    found = find_tissue(thumbnail, rule)
    return found.is_tissue, found.pen_share, rule.described()


def _by_model(
    slide_id: str, thumbnail: UInt8[np.ndarray, "row column 3"], rule: TissueRule, on_progress: Callable[[], None]
) -> Bool[np.ndarray, "row column"]:
    from feature_extraction.tissue_model import segment_by_model

    try:
        return cleaned(segment_by_model(thumbnail, Path(str(rule.path)), rule.content_sha256, on_progress), rule)
    except InputError as error:
        raise SlideError(
            slide_id=slide_id,
            stage="tissue",
            cause=str(error),
            remedy="try the network on this slide's thumbnail by itself, or use tissue=saturation_otsu",
            code="E-model",
        ) from error


def _described_given(rule: TissueRule, data: bytes) -> dict[str, object]:
    return {**rule.described(), "annotation_sha256": hashlib.sha256(data).hexdigest()}
