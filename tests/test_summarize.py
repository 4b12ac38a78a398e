"""A sweep's report: right numbers under the right method, gaps said aloud, nothing sorted by test."""

import base64
import csv
import dataclasses
import io
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from run_folders import CLASSES, FOLDS, cohort_of, write_run
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score

from feature_extraction.errors import InputError
from feature_extraction.files import publish_text, read_json
from mil.metrics.classification import slide_metrics
from mil.report.methods import group_methods
from mil.report.page import Figure, Section, Table, as_markdown, write_report
from mil.report.results_file import results_csv
from mil.report.summarize import summarize
from mil.report.tables import by_shots, figures_of, ranking
from mil.runs import find_runs, write_done

command_test = pytest.mark.filterwarnings("ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning")


def _lines(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def _few(shots: int) -> dict[str, object]:
    return {"shots": shots, "scheme": "few_shot", "split_name": f"few_shot_{shots}", "split_sha256": f"{shots:064}"}


def _zeroshot(root: Path) -> Path:
    nothing = {"split_name": "", "split_sha256": "", "scheme": "", "shots": 0, "max_epochs": 0}
    return write_run(root, fold=0, skill=0.7, aggregator="zeroshot", **nothing)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Zero-shot; prompt and gated_abmil with 1 shot, 4 shots and all labels; three folds, two seeds."""
    root = tmp_path_factory.mktemp("sweep")
    _zeroshot(root / "zeroshot")
    for shots, gain in ((1, 0.0), (4, 0.5), (None, 1.5)):
        for fold in range(FOLDS):
            for seed in range(2):
                split = {} if shots is None else _few(shots)
                write_run(root / "train", fold=fold, seed=seed, skill=0.7 + gain, **split)
                write_run(
                    root / "train", fold=fold, seed=seed, skill=gain, aggregator="gated_abmil", init="random", **split
                )
    return root


def _pooled(folders: Sequence[Path]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels, probabilities and patients of the test slides, by a loop of its own; seeds averaged."""
    found: dict[str, list[dict[str, str]]] = {}
    for folder in folders:
        for row in _lines(folder / "predictions.csv"):
            if row["part"] == "test":
                found.setdefault(row["slide_id"], []).append(row)
    labels = np.array([CLASSES.index(rows[0]["label"]) for rows in found.values()])
    values = np.array(
        [np.mean([[float(row[f"p_{c}"]) for c in CLASSES] for row in rows], 0) for rows in found.values()]
    )
    return labels, values, [rows[0]["patient_id"] for rows in found.values()]


def test_every_figure_is_that_of_the_pooled_test_slides(sweep: Path) -> None:
    summary = summarize(sweep, resamples=100)
    folders = [
        run.folder for run in find_runs(sweep) if run.cell["aggregator"] == "prompt" and run.cell["shots"] is None
    ]
    assert len(folders) == 6
    labels, values, _ = _pooled(folders)
    ours = {
        result.metric: result.estimate
        for result in summary.results
        if result.method.title == "prompt, all labels" and result.level == "slide"
    }
    assert ours["balanced_accuracy"].value == pytest.approx(balanced_accuracy_score(labels, values.argmax(1)))
    assert ours["macro_auc"].value == pytest.approx(roc_auc_score(labels, values, multi_class="ovr"))
    assert ours["nll"].value == pytest.approx(log_loss(labels, values))
    assert (ours["nll"].n_patients, ours["nll"].n_slides) == (24, 36)


def test_the_patient_level_averages_slides_first(sweep: Path) -> None:
    folders = [run.folder for run in find_runs(sweep) if run.cell["aggregator"] == "zeroshot"]
    labels, values, patients = _pooled(folders)
    names = sorted(set(patients))
    mean = np.array([values[[p == name for p in patients]].mean(axis=0) for name in names])
    truth = np.array([labels[patients.index(name)] for name in names])
    found = next(
        r.estimate for r in summarize(sweep, resamples=100).results
        if r.method.aggregator == "zeroshot" and r.level == "patient" and r.metric == "balanced_accuracy"
    )  # fmt: skip
    assert found.value == pytest.approx(balanced_accuracy_score(truth, mean.argmax(1)))


def test_methods_stand_by_shots_then_name_whatever_their_results(sweep: Path) -> None:
    assert [(method.shots, method.name) for method in summarize(sweep, resamples=100).methods] == [
        (0, "zeroshot"),
        *((shots, name) for shots in (1, 4, None) for name in ("gated_abmil", "prompt")),
    ]


def test_train_rows_change_no_figure(tmp_path: Path) -> None:
    folder = write_run(tmp_path, fold=0, skill=1.0)
    before = results_csv(summarize(tmp_path, resamples=100).results)
    text = (folder / "predictions.csv").read_text()
    spoilt = re.sub(r"(,train,\w+),.*", r"\1,1,0,0", text)
    assert spoilt != text
    publish_text(folder / "predictions.csv", spoilt)
    write_done(folder)
    assert results_csv(summarize(tmp_path, resamples=100).results) == before


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"init": "random"}, {"prompt · random init", "prompt · text init"}),
        ({"encoder": "conch", "encoder_fingerprint": "c" * 64}, {"prompt · conch", "prompt · tiny"}),
        ({"pooling": {"rule": "topj", "top_j": 10}}, {"prompt · pooling.top_j=10", "prompt · pooling.top_j=5"}),
        (
            {"determined_by": {"optimizer": {"lr": 0.01}}},
            {"prompt · optimizer.lr=0.0001", "prompt · optimizer.lr=0.01"},
        ),
        ({"split_sha256": "d" * 64}, {"prompt · split kfold bbbbbb", "prompt · split kfold dddddd"}),
    ],
)
def test_what_differs_is_another_method_with_the_difference_in_its_name(
    tmp_path: Path, changes: dict[str, object], names: set[str]
) -> None:
    for fold in range(FOLDS):
        write_run(tmp_path, fold=fold, skill=1)
        write_run(tmp_path, fold=fold, skill=1, **changes)
    assert {method.name for method in group_methods(find_runs(tmp_path))[0]} == names


def test_folds_seeds_and_the_bags_of_a_fold_do_not_make_another_method(sweep: Path) -> None:
    method = next(m for m in summarize(sweep, resamples=100).methods if m.title == "prompt, 1 shot")
    assert (method.folds, method.seeds, method.missing_folds, method.uneven_folds) == ((0, 1, 2), (0, 1), (), ())


def test_a_missing_fold_an_uneven_seed_and_an_unfinished_run_are_said_aloud(tmp_path: Path) -> None:
    for fold in range(FOLDS):
        write_run(tmp_path, fold=fold, skill=1, aggregator="gated_abmil")
        if fold != 1:
            write_run(tmp_path, fold=fold, skill=1)
    write_run(tmp_path, fold=2, seed=1, skill=1)
    half = write_run(tmp_path, fold=0, seed=5, skill=1)
    (half / "done.json").unlink()
    summary = summarize(tmp_path, resamples=100)
    said = "\n".join(summary.warnings)
    assert "prompt, all labels: MISSING fold 1" in said
    assert "prompt, all labels: fold 0 lacks a seed" in said
    assert half.name in said
    assert "prompt, all labels: 14 slides are test in no run" in said
    assert "gated_abmil, all labels" not in said
    assert not summary.is_complete
    row = next(row for row in figures_of(summary, level="slide").rows if row[0] == "prompt")
    assert "2 (MISSING 1)" in row
    lines = csv.DictReader(io.StringIO(results_csv(summary.results)))
    assert {(line["folds"], line["missing_folds"]) for line in lines if line["method"] == "prompt"} == {("0 2", "1")}


def test_differences_are_taken_from_zeroshot_on_the_common_slides(tmp_path: Path) -> None:
    zeroshot = _zeroshot(tmp_path)
    folders = [write_run(tmp_path, fold=fold, skill=2.5) for fold in range(2)]
    summary = summarize(tmp_path, resamples=200)
    labels, values, patients = _pooled(folders)
    all_labels, reference, all_patients = _pooled([zeroshot])
    is_common = np.isin(all_patients, patients)
    ours = next(c for c in summary.comparisons if c.level == "slide" and c.metric == "nll")
    expected = log_loss(labels, values) - log_loss(all_labels[is_common], reference[is_common])
    assert ours.difference.estimate.value == pytest.approx(expected)
    assert ours.difference.estimate.n_patients == len(set(patients)) == 18
    assert ours.difference.estimate.high < 0
    assert {c.reference.aggregator for c in summary.comparisons} == {"zeroshot"}
    assert {c.method.aggregator for c in summary.comparisons} == {"prompt"}


def test_the_reference_can_be_a_trained_method_of_the_same_shots(sweep: Path) -> None:
    summary = summarize(sweep, reference="gated_abmil", resamples=100)
    pairs = {(c.method.title, c.reference.title) for c in summary.comparisons}
    assert {(a, b) for a, b in pairs if a.startswith("prompt")} == {
        (f"prompt, {shots}", f"gated_abmil, {shots}") for shots in ("1 shot", "4 shots", "all labels")
    }
    with pytest.raises(InputError, match="expected one of gated_abmil, prompt, zeroshot"):
        summarize(sweep, reference="abmil", resamples=100)


def test_p_values_are_adjusted_for_the_number_of_methods(sweep: Path) -> None:
    found = [c for c in summarize(sweep, resamples=100).comparisons if c.level == "slide" and c.metric == "nll"]
    least = min(found, key=lambda c: c.difference.p)
    assert len(found) == 6
    assert least.p_holm == pytest.approx(min(1, 6 * least.difference.p))


def test_a_ranking_uses_validation_slides_only(tmp_path: Path) -> None:
    """The method that is better on val and worse on test stands first."""
    for name, skill in (("good_on_val", {"val": 4.0, "test": -4.0}), ("good_on_test", {"val": -4.0, "test": 4.0})):
        folder = write_run(tmp_path, fold=0, skill=0, aggregator=name)
        rows = list(csv.reader((folder / "predictions.csv").read_text().splitlines()))
        for row in rows[1:]:
            weights = np.exp(skill.get(row[3], 0.0) * np.eye(3)[CLASSES.index(row[4])])
            row[5:] = map(str, weights / weights.sum())
        publish_text(folder / "predictions.csv", "\n".join(",".join(row) for row in rows) + "\n")
        write_done(folder)
    methods = summarize(tmp_path, resamples=100).methods
    assert [row[0] for row in ranking(methods, "balanced_accuracy").rows] == ["good_on_val", "good_on_test"]
    assert [row[0] for row in ranking(methods, "nll").rows] == ["good_on_val", "good_on_test"]


def test_a_method_without_val_is_ranked_last_and_says_so(tmp_path: Path) -> None:
    _zeroshot(tmp_path)
    write_run(tmp_path, fold=0, skill=-1)
    rows = ranking(summarize(tmp_path, resamples=100).methods, "balanced_accuracy").rows
    assert [row[0] for row in rows] == ["prompt", "zeroshot"]
    assert rows[1][2] == "no val part"


def test_the_table_by_shots_has_a_row_a_method_and_a_column_a_number_of_labels(sweep: Path) -> None:
    table = by_shots(summarize(sweep, resamples=100), level="slide")
    assert table.columns == ("method", "0 shots", "1 shot", "4 shots", "all labels")
    assert [row[0] for row in table.rows] == ["gated_abmil", "prompt", "zeroshot"]
    assert [bool(cell) for cell in table.rows[2][1:]] == [True, False, False, False]
    assert re.fullmatch(r"0\.\d\d \(0\.\d\d to [01]\.\d\d\)", table.rows[1][4])


def test_a_class_nobody_tested_is_not_defined_and_says_why(tmp_path: Path) -> None:
    cohort = [row for row in cohort_of() if row[2] != "normal"]
    write_run(tmp_path, fold=0, skill=1, cohort=cohort)
    summary = summarize(tmp_path, resamples=100)
    table = figures_of(summary, level="slide")
    assert table.rows[0][5:8] == ("not defined",) * 3
    assert "no slide of class normal" in table.note
    lines = list(csv.DictReader(io.StringIO(results_csv(summary.results))))
    auc = next(line for line in lines if line["metric"] == "macro_auc")
    assert (auc["value"], auc["low"], auc["reason"]) == ("nan", "nan", "no slide of class normal")


def test_slides_without_a_label_are_counted_and_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path, fold=0, skill=1)
    text = (folder / "predictions.csv").read_text()
    publish_text(folder / "predictions.csv", text.replace("test,LUAD", "test,", 2))
    write_done(folder)
    summary = summarize(tmp_path, resamples=100)
    assert len(summary.methods[0].unlabelled) == 2
    assert "2 test slides have no label" in " ".join(summary.warnings)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("p_LUSC", "q_LUSC", "label LUSC is none of the classes LUAD, normal"),
        ("part", "role", "expected slide_id"),
        (",LUAD,", ",LUBD,", "label LUBD is none of the classes"),
        (r"s00-0,p00,0,test,LUAD,0", "s00-0,p00,0,test,LUAD,x0", "line 2: expected a probability"),
    ],
)
def test_predictions_that_cannot_be_read_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    folder = write_run(tmp_path, fold=0, skill=1)
    text = (folder / "predictions.csv").read_text()
    assert old in text
    publish_text(folder / "predictions.csv", text.replace(old, new, 1))
    write_done(folder)
    with pytest.raises(InputError, match=message):
        summarize(tmp_path, resamples=100)


def test_runs_that_disagree_on_a_label_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, fold=0, skill=1)
    folder = write_run(tmp_path, fold=0, seed=1, skill=1)
    text = (folder / "predictions.csv").read_text()
    publish_text(folder / "predictions.csv", text.replace("s00-0,p00,0,test,LUAD", "s00-0,p00,0,test,LUSC", 1))
    write_done(folder)
    with pytest.raises(InputError, match="slide s00-0 has another label"):
        summarize(tmp_path, resamples=100)


def test_a_sweep_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    (write_run(tmp_path, fold=0, skill=1) / "done.json").unlink()
    with pytest.raises(InputError, match="0 finished and 1 unfinished"):
        summarize(tmp_path)


def test_results_carry_their_provenance_and_no_formula(tmp_path: Path) -> None:
    write_run(tmp_path, fold=0, skill=1, prompt_set="=cmd()")
    line = next(csv.DictReader(io.StringIO(results_csv(summarize(tmp_path, resamples=100).results))))
    assert line["prompt_set"] == "'=cmd()"
    assert line["encoder_fingerprint"] == "e" * 64
    assert (line["split_sha256"], line["prompt_set_sha256"]) == ("b" * 64, "a" * 64)
    assert (line["shots"], line["pooling_rule"], line["pooling_top_j"]) == ("all", "topj", "5")


class _Page(HTMLParser):
    """Tags, and every attribute that could fetch something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]


def _run(folder: Path, runs: Path, **changes: object) -> int:
    from mil.commands import summarize as command

    defaults = OmegaConf.load(Path(__file__).parent.parent / "conf" / "summarize.yaml")
    del defaults["defaults"]
    return command.run(OmegaConf.merge(defaults, {"runs": str(runs), "out": str(folder), "resamples": 100, **changes}))


@command_test
def test_the_command_writes_tables_and_a_page_that_fetches_nothing(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert _run(tmp_path, sweep, rank_by="balanced_accuracy") == 0
    text = (tmp_path / "report.html").read_text()
    page = _Page(text)
    assert page.tags.count("img") == 7
    inside = [source for source in page.sources if source.startswith("#")]
    assert len(inside) == text.count("<section")
    for source in (source for source in page.sources if source not in inside):
        head, data = source.split(",", 1)
        assert head == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(data))).verify()
    assert "script" not in page.tags
    assert "default-src 'none'" in text
    assert "http:" not in text
    assert "https:" not in text
    for title in ("Ranking by balanced accuracy on validation slides", "Difference from the reference"):
        assert title in text
        assert title in (tmp_path / "results.md").read_text()
    lines = _lines(tmp_path / "results.csv")
    assert len(lines) == 7 * 2 * 10
    assert "Can it be trusted?" in text
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) >= {"trust.csv", "unused.csv", "results.tex"}
    assert _run(tmp_path, sweep, rank_by="balanced_accuracy") == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    record = read_json(tmp_path / "summary.json")
    assert (record["runs"], record["unfinished"], len(record["methods"])) == (37, [], 7)
    assert "prompt  balanced accuracy" in capsys.readouterr().err


@command_test
def test_an_incomplete_sweep_is_refused_with_a_list_unless_it_is_asked_for(tmp_path: Path) -> None:
    for fold in range(FOLDS):
        write_run(tmp_path / "runs", fold=fold, skill=1)
    (write_run(tmp_path / "runs", fold=0, seed=1, skill=1) / "done.json").unlink()
    with pytest.raises(InputError, match=r"not finished, or changed: [0-9a-f]{12}\n.*allow_incomplete=true"):
        _run(tmp_path / "out", tmp_path / "runs")
    assert not (tmp_path / "out").exists()
    assert _run(tmp_path / "out", tmp_path / "runs", allow_incomplete=True) == 3
    assert "Read this first" in (tmp_path / "out" / "report.html").read_text()


@command_test
@pytest.mark.parametrize(
    ("changes", "message"),
    [({"level": "tile"}, "level=tile"), ({"rank_by": "test"}, "rank_by=test"), ({"resamples": 10}, "resamples=10")],
)
def test_the_command_refuses_settings_it_does_not_know(
    sweep: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _run(tmp_path, sweep, **changes)
    assert list(tmp_path.iterdir()) == []


def _png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), (200, 80, 80)).save(stream, "PNG")
    return stream.getvalue()


def test_a_report_shows_strings_as_text(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    table = Table(title=evil, columns=("a|b", "n"), rows=((evil, "1"),), note=evil)
    figure = Figure(title='"><img src=http://x>', png=_png(), caption=evil)
    section = Section(title=evil, tables=(table,), figures=(figure,))
    write_report(tmp_path / "report.html", title=evil, sections=[section], notes=[evil], warnings=[evil])
    page = _Page((tmp_path / "report.html").read_text())
    assert "script" not in page.tags
    assert [source[:22] for source in page.sources] == ["data:image/png;base64,"]
    text = as_markdown(evil, [table], [evil])
    assert "| a\\|b | n |" in text
    assert "<script>" not in text.split("\n", 1)[1].replace(f"## {evil}", "").replace(f"\n{evil}\n", "")


def test_a_report_refuses_what_it_cannot_show(tmp_path: Path) -> None:
    picture = Section(figures=(Figure(title="f", png=b"<svg/>"),))
    with pytest.raises(InputError, match="not a PNG"):
        write_report(tmp_path / "r.html", title="t", sections=[picture])
    table = Section(tables=(Table(title="x", columns=("a", "b"), rows=(("1",),)),))
    with pytest.raises(InputError, match="another length"):
        write_report(tmp_path / "r.html", title="t", sections=[table])
    assert list(tmp_path.iterdir()) == []


def test_slides_are_read_from_any_order_of_classes(tmp_path: Path) -> None:
    """The columns of another run may stand in another order; names decide."""
    one = write_run(tmp_path, fold=0, skill=1)
    method = group_methods(find_runs(tmp_path))[0][0]
    rows = list(csv.reader((one / "predictions.csv").read_text().splitlines()))
    turned = [[*row[:5], row[7], row[5], row[6]] for row in rows]
    publish_text(one / "predictions.csv", "\n".join(",".join(row) for row in turned) + "\n")
    write_done(one)
    again = group_methods(find_runs(tmp_path))[0][0]
    rows_a, rows_b = method.predictions, again.predictions
    assert dataclasses.asdict(again)["name"] == method.name
    assert slide_metrics(rows_a.labels, rows_a.probabilities, rows_a.classes) == slide_metrics(
        rows_b.labels, rows_b.probabilities, rows_b.classes
    )
