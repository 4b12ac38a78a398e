"""Tables for a paper: LaTeX with booktabs, one table a table."""

import re
from collections.abc import Sequence

from mil.report.page import Table

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
    n_text = table.n_text_columns
    columns = "l" * n_text + "r" * (len(table.columns) - n_text)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_text(table.title)}{'' if table.title.endswith('?') else '.'} {_text(table.note)}}}",
        rf"\label{{tab:{re.sub(r'[^a-z0-9]+', '-', table.title.lower()).strip('-')}}}",
        r"\smallskip",  # article has no space between a caption above and what is below
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _row(table.columns),
        r"\midrule",
        *map(_row, table.rows),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(_text, cells)) + r" \\"


def _text(text: str) -> str:
    """Characters that mean something to LaTeX as themselves."""
    return "".join(_ESCAPES.get(sign, sign) for sign in text.replace("\n", " "))
