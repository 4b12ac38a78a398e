"""The check on permuted labels: chance passes for every kind of label, a leak and a missing fold are said aloud."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from feature_extraction.files import publish_json, publish_text
from mil.report.null_checks import CHANCE, null_checks, null_record, null_table, real_and_null
from mil.report.summarize import summarize
from mil.runs import Run, find_runs, write_done

N, PERMUTATIONS, FOLDS = 40, 8, 2
KINDS = tuple(CHANCE)


def write_runs(root: Path, kind: str, *, leak: float, permutations: int = PERMUTATIONS) -> list[Run]:
    """Runs whose predictions know the permuted label by ``leak``; a number that it orders, in every kind's form."""
    for permutation in range(1, permutations + 1):
        generator = np.random.default_rng(permutation)
        truth = generator.permutation(N)
        said = leak * truth / N + generator.random(N)
        is_b = truth >= N // 2
        labels = {
            "one_class": np.where(is_b, "B", "A"),
            "several_classes": np.where(is_b, "A;B", "A"),
            "time_to_event": np.array([f"{N - value}{'+' if value % 4 == 0 else ''}" for value in truth]),
            "number": truth.astype(str),
        }[kind]
        share = np.clip(said / (1 + leak), 0.01, 0.99)
        scores = {"time_to_event": {"risk": said}, "number": {"value": said}}
        columns = scores.get(kind, {"p_A": 1 - share, "p_B": share})
        for fold in range(FOLDS):
            part = np.where(np.arange(N) % FOLDS == fold, "test", "train")
            name = f"{permutation:06}{fold:06}"
            cell = {"cell": name, "aggregator": "prompt", "labels": kind, "shots": None, "fold": fold, "seed": 0}
            cell |= {"split_sha256": "b" * 64, "permute_labels": permutation}
            publish_json(root / name / "cell.json", {**cell, "determined_by": {"permute_labels": permutation}})
            ids = [f"s{place}" for place in range(N)]
            table = pd.DataFrame({"slide_id": ids, "patient_id": ids, "fold": fold, "part": part, "label": labels})
            publish_text(root / name / "predictions.csv", table.assign(**columns).to_csv(index=False))
            figures = dict.fromkeys(("macro_auc", "auc_B", "c_index", "spearman"), 0.5)
            publish_json(root / name / "metrics.json", {"test": figures})
            write_done(root / name)
    return find_runs(root)


@pytest.mark.parametrize("kind", KINDS)
def test_chance_passes_and_a_leak_is_said_aloud(tmp_path: Path, kind: str):
    (calm,) = null_checks(write_runs(tmp_path / "calm", kind, leak=0.0), resamples=100)
    (leaking,) = null_checks(write_runs(tmp_path / "leaking", kind, leak=2.0), resamples=100)
    assert (calm.metric, calm.chance) == CHANCE[kind]
    assert calm.permutations == tuple(range(1, PERMUTATIONS + 1))
    assert not calm.is_suspicious
    assert leaking.is_suspicious
    assert leaking.mean[0] > calm.mean[0] + 0.2
    assert calm.covering[0] >= PERMUTATIONS - 2 > leaking.covering[0]
    assert calm.covering[1] == PERMUTATIONS


def test_the_mean_and_its_interval_are_those_of_a_t_distribution(tmp_path: Path):
    (check,) = null_checks(write_runs(tmp_path, "one_class", leak=0.0), resamples=100)
    values = [one.value for one in check.estimates]
    low, high = t.interval(0.95, PERMUTATIONS - 1, np.mean(values), np.std(values, ddof=1) / PERMUTATIONS**0.5)
    assert check.mean == pytest.approx((np.mean(values), low, high))
    assert null_record(check)["values"] == values
    assert f"{np.mean(values):.3f} ({low:.3f} to {high:.3f})" in null_table([check]).rows[0]


def test_one_permutation_has_no_interval_and_is_not_suspicious(tmp_path: Path):
    (check,) = null_checks(write_runs(tmp_path, "one_class", leak=9.0, permutations=1), resamples=100)
    assert math.isnan(check.mean[1])
    assert not check.is_suspicious
    assert null_record(check)["low"] is None


def test_a_summary_of_nothing_else_warns_of_a_leak_and_of_a_missing_fold(tmp_path: Path):
    runs = write_runs(tmp_path, "one_class", leak=2.0)
    (runs[0].folder / "done.json").unlink()
    found = summarize(tmp_path, resamples=100)
    assert found.methods == found.results == found.of_runs == ()
    assert any("something tells the labels that should not" in line for line in found.warnings)
    assert any("permutation 1 lacks a fold or seed" in line for line in found.warnings)
    assert real_and_null(runs) == ([], runs)
