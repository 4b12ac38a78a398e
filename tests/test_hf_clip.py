"""The hf_clip family on real transformers classes: both towers, both spaces, and what upstream computes."""

from pathlib import Path

import pytest
import tiny_clip
import torch
import transformers

from feature_extraction.encoder import to_network_input
from feature_extraction.encoders.hf_clip import HfClipEncoder, HfClipSource
from feature_extraction.errors import InputError, MismatchError

KINDS = ["clip", "siglip", "vision-text-dual-encoder"]
CPU = torch.device("cpu")
TEXTS = ["an image of normal lung", "keratin pearls"]


@pytest.fixture(scope="module", params=KINDS)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HfClipEncoder:
    folder = tiny_clip.save(tmp_path_factory.mktemp(request.param), request.param)
    return HfClipSource(path=str(folder), name="tiny").load(CPU)


def tiles(n: int, side: int = tiny_clip.SIDE, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def spaces_of(encoder: HfClipEncoder) -> list[str]:
    return list(encoder.spec.widths)


def test_joint_rows_have_unit_length_and_the_width_of_the_spec(encoder: HfClipEncoder):
    found = encoder.embed_tiles(tiles(3), spaces_of(encoder))
    for space, rows in found.items():
        assert rows.shape == (3, encoder.spec.widths[space])
    torch.testing.assert_close(found["joint"].norm(dim=1), torch.ones(3))


def test_joint_is_the_normalised_projection_of_backbone(encoder: HfClipEncoder):
    if "backbone" not in encoder.spec.widths:
        pytest.skip("SigLIP's tower ends in the joint space: there is one space only")
    found = encoder.embed_tiles(tiles(3), ["backbone", "joint"])
    with torch.inference_mode():
        projected = encoder._model.get_submodule("visual_projection")(found["backbone"])
    torch.testing.assert_close(found["joint"], torch.nn.functional.normalize(projected, dim=-1))


def test_batch_size_and_neighbours_change_nothing(encoder: HfClipEncoder):
    batch = tiles(7)
    together = encoder.embed_tiles(batch, ["joint"])["joint"]
    alone = torch.cat([encoder.embed_tiles(tile[None], ["joint"])["joint"] for tile in batch])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_towers_equal_what_transformers_computes(encoder: HfClipEncoder):
    pixels = to_network_input(tiles(2), encoder.spec)
    with torch.inference_mode():
        image = encoder._model.get_image_features(pixel_values=pixels)
        image = getattr(image, "pooler_output", image)
        if encoder._pads_to_context:
            tokens = encoder._tokenizer(TEXTS, padding="max_length", max_length=16, return_tensors="pt")
        else:
            tokens = encoder._tokenizer(TEXTS, padding=True, return_tensors="pt")
        inputs = {name: tokens[name] for name in encoder._inputs(tokens)}
        text = encoder._model.get_text_features(**inputs)
        text = getattr(text, "pooler_output", text)
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(
        encoder.embed_tiles(tiles(2), ["joint"])["joint"], unit(image, dim=-1), atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(encoder.embed_texts(TEXTS), unit(text, dim=-1), atol=1e-5, rtol=1e-4)


def test_a_text_depends_on_its_words_and_on_nothing_else(encoder: HfClipEncoder):
    alone = encoder.embed_texts(["keratin pearls"])[0]
    among = encoder.embed_texts(["a an the of image histology normal lung", "keratin pearls", "one"])[1]
    assert torch.equal(alone, among)
    assert not torch.allclose(alone, encoder.embed_texts(["keratin gland"])[0], atol=1e-4)
    torch.testing.assert_close(alone.norm(), torch.tensor(1.0))


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
        encoder = HfClipSource(path=str(tiny_clip.save(tmp_path / kind, kind))).load(CPU)
        stored = {name: tensor.detach() for name, tensor in encoder._model.named_parameters()}
        assert encoder.logit_scale == pytest.approx(float(stored["logit_scale"]))
        assert (encoder.logit_bias != 0) == (kind == "siglip" and float(stored["logit_bias"]) != 0)
        assert ("logit_bias" in stored) == (kind == "siglip")


def test_weights_that_lack_a_tensor_are_refused(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = tiny_clip.save(tmp_path / "a", "clip")
    state = load_file(folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 tensors: visual_projection.weight"):
        HfClipSource(path=str(folder)).load(CPU)


def test_what_is_no_model_says_what_is_wrong(tmp_path: Path):
    with pytest.raises(InputError, match=r"config\.json is missing"):
        _ = HfClipSource(path=str(tmp_path)).spec
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="model_type is 'bert', the hf_clip family reads clip, siglip"):
        _ = HfClipSource(path=str(tmp_path)).spec


def test_a_space_the_encoder_does_not_have_is_refused(tmp_path: Path):
    encoder = HfClipSource(path=str(tiny_clip.save(tmp_path, "siglip"))).load(CPU)
    with pytest.raises(MismatchError, match="has no backbone space, it has joint"):
        encoder.embed_tiles(tiles(1), ["backbone"])


def test_tiles_of_another_size_are_resized_like_pillow():
    from PIL import Image

    from feature_extraction.encoder import EncoderSpec

    spec = EncoderSpec(
        name="x", widths={"joint": 1}, input_px=224, tile_mpp=0.5, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    picture = tiles(1, side=256, seed=3)
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
