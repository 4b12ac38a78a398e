"""Maps in the formats of other programs: read back, each value and polygon is where the slide has it."""

import gzip
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import shapely
import tifffile
from map_cases import GEOMETRIES, drawn_map, explanation_of
from pyramids import write_scanned_area, write_slide

from feature_extraction.slide import Slide
from mil.bag import Bag
from mil.heatmap.exports.asap import regions_asap
from mil.heatmap.exports.ome_tiff import NAMESPACE, map_ome_tiff
from mil.heatmap.exports.placement import map_pixels
from mil.heatmap.exports.qupath import importer, regions_geojson, tiles_geojson
from mil.heatmap.exports.regions import regions_of

OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"
NAMES = ["alpha", "beta"]
ODD = '<b>a\nb/c</b>: x % "q" \'&'
MARK, GLASS = (200, 30, 90), (240, 240, 240)


def covering(bag: Bag, point: np.ndarray) -> np.ndarray:
    return ((bag.coords_lv0 <= point) & (bag.coords_lv0 + np.array(bag.size_lv0) > point)).all(axis=1)


def mean_at(bag: Bag, values: np.ndarray, point: np.ndarray) -> float:
    covers = covering(bag, point)
    return float(values[covers].mean()) if covers.any() else np.nan


def read_ome(data: bytes) -> tuple[list[np.ndarray], dict[str, str], list[str], tuple[float, float], dict[str, str]]:
    """Levels; attributes of Pixels; names of the channels; position in µm; the annotation."""
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        assert tiff.is_ome
        levels = [level.asarray() for level in tiff.series[0].levels]
        root = ET.fromstring(tiff.ome_metadata)
    pixels = root.find(f".//{OME}Pixels")
    plane = root.find(f".//{OME}Plane")
    note = root.find(f".//{OME}MapAnnotation[@Namespace='{NAMESPACE}']/{OME}Value")
    assert pixels is not None
    assert plane is not None
    assert note is not None
    assert {pixels.get(f"PhysicalSize{axis}Unit") for axis in "XY"} == {"µm"}
    assert {plane.get(f"Position{axis}Unit") for axis in "XY"} == {"µm"}
    names = [channel.get("Name") for channel in root.iter(f"{OME}Channel")]
    position = float(plane.get("PositionX")), float(plane.get("PositionY"))
    return levels, dict(pixels.attrib), names, position, {m.get("K"): m.text for m in note}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_level_of_the_tiff_has_at_a_point_of_the_slide_what_the_tiles_there_say(name: str):
    geometry = GEOMETRIES[name]
    explanation, place = drawn_map(geometry)
    levels, pixels, channels, position, _ = read_ome(map_ome_tiff(explanation, NAMES, place))
    assert channels == ["contribution alpha", "contribution beta"]
    assert len(levels) >= 3
    assert {level.dtype for level in levels} == {np.dtype(np.float32)}
    size_um = np.array([float(pixels["PhysicalSizeX"]), float(pixels["PhysicalSizeY"])])
    generator = np.random.default_rng(0)
    for number, level in enumerate(levels):
        scale = np.array(levels[0].shape[:0:-1]) / np.array(level.shape[:0:-1])  # as readers find it
        assert (scale == 2**number).all()
        for row, column in generator.integers(0, level.shape[1:], (60, 2)):
            point = (np.array(position) + (np.array([column, row]) + 0.5) * size_um * scale) / np.array(geometry.mpp)
            for channel in range(2):
                expected = mean_at(explanation.bag, explanation.contribution[:, channel], point)
                np.testing.assert_allclose(level[channel, row, column], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["plain", "odd mpp", "overlap", "non-square pixels", "scanned area"])
def test_on_a_grid_any_point_of_the_slide_has_its_value_and_each_tile_has_a_pixel_at_every_level(name: str):
    geometry = GEOMETRIES[name]
    explanation, place = drawn_map(geometry)
    bag, values = explanation.bag, explanation.contribution[:, 0]
    levels, pixels, _, position, _ = read_ome(map_ome_tiff(explanation, NAMES, place))
    size_um = np.array([float(pixels["PhysicalSizeX"]), float(pixels["PhysicalSizeY"])])

    def at(level: int, point: np.ndarray) -> float:
        column, row = ((point * np.array(geometry.mpp) - position) / size_um // 2**level).astype(int)
        return float(levels[level][0, row, column])

    generator = np.random.default_rng(1)
    edges = [np.concatenate([bag.coords_lv0[:, axis], bag.coords_lv0[:, axis] + bag.size_lv0[axis]]) for axis in (0, 1)]
    n_checked = 0
    for point in generator.random((200, 2)) * geometry.scanned + geometry.corner:
        if min(np.abs(edges[axis] - point[axis]).min() for axis in (0, 1)) > 1:
            np.testing.assert_allclose(at(0, point), mean_at(bag, values, point), rtol=1e-5)
            n_checked += 1
    assert n_checked > 100
    if name != "overlap":
        for tile, corner in enumerate(bag.coords_lv0):
            middle = corner + np.array(bag.size_lv0) * (0.5, 0.5)
            for level in range(len(levels)):
                np.testing.assert_allclose(at(level, middle), values[tile], rtol=1e-5)


def test_the_tiff_states_its_place_in_level_0_pixels_and_physical_units_and_is_the_same_each_time():
    geometry = GEOMETRIES["everything odd"]
    explanation, place = drawn_map(geometry)
    data = map_ome_tiff(explanation, NAMES, place)
    _, pixels, _, position, note = read_ome(data)
    assert position == pytest.approx((333 * 0.4537, 517 * 0.6111))
    assert (int(note["x_lv0"]), int(note["y_lv0"])) == (333, 517)
    assert float(note["pixel_width_lv0"]) * 0.4537 == pytest.approx(float(pixels["PhysicalSizeX"]))
    # Pixels of the map are square on the glass although those of the slide are not.
    assert float(pixels["PhysicalSizeX"]) == pytest.approx(float(pixels["PhysicalSizeY"]))
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        across, unit = tiff.pages[0].tags["XResolution"].value, tiff.pages[0].tags["ResolutionUnit"].value
    assert across[0] / across[1] == pytest.approx(1e4 / float(pixels["PhysicalSizeX"]), rel=1e-6)
    assert unit == 3  # a centimetre
    assert map_ome_tiff(explanation, NAMES, place) == data
    other = explanation_of(explanation.bag, explanation.evidence * 2)
    assert map_ome_tiff(other, NAMES, place) != data


def test_a_sparse_map_has_its_evidence_beside_the_contributions_and_odd_names_stay_readable():
    explanation, place = drawn_map(GEOMETRIES["plain"])
    weights = np.zeros((len(explanation.bag), 1))
    weights[:3] = 1 / 3
    sparse = explanation_of(explanation.bag, explanation.evidence, weights)
    levels, _, channels, _, _ = read_ome(map_ome_tiff(sparse, ["alpha", ODD], place))
    odd = ODD.replace("\n", "\\n")
    assert channels == ["contribution alpha", f"contribution {odd}", "evidence alpha", f"evidence {odd}"]
    assert np.nansum(levels[0][0] != 0) < np.nansum(levels[0][2] != 0)


def test_a_slide_of_one_tile_and_a_giant_one_have_maps_of_a_sane_size():
    explanation, place = drawn_map(GEOMETRIES["plain"])
    one = explanation_of(replace(explanation.bag, coords_lv0=np.array([[128, 256]])), np.array([[1.5, -2.0]]))
    levels, *_ = read_ome(map_ome_tiff(one, NAMES, place))
    assert np.isfinite(levels[0][0]).sum() == 16
    assert np.isfinite(levels[2][0]).sum() == 1
    giant = replace(place, bounds_lv0=(0, 0, 900_000, 400_000), step_lv0=(32.0, 32.0))
    assert max(map_pixels(replace(one.bag, size_lv0=(32.0, 32.0)), giant).shape) <= 8192


def geojson(data: bytes) -> dict:
    return json.loads(gzip.decompress(data))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_slide_has_the_mark_where_regions_and_tiles_say_that_it_is(tmp_path: Path, name: str):
    """A real slide with one marked tile: the pixels at the polygons are read back from the slide."""
    geometry = GEOMETRIES[name]
    explanation, place = drawn_map(geometry, share=1.0)
    bag = explanation.bag
    marked = len(bag) // 2 + 1
    left, top = bag.coords_lv0[marked]
    right, bottom = np.floor(bag.coords_lv0[marked] + np.array(bag.size_lv0) + 0.5).astype(int)
    pixels = np.full((geometry.scanned[1], geometry.scanned[0], 3), GLASS, np.uint8)
    x, y = geometry.corner
    pixels[top - y : bottom - y, left - x : right - x] = MARK
    path = tmp_path / ("S1.scn" if geometry.corner != (0, 0) else "S1.svs")
    if geometry.corner != (0, 0):
        write_scanned_area(path, pixels, corner=geometry.corner, size=place.size_lv0)
    else:
        write_slide(path, pixels, mpp=str(geometry.mpp[0]), levels=(1,))
    layer = np.full((len(bag), 2), -1.0)
    layer[marked] = 3.0, -5.0
    found = explanation_of(bag, layer)
    regions = regions_of(found, NAMES, place, 0.001)
    polygons = {
        feature["properties"]["classification"]["name"]: shapely.geometry.shape(feature["geometry"])
        for feature in geojson(regions_geojson(regions, place))["features"]
    }
    tiles = geojson(tiles_geojson(found, NAMES))["features"]
    by_value = {tile["properties"]["measurements"]["contribution alpha"]: tile["geometry"] for tile in tiles}
    polygons["the tile"] = shapely.geometry.shape(by_value[3.0])
    assert polygons["the tile"].bounds == (left, top, right, bottom)
    with Slide("S1", path) as slide:
        assert slide.bounds_lv0() == geometry.bounds()
        for name_of, polygon in polygons.items():
            if name_of == "alpha: against":
                continue
            x0, y0, x1, y1 = map(int, polygon.bounds)
            there = slide.read_region((x0, y0), 0, (x1 - x0, y1 - y0))
            is_mark = (there == MARK).all(axis=2)
            columns, rows = np.meshgrid(np.arange(x0, x1) + 0.5, np.arange(y0, y1) + 0.5)
            inside = shapely.contains_xy(polygon, columns, rows)
            assert inside.any()
            assert is_mark[inside].all(), name_of
            if geometry.step_px >= 64:  # without overlap a region is the whole tile, and nothing else
                wide = slide.read_region((x0 - 2, y0 - 2), 0, (x1 - x0 + 4, y1 - y0 + 4))
                assert (wide == MARK).all(axis=2).sum() == inside.sum() == (right - left) * (bottom - top)


@pytest.mark.parametrize("name", ["plain", "odd mpp", "non-square pixels", "scanned area"])
def test_regions_are_the_strongest_tiles_merged(name: str):
    explanation, place = drawn_map(GEOMETRIES[name])
    bag, share = explanation.bag, 0.2
    corners = np.floor(bag.coords_lv0 + np.array(bag.size_lv0) + 0.5)
    boxes = shapely.box(*bag.coords_lv0.T, *corners.T)
    for column, class_name in enumerate(NAMES):
        for side, sign in (("for", 1), ("against", -1)):
            found = [
                r for r in regions_of(explanation, NAMES, place, share) if (r.class_name, r.side) == (class_name, side)
            ]
            values = sign * explanation.contribution[:, column]
            expected = boxes[np.argsort(-values)[: math.ceil(int(share * 16 * len(bag)) / 16)]]
            merged = shapely.union_all([region.polygon for region in found])
            if name == "plain":
                assert shapely.symmetric_difference(merged, shapely.union_all(expected)).area == 0
            assert merged.area == pytest.approx(sum(box.area for box in expected), rel=0.03)
            strongest = np.sort(values)[-len(expected) :]
            assert {sign * round(region.level, 9) for region in found} == {round(float(strongest[0]), 9)}
            means = sum(sign * region.mean * region.area_lv0 for region in found) / sum(r.area_lv0 for r in found)
            assert means == pytest.approx(strongest.mean())


def ring_map(hole: bool = True):
    """A ring of tiles that speak for a class around one that does not."""
    explanation, place = drawn_map(GEOMETRIES["plain"], share=1.0)
    coords = explanation.bag.coords_lv0
    layer = np.full((len(coords), 2), -1.0)
    in_ring = ((coords >= 128) & (coords <= 384)).all(axis=1)
    layer[in_ring] = 2.0, 0.5
    if hole:
        layer[(coords == 256).all(axis=1)] = -3.0
    return explanation_of(explanation.bag, layer), place


def test_a_region_keeps_its_hole_in_qupath_and_in_asap():
    explanation, place = ring_map()
    regions = [region for region in regions_of(explanation, NAMES, place, 0.2) if region.side == "for"]
    (feature,) = geojson(regions_geojson(regions[:1], place))["features"]
    rings = feature["geometry"]["coordinates"]
    assert [len(ring) for ring in rings] == [5, 5]  # corners only
    n_tiles = 3 * 3 - 1
    assert shapely.geometry.shape(feature["geometry"]).area == n_tiles * 128**2
    assert all(isinstance(value, int) for ring in rings for corner in ring for value in corner)
    root = ET.fromstring(regions_asap(regions[:1]))
    areas = {}
    for annotation in root.iter("Annotation"):
        corners = [(int(c.get("Order")), int(c.get("X")), int(c.get("Y"))) for c in annotation.iter("Coordinate")]
        assert [order for order, *_ in corners] == list(range(4))
        assert annotation.get("Type") == "Polygon"
        areas[annotation.get("PartOfGroup")] = shapely.Polygon([corner[1:] for corner in corners]).area
    assert areas == {"alpha: for": 9 * 128**2, "alpha: for hole": 128**2}
    assert {group.get("Name") for group in root.iter("Group")} == set(areas)
    assert root.tag == "ASAP_Annotations"


def test_asap_has_the_polygons_of_qupath():
    explanation, place = drawn_map(GEOMETRIES["everything odd"])
    regions = regions_of(explanation, ["alpha", ODD], place, 0.1)
    root = ET.fromstring(regions_asap(regions))
    found = {"for": 0.0, "against": 0.0}
    for annotation in root.iter("Annotation"):
        ring = shapely.Polygon([(int(c.get("X")), int(c.get("Y"))) for c in annotation.iter("Coordinate")])
        group = annotation.get("PartOfGroup")
        if group.endswith(" hole"):
            found[group.split(": ")[-1].removesuffix(" hole")] -= ring.area
        else:
            found[group.split(": ")[-1]] += ring.area
    for side, area in found.items():
        assert area == sum(region.polygon.area for region in regions if region.side == side) > 0


def test_what_speaks_against_a_class_is_no_region_for_it_and_nothing_says_nothing():
    explanation, place = drawn_map(GEOMETRIES["overlap"])
    against = explanation_of(explanation.bag, -np.abs(explanation.evidence) * [1, 0])
    assert {(r.class_name, r.side) for r in regions_of(against, NAMES, place, 0.1)} == {("alpha", "against")}
    silent = explanation_of(explanation.bag, explanation.evidence * 0)
    assert regions_of(silent, NAMES, place, 0.1) == []
    assert geojson(regions_geojson([], place))["features"] == []
    assert not list(ET.fromstring(regions_asap([])).iter("Annotation"))
    measured = geojson(tiles_geojson(silent, NAMES))["features"][0]["properties"]["measurements"]
    assert list(measured) == ["attention"]


def test_tiles_have_their_numbers_to_four_digits_and_awkward_names():
    explanation, _ = drawn_map(GEOMETRIES["plain"], n_classes=3)
    scaled = explanation_of(explanation.bag, explanation.evidence * [1e-9, 7e5, 0])
    names = ["alpha", ODD, "normal"]
    tiles = geojson(tiles_geojson(scaled, names))["features"]
    odd = ODD.replace("\n", "\\n")
    assert len(tiles) == len(explanation.bag)
    for row, tile in enumerate(tiles):
        properties = tile["properties"]
        assert properties["objectType"] == "tile"
        assert properties["classification"]["name"] == (["alpha", odd, "normal"][scaled.evidence[row].argmax()])
        assert set(properties["measurements"]) == {"contribution alpha", f"contribution {odd}", "attention"}
        for column, name in enumerate(("contribution alpha", f"contribution {odd}")):
            largest = np.abs(scaled.contribution[:, column]).max()
            assert properties["measurements"][name] == pytest.approx(
                scaled.contribution[row, column], abs=largest / 1e3
            )
    assert tiles_geojson(scaled, names) == tiles_geojson(scaled, names)


def test_the_importer_reads_what_is_written_and_tells_a_cropped_image_from_a_whole_one():
    """No QuPath runs here: what the script looks for is what the files have."""
    geometry = GEOMETRIES["scanned area"]
    explanation, place = drawn_map(geometry)
    content = geojson(regions_geojson(regions_of(explanation, NAMES, place, 0.1), place))
    assert content["promptmil"]["size_lv0"] == list(place.size_lv0)
    assert content["promptmil"]["bounds_lv0"] == list(geometry.bounds())
    script = importer()
    for said in ("promptmil", "size_lv0", "bounds_lv0", ".regions.geojson.gz", ".tiles.geojson.gz"):
        assert said in script
