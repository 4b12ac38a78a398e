"""Tissue as somebody annotated it, and as a network sees it; what a feature file says of it."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import bounded
import numpy as np
import pytest
import torch
from pyramids import tissue_pixels, write_slide
from shapely.geometry import Point, Polygon

from feature_extraction.errors import InputError, SlideError
from feature_extraction.grid import Tiling
from feature_extraction.mpp import MppRule
from feature_extraction.plan import PlanRules, SlidePlan, plan_slide
from feature_extraction.segment import is_found_by, read_tissue_rule, require_one_slide, segment
from feature_extraction.slide import Slide
from feature_extraction.slides import SlideRecord
from feature_extraction.tissue import TissueRule
from feature_extraction.tissue_given import annotated_area, rasterize

SLIDE_MPP = MppRule()


def plan_of(path: Path, rule: TissueRule) -> SlidePlan:
    tiling = Tiling(tile_px=128, tile_mpp=0.5, step_px=128)
    return plan_slide(SlideRecord(slide_id=path.stem, path=path), PlanRules(tiling=tiling, tissue=rule, mpp=SLIDE_MPP))


def ring(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]


def feature(*rings: list[list[float]], name: str = "Tissue") -> dict[str, object]:
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": list(rings)},
        "properties": {"objectType": "annotation", "classification": {"name": name, "color": [0, 0, 0]}},
    }


def collection(*features: dict[str, object]) -> bytes:
    return json.dumps({"type": "FeatureCollection", "features": list(features)}).encode()


@pytest.fixture
def slide_path(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "slides" / "S.svs", tissue_pixels(1280, 1024))


def given(tmp_path: Path, content: bytes, name: str = "S.geojson") -> TissueRule:
    folder = tmp_path / "annotations"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return read_tissue_rule({"method": "geojson", "path": str(folder), "mpp": 4.0})


def test_tiles_follow_the_annotation_and_its_holes(tmp_path: Path, slide_path: Path):
    hole = ring(512, 256, 256, 256)
    plan = plan_of(slide_path, given(tmp_path, collection(feature(ring(256, 128, 768, 512), hole))))
    expected = {(x, y) for x in range(256, 1024, 128) for y in range(128, 640, 128)}
    expected -= {(x, y) for x in (512, 640) for y in (256, 384)}
    assert {(int(x), int(y)) for x, y in plan.coords_lv0} == expected
    np.testing.assert_allclose(plan.tissue_fraction, 1, atol=1e-5)


def test_every_spelling_of_geojson_counts_and_ignored_classes_are_cut_out():
    left, right = ring(0, 0, 10, 10), ring(20, 0, 10, 10)
    multi = {"type": "MultiPolygon", "coordinates": [[left], [right]]}
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 1]}, "properties": None}
    nowhere = {"type": "Feature", "geometry": None, "properties": {}}
    spellings = [
        collection(feature(left), feature(right), point, nowhere),
        json.dumps([feature(left), feature(right)]).encode(),
        json.dumps(multi).encode(),
        json.dumps({"type": "GeometryCollection", "geometries": [multi]}).encode(),
        collection(feature(ring(0, 0, 30, 10)), feature(ring(10, -5, 10, 20), name="Ignore*")),
        collection(feature(left), feature(left), feature(right)),
    ]
    for text in spellings:
        assert annotated_area(text, "S").area == 200


def test_rasterizing_asks_each_pixel_centre(tmp_path: Path):
    generator = np.random.default_rng(0)
    angles = np.sort(generator.uniform(0, 2 * np.pi, 40))
    outline = [
        (60 + r * np.cos(a), 45 + r * np.sin(a)) for a, r in zip(angles, generator.uniform(15, 70, 40), strict=True)
    ]
    area = Polygon(outline, [[(55, 40), (65, 41), (60, 52)]]).buffer(0)
    found = rasterize(area, ((3.0, -7.0), (1.5, 2.5)), (50, 90))
    expected = [[area.contains(Point(3 + 1.5 * (x + 0.5), -7 + 2.5 * (y + 0.5))) for x in range(90)] for y in range(50)]
    np.testing.assert_array_equal(found, np.array(expected))
    assert 0.1 < found.mean() < 0.9


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[1]", b"{}", b'"text"', b'{"type": "FeatureCollection"}', b"[" * 100_000, b"\xff\xfe",
        b'{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}', b'{"type": "Polygon", "coordinates": 3}',
        b'{"type": "Polygon", "coordinates": [[[0, 0], [NaN, 1], [2, 0], [0, 0]]]}',
    ],
)  # fmt: skip
def test_a_file_that_is_no_annotation_fails_its_slide_alone(text: bytes, tmp_path: Path, slide_path: Path):
    with pytest.raises(SlideError, match="GeoJSON") as caught:
        plan_of(slide_path, given(tmp_path, text))
    assert (caught.value.stage, caught.value.code) == ("tissue", "E-mask")


def test_a_missing_annotation_fails_its_slide_and_says_what_is_missing(tmp_path: Path, slide_path: Path):
    with pytest.raises(SlideError, match=r"S\.geojson") as caught:
        plan_of(slide_path, given(tmp_path, b"{}", name="other.geojson"))
    assert caught.value.code == "E-mask"
    assert str(tmp_path) not in str(caught.value)


def test_one_annotation_is_not_for_many_slides(tmp_path: Path):
    path = tmp_path / "one.geojson"
    path.write_bytes(collection(feature(ring(0, 0, 9, 9))))
    rule = read_tissue_rule({"method": "geojson", "path": str(path)})
    require_one_slide(rule, 1)
    with pytest.raises(InputError, match="2 slides"):
        require_one_slide(rule, 2)


def test_what_is_written_of_a_rule_is_its_content_and_never_a_path(tmp_path: Path, slide_path: Path):
    data = collection(feature(ring(0, 0, 640, 640)))
    rule = given(tmp_path, data)
    plan = plan_of(slide_path, rule)
    written = json.dumps(dict(plan.tissue))
    assert str(tmp_path) not in written
    assert hashlib.sha256(data).hexdigest() in written
    assert is_found_by(written, rule, "S")
    given(tmp_path, collection(feature(ring(0, 0, 640, 641))))
    assert not is_found_by(written, rule, "S")
    moved = tmp_path / "moved"
    (tmp_path / "annotations").rename(moved)
    assert replace(rule, path=str(moved)).described() == rule.described()
    assert TissueRule(pen=False).described() != TissueRule().described()


class Saturation(torch.nn.Module):
    """Logits that are above 0 where a pixel is more than .2 saturated; ``form`` says how they come out."""

    def __init__(self, form: str):
        super().__init__()
        self.form = form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        brightest = x.amax(1, keepdim=True)
        logit = 40 * ((brightest - x.amin(1, keepdim=True)) / (brightest + 1e-6) - 0.2)
        if self.form == "probability":
            return torch.sigmoid(logit)
        if self.form == "two":
            return torch.cat([-logit, logit], 1)
        if self.form == "half":
            return logit[:, :, ::2, ::2]
        return logit


def torchscript(path: Path, form: str) -> Path:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(Saturation(form)).save(str(path))
    return path


def onnx_network(path: Path) -> Path:
    onnx = pytest.importorskip("onnx", reason="onnx, with which the test writes its network, is not installed")
    make = onnx.helper.make_node
    nodes = [
        make("ReduceMax", ["x"], ["brightest"], axes=[1], keepdims=1),
        make("ReduceMin", ["x"], ["darkest"], axes=[1], keepdims=1),
        make("Sub", ["brightest", "darkest"], ["gap"]),
        make("Mul", ["brightest", "limit"], ["least"]),
        make("Sub", ["gap", "least"], ["logit"]),
    ]
    limit = onnx.helper.make_tensor("limit", onnx.TensorProto.FLOAT, [1], [0.2])
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "saturation",
        [tensor("x", onnx.TensorProto.FLOAT, [1, 3, "h", "w"])],
        [tensor("logit", onnx.TensorProto.FLOAT, [1, 1, "h", "w"])],
        [limit],
    )
    opset = [onnx.helper.make_opsetid("", 13)]
    path.write_bytes(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())
    return path


def segmented(slide_path: Path, network: Path) -> np.ndarray:
    rule = read_tissue_rule({"method": "model", "path": str(network), "mpp": 8.0, "min_area_um2": 0.0})
    with Slide("S", slide_path) as slide:
        return segment(slide, slide.info(None, SLIDE_MPP), rule).is_tissue


def is_saturated(slide_path: Path) -> np.ndarray:
    with Slide("S", slide_path) as slide:
        picture = slide.thumbnail(slide.bounds_lv0(), 16.0).astype(np.float64)
    return picture.max(axis=2) - picture.min(axis=2) > 0.2 * picture.max(axis=2)


@pytest.mark.parametrize("form", ["logit", "probability", "two"])
def test_a_torchscript_network_decides_where_tissue_is(form: str, tmp_path: Path, slide_path: Path):
    found = segmented(slide_path, torchscript(tmp_path / "model.pt", form))
    np.testing.assert_array_equal(found, is_saturated(slide_path))
    assert 0.3 < found.mean() < 0.8


def test_an_onnx_network_decides_where_tissue_is(tmp_path: Path, slide_path: Path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is an optional extra: pip install 'promptmil[onnx]'")
    found = segmented(slide_path, onnx_network(tmp_path / "model.onnx"))
    np.testing.assert_array_equal(found, is_saturated(slide_path))


def test_without_its_runtime_an_onnx_network_says_what_to_install(tmp_path: Path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"anything")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"promptmil\[onnx\]"):
        read_tissue_rule({"method": "model", "path": str(tmp_path / "model.onnx")})


def test_a_network_that_cannot_be_used_is_refused_before_the_run(tmp_path: Path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    torchscript(tmp_path / "half.pt", "half")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name, message in (("weights.pt", "TorchScript"), ("half.pt", "same height"), ("empty.pt", "TorchScript"),
                          ("missing.pt", "no such file")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            read_tissue_rule({"method": "model", "path": str(tmp_path / name)})
    for content in ({"method": "otsu"}, {"method": "geojson"}, {"mpp": 0.0}):
        with pytest.raises(InputError, match=r"tissue\.(method|path|mpp)"):
            read_tissue_rule(content)


def test_a_large_thumbnail_goes_through_in_squares_with_the_same_result(tmp_path: Path, monkeypatch):
    from feature_extraction import tissue_model

    network = torchscript(tmp_path / "model.pt", "logit")
    sha256 = hashlib.sha256(network.read_bytes()).hexdigest()
    picture = np.random.default_rng(0).integers(0, 255, (150, 203, 3), np.uint8)
    whole = tissue_model.segment_by_model(picture, network, sha256)
    monkeypatch.setattr(tissue_model, "INNER", 64)
    monkeypatch.setattr(tissue_model, "CONTEXT", 32)
    np.testing.assert_array_equal(tissue_model.segment_by_model(picture, network, sha256), whole)


def test_sides_are_padded_to_32_with_white():
    from feature_extraction import tissue_model

    seen: list[np.ndarray] = []

    def network(batch: np.ndarray) -> np.ndarray:
        seen.append(batch)
        return batch[:, :1]

    found = tissue_model._window_scores(np.zeros((33, 64, 3), np.uint8), network)
    assert found.shape == (1, 33, 64)
    assert seen[0].shape == (1, 3, 64, 64)
    assert (seen[0][:, :, :33] == 0).all()
    assert (seen[0][:, :, 33:] == 1).all()


def test_everything_is_kept_where_tissue_is_not_looked_for(tmp_path: Path):
    path = write_slide(tmp_path / "S.svs", tissue_pixels(1299, 1043), mpp="0.4871")
    plan = plan_of(path, TissueRule(method="none"))
    assert len(plan.coords_lv0) == 63
    assert (plan.tissue_fraction == 1).all()


def test_finding_tissue_loads_no_torch():
    code = "import sys, feature_extraction.tissue, feature_extraction.segment; print('torch' in sys.modules)"
    assert bounded.run([sys.executable, "-c", code], check=True).stdout.strip() == "False"
