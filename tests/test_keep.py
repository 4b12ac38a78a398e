"""KEEP: published names and shapes, strict loading under either name of LayerScale, both towers."""

import json
import math
from pathlib import Path

import pytest
import rebuilt
import torch
import transformers
from encoder_promises import tiles
from safetensors.torch import save_file

from feature_extraction.encoder import to_network_input
from feature_extraction.encoders.keep import IMAGE, Keep, KeepSource
from feature_extraction.encoders.towers import TowersEncoder
from feature_extraction.encoders.vit import VitShape
from feature_extraction.errors import InputError

SIDE, JOINT = 32, 24
TINY = VitShape(width=32, depth=2, n_heads=4, patch_px=8, image_px=SIDE, has_layer_scale=True)
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *["an", "image", "of", "normal", "lung", "with", "glands", "keratin", "pearls", "gland", "one"],
]
BERT = {
    "vocab_size": len(WORDS),
    "hidden_size": JOINT,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
}


def names_of_keep(image: VitShape, joint: int, text: torch.nn.Module) -> rebuilt.Shapes:
    """What the published checkpoint holds, but for the name it gives LayerScale."""
    return {
        **rebuilt.timm_vit("visual.", image),
        **rebuilt.linear("visual_head.0", image.width, joint),
        **rebuilt.linear("visual_head.2", joint, joint),
        **{f"text.{name}": size for name, size in rebuilt.shapes_of(text).items()},
        "logit_scale": (),
    }


def bert(**sizes: int) -> transformers.BertModel:
    with torch.device("meta"):
        return transformers.BertModel(transformers.BertConfig(**sizes))


def as_published(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.replace("ls1.gamma", "ls1.weight").replace("ls2.gamma", "ls2.weight"): t for name, t in tensors.items()
    }


def state() -> dict[str, torch.Tensor]:
    return rebuilt.made_up(names_of_keep(TINY, JOINT, bert(**BERT)))


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"model_type": "keep", "text_config": BERT, "projection_dim": JOINT})
    )
    (folder / "vocab.txt").write_text("\n".join(WORDS))


def load_from(path: str) -> TowersEncoder:
    spec = rebuilt.card("keep", widths={"joint": JOINT, "backbone": TINY.width}, input_px=SIDE)
    return KeepSource(path=path, spec=spec, image=TINY).load(rebuilt.CPU)


def load(path: Path) -> TowersEncoder:
    return load_from(str(path))


def tiny(folder: Path) -> TowersEncoder:
    write(folder, as_published(state()))
    return load(folder)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TowersEncoder:
    return tiny(tmp_path_factory.mktemp("keep"))


def test_the_published_network_has_the_published_names_and_shapes():
    text = bert()
    with torch.device("meta"):
        found = rebuilt.shapes_of(Keep(IMAGE, 768, text))
    assert found == names_of_keep(IMAGE, 768, text)
    assert {name for name in found if name.startswith("text.pooler")} == {
        "text.pooler.dense.weight",
        "text.pooler.dense.bias",
    }
    assert sum(name.startswith("text.encoder.layer.") for name in found) == 12 * 16
    n_bytes = 4 * sum(math.prod(size) for size in found.values())
    assert round(n_bytes / 1e9, 2) == 1.66  # size of the published file


def test_backbone_is_the_class_token(encoder: TowersEncoder):
    network, batch = encoder._network, tiles(2, SIDE)
    assert isinstance(network, Keep)
    with torch.inference_mode():
        tokens = network.visual(to_network_input(batch, encoder.spec))
    assert torch.equal(encoder.embed_tiles(batch, ["backbone"])["backbone"], tokens[:, 0])


def test_joint_is_the_normalised_head_of_backbone(encoder: TowersEncoder):
    weights = state()
    found = encoder.embed_tiles(tiles(3, SIDE), ["backbone", "joint"])
    hidden = found["backbone"] @ weights["visual_head.0.weight"].T + weights["visual_head.0.bias"]
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    joint = hidden @ weights["visual_head.2.weight"].T + weights["visual_head.2.bias"]
    torch.testing.assert_close(found["joint"], joint / joint.norm(dim=1, keepdim=True), atol=1e-5, rtol=1e-4)


def test_case_is_not_read(encoder: TowersEncoder):
    assert torch.equal(encoder.embed_texts(["Keratin Pearls"]), encoder.embed_texts(["keratin pearls"]))


def test_texts_are_what_bert_pools_from_a_padded_batch(encoder: TowersEncoder):
    """As the authors run it: padded to the context, with an attention mask."""
    theirs = transformers.BertModel(transformers.BertConfig(**BERT)).eval()
    weights = {name.removeprefix("text."): tensor for name, tensor in state().items() if name.startswith("text.")}
    theirs.load_state_dict(weights)
    ids = [[2, WORDS.index("keratin"), WORDS.index("pearls"), 3], [2, WORDS.index("lung"), 3]]
    padded = torch.tensor([row + [0] * (256 - len(row)) for row in ids])
    with torch.inference_mode():
        pooled = theirs(input_ids=padded, attention_mask=(padded != 0).long()).pooler_output
    expected = pooled / pooled.norm(dim=1, keepdim=True)
    torch.testing.assert_close(encoder.embed_texts(["keratin pearls", "lung"]), expected, atol=1e-5, rtol=1e-4)


def test_a_long_text_is_counted_whole_and_loses_its_end_but_not_its_last_token(encoder: TowersEncoder):
    fits, longer = " ".join(["lung"] * 254), " ".join(["lung"] * 255)
    assert encoder.count_tokens([fits, longer]) == [256, 257]
    assert torch.equal(encoder.embed_texts([fits]), encoder.embed_texts([longer]))


def test_layer_scale_may_have_either_name(encoder: TowersEncoder, tmp_path: Path):
    write(tmp_path, state() | {"text.embeddings.position_ids": torch.arange(512)[None]})  # of an older transformers
    same = load(tmp_path / "model.safetensors")
    assert same.fingerprint == encoder.fingerprint
    assert same.logit_scale == pytest.approx(state()["logit_scale"].item())
    batch = tiles(2, SIDE)
    assert torch.equal(same.embed_tiles(batch, ["joint"])["joint"], encoder.embed_tiles(batch, ["joint"])["joint"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual.blocks.0.ls1.gamma": None}, "1 missing: visual.blocks.0.ls1.gamma"),
        ({"visual.blocks.0.ls1.gamma": None, "visual.blocks.0.ls1.scale": torch.ones(32)}, "1 missing.*1 unexpected"),
        ({"text.pooler.dense.bias": None}, "1 missing: text.pooler.dense.bias"),
        ({"visual.head.weight": torch.ones(2, 2)}, "1 unexpected: visual.head.weight"),
        ({"visual_head.0.bias": torch.ones(25)}, r"visual_head.0.bias \(got \[25\], expected \[24\]"),
    ],
)
def test_weights_that_are_not_whole_are_refused(tmp_path: Path, change: dict, message: str):
    write(tmp_path, as_published({name: t for name, t in (state() | change).items() if t is not None}))
    with pytest.raises(InputError, match=message):
        load(tmp_path)


def test_a_vocabulary_that_is_not_there_is_not_made_up(tmp_path: Path):
    write(tmp_path, state())
    (tmp_path / "vocab.txt").unlink()
    found = load(tmp_path)
    found.embed_tiles(tiles(1, SIDE), ["joint"])
    with pytest.raises(InputError, match=r"texts need its tokenizer; put KEEP's vocab\.txt beside the weights"):
        found.embed_texts(["lung"])


def test_a_vocabulary_of_another_model_is_refused(tmp_path: Path):
    write(tmp_path, state())
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, "more"]))
    with pytest.raises(
        InputError, match=rf"vocab\.txt: has {len(WORDS) + 1} tokens, KEEP's text tower knows {len(WORDS)}"
    ):
        load(tmp_path)


def test_a_folder_without_configuration_says_so(tmp_path: Path):
    write(tmp_path, state())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="has no text_config: is this KEEP"):
        load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"KEEP's config\.json must be beside its weights"):
        load(tmp_path)
