"""The open_clip family on real open_clip networks, tiny, saved as their authors would; run by test_open_clip.py."""

import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
import transformers
import yaml
from encoder_promises import PROMISES, joint_is_the_unit_product, tiles
from safetensors.torch import load_file, save_file

from feature_extraction.encoder import Encoder, to_network_input
from feature_extraction.encoders.card import differences
from feature_extraction.encoders.open_clip import OpenClipSource, _stated
from feature_extraction.encoders.open_clip_towers import build
from feature_extraction.encoders.towers import TowersEncoder
from feature_extraction.errors import InputError

CPU = torch.device("cpu")
CONF = Path(__file__).parent.parent / "conf" / "encoder"
TEXTS = ["an image of normal lung", "keratin pearls", "sheets of tumor cells & stroma"]
KINDS = ["clip", "bert", "coca"]
CONTEXT = 16
WORDS = ["an", "image", "of", "normal", "lung", "keratin", "pearls", "gland", "sheets", "tumor", "cells", "&", "stroma"]
TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
ARCHITECTURES: dict[str, dict[str, object]] = {
    "clip": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT},
    "bert": {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160},
        "text_cfg": {
            "hf_model_name": "owner/text-tower",
            "hf_tokenizer_name": "owner/text-tower",
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": CONTEXT,
        },
    },
    "coca": {
        "embed_dim": 24,
        "vision_cfg": VISION
        | {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 8, "output_tokens": True},
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": CONTEXT, "width": 32, "heads": 2, "layers": 1, "attn_pooler_heads": 2},
        "custom_text": True,
    },
}
BACKBONES = {"clip": 32, "bert": 64, "coca": 24}
PREPROCESSING = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}


def card(kind: str, **other: object) -> dict[str, object]:
    vision = dict(ARCHITECTURES[kind]["vision_cfg"])
    facts = {
        "name": f"tiny_{kind}",
        "widths": {"joint": 24, "backbone": BACKBONES[kind]},
        "input_px": vision["image_size"],
        "tile_mpp": 0.5,
        "context_length": CONTEXT,
    }
    return facts | PREPROCESSING | other


def text_tower(folder: Path) -> Path:
    """Configuration and tokenizer of a tiny PubMedBERT, as its own repository holds them."""
    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    ).save_pretrained(folder)
    return folder


def network_of(architecture: dict[str, object], text: Path | None = None, seed: int = 0) -> torch.nn.Module:
    """As open_clip makes it, in the training mode that it comes in."""
    torch.manual_seed(seed)
    content = json.loads(json.dumps(architecture))
    if text is not None:
        content["text_cfg"] |= {"hf_model_name": str(text), "hf_model_pretrained": False}
    is_custom = content.pop("custom_text", False) or text is not None
    kind = open_clip.CoCa if "multimodal_cfg" in content else open_clip.CustomTextCLIP if is_custom else open_clip.CLIP
    network = kind(**content)
    with torch.no_grad():
        for parameter in network.parameters():  # what starts at 0 or 1 would hide a mistake
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return network


def save(folder: Path, kind: str, seed: int = 0, **other: object) -> tuple[dict[str, object], torch.nn.Module]:
    """Write a model in the layout of the hub; returns the options of its source, and the network itself."""
    folder.mkdir(parents=True, exist_ok=True)
    architecture = ARCHITECTURES[kind] | other
    text = text_tower(folder / "text") if kind == "bert" else None
    network = network_of(architecture, text, seed)
    config = {"model_cfg": architecture, "preprocess_cfg": PREPROCESSING}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    if kind == "bert":  # transformers before 4.31 kept them
        tensors["text.transformer.embeddings.position_ids"] = torch.arange(64)[None]
    torch.save(tensors, folder / "open_clip_pytorch_model.bin")
    options = {"path": str(folder), "spec": card(kind)} | ({} if text is None else {"text_path": str(text)})
    return options, network.eval()


def theirs(kind: str, options: dict[str, object]) -> Callable[[list[str]], torch.Tensor]:
    """open_clip's own tokenizer for such a model."""
    if kind == "bert":
        return open_clip.tokenizer.HFTokenizer(options["text_path"], context_length=CONTEXT)
    return open_clip.SimpleTokenizer(context_length=CONTEXT)


class Loaded:
    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.options, self.network = save(folder, kind)
        self.encoder: TowersEncoder = OpenClipSource(**self.options).load(CPU)


@pytest.fixture(scope="module", params=KINDS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_a_promise_is_kept(promise: Callable[[Encoder, int], None], loaded: Loaded):
    promise(loaded.encoder, 40)


def test_joint_is_the_unit_product_of_backbone_and_the_stored_matrix(loaded: Loaded):
    assert loaded.encoder.spec.widths["backbone"] == BACKBONES[loaded.kind]
    stored = loaded.network.state_dict()
    matrix = stored["visual.head.proj.weight"].T if loaded.kind == "bert" else stored["visual.proj"]
    joint_is_the_unit_product(loaded.encoder, 40, matrix)


def test_both_towers_equal_what_open_clip_computes(loaded: Loaded):
    pixels = to_network_input(tiles(3, 40), loaded.encoder.spec)
    tokens = theirs(loaded.kind, loaded.options)(TEXTS)
    with torch.inference_mode():
        image = loaded.network.encode_image(pixels, normalize=True)
        text = loaded.network.encode_text(tokens, normalize=True)
    found = loaded.encoder.embed_tiles(tiles(3, 40), ["joint"])["joint"]
    torch.testing.assert_close(found, image, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(loaded.encoder.embed_texts(TEXTS), text, atol=1e-6, rtol=1e-5)


def test_tokens_are_counted_before_any_cut(loaded: Loaded):
    long = " ".join(["keratin"] * 40)
    counts = loaded.encoder.count_tokens([long, "lung", ""])
    assert counts[0] > 40 > CONTEXT
    assert counts[1:] == [3, 2]
    tokens = theirs(loaded.kind, loaded.options)([long])
    with torch.inference_mode():
        cut = loaded.network.encode_text(tokens, normalize=True)
    torch.testing.assert_close(loaded.encoder.embed_texts([long]), cut, atol=1e-6, rtol=1e-5)


def test_logit_scale_is_the_checkpoints(loaded: Loaded):
    assert loaded.encoder.logit_scale == pytest.approx(loaded.network.logit_scale.item())
    assert loaded.encoder.logit_bias == 0


def test_a_sigmoid_model_has_its_bias(tmp_path: Path):
    options, network = save(tmp_path, "clip", init_logit_bias=-10.0)
    encoder = OpenClipSource(**options).load(CPU)
    assert encoder.logit_bias == pytest.approx(network.logit_bias.item())
    assert encoder.logit_bias < -9


def test_a_network_that_drops_patches_in_training_drops_none(tmp_path: Path):
    """open_clip hands out networks in training mode; with this one that cannot go unseen."""
    options, network = save(tmp_path, "clip", vision_cfg=VISION | {"patch_dropout": 0.5})
    encoder = OpenClipSource(**options).load(CPU)
    assert not any(module.training for module in encoder._network.modules())
    pixels = to_network_input(tiles(3, 40), encoder.spec)
    with torch.inference_mode():
        evaluated = network.eval().encode_image(pixels, normalize=True)
        trained = network.train().encode_image(pixels, normalize=True)
    found = encoder.embed_tiles(tiles(3, 40), ["joint"])["joint"]
    torch.testing.assert_close(found, evaluated, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(found, trained, atol=1e-3)


def test_quick_gelu_is_what_the_yaml_says_and_the_other_gelu_gives_other_vectors(tmp_path: Path):
    options, network = save(tmp_path, "clip", quick_gelu=True)
    pixels = to_network_input(tiles(3, 40), OpenClipSource(**options).spec)
    with torch.inference_mode():
        right = (
            network.encode_image(pixels, normalize=True),
            network.encode_text(theirs("clip", options)(TEXTS), normalize=True),
        )
    for said, is_right in ((None, True), (True, True), (False, False)):
        encoder = OpenClipSource(**options, quick_gelu=said).load(CPU)
        found = encoder.embed_tiles(tiles(3, 40), ["joint"])["joint"], encoder.embed_texts(TEXTS)
        for mine, upstream in zip(found, right, strict=True):
            assert torch.allclose(mine, upstream, atol=1e-6) == is_right


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_a_renamed_and_a_surplus_tensor_are_refused(kind: str, tmp_path: Path):
    options, _ = save(tmp_path, kind)
    file = tmp_path / "open_clip_pytorch_model.bin"
    whole = torch.load(file)
    name = next(name for name in whole if name.startswith("visual.") and whole[name].ndim == 2)
    for changed, fault in (
        ({key: value for key, value in whole.items() if key != name}, f"1 missing: {name}"),
        ({f"{key}x" if key == name else key: value for key, value in whole.items()}, f"1 unexpected: {name}x"),
        (whole | {"visual.extra": torch.zeros(1)}, r"1 unexpected: visual\.extra"),
        (whole | {name: whole[name][1:]}, f"1 of another shape: {name}"),
    ):
        torch.save(changed, file)
        with pytest.raises(InputError, match=fault):
            OpenClipSource(**options).load(CPU)


@pytest.mark.parametrize(
    ("fact", "wrong"),
    [
        ("input_px", 64),
        ("mean", [0.5, 0.5, 0.5]),
        ("std", [0.5, 0.5, 0.5]),
        ("context_length", 77),
        ("widths", {"joint": 24, "backbone": 48}),
        ("widths", {"joint": 32, "backbone": 32}),
    ],
)
def test_a_card_that_the_configuration_contradicts_is_refused(fact: str, wrong: object, tmp_path: Path):
    options, _ = save(tmp_path, "clip")
    with pytest.raises(InputError, match=rf"is not tiny_clip: {fact} is"):
        OpenClipSource(**options | {"spec": card("clip", **{fact: wrong})}).load(CPU)


def test_a_training_checkpoint_and_the_name_of_its_architecture_are_enough(tmp_path: Path):
    options, network = save(tmp_path / "hub", "clip")
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": {}}, tmp_path / "epoch_3.pt")
    source = OpenClipSource(path=str(tmp_path / "epoch_3.pt"), spec=card("clip"), model=ARCHITECTURES["clip"])
    assert source.is_local()
    assert source.load(CPU).fingerprint == OpenClipSource(**options).load(CPU).fingerprint


def test_fingerprint_is_of_both_towers_and_of_no_decoder(tmp_path: Path):
    options, network = save(tmp_path, "coca")
    encoder = OpenClipSource(**options).load(CPU)
    assert not any("text_decoder" in name for name, _ in encoder._network.named_parameters())
    file, tensors = tmp_path / "open_clip_model.safetensors", dict(network.state_dict())
    for prefix, is_same in (("text_decoder.", True), ("visual.", False), ("text.", False)):
        name = next(name for name in tensors if name.startswith(prefix))
        save_file({key: value.clone() for key, value in (tensors | {name: tensors[name] + 1}).items()}, file)
        assert (OpenClipSource(**options).load(CPU).fingerprint == encoder.fingerprint) == is_same
    assert set(load_file(file)) == set(tensors)


def test_coca_is_read_to_the_last_tensor_of_its_decoder(tmp_path: Path):
    options, network = save(tmp_path, "coca")
    short = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("text_decoder.")}
    torch.save(short, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(InputError, match=r"missing: text_decoder\."):
        OpenClipSource(**options).load(CPU)


def test_a_pickle_that_would_run_code_is_refused_with_the_remedy(tmp_path: Path):
    options, network = save(tmp_path, "clip")
    torch.save({"state_dict": network.state_dict(), "args": Path("x")}, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(InputError, match=r"would run code when read; .* save its state_dict as \.safetensors"):
        OpenClipSource(**options).load(CPU)


def test_a_text_tower_that_is_nowhere_is_one_line_that_says_which_key_to_set(tmp_path: Path):
    options, _ = save(tmp_path, "bert")
    with pytest.raises(InputError, match=r"owner/text-tower, which is not to be had; set encoder\.text_path") as caught:
        OpenClipSource(path=options["path"], spec=options["spec"]).load(CPU)
    assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no tokenizer can be read from it"):
        OpenClipSource(**options | {"text_path": str(tmp_path / "empty")}).load(CPU)


def test_text_options_by_their_former_names_are_understood(tmp_path: Path):
    options, _ = save(tmp_path, "bert")
    today = OpenClipSource(**options).load(CPU).embed_texts(TEXTS)
    file = tmp_path / "open_clip_config.json"
    stated = file.read_text()
    file.write_text(stated.replace("hf_proj_type", "proj").replace("hf_pooler_type", "pooler_type"))
    assert file.read_text() != stated
    assert torch.equal(OpenClipSource(**options).load(CPU).embed_texts(TEXTS), today)


def test_text_positions_that_do_not_count_up_are_no_bookkeeping(tmp_path: Path):
    options, _ = save(tmp_path, "bert")
    file = tmp_path / "open_clip_pytorch_model.bin"
    tensors = torch.load(file) | {"text.transformer.embeddings.position_ids": torch.arange(64).flip(0)[None]}
    torch.save(tensors, file)
    with pytest.raises(InputError, match=r"unexpected: text\.transformer\.embeddings\.position_ids"):
        OpenClipSource(**options).load(CPU)


def test_a_tower_that_ends_in_the_joint_space_has_a_projection_that_only_normalises(tmp_path: Path):
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32}
    options, network = save(tmp_path, "clip", vision_cfg=vision)
    spec = card("clip", widths={"joint": 24, "backbone": 24})
    encoder = OpenClipSource(**options | {"spec": spec}).load(CPU)
    found = encoder.embed_tiles(tiles(2, 40), ["backbone", "joint"])
    with torch.inference_mode():
        image = network.encode_image(to_network_input(tiles(2, 40), encoder.spec))
    torch.testing.assert_close(found["backbone"], image, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found["joint"], torch.nn.functional.normalize(image, dim=-1), atol=1e-6, rtol=1e-5)


def test_what_is_no_model_says_what_is_wrong(tmp_path: Path):
    options, _ = save(tmp_path, "clip")
    with pytest.raises(InputError, match=r"encoder\.model=ViT-Q-1: unknown"):
        OpenClipSource(**options, model="ViT-Q-1").load(CPU)
    with pytest.raises(InputError, match="embed_dim, vision_cfg and text_cfg must be in"):
        OpenClipSource(**options, model={"embed_dim": 24}).load(CPU)
    with pytest.raises(InputError, match=r"cannot make the architecture that is configured: .*unheard_of"):
        OpenClipSource(**options, model=ARCHITECTURES["clip"] | {"unheard_of": 1}).load(CPU)
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(InputError, match=r"open_clip_config\.json is not JSON"):
        OpenClipSource(**options).load(CPU)
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(InputError, match=r"no open_clip_config\.json with it; name the architecture"):
        OpenClipSource(**options).load(CPU)


PUBLISHED = sorted(path.stem for path in CONF.glob("*.yaml") if "OpenClipSource" in path.read_text())
NAMED = [name for name in PUBLISHED if yaml.safe_load((CONF / f"{name}.yaml").read_text()).get("model")]
MILLIONS = {"pathclip": 149.6, "pathgen_clip": 149.6, "pathgen_clip_l": 427.9, "omiclip": 638.5}
"""Parameters, as published."""


def n_millions(network: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


@pytest.mark.parametrize("name", NAMED)
def test_a_published_architecture_is_what_its_card_says(name: str):
    options = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    del options["_target_"]
    source = OpenClipSource(**options)
    architecture, preprocessing = source._configuration()
    with torch.device("meta"):
        network = build(architecture)
    assert differences(_stated(architecture, preprocessing, network, source.spec), source.spec) == []
    assert n_millions(network) == pytest.approx(MILLIONS[name], abs=0.06)
    assert ("quick_gelu" in architecture) == (name != "omiclip")


@pytest.mark.parametrize(("name", "patch_px"), [("quiltnet_b_32", 32), ("quiltnet_b_16", 16)])
def test_a_published_configuration_is_what_its_card_says(name: str, patch_px: int, tmp_path: Path):
    config = {
        "model_cfg": {
            "embed_dim": 512,
            "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": patch_px},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
        },
        "preprocess_cfg": {
            "mean": [0.48145466, 0.4578275, 0.40821073],
            "std": [0.26862954, 0.26130258, 0.27577711],
        },
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    options = yaml.safe_load((CONF / f"{name}.yaml").read_text()) | {"path": str(tmp_path)}
    del options["_target_"]
    source = OpenClipSource(**options)
    architecture, preprocessing = source._configuration()
    with torch.device("meta"):
        network = build(architecture)
    assert differences(_stated(architecture, preprocessing, network, source.spec), source.spec) == []


@pytest.mark.parametrize("name", ["biomedclip", "quiltnet_b_16_pmb"])
def test_the_two_with_pubmedbert_are_what_their_cards_say(name: str, tmp_path: Path):
    text = text_tower(tmp_path / "text")
    transformers.BertConfig().save_pretrained(text)  # PubMedBERT has the shape of BERT-base
    section = ARCHITECTURES["bert"]["text_cfg"] | {"context_length": 256}
    vision = {"timm_model_name": "vit_base_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 224}
    config = {"model_cfg": {"embed_dim": 512, "vision_cfg": vision, "text_cfg": section}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    options = yaml.safe_load((CONF / f"{name}.yaml").read_text()) | {"path": str(tmp_path), "text_path": str(text)}
    del options["_target_"]
    source = OpenClipSource(**options)
    architecture, preprocessing = source._configuration()
    with torch.device("meta"):
        network = build(architecture)
    assert differences(_stated(architecture, preprocessing, network, source.spec), source.spec) == []
    assert n_millions(network) == pytest.approx(196, abs=0.5)  # open_clip_pytorch_model.bin has 784 MB
