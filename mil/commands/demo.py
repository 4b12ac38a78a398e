"""`promptmil demo`: a small drawn cohort, then every step on it."""

import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from feature_extraction.commands.settings import n_threads
from feature_extraction.errors import InputError
from feature_extraction.files import publish_json, read_json
from feature_extraction.synthetic.cohort import make_cohort
from mil.cli import main
from mil.demo import Paths, Size, shown_maps, steps_to_features, steps_to_results
from mil.report.page import Figure, Section, Table, write_report
from mil.report.sections import report_sections
from mil.report.site_figures import SiteSource
from mil.report.summarize import summarize

BUG = 1
ABOUT = (
    "Every slide here is a drawing and the encoder is a toy trained on such drawings.",
    "It shows that the steps work together, and nothing about medicine.",
    "The classes differ in a few per cent of the tiles only.",
    "Zero-shot uses no label; the rows with shots train on that many patients a class.",
)


def run(config: DictConfig) -> int:
    """Make the cohort, run the steps, write the report; returns the first exit code that is not 0."""
    started = time.monotonic()
    console = Console(stderr=True)
    out = Path(config.out)
    paths = _draw(config, out, console)
    size = Size(folds=config.folds, shots=config.shots, seed=config.seed, max_epochs=config.max_epochs)
    for steps in (
        lambda: steps_to_features(paths, size),
        lambda: steps_to_results(paths, size, _only_bank(out / "bank")),
    ):
        for words in steps():
            console.print(f"\npromptmil {' '.join(words)}", style="bold", soft_wrap=True, markup=False, highlight=False)
            code = main(words)
            if code:
                console.print(f"this step ended with code {code}", markup=False)
                return code
    record = read_json(paths.maps / "summary.json")
    _report(config, paths, record)
    seconds = time.monotonic() - started
    publish_json(
        out / "summary.json",
        {"command": "demo", "report": "report.html", "tile_auc": record["tile_auc"], "seconds": round(seconds, 1)},
    )
    console.print(f"\ndone in {seconds:.0f} s: open {out / 'report.html'}", soft_wrap=True, markup=False)
    return 0


def _draw(config: DictConfig, out: Path, console: Console) -> Paths:
    """The cohort; drawn once."""
    with Progress(console=console) as progress:
        task = progress.add_task("drawing slides", total=None)
        cohort = make_cohort(
            out / "cohort",
            n_patients=config.patients,
            seed=config.seed,
            workers=n_threads("auto"),
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
        progress.update(task, total=cohort.n_slides, completed=cohort.n_slides)
    console.print(f"{cohort.n_slides} slides ({cohort.n_drawn} drawn now) -> {cohort.folder}", markup=False)
    return Paths(out=out, slides=cohort.slides, labels=cohort.labels, truth=cohort.truth)


def _only_bank(folder: Path) -> Path:
    name = read_json(folder / "summary.json").get("bank")
    if not isinstance(name, str):
        raise InputError(f"{folder}: no text bank; delete the folder and run the demo again")
    return folder / name


def _report(config: DictConfig, paths: Paths, record: dict[str, object]) -> None:
    """Tables and plots of the sweep, the tile AUCs, and maps."""
    summary = summarize(paths.runs, sites=SiteSource(features=paths.features, labels=paths.labels))
    lines = record["slides"]
    chosen = shown_maps(lines, config.maps) if isinstance(lines, list) else []
    maps = [
        Figure(
            title=slide_id,
            png=(paths.maps / f"{slide_id}.png").read_bytes(),
            caption="Left the slide; right what speaks for (orange) and against (purple) the class.",
        )
        for slide_id in chosen
    ]
    write_report(
        paths.out / "report.html",
        title="promptmil demo",
        sections=[
            *report_sections(summary, level="patient", rank_by=None),
            Section(title="Maps", tables=(_auc_table(record["tile_auc"]),), figures=tuple(maps)),
        ],
        notes=ABOUT,
        warnings=summary.warnings,
    )


def _auc_table(tile_auc: object) -> Table:
    """How well the maps find the drawn lesions."""
    values = tile_auc if isinstance(tile_auc, dict) else {}
    rows: Sequence[tuple[str, str]] = [
        (name.removeprefix("auc_"), f"{value:.3f}") for name, value in values.items() if isinstance(value, float)
    ]
    return Table(
        title="Tiles: maps against the drawn lesions",
        columns=("layer of the map (prompt, all labels)", "mean AUC over slides"),
        rows=tuple(rows),
        note=(
            f"Mean over the {values.get('slides', 0)} slides that have lesion tiles. Contributions and attention are "
            "zero outside the chosen tiles, which bounds their AUC; evidence is given for every tile."
        ),
    )
