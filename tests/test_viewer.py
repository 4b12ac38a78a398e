"""The viewer's folder: every number with all its bits, text that stays text, and a picture of the right pixels."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyramids import tissue_pixels, write_slide
from viewer_files import CLASSES, EVIL, EVIL_CONCEPT, LAYERS, TILE, Maps, make_maps, maps_fixture  # noqa: F401

from feature_extraction.errors import DamagedFileError
from feature_extraction.files import sha256_of_file
from feature_extraction.slide import Slide
from mil.heatmap.layers import parquet_bytes
from mil.viewer.pyramid import OVERLAP_PX, TILE_PX, Pyramid, pyramid_within, tile_jpeg, tile_pixels
from mil.viewer.script import script_text
from mil.viewer.slide_data import decision

RELEASED = "14d587cd3ee7c4861f1a41077ce642029364a21029956ba635bd8fb1202cf9ad"
"""SHA-256 of build/openseadragon/openseadragon.min.js of the npm package openseadragon 6.1.1."""
TEXTS = st.text(alphabet=st.sampled_from("</script>&!-\u2028\u2029\\\"'\n]"), max_size=30)


def said(path: Path, name: str) -> dict:
    """The data of a script."""
    found = re.fullmatch(rf'"use strict";\nvar promptmil = .*?;\npromptmil\.{name} = (.*);\n', path.read_text())
    assert found
    return json.loads(found[1])


@settings(max_examples=60, derandomize=True, deadline=None)
@given(TEXTS)
def test_no_text_ends_its_script_or_its_line(text: str):
    script = script_text("slide", {"id": text, text: float("nan")})
    assert not set("<>&\u2028\u2029") & set(script)
    assert script.count("\n") == 3
    assert json.loads(script.split("promptmil.slide = ")[1].removesuffix(";\n")) == {"id": text, text: None} | (
        {"id": None} if text == "id" else {}
    )


def test_every_number_of_the_table_is_on_the_page_with_all_its_bits(maps: Maps):
    (scale,) = said(maps.viewer / "slides" / EVIL / "data.js", "slide")["scales"]
    for name in CLASSES:
        table = maps.table(EVIL, name)
        for layer in LAYERS:
            values = np.frombuffer(base64.b64decode(scale["layers"][name][layer]), "<f8")
            assert values.tobytes() == table[layer].to_numpy().tobytes()
        for axis in "xy":
            places = np.frombuffer(base64.b64decode(scale[axis]), "<i4")
            assert places.tolist() == table[f"{axis}_lv0"].tolist()
        assert bool(scale["shares"][name]) == (name == CLASSES[1])
    assert scale["size_lv0"] == [TILE, TILE]


def test_names_with_markup_are_in_no_page_and_in_scripts_only_escaped(maps: Maps):
    for path in maps.viewer.rglob("*"):
        if path.suffix in (".html", ".js", ".css") and path.name != "openseadragon.min.js":
            text = path.read_text()
            assert "onerror" not in text.replace(
                json.dumps(EVIL)[1:-1].replace("<", r"\u003c").replace(">", r"\u003e"), ""
            )
            assert "alert(" not in text or path.name in ("data.js", "slides.js")
    assert not list(maps.viewer.rglob("*.tmp*"))


def test_no_script_writes_markup():
    """What makes text from data into markup is nowhere in our scripts."""
    for path in (Path(__file__).parent.parent / "mil" / "viewer" / "page").glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function\(|fetch\(", path.read_text()
        )


def test_the_index_says_what_the_tables_say(maps: Maps):
    rows = said(maps.viewer / "slides.js", "slides")
    assert [row["slide_id"] for row in rows] == ["S1", "S2", EVIL]
    assert [row["predicted"] for row in rows] == [CLASSES[1], CLASSES[1], "normal"]
    assert [row["probability"] for row in rows] == [0.9, 0.7, 0.5]
    assert [row["agrees"] for row in rows] == [False, True, False]
    assert [row["tiles"] for row in rows] == [20] * 3
    assert [row["gain"] for row in rows] == [0.5, 0.6, 0.7]
    assert [row["stability"] for row in rows] == [None] * 3


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        ("predicted a (p = 0.93)", "a"),
        ("predicted A;B", "A;B"),
        ("risk 0.2", ""),
        ("predicted x (y) (p = 1.00)", "x (y)"),
    ],
)
def test_the_decision_is_read_from_the_prediction(predicted: str, expected: str):
    assert decision({"predicted": predicted}) == expected


@pytest.mark.parametrize(("width", "height"), [(1, 1), (510, 510), (511, 300), (1021, 4000), (99_999, 80_123)])
def test_the_tiles_of_each_level_cover_it_and_overlap_by_a_pixel(width: int, height: int):
    pyramid = Pyramid(bounds_lv0=(7, 9, width, height), factor=1)
    assert pyramid.size(pyramid.last_level) == (width, height)
    assert pyramid.grid(pyramid.first_level) == (1, 1)
    for level in range(pyramid.first_level, pyramid.last_level + 1):
        columns, rows = pyramid.grid(level)
        size = pyramid.size(level)
        assert max(size) <= 2**level
        assert pyramid.box(level, columns - 1, rows - 1)[2:] == size
        assert pyramid.box(level, 0, 0)[:2] == (0, 0)
        if columns > 1:
            assert pyramid.box(level, 0, 0)[2] - pyramid.box(level, 1, 0)[0] == 2 * OVERLAP_PX
        if rows > 1:
            assert pyramid.box(level, 0, 0)[3] - pyramid.box(level, 0, 1)[1] == 2 * OVERLAP_PX
        assert pyramid.holds(level, columns - 1, rows - 1)
        assert not pyramid.holds(level, columns, 0)
    assert not pyramid.holds(pyramid.last_level + 1, 0, 0)


def test_a_big_slide_gets_the_finest_picture_within_the_bound():
    bounds = (0, 0, 100_000, 80_000)
    pyramid = pyramid_within(bounds, 2000)
    assert pyramid.factor == 8
    assert pyramid.n_tiles() <= 2000 < Pyramid(bounds_lv0=bounds, factor=4).n_tiles()
    assert pyramid_within(bounds, 1).n_tiles() == 1
    assert pyramid_within((0, 0, 900, 900), 5).factor == 1


def test_the_tiles_of_a_picture_are_the_pixels_of_the_slide(tmp_path: Path):
    pixels = tissue_pixels(1300, 1100)
    path = write_slide(tmp_path / "s.svs", pixels, levels=(1,))
    with Slide("s", path) as slide:
        whole = Pyramid(bounds_lv0=(100, 60, 1101, 1001))
        for column in range(3):
            left, top, right, bottom = whole.box(whole.last_level, column, 1)
            expected = pixels[60 + top : 60 + bottom, 100 + left : 100 + right]
            np.testing.assert_array_equal(tile_pixels(slide, whole, whole.last_level, column, 1), expected)
        coarse = Pyramid(bounds_lv0=(100, 60, 1101, 1001), factor=4)
        found = tile_pixels(slide, coarse, coarse.last_level, 0, 0)
        assert found.shape == (251, 276, 3)
        block = pixels[60:64, 100:104].reshape(-1, 3).mean(axis=0)
        np.testing.assert_allclose(found[0, 0], block, atol=1)
        with Image.open(io.BytesIO(tile_jpeg(slide, whole, whole.last_level, 0, 0))) as picture:
            assert picture.size == (TILE_PX + OVERLAP_PX,) * 2


def test_a_page_that_is_there_is_kept_and_a_damaged_one_made_again(tmp_path: Path):
    maps = make_maps(tmp_path, ("S1", "S2"))
    files = {path: path.stat().st_mtime_ns for path in (maps.viewer / "slides").rglob("*") if path.is_file()}
    assert len(files) > 20
    maps.export()
    assert {path: path.stat().st_mtime_ns for path in files} == files
    damaged = maps.viewer / "slides" / "S2" / "picture" / "11" / "0_0.jpg"
    before = damaged.read_bytes()
    damaged.write_bytes(before[:-100])
    maps.export()
    assert damaged.read_bytes() == before
    kept = {path for path, changed in files.items() if path.stat().st_mtime_ns == changed}
    assert {path.relative_to(maps.viewer).parts[1] for path in kept} == {"S1"}


def test_a_smaller_bound_leaves_no_tile_of_the_bigger_picture(tmp_path: Path):
    maps = make_maps(tmp_path, ("S1",))
    folder = maps.viewer / "slides" / "S1"
    assert said(folder / "picture.js", "picture")["factor"] == 1
    maps.export(most_tiles=1)
    assert [path.name for path in folder.rglob("*.jpg")] == ["0_0.jpg"]
    assert said(folder / "picture.js", "picture")["factor"] == 4


def test_without_slides_there_are_pages_without_a_picture(tmp_path: Path):
    maps = make_maps(tmp_path, ("S1",), with_slides=False)
    assert said(maps.viewer / "slides" / "S1" / "picture.js", "picture") is None
    assert not list(maps.viewer.rglob("*.jpg"))


@pytest.mark.parametrize("about", [None, {"slide_id": "S1"}])
def test_a_table_that_does_not_say_what_it_is_is_refused(tmp_path: Path, about: dict[str, object] | None):
    maps = make_maps(tmp_path, ("S1",))
    table = maps.table("S1", CLASSES[0])
    if about is None:
        table.to_parquet(maps.out / "S1.tiles.parquet")
    else:
        (maps.out / "S1.tiles.parquet").write_bytes(parquet_bytes(table, about))
    with pytest.raises(DamagedFileError, match=r"slide=S1: S1\.tiles\.parquet is no tile table"):
        maps.export()


def test_the_vendored_script_is_the_released_one():
    vendor = Path(__file__).parent.parent / "mil" / "viewer" / "vendor"
    assert (vendor / "openseadragon.min.js").read_bytes().startswith(b"//! openseadragon 6.1.1\n")
    assert "Redistribution and use" in (vendor / "openseadragon.LICENSE.txt").read_text()
    assert sha256_of_file(vendor / "openseadragon.min.js") == RELEASED


def test_concepts_travel_with_their_figures(maps: Maps):
    (scale,) = said(maps.viewer / "slides" / "S1" / "data.js", "slide")["scales"]
    (concept,) = scale["concepts"]
    assert (concept["concept"], concept["contribution"], concept["change"]) == (EVIL_CONCEPT, 1.5, -0.25)
