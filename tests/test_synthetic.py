from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import openslide
import pytest

from feature_extraction.synthetic.cohort import make_cohort, plan_cohort
from feature_extraction.synthetic.slide import MOSAIC, SlidePlan, draw_slide
from feature_extraction.synthetic.tiff import write_pyramid


@pytest.fixture(scope="module")
def plan() -> SlidePlan:
    return SlidePlan(label="keratinizing", seed=11, stain_seed=3, side_um=640.0)


def tissue_like(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    wave = np.stack([np.sin(x / 37), np.cos(y / 53), np.sin((x + y) / 91)], axis=-1)
    return (170 + 60 * wave).astype(np.uint8)


@pytest.mark.parametrize(
    ("flavour", "vendor", "name"), [("aperio", "aperio", "a.svs"), ("generic", "generic-tiff", "a.tiff")]
)
def test_openslide_reads_what_was_written(tmp_path: Path, flavour: str, vendor: str, name: str) -> None:
    pixels = tissue_like(1100, 4200)
    write_pyramid(tmp_path / name, pixels, mpp=0.4, flavour=flavour)
    with openslide.OpenSlide(tmp_path / name) as slide:
        assert slide.properties["openslide.vendor"] == vendor
        assert slide.level_dimensions == ((4200, 1100), (1050, 275))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.4)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.4)
        level_0 = np.asarray(slide.read_region((1000, 500), 0, (600, 600)).convert("RGB"), np.int64)
        level_1 = np.asarray(slide.read_region((0, 0), 1, (1050, 275)).convert("RGB"), np.float64)
    assert np.abs(level_0 - pixels[500:1100, 1000:1600]).mean() < 3
    boxes = pixels.reshape(275, 4, 1050, 4, 3).mean(axis=(1, 3))
    assert np.abs(level_1 - boxes).mean() < 3


def test_a_large_slide_has_three_levels(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "a.tiff", tissue_like(4096, 4100), mpp=0.5, flavour="generic")
    with openslide.OpenSlide(tmp_path / "a.tiff") as slide:
        assert slide.level_downsamples == pytest.approx((1, 4, 16), rel=0.01)


@pytest.mark.parametrize(("flavour", "name"), [("aperio", "a.svs"), ("generic", "a.tiff")])
def test_without_mpp_openslide_finds_none(tmp_path: Path, flavour: str, name: str) -> None:
    write_pyramid(tmp_path / name, tissue_like(300, 300), mpp=None, flavour=flavour)
    with openslide.OpenSlide(tmp_path / name) as slide:
        assert "openslide.mpp-x" not in slide.properties


def test_a_plan_determines_every_pixel_and_another_seed_changes_them(plan: SlidePlan) -> None:
    first, second, other = draw_slide(plan), draw_slide(plan), draw_slide(replace(plan, seed=12))
    assert np.array_equal(first.pixels, second.pixels)
    assert all(np.array_equal(a, b) for a, b in zip(first.lesions_lv0, second.lesions_lv0, strict=True))
    assert not np.array_equal(first.pixels, other.pixels)


def test_the_lesion_is_where_the_truth_says_and_covers_a_small_part(plan: SlidePlan) -> None:
    with_lesion = draw_slide(plan)
    without = draw_slide(replace(plan, label="normal"))
    assert without.lesions_lv0 == ()
    changed = np.abs(with_lesion.pixels.astype(int) - without.pixels).max(axis=2) > 60
    coords = np.array([(x, y) for y in range(0, 1280, 32) for x in range(0, 1280, 32)])
    blocks = changed.reshape(40, 32, 40, 32).mean(axis=(1, 3)).ravel()
    covered = fraction_of(with_lesion.lesions_lv0, coords, 32.0)
    assert blocks[covered > 0.99].mean() > 0.3
    assert blocks[covered == 0].mean() < 0.05
    is_tissue = (with_lesion.pixels.min(axis=2) < 215).reshape(40, 32, 40, 32).mean(axis=(1, 3)).ravel() > 0.25
    assert 0.03 < covered[is_tissue].mean() < 0.11


def fraction_of(outlines: tuple[np.ndarray, ...], coords: np.ndarray, size: float) -> np.ndarray:
    """An independent reference: the share of 16 x 16 sample points inside by the crossing rule."""
    inside = np.zeros((len(coords), 16, 16), bool)
    steps = (np.arange(16) + 0.5) * size / 16
    x = coords[:, 0, None, None] + steps
    y = coords[:, 1, None, None] + steps[:, None]
    for outline in outlines:
        odd = np.zeros(inside.shape, bool)
        for (x0, y0), (x1, y1) in pairwise(outline):
            if y0 != y1:
                odd ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
        inside |= odd
    return inside.mean(axis=(1, 2))


def test_labels_sites_and_second_slides_are_balanced_and_patients_have_one_label() -> None:
    slides = plan_cohort(n_patients=42, seed=0)
    patients = {slide.patient_id: (slide.plan.label, slide.site) for slide in slides}
    assert len(patients) == 42
    assert all(patients[slide.patient_id] == (slide.plan.label, slide.site) for slide in slides)
    labels = [label for label, _ in patients.values()]
    assert {label: labels.count(label) for label in set(labels)} == {"normal": 14, "glandular": 14, "keratinizing": 14}
    assert len(set(patients.values())) == 9
    assert len(slides) == 52
    assert {slide.plan.mpp for slide in slides} == {0.4, 0.5}
    assert {Path(slide.path).suffix for slide in slides} == {".svs", ".tiff"}
    assert sum(MOSAIC.values()) == pytest.approx(1)


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_second_call_draws_nothing_and_a_damaged_slide_alone_is_drawn_again(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    cohort = make_cohort(tmp_path, n_patients=2, seed=5, progress=lambda done, total: seen.append((done, total)))
    assert (cohort.n_slides, cohort.n_drawn) == (2, 2)
    assert seen == [(1, 2), (2, 2)]
    assert cohort.labels.read_text().splitlines()[0] == "patient_id,slide_id,site,label,path"
    before = stamps(tmp_path)
    assert make_cohort(tmp_path, n_patients=2, seed=5).n_drawn == 0
    assert stamps(tmp_path) == before

    victim = sorted(cohort.slides.iterdir())[1]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1000])
    assert make_cohort(tmp_path, n_patients=2, seed=5).n_drawn == 1
    assert victim.read_bytes() == whole
    after = stamps(tmp_path)
    changed = {Path(name).name for name in before if before[name] != after[name]}
    assert changed == {victim.name, f"{victim.stem}.geojson", "cohort.json"}


def test_a_truth_file_that_is_missing_or_altered_is_made_again(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path, n_patients=1, seed=6)
    truth = next(cohort.truth.iterdir())
    whole = truth.read_text()
    truth.unlink()
    assert make_cohort(tmp_path, n_patients=1, seed=6).n_drawn == 1
    assert truth.read_text() == whole
    assert make_cohort(tmp_path, n_patients=1, seed=7).n_drawn == 1
