"""Tissue: found on stain, not on glass, not on black; fractions are exact areas."""

import numpy as np

from feature_extraction.tissue import TissueRule, find_tissue, otsu_threshold, tissue_fraction

RULE = TissueRule()


def glass(height: int = 120, width: int = 160, level: int = 243, noise: float = 2.0) -> np.ndarray:
    generator = np.random.default_rng(0)
    return np.clip(level + generator.normal(0, noise, (height, width, 3)), 0, 255).astype(np.uint8)


def test_stain_is_tissue_and_glass_is_not():
    picture = glass()
    picture[30:90, 40:120] = (200, 120, 180)
    found = find_tissue(picture, RULE)
    assert found[35:85, 45:115].all()
    assert not found[:25].any()
    assert not found[95:].any()


def test_bare_glass_is_empty_even_when_tinted():
    assert not find_tissue(glass(), RULE).any()
    tinted = glass()
    tinted[..., 2] = np.minimum(tinted[..., 2], 238)
    assert not find_tissue(tinted, RULE).any()


def test_black_background_is_not_tissue():
    picture = np.random.default_rng(0).integers(0, 12, (120, 160, 3)).astype(np.uint8)
    picture[40:80, 40:80] = (20, 40, 180)
    found = find_tissue(picture, RULE)
    assert found[45:75, 45:75].all()
    assert found.mean() < 0.15


def test_pale_tissue_beside_a_saturated_pen_is_kept():
    picture = glass()
    picture[20:60, 20:100] = (225, 180, 205)
    picture[90:100, 20:140] = (20, 40, 200)
    assert find_tissue(picture, RULE)[25:55, 25:95].all()


def test_specks_are_dropped_and_small_holes_filled():
    picture = glass()
    picture[30:90, 40:120] = (200, 120, 180)
    picture[58:61, 78:81] = 243
    picture[5:8, 5:8] = (200, 120, 180)
    found = find_tissue(picture, RULE)
    assert found[55:65, 75:85].all()
    assert not found[:12, :12].any()


def test_otsu_equals_a_search_over_all_cuts():
    values = np.concatenate(
        [np.random.default_rng(0).normal(0.2, 0.05, 500), np.random.default_rng(1).normal(0.7, 0.1, 300)]
    )
    values = values.clip(0, 1).astype(np.float32)
    cuts = np.linspace(0, 1, 257)[1:-1]
    within = [
        (values < c).sum() * values[values < c].var() + (values >= c).sum() * values[values >= c].var()
        if (values < c).any() and (values >= c).any()
        else np.inf
        for c in cuts
    ]
    assert abs(otsu_threshold(values) - cuts[int(np.argmin(within))]) < 0.02


def test_tissue_fraction_is_the_exact_area():
    is_tissue = np.zeros((10, 10), dtype=bool)
    is_tissue[2:6, 3:9] = True
    coords = np.array([[30, 20], [0, 0], [25, 15], [85, 40]])
    found = tissue_fraction(is_tissue, (0, 0), (10.0, 10.0), coords, (20.0, 20.0))
    # level-0 tissue is x 30..90, y 20..60
    expected = [1.0, 0.0, (15 * 15) / 400, (5 * 20) / 400]
    np.testing.assert_allclose(found, expected, atol=1e-6)
