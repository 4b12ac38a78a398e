"""Slides of two patients that look like one glass slide: scanned again, converted, or saved in another quality.

Their bytes differ, so that `mil.splits.twins` does not see them. Their thumbnails agree in the fine pattern of the
tissue; the outline alone, which is a blob on most slides, says little and is taken out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64
from PIL import Image
from scipy import ndimage

from feature_extraction.errors import SlideError
from feature_extraction.slide import Slide
from feature_extraction.slides import read_slide_table
from mil.cohort import CohortRow

SIDE_PX = 64
"""Of the square that the thumbnail is fitted into."""
COARSE_PX = 2.0
"""Standard deviation of the blur that is taken out, in pixels of the square."""
ALIKE = 0.5
"""Agreement from which on two slides are shown to people; what it finds and spares is in `benchmarks/RESULTS.md`."""
LEAST_CONTRAST = 0.5
"""Root mean square of the fine pattern, of 255, below which a slide is empty glass."""

Look = Float32[np.ndarray, "side side"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookalikes:
    """Two slides of different patients that agree.

    Attributes:
        slides: The two, sorted.
        patients: Theirs.
        agreement: Up to 1, of the same picture.
    """

    slides: tuple[str, str]
    patients: tuple[str, str]
    agreement: float


def read_looks(source: Path, slide_ids: Iterable[str]) -> dict[str, Look]:
    """The look of each slide (a folder, or a CSV with ``path``) that can be opened and has anything on it.

    Raises:
        InputError: No slides there.
    """
    path_of = {record.slide_id: record.path for record in read_slide_table(source).records}
    looks = {slide_id: _read(slide_id, path_of[slide_id]) for slide_id in slide_ids if slide_id in path_of}
    return {slide_id: look for slide_id, look in looks.items() if look is not None}


def look_of(thumbnail: Float64[np.ndarray, "row column 3"], background: tuple[int, int, int]) -> Look | None:
    """What tells a slide from others: distance from the background without its coarse part, of unit length.

    Args:
        thumbnail: RGB, 0..255.
        background: RGB of empty glass.

    Returns:
        A square of `SIDE_PX`, the longer side filled; None where nothing but background is seen.
    """
    tissue = np.abs(thumbnail - np.array(background)).mean(axis=2)
    shrink = SIDE_PX / max(tissue.shape)
    height, width = (max(1, round(side * shrink)) for side in tissue.shape)
    small = np.asarray(Image.fromarray(tissue.astype(np.float32)).resize((width, height), Image.Resampling.BOX))
    square = np.zeros((SIDE_PX, SIDE_PX), np.float32)
    square[: small.shape[0], : small.shape[1]] = small
    fine = square - ndimage.gaussian_filter(square, COARSE_PX, mode="wrap")
    length = np.linalg.norm(fine)
    return None if length < LEAST_CONTRAST * SIDE_PX else (fine / length).astype(np.float32)


def find_lookalikes(rows: Sequence[CohortRow], looks: dict[str, Look]) -> list[Lookalikes]:
    """Pairs of slides of different patients that agree by `ALIKE` or more, the most alike first.

    The agreement is the largest circular cross-correlation over all shifts, and over the eight ways to lay a slide on
    the scanner's stage: ``max_s sum_p a(p) b(p + s)`` by Fourier transforms.

    Args:
        rows: Of the labels table.
        looks: By slide id.
    """
    patient_of = {row.slide_id: row.patient_id for row in rows}
    names = sorted(looks)
    spectra = np.fft.rfft2(np.stack([looks[name] for name in names])) if names else np.empty((0, SIDE_PX, 1))
    found: list[Lookalikes] = []
    for place, name in enumerate(names[:-1]):
        agreements = _agreements(looks[name], spectra[place + 1 :])
        for other, agreement in zip(names[place + 1 :], agreements.tolist(), strict=True):
            if agreement >= ALIKE and patient_of[name] != patient_of[other]:
                patients = (patient_of[name], patient_of[other])
                found.append(Lookalikes(slides=(name, other), patients=patients, agreement=agreement))
    return sorted(found, key=lambda pair: (-pair.agreement, pair.slides))


def _agreements(look: Look, spectra: np.ndarray) -> Float32[np.ndarray, " slide"]:
    best = np.full(len(spectra), -1.0, np.float32)
    for turned in (np.rot90(side, quarter) for side in (look, look.T) for quarter in range(4)):
        shifted = np.fft.irfft2(np.conj(np.fft.rfft2(turned)) * spectra, s=(SIDE_PX, SIDE_PX))
        best = np.maximum(best, shifted.max(axis=(1, 2)))
    return best


def _read(slide_id: str, path: Path) -> Look | None:
    try:
        with Slide(slide_id, path) as slide:
            bounds = slide.bounds_lv0()
            thumbnail = slide.thumbnail(bounds, max(1.0, max(bounds[2:]) / (4 * SIDE_PX)))
            return look_of(thumbnail.astype(np.float64), slide.background)
    except SlideError:
        return None
