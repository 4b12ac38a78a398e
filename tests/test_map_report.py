"""What a report says of maps: means over patients as plain loops make them, and maps nobody should read named."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from run_folders import FOLDS, write_run

from feature_extraction.errors import DamagedFileError, InputError
from feature_extraction.files import publish_json
from mil.metrics.differences import holm
from mil.report.map_tables import map_tables, maps_csv
from mil.report.sections import report_sections
from mil.report.summarize import summarize

LAYERS = ("contribution", "attention")
FIGURES = ("aopc", "gain", "sufficiency", "necessity", "smallest_k")


def slides_of(folder: Path) -> list[tuple[str, str]]:
    """(slide, patient) of the test part."""
    rows = csv.DictReader((folder / "predictions.csv").read_text().splitlines())
    return [(row["slide_id"], row["patient_id"]) for row in rows if row["part"] == "test"]


def a_line(slide_id: str, run: str, seed: int, better: float) -> dict[str, object]:
    """A slide's line as `promptmil heatmap` writes it; ``better`` is how much more than random the first layer does."""
    generator = np.random.default_rng(seed)

    def figure(shift: float) -> dict[str, float]:
        value, random = generator.normal([shift, 0.0], 0.1)
        return {"value": float(value), "random": float(random), "p": float(generator.uniform())}

    layers = {layer: {name: figure(better * (layer == "contribution")) for name in FIGURES} for layer in LAYERS}
    line: dict[str, object] = {
        "slide_id": slide_id, "run": run, "label": "LUAD", "shown": "LUAD", "layer": "contribution",
        "stability": {"runs": 2, "rank_correlation": float(generator.uniform(0.5, 1))},
        "faithfulness": {"layers": layers, "how": "closed form", "n_evidence": 3, "n_random": 99},
    }  # fmt: skip
    if seed % 3:
        line |= {"positive_tiles": 10, "tiles": 40}
        line |= {f"{kind}_{layer}": float(generator.uniform()) for kind in ("auc", "top20") for layer in LAYERS}
    return line


def write_maps(out: Path, runs: list[Path], better: float) -> list[tuple[dict[str, object], str]]:
    """A map of each test slide; returns each line with its patient."""
    pairs = [(slide, patient, run.name) for run in runs for slide, patient in slides_of(run)]
    lines = [(a_line(slide, run, seed, better), patient) for seed, (slide, patient, run) in enumerate(pairs)]
    publish_json(out / "summary.json", {"command": "heatmap", "maps": len(lines), "slides": [one for one, _ in lines]})
    return lines


def mean_over_patients(values: list[tuple[str, float]]) -> float:
    of_patient: dict[str, list[float]] = {}
    for patient, value in values:
        of_patient.setdefault(patient, []).append(value)
    return float(np.mean([np.mean(one) for one in of_patient.values()]))


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [write_run(tmp_path / "runs", fold=fold, skill=1.0) for fold in range(FOLDS)]


def test_figures_of_maps_are_means_over_patients_less_random(tmp_path: Path, runs: list[Path]):
    lines = write_maps(tmp_path / "maps", runs, better=0.6)
    summary = summarize(tmp_path / "runs", resamples=200, maps=[tmp_path / "maps"])
    (found,) = summary.maps
    assert found.n_slides == len(lines) == 36
    for layer in found.layers:
        for name in FIGURES:
            values = []
            for line, patient in lines:
                given = line["faithfulness"]["layers"][layer.layer][name]
                chance = 0.0 if name in ("sufficiency", "necessity") else given["random"]
                values.append((patient, given["value"] - chance))
            estimate = layer.less_chance[name].estimate
            assert estimate.value == pytest.approx(mean_over_patients(values))
            assert estimate.low < estimate.value < estimate.high
            assert (estimate.n_patients, estimate.n_slides) == (24, 36)
            assert (layer.p_holm[name] < 0.05) == (layer.layer == "contribution")
            assert layer.p_holm[name] >= layer.less_chance[name].p
        known = [(patient, line[f"auc_{layer.layer}"]) for line, patient in lines if "tiles" in line]
        assert layer.auc is not None
        assert layer.auc.value == pytest.approx(mean_over_patients(known))
        worse = [line["faithfulness"]["layers"][layer.layer]["aopc"]["p"] > 0.05 for line, _ in lines]
        assert (layer.n_no_better, layer.n_measured) == (sum(worse), 36)
        assert layer.is_shown == (layer.layer == "contribution")
    assert found.agreement is not None
    rank = [(patient, line["stability"]["rank_correlation"]) for line, patient in lines]
    assert found.agreement.value == pytest.approx(mean_over_patients(rank))
    assert found.positive_share is not None
    assert found.positive_share.value == pytest.approx(0.25)
    assert not any("its maps" in warning for warning in summary.warnings)
    titles = [table.title for table in map_tables(summary.maps)]
    assert titles == [
        "Do the maps show what the model goes by?",
        "Do the maps find the true regions?",
        "Do the maps of other folds and seeds agree?",
    ]
    assert "The maps" in [section.title for section in report_sections(summary, level="patient", rank_by=None)]
    rows = list(csv.DictReader(io.StringIO(maps_csv(summary.maps))))
    (row,) = [one for one in rows if (one["layer"], one["figure"]) == ("contribution", "gain_less_random")]
    assert float(row["value"]) == found.layers[0].less_chance["gain"].estimate.value


def test_p_is_adjusted_for_the_methods_that_have_maps(tmp_path: Path, runs: list[Path]):
    others = [write_run(tmp_path / "runs", fold=fold, skill=1.0, aggregator="abmil") for fold in range(FOLDS)]
    write_maps(tmp_path / "one", runs, better=0.02)
    write_maps(tmp_path / "two", others, better=0.6)
    summary = summarize(tmp_path / "runs", resamples=200, maps=[tmp_path / "one", tmp_path / "two"])
    assert [one.name for one in summary.maps] == ["abmil", "prompt"]
    for figure in FIGURES:
        layers = [one.layers[0] for one in summary.maps]
        p = [layer.less_chance[figure].p for layer in layers]
        assert [layer.p_holm[figure] for layer in layers] == holm(p)
    (said,) = [warning for warning in summary.warnings if "its maps (contribution)" in warning]
    assert said.startswith("prompt, all labels")


def test_maps_that_do_no_better_than_random_orders_are_named(tmp_path: Path, runs: list[Path]):
    write_maps(tmp_path / "maps", runs, better=0.0)
    warnings = summarize(tmp_path / "runs", resamples=200, maps=[tmp_path / "maps"]).warnings
    (said,) = [warning for warning in warnings if "its maps (contribution)" in warning]
    assert "do not read them as what the model goes by" in said
    assert not summarize(tmp_path / "runs", resamples=200).maps


def test_maps_of_slides_that_were_not_tested_are_not_counted(tmp_path: Path, runs: list[Path]):
    lines = write_maps(tmp_path / "maps", runs, better=0.6)
    strangers = [a_line(slide, runs[0].name, 500, 0.6) for slide, _ in slides_of(runs[1])[:3]]
    of_first = [line for line, _ in lines if line["run"] == runs[0].name]
    publish_json(tmp_path / "maps" / "summary.json", {"command": "heatmap", "slides": [*of_first, *strangers]})
    summary = summarize(tmp_path / "runs", resamples=200, maps=[tmp_path / "maps"])
    assert (summary.maps[0].n_slides, summary.maps[0].left_out) == (len(of_first), 3)
    assert any("3 maps are of slides that their run was not tested on" in warning for warning in summary.warnings)
    publish_json(tmp_path / "maps" / "summary.json", {"command": "heatmap", "slides": strangers})
    with pytest.raises(InputError, match="none is of a slide that its run was tested on"):
        summarize(tmp_path / "runs", resamples=200, maps=[tmp_path / "maps"])


def test_folders_that_hold_other_things_are_refused_by_name(tmp_path: Path, runs: list[Path]):
    maps = tmp_path / "maps"
    with pytest.raises(InputError, match=r"no summary\.json in it"):
        summarize(tmp_path / "runs", resamples=200, maps=[maps])
    publish_json(maps / "summary.json", {"command": "extract", "slides": [{}]})
    with pytest.raises(InputError, match="lists no map"):
        summarize(tmp_path / "runs", resamples=200, maps=[maps])
    lines = write_maps(maps, runs, better=0.6)
    with pytest.raises(InputError, match="two maps of slide"):
        summarize(tmp_path / "runs", resamples=200, maps=[maps, maps])
    publish_json(maps / "summary.json", {"command": "heatmap", "slides": [{**lines[0][0], "run": "0123456789ab"}]})
    with pytest.raises(InputError, match="not among those of runs=…: 0123456789ab"):
        summarize(tmp_path / "runs", resamples=200, maps=[maps])
    publish_json(maps / "summary.json", {"command": "heatmap", "slides": [{**lines[0][0], "auc_evidence": "high"}]})
    with pytest.raises(DamagedFileError, match="expected a number, got 'high'"):
        summarize(tmp_path / "runs", resamples=200, maps=[maps])
