"""What reading on a budget misses: tumour slides, tumour tiles and slide-level accuracy, against random tiles.

    python -P benchmarks/budget.py --data <folder> --weights <folder> [--prompts lung] [--out <folder>]
        [--features <folder> --bank <file>] [--coarse 1.0,2.0] [--budgets 0.05,0.1,0.2,0.4,1.0]

``--data`` and ``--weights`` as in `benchmarks/cohort.py`; without them the drawn cohort of the demo and its encoder.
``--features`` (of all tissue) and ``--bank`` take what was made before. Coarse features come from `extract
reading=budget` itself; what each budget would read is then told by the function that the extractor plans with, and
taken from the complete features, so that nothing is embedded twice.

Per budget and way of choosing: the share of slides with tumour of which no tumour tile is read, the mean share of their
tumour tiles that is not read, and the balanced accuracy per slide of zero-shot and of `prompt` trained on all tissue of
other patients (five folds), each given the chosen tiles only. 95 % intervals are over resampled patients. For random
tiles the first two are exact expectations (hypergeometric), the accuracies means over drawings, and so are the ends of
their intervals. A tile is tumour when half of it lies in ``truth/<slide_id>.geojson``.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import hypergeom

from feature_extraction.commands.passes import class_words
from feature_extraction.reading import CoarseTiles, ReadingRule, choose_tiles, interest, parent_of, tiles_in
from feature_extraction.synthetic.cohort import make_cohort
from feature_extraction.text_bank import TextBank, read_bank
from mil.bag import Bag
from mil.cli import main as promptmil
from mil.cohort import read_labels
from mil.feature_folder import FeatureFolder, load_bags
from mil.fit import logits_of
from mil.heatmap.contributions import auc_against
from mil.heatmap.explain import LoadedRun, load_runs, runs_by_slide
from mil.heatmap.truth import covered_fraction, read_regions
from mil.metrics.intervals import bootstrap_figures
from mil.zeroshot import resolve_pooling, slide_logits, softmax

SHARES = (0.0, 0.25, 0.5, 1.0)
"""Of the budget that goes where the class is open."""
DRAWINGS = 5
FOLDS = "0,1,2,3,4"
Choose = Callable[[str, int], np.ndarray]
"""Slide and number of tiles -> rows."""


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """What is chosen from.

    Attributes:
        bags: All tissue of each slide.
        is_tumour: Of each tile.
        patients: Of each slide.
        labels: Of each slide.
        classes: In the order of the bank.
        bank: The words.
        runs: The run in which each slide is test.
    """

    bags: Mapping[str, Bag]
    is_tumour: Mapping[str, np.ndarray]
    patients: Mapping[str, str]
    labels: Mapping[str, str]
    classes: tuple[str, ...]
    bank: TextBank
    runs: Mapping[str, LoadedRun]

    @property
    def with_tumour(self) -> list[str]:
        """Slides of which a tile is tumour."""
        return [name for name, is_tumour in self.is_tumour.items() if is_tumour.any()]


def run(words: list[str]) -> None:
    """Run a command, or stop."""
    code = promptmil(words)
    if code:
        raise SystemExit(f"promptmil {' '.join(words)} ended with {code}")


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--out", type=Path, default=Path("budget_out"))
    parser.add_argument("--prompts", default="demo")
    parser.add_argument("--features", type=Path)
    parser.add_argument("--bank", type=Path)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--coarse", help="µm per pixel of coarse levels; default two and four times the tiles'")
    parser.add_argument("--budgets", default="0.05,0.1,0.2,0.4,1.0")
    options = parser.parse_args()
    out = options.out
    data = options.data or make_cohort(out / "cohort", workers=2).folder
    encoder = ["encoder=hf_clip", f"encoder.path={options.weights}"] if options.weights else ["encoder=demo"]
    extract = ["extract", *encoder, f"slides={data / 'slides'}", "qc=false", f"precision={options.precision}"]
    if options.bank is None:
        run(["prompts", f"prompts={options.prompts}", *encoder, f"out={out / 'bank'}"])
    bank = options.bank or next((out / "bank").glob("*.safetensors"))
    if options.features is None:
        run([*extract, f"out={out / 'features'}"])
    folder = FeatureFolder(options.features or out / "features")
    mpp = folder.header.tile_mpp
    run(["split", f"labels={data / 'labels.csv'}", f"out={out / 'splits'}", "folds=5"])
    given = [f"features={folder.path}", f"bank={bank}", f"split={out / 'splits' / 'kfold.csv'}", f"fold={FOLDS}"]
    run(["train", "-m", *given, "aggregator=prompt", f"out={out / 'runs'}"])
    cohort = read_cohort(folder, read_bank(bank), data, out / "runs")
    coarse = [float(value) for value in options.coarse.split(",")] if options.coarse else [2 * mpp, 4 * mpp]
    looks: dict[float, dict[str, CoarseTiles]] = {}
    for value in coarse:
        words = [f"reading.bank={bank}", "reading.budget=1", f"reading.coarse_mpp={value}", f"tiling.tile_mpp={mpp}"]
        run([*extract, "reading=budget", *words, f"out={out / f'coarse_{value:g}'}"])
        looks[value] = coarse_tiles(FeatureFolder(out / f"coarse_{value:g}" / "coarse"))
    show(cohort, looks, [float(value) for value in options.budgets.split(",")])


def read_cohort(folder: FeatureFolder, bank: TextBank, data: Path, runs: Path) -> Cohort:
    """Everything that the tables are made from."""
    rows = read_labels(data / "labels.csv").rows
    bags = load_bags([folder], [row.slide_id for row in rows], space="joint").bags
    regions = {name: read_regions(data / "truth" / f"{name}.geojson") for name in bags}
    return Cohort(
        bags=bags,
        is_tumour={
            name: covered_fraction(regions[name], bag.coords_lv0, bag.size_lv0) >= 0.5 for name, bag in bags.items()
        },
        patients={row.slide_id: row.patient_id for row in rows if row.slide_id in bags},
        labels={row.slide_id: row.label for row in rows if row.slide_id in bags},
        classes=bank.class_names(),
        bank=bank,
        runs=runs_by_slide(load_runs(None, runs)),
    )


def coarse_tiles(folder: FeatureFolder) -> dict[str, CoarseTiles]:
    """The coarse look at each slide."""
    found: dict[str, CoarseTiles] = {}
    for name in folder.slide_ids():
        file = folder.open(name)
        found[name] = CoarseTiles(
            features=file.features_of("joint"),
            coords_lv0=file.coords_lv0,
            size_lv0=file.header.size_lv0(),
            content_sha256=file.content_sha256,
        )
    return found


def show(cohort: Cohort, looks: Mapping[float, Mapping[str, CoarseTiles]], budgets: Sequence[float]) -> None:
    """The table, as Markdown."""
    n_tiles = sum(len(bag) for bag in cohort.bags.values())
    print(f"\n{len(cohort.bags)} slides, {n_tiles:,} tiles; {len(cohort.with_tumour)} slides with tumour")
    for value, look in looks.items():
        n_coarse = sum(len(coarse.features) for coarse in look.values())
        print(f"coarse look at {value:g} µm: {n_coarse:,} tiles, {n_coarse / n_tiles:.1%} of the fine ones on top;")
        print(f"  mean AUC of its similarity for tumour tiles: {pointing(cohort, look):.2f}", flush=True)
    print("\n| budget | tiles chosen | tumour slides missed | tumour tiles missed | BACC zero-shot | BACC trained |")
    print("|---|---|---|---|---|---|")
    for budget in budgets:
        if budget >= 1:
            every = {name: np.arange(len(bag)) for name, bag in cohort.bags.items()}
            print(f"| {budget:.0%} | all | {cells(cohort, every)} |")
            continue
        print(f"| {budget:.0%} | at random | {random_cells(cohort, budget)} |", flush=True)
        for value, look in looks.items():
            for share in SHARES:
                rule = ReadingRule(
                    budget=budget,
                    uncertain=share,
                    prompt_set="",
                    prompt_set_sha256="",
                    coarse_mpp=value,
                    coarse_fingerprint="",
                )
                rows = {name: chosen_rows(cohort, name, look[name], rule) for name in cohort.bags}
                print(f"| {budget:.0%} | {value:g} µm, {share:.0%} uncertain | {cells(cohort, rows)} |", flush=True)


def pointing(cohort: Cohort, look: Mapping[str, CoarseTiles]) -> float:
    """How well the similarity of the parents tells tumour tiles from the others; mean over slides with both."""
    found: list[float] = []
    for name in cohort.with_tumour:
        bag, coarse = cohort.bags[name], look[name]
        if len(coarse.features) and not cohort.is_tumour[name].all():
            similarity, _ = interest(coarse.features, class_words(cohort.bank))
            parent = parent_of(bag.coords_lv0, bag.size_lv0, coarse)
            found.append(float(auc_against(similarity[parent], cohort.is_tumour[name])))
    return float(np.mean(found))


def chosen_rows(cohort: Cohort, name: str, coarse: CoarseTiles, rule: ReadingRule) -> np.ndarray:
    """What the extractor would read of a slide."""
    bag = cohort.bags[name]
    return choose_tiles(bag.coords_lv0, bag.size_lv0, coarse, class_words(cohort.bank), rule)[0]


def cells(cohort: Cohort, rows: Mapping[str, np.ndarray]) -> str:
    """The figures of one choice."""
    missed = {name: float(not cohort.is_tumour[name][rows[name]].any()) for name in cohort.with_tumour}
    lost = {name: 1 - cohort.is_tumour[name][rows[name]].sum() / cohort.is_tumour[name].sum() for name in missed}
    accuracies = [shown(*accuracy(cohort, rows, how)) for how in (zero_shot, trained)]
    return " | ".join([over_patients(cohort, missed), over_patients(cohort, lost), *accuracies])


def random_cells(cohort: Cohort, budget: float) -> str:
    """The same for random tiles."""
    missed: dict[str, float] = {}
    lost: dict[str, float] = {}
    for name in cohort.with_tumour:
        n, n_tumour = len(cohort.bags[name]), int(cohort.is_tumour[name].sum())
        n_read = tiles_in(budget, n)
        missed[name] = float(hypergeom.pmf(0, n, n_tumour, n_read))
        lost[name] = 1 - n_read / n
    generator = np.random.default_rng(0)
    found: list[list[tuple[float, float, float]]] = []
    for _ in range(DRAWINGS):
        rows = {
            name: np.sort(generator.permutation(len(bag))[: tiles_in(budget, len(bag))])
            for name, bag in cohort.bags.items()
        }
        found.append([accuracy(cohort, rows, how) for how in (zero_shot, trained)])
    accuracies = [shown(*values) for values in np.mean(found, axis=0).tolist()]
    return " | ".join([over_patients(cohort, missed), over_patients(cohort, lost), *accuracies])


def over_patients(cohort: Cohort, values: Mapping[str, float]) -> str:
    """Mean over slides with its interval over patients, drawn within each label."""
    given = np.array(list(values.values()))
    names = list(values)
    found = bootstrap_figures(
        lambda weights: {"mean": weights @ given / weights.sum(axis=1)},
        [cohort.patients[name] for name in names],
        [cohort.labels[name] for name in names],
    )["mean"]
    return shown(found.value, found.low, found.high)


def accuracy(
    cohort: Cohort, rows: Mapping[str, np.ndarray], how: Callable[[Cohort, Mapping[str, Bag]], np.ndarray]
) -> tuple[float, float, float]:
    """Balanced accuracy per slide, and the ends of its interval."""
    bags = {
        name: replace(bag, features=np.asarray(bag.features)[rows[name]], coords_lv0=bag.coords_lv0[rows[name]])
        for name, bag in cohort.bags.items()
    }
    labels = np.array([cohort.classes.index(cohort.labels[name]) for name in bags])
    is_right = how(cohort, bags).argmax(axis=1) == labels
    is_of = labels == np.arange(len(cohort.classes))[:, None]
    found = bootstrap_figures(
        lambda weights: {"bacc": ((weights @ (is_of * is_right).T) / (weights @ is_of.T)).mean(axis=1)},
        [cohort.patients[name] for name in bags],
        [cohort.labels[name] for name in bags],
    )["bacc"]
    return found.value, found.low, found.high


def zero_shot(cohort: Cohort, bags: Mapping[str, Bag]) -> np.ndarray:
    """Probabilities by the words alone."""
    pooling = resolve_pooling(None, 5, background=cohort.bank.background())
    return softmax(np.stack([slide_logits(bag, cohort.bank, cohort.classes, pooling) for bag in bags.values()]))


def trained(cohort: Cohort, bags: Mapping[str, Bag]) -> np.ndarray:
    """Probabilities of each slide by the run in which it is test."""
    found: dict[str, np.ndarray] = {}
    for one in {id(one): one for one in cohort.runs.values()}.values():
        own = [name for name in bags if cohort.runs[name] is one]
        logits = logits_of(one.aggregator, [bags[name] for name in own], batch_size=8)
        order = [one.card.classes.index(name) for name in cohort.classes]
        found |= dict(zip(own, one.task.predict(torch.from_numpy(logits)).probabilities[:, order], strict=True))
    return np.stack([found[name] for name in bags])


def shown(value: float, low: float, high: float) -> str:
    """A figure with its interval."""
    return f"{value:.3f} ({low:.3f}-{high:.3f})"


if __name__ == "__main__":
    main()
