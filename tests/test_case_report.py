"""The page of a case and the page of its tiles: nothing on them that the JSON, the map or the slide does not have."""

import base64
import io
import itertools
import json
import re
import string
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import bounded
import numpy as np
import pandas as pd
import pytest
from chromium import PROGRAM, browser_fixture  # noqa: F401 - the fixture is found by pytest
from map_cases import GEOMETRIES, drawn_map, explanation_of
from PIL import Image
from pyramids import write_slide

from feature_extraction.errors import InputError
from mil.heatmap.backdrop import Backdrop
from mil.heatmap.contributions import Explanation
from mil.heatmap.exports.case_report import MINUS, case_report
from mil.heatmap.exports.chosen import export_files, known_exports
from mil.heatmap.exports.gallery import gallery_html
from mil.heatmap.exports.mapped import Mapped
from mil.heatmap.exports.top_tiles import top_tiles

ODD_CLASS = "<b>a\nb/c</b> & 'd'"
ODD_SLIDE = '=1+1 <img src=x onerror="alert(1)">'
UNMEASURED = ("faithfulness", "stability", "prediction_set")
FIGURE = {"value": 0.12345, "random": -0.0004, "p": 0.0123}


def about(**changes: object) -> dict[str, object]:
    names = ("aopc", "gain", "sufficiency", "necessity", "smallest_k")
    figures = {name: dict(FIGURE) for name in names} | {"smallest_k": {"value": 17.0, "random": 123.0, "p": 1.0}}
    return {
        "predicted": "predicted alpha (p = 0.88)",
        "label": "beta",
        "learned_from": False,
        "run": "0123456789ab",
        "model": {"aggregator": "prompt", "init": "text", "sha256": "5" * 64},
        "encoder": "demo",
        "encoder_fingerprint": "7" * 64,
        "tile_mpp": [1.0],
        "licence": "Apache-2.0",
        "versions": {"promptmil": "0.1.0"},
        "faithfulness": {
            "layers": {"contribution": figures, "evidence": figures},
            "how": "closed form",
            "n_evidence": 3,
            "n_random": 99,
        },
        "stability": {
            "runs": 4,
            "rank_correlation": 0.98765,
            "probability": {"runs": 2, "low": 0.8749, "high": 0.91251},
        },
        "prediction_set": {"percent": 90, "classes": ["alpha", "beta"], "patients": 38},
        **changes,
    }


def concepts(n: int, name: str = "keratin pearls") -> pd.DataFrame:
    rows = [
        {
            "class": "alpha", "concept": f"{name} {number}", "contribution": 1.8456 - number, "tiles": number,
            "explained": "alpha", "change": np.nan if number == 0 else -0.12345, "random_change": 0.00049, "p": 0.05,
        }
        for number in range(n)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["class", "concept", "contribution", "tiles", "explained", "change",
                                       "random_change", "p"])  # fmt: skip


def mapped_of(explanation: Explanation | None = None, **changes: object) -> Mapped:
    found, place = drawn_map(GEOMETRIES["plain"], n_classes=3)
    explanation = explanation or found
    pixels = np.full((80, 100, 3), 220, np.uint8)
    given: dict[str, object] = {
        "explanation": explanation,
        "classes": ["alpha", "beta", "normal"],
        "shown": 0,
        "place": place,
        "region_share": 0.05,
        "backdrop": Backdrop(pixels=pixels, bounds_lv0=place.bounds_lv0, slide_mpp=0.5),
        "path": None,
        "concept_names": [],
        "concepts": concepts(3),
        "about": about(),
        **changes,
    }
    return Mapped(**given)


class Page(HTMLParser):
    """What stands on a page: elements with a key, and all other words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.keyed: list[tuple[str, str, str | None, str]] = []  # tag, key, value, words
        self.words, self.tags, self.sources, self.title = "", [], [], ""
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in ("img", "meta"):
            self._open.append((tag, dict(attrs)))
            if "data-key" in dict(attrs):
                self.keyed.append((tag, dict(attrs)["data-key"], dict(attrs).get("value"), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        within = [tag for tag, _ in self._open]
        if "data-key" in (self._open[-1][1] if self._open else {}):
            self.keyed[-1] = (*self.keyed[-1][:3], self.keyed[-1][3] + data)
        elif "title" in within:
            self.title += data
        elif "style" not in within:
            self.words += data


def at(content: object, key: str) -> object:
    for step in key.split("."):
        content = content[int(step)] if isinstance(content, list) else content[step]
    return content


def require_page_of(page: Page, content: dict[str, object]) -> None:
    """Every number and name of the page is that of the JSON, rounded to its digits."""
    assert page.keyed
    for tag, key, value, words in page.keyed:
        expected = at(content, key)
        if tag == "data":
            assert value == repr(expected)
            shown = words.replace(MINUS, "-")
            decimals = len(shown.split("e")[0].split(".")[1]) if "." in shown else 0
            exponent = int(shown.split("e")[1]) if "e" in shown else 0
            assert abs(float(shown) - expected) <= 0.5 * 10.0 ** (exponent - decimals) * (1 + 1e-9), key
        else:
            assert words
            assert str(expected).startswith(words), key
            if key not in ("model.sha256", "model.encoder_fingerprint"):
                assert words == str(expected)
    assert not set(page.words) & set(string.digits)  # there is no number that is not of the JSON
    assert page.title == f"{content['slide_id']}: case report"
    assert "script" not in page.tags
    assert all(source.startswith("data:image/") for source in page.sources)


def plain(content: dict[str, object]) -> dict[str, object]:
    """As somebody reads it from the file."""
    return json.loads(json.dumps(content, allow_nan=False))


@pytest.mark.parametrize("case", ["whole", "odd names", "nothing for it", "one tile", "nothing measured", "sparse"])
def test_every_number_of_the_page_is_in_the_json(case: str):
    found, _ = drawn_map(GEOMETRIES["plain"], n_classes=3)
    mapped = mapped_of()
    if case == "odd names":
        odd = replace(found, bag=replace(found.bag, slide_id=ODD_SLIDE))
        mapped = mapped_of(odd, classes=[ODD_CLASS, "beta", "normal"], concepts=concepts(9, ODD_CLASS))
    if case == "nothing for it":
        none = about(prediction_set={"percent": 90, "classes": [], "patients": 9})
        mapped = mapped_of(explanation_of(found.bag, -np.abs(found.evidence)), about=none)
    if case == "one tile":
        bag = replace(found.bag, coords_lv0=found.bag.coords_lv0[:1], features=found.bag.features[:1])
        mapped = mapped_of(explanation_of(bag, found.evidence[:1]), about=about(faithfulness=None))
    if case == "nothing measured":
        bare = concepts(2)[["class", "concept", "contribution", "tiles"]]
        mapped = mapped_of(concepts=bare, about=about(faithfulness=None, stability=None, label=""))
        kept = {name: value for name, value in mapped.about.items() if name not in UNMEASURED}
        mapped = replace(mapped, about=kept)
    if case == "sparse":
        weights = np.zeros((len(found.bag), 1))
        weights[:2] = 0.5
        mapped = mapped_of(explanation_of(found.bag, found.evidence, weights), shown=1, about=about(learned_from=True))
    content, text = case_report(mapped)
    page = Page(text)
    require_page_of(page, plain(content))
    keys = [key for _, key, _, _ in page.keyed]
    n_for = sum(key.startswith("top_tiles.for.") and key.endswith(".value") for key in keys)
    assert n_for == {"nothing for it": 0, "one tile": int(found.evidence[0, 0] > 0)}.get(case, 7)
    assert ("No tile speaks for it." in page.words) == (n_for == 0)
    assert "faithfulness.figures.aopc.p" in keys or case in ("one tile", "nothing measured")
    assert "concepts.0.contribution" in keys
    assert content["map"]["layer"] == ("evidence" if case == "sparse" else "contribution")
    assert ("proves nothing" in page.words) == (case == "sparse")
    assert ("Classes that fit the patient: none" in page.words) == (case == "nothing for it")


def test_the_check_of_the_page_finds_a_wrong_number():
    """The test above could not fail otherwise."""
    content, text = case_report(mapped_of())
    require_page_of(Page(text), plain(content))
    for old, new in ((">0.988</data>", ">0.989</data>"), (">0.99</data>", ">0.98</data>"), ("</footer>", "7</footer>"),
                     ('value="0.98765"', 'value="0.98764"'), (">beta</span>", ">bet</span>")):  # fmt: skip
        if old in text:
            with pytest.raises(AssertionError):
                require_page_of(Page(text.replace(old, new)), plain(content))
    changed = plain(content)
    changed["stability"]["rank_correlation"] = 0.98
    with pytest.raises(AssertionError):
        require_page_of(Page(text), changed)


def test_the_map_shows_the_sum_that_gives_the_logit_and_the_strongest_concepts_first():
    content, _ = case_report(mapped_of(concepts=concepts(9)))
    said = content["map"]
    assert said["contributions"] + said["other_magnification"] + said["bias"] == pytest.approx(said["logit"])
    sizes = [abs(row["contribution"]) for row in content["concepts"]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 9
    assert next(row for row in content["concepts"] if row["tiles"] == 0)["change"] is None


def painted(tmp_path: Path) -> tuple[Mapped, np.ndarray]:
    """A slide whose tiles have a colour each, and a map of it."""
    found, place = drawn_map(GEOMETRIES["plain"], n_classes=3, share=1.0)
    pixels = np.full((800, 1000, 3), 255, np.uint8)
    colours = np.random.default_rng(3).integers(20, 235, (len(found.bag), 3)).astype(np.uint8)
    for (x, y), colour in zip(found.bag.coords_lv0, colours, strict=True):
        pixels[y : y + 128, x : x + 128] = colour
    path = write_slide(tmp_path / "S1.svs", pixels, mpp="0.5", levels=(1,))
    return mapped_of(found, path=path, place=place, concepts=concepts(9)), colours


def colour_of(url: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))) as picture:
        return np.asarray(picture.convert("RGB"))[60:160, 60:160].reshape(-1, 3).mean(axis=0)


def test_the_pictures_of_the_strongest_tiles_are_the_slides(tmp_path: Path):
    mapped, colours = painted(tmp_path)
    text = gallery_html(mapped)
    assert text is not None
    pictures = [source for source in Page(text).sources if source]
    values = mapped.explanation.contribution
    expected = [row for column in range(3) for sign in (-1, 1) for row in np.argsort(sign * values[:, column])[:12]]
    assert len(pictures) == len(expected)
    for url, row in zip(pictures, expected, strict=True):
        np.testing.assert_allclose(colour_of(url), colours[row], atol=4)
    content, page = case_report(mapped)
    in_page = [source for source in Page(page).sources if source and source.startswith("data:image/jpeg")]
    for url, row in zip(in_page, [*np.argsort(-values[:, 0])[:7], *np.argsort(values[:, 0])[:7]], strict=True):
        np.testing.assert_allclose(colour_of(url), colours[row], atol=4)
    assert content["top_tiles"]["for"][0]["value"] == values[:, 0].max()
    for number in re.findall(r"contribution <b>([-+.\de]+)</b>", text):
        assert np.abs(values - float(number)).min() <= 0.005


def test_tiles_over_a_stronger_one_are_not_shown_beside_it():
    explanation, place = drawn_map(GEOMETRIES["overlap"], n_classes=3)
    tiles = top_tiles(mapped_of(explanation, place=place), 0, "for", 12, None)
    corners = np.array([[tile.x_lv0, tile.y_lv0] for tile in tiles])
    gaps = np.abs(corners[:, None] - corners[None])[~np.eye(len(tiles), dtype=bool)]
    assert (gaps.max(axis=1) >= 127).all()
    assert tiles[0].value == explanation.contribution[:, 0].max()
    assert [tile.rank for tile in tiles] == list(range(1, 13))
    assert all(before.value >= after.value > 0 for before, after in itertools.pairwise(tiles))


def test_odd_names_are_text_in_the_gallery_and_without_a_slide_there_is_none(tmp_path: Path):
    mapped, _ = painted(tmp_path)
    odd = replace(mapped.explanation, bag=replace(mapped.explanation.bag, slide_id=ODD_SLIDE))
    text = gallery_html(replace(mapped, explanation=odd, classes=[ODD_CLASS, "beta", "normal"]))
    assert text is not None
    page = Page(text)
    assert ODD_SLIDE in page.words
    assert ODD_CLASS in page.words
    assert all(source.startswith("data:image/jpeg") for source in page.sources)
    assert gallery_html(replace(mapped, path=None)) is None
    assert export_files(["gallery"], replace(mapped, path=None)) == {}


@pytest.mark.xdist_group("chromium")
@pytest.mark.usefixtures("browser")  # which installs it, or says why it cannot
def test_the_fullest_page_prints_on_one_sheet_of_a4(tmp_path: Path):
    mapped, _ = painted(tmp_path)
    long = "W" * 190
    full = replace(mapped.explanation, bag=replace(mapped.explanation.bag, slide_id=long))
    names = ["squamous cell carcinoma of the lung", *(f"class {number}" for number in range(8))]
    n_tiles = len(full.bag)
    wide = {
        name: np.repeat(getattr(full, name)[:, :1], 9, axis=1) for name in ("contribution", "evidence", "attention")
    }
    zeros = np.ones(9)
    full = replace(full, **wide, logits=zeros, bias=zeros, probabilities=zeros / 9, elsewhere=zeros)
    full = replace(full, concept_of_tile=np.zeros(n_tiles, np.int64))
    mapped = replace(
        mapped,
        explanation=full,
        classes=names,
        concept_names=[("alpha", "keratinization with intercellular bridges")],
        concepts=concepts(9, "keratinization with intercellular bridges"),
        about=about(
            learned_from=True,
            predicted=f"predicted {names[0]} (p = 0.88)",
            label=names[0],
            prediction_set={"percent": 90, "classes": names[:3], "patients": 38},
        ),
    )
    _, text = case_report(mapped)
    (tmp_path / "page.html").write_text(text)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    words = [PROGRAM, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--no-pdf-header-footer"]
    bounded.run([*words, f"--print-to-pdf={tmp_path / 'page.pdf'}", (tmp_path / "page.html").as_uri()], check=True)
    data = (tmp_path / "page.pdf").read_bytes()
    assert len(re.findall(rb"/Type\s*/Page\b", data)) == 1
    assert re.search(rb"/MediaBox\s*\[\s*0 0 59[45][.\d]* 84[12]", data)


def test_an_export_that_is_not_there_is_refused_and_others_come_once():
    assert known_exports(["report", "geojson", "report"]) == ("geojson", "report")
    assert known_exports([]) == ()
    with pytest.raises(InputError, match="exports: pdf not known; expected some of geojson, ome_tiff"):
        known_exports(["geojson", "pdf"])


def test_each_export_has_its_files(tmp_path: Path):
    mapped, _ = painted(tmp_path)
    every = known_exports(["geojson", "ome_tiff", "asap", "gallery", "report"])
    assert list(export_files(every, mapped)) == [
        ".tiles.geojson.gz",
        ".regions.geojson.gz",
        ".ome.tiff",
        ".asap.xml",
        ".gallery.html",
        ".report.json",
        ".report.html",
    ]
    assert export_files((), mapped) == {}
