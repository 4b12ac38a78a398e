"""Quality control: a picture of each slide, a page of all of them, and which ones are striking."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image
from pyramids import tissue_pixels, write_slide

from feature_extraction.grid import Tiling
from feature_extraction.mpp import Mpp, MppRule
from feature_extraction.plan import PlanRules, plan_slide
from feature_extraction.qc import MAX_SIDE, OUTLINE, TILES, KeptTiles, qc_picture
from feature_extraction.qc_page import QcRow, outlier_reasons, qc_rows_table, render_qc_page, write_qc_page
from feature_extraction.segment import facts_in
from feature_extraction.slides import SlideRecord
from feature_extraction.tissue import TissueRule

MPP = Mpp(x=0.5, y=0.5, source="openslide")
NASTY = ("a#b?c%20d", '<b>"x"\'&', "javascript:alert(1)", "Präparat Nr 7 – Müller øst", "=1+1", "100%", "日本")


def kept_tiles(coords: list[tuple[int, int]], size: float, pixel: float = 16.0, n_grid: int = 100) -> KeptTiles:
    return KeptTiles(
        origin_lv0=(0, 0),
        pixel_lv0=(pixel, pixel),
        coords_lv0=np.array(coords, np.int64).reshape(-1, 2),
        size_lv0=(size, size),
        n_grid=n_grid,
        mpp=MPP,
    )


def pixels_of(jpeg: bytes) -> np.ndarray:
    picture = Image.open(io.BytesIO(jpeg))
    assert picture.format == "JPEG"
    return np.asarray(picture).astype(int)


def is_near(pixels: np.ndarray, colour: tuple[int, int, int], within: int = 60) -> np.ndarray:
    return np.abs(pixels - colour).max(axis=2) < within


@pytest.mark.parametrize("shape", [(1500, 1500), (3000, 200), (90, 4000), (1, 1), (1, 2000), (140, 160)])
def test_a_picture_of_any_slide_is_at_most_1024_wide_and_high(shape: tuple[int, int]):
    thumbnail = np.full((*shape, 3), 240, np.uint8)
    pixels = pixels_of(qc_picture(thumbnail, np.zeros(shape, bool), kept_tiles([], 256.0)))
    assert max(pixels.shape[:2]) <= MAX_SIDE
    assert min(pixels.shape[:2]) > 30


def test_a_picture_shows_the_slide_the_tissue_and_the_tiles_where_they_are():
    thumbnail = np.full((600, 800, 3), 240, np.uint8)
    thumbnail[100:400, 200:600] = (200, 120, 180)
    is_tissue = np.zeros((600, 800), bool)
    is_tissue[100:400, 200:600] = True
    tiles = [(16 * 250, 16 * 150), (16 * 400, 16 * 300)]  # 50 thumbnail pixels wide
    pixels = pixels_of(qc_picture(thumbnail, is_tissue, kept_tiles(tiles, 800.0)))
    assert pixels.shape == (630, 800, 3)
    assert is_near(pixels, (200, 120, 180))[200:290, 480:590].mean() > 0.95
    outline = is_near(pixels[:600], OUTLINE, within=40)
    assert outline[98:102, 210:590].any(axis=0).mean() > 0.95
    assert not outline[110:145, 210:590].any()
    line = tuple(int(0.75 * ink + 0.25 * stain) for ink, stain in zip(TILES, (200, 120, 180), strict=True))
    border = is_near(pixels[:600], line, within=40)
    for x, y in ((250, 150), (400, 300)):
        assert border[y - 1 : y + 2, x + 3 : x + 47].any(axis=0).mean() > 0.9
        assert border[y + 3 : y + 47, x + 49].mean() > 0.9
        assert not border[y + 5 : y + 45, x + 5 : x + 45].any()
    assert not border[110:140, 210:590].any()
    assert not border[420:].any()


def test_small_tiles_are_a_tint_that_leaves_the_tissue_visible():
    thumbnail = np.full((900, 900, 3), 200, np.uint8)
    coords = [(64 * x, 64 * y) for x in range(100) for y in range(50)]
    pixels = pixels_of(qc_picture(thumbnail, np.zeros((900, 900), bool), kept_tiles(coords, 64.0)))
    inside, outside = pixels[20:180, 20:380].mean(axis=(0, 1)), pixels[230:880].mean(axis=(0, 1))
    np.testing.assert_allclose(outside, 200, atol=2)
    np.testing.assert_allclose(inside, 200 * 0.78 + np.array(TILES) * 0.22, atol=3)


def test_the_line_below_says_how_many_tiles_and_whose_mpp():
    assert kept_tiles([(0, 0)], 256.0, n_grid=1234).caption() == "1 of 1,234 tiles · mpp 0.5 (openslide)"
    blank = np.full((300, 500, 3), 255, np.uint8)
    pixels = pixels_of(qc_picture(blank, np.zeros((300, 500), bool), kept_tiles([], 256.0)))
    assert (pixels[305:, :300] < 100).any()
    assert (pixels[:295] > 250).all()


def test_a_plan_brings_its_picture_and_its_figures(tmp_path: Path):
    path = write_slide(tmp_path / "S.svs", tissue_pixels(1280, 1024))
    tiling = Tiling(tile_px=128, tile_mpp=0.5, step_px=128)
    for rule in (TissueRule(), TissueRule(method="none")):
        plan = plan_slide(SlideRecord(slide_id="S", path=path), PlanRules(tiling=tiling, tissue=rule, mpp=MppRule()))
        facts = facts_in(plan.tissue)
        assert (facts.n_grid, facts.pen_share) == (80, 0.0)
        assert facts.tissue_share == (1.0 if rule.method == "none" else pytest.approx(0.5625, abs=0.06))
        assert is_near(pixels_of(plan.qc_jpeg), TILES, within=90).any()
        assert b"S.svs" not in plan.qc_jpeg
        assert b"Exif" not in plan.qc_jpeg


def rows_like(n: int, **fields: object) -> list[QcRow]:
    usual: dict[str, object] = {
        "status": "done", "n_tiles": 1000, "n_grid": 4000, "tissue_share": 0.4, "pen_share": 0.0, "slide_mpp": 0.25,
        "mpp_source": "openslide", "reader": "openslide",
    }  # fmt: skip
    return [QcRow(slide_id=f"S{i:02d}", **{**usual, **fields}) for i in range(n)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"status": "failed", "n_tiles": 0, "n_grid": None, "tissue_share": None, "slide_mpp": None, "mpp_source": "",
          "fault": "cause=…"}, "failed"),
        ({"status": "empty", "n_tiles": 0, "tissue_share": 0.0}, "empty"),
        ({"n_tiles": 20}, "few tiles"),
        ({"n_tiles": 90_000}, "many tiles"),
        ({"tissue_share": 0.001}, "hardly any tissue"),
        ({"tissue_share": 0.999}, "tissue nearly everywhere"),
        ({"pen_share": 0.5}, "much pen"),
        ({"mpp_source": "tiff"}, "mpp from tiff"),
        ({"slide_mpp": 0.5}, "mpp 0.5, most slides 0.25"),
    ],
)  # fmt: skip
def test_each_kind_of_striking_slide_is_named_and_no_other(fields: dict[str, object], reason: str):
    odd = QcRow(**{**vars_of(rows_like(1)[0]), **fields, "slide_id": "odd"})  # type: ignore[arg-type]
    reasons = outlier_reasons([*rows_like(12), odd])
    assert len(reasons["odd"]) == 1
    assert reason in reasons["odd"][0]
    assert not any(found for slide_id, found in reasons.items() if slide_id != "odd")


def vars_of(row: QcRow) -> dict[str, object]:
    return {name: getattr(row, name) for name in row.__slots__}


def test_ordinary_variation_is_not_striking():
    generator = np.random.default_rng(0)
    counts = np.exp(generator.normal(7, 0.6, 60)).astype(int)
    rows = [
        QcRow(**{**vars_of(row), "slide_id": f"S{i}", "n_tiles": int(n)})  # type: ignore[arg-type]
        for i, (row, n) in enumerate(zip(rows_like(60), counts, strict=True))
    ]
    assert not any(outlier_reasons(rows).values())
    thirds = [
        QcRow(**{**vars_of(row), "slide_id": f"{mpp}-{row.slide_id}"})  # type: ignore[arg-type]
        for mpp in (0.25, 0.5, 1.0)
        for row in rows_like(7, slide_mpp=mpp)
    ]
    assert not any(outlier_reasons(thirds).values())


class Page(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, text: str):
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.ids: list[str | None] = []
        self.tags: set[str] = set()
        self.csp = ""
        self.script = ""
        self._is_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self._is_script = tag == "script"
        if tag == "img":
            self.images.append(found)
        if tag == "article":
            self.ids.append(found["data-id"])
        if found.get("href"):
            self.links.append(found["href"] or "")
        if found.get("http-equiv") == "Content-Security-Policy":
            self.csp = found["content"] or ""

    def handle_data(self, data: str) -> None:
        self.script += data if self._is_script else ""

    def handle_endtag(self, tag: str) -> None:
        self._is_script = False


def test_the_page_shows_each_slide_by_a_relative_link_whatever_its_name(tmp_path: Path):
    (tmp_path / "qc").mkdir()
    for name in NASTY:
        (tmp_path / "qc" / f"{name}.jpg").write_bytes(name.encode())
    rows = [QcRow(slide_id=name, status="done", has_picture=True, fault=f"<i>{name}") for name in NASTY]
    write_qc_page(tmp_path, [*rows, QcRow(slide_id="lost", status="failed")])
    page = Page((tmp_path / "qc.html").read_text())
    assert sorted(str(name) for name in page.ids) == sorted([*NASTY, "lost"])
    found = []
    for image in page.images:
        parts = urlsplit(image["src"] or "")
        assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("", "", "", "")
        found.append((tmp_path / unquote(parts.path)).read_bytes().decode())
        assert image["loading"] == "lazy"
    assert sorted(found) == sorted(NASTY)
    assert sorted(page.links) == sorted(str(image["src"]) for image in page.images)
    assert not page.tags & {"b", "i"}


def test_only_the_pages_own_script_may_run():
    page = Page(render_qc_page([QcRow(slide_id="<script>alert(1)</script>", status="done", fault="</script>")]))
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.csp
    assert "default-src 'none'" in page.csp
    assert "alert" not in page.script
    assert not re.search(r"https?:", render_qc_page(rows_like(3)))


def test_striking_slides_come_first_and_failed_ones_before_them():
    rows = [*rows_like(12), QcRow(slide_id="Z", status="failed"), QcRow(slide_id="Y", status="empty")]
    rows.append(QcRow(**{**vars_of(rows[0]), "slide_id": "X", "n_tiles": 3}))  # type: ignore[arg-type]
    assert Page(render_qc_page(rows)).ids == ["Z", "Y", "X", *(f"S{i:02d}" for i in range(12))]


def test_a_page_without_a_slide_is_a_page():
    assert "0 slides" in render_qc_page([])
    assert len(qc_rows_table([])) == 0


def test_the_table_has_one_row_a_slide_and_no_formula():
    rows = [QcRow(slide_id="b", status="failed", fault="=HYPERLINK(1)"), *rows_like(1, slide_mpp=0.5)]
    table = qc_rows_table(rows)
    assert list(table.columns) == [
        "slide_id", "status", "n_tiles", "n_grid", "tissue_share", "pen_share", "slide_mpp", "mpp_source", "reader",
        "striking", "fault",
    ]  # fmt: skip
    lines = table.to_csv(index=False).splitlines()
    assert lines[1] == "S00,done,1000,4000,0.4,0.0,0.5,openslide,openslide,,"
    assert lines[2] == "b,failed,0,,,,,,,failed,'=HYPERLINK(1)"
