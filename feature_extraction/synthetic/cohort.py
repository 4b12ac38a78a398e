"""A cohort of drawn slides: patients, sites, labels and truth, made once and verified ever after."""

import csv
import io
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from feature_extraction.errors import DamagedFileError
from feature_extraction.files import (
    address,
    is_valid,
    publish_json,
    publish_text,
    read_json,
    sha256_of_file,
)
from feature_extraction.synthetic.slide import LABELS, SlidePlan, draw_slide
from feature_extraction.synthetic.tiff import write_pyramid
from feature_extraction.synthetic.truth import lesions_geojson

SITES = ("A", "B", "C")

DRAWING_VERSION = 1
"""Raised whenever the drawing of a plan changes, so that cohorts drawn before are drawn again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortSlide:
    """One row of ``labels.csv`` and how its slide is drawn.

    Attributes:
        patient_id: Such as P001.
        slide_id: Such as P001-S1.
        site: One of `SITES`.
        path: The slide, relative to the cohort's folder.
        plan: The drawing.
    """

    patient_id: str
    slide_id: str
    site: str
    path: str
    plan: SlidePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """A cohort on the disk.

    Attributes:
        folder: Holds everything.
        slides: Folder of the slides.
        labels: Table with columns patient_id, slide_id, site, label, path.
        truth: Folder with ``<slide_id>.geojson``: lesion outlines in level-0 pixels.
        n_slides: Slides in the table.
        n_drawn: Slides that this call had to draw.
    """

    folder: Path
    slides: Path
    labels: Path
    truth: Path
    n_slides: int
    n_drawn: int


def plan_cohort(*, n_patients: int, seed: int) -> tuple[CohortSlide, ...]:
    """Who has which slides: labels balanced, every fourth patient with two slides, labels and sites crossed."""
    rng = np.random.default_rng(seed)
    slides: list[CohortSlide] = []
    for patient in range(n_patients):
        label = LABELS[patient % len(LABELS)]
        site = (patient // len(LABELS)) % len(SITES)
        for number in range(1, 3 if patient % 4 == 3 else 2):
            slide_id = f"P{patient + 1:03d}-S{number}"
            plan = SlidePlan(
                label=label,
                seed=int(rng.integers(2**31)),
                stain_seed=1000 * seed + site,
                mpp=float(rng.choice([0.5, 0.5, 0.5, 0.5, 0.4])),
            )
            suffix = "svs" if rng.random() < 0.6 else "tiff"
            path = f"slides/{slide_id}.{suffix}"
            slides.append(
                CohortSlide(patient_id=f"P{patient + 1:03d}", slide_id=slide_id, site=SITES[site], path=path, plan=plan)
            )
    return tuple(slides)


def make_cohort(
    folder: Path,
    *,
    n_patients: int = 42,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Cohort:
    """Draw a cohort, or what is missing or damaged of it; a second call draws nothing.

    Each slide is followed by its truth, which names the slide's hash and plan; ``cohort.json`` is written last.

    Args:
        folder: Where to.
        n_patients: Patients; about five slides for every four patients.
        seed: Source of everything; the same seed gives the same pixels.
        workers: Processes that draw.
        progress: Called with the number of slides done and their total, after each slide.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    slides = plan_cohort(n_patients=n_patients, seed=seed)
    waiting = [slide for slide in slides if not is_valid(truth_path(folder, slide), _truth_check(folder, slide))]
    done = len(slides) - len(waiting)
    for count in _draw_all(folder, waiting, workers):
        if progress is not None:
            progress(done + count, len(slides))
    labels = folder / "labels.csv"
    _publish_if_new(labels, _labels_csv(slides))
    content: dict[str, object] = {"drawing_version": DRAWING_VERSION, "n_patients": n_patients, "seed": seed}
    paths = [labels, *(path for slide in slides for path in (folder / slide.path, truth_path(folder, slide)))]
    content["files"] = {str(path.relative_to(folder)): _facts(path) for path in paths}
    if waiting or not is_valid(folder / "cohort.json", _content_check(content)):
        publish_json(folder / "cohort.json", content)
    return Cohort(
        folder=folder,
        slides=folder / "slides",
        labels=labels,
        truth=folder / "truth",
        n_slides=len(slides),
        n_drawn=len(waiting),
    )


def truth_path(folder: Path, slide: CohortSlide) -> Path:
    """Where the truth of a slide lies."""
    return folder / "truth" / f"{slide.slide_id}.geojson"


def _draw_all(folder: Path, slides: Sequence[CohortSlide], workers: int) -> Iterator[int]:
    """Draw slides, yielding how many are done after each."""
    if workers <= 1:
        for count, slide in enumerate(slides, start=1):
            _draw_one(folder, slide)
            yield count
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, max(1, len(slides))), mp_context=context) as pool:
        futures = [pool.submit(_draw_one, folder, slide) for slide in slides]
        for count, future in enumerate(as_completed(futures), start=1):
            future.result()
            yield count


def _draw_one(folder: Path, slide: CohortSlide) -> None:
    """Draw and publish one slide, then its truth."""
    drawn = draw_slide(slide.plan)
    path = folder / slide.path
    write_pyramid(path, drawn.pixels, mpp=slide.plan.mpp, flavour="aperio" if path.suffix == ".svs" else "generic")
    record = lesions_geojson(drawn.lesions_lv0, slide.plan.label)
    record |= {"plan": _plan_address(slide), "slide_sha256": sha256_of_file(path)}
    publish_json(truth_path(folder, slide), record)


def _plan_address(slide: CohortSlide) -> str:
    """Hash of all that determines a slide."""
    return address({"version": DRAWING_VERSION, "path": slide.path, **asdict(slide.plan)})


def _truth_check(folder: Path, slide: CohortSlide) -> Callable[[Path], object]:
    """A check that a truth file belongs to the plan and that its slide is whole."""

    def check(path: Path) -> None:
        record = read_json(path)
        expected = {"plan": _plan_address(slide), "slide_sha256": sha256_of_file(folder / slide.path)}
        if any(record.get(key) != value for key, value in expected.items()):
            raise DamagedFileError(f"slide {slide.slide_id}: not the slide of this plan; it will be drawn again")

    return check


def _content_check(content: dict[str, object]) -> Callable[[Path], object]:
    """A check that a JSON file holds exactly ``content``."""

    def check(path: Path) -> None:
        if read_json(path) != content:
            raise DamagedFileError(f"{path}: of another cohort; it will be written again")

    return check


def _facts(path: Path) -> dict[str, object]:
    """Size in bytes and hash of a file."""
    return {"size": path.stat().st_size, "sha256": sha256_of_file(path)}


def _labels_csv(slides: Sequence[CohortSlide]) -> str:
    """The labels table as text."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["patient_id", "slide_id", "site", "label", "path"])
    for slide in slides:
        writer.writerow([slide.patient_id, slide.slide_id, slide.site, slide.plan.label, slide.path])
    return stream.getvalue()


def _publish_if_new(path: Path, text: str) -> None:
    """Publish a text unless the file holds it already."""

    def check(file: Path) -> None:
        if file.read_bytes() != text.encode():
            raise DamagedFileError(f"{file}: of another cohort; it will be written again")

    if not is_valid(path, check):
        publish_text(path, text)
