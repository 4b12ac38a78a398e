"""The set of a patient is what the report of a sweep finds by the other folds; there is none where it means nothing."""

import numpy as np
import pandas as pd

from mil.heatmap.prediction_set import prediction_set
from mil.metrics.classification import Predictions
from mil.trust.by_other_folds import patients_of_folds, sets_by_other_folds

CLASSES = ["alpha", "beta", "normal"]


def sweep(n_patients: int = 45, n_seeds: int = 2) -> pd.DataFrame:
    """Test predictions of three folds; a third of the patients has two slides."""
    generator = np.random.default_rng(5)
    rows = []
    for patient in range(n_patients):
        for slide in range(1 + (patient % 3 == 0)):
            for seed in range(n_seeds):
                weights = np.exp(generator.normal(size=3) + 1.5 * np.eye(3)[patient % 3])
                chances = dict(zip([f"p_{name}" for name in CLASSES], weights / weights.sum(), strict=True))
                rows.append(
                    {"slide_id": f"S{patient}-{slide}", "patient_id": f"P{patient:02}", "fold": patient // 3 % 3,
                     "part": "test", "label": CLASSES[patient % 3], "seed": seed, **chances}
                )  # fmt: skip
    return pd.DataFrame(rows)


def runs_of(table: pd.DataFrame) -> list[pd.DataFrame]:
    return [rows.drop(columns="seed") for _, rows in table.groupby(["fold", "seed"], sort=True)]


def test_each_patients_set_is_that_of_the_report():
    table = sweep()
    runs, columns = runs_of(table), [f"p_{name}" for name in CLASSES]
    mean = table.groupby(["slide_id", "patient_id", "label", "fold"], as_index=False)[columns].mean()
    predictions = Predictions(
        slide_ids=tuple(mean["slide_id"]),
        patient_ids=tuple(mean["patient_id"]),
        classes=tuple(CLASSES),
        labels=np.array([CLASSES.index(label) for label in mean["label"]]),
        probabilities=mean[columns].to_numpy(),
    )
    tested = patients_of_folds(predictions, mean["fold"].to_numpy())
    expected = dict(zip(tested.patients.patient_ids, sets_by_other_folds(tested), strict=True))
    sizes = set()
    for row in mean.itertuples():
        found = prediction_set(runs, CLASSES, row.slide_id)
        assert found is not None
        fits = expected[row.patient_id]
        assert found["classes"] == [name for name, does_fit in zip(CLASSES, fits, strict=True) if does_fit]
        assert found["percent"] == 90
        assert found["patients"] == 30
        sizes.add(len(found["classes"]))
    assert len(sizes) > 1


def test_there_is_no_set_where_it_means_nothing():
    table = sweep()
    slide_id = "S4-0"

    def found(changed: pd.DataFrame) -> dict[str, object] | None:
        return prediction_set(runs_of(changed), CLASSES, slide_id)

    assert found(table) is not None
    assert prediction_set(runs_of(table)[2:4], CLASSES, slide_id) is None  # no other fold
    assert found(sweep(n_patients=9)) is None  # too few patients
    assert found(table.assign(label=table["label"].replace("beta", "alpha;beta"))) is None
    assert found(table.assign(label=None)) is None
    assert found(table.assign(p_alpha=0.9, p_beta=0.9)) is None  # several classes at once
    assert found(pd.concat([table, table.assign(fold=2)])) is None  # tested in several folds
    assert found(table.assign(part="train")) is None
    two = table.copy()
    two.loc[two["slide_id"] == "S0-1", "label"] = "normal"
    assert prediction_set(runs_of(two), CLASSES, "S0-0") is None  # the patient has slides of two classes
