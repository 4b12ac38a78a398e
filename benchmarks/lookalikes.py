"""Does `split check_slides=` tell a slide that was scanned or saved again from another slide?

    python -P benchmarks/lookalikes.py --slides <folder> --labels <csv>

Every pair of slides of two patients, and every slide against a changed picture of itself.
"""

import argparse
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from feature_extraction.slide import Slide
from feature_extraction.slides import read_slide_table
from mil.cohort import CohortRow, read_labels
from mil.splits import lookalikes
from mil.splits.lookalikes import ALIKE, find_lookalikes, look_of, read_looks

THUMBNAIL_PX = 512
WHITE = (255, 255, 255)


def main() -> None:
    """Parse, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    options = parser.parse_args()
    rows = read_labels(options.labels).rows
    lookalikes.ALIKE = -1.0  # every pair is wanted here
    looks = read_looks(options.slides, [row.slide_id for row in rows])
    pairs = np.array([pair.agreement for pair in find_lookalikes(rows, looks)])
    print(f"{len(looks)} slides, {len(pairs)} pairs of two patients: median {np.median(pairs):.2f}, largest ", end="")
    print(f"{pairs.max():.2f}; {(pairs >= ALIKE).sum()} false alarms at {ALIKE}\n")
    print("| the same slide | least agreement | median | found |\n|---|---|---|---|")
    paths = {record.slide_id: record.path for record in read_slide_table(options.slides).records}
    thumbnails = {name: thumbnail(name, paths[name]) for name in looks}
    for what, change in CHANGES.items():
        found = np.array([agreement(picture, change(picture)) for picture in thumbnails.values()])
        print(f"| {what} | {found.min():.2f} | {np.median(found):.2f} | {(found >= ALIKE).mean():.0%} |", flush=True)


def thumbnail(slide_id: str, path: Path) -> Image.Image:
    """The scanned area, its longer side `THUMBNAIL_PX`."""
    with Slide(slide_id, path) as slide:
        bounds = slide.bounds_lv0()
        return Image.fromarray(slide.thumbnail(bounds, max(1.0, max(bounds[2:]) / THUMBNAIL_PX)))


def agreement(first: Image.Image, second: Image.Image) -> float:
    """As `find_lookalikes` has it, of two patients with a slide each."""
    row = CohortRow(slide_id="a", patient_id="a", label="", site=None)
    looks = {name: look_of(np.asarray(one, np.float64), WHITE) for name, one in (("a", first), ("b", second))}
    known = {name: look for name, look in looks.items() if look is not None}
    (pair,) = find_lookalikes([row, replace(row, slide_id="b", patient_id="b")], known)
    return pair.agreement


def _as_jpeg(picture: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=20)
    return Image.open(stream).convert("RGB")


def _without_an_edge(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    return picture.crop((width // 20, height // 30, width, height))


def _moved(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    return picture.rotate(0, translate=(width // 10, height // 14), fillcolor=WHITE)


def _other_stain(picture: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(picture) * np.array([0.9, 1.0, 0.85])).astype(np.uint8))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG quality 20": _as_jpeg,
    "upside down": lambda picture: picture.rotate(180),
    "on its side, mirrored": lambda picture: picture.transpose(Image.Transpose.TRANSPOSE),
    "contrast and colour at 60 %": lambda one: ImageEnhance.Color(ImageEnhance.Contrast(one).enhance(0.6)).enhance(0.6),
    "another stain": _other_stain,
    "moved by 10 %": _moved,
    "turned by 2 degrees": lambda picture: picture.rotate(2, fillcolor=WHITE),
    "turned by 5 degrees": lambda picture: picture.rotate(5, fillcolor=WHITE),
    "5 % of an edge not scanned": _without_an_edge,
}


if __name__ == "__main__":
    main()
