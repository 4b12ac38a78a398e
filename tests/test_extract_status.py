"""`extract status`: every slide counted once, from files alone, and nothing touched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import bounded
import numpy as np
import pytest
from pyramids import tissue_pixels, write_slide

from feature_extraction.claims import claim
from feature_extraction.journal import Journal
from feature_extraction.slides import read_slide_table
from feature_extraction.status import Outcome, write_record
from feature_extraction.stock import take_stock
from mil.cli import main

WIDTH = 4


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder as workers leave it: two done, one empty, one failed, one stopped, one killed, one in work."""
    work = tmp_path / "out" / "demo-00000000" / ".work"
    outcomes = [
        Outcome(slide_id="done1", status="done", is_new=True, n_tiles=100),
        Outcome(slide_id="done2", status="done", is_new=True, n_tiles=300),
        Outcome(slide_id="glass", status="empty"),
        Outcome(slide_id="bad", status="failed", stage="open", cause="torn", remedy="copy it again", code="E-open"),
        Outcome(slide_id="stopped", status="stopped", n_tiles=5),
        Outcome(slide_id="working", status="failed", stage="open", cause="before", remedy="-", code="E-old"),
    ]
    for outcome in outcomes:
        write_record(work / "records", outcome)
        with claim(work / "locks" / f"{outcome.slide_id}.lock"):
            pass
    for index, name in enumerate(("done1", "done2")):
        os.utime(work / "records" / f"{name}.json", (1e9, 1e9 + 60 * index))
    for name, n_rows in (("killed", 50), ("working", 20), ("planned", 0)):
        journal = Journal(work / "journal" / f"{name}.rows", key="k", width=WIDTH, dtype=np.dtype(np.float16))
        if n_rows:
            journal.append(np.ones((n_rows, WIDTH), np.float16))
        journal.close()
    return tmp_path / "out"


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    names = ["done1", "done2", "glass", "bad", "stopped", "working", "killed", "planned", "new", "twice", "twice"]
    table = tmp_path / "slides.csv"
    table.write_text("path,slide_id\n" + "".join(f"{i}.svs,{name}\n" for i, name in enumerate(names)))
    return table


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_every_slide_is_counted_once(out: Path, slides: Path):
    lock = out / "demo-00000000" / ".work" / "locks" / "working.lock"
    with claim(lock) as is_ours:
        assert is_ours
        (stock,) = take_stock(out, read_slide_table(slides))
    assert (stock.done, stock.empty, stock.in_work, stock.interrupted) == (2, 1, 1, 2)
    assert stock.not_started == 2  # "new", and "planned", of which no row was made
    assert [outcome.slide_id for outcome in stock.failed] == ["bad", "twice", "twice"]
    n_counted = stock.done + stock.empty + stock.in_work + stock.interrupted + stock.not_started + len(stock.failed)
    assert n_counted == len(slides.read_text().splitlines()) - 1
    assert 400 + 70 <= stock.tiles <= 400 + 70 + 10  # a journal's checksums look like a few rows more
    assert stock.slides_per_hour == pytest.approx(60)
    assert stock.tiles_per_s == pytest.approx(300 / 60)
    assert stock.hours_left == pytest.approx(5 / 60)
    (later,) = take_stock(out, None)
    assert (later.in_work, later.interrupted, later.not_started) == (0, 2, None)
    assert [outcome.slide_id for outcome in later.failed] == ["bad", "working"]
    assert np.isnan(later.hours_left)


def test_only_the_slides_asked_for_are_counted(out: Path, tmp_path: Path):
    (tmp_path / "few.csv").write_text("path,slide_id\na.svs,done1\nb.svs,other\n")
    (stock,) = take_stock(out, read_slide_table(tmp_path / "few.csv"))
    assert (stock.done, stock.empty, stock.in_work, stock.interrupted, stock.not_started) == (1, 0, 0, 0, 1)
    assert stock.failed == ()
    assert np.isnan(stock.slides_per_hour)


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe\n", b'{"width": 0, "dtype": "<f2"}\n12', b"[1]\n"])
def test_a_journal_that_is_cut_counts_as_no_row(out: Path, damage: bytes):
    (out / "demo-00000000" / ".work" / "journal" / "killed.rows").write_bytes(damage)
    (stock,) = take_stock(out, None)
    assert stock.interrupted == 1


def test_looking_changes_nothing(out: Path, slides: Path, capsys: pytest.CaptureFixture[str]):
    before = listing(out)
    assert main(["extract", "status", f"out={out}", f"slides={slides}"]) == 0
    shown = capsys.readouterr().out
    assert listing(out) == before
    assert "slide=bad stage=open cause=torn remedy=copy it again code=E-open" in shown
    assert "slide=twice" in shown
    rows = {line[:13].strip(): line[13:].strip() for line in shown.splitlines()}
    assert (rows["done"], rows["failed"], rows["interrupted"], rows["not started"]) == ("2", "4", "2", "2")


def test_an_empty_folder_and_a_missing_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["extract", "status", f"out={tmp_path}"]) == 0
    assert "nothing was extracted" in capsys.readouterr().out
    assert main(["extract", "status", f"out={tmp_path / 'none'}"]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["extract", "status"]) == 2
    assert "needs out=…" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.pipeline
def test_a_real_extraction_is_followed_to_its_end(tmp_path: Path):
    for index in range(2):
        write_slide(tmp_path / "slides" / f"S{index}.svs", tissue_pixels(2600, 2600, seed=index))
    (tmp_path / "slides" / "torn.svs").write_bytes(b"II*\0")
    table = read_slide_table(tmp_path / "slides")
    words = [f"slides={tmp_path / 'slides'}", f"out={tmp_path / 'out'}", "batch_size=8", "threads=1"]
    seen = []
    command = [sys.executable, "-P", "-m", "mil", "extract", *words]
    with bounded.started(command, stderr=subprocess.DEVNULL) as worker:
        bounded.until(lambda: seen.extend(take_stock(tmp_path / "out", table)) or worker.poll() is not None, 120, 0.01)
    assert worker.returncode == 3
    for stock in seen:
        assert stock.not_started is not None
        n_counted = stock.done + stock.empty + stock.in_work + stock.interrupted + stock.not_started
        assert n_counted + len(stock.failed) == 3
    assert any(stock.in_work for stock in seen)
    (end,) = take_stock(tmp_path / "out", table)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (end.done, len(end.failed), end.in_work, end.not_started) == (2, 1, 0, 0)
    assert end.tiles == summary["tiles"]
