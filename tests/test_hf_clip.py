"""The hf_clip family on real transformers classes: both towers, both spaces, and what upstream computes."""

from pathlib import Path

import pytest
import tiny_clip
import torch
import transformers
from encoder_promises import joint_is_the_unit_product, tiles
from safetensors.torch import load_file, save_file
from tiny_clip import SIDE

from feature_extraction.encoder import to_network_input
from feature_extraction.encoders.hf_clip import HfClipSource
from feature_extraction.encoders.towers import TowersEncoder
from feature_extraction.errors import InputError

KINDS = ["clip", "siglip", "vision-text-dual-encoder"]
CPU = torch.device("cpu")
TEXTS = ["an image of normal lung", "keratin pearls"]


@pytest.fixture(scope="module", params=KINDS)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TowersEncoder:
    folder = tiny_clip.save(tmp_path_factory.mktemp(request.param), request.param)
    return HfClipSource(path=str(folder), name="tiny").load(CPU)


def test_joint_is_the_unit_product_of_backbone_and_the_stored_matrix(encoder: TowersEncoder):
    if "backbone" in encoder.spec.widths:  # SigLIP's tower ends in the joint space
        matrix = encoder._network.network.get_submodule("visual_projection").weight.T
        joint_is_the_unit_product(encoder, SIDE, matrix)


@pytest.mark.parametrize("kind", KINDS)
def test_towers_equal_what_transformers_computes(kind: str, tmp_path: Path):
    folder = tiny_clip.save(tmp_path, kind)
    encoder = HfClipSource(path=str(folder)).load(CPU)
    theirs = transformers.AutoModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padding = {"padding": "max_length", "max_length": 16} if kind == "siglip" else {"padding": True}
    tokens = tokenizer(TEXTS, return_tensors="pt", **padding)
    names = ["input_ids"] if kind == "siglip" else ["input_ids", "attention_mask"]
    with torch.inference_mode():
        image = theirs.get_image_features(pixel_values=to_network_input(tiles(2, SIDE), encoder.spec))
        text = theirs.get_text_features(**{name: tokens[name] for name in names})
    found = encoder.embed_tiles(tiles(2, SIDE), ["joint"])["joint"], encoder.embed_texts(TEXTS)
    for mine, upstream in zip(found, (image, text), strict=True):
        rows = getattr(upstream, "pooler_output", upstream)
        torch.testing.assert_close(mine, torch.nn.functional.normalize(rows, dim=-1), atol=1e-5, rtol=1e-4)


def test_a_long_text_loses_its_end_but_not_its_last_token(tmp_path: Path):
    encoder = HfClipSource(path=str(tiny_clip.save(tmp_path, "clip"))).load(CPU)
    fits, longer = " ".join(["lung"] * 14), " ".join(["lung"] * 15)
    assert encoder.count_tokens([fits, longer]) == [16, 17]
    assert torch.equal(encoder.embed_texts([fits]), encoder.embed_texts([longer]))


def test_fingerprint_is_of_the_weights(tmp_path: Path):
    first = HfClipSource(path=str(tiny_clip.save(tmp_path / "a", "clip", seed=0))).load(CPU)
    same = HfClipSource(path=str(tiny_clip.save(tmp_path / "b", "clip", seed=0))).load(CPU)
    other = HfClipSource(path=str(tiny_clip.save(tmp_path / "c", "clip", seed=1))).load(CPU)
    assert first.fingerprint == same.fingerprint != other.fingerprint


def test_half_precision_weights_have_the_fingerprint_of_their_values(tmp_path: Path):
    folder = tiny_clip.save(tmp_path / "a", "clip")
    transformers.CLIPModel.from_pretrained(folder).half().save_pretrained(folder)
    half = HfClipSource(path=str(folder)).load(CPU)
    transformers.CLIPModel.from_pretrained(folder, dtype=torch.float32).save_pretrained(folder)
    assert HfClipSource(path=str(folder)).load(CPU).fingerprint == half.fingerprint


def test_siglip_has_a_bias_and_the_others_none(tmp_path: Path):
    for kind in KINDS:
        folder = tiny_clip.save(tmp_path / kind, kind)
        stored, encoder = load_file(folder / "model.safetensors"), HfClipSource(path=str(folder)).load(CPU)
        assert encoder.logit_scale == pytest.approx(stored["logit_scale"].item())
        assert ("logit_bias" in stored) == (kind == "siglip")
        assert encoder.logit_bias == pytest.approx(stored["logit_bias"].item() if kind == "siglip" else 0)


def test_a_missing_and_a_surplus_tensor_are_refused(tmp_path: Path):
    folder, name = tiny_clip.save(tmp_path / "a", "clip"), "visual_projection.weight"
    whole = load_file(folder / "model.safetensors")
    short = {key: tensor for key, tensor in whole.items() if key != name}
    for changed, fault in ((short, rf"1 missing: {name}"), (whole | {"x": torch.ones(1)}, "1 unexpected: x")):
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InputError, match=fault):
            HfClipSource(path=str(folder)).load(CPU)


def test_positions_that_older_transformers_stored_are_no_surplus(tmp_path: Path):
    folder = tiny_clip.save(tmp_path / "a", "clip")
    first, whole = HfClipSource(path=str(folder)).load(CPU), load_file(folder / "model.safetensors")
    positions = {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    save_file(whole | positions, folder / "model.safetensors", metadata={"format": "pt"})
    assert HfClipSource(path=str(folder)).load(CPU).fingerprint == first.fingerprint


def test_what_is_no_model_says_what_is_wrong(tmp_path: Path):
    with pytest.raises(InputError, match=r"config\.json is missing"):
        _ = HfClipSource(path=str(tmp_path)).spec
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="model_type is 'bert', the hf_clip family reads clip, siglip"):
        _ = HfClipSource(path=str(tmp_path)).spec


def test_tiles_of_another_size_are_resized_like_pillow():
    from PIL import Image

    from feature_extraction.encoder import EncoderSpec

    spec = EncoderSpec(
        name="x", widths={"joint": 1}, input_px=224, tile_mpp=0.5, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    picture = tiles(1, 256, seed=3)
    found = (to_network_input(picture, spec)[0] * 255).round()
    expected = Image.fromarray(picture[0].permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
    import numpy as np

    gap = np.abs(found.permute(1, 2, 0).numpy() - np.asarray(expected, np.float32))
    assert gap.max() <= 1


@pytest.mark.pipeline
def test_the_real_dual_encoder_knows_its_five_classes(shared_data: Path):
    """Zero-shot on real tiles: text and image meet in the joint space, or this is chance."""
    import numpy as np
    import pandas as pd
    from PIL import Image

    encoder = HfClipSource(path=str(shared_data / "encoders" / "lc25000_dual_encoder")).load(CPU)
    names = {
        "lung_n": "normal lung tissue",
        "lung_aca": "lung adenocarcinoma",
        "lung_scc": "lung squamous cell carcinoma",
        "colon_n": "normal colon tissue",
        "colon_aca": "colon adenocarcinoma",
    }
    index = pd.read_csv(shared_data / "tiles" / "index.csv").groupby("label").head(8)
    pictures = [np.asarray(Image.open(shared_data / "tiles" / file).convert("RGB")) for file in index["file"]]
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        images = encoder.embed_tiles(batch, ["joint"])["joint"]
    texts = encoder.embed_texts([f"an H&E image of {name}." for name in names.values()])
    predicted = np.array(list(names))[(images @ texts.T).argmax(dim=1).numpy()]
    assert (predicted == index["label"].to_numpy()).mean() >= 0.9
