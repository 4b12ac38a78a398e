"""Sites: how much they show, who is whose neighbour, what a new one costs, when nothing may be corrected by them."""

from dataclasses import replace

import numpy as np
import pytest
from patients import simulated
from scipy.stats import chi2_contingency
from sklearn.metrics import accuracy_score

from feature_extraction.errors import InputError
from mil.confounding import confounding, require_separable
from mil.metrics.classification import by_patient
from mil.trust.robustness import robustness_index
from mil.trust.sites import leave_site_out_gap, site_predictability


def _slides(n_patients: int, seed: int, *, of_site: float, of_class: float = 0.0) -> dict[str, list[str] | np.ndarray]:
    """Two slides a patient, three sites, two classes in each; vectors with a direction for site and one for class."""
    generator = np.random.default_rng(seed)
    site, label = np.arange(n_patients) % 3, np.arange(n_patients) // 3 % 2
    own = generator.normal(size=(n_patients, 16))
    own[:, :3] += of_site * np.eye(3)[site]
    own[:, 3:5] += of_class * np.eye(2)[label]
    rows = np.repeat(own, 2, axis=0) + 0.2 * generator.normal(size=(2 * n_patients, 16))
    return {
        "vectors": rows,
        "sites": [f"site{name}" for name in np.repeat(site, 2)],
        "labels": ["AB"[name] for name in np.repeat(label, 2)],
        "patients": [f"p{row // 2}" for row in range(2 * n_patients)],
    }


def test_a_site_that_shows_is_found_and_one_that_does_not_is_chance() -> None:
    """Slides of a patient resemble one another: folds that tear patients apart would find a site where none shows."""
    seen = _slides(60, 0, of_site=4.0)
    found = site_predictability(seen["vectors"], seen["sites"], seen["patients"], resamples=200)
    assert found.auc.value > 0.95
    assert (found.sites, found.left_out, found.n_folds) == (("site0", "site1", "site2"), (), 5)
    aucs = []
    for seed in range(6):
        none = _slides(60, seed, of_site=0.0)
        aucs.append(site_predictability(none["vectors"], none["sites"], none["patients"], resamples=200).auc)
    assert np.mean([one.value for one in aucs]) == pytest.approx(0.5, abs=0.06)
    assert sum(one.low <= 0.5 <= one.high for one in aucs) >= 4


def test_a_site_with_one_patient_is_left_out_and_said() -> None:
    seen = _slides(30, 0, of_site=4.0)
    sites = ["elsewhere" if name == "p0" else site for name, site in zip(seen["patients"], seen["sites"], strict=True)]
    assert site_predictability(seen["vectors"], sites, seen["patients"], resamples=100).left_out == ("elsewhere",)
    with pytest.raises(InputError, match="expected two or more with 2 patients each, got site0"):
        site_predictability(seen["vectors"][:6], ["site0"] * 4 + ["site1"] * 2, seen["patients"][:6])
    with pytest.raises(InputError, match="patient p0 has slides of site site0 and elsewhere"):
        site_predictability(seen["vectors"], ["site0", "elsewhere", *seen["sites"][2:]], seen["patients"])


def test_the_robustness_index_is_that_of_a_loop_over_neighbours() -> None:
    seen = _slides(24, 1, of_site=1.5, of_class=1.5)
    found = robustness_index(seen["vectors"], seen["labels"], seen["sites"], seen["patients"], k=4)
    so = os = 0
    rows = seen["vectors"] / np.linalg.norm(seen["vectors"], axis=1, keepdims=True)
    for row, vector in enumerate(rows):
        others = [other for other in range(len(rows)) if seen["patients"][other] != seen["patients"][row]]
        for other in sorted(others, key=lambda o: -float(rows[o] @ vector))[:4]:
            same_class = seen["labels"][row] == seen["labels"][other]
            same_site = seen["sites"][row] == seen["sites"][other]
            so += same_class and not same_site
            os += same_site and not same_class
    assert (found.same_class_other_site, found.other_class_same_site) == (so, os)
    assert found.value == pytest.approx(so / (so + os))


def test_the_robustness_index_tells_biology_from_site() -> None:
    def index(**shows: float) -> float:
        seen = _slides(90, 2, **shows)
        return robustness_index(seen["vectors"], seen["labels"], seen["sites"], seen["patients"]).value

    assert index(of_site=0.0, of_class=8.0) > 0.95
    assert index(of_site=8.0, of_class=0.0) < 0.05
    seen = _slides(6, 0, of_site=0.0)
    alone = robustness_index(seen["vectors"], ["A"] * 12, ["s"] * 12, seen["patients"])
    assert np.isnan(alone.value)
    assert "neither" not in alone.reason
    assert alone.reason == "no neighbour shares either the class or the site alone"
    with pytest.raises(InputError, match="one group"):
        robustness_index(seen["vectors"], seen["labels"], seen["sites"], ["s"] * 12)


def test_the_leave_site_out_gap_is_the_paired_difference_on_common_slides() -> None:
    mixed = simulated(90, seed=0)
    worse = simulated(90, seed=0, skill=0.8)
    common = np.arange(10, len(mixed.labels))
    gap = leave_site_out_gap(mixed, worse.take(common), resamples=200)["accuracy"]
    first, second = by_patient(mixed.take(common)), by_patient(worse.take(common))
    expected = accuracy_score(first.labels, first.probabilities.argmax(1)) - accuracy_score(
        second.labels, second.probabilities.argmax(1)
    )
    assert gap.estimate.value == pytest.approx(expected)
    assert gap.estimate.low > 0
    with pytest.raises(InputError, match="same patients and labels"):
        leave_site_out_gap(mixed, replace(mixed, labels=(mixed.labels + 1) % 3))


def test_cramers_v_is_that_of_the_chi_square_of_patients() -> None:
    counts = np.array([[10, 4], [5, 9], [6, 6]])
    sites, labels = (np.repeat(np.indices(counts.shape)[axis].ravel(), counts.ravel()) for axis in (0, 1))
    patients = [f"p{row}" for row in range(len(sites))]
    found = confounding([f"s{n}" for n in sites], ["AB"[n] for n in labels], patients)
    chi2 = chi2_contingency(counts, correction=False).statistic
    assert found.cramers_v == pytest.approx(np.sqrt(chi2 / counts.sum()))
    assert found.counts == tuple(map(tuple, counts.tolist()))
    assert found.reason == ""
    require_separable(found)
    twice = confounding([f"s{n}" for n in sites] * 2, ["AB"[n] for n in labels] * 2, patients * 2)
    assert twice.counts == found.counts  # slides of a patient do not count again


def test_harmonisation_is_refused_where_site_and_class_go_together() -> None:
    def found(*counts: tuple[int, int]) -> object:
        cells = [(s, "AB"[c]) for s, row in enumerate(counts) for c, n in enumerate(row) for _ in range(n)]
        return confounding([f"s{s}" for s, _ in cells], [c for _, c in cells], [f"p{n}" for n in range(len(cells))])

    with pytest.raises(InputError, match=r"refused: Cramer's V of site and class is 0\.\d\d, above 0\.5"):
        require_separable(found((18, 2), (2, 18)))
    with pytest.raises(InputError, match="all patients of site s2 are of one class"):
        require_separable(found((20, 20), (20, 20), (0, 3)))
    require_separable(found((20, 10), (10, 20)))
    one = found((20, 0), (20, 0))
    assert np.isnan(one.cramers_v)
    assert one.reason == ""
    with pytest.raises(InputError, match="no slide"):
        confounding([], [], [])
