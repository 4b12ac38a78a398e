"""Slides of two patients that look like one glass slide are shown, however they were laid and saved; others are not."""

import re
from pathlib import Path

import numpy as np
import pytest
from pyramids import write_slide
from scipy import ndimage
from test_split_command import labels, run  # noqa: F401 - labels is a fixture

from mil.cohort import CohortRow
from mil.splits.lookalikes import ALIKE, find_lookalikes, look_of, read_looks

WHITE = (255, 255, 255)


def tissue(seed: int, *, side: int = 640) -> np.ndarray:
    """A blob of glands on glass; the outline is the same for every seed, the inside is not."""
    rough = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), side / 60)
    y, x = np.mgrid[:side, :side] / side - 0.5
    is_tissue = x**2 + 1.5 * y**2 < 0.16
    stain = np.where(rough[..., None] > 0, (200, 90, 160), (240, 190, 220))
    return np.where(is_tissue[..., None], stain, 250).astype(np.uint8)


def again(pixels: np.ndarray, change: str) -> np.ndarray:
    """The same glass slide, another file."""
    return {
        "upside down": pixels[::-1, ::-1],
        "on its side": pixels.transpose(1, 0, 2),
        "moved": np.roll(pixels, (50, -40), axis=(0, 1)),
        "pale": (255 - 0.6 * (255.0 - pixels)).astype(np.uint8),
        "half the size": pixels[::2, ::2],
    }[change]


@pytest.mark.parametrize("change", ["upside down", "on its side", "moved", "pale", "half the size"])
def test_a_slide_scanned_again_agrees_and_another_with_its_outline_does_not(change: str) -> None:
    names = ("first", "second", "other")
    pictures = (tissue(1), again(tissue(1), change), tissue(2))
    looks = {name: look_of(one.astype(float), WHITE) for name, one in zip(names, pictures, strict=True)}
    rows = [CohortRow(slide_id=name, patient_id=f"patient of {name}", label="x", site=None) for name in names]
    (found,) = find_lookalikes(rows, looks)
    assert found.slides == ("first", "second")
    assert found.patients == ("patient of first", "patient of second")
    assert ALIKE < found.agreement <= 1 + 1e-5
    of_one = [CohortRow(slide_id=name, patient_id="one", label="x", site=None) for name in names]
    assert find_lookalikes(of_one, looks) == []


def test_empty_glass_has_no_look() -> None:
    assert look_of(np.full((90, 120, 3), 254.0), WHITE) is None
    assert find_lookalikes([], {}) == []


def test_split_shows_two_patients_whose_slides_look_alike_and_what_it_could_not_open(
    labels: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "slides"
    for name, pixels in (("S02-0", tissue(1)), ("S04-0", tissue(2)), ("S05-1", again(tissue(1), "upside down"))):
        write_slide(folder / f"{name}.svs", pixels, lossless=name != "S05-1")
    (folder / "S06-0.svs").write_bytes(b"no slide")
    assert run(labels, folds=3, check_slides=str(folder)) == 0
    said = capsys.readouterr().err
    assert said.count("look alike") == 1
    assert re.search(r"warning: slide S02-0 and S05-1 look alike \(agreement (0.9\d|1.00)\)", said)
    assert "are of patient P02 and P05: look at them" in said
    assert "3 of 36 slides compared by looks, not S00-0" in said


def test_no_two_slides_of_the_cohort_look_alike(shared_data: Path) -> None:
    ids = sorted(path.stem for path in (shared_data / "cohort" / "slides").glob("*.svs"))[:20]
    looks = read_looks(shared_data / "cohort" / "slides", ids)
    assert set(looks) == set(ids)
    rows = [CohortRow(slide_id=name, patient_id=name, label="x", site=None) for name in ids]
    assert find_lookalikes(rows, looks) == []
