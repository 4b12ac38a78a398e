"""`promptmil extract status`: how far the extraction into a folder is; reads files, writes nothing."""

import math
from dataclasses import fields
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from feature_extraction.errors import SlideError
from feature_extraction.files import require_folder
from feature_extraction.slides import read_slide_table
from feature_extraction.status import Outcome
from feature_extraction.stock import Stock, take_stock


def run(config: DictConfig) -> int:
    """Print one column for each feature folder below ``out``, and what failed; returns the exit code."""
    out = require_folder(Path(config.out), "out")
    table = None if config.slides is None else read_slide_table(Path(config.slides))
    stocks = take_stock(out, table)
    console = Console()
    if not stocks:
        console.print(f"{out}: nothing was extracted into this folder yet", soft_wrap=True, markup=False)
        return 0
    shown = Table("", *(stock.features for stock in stocks), box=None)
    columns = [_cells(stock) for stock in stocks]
    for name in columns[0]:
        shown.add_row(name, *(cells[name] for cells in columns))
    console.print(shown)
    for stock in stocks:
        for outcome in stock.failed:
            console.print(_error_line(outcome), soft_wrap=True, markup=False, highlight=False)
    return 0


def _cells(stock: Stock) -> dict[str, str]:
    return {
        "done": str(stock.done),
        "empty": str(stock.empty),
        "failed": str(len(stock.failed)),
        "in work": str(stock.in_work),
        "interrupted": str(stock.interrupted),
        "not started": "give slides=… to know" if stock.not_started is None else str(stock.not_started),
        "tiles": f"{stock.tiles:,}",
        "tiles/s": "" if math.isnan(stock.tiles_per_s) else f"{stock.tiles_per_s:.3g}",
        "left": "" if math.isnan(stock.hours_left) else _duration(stock.hours_left),
    }


def _error_line(outcome: Outcome) -> str:
    return str(SlideError(**{field.name: getattr(outcome, field.name) for field in fields(SlideError)}))


def _duration(hours: float) -> str:
    """About so long, in the unit one would say it in."""
    if hours < 1:
        return f"{max(1, round(hours * 60))} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} d"
