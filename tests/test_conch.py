"""CONCH v1 and v1.5: published names and shapes, strict loading, both spaces, texts as a loop of its own reads them."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import rebuilt
import torch
from encoder_promises import joint_is_the_unit_product, tiles
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from feature_extraction.encoders.conch import ConchSource, ConchVisionSource
from feature_extraction.encoders.conch_towers import (
    CONCH,
    CONCH_VISION,
    Conch,
    ConchShape,
    ConchVision,
    ConchVisionShape,
    TextShape,
)
from feature_extraction.encoders.towers import TowersEncoder
from feature_extraction.encoders.vit import VitShape
from feature_extraction.errors import InputError

SIDE = 32
IMAGE = VitShape(width=32, depth=2, n_heads=4, patch_px=8, image_px=SIDE)
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ["<pad>", "<start_of_text>", "<end_of_text>"]
TINY = ConchShape(
    image=IMAGE,
    text=TextShape(vocabulary=len(SPECIAL) + len(ALPHABET), context=40, width=24, depth=2, n_heads=3),
    joint=16,
    n_pool_heads=2,
)
TINY_VISION = ConchVisionShape(image=replace(IMAGE, has_layer_scale=True), pooled=24, n_pool_heads=2)


def names_of_conch(shape: ConchShape) -> rebuilt.Shapes:
    """What the published checkpoint holds of both towers."""
    width, joint, text = shape.image.width, shape.joint, shape.text
    found = rebuilt.timm_vit("visual.trunk.", shape.image)
    found |= pooler("visual.attn_pool_contrast", joint, width, n_queries=1)
    found |= rebuilt.norm("visual.ln_contrast", joint) | {"visual.proj_contrast": (joint, joint), "logit_scale": ()}
    found |= {
        "text.token_embedding.weight": (text.vocabulary, text.width),
        "text.positional_embedding": (text.context, text.width),
        "text.cls_emb": (text.width,),
        "text.text_projection": (text.width, joint),
        **rebuilt.norm("text.ln_final", text.width),
    }
    for block in (f"text.transformer.resblocks.{number}" for number in range(text.depth)):
        found |= rebuilt.norm(f"{block}.ln_1", text.width) | rebuilt.norm(f"{block}.ln_2", text.width)
        found |= rebuilt.attention(f"{block}.attn", text.width)
        found |= rebuilt.linear(f"{block}.mlp.c_fc", text.width, 4 * text.width)
        found |= rebuilt.linear(f"{block}.mlp.c_proj", 4 * text.width, text.width)
    return found


def pooler(name: str, joint: int, width: int, *, n_queries: int) -> rebuilt.Shapes:
    return {
        f"{name}.query": (n_queries, joint),
        f"{name}.attn.q_proj_weight": (joint, joint),
        f"{name}.attn.k_proj_weight": (joint, width),
        f"{name}.attn.v_proj_weight": (joint, width),
        f"{name}.attn.in_proj_bias": (3 * joint,),
        **rebuilt.linear(f"{name}.attn.out_proj", joint, joint),
        **rebuilt.norm(f"{name}.ln_q", joint),
        **rebuilt.norm(f"{name}.ln_k", width),
    }


def names_for_captions(shape: ConchShape) -> rebuilt.Shapes:
    """What the published checkpoint holds besides: the pooler of the captions, with queries as wide as the tower."""
    width = shape.image.width
    name = "visual.attn_pool_caption"
    square = {
        part: size for part, size in pooler(name, width, width, n_queries=256).items() if "_proj_weight" not in part
    }
    return square | {f"{name}.attn.in_proj_weight": (3 * width, width)} | rebuilt.norm("visual.ln_caption", width)


def names_of_conch_vision(shape: ConchVisionShape) -> rebuilt.Shapes:
    name, width, pooled = "attn_pool_contrast", shape.image.width, shape.pooled
    return {
        **rebuilt.timm_vit("trunk.", shape.image),
        f"{name}.query": (1, pooled),
        **rebuilt.norm(f"{name}.ln_q", pooled),
        **rebuilt.norm(f"{name}.ln_k", width),
        **rebuilt.linear(f"{name}.to_q", pooled, pooled, has_bias=False),
        **rebuilt.linear(f"{name}.to_kv", width, 2 * pooled, has_bias=False),
        **rebuilt.linear(f"{name}.to_out", pooled, pooled, has_bias=False),
        **rebuilt.norm("ln_contrast", pooled),
    }


def write_tokenizer(folder: Path, n_more: int = 0) -> None:
    """A byte-level tokenizer without merges, in the layout of CONCH's."""
    words = [*SPECIAL, *ALPHABET, *(f"more{number}" for number in range(n_more))]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[1]} $A {SPECIAL[2]}", special_tokens=[(SPECIAL[1], 1), (SPECIAL[2], 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def state() -> dict[str, torch.Tensor]:
    return rebuilt.made_up(names_of_conch(TINY) | names_for_captions(TINY) | {"text_decoder.ln_final.bias": (8,)})


def load(folder: Path, tensors: dict[str, torch.Tensor], **changed: object) -> TowersEncoder:
    torch.save(tensors, folder / "pytorch_model.bin")
    source = {"path": str(folder), "spec": tiny_card(), "shape": TINY, **changed}
    return ConchSource(**source).load(rebuilt.CPU)


def tiny_card() -> dict[str, object]:
    widths = {"joint": TINY.joint, "backbone": TINY.joint}
    return rebuilt.card("conch", widths=widths, input_px=SIDE, context_length=TINY.text.context)


def load_vision(folder: Path, tensors: dict[str, torch.Tensor]) -> TowersEncoder:
    torch.save(tensors, folder / "pytorch_model_vision.bin")
    spec = rebuilt.card("conch_v1_5", widths={"backbone": TINY_VISION.pooled}, input_px=SIDE)
    return ConchVisionSource(path=str(folder), spec=spec, shape=TINY_VISION).load(rebuilt.CPU)


def tiny(folder: Path) -> TowersEncoder:
    write_tokenizer(folder)
    return load(folder, state())


def tiny_vision(folder: Path) -> TowersEncoder:
    return load_vision(folder, rebuilt.made_up(names_of_conch_vision(TINY_VISION)))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TowersEncoder:
    return tiny(tmp_path_factory.mktemp("conch"))


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> TowersEncoder:
    return tiny_vision(tmp_path_factory.mktemp("vision"))


def test_the_published_network_has_the_published_names_and_shapes():
    with torch.device("meta"):
        found = rebuilt.shapes_of(Conch(CONCH))
    assert found == names_of_conch(CONCH)
    held = found | names_for_captions(CONCH)
    n_bytes = 4 * sum(math.prod(size) for size in held.values())
    assert 0 < 802_235_437 - n_bytes < 512 * len(held)  # size of the published file; the rest are its entries' heads


def test_the_published_vision_network_has_the_published_names_and_shapes():
    with torch.device("meta"):
        found = rebuilt.shapes_of(ConchVision(CONCH_VISION))
    assert found == names_of_conch_vision(CONCH_VISION)
    assert len(found) == 4 + 2 + 24 * 14 + 10


def test_joint_is_the_normalised_product_of_backbone_and_the_stored_matrix(encoder: TowersEncoder):
    joint_is_the_unit_product(encoder, SIDE, state()["visual.proj_contrast"])
    found = encoder.embed_tiles(tiles(3, SIDE), ["backbone", "joint"])
    cosine = torch.nn.functional.cosine_similarity(found["joint"], found["backbone"])
    assert (cosine < 0.9).all(), "two spaces of one width must not be taken for each other"


def test_accents_and_case_are_not_read(encoder: TowersEncoder):
    assert torch.equal(encoder.embed_texts(["Kératin"]), encoder.embed_texts(["keratin"]))


def looked_at(tokens: list[int], context: int) -> list[list[int]]:
    """For each place the places it looks at, by the published rule."""
    rows = [list(range(place + 1)) for place in range(context - 1)]
    return [*rows, [0] + [place for place in range(1, context) if place - 1 < len(tokens)]]


def normed(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    centred = values - values.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def read_slowly(tokens: list[int], weights: dict[str, torch.Tensor], shape: TextShape) -> torch.Tensor:
    """The text tower place by place and head by head, in float64."""
    part = {name.removeprefix("text."): tensor.double() for name, tensor in weights.items() if name.startswith("text.")}
    padded = tokens + [0] * (shape.context - 1 - len(tokens))
    x = torch.cat([part["token_embedding.weight"][padded], part["cls_emb"][None]]) + part["positional_embedding"]
    size = shape.width // shape.n_heads
    for number in range(shape.depth):
        of = {name.split(f"resblocks.{number}.")[-1]: tensor for name, tensor in part.items()}
        h = normed(x, of["ln_1.weight"], of["ln_1.bias"])
        q, k, v = (h @ of["attn.in_proj_weight"].T + of["attn.in_proj_bias"]).split(shape.width, dim=1)
        mixed = torch.zeros_like(x)
        for place, seen in enumerate(looked_at(tokens, shape.context)):
            for head in range(shape.n_heads):
                own = slice(head * size, (head + 1) * size)
                weight = (k[seen, own] @ q[place, own] / math.sqrt(size)).exp()
                mixed[place, own] = weight / weight.sum() @ v[seen, own]
        x = x + mixed @ of["attn.out_proj.weight"].T + of["attn.out_proj.bias"]
        h = normed(x, of["ln_2.weight"], of["ln_2.bias"]) @ of["mlp.c_fc.weight"].T + of["mlp.c_fc.bias"]
        h = h * (1 + torch.erf(h / math.sqrt(2))) / 2
        x = x + h @ of["mlp.c_proj.weight"].T + of["mlp.c_proj.bias"]
    joint = normed(x[-1], part["ln_final.weight"], part["ln_final.bias"]) @ part["text_projection"]
    return joint / joint.norm()


@pytest.mark.parametrize("text", ["lung", "a text as long as the context has room!!"])
def test_texts_are_read_as_an_independent_loop_reads_them(encoder: TowersEncoder, text: str):
    tokens = encoder._tokenize(text)
    tokens = tokens if len(text) < 30 else [*tokens[: TINY.text.context - 2], 2]
    expected = read_slowly(tokens, state(), TINY.text)
    torch.testing.assert_close(encoder.embed_texts([text])[0].double(), expected, atol=1e-5, rtol=1e-4)


def test_a_long_text_is_counted_whole_and_loses_its_end_but_not_its_last_token(encoder: TowersEncoder):
    fits, longer = "a" * 36, "a" * 37  # with the space in front, start, end and the class token: 40 and 41 places
    assert encoder.count_tokens([fits, longer]) == [TINY.text.context, TINY.text.context + 1]
    assert torch.equal(encoder.embed_texts([fits]), encoder.embed_texts([longer]))


def test_the_factor_on_the_cosine_is_the_stored_one(encoder: TowersEncoder, vision: TowersEncoder):
    assert encoder.logit_scale == pytest.approx(state()["logit_scale"].item())
    assert (encoder.logit_bias, vision.logit_scale) == (0, 0)


def test_weights_for_captions_change_nothing(encoder: TowersEncoder, tmp_path: Path):
    bare = {name: tensor for name, tensor in state().items() if name in names_of_conch(TINY)}
    without = load(tmp_path, {f"module.{name}": tensor for name, tensor in bare.items()})
    assert without.fingerprint == encoder.fingerprint
    more = load(tmp_path, state() | {"visual.attn_pool_caption.query": torch.ones(256, 32)})
    assert more.fingerprint == encoder.fingerprint
    other = load(tmp_path, state() | {"visual.ln_contrast.bias": torch.ones(16)})
    assert other.fingerprint != encoder.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual.proj_contrast": None}, "1 missing: visual.proj_contrast"),
        ({"visual.head.proj.weight": torch.ones(2)}, "1 unexpected: visual.head.proj.weight"),
        ({"text.cls_emb": None, "text.class_emb": torch.ones(24)}, "1 missing: text.cls_emb; 1 unexpected"),
        ({"text.cls_emb": torch.ones(25)}, r"of another shape: text.cls_emb \(got \[25\], expected \[24\]"),
    ],
)
def test_weights_that_are_not_whole_are_refused(tmp_path: Path, change: dict, message: str):
    tensors = {name: tensor for name, tensor in (state() | change).items() if tensor is not None}
    with pytest.raises(InputError, match=message):
        load(tmp_path, tensors)


def test_images_need_no_tokenizer_and_texts_say_where_to_get_one(tmp_path: Path):
    found = load(tmp_path, state())
    found.embed_tiles(tiles(1, SIDE), ["joint"])
    with pytest.raises(InputError, match=r"texts need its tokenizer; set encoder\.tokenizer=… to conch_byte"):
        found.embed_texts(["lung"])


def test_a_tokenizer_from_elsewhere_is_taken_and_one_of_another_model_refused(encoder: TowersEncoder, tmp_path: Path):
    weights, elsewhere = tmp_path / "weights", tmp_path / "elsewhere"
    weights.mkdir()
    elsewhere.mkdir()
    write_tokenizer(elsewhere)
    found = load(weights, state(), tokenizer=str(elsewhere / "tokenizer.json"))
    assert torch.equal(found.embed_texts(["lung"]), encoder.embed_texts(["lung"]))
    write_tokenizer(elsewhere, n_more=1)
    with pytest.raises(InputError, match=r"tokenizer\.json: has 260 tokens, CONCH's text tower knows 259"):
        load(weights, state(), tokenizer=str(elsewhere))
    (elsewhere / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="not readable as a tokenizer"):
        load(weights, state(), tokenizer=str(elsewhere))


def test_positions_of_a_smaller_image_are_stretched(tmp_path: Path, vision: TowersEncoder):
    names = names_of_conch_vision(TINY_VISION)
    small = rebuilt.made_up(names | {"trunk.pos_embed": (1, 1 + 4, IMAGE.width)})
    grid = small["trunk.pos_embed"][:, 1:].unflatten(1, (2, 2)).permute(0, 3, 1, 2)
    stretched = torch.nn.functional.interpolate(grid, scale_factor=4.1 / 2, mode="bicubic")
    large = torch.cat([small["trunk.pos_embed"][:, :1], stretched.flatten(2).transpose(1, 2)], dim=1)
    whole = load_vision(tmp_path, small | {"trunk.pos_embed": large})
    again = load_vision(tmp_path, small)
    torch.testing.assert_close(
        whole.embed_tiles(tiles(2, SIDE), ["backbone"])["backbone"],
        again.embed_tiles(tiles(2, SIDE), ["backbone"])["backbone"],
    )


def test_the_vision_pooler_equals_torchs_attention(vision: TowersEncoder):
    """The same weights in torch's own module, whose key and value matrices are two."""
    network, width = vision._network, TINY_VISION.pooled
    assert isinstance(network, ConchVision)
    own = network.attn_pool_contrast
    theirs = torch.nn.MultiheadAttention(
        width, 2, bias=False, kdim=IMAGE.width, vdim=IMAGE.width, batch_first=True
    ).eval()
    key, value = own.to_kv.weight.chunk(2)
    theirs.load_state_dict(
        {
            "q_proj_weight": own.to_q.weight,
            "k_proj_weight": key,
            "v_proj_weight": value,
            "out_proj.weight": own.to_out.weight,
        }
    )
    tokens = torch.randn(3, 17, IMAGE.width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        keys = own.ln_k(tokens)
        expected = theirs(own.ln_q(own.query).expand(3, 1, -1), keys, keys, need_weights=False)[0][:, 0]
        torch.testing.assert_close(own(tokens), expected, atol=1e-5, rtol=1e-4)
