"""Tissue: found on stain, not on glass, not on ink, not on black; fractions are exact areas."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from feature_extraction import tissue
from feature_extraction.grid import Tiling
from feature_extraction.mpp import MppRule
from feature_extraction.plan import PlanRules, SlidePlan, plan_slide
from feature_extraction.slides import SlideRecord
from feature_extraction.synthetic import tissue as drawn
from feature_extraction.synthetic.slide import SlidePlan as Drawing
from feature_extraction.synthetic.slide import draw_slide
from feature_extraction.synthetic.stain import Stain, render
from feature_extraction.tissue import TissueRule, otsu_threshold, tissue_fraction

RULE = TissueRule()
SLIDE_MPP = MppRule()
INKS = {"blue": 0, "green": 1, "black": 2, "red": 3}


def find_tissue(thumbnail: np.ndarray, rule: TissueRule) -> np.ndarray:
    return tissue.find_tissue(thumbnail, rule).is_tissue


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


def thumbnail_at_8um(pixels: np.ndarray) -> np.ndarray:
    side = pixels.shape[0] // 16
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX))


def with_stroke(picture: np.ndarray, colour: str, seed: int, monkeypatch) -> tuple[np.ndarray, np.ndarray]:
    """A stroke of a felt pen, .3 mm wide, and where it lies."""
    generator = np.random.default_rng(seed)
    monkeypatch.setattr(drawn, "INKS", drawn.INKS[INKS[colour] :][:1])
    amount = drawn.stroke(generator, picture.shape[:2], width_px=40.0)
    inked = drawn.ink(picture, amount, generator)
    monkeypatch.undo()
    return inked, amount > 0.5


@pytest.fixture(scope="module")
def drawn_thumbnail() -> np.ndarray:
    """An H&E section with a pool of blood, in the middle of much glass."""
    picture = np.full((300, 300, 3), 244, np.uint8)
    small = thumbnail_at_8um(draw_slide(Drawing(label="glandular", seed=104, stain_seed=0, side_um=800.0)).pixels)
    picture[100 : 100 + len(small), 100 : 100 + len(small)] = small
    return picture


@pytest.mark.parametrize(("colour", "least"), [("blue", 0.85), ("green", 0.99), ("black", 0.6)])
def test_pen_is_not_tissue_and_tissue_beside_it_stays(colour: str, least: float, drawn_thumbnail, monkeypatch):
    clean = find_tissue(drawn_thumbnail, RULE)
    n_ink = n_left = 0
    for seed in range(6):
        inked, is_ink = with_stroke(drawn_thumbnail, colour, seed, monkeypatch)
        found = find_tissue(inked, RULE)
        is_alone = is_ink & ~clean
        n_ink += is_alone.sum()
        n_left += (found & is_alone).sum()
        beside = clean & (np.abs(inked.astype(int) - drawn_thumbnail).max(axis=2) < 8)
        assert (found & beside).sum() > 0.99 * beside.sum()
    assert n_left < (1 - least) * n_ink


def test_the_pen_rule_can_be_switched_off(drawn_thumbnail, monkeypatch):
    inked, is_ink = with_stroke(drawn_thumbnail, "green", 0, monkeypatch)
    assert find_tissue(inked, replace(RULE, pen=False))[is_ink].mean() > 0.95
    assert tissue.find_tissue(inked, RULE).pen_share > 0.3


@pytest.mark.parametrize("gain", [1.0, 1.8])
@pytest.mark.parametrize("haematoxylin", [(0.65, 0.70, 0.29), (0.69, 0.63, 0.30)])
def test_no_ink_is_seen_in_he_or_in_brown_and_blue_immunostains(gain: float, haematoxylin: tuple[float, ...]):
    """The same drawing in H&E and in DAB with a blue counterstain, pale and heavy."""
    generator = np.random.default_rng(0)
    dyes = np.concatenate([drawn.draw(kind, generator, (512, 512), likeness=0.5) for kind in ("lymphocytes", "blood")])
    dyes = np.concatenate([dyes[:3], dyes[3:]], axis=2)
    dab, eosin = np.array([0.27, 0.57, 0.78]), np.array([0.08, 0.80, 0.27])
    for second, third in ((eosin, np.array([0.12, 0.80, 0.55])), (dab * 0.4, dab * 1.2)):
        vectors = np.array([haematoxylin, second, third], np.float32) * np.float32(gain)
        pixels = render(dyes.copy(), Stain(vectors=vectors, white=np.full(3, 243, np.float32)), generator)
        picture = np.full((96, 128, 3), 243, np.uint8)
        picture[32:64, 32:96] = np.asarray(Image.fromarray(pixels).resize((64, 32), Image.Resampling.BOX))
        found = tissue.find_tissue(picture, RULE)
        assert found.pen_share == 0
        assert found.is_tissue[34:62, 34:94].mean() > 0.5


def test_fluorescence_has_no_pen():
    picture = np.zeros((120, 160, 3), np.uint8)
    picture[40:80, 40:120] = (20, 60, 200)
    found = tissue.find_tissue(picture, RULE)
    assert found.pen_share == 0
    assert found.is_tissue[45:75, 45:115].all()


def test_the_pen_rule_keeps_every_tile_of_real_slides(shared_data: Path):
    slides = sorted((shared_data / "cohort" / "slides").glob("*.svs"))[::12]
    slides += [shared_data / "slides" / "CMU-1-Small-Region.svs"]
    slides += [shared_data / "slides" / "hamamatsu_test3-DAPI-2-387.ndpi"]
    for path in slides:
        plans = [plan_of(path, TissueRule(pen=pen)) for pen in (True, False)]
        assert len(plans[1].coords_lv0) > 10
        np.testing.assert_array_equal(plans[0].coords_lv0, plans[1].coords_lv0)


def plan_of(path: Path, rule: TissueRule) -> SlidePlan:
    tiling = Tiling(tile_px=128, tile_mpp=0.5, step_px=128)
    return plan_slide(SlideRecord(slide_id=path.stem, path=path), PlanRules(tiling=tiling, tissue=rule, mpp=SLIDE_MPP))
