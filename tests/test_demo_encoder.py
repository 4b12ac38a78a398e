import math
from importlib.resources import files

import numpy as np
import pytest
import torch

from feature_extraction.encoder import fingerprint_of
from feature_extraction.encoders import demo
from feature_extraction.encoders.demo import DemoEncoder, DemoSource
from feature_extraction.encoders.demo_towers import UNKNOWN, split_words, tokenize
from feature_extraction.errors import InputError
from feature_extraction.synthetic.captions import held_out_captions
from feature_extraction.synthetic.tissue import TISSUES
from feature_extraction.synthetic.training_tiles import Fields, draw_fields

CPU = torch.device("cpu")
WEIGHTS = files("feature_extraction.encoders").joinpath("demo_weights")


@pytest.fixture(scope="module")
def encoder() -> DemoEncoder:
    return DemoSource().load(CPU)


@pytest.fixture(scope="module")
def fields() -> Fields:
    return draw_fields(987_654, n_each=6, n_stains=1, likeness=(0.0, 0.6), variety=1.0)


@pytest.fixture(scope="module")
def tiles(fields: Fields) -> torch.Tensor:
    return torch.from_numpy(fields.pixels[:, :96, :96]).permute(0, 3, 1, 2).contiguous()


def test_widths_are_those_of_the_spec_and_joint_rows_have_unit_length(encoder, tiles) -> None:
    made = encoder.embed_tiles(tiles[:5], ["joint", "backbone"])
    assert {space: rows.shape[1] for space, rows in made.items()} == dict(DemoSource().spec.widths)
    assert torch.linalg.vector_norm(made["joint"], dim=1).numpy() == pytest.approx(1, abs=1e-5)
    assert all(rows.dtype == torch.float32 for rows in made.values())
    assert set(encoder.embed_tiles(tiles[:1], ["backbone"])) == {"backbone"}


def test_joint_is_the_projected_backbone(encoder, tiles) -> None:
    made = encoder.embed_tiles(tiles[:8], ["joint", "backbone"])
    projection = demo._read_tensors(WEIGHTS.joinpath("model.safetensors"))["image.projection.weight"].double()
    expected = made["backbone"].double() @ projection.T
    expected /= expected.norm(dim=1, keepdim=True)
    assert torch.allclose(made["joint"].double(), expected, atol=1e-5)


def test_neither_batch_size_nor_order_changes_a_tile(encoder, tiles) -> None:
    whole = encoder.embed_tiles(tiles, ["joint"])["joint"]
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(tiles)))
    shuffled = encoder.embed_tiles(tiles[order], ["joint"])["joint"]
    single = torch.cat([encoder.embed_tiles(tile[None], ["joint"])["joint"] for tile in tiles[:12]])
    assert torch.allclose(shuffled, whole[order], atol=2e-6)
    assert torch.allclose(single, whole[:12], atol=2e-6)


def test_in_batches_of_one_size_the_place_of_a_tile_changes_no_bit(encoder, tiles) -> None:
    batch = tiles[:32]
    reference = encoder.embed_tiles(batch, ["joint", "backbone"])
    for shift in (1, 7, 16):
        rolled = encoder.embed_tiles(batch.roll(shift, dims=0), ["joint", "backbone"])
        assert all(torch.equal(rolled[space].roll(-shift, dims=0), reference[space]) for space in reference)


def test_tiles_of_another_size_are_resized_to_the_same_picture(encoder, tiles) -> None:
    large = torch.nn.functional.interpolate(tiles[:24].float(), size=224, mode="bicubic", antialias=True)
    resized = encoder.embed_tiles(large.round().clamp(0, 255).to(torch.uint8), ["joint"])["joint"]
    assert (resized * encoder.embed_tiles(tiles[:24], ["joint"])["joint"]).sum(dim=1).min() > 0.95


def test_a_text_vector_depends_on_its_own_words_only(encoder) -> None:
    text = "malignant glands"
    alone = encoder.embed_texts([text])
    long = "a very long caption about wavy collagen fibres with spindle cells between them and much more"
    beside = encoder.embed_texts([long, text, "glass"])
    assert torch.equal(beside[1:2], alone)
    assert encoder.embed_texts([]).shape == (0, 128)


def test_words_case_order_and_unknown_words_count_as_they_should(encoder) -> None:
    texts = ["keratin next to stroma", "stroma next to keratin", "Keratin  next to STROMA.", "keratin", "", "!?"]
    rows = encoder.embed_texts(texts)
    assert torch.equal(rows[0], rows[2])
    assert not torch.allclose(rows[0], rows[1], atol=1e-3)
    assert not torch.allclose(rows[0], rows[3], atol=1e-2)
    assert torch.isfinite(rows).all()
    unknown = encoder.embed_texts(["adenocarcinomatous", "zygomorphic"])
    assert not torch.allclose(unknown[0], unknown[1], atol=1e-2)
    known = encoder.embed_texts(["adenocarcinoma"])[0]
    assert unknown[0] @ known > unknown[1] @ known


def test_padding_does_not_reach_the_vectors(encoder) -> None:
    texts = ["blood", "dense pink cytoplasm and keratin in a field with stroma", "benign glands"]
    padded = encoder._text(tokenize(texts, encoder._vocabulary))
    assert torch.allclose(padded, encoder.embed_texts(texts), atol=1e-5)


def test_tokens_are_counted_before_the_cut(encoder) -> None:
    assert encoder.count_tokens(["", "H&E image", "word " * 60]) == [0, 3, 60]
    assert DemoSource().spec.context_length == 48
    kept, cut = encoder.embed_texts(["word " * 48, "word " * 48 + "keratin"])
    assert torch.equal(kept, cut)
    assert tokenize(["unheardof"], {}).words.tolist() == [[UNKNOWN]]


def test_held_out_captions_find_fresh_drawings(encoder, fields, tiles) -> None:
    captions = held_out_captions()
    texts = torch.stack([encoder.embed_texts(captions[tissue]).mean(dim=0) for tissue in TISSUES])
    texts = texts / texts.norm(dim=1, keepdim=True)
    best = (encoder.embed_tiles(tiles, ["joint"])["joint"] @ texts.T).argmax(dim=1).numpy()
    assert (best == fields.tissues).mean() > 0.8


def test_the_fingerprint_is_stable_and_changes_with_one_weight(encoder) -> None:
    vocabulary = demo._read_vocabulary(WEIGHTS.joinpath("vocabulary.json"))
    tensors = demo._read_tensors(WEIGHTS.joinpath("model.safetensors"))
    assert DemoSource().load(CPU).fingerprint == encoder.fingerprint
    assert fingerprint_of((k, v) for k, v in tensors.items() if k != "logit_scale") == encoder.fingerprint
    for name in ("image.layers.0.bias", "text.pieces.weight"):
        changed = {key: tensor.clone() for key, tensor in tensors.items()}
        changed[name].view(-1)[0] += 0.25
        assert DemoEncoder(changed, vocabulary, CPU).fingerprint != encoder.fingerprint


def test_weights_that_do_not_fit_are_refused(encoder) -> None:
    vocabulary = demo._read_vocabulary(WEIGHTS.joinpath("vocabulary.json"))
    tensors = demo._read_tensors(WEIGHTS.joinpath("model.safetensors"))
    with pytest.raises(InputError, match="do not fit"):
        DemoEncoder({name: tensors[name] for name in list(tensors)[1:]}, vocabulary, CPU)
    with pytest.raises(InputError, match="do not fit"):
        DemoEncoder(tensors, {"one": 1}, CPU)


def test_the_package_carries_small_weights_and_their_card(encoder) -> None:
    assert len(WEIGHTS.joinpath("model.safetensors").read_bytes()) < 4_000_000
    card = WEIGHTS.joinpath("CARD.md").read_text()
    assert "no medical meaning" in card
    assert encoder.fingerprint in card
    assert 0 < encoder.logit_scale <= math.log(100) + 1e-6
    assert encoder.logit_bias == 0
    assert split_words("H&E, 20x") == ["h", "e", "20x"]
