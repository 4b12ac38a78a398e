"""How many labels the words are worth: every start at 0, 1, 2, 4, 8 and all patients a class.

    python -P benchmarks/fewshot.py [--data <folder> --weights <folder> --prompts lung] [--out <folder>] [--draws 10]

``--data`` and ``--weights`` as in `benchmarks/cohort.py`; without them the drawn cohort of the demo and its encoder. A
draw is another partition of the patients into five folds and another choice of the training patients; every patient is
tested once a draw. Fixed settings for every method, nothing chosen by the test part. Prints, per method and number of
training patients a class, the balanced accuracy and macro-AUC of patients: mean over the draws, and a 95 % bootstrap
interval of it over patients (the draws share the patients: their spread alone would be too narrow).
Also writes a picture. Cells that are done are not trained again.
"""

import argparse
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import yaml

from feature_extraction.configuration import conf_folder
from feature_extraction.synthetic.cohort import make_cohort
from mil.cell import TrainRequest
from mil.cli import main as promptmil
from mil.fit import Training
from mil.metrics.classification import Predictions
from mil.metrics.intervals import Estimate
from mil.module import Optimization
from mil.report.repeat_intervals import interval_over_repeats
from mil.train import train_cell

SHOTS: tuple[int | None, ...] = (1, 2, 4, 8, None)
FOLDS, EPOCHS = 5, 30
SHOWN = "balanced_accuracy"


@dataclass(frozen=True)
class Method:
    """A row of the table: an aggregator, what it starts from, and whose words."""

    name: str
    aggregator: str
    init: str
    words: str = "own"


METHODS = (
    Method("`gated_abmil`, random start", "gated_abmil", "random"),
    Method("`transmil`, random start", "transmil", "random"),
    Method("`clam_sb`, random start", "clam_sb", "random"),
    Method("`zs_mil`, only the head from text", "zs_mil", "text"),
    Method("`gated_abmil`, text start", "gated_abmil", "text"),
    Method("`prompt`, text start", "prompt", "text"),
    Method("`prompt`, random start", "prompt", "random"),
    Method("`prompt`, shuffled text", "prompt", "text", "shuffled"),
    Method("`prompt`, nonsense text", "prompt", "text", "nonsense"),
)
ZERO_SHOT = Method("zero-shot, no label", "prompt", "text")


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--out", type=Path, default=Path("fewshot_out"))
    parser.add_argument("--prompts", default="demo")
    parser.add_argument("--draws", type=int, default=10)
    options = parser.parse_args()
    out = options.out
    data = options.data or make_cohort(out / "cohort", workers=2).folder
    encoder = ["encoder=hf_clip", f"encoder.path={options.weights}"] if options.weights else ["encoder=demo"]
    run(["extract", *encoder, f"slides={data / 'slides'}", f"out={out / 'features'}", "qc=false"])
    run(["prompts", f"prompts={options.prompts}", *encoder, f"out={out / 'bank'}"])
    jobs = [job for draw in range(options.draws) for job in jobs_of(out, data / "labels.csv", draw)]
    with ProcessPoolExecutor(
        2, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        found = list(pool.map(test_rows, jobs, chunksize=8))
    show(pd.concat(found), out)


def run(words: list[str]) -> None:
    """Run a command, or stop."""
    code = promptmil(words)
    if code:
        raise SystemExit(f"promptmil {' '.join(words)} ended with {code}")


def jobs_of(out: Path, labels: Path, draw: int) -> Iterable[tuple[Method, int | None, int, TrainRequest]]:
    """Every cell of one draw."""
    folder = out / "splits" / str(draw)
    for shots in SHOTS:
        words = ["scheme=kfold"] if shots is None else ["scheme=few_shot", f"shots={shots}"]
        run(["split", f"labels={labels}", f"out={folder}", f"folds={FOLDS}", f"seed={draw}", *words])
        split = folder / ("kfold.csv" if shots is None else f"few_shot_{shots}.csv")
        for fold in range(FOLDS):
            for method in METHODS:
                yield method, shots, draw, request_of(out, split, fold, draw, method, EPOCHS)
            if shots is None:
                yield ZERO_SHOT, 0, draw, request_of(out, split, fold, draw, ZERO_SHOT, 0)


def request_of(out: Path, split: Path, fold: int, draw: int, method: Method, epochs: int) -> TrainRequest:
    """The cell that `promptmil train` would train."""
    (bank,) = (out / "bank").glob("*.safetensors")
    trainer = group_of("trainer/default") | {"max_epochs": epochs, "accelerator": "cpu", "seed": draw}
    return TrainRequest(
        features=(out / "features",),
        bank=bank,
        split=split,
        out=out / "runs",
        fold=fold,
        seed=draw,
        space=None,
        filter_nontask=False,
        in_memory=False,
        words=method.words,
        aggregator=group_of(f"aggregator/{method.aggregator}") | {"init": method.init},
        task=group_of("task/classification"),
        rule=None,
        top_j=5,
        optimization=Optimization(**group_of("optimizer/adamw")),
        training=Training(**trainer),
        checkpoint_s=60,
    )


def group_of(name: str) -> dict[str, object]:
    """A yaml of the configuration."""
    return yaml.safe_load((conf_folder() / f"{name}.yaml").read_text())


def test_rows(job: tuple[Method, int | None, int, TrainRequest]) -> pd.DataFrame:
    """Train one cell unless it is done; its predictions of the test part."""
    method, shots, draw, request = job
    result = train_cell(request)
    table = pd.read_csv(result.folder / "predictions.csv", dtype={"slide_id": str, "patient_id": str})
    rows = table[table["part"] == "test"].copy()
    return rows.assign(method=method.name, shots=-1 if shots is None else shots, draw=draw)


def show(rows: pd.DataFrame, out: Path) -> None:
    """The table and the picture."""
    columns = [name for name in rows.columns if name.startswith("p_")]
    patients = (
        rows.groupby(["method", "shots", "draw", "patient_id", "label"], sort=False)[columns].mean().reset_index()
    )
    figures = {
        (str(method), int(shots)): intervals(part, columns)
        for (method, shots), part in patients.groupby(["method", "shots"], sort=False)
    }
    names = list(dict.fromkeys(method for method, _ in figures))
    titles = {0: "0", 1: "1", 2: "2", 4: "4", 8: "8", -1: "all"}
    for metric, title in ((SHOWN, "balanced accuracy"), ("macro_auc", "macro-AUC")):
        print(f"\n{title}:\n\n| method | {' | '.join(titles.values())} |\n|---|{'---|' * len(titles)}")
        for name in names:
            cells = [figures.get((name, shots), {}).get(metric) for shots in titles]
            shown = ["" if cell is None else f"{cell.value:.3f} ({cell.low:.3f}-{cell.high:.3f})" for cell in cells]
            print(f"| {name} | {' | '.join(shown)} |")
    draw_curves(figures, names, out / "fewshot.png")
    print(f"\n{out / 'fewshot.png'}")


def intervals(part: pd.DataFrame, columns: list[str]) -> dict[str, Estimate]:
    """Figures of patients, the mean over the draws, with their intervals over patients."""
    classes = tuple(name.removeprefix("p_") for name in columns)
    draws = [
        Predictions(
            slide_ids=tuple(one["patient_id"]),
            patient_ids=tuple(one["patient_id"]),
            classes=classes,
            labels=np.array([classes.index(label) for label in one["label"]]),
            probabilities=one[columns].to_numpy(),
        )
        for _, one in part.groupby("draw")
    ]
    return interval_over_repeats(draws, level="patient")


def draw_curves(figures: Mapping[tuple[str, int], Mapping[str, Estimate]], names: list[str], path: Path) -> None:
    """One line a method, zero-shot across."""
    places = {1: 1, 2: 2, 4: 3, 8: 4, -1: 5}
    plot, axes = plt.subplots(figsize=(9.5, 4.5), layout="constrained")
    for name in names:
        if name == ZERO_SHOT.name:
            axes.axhline(figures[name, 0][SHOWN].value, color="black", linestyle="--", label=name)
            continue
        shots = [one for one in places if (name, one) in figures]
        found = [figures[name, one][SHOWN] for one in shots]
        at = [places[one] for one in shots]
        (line,) = axes.plot(at, [one.value for one in found], marker="o", markersize=3, label=name.replace("`", ""))
        low, high = [one.low for one in found], [one.high for one in found]
        axes.fill_between(at, low, high, color=line.get_color(), alpha=0.08)
    axes.set_xticks(list(places.values()), ["1", "2", "4", "8", "all"])
    axes.set_xlabel("training patients a class")
    axes.set_ylabel("balanced accuracy of patients")
    plot.legend(loc="outside right upper", fontsize=7, frameon=False)
    plot.savefig(path, dpi=130)
    plt.close(plot)


if __name__ == "__main__":
    main()
