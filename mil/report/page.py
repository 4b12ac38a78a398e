"""One self-contained HTML file from tables, figures and notes: nothing in it is fetched, nothing in it runs."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from feature_extraction.errors import InputError
from feature_extraction.files import publish_text

TEMPLATE = "page.html.j2"
SHOWN_SIZE = 0.55
"""CSS pixels for a pixel of a picture."""
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table for people.

    Attributes:
        title: Heading.
        columns: Column names.
        rows: Cells as they are shown; as many as there are columns.
        note: What a reader must know to read it right.
        n_text_columns: Leading columns that are names; the others are figures and stand to the right.
        is_record: Whether it is for looking things up, and not for a paper.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    n_text_columns: int = 1
    is_record: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A picture for people.

    Attributes:
        title: Heading; also what a screen reader says.
        png: The bytes of a PNG file.
        caption: What is seen, with units.
    """

    title: str
    png: bytes
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Tables and pictures about one thing.

    Attributes:
        title: Heading; empty for none.
        tables: In their order.
        figures: In their order, after the first table.
    """

    title: str = ""
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()


def write_report(
    path: Path,
    *,
    title: str,
    sections: Sequence[Section],
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> None:
    """Write the page: title, warnings, notes, then the sections with a list of them.

    Args:
        path: The HTML file.
        title: Heading.
        sections: In the order given; pictures are embedded.
        notes: Plain sentences.
        warnings: What a reader must not overlook, such as missing folds; stands first.

    Raises:
        InputError: A figure is no PNG, or a row is not as long as the header.
    """
    publish_text(path, render_report(title=title, sections=sections, notes=notes, warnings=warnings))


def render_report(*, title: str, sections: Sequence[Section], notes: Sequence[str], warnings: Sequence[str]) -> str:
    """The page's text; every string in it is escaped."""
    tables = [table for section in sections for table in section.tables]
    uneven = [table.title for table in tables for row in table.rows if len(row) != len(table.columns)]
    if uneven:
        raise InputError(f"report: table {uneven[0]!r} has a row of another length than its header")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("mil.report") / TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        title=title,
        sections=[(section, [_shown(figure) for figure in section.figures]) for section in sections],
        notes=notes,
        warnings=warnings,
    )


def as_markdown(title: str, tables: Sequence[Table], notes: Sequence[str]) -> str:
    """The same tables for a text file."""
    lines = [f"# {title}", "", *(f"- {_cell(note)}" for note in notes)]
    for table in tables:
        lines += ["", f"## {table.title}", ""]
        lines += [_line(table.columns), _line(_rules(table)), *(_line(row) for row in table.rows)]
        lines += ["", table.note] if table.note else []
    return "\n".join(lines) + "\n"


def _base64(figure: Figure) -> str:
    if not figure.png.startswith(_PNG):
        raise InputError(f"report: figure {figure.title!r} is not a PNG")
    return base64.b64encode(figure.png).decode()


def _shown(figure: Figure) -> tuple[Figure, str, int]:
    return figure, _base64(figure), _width(figure)


def _width(figure: Figure) -> int:
    """Of the picture on the page, in CSS pixels: with more pixels than that it is sharp on paper and fine screens."""
    return round(int.from_bytes(figure.png[16:20], "big") * SHOWN_SIZE)


def _rules(table: Table) -> list[str]:
    return ["---" if place < table.n_text_columns else "---:" for place in range(len(table.columns))]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    """Text that cannot end its cell or start HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
