"""Do the promises of our statistics hold? Intervals, prediction sets and tests on simulated patients with known truth.

    python -P benchmarks/statistics.py [--repeats 1000] [--only sets,intervals,accuracy,folds]
    python -P benchmarks/statistics.py --only sites --features <a folder of `promptmil extract`> --labels <csv>
    python -P benchmarks/statistics.py --only permuted --features <the same> --labels <csv> --bank <file> --out <folder>

``-P`` because this file would otherwise stand in for the standard library's ``statistics``.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.special import softmax

from feature_extraction.files import publish_text
from feature_extraction.store import FeatureFile
from mil.cli import main as promptmil
from mil.cohort import read_labels
from mil.confounding import confounding
from mil.metrics.across_folds import across_folds
from mil.metrics.bootstrap import Figures
from mil.metrics.classification import Predictions, by_patient, slide_metrics
from mil.metrics.intervals import Estimate, bootstrap_figures, bootstrap_interval
from mil.metrics.regression import weighted_regression
from mil.metrics.survival import weighted_concordance
from mil.null_labels import permuted_labels
from mil.report.pooled import pool, read_predictions
from mil.report.readable import interval_text
from mil.runs import find_runs
from mil.splits.file import read_split
from mil.trust.conformal import Score, calibrate, coverage_band, prediction_sets
from mil.trust.robustness import robustness_index
from mil.trust.sites import site_predictability

CLASSES = ("A", "B", "C")
SKILL, OVERCONFIDENCE = 1.6, 2.5
ALPHA = 0.1


def main() -> None:
    """Parse, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--only", default="sets,intervals,accuracy,folds")
    parser.add_argument("--features", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--bank", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--permutations", type=int, default=20)
    options = parser.parse_args()
    parts: dict[str, Callable[[int], None]] = {
        "sets": sets,
        "intervals": intervals,
        "accuracy": accuracy,
        "folds": folds,
        "sites": lambda _: sites(options.features, options.labels),
        "permuted": lambda _: permuted(options),
    }
    for name in options.only.split(","):
        print(f"\n## {name}\n", flush=True)
        parts[name](options.repeats)


def cohort(
    n_patients: int, generator: np.random.Generator, *, most_slides: int = 3, patient_share: float = 0.8
) -> Predictions:
    """Patients of three classes, overconfident probabilities; ``patient_share`` of the variance is between patients."""
    counts = generator.integers(1, most_slides + 1, n_patients)
    labels = generator.integers(0, len(CLASSES), n_patients)
    own = np.sqrt(patient_share) * generator.normal(size=(n_patients, len(CLASSES)))
    patients = np.repeat(np.arange(n_patients), counts)
    noise = np.sqrt(1 - patient_share) * generator.normal(size=(len(patients), len(CLASSES)))
    logits = SKILL * np.eye(len(CLASSES))[labels[patients]] + own[patients] + noise
    return Predictions(
        slide_ids=tuple(f"s{row:06}" for row in range(len(patients))),
        patient_ids=tuple(f"p{patient:06}" for patient in patients),
        classes=CLASSES,
        labels=labels[patients],
        probabilities=softmax(OVERCONFIDENCE * logits, axis=1),
    )


def as_patients(rows: Predictions) -> Predictions:
    """The same slides as if each were a patient."""
    return replace(rows, patient_ids=rows.slide_ids)


def sets(repeats: int) -> None:
    """Realised coverage of prediction sets against its Beta band, calibration after calibration."""
    fresh = by_patient(cohort(50_000, np.random.default_rng(1)))
    print(f"accuracy of the simulated patients {(fresh.probabilities.argmax(1) == fresh.labels).mean():.3f}\n")
    print("| sets | calibrated on | patients | band, 5-95 % | mean coverage (expected) | in the band | below it |")
    print("|---|---|---|---|---|---|---|")
    for n_patients in (50, 100, 300):
        for score in ("lac", "aps"):
            _show_sets(fresh, score, n_patients, repeats, is_by_slide=False)
    _show_sets(fresh, "lac", 100, repeats, is_by_slide=True)
    _show_class_conditional(fresh, 100, repeats)


def _show_sets(fresh: Predictions, score: Score, n_patients: int, repeats: int, *, is_by_slide: bool) -> None:
    generator = np.random.default_rng(2)
    rows = np.arange(len(fresh.labels))
    found: list[float] = []
    sizes: list[int] = []
    for _ in range(repeats):
        seen = cohort(n_patients, generator, most_slides=5 if is_by_slide else 3)
        calibration = calibrate(as_patients(seen) if is_by_slide else seen, score=score, alpha=ALPHA)
        sizes.append(calibration.n_patients[0])
        found.append(prediction_sets(calibration, fresh.probabilities)[rows, fresh.labels].mean())
    band = coverage_band(int(np.median(sizes)), ALPHA)
    unit = "slides, as if patients" if is_by_slide else "patients"
    _print_coverage(
        f"{score.upper()} | {unit}", n_patients, np.array(found), np.array([band.low, band.mean, band.high])
    )


def _show_class_conditional(fresh: Predictions, n_patients: int, repeats: int) -> None:
    """Coverage of the patients of class A; the band is of as many patients of A as each calibration had."""
    generator = np.random.default_rng(3)
    of_class = fresh.take(np.flatnonzero(fresh.labels == 0))
    found: list[float] = []
    bands: list[tuple[float, float, float]] = []
    for _ in range(repeats):
        calibration = calibrate(cohort(n_patients, generator), alpha=ALPHA, is_class_conditional=True)
        band = coverage_band(calibration.n_patients[0], ALPHA)
        bands.append((band.low, band.mean, band.high))
        found.append(prediction_sets(calibration, of_class.probabilities)[:, 0].mean())
    _print_coverage("LAC | patients of each class", n_patients, np.array(found), np.array(bands).T)


def _print_coverage(name: str, n: int, values: np.ndarray, bands: np.ndarray) -> None:
    low, mean, high = bands
    inside, below = ((values >= low) & (values <= high)).mean(), (values < low).mean()
    band = f"{np.mean(low):.3f}-{np.mean(high):.3f}"
    print(f"| {name} | {n} | {band} | {values.mean():.3f} ({np.mean(mean):.3f}) | {inside:.1%} | {below:.1%} |")


def intervals(repeats: int) -> None:
    """How often a 95 % interval holds the value of the population, by patient and by slide."""
    cohorts = max(repeats // 2, 1)
    print(f"{cohorts} cohorts of patients with 1 to 9 slides, 80 % of the variance between patients\n")
    print("| figure of slides | patients | resampled patients | resampled slides | width, patients / slides |")
    print("|---|---|---|---|---|")
    truth = _metrics(cohort(150_000, np.random.default_rng(4), most_slides=9))
    for n_patients in (30, 80, 300):
        _intervals_of_classes(n_patients, cohorts, truth)
        _intervals_of_scores(n_patients, cohorts)


def _intervals_of_classes(n_patients: int, cohorts: int, truth: dict[str, float]) -> None:
    names = ("accuracy", "balanced_accuracy", "macro_auc", "nll", "brier", "ece")
    seen = _Seen(names)
    generator = np.random.default_rng(5)
    for repeat in range(cohorts):
        rows = cohort(n_patients, generator, most_slides=9)
        for way, drawn in enumerate((rows, as_patients(rows))):
            found = bootstrap_interval(drawn, resamples=1000, seed=repeat)
            seen.add(way, found, truth)
    seen.show(n_patients)


class _Seen:
    """Intervals of patients (way 0) and of slides (way 1) that were given, with whether each holds the truth."""

    def __init__(self, names: Sequence[str]) -> None:
        """Of the figures with these names."""
        self._rows: dict[str, list[list[tuple[bool, float]]]] = {name: [[], []] for name in names}

    def add(self, way: int, found: Mapping[str, Estimate], truth: Mapping[str, float]) -> None:
        """One cohort; a class with a single patient gives no interval."""
        for name, rows in self._rows.items():
            one = found[name]
            if not one.reason:
                rows[way].append((one.low <= truth[name] <= one.high, one.high - one.low))

    def show(self, n_patients: int) -> None:
        """A line of the table a figure."""
        for name, rows in self._rows.items():
            (patients, width), (slides, narrow) = (np.mean(way, axis=0) for way in rows)
            print(f"| {name} | {n_patients} | {patients:.1%} | {slides:.1%} | {width / narrow:.2f} |", flush=True)


def _intervals_of_scores(n_patients: int, cohorts: int) -> None:
    """The same of a predicted number and of a predicted risk."""
    names = ("mae", "r2", "spearman", "c_index")
    generator = np.random.default_rng(7)
    large = [_scores(1000, generator)[0](np.ones((1, 0))) for _ in range(40)]
    truth = {name: float(np.mean([one[name][0] for one in large])) for name in names}
    seen = _Seen(names)
    for repeat in range(cohorts):
        figures, patients, strata = _scores(n_patients, generator)
        for way, units in enumerate((patients, [f"s{row}" for row in range(len(patients))])):
            found = bootstrap_figures(figures, units, strata, resamples=1000, seed=repeat)
            seen.add(way, found, truth)
    seen.show(n_patients)


def accuracy(repeats: int) -> None:
    """Accuracy alone, from each patient's counts: quick enough for a close look at the coverage of intervals."""
    cohorts = 2 * repeats
    print(
        f"{cohorts} cohorts each; a coverage of 95 % is known to within {196 * np.sqrt(0.0475 / cohorts):.1f} points\n"
    )
    print("| patients | accuracy, resampled patients |")
    print("|---|---|")
    hits, slides, _ = _counts(cohort(150_000, np.random.default_rng(8), most_slides=9))
    truth, generator = hits.sum() / slides.sum(), np.random.default_rng(9)
    for n_patients in (30, 80, 300):
        held = 0
        for repeat in range(cohorts):
            hits, slides, labels = _counts(cohort(n_patients, generator, most_slides=9))
            found = bootstrap_figures(
                lambda weights, hits=hits, slides=slides: {"accuracy": (weights @ hits) / (weights @ slides)},
                [str(patient) for patient in range(n_patients)],
                [CLASSES[label] for label in labels],
                resamples=1000,
                seed=repeat,
            )["accuracy"]
            held += found.low <= truth <= found.high
        print(f"| {n_patients} | {held / cohorts:.1%} |", flush=True)


def _counts(rows: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right slides, slides and class of each patient."""
    _, first, patient = np.unique(np.array(rows.patient_ids), return_index=True, return_inverse=True)
    is_right = rows.probabilities.argmax(axis=1) == rows.labels
    return np.bincount(patient, weights=is_right), np.bincount(patient), rows.labels[first]


def _scores(n_patients: int, generator: np.random.Generator) -> tuple[Figures, list[str], list[str]]:
    """Patients with 1 to 9 slides, a number and a censored time each; slides of a patient err alike."""
    counts = generator.integers(1, 10, n_patients)
    patients = np.repeat(np.arange(n_patients), counts)
    value = generator.normal(size=n_patients)
    times = generator.exponential(np.exp(-value))
    ends = generator.exponential(2.0, n_patients)
    is_event = times <= ends
    own = np.sqrt(0.8) * generator.normal(size=n_patients)
    said = (value + own)[patients] + np.sqrt(0.2) * generator.normal(size=len(patients))
    given = (np.minimum(times, ends)[patients], is_event[patients], said, np.zeros(len(patients), dtype=int))

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        drawn = weights if weights.size else np.ones((1, len(patients)))
        return {
            **weighted_regression(value[patients], said, drawn),
            "c_index": weighted_concordance(*given, drawn),
        }

    return figures, [f"p{patient}" for patient in patients], [str(event) for event in is_event[patients]]


def _metrics(rows: Predictions) -> dict[str, float]:
    return slide_metrics(rows.labels, rows.probabilities, rows.classes)


def folds(repeats: int) -> None:
    """How often a test across folds calls two equally good learners different, at .05."""
    print("two nearest-mean classifiers on different, equally good features; no true difference\n")
    print("| scheme | patients | naive t | Nadeau-Bengio |")
    print("|---|---|---|---|")
    for scheme, n_folds in (("5 folds", 5), ("10 folds", 10), ("10 random parts of 20 %", 0)):
        for n_patients in (60, 200):
            naive, corrected = _false_alarms(n_patients, n_folds, repeats)
            print(f"| {scheme} | {n_patients} | {naive:.1%} | {corrected:.1%} |")


def _false_alarms(n_patients: int, n_folds: int, repeats: int) -> tuple[float, float]:
    generator = np.random.default_rng(6)
    hits = np.zeros(2)
    for _ in range(repeats):
        labels = np.arange(n_patients) % 2
        features = generator.normal(size=(n_patients, 10)) + 0.35 * labels[:, None]
        parts = _parts(n_patients, n_folds, generator)
        values = np.array([_accuracy_difference(features, labels, test) for test in parts])
        n_test = float(np.mean([len(test) for test in parts]))
        for way, tested in enumerate((0.0, n_test)):
            hits[way] += across_folds(values, n_train=n_patients - n_test, n_test=tested).p < 0.05
    return float(hits[0] / repeats), float(hits[1] / repeats)


def _parts(n_patients: int, n_folds: int, generator: np.random.Generator) -> list[np.ndarray]:
    if n_folds:
        return np.array_split(generator.permutation(n_patients), n_folds)
    return [generator.permutation(n_patients)[: n_patients // 5] for _ in range(10)]


def _accuracy_difference(features: np.ndarray, labels: np.ndarray, test: np.ndarray) -> float:
    is_train = np.ones(len(labels), dtype=bool)
    is_train[test] = False
    right: list[float] = []
    for half in (features[:, :5], features[:, 5:]):
        means = np.array([half[is_train & (labels == label)].mean(axis=0) for label in (0, 1)])
        distances = np.square(half[test][:, None] - means[None]).sum(axis=2)
        right.append(float((distances.argmin(axis=1) == labels[test]).mean()))
    return right[0] - right[1]


def sites(features: Path, labels: Path) -> None:
    """What the mean vectors of a real cohort know of its sites."""
    rows = [row for row in read_labels(labels).rows if row.site and (features / f"{row.slide_id}.h5").is_file()]
    vectors = np.array(
        [FeatureFile(features / f"{row.slide_id}.h5").features().astype(np.float64).mean(axis=0) for row in rows]
    )
    names, classes, patients = ([getattr(row, key) for row in rows] for key in ("site", "label", "patient_id"))
    found = robustness_index(vectors, classes, names, patients, k=5)
    print(f"{len(rows)} slides, {len(set(patients))} patients")
    print(f"Cramer's V of site and class {confounding(names, classes, patients).cramers_v:.2f}")
    print(f"AUC of the site {interval_text(site_predictability(vectors, names, patients).auc)}")
    print(f"robustness index {found.value:.2f} (SO {found.same_class_other_site}, OS {found.other_class_same_site})")


def permuted(options: argparse.Namespace) -> None:
    """Zero-shot, text and random starts, and survival on a real cohort with its patients' labels permuted."""
    out: Path = options.out
    times = _with_times(options.labels, out / "times.csv")
    for task, labels in (("classification", options.labels), ("cox", times)):
        _promptmil("split", f"labels={labels}", f"task={task}", "folds=5", f"out={out / 'splits' / task}")
    control = f"permute_labels=range(1,{options.permutations + 1})"
    of_classes, of_times = "classification", "cox"
    cells = (
        (of_classes, "prompt", (f"bank={options.bank}", "trainer.max_epochs=0"), control),
        (of_classes, "prompt", (f"bank={options.bank}",), control),
        (of_times, "gated_abmil", (), control),
        (of_classes, "gated_abmil", (), control),
        (of_classes, "prompt", (f"bank={options.bank}",), "permute_labels=0"),
        (of_times, "gated_abmil", (), "permute_labels=0"),
    )
    for task, aggregator, words, labels in cells:
        split = out / "splits" / task / "kfold.csv"
        inputs = (f"features={options.features}", f"split={split}", f"task={task}", f"out={out / 'runs' / task}")
        _promptmil("train", "-m", *inputs, f"aggregator={aggregator}", *words, "fold=range(0,5)", labels)
    for task in (of_classes, of_times):
        _promptmil("summarize", f"runs={out / 'runs' / task}", f"out={out / 'summary' / task}")
    many_permutations(out / "runs" / of_classes, out / "splits" / of_classes / "kfold.csv")


def many_permutations(runs: Path, split: Path, n: int = 500) -> None:
    """The words' start costs no training, so that as many permutations can be had as one likes: how far do 20 carry?"""
    start = [run for run in find_runs(runs) if (run.cell["max_epochs"], run.cell["permute_labels"]) == (0, 1)]
    rows = pool([read_predictions(run) for run in start]).test
    if rows is None:
        raise SystemExit(f"{runs}: no test slide")
    values: list[float] = []
    n_held = 0
    for seed in range(1, n + 1):
        drawn = {row.slide_id: row.label for row in permuted_labels(read_split(split), seed=seed).rows}
        labels = np.array([rows.classes.index(drawn[slide_id]) for slide_id in rows.slide_ids])
        found = bootstrap_interval(replace(rows, labels=labels), level="patient", resamples=1000)["macro_auc"]
        values.append(found.value)
        n_held += found.low <= 0.5 <= found.high
    spread = np.std(values, ddof=1)
    print(
        f"{n} permutations of zero-shot: mean {np.mean(values):.4f} (standard error {spread / np.sqrt(n):.4f}), of one"
    )
    print(f"permutation {spread:.3f}, of the mean of 20 {spread / np.sqrt(20):.3f}; {n_held} intervals hold .5")


def _promptmil(*words: str) -> None:
    if promptmil(words):
        raise SystemExit(f"promptmil {' '.join(words)}: failed")


def _with_times(labels: Path, into: Path) -> Path:
    """The cohort with drawn times to an event, shorter for the classes later in the alphabet; a third is censored."""
    generator = np.random.default_rng(8)
    rows = read_labels(labels).rows
    place = {name: number for number, name in enumerate(sorted({row.label for row in rows}))}
    of_patient = {row.patient_id: place[row.label] for row in sorted(rows, key=lambda row: row.patient_id)}
    drawn = {
        patient: (generator.exponential(100 * 3.0**-number), generator.random() < 2 / 3)
        for patient, number in of_patient.items()
    }
    lines = [
        f"{row.slide_id},{row.patient_id},{drawn[row.patient_id][0]:.3f},{drawn[row.patient_id][1]:d}" for row in rows
    ]
    publish_text(into, "\n".join(["slide_id,patient_id,time,event", *lines]) + "\n")
    return into


if __name__ == "__main__":
    main()
