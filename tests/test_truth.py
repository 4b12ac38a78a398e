"""True regions against tiles: exact areas, unions counted once, damage named."""

import json
from pathlib import Path

import numpy as np
import pytest

from feature_extraction.errors import DamagedFileError
from feature_extraction.synthetic.slide import SlidePlan, draw_slide
from feature_extraction.synthetic.truth import lesions_geojson
from mil.heatmap.truth import covered_fraction, read_regions


def written(tmp_path: Path, outlines: list[np.ndarray]) -> Path:
    path = tmp_path / "truth.geojson"
    path.write_text(json.dumps(lesions_geojson(outlines, "glandular")))
    return path


def test_known_squares_are_exact_and_overlap_counts_once(tmp_path: Path):
    square = np.array([[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]], float)
    region = read_regions(written(tmp_path, [square, square + 5]))
    coords = np.array([[0, 0], [5, 5], [-5, 0], [40, 40], [10, 0]])
    assert covered_fraction(region, coords, (10.0, 10.0)) == pytest.approx([1, 1, 0.5, 0, 0.25])
    assert covered_fraction(region, np.array([[0, 0]]), (20.0, 10.0)) == pytest.approx([0.625])


def test_a_drawn_lesion_equals_a_count_of_points_inside(tmp_path: Path):
    from matplotlib.path import Path as Outline

    outlines = list(draw_slide(SlidePlan(label="keratinizing", seed=5, stain_seed=1, side_um=640.0)).lesions_lv0)
    coords = np.random.default_rng(0).integers(0, 1200, (60, 2))
    found = covered_fraction(read_regions(written(tmp_path, outlines)), coords, (120.0, 120.0))
    steps = (np.arange(24) + 0.5) * 5
    grid = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    inside = [np.any([Outline(o).contains_points(corner + grid) for o in outlines], axis=0).mean() for corner in coords]
    assert np.abs(found - np.array(inside)).max() < 0.03
    assert found.max() > 0.3


def test_a_slide_without_lesion_has_none_and_a_damaged_truth_is_named(tmp_path: Path):
    path = written(tmp_path, [])
    assert covered_fraction(read_regions(path), np.array([[0, 0]]), (10.0, 10.0)).tolist() == [0]
    path.write_text('{"type": "FeatureColl')
    with pytest.raises(DamagedFileError, match=r"truth\.geojson"):
        read_regions(path)
