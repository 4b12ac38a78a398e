"""Rebuilt families through the command line, from slides to predictions; only the size of their networks is changed."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import test_conch
import test_keep
import test_musk
import test_titan
import torch
from pyramids import tissue_pixels, write_slide
from safetensors import safe_open

from feature_extraction.encoder import Encoder, EncoderSource
from feature_extraction.encoders import conch, keep, musk
from feature_extraction.store import FeatureFile
from mil.cli import main

pytestmark = pytest.mark.pipeline
MEMBERS = sorted(path.stem for path in (Path(__file__).parent.parent / "conf" / "encoder").glob("*.yaml"))
OWN = ("hf_clip", "open_clip", "timm_vision")
"""Yamls for weights of the user's own, which name no place."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Its class, the argument that makes it tiny, how its folder is written, and what its card then says."""

    family: type[EncoderSource]
    tiny: dict[str, object]
    write: Callable[[Path], Encoder]
    card: str


FAMILIES = {
    "conch": Family(
        family=conch.ConchSource,
        tiny={"shape": test_conch.TINY},
        write=test_conch.tiny,
        card="widths={joint:16,backbone:16} input_px=32 context_length=40",
    ),
    "conch_v1_5": Family(
        family=conch.ConchVisionSource,
        tiny={"shape": test_conch.TINY_VISION},
        write=test_conch.tiny_vision,
        card="widths={backbone:24} input_px=32 tile_px=36",
    ),
    "keep": Family(
        family=keep.KeepSource,
        tiny={"image": test_keep.TINY},
        write=test_keep.tiny,
        card="widths={joint:24,backbone:32} input_px=32",
    ),
    "musk": Family(
        family=musk.MuskSource,
        tiny={"shape": test_musk.TINY},
        write=test_musk.tiny,
        card="widths={joint:24,backbone:24} input_px=32",
    ),
}
PROMPTS = """source: "a test"
classes:
  LUAD: {names: [a normal lung, an image of glands]}
  LUSC: {names: [keratin pearls, an image of keratin]}
"""


class Study:
    """Two slides, a prompt set, and the weights of one family."""

    def __init__(self, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        case = FAMILIES[name]
        small = type(case.family.__name__, (case.family,), {})
        small.__init__ = functools.partialmethod(case.family.__init__, **case.tiny)
        monkeypatch.setattr(f"{case.family.__module__}.{case.family.__name__}", small)
        self.folder, self.weights = folder, folder / "weights"
        self.weights.mkdir()
        self.loaded = case.write(self.weights)
        card = [f"encoder.spec.{fact}" for fact in case.card.split(" ")]
        self.encoder = [f"encoder={name}", f"encoder.path={self.weights}", *card, "device=cpu"]
        for index in range(2):
            write_slide(folder / "slides" / f"S{index}.svs", tissue_pixels(300, 300, seed=index))
        (folder / "words.yaml").write_text(PROMPTS)

    def extract(self, out: str, *more: str) -> int:
        given = [f"slides={self.folder / 'slides'}", "qc=false", f"out={self.folder / out}"]
        return main(["extract", *self.encoder, *given, *more])

    def features(self, out: str) -> Path:
        (found,) = (self.folder / out).glob("*/S0.h5")
        return found

    def bank(self) -> int:
        return main(["prompts", *self.encoder, f"prompts={self.folder / 'words.yaml'}", f"out={self.folder / 'bank'}"])

    def zeroshot(self, features: str) -> int:
        words = [f"features={self.folder / features}", f"bank={self.folder / 'bank'}"]
        return main(["zeroshot", *words, f"out={self.folder / f'zeroshot_{features}'}"])


@pytest.mark.parametrize("name", ["conch", "keep", "musk"])
def test_slides_become_predictions_and_backbone_features_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    study = Study(name, tmp_path, monkeypatch)
    assert study.extract("joint", "also=[backbone]") == 0
    assert study.bank() == 0
    assert study.zeroshot("joint") == 0
    file = FeatureFile(study.features("joint"))
    assert (file.header.encoder, file.header.space) == (name, "joint")
    assert set(file.spaces) == {"joint", "backbone"}
    rows = torch.from_numpy(file.features_of("backbone").astype("float32"))
    stored = torch.from_numpy(file.features_of("joint").astype("float32"))
    assert torch.nn.functional.cosine_similarity(study.loaded.project(rows), stored).min() > 0.999
    assert study.extract("backbone", "space=backbone") == 0
    capsys.readouterr()
    assert study.zeroshot("backbone") == 2
    said = capsys.readouterr().err
    assert f"the features are in the backbone space of {name} ({study.loaded.fingerprint[:8]})" in said
    assert "space=joint" in said
    assert not list(tmp_path.glob("zeroshot_backbone/[!.]*"))


def test_an_image_encoder_has_features_and_then_one_vector_a_slide_and_no_bank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    study = Study("conch_v1_5", tmp_path, monkeypatch)
    assert study.extract("features") == 0
    assert FeatureFile(study.features("features")).header.tile_size_px == 36
    titan = test_titan.write(tmp_path / "stand_in", width=24)
    words = [f"features={tmp_path / 'features'}", f"slide_encoder.path={titan}", f"out={tmp_path / 'slides_out'}"]
    assert main(["embed_slides", *words, "device=cpu"]) == 2
    assert "set slide_encoder.trust_remote_code=true" in capsys.readouterr().err
    assert main(["embed_slides", *words, "device=cpu", "slide_encoder.trust_remote_code=true"]) == 0
    with safe_open(tmp_path / "slides_out" / "slides.safetensors", "np") as file:
        assert file.get_tensor("embeddings").shape == (2, 3)
    capsys.readouterr()
    assert study.bank() == 2
    assert "encoder conch_v1_5 has no text tower" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_doctor_finds_weights_that_are_there_and_a_hash_that_is_not_the_published_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    study = Study(name, tmp_path, monkeypatch)
    words = [word for word in study.encoder if word != "device=cpu"]
    assert main(["doctor", *words, "++encoder.spec.weights_sha256=''"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "not needed, the weights are on this machine" in said
    assert "loaded, fingerprint" in said
    assert main(["doctor", *words, f"++encoder.spec.weights_sha256={'0' * 64}"]) == 1
    assert "published is 000000000000…: fetch it again" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", MEMBERS)
def test_the_doctor_says_of_every_encoder_what_it_lacks_here(name: str, capsys: pytest.CaptureFixture[str]):
    given = ["encoder.path=nowhere/nothing"] if name in OWN else []
    given += ["encoder.architecture=vit_tiny_patch16_224"] if name == "timm_vision" else []
    code = main(["doctor", f"encoder={name}", *given])
    said = capsys.readouterr().err
    faults = [line for line in said.splitlines() if line.startswith(" NO ")]
    assert (code, len(faults)) == ((0, 0) if name == "demo" else (1, 1)), said
    assert "Traceback" not in said
    if name != "demo":
        assert faults[0].startswith(" NO  encoder") or faults[0].startswith(" NO  weights")
        assert "pip install 'promptmil'" not in said  # the name of the extra is no markup
