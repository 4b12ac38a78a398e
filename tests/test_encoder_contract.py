"""Every encoder family, found by itself in conf/encoder, has a tiny real network that keeps every promise."""

from collections.abc import Callable
from pathlib import Path

import encoder_promises
import pytest
import test_conch
import test_keep
import test_musk
import test_timm_vision
import tiny_clip
import torch
import yaml
from encoder_promises import PROMISES, joint_is_the_unit_product

from feature_extraction.encoder import Encoder, EncoderSource
from feature_extraction.encoders.demo import DemoEncoder, DemoSource
from feature_extraction.encoders.hf_clip import HfClipSource
from feature_extraction.targets import construct

FOLDER = Path(__file__).parent.parent / "conf" / "encoder"
MEMBERS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
CONFIGS = {name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in MEMBERS}
FAMILIES = "feature_extraction.encoders."
CPU = torch.device("cpu")


def clip(kind: str) -> Callable[[Path], Encoder]:
    return lambda folder: HfClipSource(path=str(tiny_clip.save(folder, kind)), name="tiny").load(CPU)


CASES: dict[str, tuple[str, Callable[[Path], Encoder], int]] = {
    "demo": ("demo.DemoSource", lambda _: DemoSource().load(CPU), 96),
    "clip": ("hf_clip.HfClipSource", clip("clip"), tiny_clip.SIDE),
    "siglip": ("hf_clip.HfClipSource", clip("siglip"), tiny_clip.SIDE),
    "dual": ("hf_clip.HfClipSource", clip("vision-text-dual-encoder"), tiny_clip.SIDE),
    "conch": ("conch.ConchSource", test_conch.tiny, test_conch.SIDE),
    "conch_v1_5": ("conch.ConchVisionSource", test_conch.tiny_vision, test_conch.SIDE),
    "keep": ("keep.KeepSource", test_keep.tiny, test_keep.SIDE),
    "musk": ("musk.MuskSource", test_musk.tiny, test_musk.SIDE),
    "musk_ms2048": ("musk.MuskSource", lambda folder: test_musk.tiny(folder, "musk_ms2048"), test_musk.SIDE),
    "vit": ("hf_vision.HfVisionSource", lambda folder: test_timm_vision.tiny(folder, "vit"), 40),
    "dinov2": ("hf_vision.HfVisionSource", lambda folder: test_timm_vision.tiny(folder, "dinov2"), 40),
}
"""Family, tiny encoder, side of the tiles that it is asked about."""
CASES_ELSEWHERE = {
    "open_clip.OpenClipSource": "open_clip_cases.py",
    "timm_vision.TimmVisionSource": "timm_vision_cases.py",
}
"""Families whose packages break others here: files that are run in a process of their own."""


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Encoder]:
    return {name: build(tmp_path_factory.mktemp(name)) for name, (_, build, _) in CASES.items()}


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
@pytest.mark.parametrize("case", CASES)
def test_a_promise_is_kept(case: str, promise: Callable[[Encoder, int], None], encoders: dict[str, Encoder]):
    promise(encoders[case], CASES[case][2])


@pytest.mark.parametrize("name", MEMBERS)
def test_the_family_of_a_yaml_is_held_against_every_promise(name: str):
    family = CONFIGS[name]["_target_"].removeprefix(FAMILIES)
    held_here = {target for target, _, _ in CASES.values()}
    assert family in held_here | set(CASES_ELSEWHERE), f"{family}: give it a case in this file"
    if family not in held_here:
        text = (Path(__file__).parent / CASES_ELSEWHERE[family]).read_text()
        assert '@pytest.mark.parametrize("promise", PROMISES' in text
        assert f"{family.rpartition('.')[2]}(" in text


@pytest.mark.parametrize("name", MEMBERS)
def test_a_yaml_builds_its_source_without_weights(name: str):
    config = {key: "none" if value == "???" else value for key, value in CONFIGS[name].items()}
    assert construct(config, kind=EncoderSource, packages=("feature_extraction",)) is not None


def test_a_promise_that_is_broken_is_noticed():
    """An encoder that looks at its batch, one that is not of unit length, and one that reads its neighbours' words."""

    class Careless(DemoEncoder):
        def embed_tiles(self, tiles: torch.Tensor, spaces: list[str]) -> dict[str, torch.Tensor]:
            made = super().embed_tiles(tiles, spaces)
            return {space: rows * len(rows) + rows.mean(dim=0) for space, rows in made.items()}

        def embed_texts(self, texts: list[str]) -> torch.Tensor:
            return super().embed_texts(texts).cumsum(dim=0)

    careless = DemoSource().load(CPU)
    careless.__class__ = Careless
    for promise in (
        encoder_promises.keeps_its_spec,
        encoder_promises.joint_is_the_projection_of_backbone,
        encoder_promises.neighbours_change_nothing,
        encoder_promises.texts_depend_on_their_words_only,
    ):
        with pytest.raises(AssertionError):
            promise(careless, 96)


def test_the_shipped_encoders_projection_is_its_stored_matrix(encoders: dict[str, Encoder]):
    joint_is_the_unit_product(encoders["demo"], 96, encoders["demo"]._image.projection.weight.T)
