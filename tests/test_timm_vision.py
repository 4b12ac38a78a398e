"""Image-only families: timm_vision in a process that has timm, hf_vision on real transformers classes."""

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
import vision_packages
import yaml
from encoder_promises import tiles
from safetensors.torch import load_file, save_file

from feature_extraction.encoder import to_network_input
from feature_extraction.encoders.hf_vision import HfVisionSource
from feature_extraction.encoders.timm_vision import TimmVisionSource
from feature_extraction.encoders.towers import TowersEncoder
from feature_extraction.errors import InputError

CPU = torch.device("cpu")
CONF = Path(__file__).parent.parent / "conf" / "encoder"
KINDS = ["vit", "dinov2"]
SIDE = 32


def test_the_family_computes_what_timm_computes():
    vision_packages.run_cases("timm_vision_cases.py")


def options_of(name: str, **other: object) -> dict[str, object]:
    options = yaml.safe_load((CONF / f"{name}.yaml").read_text()) | other
    del options["_target_"]
    return options


def test_a_missing_timm_is_one_line_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"needs timm: pip install 'promptmil\[timm\]'"):
        TimmVisionSource(**options_of("uni")).load(CPU)


def test_what_the_yaml_cannot_mean_is_refused():
    with pytest.raises(InputError, match=r"encoder\.pooling=mean: expected one of cls, cls\+mean, own"):
        TimmVisionSource(**options_of("uni", pooling="mean"))
    spec = options_of("pathclip")["spec"]
    with pytest.raises(InputError, match=r"set spec\.has_text=false"):
        TimmVisionSource(**options_of("uni", spec=spec))
    with pytest.raises(InputError, match=r"set spec\.has_text=false"):
        HfVisionSource(path="nowhere", spec=spec)


def card(**other: object) -> dict[str, object]:
    facts = {"name": "tiny", "widths": {"backbone": 32}, "has_text": False, "input_px": SIDE, "tile_mpp": 0.5}
    return facts | {"mean": [0.7, 0.6, 0.7], "std": [0.2, 0.25, 0.2]} | other


def save(folder: Path, kind: str, seed: int = 0, **other: object) -> torch.nn.Module:
    """Write a model as its authors would."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}
    config = transformers.AutoConfig.for_model(kind, **sizes | other)
    model = transformers.AutoModel.from_config(config)
    model.save_pretrained(folder)
    size = {"do_center_crop": True, "crop_size": {"height": SIDE, "width": SIDE}, "size": {"shortest_edge": 40}}
    image = {"image_mean": [0.7, 0.6, 0.7], "image_std": [0.2, 0.25, 0.2]} | size
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    return model.eval()


def tiny(folder: Path, kind: str) -> TowersEncoder:
    save(folder, kind)
    return HfVisionSource(path=str(folder), spec=card()).load(CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tile_is_the_class_token_that_transformers_computes(kind: str, tmp_path: Path):
    model = save(tmp_path, kind)
    encoder = HfVisionSource(path=str(tmp_path), spec=card()).load(CPU)
    with torch.inference_mode():
        tokens = model(pixel_values=to_network_input(tiles(3, 40), encoder.spec)).last_hidden_state
    found = encoder.embed_tiles(tiles(3, 40), ["backbone"])["backbone"]
    torch.testing.assert_close(found, tokens[:, 0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprint_is_of_the_published_weights_and_not_of_an_unused_layer(kind: str, tmp_path: Path):
    save(tmp_path, kind)
    source, file = HfVisionSource(path=str(tmp_path), spec=card()), tmp_path / "model.safetensors"
    assert source.is_local()
    assert source.weights_file() == file
    first, tensors = source.load(CPU).fingerprint, load_file(file)
    unused = {name: tensor for name, tensor in tensors.items() if not name.startswith("pooler.")}
    save_file(unused, file, metadata={"format": "pt"})
    assert source.load(CPU).fingerprint == first
    name = "embeddings.cls_token"
    save_file(tensors | {name: tensors[name] + 1}, file, metadata={"format": "pt"})
    assert source.load(CPU).fingerprint != first


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_and_a_surplus_tensor_are_refused(kind: str, tmp_path: Path):
    save(tmp_path, kind)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    short = {name: tensor for name, tensor in whole.items() if name != "layernorm.weight"}
    surplus = whole | {"x": torch.zeros(1)}
    for changed, fault in ((short, r"1 missing: layernorm\.weight"), (surplus, "1 unexpected: x")):
        save_file(changed, file, metadata={"format": "pt"})
        with pytest.raises(InputError, match=fault):
            HfVisionSource(path=str(tmp_path), spec=card()).load(CPU)


@pytest.mark.parametrize(
    ("fact", "wrong"), [("widths", {"backbone": 64}), ("input_px", 40), ("mean", [0.5] * 3), ("std", [0.5] * 3)]
)
def test_a_card_that_the_folder_contradicts_is_refused(fact: str, wrong: object, tmp_path: Path):
    save(tmp_path, "vit")
    with pytest.raises(InputError, match=f"is not tiny: {fact} is"):
        HfVisionSource(path=str(tmp_path), spec=card(**{fact: wrong})).load(CPU)


def test_another_kind_of_model_is_refused(tmp_path: Path):
    save(tmp_path, "vit")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(InputError, match="model_type is 'bert', the hf_vision family reads vit, dinov2"):
        HfVisionSource(path=str(tmp_path), spec=card()).load(CPU)


@pytest.mark.parametrize(
    ("name", "kind", "sizes", "n_millions"),
    [
        ("phikon", "vit", {"num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}, 85.8),
        ("phikon_v2", "dinov2", {"num_hidden_layers": 24, "num_attention_heads": 16}, 303.4),
    ],
)
def test_a_published_architecture_is_what_its_card_says(name: str, kind: str, sizes: dict[str, int], n_millions: float):
    spec = HfVisionSource(**options_of(name)).spec
    config = transformers.AutoConfig.for_model(
        kind, hidden_size=spec.widths["backbone"], image_size=spec.input_px, patch_size=16, **sizes
    )
    with torch.device("meta"):
        network = transformers.AutoModel.from_config(config, **({"add_pooling_layer": False} if kind == "vit" else {}))
        tokens = network(pixel_values=torch.zeros(2, 3, spec.input_px, spec.input_px)).last_hidden_state
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(n_millions, abs=0.06)
    assert tokens[:, 0].shape == (2, spec.widths["backbone"])
