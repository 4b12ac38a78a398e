"""A report: mixed cells refused, repeats not passed off as an ensemble, every slide accounted for."""

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from run_folders import CLASSES, FOLDS, cohort_of, write_run
from sklearn.metrics import accuracy_score, log_loss

from feature_extraction.errors import InputError
from feature_extraction.files import publish_text
from mil.report.accounts import PLACES, UNUSABLE, account_table, accounts_of, unused_csv, unused_table
from mil.report.canvas import TITLE_LETTERS, title_lines
from mil.report.comparisons import drawings
from mil.report.latex import MOST_ROWS, WIDEST, as_latex
from mil.report.methods import group_methods
from mil.report.page import Table
from mil.report.sections import report_sections, tables_of
from mil.report.summarize import summarize
from mil.runs import find_runs, write_done


def _move_test(folder: Path, patients: Callable[[int], bool]) -> None:
    """Test those patients in this run, train on the others."""
    rows = list(csv.reader((folder / "predictions.csv").read_text().splitlines()))
    for row in rows[1:]:
        row[3] = "test" if patients(int(row[1][1:])) else "train"
    publish_text(folder / "predictions.csv", "\n".join(map(",".join, rows)) + "\n")
    write_done(folder)


def _repeated(root: Path, **more: object) -> list[Path]:
    """Two drawings of two folds."""
    tests = (lambda p: p // 3 % 2 == 0, lambda p: p // 3 % 2 == 1, lambda p: p // 6 % 2 == 0, lambda p: p // 6 % 2 == 1)
    folders = [write_run(root, fold=fold, skill=0.6, scheme="repeated_kfold", **more) for fold in range(4)]
    for folder, chosen in zip(folders, tests, strict=True):
        _move_test(folder, chosen)
    return folders


def test_figures_of_repeated_folds_are_the_mean_over_drawings_and_no_ensemble(tmp_path: Path) -> None:
    folders = _repeated(tmp_path)
    summary = summarize(tmp_path, resamples=200)
    found = {r.metric: r.estimate for r in summary.results if r.level == "slide"}
    values = []
    for pair in (folders[:2], folders[2:]):
        rows = [
            row
            for folder in pair
            for row in csv.DictReader((folder / "predictions.csv").read_text().splitlines())
            if row["part"] == "test"
        ]
        truth = [CLASSES.index(row["label"]) for row in rows]
        said = np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in rows])
        assert len(rows) == len(cohort_of())
        values.append((accuracy_score(truth, said.argmax(1)), log_loss(truth, said)))
    accuracy, nll = np.mean(values, axis=0)
    assert found["accuracy"].value == pytest.approx(accuracy)
    assert found["nll"].value == pytest.approx(nll)
    ensemble = summary.methods[0].predictions
    assert log_loss(ensemble.labels, ensemble.probabilities) < nll - 0.02
    assert (found["nll"].n_patients, found["nll"].n_slides) == (24, 36)
    assert found["nll"].low < nll < found["nll"].high
    assert "drawn 2 times" in " ".join(summary.warnings)


def test_repeated_folds_are_compared_drawing_by_drawing(tmp_path: Path) -> None:
    _repeated(tmp_path)
    _repeated(tmp_path, aggregator="abmil", seed=3)
    write_run(tmp_path, fold=0, skill=1, aggregator="zeroshot", shots=0, split_sha256="", split_name="")
    prompt = next(one for one in group_methods(find_runs(tmp_path))[0] if one.aggregator == "prompt")
    by_name = {one.aggregator: one for one in group_methods(find_runs(tmp_path))[0]}
    for (_, other), repeat in zip(drawings(prompt, by_name["abmil"]), by_name["abmil"].repeats, strict=True):
        assert other is repeat.predictions
    assert [other.slide_ids for _, other in drawings(prompt, by_name["zeroshot"])] == [
        by_name["zeroshot"].predictions.slide_ids
    ] * 2
    summary = summarize(tmp_path, reference="abmil", resamples=200)
    one = next(
        c for c in summary.comparisons if c.method.aggregator == "prompt" and c.metric == "nll" and c.level == "slide"
    )
    values = {r.method.aggregator: r.estimate.value for r in summary.results if (r.metric, r.level) == ("nll", "slide")}
    assert one.difference.estimate.value == pytest.approx(values["prompt"] - values["abmil"])
    assert 0 < one.difference.p <= 1


def test_folds_of_monte_carlo_are_a_drawing_each(tmp_path: Path) -> None:
    for fold in range(2):
        _move_test(
            write_run(tmp_path, fold=fold, skill=1, scheme="monte_carlo"),
            lambda p, f=fold: p // 3 in (2 * f, 2 * f + 1),
        )
    assert [repeat.folds for repeat in group_methods(find_runs(tmp_path))[0][0].repeats] == [(0,), (1,)]


def test_a_patient_who_is_test_in_two_folds_of_a_kfold_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, fold=0, skill=1)
    _move_test(write_run(tmp_path, fold=1, skill=1), lambda p: p in (0, 3))
    with pytest.raises(InputError, match=r"1 are test in two folds: p00 \(folds 0 and 1\)"):
        summarize(tmp_path, resamples=100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1, "determined_by": {"features": "others"}}, "prompt, fold 0: the runs .* read different features"),
        ({"aggregator": "abmil", "split_sha256": "d" * 64}, "The split kfold is not the same file in .* and "),
    ],
)
def test_mixed_cells_are_refused_with_a_list(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    names = [write_run(tmp_path, fold=0, skill=1).name, write_run(tmp_path, fold=0, skill=1, **changes).name]
    with pytest.raises(InputError, match=message) as caught:
        summarize(tmp_path, resamples=100)
    assert all(name in str(caught.value) for name in names)


def test_every_slide_is_accounted_for_once_and_the_sums_add_up(tmp_path: Path) -> None:
    for fold in range(FOLDS - 1):
        write_run(tmp_path / "runs" / "train", fold=fold, skill=1, unused={"torn": "damaged", "s00-0": "x"})
    folder = write_run(tmp_path / "runs" / "zeroshot", fold=0, skill=1, aggregator="zeroshot", cohort=cohort_of()[:20])
    text = (folder / "predictions.csv").read_text()
    publish_text(folder / "predictions.csv", text.replace("test,LUAD", "test,", 2))
    write_done(folder)
    accounts = accounts_of(find_runs(tmp_path / "runs"))
    assert len(accounts.slides) == len(cohort_of()) + 1
    for one, row in zip(accounts.methods, account_table(accounts).rows, strict=True):
        listed = [slide for place in PLACES for slide in one.places[place]]
        assert sorted(listed) == list(accounts.slides)
        assert sum(map(int, row[2:])) == int(row[1]) == len(accounts.slides)
    by_name = {one.method.split(",")[0]: one.places for one in accounts.methods}
    assert {name: [len(places[place]) for place in PLACES] for name, places in by_name.items()} == {
        "prompt": [27, 0, 9, 1, 0],
        "zeroshot": [18, 2, 0, 0, 17],
    }
    assert by_name["prompt"][UNUSABLE] == ("torn",)
    assert ("torn", "damaged", "prompt, all labels") in unused_table(accounts).rows
    lines = list(csv.DictReader(io.StringIO(unused_csv(accounts))))
    assert len(lines) == 10 + 19
    assert {"slide_id": "torn", "method": "prompt, all labels", "place": UNUSABLE, "reason": "damaged"} in lines


def test_a_run_that_does_not_say_what_it_could_not_use_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path, fold=0, skill=1)
    (folder / "unused.json").unlink()
    write_done(folder)
    with pytest.raises(InputError, match=f"{folder.name}: no unused.json.*run again"):
        accounts_of(find_runs(tmp_path))


def test_controls_stand_under_the_method_they_are_controls_of(tmp_path: Path) -> None:
    for fold in range(FOLDS):
        write_run(tmp_path, fold=fold, skill=2.5, words="own")
        write_run(tmp_path, fold=fold, skill=0.0, words="shuffled")
        write_run(tmp_path, fold=fold, skill=1.0, words="own", init="random")
        write_run(tmp_path, fold=fold, skill=1.0, words="own", aggregator="gated_abmil", init="random")
    summary = summarize(tmp_path, resamples=200)
    assert sorted(one.what for one in summary.controls) == ["random start", "words of other classes"]
    assert {one.method.cell["init"] for one in summary.controls} == {"text"}
    table = next(
        t for t in tables_of(report_sections(summary, level="patient", rank_by=None)) if "words worth" in t.title
    )
    assert [row[2] for row in table.rows] == ["none: its own words", "random start", "words of other classes"]
    shuffled = next(one for one in summary.controls if one.what == "words of other classes")
    auc = next(c for c in shuffled.comparisons if c.metric == "macro_auc" and c.level == "patient")
    assert auc.difference.estimate.low > 0


def test_a_latex_table_says_what_the_table_says_and_escapes_it() -> None:
    table = Table(
        title="50 % of A_B", columns=("a&b", "n ↓"), rows=(("x_1", "0.5 (0.1 to 0.9)"),), note="p < .05 \\ #1"
    )
    text = as_latex([table])
    assert r"\caption{50 \% of A\_B. p \textless{} .05 \textbackslash{} \#1}" in text
    assert r"\label{tab:50-of-a-b}" in text
    assert r"a\&b & n $\downarrow$ \\" in text
    assert r"x\_1 & 0.5 (0.1 to 0.9) \\" in text
    assert text.count("\\begin{") == text.count("\\end{") == 2
    assert r"\caption{Is it? Yes.}" in as_latex([replace(table, title="Is it?", note="Yes.")])


def test_a_latex_table_too_wide_or_too_long_for_a_page_goes_on_in_parts_that_fit_and_lose_nothing() -> None:
    columns = ("method", *(f"figure {column}" for column in range(12)))
    rows = tuple((f"method {row}", *(f"{row}.{column} (0.1 to 0.9)" for column in range(12))) for row in range(100))
    text = as_latex([Table(title="Everything", columns=columns, rows=rows)])
    floats = text.split(r"\begin{table}")[1:]
    assert len(floats) > 100 // MOST_ROWS
    assert text.count(r"\label{tab:everything}") == 1
    assert all(one.count(r"\caption{") == 1 for one in floats)
    assert all("(continued)" in one for one in floats[1:])
    for one in floats:
        lines = [line for line in one.splitlines() if line.endswith(r"\\")]
        assert sum(line.startswith("method ") and "figure" not in line for line in lines) <= MOST_ROWS
        assert max(map(len, lines)) <= WIDEST + 10
    for row in rows:
        assert text.count(f"{row[0]} & ") == text.count("method & ") / -(-100 // MOST_ROWS)
        assert all(text.count(f"{cell} ") + text.count(f"{cell} &") >= 1 for cell in row[1:])


def test_a_long_name_stands_in_lines_above_its_panel_and_loses_nothing() -> None:
    name = "prompt · own words · split leave_one_site_out 71a06d"
    lines = title_lines(name).split("\n")
    assert len(lines) == 2
    assert max(map(len, lines)) <= TITLE_LETTERS
    assert " ".join(lines) == name
