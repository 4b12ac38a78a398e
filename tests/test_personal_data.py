"""What a slide says of a person is in no output: tags, labels, names and folders are marked, every byte is searched."""

import base64
import gzip
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import bounded
import h5py
import numpy as np
import openslide
import pandas as pd
import pyarrow.parquet
import pytest
import tifffile
from PIL import Image
from pyramids import tissue_pixels

from feature_extraction.errors import InputError, SlideError
from feature_extraction.pseudonyms import pseudonymise, redact
from feature_extraction.slides import SlideRecord, SlideTable, read_slide_table
from mil.cli import main

MARK = "Qxz"
"""Part of every planted name: 'Qxz' and a number."""
LABEL_COLOUR = (1, 254, 3)
"""Of the label's and the macro's pixels, which nothing else has."""
N_SLIDES = 8
TEXT_TAGS = {269: "DocumentName", 271: "Make", 285: "PageName", 315: "Artist", 316: "HostComputer", 33432: "Copyright"}
OWN_TAGS = {37510: "UserComment", 65000: "private", 65001: "of a scanner"}


def marks() -> Iterator[str]:
    """Names that no word contains, each another."""
    yield from (f"{MARK}{number:03d}" for number in range(1000))


def write_marked_slide(path: Path, seed: int, mpp: str = "0.5", side: int = 700) -> None:
    """An Aperio-like slide with label and macro, whose every text is a mark."""
    mark = marks()
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = tissue_pixels(side, side, seed=seed)
    keys = ("Filename", "Title", "ScanScope ID", "User", "Date", "Barcode", "Patient Name", "ICC Profile")
    pairs = "|".join(f"{key} = {next(mark)}" for key in keys)
    description = f"Aperio Image Library v12.0 {next(mark)}\n{side}x{side} [0,0 {side}x{side}] (256x256) JPEG/RGB Q=90"
    texts = [(code, 2, 0, next(mark), True) for code in TEXT_TAGS] + [
        (code, 2, 0, next(mark), True) for code in OWN_TAGS
    ]
    xmp = f"<x:xmpmeta xmlns:x='adobe:ns:meta/'>{next(mark)}</x:xmpmeta>".encode()
    tags = [*texts, (700, 1, len(xmp), xmp, True)]
    small = np.full((96, 160, 3), LABEL_COLOUR, np.uint8)
    common = {"photometric": "rgb", "metadata": None, "extratags": tags, "datetime": "2001:02:03 04:05:06"}
    with tifffile.TiffWriter(path) as tiff:
        first = f"{description}|AppMag = 20|MPP = {mpp}|{pairs}"
        tiff.write(pixels, tile=(256, 256), compression="deflate", description=first, software=next(mark), **common)
        tiff.write(pixels[::8, ::8], rowsperstrip=16, description=f"{description}|{pairs}", **common)
        tiff.write(pixels[::4, ::4], tile=(256, 256), compression="deflate", description=next(mark), **common)
        for kind, subfile in (("label", 1), ("macro", 9)):
            said = f"Aperio Image Library v12.0 {next(mark)}\n{kind} 160x96 {next(mark)}"
            tiff.write(small, rowsperstrip=16, subfiletype=subfile, description=said, **common)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of marked slides, good and bad, and a table of them with ids that say nothing."""
    root = tmp_path_factory.mktemp("of_persons")
    folder = root / f"{MARK}ward" / f"{MARK} Miller"
    rows = []
    for index in range(N_SLIDES):
        write_marked_slide(folder / f"{MARK}patient_{index}.svs", seed=index)
        rows.append((f"{MARK}patient_{index}.svs", f"S{index}"))
    write_marked_slide(folder / f"{MARK}no_mpp.svs", seed=20, mpp=f"{MARK}mpp")
    whole = (folder / f"{MARK}patient_0.svs").read_bytes()
    for name, content in (
        ("cut", whole[: len(whole) // 2]),
        ("head", whole[:9000]),
        ("none", whole[8:]),
        ("void", b""),
        ("holed", b"".join((whole[:2000], bytes(len(whole) // 3), whole[2000 + len(whole) // 3 :]))),
    ):
        (folder / f"{MARK}{name}.svs").write_bytes(content)
    rows += [(f"{MARK}{name}.svs", name) for name in ("no_mpp", "cut", "head", "none", "void", "holed", "not_there")]
    rows += [(".", "folder"), (f"{MARK}twice1.svs", "twice"), (f"{MARK}twice2.svs", "twice"), (f"{MARK}id.svs", "../x")]
    lines = [f"{path},{slide_id}" for path, slide_id in rows]
    (folder / "table.csv").write_text("\n".join(["path,slide_id", *lines, f"{MARK}line.svs,broken,", ""]))
    return folder


def texts_in(path: Path) -> Iterator[bytes]:
    """Everything readable in a file, unpacked as far as its format packs anything."""
    content = path.read_bytes()
    yield os.fsencode(path.name)
    yield content
    for encoded in re.findall(rb"base64,([A-Za-z0-9+/=]+)", content):
        yield base64.b64decode(encoded)
    match path.suffix:
        case ".gz":
            yield gzip.decompress(content)
        case ".h5":
            with h5py.File(path) as file:
                items: list[h5py.HLObject] = [file]
                file.visititems(lambda _, item: items.append(item))
                for item in items:
                    yield repr((item.name, dict(item.attrs))).encode()
                    if isinstance(item, h5py.Dataset):
                        yield item[()].tobytes()
        case ".png" | ".jpg" | ".jpeg":
            with Image.open(path) as picture:
                yield repr(picture.info).encode()
                yield repr(dict(picture.getexif())).encode()
        case ".parquet":
            table = pyarrow.parquet.read_table(path)
            yield repr(table.schema.metadata).encode()
            yield table.to_pandas().to_csv().encode()
        case _:
            pass


def hits(folder: Path, needles: list[str]) -> list[str]:
    """Files, by path, that hold any of the needles in any usual encoding; and pictures that show the label."""
    pattern = re.compile(b"|".join(re.escape(n.encode(code)) for n in needles for code in ("utf-8", "utf-16-le")))
    found: list[str] = []
    for path in sorted(folder.rglob("*")):
        is_hit = bool(pattern.search(os.fsencode(path.name)))
        if path.is_file():
            is_hit |= any(pattern.search(text) for text in texts_in(path))
            is_hit |= path.suffix in (".png", ".jpg", ".jpeg") and shows_label(path)
        found += [path.relative_to(folder).as_posix()] * is_hit
    return found


def shows_label(path: Path) -> bool:
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    return bool((np.abs(pixels - LABEL_COLOUR).max(axis=2) < 40).sum() > 20)


def run(capfd: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """A command's whole console, Python's and the libraries'."""
    assert main(list(words)) == code
    shown = capfd.readouterr()
    return shown.out + shown.err


def test_the_planted_marks_can_be_read_and_found(slides: Path, tmp_path: Path):
    """The other tests could not fail otherwise."""
    path = slides / f"{MARK}patient_0.svs"
    with openslide.OpenSlide(path) as slide:
        assert sum(MARK in value for value in slide.properties.values()) >= 10
        assert set(slide.associated_images) == {"label", "macro", "thumbnail"}
        slide.associated_images["label"].convert("RGB").save(tmp_path / "label.jpg")
        (tmp_path / "page.html").write_text(f"<img src='data:;base64,{base64.b64encode(MARK.encode()).decode()}'>")
    (tmp_path / "wide.bin").write_bytes(f"..{MARK}1".encode("utf-16-le"))
    (tmp_path / f"{MARK}.txt").touch()
    (tmp_path / "fine.txt").write_text("x")
    pd.DataFrame({"a": [MARK] * 99}).to_parquet(tmp_path / "t.parquet", compression="gzip")
    (tmp_path / "m.geojson.gz").write_bytes(gzip.compress(MARK.encode()))
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("x", data=np.frombuffer(MARK.encode() * 9, np.uint8), compression="gzip")
    assert hits(tmp_path, [MARK]) == [
        *("Qxz.txt", "f.h5", "label.jpg", "m.geojson.gz", "page.html", "t.parquet", "wide.bin")
    ]


@pytest.mark.pipeline
def test_no_output_of_any_command_says_more_than_the_ids(
    slides: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(slides)  # nor may the current folder be named
    table, out = "slides=table.csv", tmp_path / "out"
    shown = run(capfd, "extract", table, f"out={out / 'features'}", "threads=1", code=3)
    shown += run(capfd, "extract", table, f"out={out / 'features'}", "threads=1", code=3)
    assert len(list(out.rglob("*.h5"))) >= N_SLIDES
    shown += run(
        capfd, "verify", f"features={out / 'features'}", table, "check_slides=true", f"out={out / 'verify'}", code=3
    )
    shown += run(capfd, "prompts", "prompts=demo", f"out={out / 'bank'}")
    labels = tmp_path / "labels.csv"
    names = ("normal", "glandular")
    rows = [f"P{index},S{index},{names[index % 2]}" for index in range(N_SLIDES)]
    labels.write_text("\n".join(["patient_id,slide_id,label", *rows, ""]))
    shown += run(capfd, "split", f"labels={labels}", f"out={out / 'splits'}", "folds=2")
    (bank,) = (out / "bank").glob("*.safetensors")
    inputs = [f"features={out / 'features'}", f"bank={bank}"]
    shown += run(capfd, "zeroshot", *inputs, f"labels={labels}", f"out={out / 'zeroshot'}")
    split = f"split={out / 'splits' / 'kfold.csv'}"
    shown += run(capfd, "train", *inputs, split, "fold=0", f"out={out / 'runs'}", "trainer.max_epochs=1")
    bad = [f"{MARK}gone.svs,S0", f"{MARK}cut.svs,S1", f"{MARK}void.svs,S2", f"{MARK}no_mpp.svs,S3"]
    good = [f"{MARK}patient_{index}.svs,S{index}" for index in range(4, N_SLIDES)]
    (slides / "later.csv").write_text("\n".join(["path,slide_id", *bad, *good, ""]))
    (model,) = (path.parent for path in (out / "runs").glob("*/done.json"))
    maps = [f"run={model}", f"features={out / 'features'}", "slides=later.csv", f"out={out / 'maps'}"]
    maps += ["exports=[geojson,ome_tiff,asap,gallery,report]"]
    shown += run(capfd, "heatmap", *maps, "viewer=true", code=3)
    assert json.loads((out / "maps" / "summary.json").read_text())["failures"]
    asked = ["text=keratin", f"features={out / 'features'}", "slides=later.csv", f"out={out / 'hits'}"]
    shown += run(capfd, "search", *asked, code=3)
    assert json.loads((out / "hits" / "summary.json").read_text())["no_picture"]
    assert list((out / "maps").glob("*.png"))
    assert list((out / "maps").glob("*.gallery.html"))
    assert list((out / "maps" / "viewer").rglob("*.jpg"))
    assert list(out.rglob("*.parquet"))
    assert hits(out, [MARK]) == []
    assert MARK not in shown


@pytest.mark.pipeline
def test_with_pseudonyms_not_even_the_ids_are_said(
    slides: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(slides)
    out, names = tmp_path / "out", tmp_path / "private" / "names.csv"
    words = ["slides=.", f"pseudonymise={names}"]
    shown = run(capfd, "extract", *words, f"out={out}", "threads=1", code=3)
    shown += run(capfd, "verify", f"features={out}", *words, "check_slides=true", f"out={out / 'verify'}", code=3)
    assert hits(out, [MARK]) == []
    assert MARK not in shown
    given = pd.read_csv(names)
    assert set(given["slide_id"]) == {path.stem for path in slides.glob("*.svs")}
    done = {path.stem for path in out.rglob("*.h5")}
    assert done <= set(given["pseudonym"])
    assert len(done) >= N_SLIDES
    summary = json.loads((out / "verify" / "summary.json").read_text())
    assert {finding["slide_id"] for finding in summary["findings"]} <= set(given["pseudonym"])
    assert summary["orphaned"] == 0


def table_of(*ids: str) -> SlideTable:
    failure = SlideError(slide_id="'../x'", stage="table", cause="the id is bad", remedy="r", code="E-id")
    records = tuple(SlideRecord(slide_id=slide_id, path=Path(f"{slide_id}.svs")) for slide_id in ids)
    return SlideTable(records=records, failures=(failure,))


def test_pseudonyms_are_random_lasting_and_completed(tmp_path: Path):
    path = tmp_path / "names.csv"
    first = pseudonymise(table_of("a", "=b"), path, out=tmp_path / "out")
    again = pseudonymise(table_of("c", "=b", "a"), path, out=tmp_path / "out")
    assert [record.slide_id for record in again.records][:0:-1] == [record.slide_id for record in first.records]
    assert again.failures[0].slide_id == first.failures[0].slide_id
    ids = [record.slide_id for record in (*again.records, *again.failures)]
    assert all(re.fullmatch("S[0-9a-f]{10}", str(slide_id)) for slide_id in ids)
    assert len(set(ids)) == 4
    assert [str(record.path) for record in again.records] == ["c.svs", "=b.svs", "a.svs"]
    other = pseudonymise(table_of("a"), tmp_path / "other.csv", out=tmp_path / "out")
    assert other.records[0].slide_id != first.records[0].slide_id  # not derived from the id
    assert "\n'=b," in path.read_text()  # no formula, and yet the same id when it is read


def test_a_complete_table_of_pseudonyms_is_only_read(tmp_path: Path):
    path = tmp_path / "names.csv"
    path.write_text("slide_id,pseudonym\na,case 1\n'../x',case 2\n")
    before = sorted(tmp_path.iterdir())
    assert pseudonymise(table_of("a"), path, out=tmp_path / "out").records[0].slide_id == "case 1"
    assert sorted(tmp_path.iterdir()) == before


def test_workers_that_start_at_once_agree(tmp_path: Path):
    path, ids = tmp_path / "names.csv", [f"slide{number}" for number in range(50)]
    found: list[list[str]] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        barrier.wait(60)
        table = pseudonymise(table_of(*ids), path, out=tmp_path / "out")
        found.append([record.slide_id for record in table.records])

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    bounded.join(*workers, seconds=180)
    assert len(found) == 8
    assert all(names == found[0] for names in found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("slide_id,name\na,b\n", "expected the columns slide_id, pseudonym, got slide_id, name"),
        ("slide_id,pseudonym\na,x\na,y\n", "slide_id 'a' stands there 2 times"),
        ("slide_id,pseudonym\na,x\nb,X\n", "pseudonym 'x' stands there 2 times"),
        ("slide_id,pseudonym\na,../x\n", "the pseudonym of row 1 holds a path separator"),
        ("slide_id,pseudonym\na,\n", "the pseudonym of row 1 is empty"),
        ("slide_id,pseudonym\na,b\nb,c\n", "the pseudonym of row 1 is also a slide_id"),
        ("\udcff", "cannot be read as a CSV"),
    ],
)
def test_a_table_of_pseudonyms_that_would_mislead_is_refused(tmp_path: Path, content: str, message: str):
    path = tmp_path / "names.csv"
    path.write_bytes(os.fsencode(content))
    with pytest.raises(InputError, match=re.escape(message)):
        pseudonymise(table_of("a"), path, out=tmp_path / "out")


@pytest.mark.parametrize("name", ["names.csv", "deep/er/names.csv", "../out/names.csv", "link/names.csv"])
def test_the_table_of_pseudonyms_must_lie_outside_the_outputs(tmp_path: Path, name: str):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "link").symlink_to(out)
    path = tmp_path / name if name.startswith("link") else out / name
    with pytest.raises(InputError, match="lies inside out="):
        pseudonymise(table_of("a"), path, out=out)
    assert list(out.iterdir()) == []


PATH = Path("/data/Ward 7/Miller/Miller_1950.svs")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Miller_1950.svs is cut short", "X.svs is cut short"),
        ("cannot open /data/Ward 7/Miller/Miller_1950.svs: gone", "cannot open X.svs: gone"),
        ("no such file: 'Ward 7/Miller/Miller_1950.svs'", "no such file: 'X.svs'"),
        ("Miller_1950: 3 of 4; Miller has none; in Ward 7", "X: 3 of 4; X has none; in X"),
        ("Millers data at level-0 (3, 4)", "Millers data at level-0 (3, 4)"),  # other words
        ("one\nline\x1b[2J\udcff", "one\\nline\\x1b[2J\\udcff"),
    ],
)
def test_a_message_keeps_its_sense_and_loses_the_names(text: str, expected: str):
    assert redact(text, PATH, "X") == expected


@pytest.mark.parametrize("name", ["Müller.svs", "Mu\u0308ller.svs", "a\nb\udcff.svs", "$(x)[1].svs"])
def test_a_name_is_found_however_a_library_writes_it(name: str):
    path = Path("/data") / name
    for shown in (name, repr(name), ascii(name), str(path), repr(str(path))):
        said = redact(f"cannot open {shown}: gone", path, "X")
        assert re.fullmatch(r"cannot open '?X\.svs'?: gone", said), said


def test_the_redacted_id_is_not_taken_for_a_name():
    assert redact("Miller.svs, Miller", Path("/x/Miller.svs"), "case Miller") == "case Miller.svs, case Miller"
    assert redact("Miller.svs is empty", Path("/x/Miller.svs"), "Miller") == "Miller.svs is empty"


def test_a_suffix_that_is_a_name_goes_too():
    assert redact("Mary.Miller is a folder", Path("/x/Mary.Miller"), "X") == "X is a folder"


def test_a_folder_of_slides_has_the_ids_its_files_have(slides: Path):
    table = read_slide_table(slides / "table.csv")
    assert MARK not in "".join(str(error) for error in table.failures)  # a row is named by its line
