"""Tables for a paper: LaTeX with booktabs, a table that fits its page."""

import re
from collections.abc import Sequence

from mil.report.page import Table

WIDEST = 130
"""Characters a row; what is wider stands in parts under one another, as it would be shrunk beyond reading."""
MOST_ROWS = 45
"""Rows a page; what is longer goes on in another table."""
_LINES_AROUND = 3
_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "↓": r"$\downarrow$",
    "Δ": r"$\Delta$",
    "·": r"$\cdot$",
    "±": r"$\pm$",
    "…": r"\ldots{}",
}


def as_latex(tables: Sequence[Table]) -> str:
    r"""The tables as ``table`` environments with caption and label; needs ``\usepackage{booktabs,graphicx}``."""
    return "% \\usepackage{booktabs,graphicx}\n" + "\n".join(map(_table, tables))


def _table(table: Table) -> str:
    pages = _pages(table)
    title = f"{_text(table.title)}{'' if table.title.endswith('?') else '.'}"
    label = rf"\label{{tab:{re.sub(r'[^a-z0-9]+', '-', table.title.lower()).strip('-')}}}"
    captions = [rf"\caption{{{title} {_text(table.note)}}}", *[rf"\caption{{{title} (continued)}}"] * (len(pages) - 1)]
    return "".join(
        _float(caption + (label if page is pages[0] else ""), page)
        for page, caption in zip(pages, captions, strict=True)
    )


def _float(caption: str, tabulars: Sequence[str]) -> str:
    lines = [
        r"\begin{table}",
        r"\centering",
        caption,
        r"\smallskip",  # article has no space between a caption above and what is below
        "\n\n\\medskip\n".join(tabulars),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _pages(table: Table) -> list[list[str]]:
    """The table in parts that fit a page, those of a page together: first all columns of the first rows."""
    pages: list[list[str]] = [[]]
    n_lines = 0
    for start in range(0, max(1, len(table.rows)), MOST_ROWS):
        rows = table.rows[start : start + MOST_ROWS]
        for chosen in _column_parts(table):
            if pages[-1] and n_lines + len(rows) > MOST_ROWS:
                pages.append([])
                n_lines = 0
            pages[-1].append(_tabular(table, rows, chosen))
            n_lines += len(rows) + _LINES_AROUND
    return pages


def _column_parts(table: Table) -> list[list[int]]:
    """Columns that fit beside each other; the names stand in each part."""
    names = list(range(table.n_text_columns))
    widths = [max(len(row[column]) for row in (table.columns, *table.rows)) + 2 for column in range(len(table.columns))]
    room = WIDEST - sum(widths[column] for column in names)
    parts: list[list[int]] = [[]]
    for column in range(table.n_text_columns, len(table.columns)):
        if parts[-1] and sum(widths[one] for one in (*parts[-1], column)) > room:
            parts.append([])
        parts[-1].append(column)
    return [[*names, *part] for part in parts]


def _tabular(table: Table, rows: Sequence[Sequence[str]], chosen: Sequence[int]) -> str:
    columns = "".join("l" if column < table.n_text_columns else "r" for column in chosen)
    header, *lines = (_row([row[column] for column in chosen]) for row in (table.columns, *rows))
    return "\n".join(
        [
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            header,
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
        ]
    )


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(_text, cells)) + r" \\"


def _text(text: str) -> str:
    """Characters that mean something to LaTeX as themselves."""
    return "".join(_ESCAPES.get(sign, sign) for sign in text.replace("\n", " "))
