"""Figures of tasks without one class: weights equal repeated slides, intervals are of patients, folds are pooled."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import cohen_kappa_score, r2_score

from feature_extraction.errors import InputError
from feature_extraction.files import publish_json, publish_text
from mil.labels import time_and_event
from mil.metrics.intervals import bootstrap_figures
from mil.metrics.multilabel import multilabel_metrics, weighted_multilabel
from mil.metrics.ordinal import median_class, ordinal_metrics, weighted_ordinal
from mil.metrics.regression import regression_metrics, weighted_regression
from mil.metrics.survival import concordance, weighted_concordance
from mil.report.tested import patients_of_parts, pooled_figures
from mil.runs import Run, find_runs, write_done

N = 30
CLASSES = ("A", "B")


def _drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each slide is there, in three resamples, and the numbers."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 4, size=(3, N)), np.round(generator.normal(size=(N, 3)), 1)


def _regression(rows: np.ndarray) -> dict[str, object]:
    return regression_metrics(rows[:, 0], rows[:, 1])


def _survival(rows: np.ndarray) -> dict[str, object]:
    return {"c_index": concordance(np.abs(rows[:, 0]), rows[:, 2] > -0.5, rows[:, 1])}


def _weighted_survival(rows: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    folds = np.zeros(len(rows), dtype=np.int64)
    return {"c_index": weighted_concordance(np.abs(rows[:, 0]), rows[:, 2] > -0.5, rows[:, 1], folds, weights)}


def _shares(rows: np.ndarray) -> np.ndarray:
    powers = np.exp(rows)
    return powers / powers.sum(axis=1, keepdims=True)


def _grades(rows: np.ndarray) -> np.ndarray:
    return np.digitize(rows[:, 0] + rows[:, 1], (-0.5, 0.5))


def _several(rows: np.ndarray) -> np.ndarray:
    truth = (rows[:, :2] > 0).astype(np.float64)
    truth[rows[:, 2] > 1, 1] = np.nan
    return truth


KINDS: dict[str, tuple[Callable[..., dict[str, object]], Callable[..., dict[str, np.ndarray]]]] = {
    "regression": (_regression, lambda rows, weights: weighted_regression(rows[:, 0], rows[:, 1], weights)),
    "survival": (_survival, _weighted_survival),
    "ordinal": (
        lambda rows: ordinal_metrics(_grades(rows), _shares(rows), ("1", "2", "3")),
        lambda rows, weights: weighted_ordinal(_grades(rows), _shares(rows), weights),
    ),
    "multilabel": (
        lambda rows: multilabel_metrics(_several(rows), np.round(_shares(rows)[:, :2], 1), CLASSES),
        lambda rows, weights: weighted_multilabel(_several(rows), np.round(_shares(rows)[:, :2], 1), CLASSES, weights),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_weights_equal_repeating_the_slides(kind: str, seed: int) -> None:
    """What makes the bootstrap right: the figure of a row of weights is that of the slides drawn so often."""
    counts, rows = _drawn(seed)
    plain, weighted = KINDS[kind]
    ours = weighted(rows, counts.astype(np.float64))
    for resample, times in enumerate(counts):
        expected = plain(rows[np.repeat(np.arange(N), times)])
        assert ours
        for name, values in ours.items():
            wanted = np.nan if expected[name] is None else expected[name]
            assert values[resample] == pytest.approx(wanted, abs=1e-9, nan_ok=True), name


def test_the_values_are_those_of_scikit_learn_and_scipy() -> None:
    _, rows = _drawn(9)
    once = np.ones((1, N))
    ours = weighted_regression(rows[:, 0], rows[:, 1], once)
    assert ours["r2"][0] == pytest.approx(r2_score(rows[:, 0], rows[:, 1]))
    assert ours["pearson"][0] == pytest.approx(pearsonr(rows[:, 0], rows[:, 1]).statistic)
    assert ours["spearman"][0] == pytest.approx(spearmanr(rows[:, 0], rows[:, 1]).statistic)
    kappa = cohen_kappa_score(_grades(rows), median_class(_shares(rows)), weights="quadratic")
    assert weighted_ordinal(_grades(rows), _shares(rows), once)["qwk"][0] == pytest.approx(kappa)


def test_what_a_resample_does_not_define_is_nan() -> None:
    one_label = np.array([[1.0, 1.0, 0.0, 0.0]])
    found = weighted_regression(np.array([1.1, 1.1, 2.0, 3.0]), np.array([1.0, 2.0, 2.0, 3.0]), one_label)
    assert {name for name, value in found.items() if np.isnan(value[0])} == {"r2", "pearson", "spearman"}
    truth = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    several = weighted_multilabel(truth, np.full((4, 2), 0.4) + truth / 10, CLASSES, one_label)
    assert np.isnan([several["auc_A"][0], several["macro_auc"][0], several["f1_A"][0]]).all()
    assert several["auc_B"][0] == 1.0
    grades = weighted_ordinal(np.array([0, 0, 1, 2]), np.eye(3)[[0, 0, 1, 2]], one_label)
    assert np.isnan(grades["qwk"][0])


def test_risks_of_two_folds_are_not_compared() -> None:
    """Two models that order their own slides right, on scales of their own: the pooled c-index would be lost."""
    times = np.array([1.0, 2.0, 3.0, 1.5, 2.5, 3.5])
    risks = np.array([3.0, 2.0, 1.0, -10.0, -20.0, -30.0])
    is_event, once = np.ones(6, dtype=np.bool_), np.ones((1, 6))
    assert weighted_concordance(times, is_event, risks, np.array([0, 0, 0, 1, 1, 1]), once)[0] == 1.0
    assert concordance(times, is_event, risks) < 0.9


def test_the_interval_is_that_of_a_plain_loop_over_patients_and_copies_of_slides_change_nothing() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=40)
    said = truth + generator.normal(size=40)
    ids = [f"p{row}" for row in range(40)]

    def mae(rows: np.ndarray) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        return lambda weights: weighted_regression(truth[rows], said[rows], weights)

    one = bootstrap_figures(mae(np.arange(40)), ids, [""] * 40)["mae"]
    copies = bootstrap_figures(mae(np.repeat(np.arange(40), 4)), list(np.repeat(ids, 4)), [""] * 160)["mae"]
    values = [np.abs(said - truth)[generator.integers(0, 40, 40)].mean() for _ in range(2000)]
    assert (one.low, one.high) == pytest.approx(np.quantile(values, (0.025, 0.975)), abs=0.03)
    assert (copies.value, copies.low, copies.high) == pytest.approx((one.value, one.low, one.high))


def test_an_interval_that_resamples_do_not_define_is_not_given() -> None:
    truth = np.zeros((20, 1))
    truth[0] = 1
    said = np.linspace(0, 1, 20)[:, None]
    found = bootstrap_figures(
        lambda weights: weighted_multilabel(truth, said, ("A",), weights), [f"p{n}" for n in range(20)], [""] * 20
    )
    assert found["auc_A"].reason.startswith("no interval: not defined in 3")
    assert np.isnan(found["auc_A"].low)
    assert not np.isnan(found["auc_A"].value)
    assert found["nll"].reason == ""


def _write(
    root: Path, *, kind: str, fold: int, columns: Sequence[str], rows: Sequence[Sequence[object]], seed: int = 0
) -> Run:
    folder = root / f"{fold}{seed}".zfill(12)
    stream = io.StringIO()
    csv.writer(stream).writerows([["slide_id", "patient_id", "fold", "part", "label", *columns], *rows])
    publish_json(folder / "cell.json", {"cell": folder.name, "fold": fold, "seed": seed, "labels": kind})
    publish_text(folder / "predictions.csv", stream.getvalue())
    write_done(folder)
    return next(run for run in find_runs(root) if run.folder == folder)


def _numbers(root: Path, shift: float = 0.0) -> tuple[list[Run], np.ndarray, np.ndarray]:
    """Two folds, two seeds, patients with two slides; the seeds' errors cancel."""
    generator = np.random.default_rng(1)
    truth = generator.normal(size=20)
    said = np.repeat(truth, 2) + generator.normal(size=40)
    runs = []
    for fold in range(2):
        for seed in range(2):
            rows = [
                (f"s{r}", f"p{r // 2}", fold, "test" if r // 2 % 2 == fold else "train", truth[r // 2], said[r] + error)
                for r, error in enumerate(np.full(40, (seed - 0.5) * shift))
            ]
            runs.append(_write(root, kind="number", fold=fold, seed=seed, columns=["value"], rows=rows))
    return runs, truth, said


def test_numbers_pool_over_folds_and_average_over_seeds_slides_and_patients(tmp_path: Path) -> None:
    runs, truth, said = _numbers(tmp_path, shift=5.0)
    found = pooled_figures(runs, ["mae"], resamples=100)
    assert found["slide"]["mae"].value == pytest.approx(np.abs(said - np.repeat(truth, 2)).mean())
    assert found["patient"]["mae"].value == pytest.approx(np.abs(said.reshape(20, 2).mean(1) - truth).mean())
    assert found["slide"]["r2"].value == pytest.approx(r2_score(np.repeat(truth, 2), said))
    for level in ("slide", "patient"):
        one = found[level]["mae"]
        assert (one.n_patients, one.n_slides) == (20, 40)
        assert one.low < one.value < one.high
    assert patients_of_parts(runs) == (10, 10)


def test_classes_keep_the_order_of_the_task_and_risks_their_fold(tmp_path: Path) -> None:
    grades = ["low", "mid", "high"]  # by the alphabet high would stand first
    given = [(f"s{r}", f"p{r}", 0, "test", grades[r % 3], *np.eye(3)[(r % 3 + (r < 6)) % 3]) for r in range(30)]
    run = _write(tmp_path / "o", kind="one_class", fold=0, columns=[f"p_{g}" for g in grades], rows=given)
    qwk = pooled_figures([run], ["qwk"], resamples=100)["patient"]["qwk"]
    said = [(r % 3 + (r < 6)) % 3 for r in range(30)]
    assert qwk.value == pytest.approx(cohen_kappa_score([r % 3 for r in range(30)], said, weights="quadratic"))
    assert pooled_figures([run], ["macro_auc"], resamples=100) == {}

    runs = []
    for fold, scale in ((0, 1.0), (1, 50.0)):
        times = np.arange(1, 13) + fold / 2
        labels = [f"{time:g}{'+' if r % 4 == 3 else ''}" for r, time in enumerate(times)]
        rows = [(f"s{fold}{r}", f"p{fold}{r}", fold, "test", label, -scale * r) for r, label in enumerate(labels)]
        runs.append(_write(tmp_path / "s", kind="time_to_event", fold=fold, columns=["risk"], rows=rows))
        assert sum(time_and_event(label)[1] for label in labels) == 9
    found = pooled_figures(runs, ["c_index"], resamples=100)["slide"]["c_index"]
    assert (found.value, found.low, found.n_patients) == (1.0, 1.0, 24)


def test_several_classes_are_those_with_a_figure_and_unknown_ones_do_not_count(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    truth = generator.random((24, 2)) > 0.5
    said = generator.random((24, 3))
    labels = [";".join(n for n, has in zip(CLASSES, row, strict=True) if has) or "-" for row in truth]
    labels[0] = "A;B?"
    rows = [(f"s{r}", f"p{r}", 0, "test", labels[r], *said[r]) for r in range(24)]
    run = _write(tmp_path, kind="several_classes", fold=0, columns=["p_A", "p_B", "p_none"], rows=rows)
    found = pooled_figures([run], ["auc_A", "auc_B", "macro_auc"], resamples=100)["slide"]
    known = truth.astype(np.float64)
    known[0] = (1, np.nan)
    expected = multilabel_metrics(known, said[:, :2], CLASSES)
    assert {name: one.value for name, one in found.items()} == pytest.approx(
        {name: value for name, value in expected.items() if name != "undefined"}
    )


def test_runs_that_disagree_or_hold_no_numbers_are_refused(tmp_path: Path) -> None:
    row = ("s1", "p1", 0, "test", "1.5", "2")
    first = _write(tmp_path / "a", kind="number", fold=0, columns=["value"], rows=[row])
    other = _write(tmp_path / "b", kind="number", fold=0, columns=["value"], rows=[("s1", "p1", 0, "test", "2.5", "2")])
    with pytest.raises(InputError, match="slide s1 has another label"):
        pooled_figures([first, other], ["mae"])
    bad = _write(tmp_path / "c", kind="number", fold=0, columns=["value"], rows=[(*row[:5], "two")])
    with pytest.raises(InputError, match="slide s1: value='two', expected a number"):
        pooled_figures([bad], ["mae"])
    lost = _write(tmp_path / "d", kind="number", fold=0, columns=["p_low"], rows=[row])
    with pytest.raises(InputError, match="no column value"):
        pooled_figures([lost], ["mae"])
