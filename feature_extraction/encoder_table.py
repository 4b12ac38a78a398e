"""The table of encoders in the README, made from ``conf/encoder/``.

``python -m feature_extraction.encoder_table README.md`` (part of ``make fix``) writes it between its marks.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml

from feature_extraction.configuration import conf_folder
from feature_extraction.encoder import EncoderSource, EncoderSpec
from feature_extraction.files import publish_text
from feature_extraction.targets import construct, resolve

MARKS = ("<!-- encoders: made by `make fix` from conf/encoder -->", "<!-- end of encoders -->")
COLUMNS = ("`encoder=`", "what it is", "joint", "backbone", "tile", "licence of the weights", "needs")
PACKAGES = ("feature_extraction",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedEncoder:
    """One yaml of ``conf/encoder``.

    Attributes:
        name: What stands behind ``encoder=``.
        title: The first line of the yaml.
        extra: Optional dependencies of the family.
        spec: The facts, None of a yaml for weights of the user's own.
    """

    name: str
    title: str
    extra: str
    spec: EncoderSpec | None


def listed_encoders(folder: Path) -> list[ListedEncoder]:
    """Every encoder of a folder: those with a card by name, then those for the user's own weights."""
    found = [_listed(path) for path in sorted(folder.glob("*.yaml"))]
    return sorted(found, key=lambda one: (one.spec is None, one.name))


def encoder_table(encoders: list[ListedEncoder]) -> str:
    """The encoders as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join([*lines, *("| " + " | ".join(_cells(one)) + " |" for one in encoders)])


def with_table(text: str, table: str, *, marks: tuple[str, str] = MARKS) -> str:
    """A document with the table between its two marks."""
    begin, end = marks
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def _listed(path: Path) -> ListedEncoder:
    text = path.read_text(encoding="utf-8")
    config = cast("Mapping[str, object]", yaml.safe_load(text))
    family = resolve(str(config["_target_"]), kind=EncoderSource, packages=PACKAGES)
    is_own = "???" in config.values()
    spec = None if is_own else construct(config, kind=EncoderSource, packages=PACKAGES).spec
    title = text.partition("\n")[0].removeprefix("#").strip().rstrip(".")
    return ListedEncoder(name=path.stem, title=title, extra=family.extra, spec=spec)


def _cells(one: ListedEncoder) -> tuple[str, ...]:
    needs = f"`[{one.extra}]`" if one.extra else ""
    if one.spec is None:
        return f"`{one.name}`", one.title, *[""] * 4, needs
    spec = one.spec
    tile_px = spec.tile_px or spec.resized_px
    ancestry = [name for name in spec.licence_ancestry if name != spec.licence]
    licence = f"{spec.licence} (from {', '.join(ancestry)})" if ancestry else spec.licence
    return (
        f"`{one.name}`",
        one.title,
        str(spec.widths.get("joint", "")),
        str(spec.widths.get("backbone", "")),
        f"{tile_px} px, {spec.tile_mpp} µm",
        licence + (", gated" if spec.is_gated else ""),
        needs,
    )


if __name__ == "__main__":
    document = Path(sys.argv[1])
    made = encoder_table(listed_encoders(conf_folder() / "encoder"))
    publish_text(document, with_table(document.read_text(encoding="utf-8"), made))
