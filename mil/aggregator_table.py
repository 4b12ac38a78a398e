"""The table of aggregators in the README, made from ``conf/aggregator/``.

``python -m mil.aggregator_table README.md`` (part of ``make fix``) writes it between its marks.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import yaml

from feature_extraction.configuration import conf_folder
from feature_extraction.encoder_table import with_table
from feature_extraction.files import publish_text

MARKS = ("<!-- aggregators: made by `make fix` from conf/aggregator -->", "<!-- end of aggregators -->")
COLUMNS = ("`aggregator=`", "what it is", "starts from")


def aggregator_table(folder: Path) -> str:
    """Every aggregator of a folder as a Markdown table: the first line of its yaml, up to where it departs."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join([*lines, *(_row(path) for path in sorted(folder.glob("*.yaml")))])


def _row(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    config = cast("Mapping[str, list[str]]", yaml.safe_load(text))
    title, _, _ = text.partition("\n")[0].removeprefix("#").strip().partition(" Departs from")
    return f"| `{path.stem}` | {title.rstrip('.')} | {', '.join(config['inits'])} |"


if __name__ == "__main__":
    document = Path(sys.argv[1])
    made = aggregator_table(conf_folder() / "aggregator")
    publish_text(document, with_table(document.read_text(encoding="utf-8"), made, marks=MARKS))
