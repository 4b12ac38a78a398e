"""TITAN: its code is run only when that is said, at a pinned revision; a stand-in with real remote code is loaded."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import save_file
from test_store import HEADER

from feature_extraction.commands import embed_slides
from feature_extraction.encoders.titan import TitanSource
from feature_extraction.errors import InputError, MismatchError
from feature_extraction.store import FeatureRows, write_features

CPU = torch.device("cpu")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel

class StandInConfig(PretrainedConfig):
    model_type = "stand_in"

class StandIn(PreTrainedModel):
    config_class = StandInConfig
    def __init__(self, config):
        super().__init__(config)
        self.proj = torch.nn.Linear(config.width, 3)  # and, like TITAN, no post_init()
    def encode_slide_from_patch_features(self, patch_features, patch_coords, patch_size_lv0):
        weight = 1 + patch_coords.sum(-1, keepdim=True) / patch_size_lv0
        return self.proj((patch_features * weight).mean(1))
"""


def write(folder: Path, code: str = CODE, width: int = 4) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "modeling_stand_in.py").write_text(code)
    names = {"AutoConfig": "modeling_stand_in.StandInConfig", "AutoModel": "modeling_stand_in.StandIn"}
    (folder / "config.json").write_text(json.dumps({"model_type": "stand_in", "auto_map": names, "width": width}))
    save_file({"proj.weight": torch.ones(3, width), "proj.bias": torch.arange(3.0)}, folder / "model.safetensors")
    return folder


@pytest.fixture(autouse=True)
def own_module_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def test_code_is_not_run_unless_that_is_said(tmp_path: Path):
    with pytest.raises(InputError, match=r"set slide_encoder\.trust_remote_code=true"):
        TitanSource(path=str(write(tmp_path / "a")))


@pytest.mark.parametrize("revision", ["", "main", "dac6773"])
def test_code_from_a_hub_is_run_at_a_full_commit_only(revision: str):
    with pytest.raises(InputError, match="full commit of 40 hex digits"):
        TitanSource(path="MahmoodLab/TITAN", revision=revision, trust_remote_code=True)


def test_a_slide_becomes_one_vector_by_features_and_places(tmp_path: Path):
    encoder = TitanSource(path=str(write(tmp_path / "stand_in")), trust_remote_code=True).load(CPU)
    features = torch.tensor([[1.0, 0, 0, 0], [0, 3, 0, 0]])
    found = encoder.embed_slide(features, torch.tensor([[0, 0], [512, 0]]), 512)
    torch.testing.assert_close(found, torch.tensor([3.5, 4.5, 5.5]))


def test_weights_that_are_not_whole_are_refused(tmp_path: Path):
    folder = write(tmp_path / "lacking")
    save_file({"proj.weight": torch.ones(3, 4)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"it lacks \['proj\.bias'\]"):
        TitanSource(path=str(folder), trust_remote_code=True).load(CPU)


def test_a_package_that_its_code_needs_is_named(tmp_path: Path):
    folder = write(tmp_path / "importing", "import a_package_that_is_not_there\n" + CODE)
    with pytest.raises(InputError, match="a_package_that_is_not_there"):
        TitanSource(path=str(folder), trust_remote_code=True).load(CPU)


def test_a_hub_that_is_not_to_be_had_is_one_line():
    with pytest.raises(InputError, match=r"slide_encoder\.path=owner/nowhere: .*HF_HUB_OFFLINE is set") as caught:
        TitanSource(path="owner/nowhere", revision=COMMIT, trust_remote_code=True).load(CPU)
    assert "\n" not in str(caught.value)


def test_the_pinned_revision_is_run_and_no_other_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Out of a hub's cache, by a configuration that names its code in another place, as configurations may."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshots = tmp_path / "hub" / "models--owner--titan" / "snapshots"
    snapshots.mkdir(parents=True)
    folder = write(snapshots / COMMIT)
    config = json.loads((folder / "config.json").read_text())
    elsewhere = {kind: f"someone/else--{name}" for kind, name in config["auto_map"].items()}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": elsewhere}))
    source = TitanSource(path="owner/titan", revision=COMMIT, trust_remote_code=True)
    found = source.load(CPU).embed_slide(torch.eye(4)[:1], torch.tensor([[0, 0]]), 512)
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0, 3.0]))
    assert (source.name, source.revision) == ("titan", COMMIT)


@pytest.mark.parametrize("code", ["raise ZeroDivisionError('odd')\n", "def broken(:\n"])
def test_code_that_breaks_is_one_line(code: str, tmp_path: Path):
    folder = write(tmp_path / "broken", CODE + code)
    with pytest.raises(InputError, match="cannot be loaded as TITAN: ") as caught:
        TitanSource(path=str(folder), trust_remote_code=True).load(CPU)
    assert "\n" not in str(caught.value)


FITTING = replace(HEADER, encoder="conch_v1_5", space="backbone", tile_mpp=0.5, step_lv0="[512.0, 512.0]")


def features(folder: Path, **changed: object) -> Path:
    folder.mkdir()
    for slide_id, n in (("A", 2), ("B", 3)):
        rows = FeatureRows(
            spaces={str(changed.get("space", "backbone")): np.eye(n, 4, dtype=np.float16)},
            coords_lv0=np.array([[512 * tile, 0] for tile in range(n)]),
            tissue_fraction=np.ones(n, np.float32),
            failed_coords_lv0=np.empty((0, 2), np.int64),
        )
        write_features(folder / f"{slide_id}.h5", replace(FITTING, slide_id=slide_id, **changed), rows)
    return folder


def run(features: Path, slide_encoder: Path, out: Path) -> int:
    config = {
        "slide_encoder": {
            "_target_": "feature_extraction.encoders.titan.TitanSource",
            "path": str(slide_encoder),
            "trust_remote_code": True,
        },
        "features": str(features),
        "out": str(out),
        "device": "cpu",
        "licence_profile": "any",
    }
    return embed_slides.run(OmegaConf.create(config))


def test_the_command_writes_one_vector_a_slide(tmp_path: Path):
    assert run(features(tmp_path / "features"), write(tmp_path / "stand_in"), tmp_path / "out") == 0
    with safe_open(tmp_path / "out" / "slides.safetensors", "np") as file:
        found, described = file.get_tensor("embeddings"), json.loads(file.metadata()["promptmil"])
    np.testing.assert_allclose(found, [[1.5, 2.5, 3.5], [2, 3, 4]])
    assert described["slide_ids"] == ["A", "B"]
    assert described["encoder_fingerprint"] == HEADER.encoder_fingerprint
    assert (described["slide_encoder"], described["revision"]) == ("stand_in", "local")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"encoder": "conch"}, "encoder conch, expected conch_v1_5"),
        ({"space": "joint"}, "it has no backbone space but joint"),
        ({"tile_mpp": 1.0}, "tiles at 1.0 µm per pixel, expected 0.5"),
        ({"step_lv0": "[512.0, 256.0]"}, "steps of 512 and 256 level-0 pixels"),
    ],
)
def test_features_that_the_slide_encoder_was_not_trained_on_are_refused(tmp_path: Path, changed: dict, message: str):
    with pytest.raises(MismatchError, match=message):
        run(features(tmp_path / "features", **changed), write(tmp_path / "stand_in"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
