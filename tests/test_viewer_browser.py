"""The viewer in a real Chromium, from files: what it shows, what it asks for, and how it is used."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from chromium import LeftPageError, Page, browser_fixture, page_fixture  # noqa: F401 - found by pytest
from test_viewer_server import Server
from viewer_files import (  # noqa: F401 - the fixture is found by pytest
    CLASSES,
    EVIL,
    EVIL_CLASS,
    EVIL_CONCEPT,
    LAYERS,
    MPP,
    TILE,
    Maps,
    make_maps,
    maps_fixture,
)

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("chromium")]
VISIBLE = "stage.osd.viewport.getBounds(true)"


def open_slide(page: Page, maps: Maps, slide_id: str = "S1") -> None:
    page.open(maps.url(slide_id))
    page.until("stage.isReady")
    page.settled(f"{VISIBLE}.x")


def corner(page: Page, tile: pd.Series) -> tuple[float, float, float]:
    """Where a tile lies on the screen: its left and upper edge, and its side, in pixels."""
    script = f"""(() => {{ const p = stage.placement(); const b = byId('stage').getBoundingClientRect();
        return [b.x + p.x({tile["x_lv0"]}), b.y + p.y({tile["y_lv0"]}), {TILE} * p.ratio]; }})()"""
    x, y, side = page.run(script)  # type: ignore[misc]
    return x, y, side


def test_every_page_opens_from_a_file_without_a_complaint_or_a_network(page: Page, maps: Maps):
    page.open((maps.viewer / "index.html").as_uri())
    for slide_id in ("S1", EVIL):
        open_slide(page, maps, slide_id)
        page.until("[...document.querySelectorAll('.tops canvas')].every(c => c.width === CROP_PX)")
    assert page.complaints() == []
    asked = page.requests()
    assert any("/picture/" in url for url in asked)
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    assert all(url.startswith((maps.viewer.as_uri(), "data:,")) for url in asked)


def test_what_the_page_must_not_load_is_stopped_by_its_policy(page: Page, maps: Maps):
    open_slide(page, maps)
    blocked = """(async () => { const heard = [];
        document.addEventListener('securitypolicyviolation', (e) => heard.push(e.effectiveDirective));
        try { await fetch('http://127.0.0.1:9/x'); } catch { heard.push('fetch failed'); }
        const image = new Image(); image.src = 'http://127.0.0.1:9/x.png'; await image.decode().catch(() => 0);
        const made = document.createElement('div'); made.innerHTML = '<img src=x onerror="globalThis.ran = 1">';
        document.body.append(made); await new Promise((r) => setTimeout(r, 300));
        return [heard.includes('connect-src'), heard.includes('img-src'), globalThis.ran === undefined]; })()"""
    assert page.run(blocked) == [True, True, True]
    assert not [url for url in page.requests() if url.startswith("http") and "127.0.0.1:9" not in url]


def test_a_page_that_is_left_before_it_answers_is_waited_for(page: Page, maps: Maps):
    """Of the tests' own browser: a wait that begins on one page goes on upon the next."""
    page.open((maps.viewer / "index.html").as_uri())
    with pytest.raises(LeftPageError):
        page.run(f"new Promise(() => {{ location.href = {json.dumps(maps.url('S1'))} }})")
    page.until("document.getElementById('slide_id') && stage.isReady")


def test_a_name_with_markup_is_shown_as_text(page: Page, maps: Maps):
    page.open((maps.viewer / "index.html").as_uri())
    page.until("document.querySelectorAll('#rows tr').length === 3")
    assert page.run("[...document.querySelectorAll('#rows td:first-child')].map((c) => c.textContent)") == [
        "S1",
        "S2",
        EVIL,
    ]
    assert page.text("#rows tr td:nth-child(2)") == f"{EVIL_CLASS}differs"
    page.run("document.querySelectorAll('#rows a')[2].click()")
    page.until("document.getElementById('slide_id') && document.readyState === 'complete' && stage.isReady")
    assert page.text("#slide_id") == EVIL
    assert page.text("#class option:checked") == EVIL_CLASS
    assert EVIL_CONCEPT in page.text("#concepts")
    assert page.run("[...byId('layer').options].at(-1).textContent") == f"Concept “{EVIL_CONCEPT}”"
    assert page.run("document.title").startswith(f"{EVIL}: ")  # type: ignore[attr-defined]
    assert page.run("document.querySelectorAll('img, b b, i, script:not([src])').length") == 0
    assert page.complaints() == []


def numbers(page: Page, selector: str) -> dict[str, str]:
    """What is written for each layer."""
    pairs = f"[...document.querySelectorAll('{selector}')].map((d) => [d.dataset.layer, d.textContent])"
    return dict(page.run(pairs))  # type: ignore[call-overload]


def test_the_tooltip_says_what_the_table_says_and_the_panel_says_all_of_it(page: Page, maps: Maps):
    open_slide(page, maps)
    table = maps.table("S1", EVIL_CLASS)
    for row in (0, 7, 19):
        tile = table.iloc[row]
        x, y, side = corner(page, tile)
        page.mouse(x + side / 2, y + side / 2)
        page.until("!byId('tooltip').hidden")
        assert page.text("#tooltip b") == f"{EVIL_CLASS}, tile at {tile['x_lv0']}, {tile['y_lv0']}"
        shown = numbers(page, "#tooltip dd")
        for layer in LAYERS:
            assert float(shown[layer]) == float(f"{tile[layer]:.6g}")
            assert shown[layer].startswith("+") == (
                tile[layer] > 0 and layer in ("contribution", "evidence", "occlusion")
            )  # type: ignore[index]
        page.click(x + side / 2, y + side / 2)
        page.until(f"state.selected === {row}")
        full = numbers(page, "#tile dd[data-layer]")
        for layer in LAYERS:
            assert float(full[layer]) == tile[layer]  # type: ignore[index]
        assert float(full[f"concept: {EVIL_CONCEPT}"]) == tile[f"share {EVIL_CONCEPT}"]  # type: ignore[index]
    page.mouse(3, 3)
    page.until("byId('tooltip').hidden")


def test_another_class_and_a_margin_are_shown_with_their_own_numbers(page: Page, maps: Maps):
    open_slide(page, maps)
    tables = {name: maps.table("S1", name) for name in CLASSES}
    page.press("3")
    assert page.text("#class option:checked") == "glandular"
    assert page.text("#legend_title") == "Evidence, glandular"
    most = tables["glandular"]["evidence"].abs().max()
    assert [float(page.text(f"#{end}")) for end in ("low", "middle", "high")] == [
        -float(f"{most:.3g}"),
        0,
        float(f"{most:.3g}"),
    ]
    page.run("(s => { s.value = s.options[2].value; s.dispatchEvent(new Event('change')); })(byId('rival'))")
    assert page.text("#legend_title") == f"Evidence, glandular against {EVIL_CLASS}"
    margin = tables["glandular"]["evidence"] - tables[EVIL_CLASS]["evidence"]
    best = [int(tile) for tile in margin.sort_values(ascending=False, kind="stable").index[:10] if margin[tile] > 0]
    found = "[...document.querySelectorAll('#top_for button')].map((b) => Number(b.dataset.tile))"
    assert page.run(found) == best
    assert page.text("#against_title") == f"Strongest for {EVIL_CLASS}"
    page.press("v")
    page.press("l")
    assert page.text("#legend_title") == "Attention, glandular"
    assert page.run("byId('against_part').hidden") is True
    assert float(page.text("#low")) == 0
    attention = tables["glandular"]["attention"].sort_values(ascending=False, kind="stable")
    assert page.run(found) == attention.index[:10].tolist()


def colours(page: Page, tile: pd.Series) -> list[int]:
    """The map's red, green, blue and alpha in the middle of a tile, without outlines."""
    page.run("byId('outlines').checked = false; stage.redraw()")
    script = f"""(() => {{ const p = stage.placement();
        const at = [p.x({tile["x_lv0"]} + 60), p.y({tile["y_lv0"]} + 60)];
        return [...byId('map').getContext('2d').getImageData(Math.round(at[0]), Math.round(at[1]), 1, 1).data]; }})()"""
    return page.run(script)  # type: ignore[return-value]


def test_orange_is_for_purple_is_against_and_what_is_weak_can_be_hidden(page: Page, maps: Maps):
    open_slide(page, maps)
    page.mouse(3, 3)
    table = maps.table("S1", EVIL_CLASS)
    best, worst = table.loc[table["evidence"].idxmax()], table.loc[table["evidence"].idxmin()]
    weakest = table.loc[table["evidence"].abs().idxmin()]
    red, _, blue, alpha = colours(page, best)
    assert red > 2 * blue
    red_against, _, blue_against, _ = colours(page, worst)
    assert blue_against > red_against
    assert colours(page, weakest)[3] < alpha
    page.run("(r => { r.value = 20; r.dispatchEvent(new Event('input')); })(byId('opacity'))")
    assert colours(page, best)[3] < alpha / 2
    assert page.text("#opacity_said") == "20 %"
    page.run("(r => { r.value = 30; r.dispatchEvent(new Event('input')); })(byId('threshold'))")
    limit = 0.3 * table["evidence"].abs().max()
    assert page.text("#threshold_said") == f"±{float(f'{limit:.3g}'):g}"
    for _, tile in table.iterrows():
        assert (colours(page, tile)[3] > 0) == (abs(tile["evidence"]) >= limit)
    page.press("m")
    assert colours(page, best)[3] == 0
    page.press("m")
    assert colours(page, best)[3] > 0


def test_a_top_tile_is_gone_to_and_outlined(page: Page, maps: Maps):
    open_slide(page, maps)
    table = maps.table("S1", EVIL_CLASS)
    order = table["evidence"].sort_values(ascending=False)
    page.click_on("#top_for li:nth-child(2) button")
    page.settled(f"{VISIBLE}.x")
    second = table.loc[order.index[1]]
    x, y, side = corner(page, second)
    box = page.run("(b => [b.x, b.y, b.width, b.height])(byId('stage').getBoundingClientRect())")
    assert abs(x + side / 2 - box[0] - box[2] / 2) < 2  # type: ignore[index]
    assert abs(y + side / 2 - box[1] - box[3] / 2) < 2  # type: ignore[index]
    assert side > 0.3 * box[3]  # type: ignore[index]
    edge = (
        f"""[...byId('map').getContext('2d').getImageData({x - box[0]:.0f}, {y - box[1] + side / 2:.0f}, 1, 1).data]"""  # type: ignore[index]
    )
    assert page.run(edge) == [28, 37, 48, 255]
    assert page.run("document.querySelector('#top_for li:nth-child(2) button').getAttribute('aria-current')") == "true"
    page.press("f")
    page.settled(f"{VISIBLE}.x")
    assert page.run("state.selected") == int(order.index[2])
    page.press("a")
    assert page.run("state.selected") == int(order.index[-1])
    page.press("Escape")
    assert page.run("state.selected") == -1


@pytest.mark.parametrize("size", [(1400, 900), (800, 600)])
def test_the_scale_bar_is_right_at_every_zoom_and_everything_is_in_the_window(
    page: Page, maps: Maps, size: tuple[int, int]
):
    page.resize(*size)
    open_slide(page, maps)
    for key in ("0", "+", "+", "+", "-", "0"):
        page.press(key)
        page.settled(f"{VISIBLE}.width")
        bar, text = page.run("[byId('bar').getBoundingClientRect().width, byId('length').textContent]")  # type: ignore[misc]
        _, _, side = corner(page, maps.table("S1", EVIL_CLASS).iloc[0])
        um = float(text.split()[0]) * (1000 if text.endswith("mm") else 1)
        assert math.isclose(bar / side, um / (TILE * MPP), rel_tol=0.005)
        assert 20 < bar <= 150
        assert f"{um:g}".strip("0.")[0] in "125"
    page.press("f")
    page.until("state.selected >= 0")
    assert page.run(
        "document.documentElement.scrollWidth <= innerWidth && document.documentElement.scrollHeight <= innerHeight"
    )
    outside = """[...document.querySelectorAll('header *, #stage > *, aside *, footer *')].filter((e) => {
        const b = e.getBoundingClientRect();
        return b.width && !e.closest('.wide') && (b.left < -1 || b.right > innerWidth + 1); }).map((e) => e.id)"""
    assert page.run(outside) == []


def test_keys_move_and_explain_themselves_and_stay_out_of_the_controls(page: Page, maps: Maps):
    open_slide(page, maps)
    page.press("+")
    page.settled(f"{VISIBLE}.width")
    before = page.run(f"{VISIBLE}.x")
    page.press("ArrowRight")
    assert page.settled(f"{VISIBLE}.x") > before  # type: ignore[operator]
    page.press("?")
    assert page.run("byId('help').open") is True
    listed = page.run("[...document.querySelectorAll('#help kbd')].map((k) => k.textContent)")
    known = set(page.run("Object.keys(KEYS)"))  # type: ignore[arg-type]
    arrows = {"←": "ArrowLeft", "↑": "ArrowUp", "→": "ArrowRight", "↓": "ArrowDown", "Esc": "Escape"}
    assert {arrows.get(key, key) for key in listed} - {"1", "9"} == known - {"="}  # type: ignore[union-attr]
    page.press("Escape")
    page.until("!byId('help').open")
    page.run("byId('threshold').focus()")
    page.press("ArrowRight")
    assert page.run("state.threshold") == 0.01
    assert page.settled(f"{VISIBLE}.x") == page.run(f"{VISIBLE}.x")
    page.run("document.activeElement.blur()")
    for _ in range(20):
        page.press("Tab")
        focused = page.run(
            "(e => [e.tagName, Boolean(e.textContent.trim() || e.labels?.length || e.ariaLabel)])"
            "(document.activeElement)"
        )
        assert focused[1], focused  # type: ignore[index]


def test_keys_lead_to_the_other_slides(page: Page, maps: Maps):
    open_slide(page, maps, "S2")
    page.press("]")
    page.until(f"document.getElementById('slide_id')?.textContent === {json.dumps(EVIL)}")
    assert page.run("byId('next').ariaDisabled") == "true"
    page.press("[")
    page.until("document.getElementById('slide_id')?.textContent === 'S2'")


def test_the_page_says_which_model_it_is_of_how_far_to_trust_it_and_what_it_is_for(page: Page, maps: Maps):
    open_slide(page, maps)
    footer = page.text("footer")
    for text in ("Research use only.", "run 0123456789ab", "weights abababababab", "gain 0.500 (p 0.01)"):
        assert text in footer
    assert page.text("#prediction") == f"predicted {EVIL_CLASS} (p = 0.90), label normal"
    cells = page.run("[...document.querySelectorAll('#classes tr:nth-child(2) td')].map((c) => c.textContent)")
    assert cells == [EVIL_CLASS, "+0.75", "+0.5", "+1.25", "0.900"]


def test_the_cohort_is_sorted_filtered_and_walked(page: Page, maps: Maps):
    page.open((maps.viewer / "index.html").as_uri())
    shown = "[...document.querySelectorAll('#rows td:first-child')].map((c) => c.textContent)"
    page.click_on("[data-key=probability] button")
    assert page.run(shown) == [EVIL, "S2", "S1"]
    assert page.run("document.querySelector('[data-key=probability]').getAttribute('aria-sort')") == "ascending"
    page.click_on("[data-key=probability] button")
    assert page.run(shown) == ["S1", "S2", EVIL]
    page.press("d")
    assert page.run(shown) == ["S1", EVIL]
    assert page.text("#counts") == "2 of 3 slides, 2 of 3 differ from their label"
    page.press("Escape")
    page.press("/")
    for letter in "s2":
        page.press(letter)
    page.until("document.querySelectorAll('#rows tr').length === 1")
    assert page.run(shown) == ["S2"]
    page.press("ArrowDown")
    page.press("Enter")
    page.until("document.getElementById('slide_id')?.textContent === 'S2'")
    assert page.complaints() == []


def test_without_a_slide_the_map_is_shown_alone(page: Page, tmp_path: Path):
    maps = make_maps(tmp_path, ("S1",), with_slides=False)
    open_slide(page, maps)
    assert page.run("byId('no_picture').hidden") is False
    table = maps.table("S1", EVIL_CLASS)
    assert colours(page, table.loc[table["evidence"].idxmax()])[3] > 0
    assert page.complaints() == []
    assert not [url for url in page.requests() if "picture/" in url]


def test_the_server_shows_the_slide_itself(page: Page, tmp_path: Path):
    maps = make_maps(tmp_path, ("S1",))
    maps.export(most_tiles=1)
    served = Server(maps, slides={"S1": maps.slides / "0.svs"})
    try:
        page.open(f"http://localhost:{served.port}/")
        page.click_on("#rows a")
        page.until("document.getElementById('slide_id') && document.readyState === 'complete' && stage.isReady")
        page.press("f")
        page.settled(f"{VISIBLE}.x")
        page.until("stage.osd.world.getItemAt(0).getFullyLoaded()")
        asked = page.requests()
        assert any("/live/11/" in url for url in asked)
        assert not any("/picture/" in url for url in asked)
        assert {url.split("/")[2] for url in asked if not url.startswith("data:")} == {f"localhost:{served.port}"}
        assert page.complaints() == []
        assert page.text("#picture_said") == ""
    finally:
        served.close()


def test_overlapping_tiles_are_shown_as_their_mean(page: Page, maps: Maps):
    """As the picture of `promptmil heatmap` has it."""
    import numpy as np

    from mil.heatmap.tile_raster import mean_of_covering

    open_slide(page, maps)
    coords = np.array([[0, 0], [50, 0], [50, 50], [400, 300]])
    values = np.array([1.0, -0.5, 0.25, -1.0])
    expected = mean_of_covering(coords, (100.0, 100.0), values, (0, 0, 600, 500), (50, 60))
    scale = {"x": coords[:, 0].tolist(), "y": coords[:, 1].tolist(), "size_lv0": [100, 100], "count": 4}
    view = {"values": values.tolist(), "isSigned": True, "high": 1}
    script = f"""(() => {{ return [...meanOfCovering({json.dumps(scale)}, {json.dumps(view)}, [0, 0, 600, 500], 60, 50)]
        .map((v) => Number.isNaN(v) ? null : v); }})()"""
    found = np.array(page.run(script), dtype=float).reshape(50, 60)
    np.testing.assert_allclose(found, expected, atol=1e-6)
