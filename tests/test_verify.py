"""Verify: everything that is wrong is found, and repair removes what a re-run makes again and nothing else."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from pyramids import tissue_pixels, write_slide
from test_store import HEADER, make_rows

from feature_extraction.claims import claim
from feature_extraction.encoder import EncoderSpec
from feature_extraction.errors import InputError
from feature_extraction.files import publish_json
from feature_extraction.findings import Finding
from feature_extraction.grid import Tiling
from feature_extraction.header import FeatureHeader
from feature_extraction.mpp import MppRule
from feature_extraction.slide import fingerprint_file
from feature_extraction.slide_hash import slide_sha256
from feature_extraction.slides import SlideRecord, SlideTable
from feature_extraction.status import Outcome, write_record
from feature_extraction.store import write_features
from feature_extraction.tissue import TissueRule
from feature_extraction.verify import feature_folders, repair, slide_change, verify_folder
from feature_extraction.work import Extraction
from mil.cli import main

YEAR_2001 = 1e9


def add(folder: Path, slide_id: str, **changes: object) -> Path:
    """A valid feature file, with its record as extraction leaves it."""
    path = folder / f"{slide_id}.h5"
    write_features(
        path, replace(HEADER, **{"slide_id": slide_id, "slide_fingerprint": slide_id, **changes}), make_rows(60)
    )
    write_record(folder / ".work" / "records", Outcome(slide_id=slide_id, status="done", file=path.name))
    return path


def table_of(*paths: Path) -> SlideTable:
    return SlideTable(records=tuple(SlideRecord(slide_id=path.stem, path=path) for path in paths))


def said(findings: tuple[Finding, ...] | list[Finding]) -> list[tuple[str, str, str]]:
    return [(finding.kind, finding.thing, finding.file or finding.slide_id) for finding in findings]


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


def test_a_folder_that_extraction_left_has_nothing_wrong(tmp_path: Path):
    for slide_id in ("a", "b.c", "=1"):
        add(tmp_path, slide_id)
    found = verify_folder(tmp_path)
    assert found.findings == ()
    assert (found.n_files, found.n_valid) == (3, 3)


def test_no_flipped_bit_and_no_zeroed_block_goes_unseen(tmp_path: Path):
    """200 flipped bits and 100 zeroed blocks, anywhere in either of two files."""
    paths = [add(tmp_path, slide_id) for slide_id in "ab"]
    contents = [path.read_bytes() for path in paths]
    generator = np.random.default_rng(5)
    n_damaged = 0
    while n_damaged < 300:
        which = int(generator.integers(2))
        damaged = bytearray(contents[which])
        position = int(generator.integers(len(damaged)))
        if n_damaged < 200:
            damaged[position] ^= 1 << int(generator.integers(8))
        else:
            damaged[position : position + 512] = bytes(len(damaged[position : position + 512]))
        if damaged == contents[which]:
            continue  # the block was zero
        n_damaged += 1
        paths[which].write_bytes(damaged)
        assert said(verify_folder(tmp_path).findings) == [("invalid", "feature file", paths[which].name)]
        paths[which].write_bytes(contents[which])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(b""), "not an HDF5 file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "carries no whole seal"),
        (lambda path: path.rename(path.with_name("other.h5")), "holds the slide x; it was renamed or copied"),
        (lambda path: (path.unlink(), path.mkdir()), "is no file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is no file"),
        (lambda path: (path.unlink(), path.symlink_to("nowhere")), "is no file"),
        (lambda path: add(path.parent, "x", extraction_fingerprint="y" * 64), "made by another configuration"),
    ],
)  # fmt: skip
def test_a_file_that_no_command_would_use_is_invalid_with_its_reason(
    tmp_path: Path, spoil: Callable[[Path], object], reason: str
):
    for slide_id in ("a", "b", "x"):
        add(tmp_path, slide_id)
    spoil(tmp_path / "x.h5")
    (finding, *_) = verify_folder(tmp_path).findings
    assert (finding.kind, finding.thing) == ("invalid", "feature file")
    assert reason in finding.reason


@pytest.mark.parametrize("space", ["joint", "backbone"])
def test_a_value_that_is_not_finite_is_found_in_every_space(tmp_path: Path, space: str):
    rows = make_rows(60)
    rows.spaces[space][7, 3] = np.nan
    write_features(tmp_path / "S.h5", HEADER, rows)
    (finding,) = verify_folder(tmp_path).findings
    assert "not finite" in finding.reason


def test_the_folders_name_says_which_configuration_is_right(tmp_path: Path):
    folder = tmp_path / f"demo-{'x' * 8}".replace("x", "a")
    add(folder, "right", extraction_fingerprint="a" * 64)
    for slide_id in ("wrong", "wrong2"):
        add(folder, slide_id, extraction_fingerprint="b" * 64)
    assert said(verify_folder(folder).findings) == [
        ("invalid", "feature file", "wrong.h5"),
        ("invalid", "feature file", "wrong2.h5"),
    ]


def test_missing_and_orphaned_slides_are_told_by_the_table(tmp_path: Path):
    folder, slides = tmp_path / "demo", tmp_path / "slides"
    slides.mkdir()
    for name in ("a", "failed", "new"):
        (slides / f"{name}.svs").write_text(name)
    add(folder, "a", slide_fingerprint=fingerprint_file(slides / "a.svs"))
    add(folder, "orphan")
    error = {"stage": "mpp", "cause": "no mpp", "remedy": "set default_mpp=…", "code": "E-mpp"}
    write_record(folder / ".work" / "records", Outcome(slide_id="failed", status="failed", **error))
    table = table_of(*sorted(slides.iterdir()))
    found = verify_folder(folder, table=table).findings
    assert said(found) == [
        ("missing", "slide", "failed"),
        ("missing", "slide", "new"),
        ("orphaned", "feature file", "orphan.h5"),
    ]
    assert (found[0].reason, found[0].remedy) == ("it failed: no mpp", "set default_mpp=…")
    assert repair(verify_folder(folder, table=table)) == []  # somebody's work is never removed


def test_the_same_slide_under_two_ids_is_found_in_files_and_in_the_table(tmp_path: Path):
    folder, slides = tmp_path / "demo", tmp_path / "slides"
    slides.mkdir()
    for name, content in (("a", "1"), ("b", "2"), ("c", "1"), ("d", "3"), ("e", "3")):
        (slides / f"{name}.svs").write_text(content)
    (slides / "f.svs").symlink_to(slides / "b.svs")
    for name in "abc":
        add(folder, name, slide_fingerprint=fingerprint_file(slides / f"{name}.svs"))
    found = verify_folder(folder, table=table_of(*sorted(slides.iterdir()))).findings
    pairs = [(finding.slide_id, finding.reason) for finding in found if finding.kind == "duplicate"]
    assert pairs == [(two, f"the same slide file as {one}") for one, two in ("ac", "bf", "de")]
    assert [finding.slide_id for finding in verify_folder(folder).findings] == ["c"]  # by the files alone
    assert not any(finding.is_removable for finding in found)


def leave_traces(folder: Path) -> set[str]:
    """What kills leave behind: each must be found and removed, and nothing else."""
    add(folder, "a")
    (folder / "gone.h5").unlink(missing_ok=True)
    write_record(folder / ".work" / "records", Outcome(slide_id="gone", status="done"))
    write_record(folder / ".work" / "records", Outcome(slide_id="stopped", status="stopped"))
    (folder / ".work" / "records" / "torn.json").write_text("{")
    journals = folder / ".work" / "journal"
    journals.mkdir(parents=True)
    for name in ("a", "stopped"):
        (journals / f"{name}.rows").write_bytes(b"rows")
    traces = {".tmp-x1", ".work/records/.tmp-x2", ".work/journal/.tmp-x3"}
    for name in traces:
        (folder / name).write_bytes(b"part")
        os.utime(folder / name, (YEAR_2001, YEAR_2001))
    return {*traces, ".work/records/gone.json", ".work/records/torn.json", ".work/journal/a.rows"}


def test_what_kills_leave_behind_is_found_and_removed_and_nothing_else(tmp_path: Path):
    traces = leave_traces(tmp_path)
    before = names(tmp_path)
    found = verify_folder(tmp_path)
    assert {finding.file for finding in found.findings} == traces
    assert {finding.kind for finding in found.findings} == {"orphaned"}
    assert names(tmp_path) == before  # looking changes nothing
    assert repair(found) == list(found.findings)
    assert {name for name in names(tmp_path) if not name.endswith(".lock")} == before - traces
    assert verify_folder(tmp_path).findings == ()


def test_a_temporary_file_of_somebody_at_work_is_left_alone(tmp_path: Path):
    add(tmp_path, "a")
    (tmp_path / ".tmp-new").touch()
    started = (tmp_path / ".tmp-new").stat().st_mtime
    assert verify_folder(tmp_path, started=started).findings == ()  # it came after we did
    assert said(verify_folder(tmp_path, started=started + 1).findings) == [("orphaned", "temporary file", ".tmp-new")]
    with claim(tmp_path / ".work" / "locks" / "b.lock"):
        assert verify_folder(tmp_path, started=started + 1).findings == ()  # b's worker may be writing it
        os.utime(tmp_path / ".tmp-new", (YEAR_2001, YEAR_2001))
        assert said(verify_folder(tmp_path).findings) == [("orphaned", "temporary file", ".tmp-new")]


def test_a_slide_that_somebody_works_on_keeps_everything(tmp_path: Path):
    traces = leave_traces(tmp_path)
    add(tmp_path, "bad").write_bytes(b"")
    found = verify_folder(tmp_path)
    with (
        claim(tmp_path / ".work" / "locks" / "a.lock"),
        claim(tmp_path / ".work" / "locks" / "bad.lock"),
        claim(tmp_path / ".work" / "locks" / "gone.lock"),
    ):
        repair(found)
        assert {"bad.h5", ".work/records/bad.json", ".work/records/gone.json", ".work/journal/a.rows"} <= names(
            tmp_path
        )
        assert ".work/records/torn.json" not in names(tmp_path)
    repair(found)
    assert not names(tmp_path) & {*traces, "bad.h5", ".work/records/bad.json"}


def test_what_was_healed_meanwhile_is_not_removed(tmp_path: Path):
    leave_traces(tmp_path)
    content = add(tmp_path, "bad").read_bytes()
    (tmp_path / "bad.h5").write_bytes(b"")
    found = verify_folder(tmp_path)
    (tmp_path / "bad.h5").write_bytes(content)  # another worker has extracted both again
    add(tmp_path, "gone")
    (tmp_path / "a.h5").write_bytes(b"")  # and the slide of this journal is no longer sealed
    repair(found)
    assert {"bad.h5", ".work/records/bad.json", ".work/records/gone.json", ".work/journal/a.rows"} <= names(tmp_path)


def test_repair_follows_no_link_out_of_the_folder(tmp_path: Path):
    outside, folder = tmp_path / "outside", tmp_path / "demo"
    leave_traces(outside)
    shutil.copytree(outside / ".work", tmp_path / "theirs")
    add(folder, "a")
    add(folder, "bad").unlink()
    (folder / "bad.h5").symlink_to(outside / "a.h5")  # a whole file, of another slide
    shutil.rmtree(folder / ".work")
    (folder / ".work").symlink_to(outside / ".work")
    before = names(outside)
    found = verify_folder(folder)
    assert ("invalid", "feature file", "bad.h5") in said(found.findings)
    repair(found)
    assert names(outside) == before
    (folder / ".work").unlink()
    assert said(repair(verify_folder(folder))) == [("invalid", "feature file", "bad.h5")]
    assert names(outside) == before


def test_an_invalid_file_whose_slide_is_not_at_hand_is_kept(tmp_path: Path):
    """A re-run could not make it again: what is left of it may be all there is."""
    folder, slides = tmp_path / "demo", tmp_path / "slides"
    slides.mkdir()
    (slides / "a.svs").write_text("a")
    for name in ("a", "gone", "unasked"):
        add(folder, name).write_bytes(b"damaged")
    table = table_of(slides / "a.svs", slides / "gone.svs")
    assert said(repair(verify_folder(folder, table=table))) == [("invalid", "feature file", "a.h5")]
    assert {"gone.h5", "unasked.h5"} <= names(folder)


def test_one_flipped_bit_of_a_slide_is_found_by_its_full_hash(tmp_path: Path):
    path = write_slide(
        tmp_path / "S.svs", np.random.default_rng(0).integers(0, 255, (500, 500, 3), np.uint8), levels=(1,)
    )
    content = path.read_bytes()
    header = replace(HEADER, slide_fingerprint=fingerprint_file(path), slide_sha256=slide_sha256(path))
    assert len(content) > 500_000  # much more than the samples
    assert slide_change(path, header) is None
    generator = np.random.default_rng(3)
    n_unseen_by_sample = 0
    for position in generator.integers(len(content), size=100):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        assert slide_change(path, header) is not None
        n_unseen_by_sample += slide_change(path, replace(header, slide_sha256="")) is None
    assert n_unseen_by_sample > 30  # which is why there is a full hash
    path.write_bytes(content)
    assert slide_change(path, header) is None


def test_check_slides_names_the_slides_that_changed(tmp_path: Path):
    folder, slides = tmp_path / "demo", tmp_path / "slides"
    slides.mkdir()
    for name in ("same", "longer", "gone", "pipe"):
        (slides / f"{name}.svs").write_text(name)
        add(folder, name, slide_fingerprint=fingerprint_file(slides / f"{name}.svs"))
    table = table_of(*sorted(slides.iterdir()))
    assert verify_folder(folder, table=table, check_slides=True).findings == ()
    (slides / "longer.svs").write_text("longer and longer")
    (slides / "gone.svs").unlink()
    (slides / "pipe.svs").unlink()
    os.mkfifo(slides / "pipe.svs")
    found = verify_folder(folder, table=table, check_slides=True)
    assert {(finding.kind, finding.slide_id) for finding in found.findings} == {
        ("changed", "longer"),
        ("changed", "gone"),
        ("changed", "pipe"),
    }
    assert (found.n_slides_by_hash, found.n_slides_by_sample) == (0, 4)
    assert not any(finding.is_removable for finding in found.findings)  # which of the two is right, a person must say
    with pytest.raises(InputError, match=r"check_slides=true: needs slides=…"):
        verify_folder(folder, check_slides=True)


def test_the_hash_of_a_slide_of_many_files_covers_each_of_them(tmp_path: Path, shared_data: Path):
    (part,) = (shared_data / "slides" / "camelyon_dicom_jpeg").glob("*.dcm")
    (stranger,) = (shared_data / "slides" / "camelyon_dicom_jp2k").glob("*.dcm")
    files = {
        "m.mrxs": ["m/Slidedat.ini", "m/Data0000.dat", "m/Data0001.dat"],
        "v.vms": ["v_0.jpg", "v_map.jpg"],
        "d/1.dcm": ["d/2.dcm"],
        "s.svs": [],
    }
    for main_file, companions in files.items():
        for name in (main_file, *companions):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(part, tmp_path / name)
    (tmp_path / "v.vms").write_text("[Virtual Microscope Specimen]\nImageFile=v_0.jpg\nMapFile=v_map.jpg\nX=../s.svs\n")
    shutil.copyfile(stranger, tmp_path / "d" / "9.dcm")
    before = {name: slide_sha256(tmp_path / name) for name in files}
    for main_file, companions in files.items():
        for name in (main_file, *companions):
            path = tmp_path / name
            content = path.read_bytes()
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            assert [n for n in files if slide_sha256(tmp_path / n) != before[n]] == [main_file]
            path.write_bytes(content)
    (tmp_path / "d" / "9.dcm").unlink()  # another slide's
    (tmp_path / "m" / "Data0001.dat").unlink()
    assert [n for n in files if slide_sha256(tmp_path / n) != before[n]] == ["m.mrxs"]


def changed_value(value: object) -> object:
    """Another value of the same type."""
    return not value if isinstance(value, bool) else f"{value}x" if isinstance(value, str) else value + 1


@pytest.mark.parametrize("name", [field.name for field in fields(FeatureHeader)])
def test_no_edited_attribute_goes_unseen(tmp_path: Path, name: str):
    """With HDF5's own tools: an edited mpp is as bad as a flipped bit."""
    path = add(tmp_path, "S")
    with h5py.File(path, "r+") as file:
        file.attrs[name] = changed_value(getattr(HEADER, name))
    assert said(verify_folder(tmp_path).findings) == [("invalid", "feature file", "S.h5")]


def test_whatever_changes_the_rows_has_a_folder_of_its_own():
    """Encoder, preprocessing, tile size, mpp, step, tissue, precision, spaces, each changed alone."""
    spec = EncoderSpec(
        name="e", widths={"joint": 8}, input_px=96, tile_mpp=1.0, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
    )
    tiling, tissue = Tiling(tile_px=96, tile_mpp=1.0, step_px=96), TissueRule()
    base = Extraction(tiling=tiling, tissue=tissue, mpp=MppRule(), spaces=("joint",))
    extractions = [base, replace(base, precision="bf16"), replace(base, spaces=("joint", "backbone"))]
    for field in fields(Tiling):
        changed = replace(tiling, **{field.name: changed_value(getattr(tiling, field.name))})
        extractions.append(replace(base, tiling=changed))
    names = ("mpp", "min_saturation", "max_saturation", "min_brightness", "min_area_um2", "min_fraction")
    rules = [replace(tissue, **{name: changed_value(getattr(tissue, name))}) for name in names]
    extractions += [replace(base, tissue=rule) for rule in rules]
    extractions.append(replace(base, tissue=TissueRule(method="none")))
    specs = [spec, replace(spec, input_px=97), replace(spec, mean=(0.4, 0.5, 0.5)), replace(spec, std=(0.2, 0.2, 0.1))]
    specs.append(replace(spec, interpolation="bilinear"))
    found = [extraction.fingerprint(spec, "w") for extraction in extractions]
    found += [base.fingerprint(other, "w") for other in specs[1:]] + [base.fingerprint(spec, "other weights")]
    assert len({fingerprint[:8] for fingerprint in found}) == len(found) == 18
    for loose in (replace(base, mpp=MppRule(default_mpp=0.5)), replace(base, tolerate_bad_tiles=0.1)):
        assert loose.fingerprint(spec, "w") == found[0]  # each file says what was done, and resuming asks it


def make_slides(folder: Path, n_slides: int) -> Path:
    for index in range(n_slides):
        write_slide(folder / f"S{index}.svs", tissue_pixels(700, 700, seed=index), levels=(1, 4))
    return folder


@pytest.mark.pipeline
def test_repair_and_a_second_extraction_make_everything_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    slides, out = make_slides(tmp_path / "slides", 3), tmp_path / "out"
    extract = ["extract", f"slides={slides}", f"out={out}", "threads=1", "hash_slides=true"]
    words = ["verify", f"features={out}", f"slides={slides}", f"out={tmp_path / 'report'}"]
    assert main(extract) == 0
    assert main([*words, "check_slides=true"]) == 0
    (folder,) = feature_folders(out)
    content = (folder / "S1.h5").read_bytes()
    (folder / "S1.h5").write_bytes(content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])
    (folder / "S2.h5").unlink()
    for leftover in (out / ".tmp-a", folder / ".tmp-b"):
        leftover.touch()
        os.utime(leftover, (YEAR_2001, YEAR_2001))
    capsys.readouterr()
    assert main(words) == 3
    shown = capsys.readouterr().err
    assert "invalid feature file slide=S1 file=S1.h5 cause=" in shown
    assert "missing slide slide=S2 cause=not extracted yet remedy=run the same `promptmil extract` again" in shown
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert [summary[kind] for kind in ("invalid", "missing", "changed", "orphaned", "duplicate")] == [1, 1, 0, 3, 0]
    assert main([*words, "repair=true"]) == 3  # two slides lack their features
    assert "1 slides now lack their features" in capsys.readouterr().err
    assert main(extract) == 0
    assert main([*words, "check_slides=true"]) == 0
    assert main(["verify", f"features={folder}"]) == 0
    (folder / ".tmp-b").touch()
    os.utime(folder / ".tmp-b", (YEAR_2001, YEAR_2001))
    assert main([*words, "repair=true"]) == 0  # all of it removed, and no slide lacks anything
    content = bytearray((slides / "S0.svs").read_bytes())
    content[len(content) // 3] ^= 4
    (slides / "S0.svs").write_bytes(content)
    assert main([*words, "check_slides=true", "repair=true"]) == 3
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert [(finding["kind"], finding["slide_id"]) for finding in summary["findings"]] == [("changed", "S0")]
    assert (summary["slides_by_hash"], summary["removed"]) == (3, 0)
    assert len(list(folder.glob("*.h5"))) == 3  # a changed slide costs nothing that is there


def test_a_folder_without_features_is_refused_and_several_are_all_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    publish_json(tmp_path / "summary.json", {})
    assert main(["verify", f"features={tmp_path}"]) == 2
    assert "no feature folder" in capsys.readouterr().err
    add(tmp_path / "a", "S")
    add(tmp_path / "b", "S")
    assert feature_folders(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    (tmp_path / "b" / "S.h5").write_bytes(b"")
    assert main(["verify", f"features={tmp_path}"]) == 3
    assert "b: invalid feature file slide=S" in capsys.readouterr().err
    assert main(["verify", f"features={tmp_path}", "repair=true"]) == 3  # removed, and now S lacks its features
    assert "1 slides now lack their features" in capsys.readouterr().err
    assert main(["verify", f"features={tmp_path}"]) == 0
