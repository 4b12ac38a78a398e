"""What a summary says over folds: right folds, right patients, and of other tasks the pooled figures too."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error

from feature_extraction.files import publish_json, publish_text
from mil.metrics.across_folds import across_folds
from mil.report.results_file import results_csv
from mil.report.sections import report_sections, tables_of
from mil.report.summarize import Summary, summarize
from mil.runs import write_done

FOLDS, N = 3, 36
CLASSES = ("A", "B")


def _run(root: Path, name: str, fold: int, columns: Sequence[str], rows: Sequence[Sequence[object]], **more: object):
    folder = root / f"{name}-{fold}-{more.get('seed', 0)}"
    cell = {
        "cell": folder.name,
        "aggregator": name,
        "fold": fold,
        "seed": 0,
        "shots": None,
        "split_sha256": "s",
        **more,
    }
    stream = io.StringIO()
    csv.writer(stream).writerows([["slide_id", "patient_id", "fold", "part", "label", *columns], *rows])
    publish_json(folder / "cell.json", cell)
    publish_text(folder / "predictions.csv", stream.getvalue())
    publish_json(folder / "unused.json", {})
    return folder


def _part(patient: int, fold: int) -> str:
    """Of 36 patients 12 test, 6 val and 18 train."""
    place = (patient // 2 - fold) % FOLDS
    return "test" if place == 0 else "val" if place == 1 and patient // 6 % 2 else "train"


def _probabilities(skill: float, seed: int) -> np.ndarray:
    """Two slides a patient; patient p is of class p % 2."""
    labels = np.repeat(np.arange(N) % 2, 2)
    logit = np.random.default_rng(seed).normal(size=2 * N) + skill * (2 * labels - 1)
    return 1 / (1 + np.exp(-logit))


def _classify(root: Path, name: str, said: np.ndarray, **more: object) -> None:
    for fold in range(FOLDS) if name != "zeroshot" else (0,):
        rows = [
            (
                f"s{r}",
                f"p{r // 2}",
                fold,
                "test" if name == "zeroshot" else _part(r // 2, fold),
                CLASSES[r // 2 % 2],
                1 - p,
                p,
            )
            for r, p in enumerate(said)
        ]
        write_done(_run(root, name, fold, ["p_A", "p_B"], rows, **more))


@pytest.fixture
def said() -> dict[str, np.ndarray]:
    return {"abmil": _probabilities(1.0, 1), "prompt": _probabilities(1.5, 2), "zeroshot": _probabilities(0.5, 3)}


@pytest.fixture
def summary(tmp_path: Path, said: dict[str, np.ndarray]) -> Summary:
    _classify(tmp_path, "zeroshot", said["zeroshot"], shots=0, split_sha256="")
    for name in ("abmil", "prompt"):
        _classify(tmp_path, name, said[name])
    return summarize(tmp_path, resamples=100)


def _bacc(said: np.ndarray, fold: int) -> float:
    rows = [r for r in range(2 * N) if _part(r // 2, fold) == "test"]
    return float(balanced_accuracy_score([r // 2 % 2 for r in rows], said[rows] > 0.5))


def test_the_mean_over_folds_is_that_of_each_folds_own_test_slides(
    summary: Summary, said: dict[str, np.ndarray]
) -> None:
    results = {(r.method.aggregator, r.metric): r.over_folds for r in summary.results if r.level == "slide"}
    expected = across_folds(np.array([_bacc(said["prompt"], fold) for fold in range(FOLDS)]), n_train=18, n_test=12)
    assert results["prompt", "balanced_accuracy"] == expected
    assert expected.low < expected.mean < expected.high
    assert results["zeroshot", "balanced_accuracy"] is None
    lines = {
        (x["method"], x["level"], x["metric"]): x for x in csv.DictReader(io.StringIO(results_csv(summary.results)))
    }
    line = lines["prompt", "slide", "balanced_accuracy"]
    assert float(line["fold_mean"]) == pytest.approx(expected.mean, abs=1e-5)
    assert float(line["fold_low"]) == pytest.approx(expected.low, abs=1e-5)
    assert lines["zeroshot", "slide", "nll"]["fold_mean"] == ""


def test_the_untrained_reference_is_compared_on_each_folds_slides(
    summary: Summary, said: dict[str, np.ndarray]
) -> None:
    found = {
        c.method.aggregator: c for c in summary.comparisons if (c.level, c.metric) == ("slide", "balanced_accuracy")
    }
    values = [_bacc(said["prompt"], fold) - _bacc(said["zeroshot"], fold) for fold in range(FOLDS)]
    expected = across_folds(np.array(values), n_train=18, n_test=12)
    assert found["prompt"].over_folds == expected
    p_values = {name: one.over_folds.p for name, one in found.items()}
    least = min(p_values, key=p_values.__getitem__)
    assert found[least].p_holm_over_folds == pytest.approx(min(1, 2 * p_values[least]))


def test_a_reference_on_another_split_has_no_folds_in_common(tmp_path: Path, said: dict[str, np.ndarray]) -> None:
    _classify(tmp_path, "abmil", said["abmil"])
    _classify(tmp_path, "prompt", said["prompt"], split_sha256="other", split_name="other")
    summary = summarize(tmp_path, resamples=100, reference="abmil")
    assert {c.over_folds for c in summary.comparisons} == {None}
    assert np.isnan([c.p_holm_over_folds for c in summary.comparisons]).all()


def test_the_table_over_folds_shows_means_and_differences(summary: Summary) -> None:
    table = next(
        t for t in tables_of(report_sections(summary, level="patient", rank_by=None)) if t.title == "Means over folds"
    )
    assert [row[0] for row in table.rows] == ["abmil", "prompt"]
    assert all(row[2] == "3" and " to " in row[3] and row[4][0] in "+-" for row in table.rows)
    assert "Nadeau" in table.note


def test_a_sweep_of_numbers_has_pooled_figures_with_intervals_and_means_over_folds(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    truth = np.repeat(generator.normal(size=N), 2)
    said = truth + generator.normal(size=2 * N)
    of_fold = []
    for fold in range(FOLDS):
        rows = [(f"s{r}", f"p{r // 2}", fold, _part(r // 2, fold), truth[r], said[r]) for r in range(2 * N)]
        folder = _run(tmp_path, "prompt", fold, ["value"], rows, labels="number")
        tested = [r for r in range(2 * N) if _part(r // 2, fold) == "test"]
        of_fold.append(mean_absolute_error(truth[tested], said[tested]))
        publish_json(folder / "metrics.json", {"test": {"mae": of_fold[-1], "events": 3, "undefined": {}}})
        write_done(folder)
    summary = summarize(tmp_path, resamples=100)
    lines = list(csv.DictReader(io.StringIO(results_csv(summary.results, summary.of_runs))))
    mae = {line["level"]: line for line in lines if line["metric"] == "mae"}
    assert set(mae) == {"slide", "patient"}
    assert float(mae["slide"]["value"]) == pytest.approx(mean_absolute_error(truth, said), abs=1e-5)
    assert float(mae["slide"]["low"]) < float(mae["slide"]["value"]) < float(mae["slide"]["high"])
    assert (mae["slide"]["n_patients"], mae["slide"]["n_slides"]) == (str(N), str(2 * N))
    assert float(mae["slide"]["fold_mean"]) == pytest.approx(np.mean(of_fold), abs=1e-5)
    other = next(line for line in lines if line["metric"] == "events")
    assert (other["value"], other["low"], other["n_patients"]) == ("3", "nan", "")
    assert "no interval" in other["reason"]
    table = tables_of(report_sections(summary, level="slide", rank_by=None))[0]
    assert [bool(cell) for cell in table.rows[0][-2:]] == [True, True]
