"""The timm_vision family on real timm networks, saved as their authors would; run by test_timm_vision.py."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import timm
import torch
import yaml
from encoder_promises import PROMISES, tiles
from safetensors.torch import save_file

from feature_extraction.encoder import Encoder, to_network_input
from feature_extraction.encoders.timm_vision import TimmVisionSource
from feature_extraction.encoders.towers import TowersEncoder
from feature_extraction.errors import InputError

CPU = torch.device("cpu")
CONF = Path(__file__).parent.parent / "conf" / "encoder"
PUBLISHED = sorted(path.stem for path in CONF.glob("*.yaml") if "TimmVisionSource" in path.read_text())
MODELS = [name for name in PUBLISHED if name != "timm_vision"]
MILLIONS = {
    "uni": 303.4,
    "uni2_h": 681.4,
    "virchow": 631.2,
    "virchow2": 631.2,
    "gigapath": 1134.95,
    "h_optimus_0": 1134.8,
    "h_optimus_1": 1134.8,
    "h0_mini": 85.7,
}
"""Parameters, as published."""
PREFIX = {
    "uni": 1,
    "uni2_h": 9,
    "virchow": 1,
    "virchow2": 5,
    "gigapath": 1,
    "h_optimus_0": 5,
    "h_optimus_1": 5,
    "h0_mini": 5,
}
"""Class and register tokens, as published."""
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
GATED = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu", "mlp_ratio": 5.3375, "init_values": 1e-5, "reg_tokens": 4}
KINDS: dict[str, tuple[dict[str, object], str, int]] = {
    "plain": (SMALL | {"init_values": 1e-5}, "cls", 32),
    "registers": (SMALL | GATED, "cls+mean", 64),
    "no_embed_class": (SMALL | GATED | {"no_embed_class": True}, "cls", 32),
}


def options_of(name: str) -> dict[str, object]:
    options = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    del options["_target_"]
    return options


def card(width: int, **other: object) -> dict[str, object]:
    facts = {"name": "tiny", "widths": {"backbone": width}, "has_text": False, "input_px": 32, "tile_mpp": 0.5}
    return facts | {"mean": [0.7, 0.6, 0.7], "std": [0.2, 0.25, 0.2]} | other


def network_of(options: Mapping[str, object], seed: int = 0) -> torch.nn.Module:
    """As their model cards tell users to make them."""
    torch.manual_seed(seed)
    classes = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    given = {key: classes.get(key, value) for key, value in options.items()}
    network = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, **given)
    with torch.no_grad():
        for parameter in network.parameters():  # what starts at 0 or 1 would hide a mistake
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return network


def save(folder: Path, kind: str, seed: int = 0) -> tuple[dict[str, object], torch.nn.Module]:
    """Write a model in the layout of the hub; returns the options of its source, and the network itself."""
    given, pooling, width = KINDS[kind]
    network = network_of(given, seed)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    options = {"path": str(folder), "spec": card(width), "pooling": pooling, "options": given}
    return options | {"architecture": "vit_tiny_patch16_224"}, network.eval()


class Loaded:
    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.options, self.network = save(folder, kind)
        self.encoder: TowersEncoder = TimmVisionSource(**self.options).load(CPU)


@pytest.fixture(scope="module", params=KINDS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_a_promise_is_kept(promise: Callable[[Encoder, int], None], loaded: Loaded):
    promise(loaded.encoder, 40)


def test_a_tile_has_the_tokens_that_timm_computes_pooled_as_a_plain_loop_pools_them(loaded: Loaded):
    with torch.inference_mode():
        tokens = loaded.network.forward_features(to_network_input(tiles(3, 40), loaded.encoder.spec))
    n_prefix = 1 + int(str(loaded.options["options"].get("reg_tokens", 0)))
    assert tokens.shape == (3, n_prefix + 16, 32)
    rows = []
    for tile in tokens.tolist():
        mean = [sum(token[i] for token in tile[n_prefix:]) / 16 for i in range(32)]
        rows.append(tile[0] + (mean if loaded.options["pooling"] == "cls+mean" else []))
    found = loaded.encoder.embed_tiles(tiles(3, 40), ["backbone"])["backbone"]
    torch.testing.assert_close(found, torch.tensor(rows), atol=1e-5, rtol=1e-5)


def test_the_class_token_is_what_timm_returns_itself(tmp_path: Path):
    options, network = save(tmp_path, "plain")
    encoder = TimmVisionSource(**options).load(CPU)
    with torch.inference_mode():
        theirs = network(to_network_input(tiles(2, 40), encoder.spec))
    found = encoder.embed_tiles(tiles(2, 40), ["backbone"])["backbone"]
    torch.testing.assert_close(found, theirs, atol=1e-6, rtol=1e-5)
    own = TimmVisionSource(**options | {"pooling": "own"}).load(CPU)
    assert torch.equal(own.embed_tiles(tiles(2, 40), ["backbone"])["backbone"], found)


def test_pooling_is_part_of_what_a_feature_file_says(tmp_path: Path):
    options, _ = save(tmp_path, "registers")
    assert TimmVisionSource(**options).spec.transform()["variant"] == "cls+mean"
    other = TimmVisionSource(**options | {"pooling": "cls", "spec": card(32)})
    assert "variant" not in other.spec.transform()
    assert other.load(CPU).fingerprint == TimmVisionSource(**options).load(CPU).fingerprint


def test_weights_are_the_same_in_both_formats_and_in_a_training_checkpoint(tmp_path: Path):
    options, network = save(tmp_path, "plain")
    first = TimmVisionSource(**options).load(CPU).fingerprint
    tensors = dict(network.state_dict())
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save({"model": {f"module.{name}": tensor for name, tensor in tensors.items()}}, tmp_path / "x.pth")
    for file in ("x.safetensors", "x.pth"):
        assert TimmVisionSource(**options | {"path": str(tmp_path / file)}).load(CPU).fingerprint == first
    other, _ = save(tmp_path / "other", "plain", seed=1)
    assert TimmVisionSource(**other).load(CPU).fingerprint != first


def test_a_missing_a_renamed_and_a_surplus_tensor_are_refused(tmp_path: Path):
    options, network = save(tmp_path, "plain")
    whole, name = dict(network.state_dict()), "blocks.1.ls2.gamma"
    for changed, fault in (
        ({key: value for key, value in whole.items() if key != name}, f"1 missing: {name}"),
        ({f"{key}x" if key == name else key: value for key, value in whole.items()}, f"1 unexpected: {name}x"),
        (whole | {"head.weight": torch.zeros(2, 32)}, r"1 unexpected: head\.weight"),
    ):
        torch.save(changed, tmp_path / "pytorch_model.bin")
        with pytest.raises(InputError, match=fault):
            TimmVisionSource(**options).load(CPU)


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"spec": card(48)}, "it makes 32 numbers a tile, the card says 48"),
        ({"pooling": "cls+mean"}, "it makes 64 numbers a tile, the card says 32"),
        ({"spec": card(32, input_px=64)}, "it sees 32 px, the card says 64"),
        ({"architecture": "vit_unheard_of"}, r"cannot make it: Unknown model \(vit_unheard_of\)"),
        ({"options": SMALL | {"unheard_of": 1}}, "cannot make it: .*unheard_of"),
        ({"options": SMALL | {"mlp_layer": "os.system"}}, r"timm\.layers has no such layer"),
        ({"architecture": "test_resnet", "options": {}}, "no class token for pooling=cls; set encoder.pooling=own"),
    ],
)
def test_a_card_that_the_network_contradicts_is_refused(changed: dict[str, object], fault: str, tmp_path: Path):
    options, _ = save(tmp_path, "plain")
    with pytest.raises(InputError, match=fault):
        TimmVisionSource(**options | changed).load(CPU)


def test_a_network_without_tokens_pools_as_it_does_itself(tmp_path: Path):
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    spec = card(network.num_features)
    encoder = TimmVisionSource(path=str(tmp_path), spec=spec, architecture="test_resnet", pooling="own").load(CPU)
    with torch.inference_mode():
        theirs = network.eval()(to_network_input(tiles(2, 40), encoder.spec))
        trained = network.train()(to_network_input(tiles(2, 40), encoder.spec))
    found = encoder.embed_tiles(tiles(2, 40), ["backbone"])["backbone"]
    torch.testing.assert_close(found, theirs)
    assert not torch.allclose(found, trained, atol=1e-3)


def test_what_a_network_computes_while_it_is_built_is_there(tmp_path: Path):
    """Swin's tables of relative positions are in no weights file; on the meta device they would be lost."""
    given = {"img_size": 64, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}
    torch.manual_seed(0)
    network = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, num_classes=0, **given).eval()
    hidden = dict(network.named_buffers()).keys() - network.state_dict().keys()
    assert hidden
    torch.save(network.state_dict(), tmp_path / "swin.pt")
    spec, name = card(network.num_features, input_px=64), "swin_tiny_patch4_window7_224"
    source = TimmVisionSource(
        path=str(tmp_path / "swin.pt"), spec=spec, architecture=name, options=given, pooling="own"
    )
    with torch.inference_mode():
        theirs = network(to_network_input(tiles(2, 40), source.spec))
    torch.testing.assert_close(source.load(CPU).embed_tiles(tiles(2, 40), ["backbone"])["backbone"], theirs)


@pytest.mark.parametrize("name", MODELS)
def test_a_published_architecture_is_what_its_card_says(name: str):
    source = TimmVisionSource(**options_of(name))
    network = source.build()
    assert all(parameter.is_meta for parameter in network.parameters())
    n_millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert n_millions == pytest.approx(MILLIONS[name], abs=0.06)
    assert network.num_prefix_tokens == PREFIX[name]


def test_every_published_model_is_counted():
    assert set(MODELS) == set(MILLIONS) == set(PREFIX)


@pytest.mark.parametrize("name", MODELS)
def test_a_published_model_shrunk_to_two_blocks_loads_and_embeds(name: str, tmp_path: Path):
    """Everything that its yaml says, but for the size."""
    options = options_of(name)
    patch = options["options"].get("patch_size", 14 if "patch14" in str(options["architecture"]) else 16)
    small = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 4 * patch}
    given = options["options"] | small
    classes = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    torch.manual_seed(0)
    theirs = timm.create_model(
        options["architecture"], num_classes=0, **{key: classes.get(key, value) for key, value in given.items()}
    )
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    width = 64 if options.get("pooling") == "cls+mean" else 32
    resize = {"resize_px": 5 * patch} if name == "gigapath" else {}
    spec = options["spec"] | {"widths": {"backbone": width}, "input_px": 4 * patch} | resize
    encoder = TimmVisionSource(**options | {"path": str(tmp_path), "options": given, "spec": spec}).load(CPU)
    found = encoder.embed_tiles(tiles(2, 40), ["backbone"])["backbone"]
    with torch.inference_mode():
        tokens = theirs.eval().forward_features(to_network_input(tiles(2, 40), encoder.spec))
    assert found.shape == (2, width)
    torch.testing.assert_close(found[:, :32], tokens[:, 0], atol=1e-6, rtol=1e-5)
    assert torch.isfinite(found).all()
