"""`promptmil convert`: other tools' feature folders -> ours (from=…), and ours -> theirs (to=…)."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from feature_extraction.commands import settings
from feature_extraction.commands.extract_report import error_line
from feature_extraction.commands.licence import check_licence, say_licences
from feature_extraction.encoder import Space
from feature_extraction.errors import InputError
from feature_extraction.files import publish_json, require_folder
from feature_extraction.interop.exporting import Export, export, first_header, folder_of
from feature_extraction.interop.importing import Importer
from feature_extraction.interop.incoming import Import
from feature_extraction.interop.layouts import READERS, WRITERS
from feature_extraction.interop.peer import PeerReader
from feature_extraction.mpp import MPP_RANGE, MppRule
from feature_extraction.pseudonyms import printable
from feature_extraction.slides import SlideTable, read_slide_table
from feature_extraction.status import Outcome, write_tables

PARTLY_FAILED = 3
TILE_MPP_RANGE = (0.05, 64.0)


def run(config: DictConfig) -> int:
    """Convert a folder; returns the exit code.

    0: every slide is converted, now or before. 3: some are not, they are listed. 2: bad input, nothing was written.
    """
    read, write = config["from"], config.to
    if (read is None) == (write is None):
        raise InputError(
            f"convert: give either from=… ({', '.join(READERS)}), to take a folder over, or to=… ({', '.join(WRITERS)})"
        )
    return _take_over(config, str(read)) if write is None else _hand_out(config, str(write))


def _take_over(config: DictConfig, tool: str) -> int:
    started = time.monotonic()
    if tool not in READERS:
        raise InputError(f"from={tool}: expected {', '.join(READERS)}")
    reader, console, out = READERS[tool], Console(stderr=True), Path(config.out)
    files = reader.find(require_folder(Path(config.source), "source"))
    table = None if config.slides is None else read_slide_table(Path(config.slides))
    ask = _asked(config, reader, table, out)
    say_licences((ask.encoder.spec,), console)
    importer = Importer(ask, lambda outcome: _say_failure(console, outcome))
    outcomes = importer.run(files)
    folders = sorted({outcome.features for outcome in outcomes if outcome.features})
    known = Counter(importer.fingerprint_sources.values())
    summary = {
        **_summary(tool, outcomes, time.monotonic() - started),
        "direction": "import",
        "features": folders[0] if len(folders) == 1 else folders,
        "verified": known["verified"],
        "declared": known["declared"],
        "encoder_names": sorted(importer.encoder_names),
    }
    lines = [f"{known['verified']} slides verified by embedding tiles again, {known['declared']} as declared"]
    if importer.encoder_names:
        lines.append(f"{tool} calls the encoder {', '.join(sorted(importer.encoder_names))}")
    if len(folders) > 1:
        lines.append(f"tiles of {len(folders)} kinds, so {len(folders)} folders: name the one you want in features=…")
    return _finish(console, out, outcomes, summary, lines)


def _hand_out(config: DictConfig, tool: str) -> int:
    started = time.monotonic()
    if tool not in WRITERS:
        raise InputError(f"to={tool}: expected {', '.join(WRITERS)}")
    writer, console, out = WRITERS[tool], Console(stderr=True), Path(config.out)
    source = folder_of(require_folder(Path(config.source), "source"))
    check_licence(config.licence_profile, first_header(source), console)
    space = None if config.space is None else _space(config.space)
    ask = Export(writer=writer, source=source, out=out, space=space)
    outcomes = export(ask, lambda outcome: _say_failure(console, outcome))
    summary = {
        **_summary(tool, outcomes, time.monotonic() - started),
        "direction": "export",
        "features": source.name,
        "losses": list(writer.losses),
    }
    return _finish(console, out, outcomes, summary, [f"not kept: {loss}" for loss in writer.losses])


def _asked(config: DictConfig, reader: PeerReader, table: SlideTable | None, out: Path) -> Import:
    """The request; the weights are read last, when everything else is in order.

    Raises:
        InputError: Something is missing that nobody may guess.
    """
    if "encoder" not in config:
        raise InputError(
            f"from={reader.name} needs encoder=…, the encoder that made the features (a name in conf/encoder)"
        )
    if config.space is None:
        raise InputError(
            f"from={reader.name} needs space=joint (vectors that are comparable with text) or space=backbone (before "
            "their projection, as these tools store CONCH and MUSK)"
        )
    default_mpp = _mpp_of(config, "default_mpp", MPP_RANGE)
    rule = MppRule(default_mpp=default_mpp, from_objective=bool(config.mpp_from_objective))
    if not reader.holds_mpp and table is None and rule.default_mpp is None:
        raise InputError(
            f"from={reader.name}: its files do not hold the slides' µm per pixel; give slides=… (the folder of slides, "
            "or a CSV with path, slide_id and mpp) or default_mpp=…"
        )
    return Import(
        reader=reader,
        out=out,
        encoder=settings.encoder_source(config).load(settings.device(str(config.device))),
        space=_space(config.space),
        projects=bool(config.project),
        tile_mpp=_mpp_of(config, "tile_mpp", TILE_MPP_RANGE),
        mpp=rule,
        slides={record.slide_id: record for record in table.records} if table else {},
        unusable={failure.slide_id: failure for failure in table.failures} if table else {},
    )


def _space(value: object) -> Space:
    if value not in ("joint", "backbone"):
        raise InputError(f"space={value}: expected joint or backbone")
    return value


def _mpp_of(config: DictConfig, key: str, limits: tuple[float, float]) -> float | None:
    value = config[key]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not limits[0] <= value <= limits[1]:
        raise InputError(f"{key}={value}: expected µm per pixel between {limits[0]} and {limits[1]}")
    return float(value)


def _summary(tool: str, outcomes: Sequence[Outcome], seconds: float) -> dict[str, object]:
    counts = Counter(outcome.status for outcome in outcomes)
    return {
        "command": "convert",
        "tool": tool,
        "slides": len(outcomes),
        "new": sum(outcome.is_new for outcome in outcomes),
        **{status: counts[status] for status in ("done", "empty", "failed", "elsewhere")},
        "tiles": sum(outcome.n_tiles for outcome in outcomes),
        "seconds": round(seconds, 2),
        "failures": [printable(error_line(outcome)) for outcome in outcomes if outcome.status == "failed"],
    }


def _finish(
    console: Console, out: Path, outcomes: Sequence[Outcome], summary: Mapping[str, object], lines: Iterable[str]
) -> int:
    write_tables(out, outcomes)
    publish_json(out / "summary.json", summary)
    counts = ", ".join(f"{summary[key]} {key}" for key in ("done", "empty", "failed", "elsewhere") if summary[key])
    head = f"{summary['slides']} slides: {counts} ({summary['new']} new, {summary['seconds']} s) -> {out}"
    for line in (head, *lines):
        console.print(printable(line), soft_wrap=True, markup=False, highlight=False)
    return PARTLY_FAILED if summary["failed"] else 0


def _say_failure(console: Console, outcome: Outcome) -> None:
    if outcome.status == "failed":
        console.print(printable(error_line(outcome)), soft_wrap=True, markup=False, highlight=False)
