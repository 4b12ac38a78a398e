"""The Vision Transformer against two independent ones of transformers, and its positions for other image sizes."""

import pytest
import rebuilt
import torch
import transformers

from feature_extraction.encoders.vit import VisionTransformer, VitShape, resized_positions

DEPTH = 3
SIZES = {"hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
ENDS = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
VIT = ("layers", {"norm1": "layernorm_before", "norm2": "layernorm_after"})
DINOV2 = ("encoder.layer", {"norm1": "norm1", "norm2": "norm2"})


def shape(*, has_layer_scale: bool) -> VitShape:
    return VitShape(width=32, depth=DEPTH, n_heads=4, patch_px=8, image_px=32, has_layer_scale=has_layer_scale)


def in_timm_names(
    state: dict[str, torch.Tensor], blocks: str, norms: dict[str, str], *, has_layer_scale: bool
) -> dict[str, torch.Tensor]:
    """Weights of transformers under timm's names; three matrices there are one here."""
    found = {ours: state[theirs] for ours, theirs in ENDS.items()}
    parts = {name: [theirs] for name, theirs in norms.items()} | {
        "attn.qkv": [f"attention.{part}_proj" for part in "qkv"],
        "attn.proj": ["attention.o_proj"],
        "mlp.fc1": ["mlp.fc1"],
        "mlp.fc2": ["mlp.fc2"],
    }
    for number in range(DEPTH):
        for ours, theirs in parts.items():
            for kind in ("weight", "bias"):
                stacked = [state[f"{blocks}.{number}.{name}.{kind}"] for name in theirs]
                found[f"blocks.{number}.{ours}.{kind}"] = torch.cat(stacked)
        for which in (1, 2) if has_layer_scale else ():
            found[f"blocks.{number}.ls{which}.gamma"] = state[f"{blocks}.{number}.layer_scale{which}.lambda1"]
    return found


@pytest.mark.parametrize("has_layer_scale", [False, True])
def test_tokens_equal_those_of_transformers(has_layer_scale: bool):
    if has_layer_scale:
        theirs = transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, mlp_ratio=4))
    else:
        config = transformers.ViTConfig(**SIZES, intermediate_size=128, layer_norm_eps=1e-6)
        theirs = transformers.ViTModel(config, add_pooling_layer=False)
    theirs.load_state_dict(rebuilt.made_up(rebuilt.shapes_of(theirs)))
    blocks, norms = DINOV2 if has_layer_scale else VIT
    ours = VisionTransformer(shape(has_layer_scale=has_layer_scale)).eval()
    ours.load_state_dict(in_timm_names(theirs.state_dict(), blocks, norms, has_layer_scale=has_layer_scale))
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs.eval()(pixels).last_hidden_state
        torch.testing.assert_close(ours(pixels), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("has_layer_scale", [False, True])
def test_parameters_carry_timms_names(has_layer_scale: bool):
    sizes = shape(has_layer_scale=has_layer_scale)
    assert rebuilt.shapes_of(VisionTransformer(sizes)) == rebuilt.timm_vit("", sizes)


def ramp(side: int) -> torch.Tensor:
    """Positions that grow from left to right by 1, the class token's 100."""
    columns = torch.arange(side, dtype=torch.float32).repeat(side)
    return torch.cat([torch.tensor([100.0]), columns]).view(1, -1, 1)


def test_positions_of_the_right_grid_stay_as_they_are():
    positions = ramp(4)
    assert resized_positions(positions, 4, "bicubic", margin=0.1) is positions


def test_a_finer_grid_lies_between_the_learned_positions():
    found = resized_positions(ramp(4), 8, "bilinear")
    assert found.shape == (1, 65, 1)
    assert found[0, 0, 0] == 100
    torch.testing.assert_close(found[0, 1:9, 0], torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]))


def test_a_margin_draws_positions_together():
    """Place 4 of 8 lies at (4 + .5) · 4 / 8.1 - .5 of the learned ones, not at (4 + .5) · 4 / 8 - .5."""
    found = resized_positions(ramp(4), 8, "bilinear", margin=0.1)
    assert found.shape == (1, 65, 1)
    assert found[0, 5, 0].item() == pytest.approx(4.5 * 4 / 8.1 - 0.5, abs=1e-5)
