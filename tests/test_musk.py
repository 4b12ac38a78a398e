"""MUSK: published names and shapes, strict loading, both variants, and tokens as an independent loop mixes them."""

import io
import math
from pathlib import Path

import pytest
import rebuilt
import sentencepiece
import torch
from encoder_promises import joint_is_the_unit_product, tiles
from safetensors.torch import save_file

from feature_extraction.encoder import to_network_input
from feature_extraction.encoders.musk import MuskSource
from feature_extraction.encoders.musk_towers import MUSK_LARGE, Musk, MuskShape
from feature_extraction.encoders.towers import TowersEncoder
from feature_extraction.errors import InputError

SIDE = 32
WORDS = [
    "an",
    "image",
    "of",
    "normal",
    "lung",
    "with",
    "glands",
    "keratin",
    "pearls",
    "gland",
    "one",
    "two",
    "invasive",
    "squamous",
    "cells",
    "mitoses",
]
TINY = MuskShape(width=24, depth=2, n_heads=3, hidden=48, patch_px=8, image_px=SIDE, vocabulary=90, context=128)


def names_of_musk(shape: MuskShape) -> rebuilt.Shapes:
    """What torchscale's BEiT-3 with MUSK's heads holds."""
    width, n_patches = shape.width, (shape.image_px // shape.patch_px) ** 2
    found: rebuilt.Shapes = {
        "beit3.text_embed.weight": (shape.vocabulary, width),
        "beit3.vision_embed.mask_token": (1, 1, width),
        "beit3.vision_embed.cls_token": (1, 1, width),
        "beit3.vision_embed.proj.weight": (width, 3, shape.patch_px, shape.patch_px),
        "beit3.vision_embed.proj.bias": (width,),
        "beit3.encoder.embed_positions.A.weight": (n_patches + 3, width),
        "beit3.encoder.embed_positions.B.weight": (shape.context, width),
        "language_head.weight": (width, width),
        "vision_head.weight": (width, width),
        "logit_scale": (),
    }
    for expert in "AB":
        found |= rebuilt.norm(f"beit3.encoder.layer_norm.{expert}", width)
        for layer in (f"beit3.encoder.layers.{number}" for number in range(shape.depth)):
            for part in ("self_attn_layer_norm", "final_layer_norm", "self_attn.inner_attn_ln"):
                found |= rebuilt.norm(f"{layer}.{part}.{expert}", width)
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                found |= rebuilt.linear(f"{layer}.self_attn.{part}.{expert}", width, width)
            found |= rebuilt.linear(f"{layer}.ffn.{expert}.fc1", width, shape.hidden)
            found |= rebuilt.linear(f"{layer}.ffn.{expert}.fc2", shape.hidden, width)
            found |= rebuilt.norm(f"{layer}.ffn.{expert}.ffn_layernorm", shape.hidden)
    return found


def state() -> dict[str, torch.Tensor]:
    return rebuilt.made_up(names_of_musk(TINY))


def load_from(path: str, name: str = "musk", **changed: object) -> TowersEncoder:
    widths = {"joint": TINY.width, "backbone": TINY.width * (2 if name == "musk_ms2048" else 1)}
    spec = rebuilt.card(name, widths=widths, input_px=SIDE)
    return MuskSource(path=path, spec=spec, shape=TINY, **changed).load(rebuilt.CPU)


def load(folder: Path, tensors: dict[str, torch.Tensor], name: str = "musk", **changed: object) -> TowersEncoder:
    save_file(tensors, folder / "model.safetensors")
    return load_from(str(folder), name, **changed)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TowersEncoder:
    return load(tmp_path_factory.mktemp("musk"), state())


@pytest.fixture(scope="module")
def multiscale(tmp_path_factory: pytest.TempPathFactory) -> TowersEncoder:
    return load(tmp_path_factory.mktemp("ms"), state(), "musk_ms2048")


def write_pieces(folder: Path) -> Path:
    """A SentencePiece model of its own, in the layout of MUSK's."""
    model = io.BytesIO()
    sentences = [" ".join(WORDS[start:] + WORDS[:start]) for start in range(len(WORDS))] * 4
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=60, minloglevel=2, hard_vocab_limit=False
    )
    file = folder / "tokenizer.spm"
    file.write_bytes(model.getvalue())
    return file


def tiny(folder: Path, name: str = "musk") -> TowersEncoder:
    return load(folder, state(), name, tokenizer=str(write_pieces(folder)))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pieces(tmp_path_factory.mktemp("pieces"))


def test_the_published_network_has_the_published_names_and_shapes():
    with torch.device("meta"):
        found = rebuilt.shapes_of(Musk(MUSK_LARGE, is_multiscale=False))
    assert found == names_of_musk(MUSK_LARGE)
    assert len(found) == 10 + 4 + 24 * 2 * 20
    assert round(sum(math.prod(size) for size in found.values()) / 1e6, 1) == 675.2  # as published


def normed(values: torch.Tensor, part: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    centred = values - values.mean(dim=-1, keepdim=True)
    unit = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    return unit * part[f"{name}.weight"] + part[f"{name}.bias"]


def mapped(values: torch.Tensor, part: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return values @ part[f"{name}.weight"].T + part[f"{name}.bias"]


def first_token(x: torch.Tensor, expert: str, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """The blocks for one image or text, head by head in float64; its first token after the last norm."""
    part = {name.removeprefix("beit3.encoder."): tensor.double() for name, tensor in weights.items()}
    x = x.double() + part[f"embed_positions.{expert}.weight"][2 : 2 + len(x)]
    size = TINY.width // TINY.n_heads
    for number in range(TINY.depth):
        of = {name.removeprefix(f"layers.{number}."): tensor for name, tensor in part.items()}
        h = normed(x, of, f"self_attn_layer_norm.{expert}")
        q, k, v = (mapped(h, of, f"self_attn.{kind}_proj.{expert}") for kind in "qkv")
        heads = []
        for own in (slice(start, start + size) for start in range(0, TINY.width, size)):
            weight = (q[:, own] @ k[:, own].T / math.sqrt(size)).exp()
            heads.append(weight / weight.sum(dim=1, keepdim=True) @ v[:, own])
        h = normed(torch.cat(heads, dim=1), of, f"self_attn.inner_attn_ln.{expert}")
        x = x + mapped(h, of, f"self_attn.out_proj.{expert}")
        h = mapped(normed(x, of, f"final_layer_norm.{expert}"), of, f"ffn.{expert}.fc1")
        h = h * (1 + torch.erf(h / math.sqrt(2))) / 2
        x = x + mapped(normed(h, of, f"ffn.{expert}.ffn_layernorm"), of, f"ffn.{expert}.fc2")
    return normed(x, part, f"layer_norm.{expert}")[0]


def seen_slowly(pixels: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    squares = pixels.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)
    patches = squares @ weights["beit3.vision_embed.proj.weight"].flatten(1).T + weights["beit3.vision_embed.proj.bias"]
    return first_token(torch.cat([weights["beit3.vision_embed.cls_token"][0], patches]), "A", weights)


def test_images_are_seen_as_an_independent_loop_sees_them(encoder: TowersEncoder):
    batch = tiles(2, SIDE)
    expected = torch.stack([seen_slowly(image, state()) for image in to_network_input(batch, encoder.spec)])
    found = encoder.embed_tiles(batch, ["backbone"])
    torch.testing.assert_close(found["backbone"].double(), expected, atol=1e-5, rtol=1e-4)
    joint_is_the_unit_product(encoder, SIDE, state()["vision_head.weight"].T)


def test_two_scales_are_the_whole_next_to_the_mean_of_four_enlarged_quarters(
    encoder: TowersEncoder, multiscale: TowersEncoder
):
    batch = tiles(2, SIDE)
    found = multiscale.embed_tiles(batch, ["backbone", "joint"])
    plain = encoder.embed_tiles(batch, ["backbone", "joint"])
    assert torch.equal(found["backbone"][:, : TINY.width], plain["backbone"])
    assert torch.equal(found["joint"], plain["joint"])
    for row, image in enumerate(to_network_input(batch, encoder.spec)):
        large = torch.nn.functional.interpolate(image[None], scale_factor=2, mode="bicubic")[0]
        quarters = [seen_slowly(half, state()) for band in large.split(SIDE, 1) for half in band.split(SIDE, 2)]
        expected = torch.stack(quarters).mean(dim=0)
        torch.testing.assert_close(found["backbone"][row, TINY.width :].double(), expected, atol=1e-5, rtol=1e-4)


def test_texts_are_read_as_an_independent_loop_reads_them(encoder: TowersEncoder):
    tokens = [0, 17, 5, 89, 2]
    with torch.inference_mode():
        found = encoder._network.read(torch.tensor([tokens]))[0]
    weights = state()
    expected = first_token(weights["beit3.text_embed.weight"][tokens], "B", weights)
    expected = weights["language_head.weight"].double() @ expected
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)


def test_the_variant_is_part_of_the_transform_and_not_of_the_weights(encoder: TowersEncoder, multiscale: TowersEncoder):
    assert multiscale.fingerprint == encoder.fingerprint
    assert multiscale.spec.transform() == encoder.spec.transform() | {"variant": "ms2048"}
    with pytest.raises(InputError, match="variant=ms4096; expected none or ms2048"):
        MuskSource(path="none", spec=rebuilt.card("musk", variant="ms4096"))


def test_tokens_are_xlm_roberta_s(tmp_path: Path, pieces: Path):
    """Its rule, from the pieces' own numbers: start 0, end 2, unknown 3, every piece one further on."""
    own = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    encoder = load(tmp_path, state(), tokenizer=str(pieces.parent))
    found = encoder._tokenize("normal lung ☂ pearls")
    assert found[0] == 0
    assert found[-1] == 2
    assert 3 in found
    known = [piece - 1 for piece in found[1:-1] if piece != 3]
    assert own.decode(known).replace(" ", "") == "normallungpearls"


def test_a_long_text_is_counted_whole_and_loses_its_end_but_not_its_last_token(tmp_path: Path, pieces: Path):
    encoder = load(tmp_path, state(), tokenizer=str(pieces))
    longer = " ".join(["lung"] * 200)
    assert encoder.count_tokens([longer])[0] > 100
    cut = encoder._cut(encoder._tokenize(longer))
    assert cut.shape == (1, 100)
    assert cut[0, -1] == 2
    assert torch.isfinite(encoder.embed_texts([longer])).all()


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, pieces: Path):
    small = MuskShape(**{field: getattr(TINY, field) for field in TINY.__slots__} | {"vocabulary": 20})
    save_file(rebuilt.made_up(names_of_musk(small)), tmp_path / "model.safetensors")
    spec = rebuilt.card("musk", widths={"joint": 24, "backbone": 24}, input_px=SIDE)
    with pytest.raises(InputError, match=r"tokenizer\.spm: has \d+ pieces, MUSK's text tower knows 20 tokens"):
        MuskSource(path=str(tmp_path), spec=spec, shape=small, tokenizer=str(pieces)).load(rebuilt.CPU)
    (tmp_path / "tokenizer.spm").write_text("no model")
    with pytest.raises(InputError, match=r"tokenizer\.spm: not readable as a SentencePiece model"):
        load(tmp_path, state())


def test_images_need_no_tokenizer_and_texts_say_where_to_get_one(encoder: TowersEncoder):
    with pytest.raises(
        InputError, match=r"texts need its tokenizer; set encoder\.tokenizer=… to MUSK's tokenizer\.spm"
    ):
        encoder.embed_texts(["lung"])


def test_what_only_the_training_used_changes_nothing(encoder: TowersEncoder, tmp_path: Path):
    more = {"vl_decoder.0.norm1.weight": torch.ones(2), "mlm_head.bias": torch.ones(3), "mim_head.bias": torch.ones(4)}
    assert load(tmp_path, state() | more).fingerprint == encoder.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beit3.encoder.layers.1.ffn.B.fc2.bias": None}, "1 missing: beit3.encoder.layers.1.ffn.B.fc2.bias"),
        ({"fc_norm.weight": torch.ones(2)}, "1 unexpected: fc_norm.weight"),
        ({"vision_head.weight": None, "visual_head.weight": torch.ones(24, 24)}, "1 missing.*1 unexpected"),
        ({"beit3.encoder.embed_positions.A.weight": torch.ones(7, 24)}, r"got \[7, 24\], expected \[19, 24\]"),
    ],
)
def test_weights_that_are_not_whole_are_refused(tmp_path: Path, change: dict, message: str):
    with pytest.raises(InputError, match=message):
        load(tmp_path, {name: tensor for name, tensor in (state() | change).items() if tensor is not None})
