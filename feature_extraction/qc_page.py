"""The cohort at a glance: every slide with its picture and figures, the striking ones first.

A slide is striking when one of these holds (`outlier_reasons`): it failed or is empty; its number of tiles is far from
the other slides' (robust z of the logarithm above 3.5; Iglewicz and Hoaglin 1993); tissue fills nearly nothing or
nearly all of it; much of what is not glass is pen; its mpp is not from its own metadata or unlike most slides'.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined

from feature_extraction.files import publish_text
from feature_extraction.status import as_cell

TEMPLATE, SCRIPT = "qc_page.html.j2", "qc_page.js"
PICTURES = "qc"
"""Folder of the pictures, beside the page."""
FAULTY = ("failed", "empty")
MIN_SLIDES = 8
"""With fewer slides nothing can be called usual."""
MAX_Z, LEAST_SPREAD = 3.5, 0.1
"""The spread of log tile counts is taken as at least this, so that among equal counts a small difference is none."""
LEAST_SHARE, GREATEST_SHARE, MUCH_PEN = 0.005, 0.97, 0.25
TRUSTED_MPP = ("openslide", "table")
MPP_SLACK = 0.1
COLUMNS = ("slide_id", "status", "n_tiles", "n_grid", "tissue_share", "pen_share", "slide_mpp", "mpp_source", "reader")


@dataclass(frozen=True, slots=True, kw_only=True)
class QcRow:
    """What quality control knows of one slide.

    Attributes:
        slide_id: The slide.
        status: What became of it: ``done``, ``empty``, ``failed``, ``elsewhere``, ``stopped``.
        n_tiles: Kept.
        n_grid: Tiles of the whole grid, None when unknown.
        tissue_share: Tissue's share of the scanned area (0..1), None when unknown.
        pen_share: Pen's share of everything that is not glass (0..1), None when unknown.
        slide_mpp: µm per level-0 pixel, None when unknown.
        mpp_source: Where that came from.
        reader: What decoded the pixels.
        fault: Why it failed and what to do, one line.
        has_picture: Whether ``qc/<slide_id>.jpg`` is there.
    """

    slide_id: str
    status: str
    n_tiles: int = 0
    n_grid: int | None = None
    tissue_share: float | None = None
    pen_share: float | None = None
    slide_mpp: float | None = None
    mpp_source: str = ""
    reader: str = ""
    fault: str = ""
    has_picture: bool = False

    @property
    def picture(self) -> str:
        """The picture as a relative URL; the folder in front keeps an id such as ``a:b`` from being a scheme."""
        return f"{PICTURES}/{quote(self.slide_id, safe='')}.jpg" if self.has_picture else ""


def write_qc_page(folder: Path, rows: Sequence[QcRow]) -> None:
    """Write ``<folder>/qc.html``, which shows ``<folder>/qc/<slide_id>.jpg``.

    Raises:
        OSError: The disk refuses.
    """
    publish_text(folder / "qc.html", render_qc_page(rows))


def render_qc_page(rows: Sequence[QcRow]) -> str:
    """The page's text; every string in it is escaped, and only the one script it comes with may run."""
    reasons = outlier_reasons(rows)
    ordered = sorted(rows, key=lambda row: (-_weight(row, reasons[row.slide_id]), row.slide_id))
    script = (files("feature_extraction") / SCRIPT).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("feature_extraction") / TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        rows=ordered,
        reasons=reasons,
        n_striking=sum(bool(found) for found in reasons.values()),
        n_tiles=sum(row.n_tiles for row in rows),
        counts=pd.Series([row.status for row in rows], dtype=str).value_counts().to_dict(),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def qc_rows_table(rows: Sequence[QcRow]) -> pd.DataFrame:
    """One row a slide by id; columns `COLUMNS`, ``striking`` (the reasons, split by ``; ``) and ``fault``.

    Text is `as_cell`, so that no spreadsheet takes it for a formula.
    """
    reasons = outlier_reasons(rows)
    cells = [
        {**asdict(row), "striking": "; ".join(reasons[row.slide_id])} for row in sorted(rows, key=lambda r: r.slide_id)
    ]
    safe = [{name: as_cell(v) if isinstance(v, str) else v for name, v in row.items()} for row in cells]
    return pd.DataFrame(safe, columns=[*COLUMNS, "striking", "fault"]).astype({"n_grid": "Int64"})


def outlier_reasons(rows: Sequence[QcRow]) -> Mapping[str, tuple[str, ...]]:
    """Why each slide is striking; empty for those that are not."""
    z = _robust_z(rows)
    mpp = _usual_mpp(rows)
    return {
        row.slide_id: (
            *_fault_reasons(row),
            *_count_reasons(z.get(row.slide_id)),
            *_share_reasons(row),
            *_mpp_reasons(row, mpp),
        )
        for row in rows
    }


def _fault_reasons(row: QcRow) -> tuple[str, ...]:
    return (row.status,) if row.status in FAULTY else ()


def _count_reasons(z: float | None) -> tuple[str, ...]:
    if z is None or abs(z) <= MAX_Z:
        return ()
    return (f"{'few' if z < 0 else 'many'} tiles (robust z {z:+.1f})",)


def _share_reasons(row: QcRow) -> tuple[str, ...]:
    reasons: list[str] = []
    if row.tissue_share is not None and row.status != "empty" and row.tissue_share < LEAST_SHARE:
        reasons.append(f"hardly any tissue ({row.tissue_share:.1%})")
    if row.tissue_share is not None and row.tissue_share > GREATEST_SHARE:
        reasons.append(f"tissue nearly everywhere ({row.tissue_share:.0%})")
    if row.pen_share is not None and row.pen_share > MUCH_PEN:
        reasons.append(f"much pen ({row.pen_share:.0%} of what is not glass)")
    return tuple(reasons)


def _mpp_reasons(row: QcRow, usual: float | None) -> tuple[str, ...]:
    reasons: list[str] = []
    if row.mpp_source and row.mpp_source not in TRUSTED_MPP:
        reasons.append(f"mpp from {row.mpp_source}")
    if usual is not None and row.slide_mpp and abs(row.slide_mpp / usual - 1) > MPP_SLACK:
        reasons.append(f"mpp {row.slide_mpp:.3g}, most slides {usual:.3g}")
    return tuple(reasons)


def _robust_z(rows: Sequence[QcRow]) -> dict[str, float]:
    """Of log(1 + tiles), by median and median absolute deviation, among slides that are done."""
    done = [row for row in rows if row.status == "done"]
    if len(done) < MIN_SLIDES:
        return {}
    logs = np.log1p([row.n_tiles for row in done])
    median = np.median(logs)
    spread = max(1.4826 * float(np.median(np.abs(logs - median))), LEAST_SPREAD)
    return {row.slide_id: float((value - median) / spread) for row, value in zip(done, logs, strict=True)}


def _usual_mpp(rows: Sequence[QcRow]) -> float | None:
    """The mpp that more than half of the slides have (within `MPP_SLACK`), None when there is no such."""
    known = np.array([row.slide_mpp for row in rows if row.slide_mpp])
    if len(known) < MIN_SLIDES:
        return None
    median = float(np.median(known))
    return median if (np.abs(known / median - 1) <= MPP_SLACK).mean() > 0.5 else None


def _weight(row: QcRow, reasons: Sequence[str]) -> int:
    """Failed before empty before striking before the rest."""
    return {"failed": 3, "empty": 2}.get(row.status, int(bool(reasons)))
