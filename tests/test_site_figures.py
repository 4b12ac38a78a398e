"""Sites in a report: what the embeddings know of them, and what a new site costs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bags import bank, rows
from run_folders import CLASSES, FOLDS, write_run
from test_store import HEADER

from feature_extraction.errors import InputError, MismatchError
from feature_extraction.store import FeatureRows, write_features
from mil.report.methods import group_methods
from mil.report.sections import report_sections
from mil.report.site_figures import SiteSource, site_gaps, site_signs, site_tables
from mil.report.summarize import summarize
from mil.runs import find_runs
from mil.trust.sites import leave_site_out_gap, site_predictability

N = 30
COHORT = [(f"S{number}", f"P{number}", CLASSES[number % 3]) for number in range(N)]
ENCODER = bank().encoder_fingerprint


def _sweep(root: Path, **changes: object) -> Path:
    for fold in range(FOLDS):
        write_run(root, fold=fold, skill=2.0, cohort=COHORT, **{"encoder_fingerprint": ENCODER, **changes})
    return root


@pytest.fixture
def source(tmp_path: Path) -> SiteSource:
    """Embeddings with a direction for each of two sites; the last slide has no site, the first none of its features."""
    lines = ["slide_id,patient_id,label,site"]
    means = np.random.default_rng(0).normal(size=(2, rows(1, seed=0).shape[1]))
    for number, (slide, patient, label) in enumerate(COHORT):
        site = number // 3 % 2
        tiles = FeatureRows(
            spaces={"joint": (rows(6, seed=number) + 2 * means[site]).astype(np.float16)},
            coords_lv0=np.stack([np.arange(6) * 192, np.zeros(6)], axis=1).astype(np.int64),
            tissue_fraction=np.ones(6, np.float32),
            failed_coords_lv0=np.empty((0, 2), np.int64),
        )
        header = replace(HEADER, slide_id=slide, encoder=bank().encoder, encoder_fingerprint=ENCODER)
        if number:
            write_features(tmp_path / "features" / f"{slide}.h5", header, tiles)
        lines.append(f"{slide},{patient},{label},{'' if number == N - 1 else 'AB'[site]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return SiteSource(features=tmp_path / "features", labels=tmp_path / "labels.csv")


def test_a_site_that_shows_in_the_embeddings_is_in_the_report(source: SiteSource, tmp_path: Path) -> None:
    summary = summarize(_sweep(tmp_path / "runs"), resamples=100, sites=source)
    found = summary.sites
    assert found is not None
    assert (found.n_slides, found.n_patients, found.without) == (N - 2, N - 2, ("S0", f"S{N - 1}"))
    assert found.predictability is not None
    assert found.predictability.auc.value > 0.95
    assert found.robustness is not None
    assert found.robustness.value < 0.3
    section = next(one for one in report_sections(summary, level="patient", rank_by=None) if one.title == "Sites")
    (table,) = section.tables
    assert table.rows[0][1:4] == (str(N - 2), str(N - 2), "2")
    assert "2 slides of the sweep have no site or no features." in table.note


def test_the_figures_are_those_of_the_slides_mean_vectors(source: SiteSource, tmp_path: Path) -> None:
    found = site_signs(source, find_runs(_sweep(tmp_path / "runs")), resamples=100)
    used = range(1, N - 1)
    vectors = []
    means = np.random.default_rng(0).normal(size=(2, rows(1, seed=0).shape[1]))
    for number in used:
        tiles = (rows(6, seed=number) + 2 * means[number // 3 % 2]).astype(np.float16)
        vectors.append(tiles.astype(np.float64).mean(axis=0))
    sites, patients = ["AB"[number // 3 % 2] for number in used], [f"P{number}" for number in used]
    expected = site_predictability(np.array(vectors), sites, patients, resamples=100)
    assert found is not None
    assert found.predictability is not None
    assert found.predictability.auc.value == pytest.approx(expected.auc.value, abs=1e-9)


def test_without_classes_or_a_second_site_the_report_says_so(source: SiteSource, tmp_path: Path) -> None:
    source.labels.write_text("slide_id,site\n" + "".join(f"S{number},A\n" for number in range(N)))
    found = site_signs(source, find_runs(_sweep(tmp_path / "runs", labels="time_to_event")), resamples=100)
    assert found is not None
    assert (found.predictability, found.confounding, found.robustness) == (None, None, None)
    (table,) = site_tables(found, [])
    assert table.rows[0][4:7] == ("not defined",) * 3
    assert "expected two or more with 2 patients each, got A" in table.note


def test_what_cannot_be_about_the_sweep_is_refused(source: SiteSource, tmp_path: Path) -> None:
    runs = find_runs(_sweep(tmp_path / "runs"))
    with pytest.raises(MismatchError, match=r"made by .* and the runs are of tiny"):
        site_signs(source, find_runs(_sweep(tmp_path / "others", encoder_fingerprint="9" * 64)))
    source.labels.write_text("slide_id,label\nS1,x\n")
    with pytest.raises(InputError, match=r"expected the columns slide_id and site, got slide_id, label"):
        site_signs(source, runs)
    source.labels.write_text("slide_id,site\nX1,A\n")
    with pytest.raises(InputError, match="no slide of the sweep has a site and a feature file"):
        site_signs(source, runs)


def test_a_new_site_costs_what_mixed_folds_have_more_on_the_same_patients(tmp_path: Path) -> None:
    for scheme, skill in (("kfold", 3.0), ("leave_one_site_out", 0.5)):
        split = {"scheme": scheme, "split_name": scheme, "split_sha256": scheme[0] * 64}
        for aggregator in ("prompt", "gated_abmil") if scheme == "kfold" else ("prompt",):
            for fold in range(FOLDS):
                write_run(tmp_path, fold=fold, skill=skill, cohort=COHORT, aggregator=aggregator, **split)
    methods, _ = group_methods(find_runs(tmp_path))
    (gap,) = site_gaps(methods, resamples=200)
    assert (gap.mixed.aggregator, gap.left_out.cell["scheme"]) == ("prompt", "leave_one_site_out")
    expected = leave_site_out_gap(gap.mixed.predictions, gap.left_out.predictions, resamples=200)
    assert gap.differences["macro_auc"] == expected["macro_auc"]
    assert gap.differences["macro_auc"].estimate.low > 0
    (table,) = site_tables(None, [gap])
    assert table.rows[0][2] == str(N)
    assert table.rows[0][5].startswith("+0.")
    assert site_gaps([gap.mixed], resamples=200) == []
