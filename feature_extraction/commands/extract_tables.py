"""The tables and pages that `promptmil extract` leaves: every slide's fate, and what people look through."""

from collections.abc import Sequence
from pathlib import Path

from feature_extraction.commands.extract_report import error_line
from feature_extraction.files import publish_text
from feature_extraction.qc_page import QcRow, qc_rows_table, write_qc_page
from feature_extraction.status import Outcome, read_records, write_tables


def write_outcomes(out: Path, folders: Sequence[Path], outcomes: Sequence[Outcome]) -> None:
    """Write the tables of ``out``, and the page and table of slides of each feature folder.

    Several workers may do so: each writes its own outcomes and whatever the others have recorded until then.
    """
    recorded = {
        (folder.name, outcome.slide_id): outcome
        for folder in folders
        for outcome in read_records(folder / ".work" / "records")
    }
    ours = [recorded.get((one.features, one.slide_id), one) if one.status == "elsewhere" else one for one in outcomes]
    told = {(one.features, one.slide_id) for one in ours}
    known = [*ours, *(one for key, one in recorded.items() if key not in told)]
    write_tables(out, known)
    for folder in folders:
        pictures = {path.stem for path in (folder / "qc").glob("*.jpg")}
        rows = [_row(one, pictures) for one in known if one.features == folder.name]
        if rows:
            write_qc_page(folder, rows)
            publish_text(folder / "slides.csv", qc_rows_table(rows).to_csv(index=False))


def _row(outcome: Outcome, pictures: set[str]) -> QcRow:
    return QcRow(
        slide_id=outcome.slide_id,
        status=outcome.status,
        n_tiles=outcome.n_tiles,
        n_grid=outcome.n_grid,
        tissue_share=outcome.tissue_share,
        pen_share=outcome.pen_share,
        slide_mpp=outcome.slide_mpp or None,
        mpp_source=outcome.mpp_source,
        reader=outcome.reader,
        fault=error_line(outcome) if outcome.code else "",
        has_picture=outcome.slide_id in pictures,
    )
