"""Search over a cohort: what is planted comes first, block by block as at once, and a bad file costs itself."""

import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bags import rows
from PIL import Image
from scipy.special import logsumexp
from test_store import HEADER

import feature_extraction.stored_rows
from feature_extraction.errors import DamagedFileError, InputError
from feature_extraction.store import FeatureRows, write_features
from mil.cli import _as_plain_keys, main
from mil.feature_folder import NO_TISSUE, FeatureFolder
from mil.search.files import FOLDER, open_searched, read_noted, require_rows, write_noted
from mil.search.page import ShownHit, contact_sheet_png, page_html
from mil.search.queries import query_of_tile
from mil.search.scan import Found, Limits, search
from mil.search.scores import Histogram, Queries, best_apart, score

DIM = 16
SIZE = 192
LIMITS = Limits(hits=6, per_patient=2)


def write(folder: Path, slide_id: str, features: np.ndarray, **header: object) -> Path:
    """A slide of ten tiles a row that touch and do not overlap."""
    n = len(features)
    tiles = FeatureRows(
        spaces={"joint": features.astype(np.float16)},
        coords_lv0=np.stack([np.arange(n) % 10, np.arange(n) // 10], axis=1).astype(np.int64) * SIZE,
        tissue_fraction=np.ones(n, np.float32),
        failed_coords_lv0=np.empty((0, 2), np.int64),
    )
    write_features(folder / f"{slide_id}.h5", replace(HEADER, slide_id=slide_id, **header), tiles)
    return folder / f"{slide_id}.h5"


def queries(n: int = 1, n_others: int = 3) -> Queries:
    words = np.linalg.qr(rows(n + n_others, seed=5, dim=DIM).astype(np.float64).T)[0].T
    return Queries(names=tuple(f"q{i}" for i in range(n)), vectors=words[:n], competitors=words[n:], scale=20.0)


def ask(path: Path, wanted: Queries, limits: Limits = LIMITS, patients: dict[str, str] | None = None) -> Found:
    """What the command does between reading its keys and writing the hits."""
    folder = FeatureFolder(path)
    noted = read_noted(folder, "joint")
    reopen = partial(open_searched, folder, space="joint", noted=noted)
    found = search(
        folder.slide_ids(),
        lambda slide_id, is_trusted: reopen(slide_id, is_trusted=is_trusted),
        wanted,
        limits,
        patients=patients or {},
    )
    write_noted(folder, "joint", {name: file.noted for name, file in found.files.items()})
    return found


def planted(folder: Path, n_slides: int = 6) -> Queries:
    """Random tiles, and in slide k the tiles 0 to k are the nearer to the phrase the larger k is."""
    wanted = queries()
    words = np.concatenate([wanted.vectors, wanted.competitors])
    for slide in range(n_slides):
        features = rows(30, seed=slide, dim=DIM)
        noise = features[: slide + 1] - features[: slide + 1] @ words.T @ words  # is like none of the words
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        features[: slide + 1] = wanted.vectors[0] + 0.1 * (n_slides - slide) * noise
        write(folder, f"S{slide}", features * 3, normalized=False)
    return wanted


def flip(path: Path, offset: int) -> None:
    """One bit of a file, as if nobody had touched it."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_planted_tiles_come_first_and_no_patient_has_more_than_its_share(tmp_path: Path):
    wanted = planted(tmp_path)
    found = ask(tmp_path, wanted)
    assert all(hit.row <= int(hit.slide_id[1:]) for hit in found.hits)
    assert [hit.slide_id for hit in found.hits] == ["S5", "S5", "S4", "S4", "S3", "S3"]
    assert [hit.rank for hit in found.hits] == [1, 2, 3, 4, 5, 6]
    of_one = ask(tmp_path, wanted, patients=dict.fromkeys(("S5", "S4"), "P"))
    assert [hit.slide_id for hit in of_one.hits] == ["S5", "S5", "S3", "S3", "S2", "S2"]
    more = ask(tmp_path, wanted, Limits(hits=1000, per_patient=100))
    assert len(more.hits) == more.n_tiles == 180


@pytest.mark.parametrize("n_others", [0, 3])
@pytest.mark.parametrize("is_unit", [True, False])
def test_block_by_block_is_what_all_at_once_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_others: int, *, is_unit: bool
):
    monkeypatch.setattr(feature_extraction.stored_rows, "BLOCK_BYTES", 1000)  # 31 rows
    features = rows(500, seed=1, dim=DIM) * (1 if is_unit else np.linspace(0.1, 9, 500)[:, None])
    write(tmp_path, "S", features, normalized=is_unit)
    wanted = queries(2, n_others)
    file = open_searched(FeatureFolder(tmp_path), "S", "joint", {})
    assert file.rows.rows_a_block == 31
    found = score(file, wanted)
    stored = features.astype(np.float16).astype(np.float64)
    unit = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    logits = wanted.scale * unit @ np.concatenate([wanted.vectors, wanted.competitors]).T
    expected = logits[:, :2] - logsumexp(logits[:, 2:], axis=1, keepdims=True) if n_others else logits[:, :2] / 20
    np.testing.assert_allclose(found, expected.T, atol=2e-2 if is_unit and n_others else 2e-3)  # half a step of float16


def test_a_file_that_ends_before_its_rows_do_is_damaged_not_read_on(tmp_path: Path):
    write(tmp_path, "S", rows(300, seed=1, dim=DIM))
    place = open_searched(FeatureFolder(tmp_path), "S", "joint", {}).rows
    longer = replace(place, n_tiles=100_000)
    for read in (lambda: list(longer.blocks()), lambda: longer.rows(0, 100_000)):
        with pytest.raises(DamagedFileError, match=r"S\.h5: shorter than it was"):
            read()
    first = np.concatenate([block.copy() for _, block in place.blocks()])
    assert np.array_equal(first, place.rows(0, 300))


def test_a_percentile_is_the_share_of_tiles_below():
    margins = np.random.default_rng(0).normal(0, 5, (2, 20_000)).astype(np.float32)
    histogram = Histogram(2, 40.0)
    for part in np.array_split(margins, 7, axis=1):
        histogram.add(part)
    for value in (-60.0, -7.0, 0.0, 5.0, float(margins[1].max())):
        assert histogram.percentile(1, value) == pytest.approx(100 * (margins[1] < value).mean(), abs=0.02)
    assert histogram.percentile(1, float(margins[1].max())) < 100


def test_of_overlapping_tiles_only_the_best_is_kept():
    generator = np.random.default_rng(2)
    coords = generator.integers(0, 3000, (400, 2))
    margins = generator.integers(0, 50, 400).astype(np.float32)  # many are equal
    for n_wanted, taken in ((1, []), (5, []), (500, []), (5, [7, 8])):
        kept = list(taken)
        for row in sorted(range(400), key=lambda row: (-margins[row], row)):
            is_apart = all((np.abs(coords[row] - coords[other]) >= (150, 200)).any() for other in kept)
            if is_apart and len(kept) < n_wanted + len(taken):
                kept.append(row)
        assert best_apart(margins, n_wanted, coords, (150.0, 200.0), taken).tolist() == kept[len(taken) :]


def test_overlapping_tiles_of_a_slide_are_one_hit(tmp_path: Path):
    wanted = queries()
    features = rows(30, seed=0, dim=DIM)
    features[[3, 4, 5]] = wanted.vectors[0]
    write(tmp_path, "S", features, tile_size_lv0=f"[{SIZE * 1.5}, {SIZE * 1.5}]")
    first, second = ask(tmp_path, wanted, Limits(hits=2, per_patient=2)).hits
    assert (first.row, second.row) == (3, 5)


def test_a_later_search_maps_what_was_checked_and_checks_what_has_changed(tmp_path: Path):
    wanted = planted(tmp_path)
    before = ask(tmp_path, wanted)
    folder = FeatureFolder(tmp_path)
    noted = read_noted(folder, "joint")
    assert sorted(noted) == folder.slide_ids()
    assert open_searched(folder, "S1", "joint", noted).expected is None
    assert open_searched(folder, "S1", "joint", noted, is_trusted=False).expected is not None
    assert ask(tmp_path, wanted).hits == before.hits
    write(tmp_path, "S2", rows(30, seed=77, dim=DIM), normalized=False)  # as long as before
    assert open_searched(folder, "S2", "joint", noted).expected is not None
    write(tmp_path, "S1", rows(9, seed=77, dim=DIM))
    assert open_searched(folder, "S1", "joint", noted).rows.n_tiles == 9
    assert ask(tmp_path, wanted).n_tiles == before.n_tiles - 21
    (tmp_path / FOLDER / "joint.json").write_text("{")
    assert ask(tmp_path, wanted).n_tiles == before.n_tiles - 21


def test_a_damaged_file_costs_its_slide_also_after_it_was_noted(tmp_path: Path):
    wanted = planted(tmp_path)
    write(tmp_path, "empty", np.empty((0, DIM)))
    path = tmp_path / "S5.h5"
    offset = open_searched(FeatureFolder(tmp_path), "S5", "joint", {}).rows.offset
    expected = [hit.slide_id for hit in ask(tmp_path, wanted).hits]
    flip(path, offset + 3)  # what the record says of the file still holds
    with pytest.raises(DamagedFileError, match="checksums"):
        require_rows(open_searched(FeatureFolder(tmp_path), "S5", "joint", {}), [0])
    for _ in range(2):  # found by its hits, then because it is not in the record any more
        found = ask(tmp_path, wanted)
        assert [hit.slide_id for hit in found.hits] == [*expected[2:], "S2", "S2"]
        assert "checksums" in found.unused["S5"]
        assert found.unused["empty"] == NO_TISSUE


def test_values_that_are_not_finite_cost_the_slide(tmp_path: Path):
    wanted = planted(tmp_path)
    features = rows(30, seed=0, dim=DIM)
    features[4, 2] = np.nan
    write(tmp_path, "S5", features)
    found = ask(tmp_path, wanted)
    assert list(found.unused) == ["S5"]
    assert "not finite" in found.unused["S5"]
    assert found.hits[0].slide_id == "S4"


def test_tiles_like_a_tile_are_found_and_not_itself(tmp_path: Path):
    planted(tmp_path)
    wanted = query_of_tile(FeatureFolder(tmp_path), f"S5:{SIZE},0", "joint")
    found = ask(tmp_path, wanted, Limits(hits=8, per_patient=5))
    assert {(hit.slide_id, hit.row) for hit in found.hits[:5]} == {("S5", row) for row in (0, 2, 3, 4, 5)}
    assert found.hits[0].margin > 0.95
    with pytest.raises(InputError, match=r"no tile with this top-left corner; the nearest is at 192,0"):
        query_of_tile(FeatureFolder(tmp_path), "S5:190,3", "joint")
    with pytest.raises(InputError, match="expected <slide_id>:<x_lv0>,<y_lv0>"):
        query_of_tile(FeatureFolder(tmp_path), "S5", "joint")


def test_the_page_shows_names_as_text_and_fetches_nothing():
    bad = "<img src=x onerror=alert(1)>\"'&"
    pixels = np.full((8, 8, 3), 200, np.uint8)
    hit = ShownHit(rank=1, slide_id=bad, patient_id=bad, x_lv0=1, y_lv0=2, score=0.5, percentile=99.9, pixels=pixels)
    found = {bad: [hit, replace(hit, pixels=None)], "玻片 $x^2$\n\x07": [hit] * 9}
    page = page_html(found, score_name="p", notes=[bad])
    assert "<img src=x" not in page
    assert page.count("&lt;img src=x") >= 6
    assert set(re.findall(r'(?:src|href)="([^"]{5})', page)) == {"data:"}
    assert "default-src 'none'" in page
    sheet = contact_sheet_png(found, score_name="p", notes=[bad])
    assert sheet.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "text", ["keratin pearls", 'cells, with "halo" (clear) [x] {y: 1} = 5%', "tumour's edge", "a\\", "C:\\x'", "it''s"]
)
def test_words_are_taken_as_they_are_typed(text: str):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (word,) = _as_plain_keys(f"text={text}")
    assert OverridesParser.create().parse_override(word).value() == text
    assert _as_plain_keys("text=[a, b]") == ["text=[a, b]"]


def test_words_of_another_encoder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    planted(tmp_path / "features")
    words = ["search", "text=keratin", f"features={tmp_path / 'features'}", f"out={tmp_path / 'out'}"]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert re.search(r"encoder=demo \([0-9a-f]{8}\): the features are of demo \(eeeeeeee\)", message)
    assert main([*words, "like=S1:0,0"]) == 2
    assert "either text=" in capsys.readouterr().err
    assert not (tmp_path / "out" / "hits.csv").exists()


def test_the_command_lists_tiles_like_a_tile_for_each_patient(tmp_path: Path):
    planted(tmp_path / "features")
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,patient_id\nS4,P1\nS5,P1\nS3,=P2\nS9,P3\n")
    words = ["search", f"like=S5:{SIZE},0", f"features={tmp_path / 'features'}", f"out={tmp_path / 'out'}"]
    assert main([*words, f"labels={labels}", "per_patient=2", "hits=3"]) == 3  # there is no S9
    table = pd.read_csv(tmp_path / "out" / "hits.csv", dtype=str)
    assert table["patient_id"].tolist() == ["P1", "P1", "'=P2"]
    assert pd.read_parquet(tmp_path / "out" / "hits.parquet")["patient_id"].tolist() == ["P1", "P1", "=P2"]
    damaged = tmp_path / "features" / "S3.h5"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert main([*words, "hits=3"]) == 3
    assert {path.name for path in (tmp_path / "out").glob("hits*")} == {"hits.csv", "hits.parquet"}
    for bad in ("like=S5:1,1", "like=S5", "hits=0", "space=other"):
        assert main([*words, bad]) == 2


@pytest.mark.pipeline
def test_words_find_the_drawn_lesions(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from feature_extraction.synthetic.cohort import make_cohort
    from mil.heatmap.contributions import auc_against
    from mil.heatmap.truth import covered_fraction, read_regions

    cohort = make_cohort(tmp_path / "cohort", n_patients=3, seed=3)
    assert main(["extract", f"slides={cohort.slides}", f"out={tmp_path / 'features'}", "qc=false"]) == 0
    out = tmp_path / "hits"
    words = ["search", "text=[keratin pearls,tumour glands]", f"features={tmp_path / 'features'}", f"out={out}"]
    labelled = [f"labels={cohort.labels}", f"slides={cohort.slides}"]
    assert main([*words, "hits=100000", "per_patient=100000"]) == 0
    table = pd.read_parquet(out / "hits.parquet")
    first = table[table["query"] == "keratin pearls"]
    label = pd.read_csv(cohort.labels, dtype=str).set_index("slide_id")["label"]
    covered = np.zeros(len(first))
    for slide_id in set(first["slide_id"]) & set(label.index[label == "keratinizing"]):
        is_of = (first["slide_id"] == slide_id).to_numpy()
        corners = first.loc[is_of, ["x_lv0", "y_lv0"]].to_numpy()
        region = read_regions(cohort.truth / f"{slide_id}.geojson")
        covered[is_of] = covered_fraction(region, corners, (192.0, 192.0))
    assert auc_against(first["margin"].to_numpy(dtype=float), covered >= 0.5) >= 0.98
    assert (covered[:5] > 0).all()
    np.testing.assert_allclose(first["percentile"], 100 * (len(first) - first["rank"]) / len(first), atol=0.5)
    assert main([*words, *labelled, "hits=8", "per_patient=2"]) == 0
    few = pd.read_parquet(out / "hits.parquet")
    assert few.groupby(["query", "patient_id"]).size().max() == 2
    with Image.open(out / "contact_sheet.png") as sheet:
        assert np.asarray(sheet).std() > 10
    page = (out / "hits.html").read_text()
    assert page.count("data:image/jpeg;base64,") == len(few) == 12
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in out.iterdir() if path.is_file())
    (cohort.slides / f"{few['slide_id'][0]}.svs").write_bytes(b"cut")
    assert main([*words, *labelled, "hits=8", "per_patient=2"]) == 3
    assert "no picture" in (out / "hits.html").read_text()
    assert str(tmp_path) not in capsys.readouterr().err.split("no picture:")[1]
    assert main([*words, "hits=8"]) == 0
    assert not (out / "hits.html").exists()
