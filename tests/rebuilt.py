"""What the tests of rebuilt models share: their cards, timm's names and shapes, and made-up weights of given shapes."""

from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from torch import nn

from feature_extraction.encoders.vit import VitShape

CARDS = Path(__file__).parent.parent / "conf" / "encoder"
CPU = torch.device("cpu")
Shapes = dict[str, tuple[int, ...]]


def card(name: str, **changed: object) -> dict[str, object]:
    return {**yaml.safe_load((CARDS / f"{name}.yaml").read_text())["spec"], "revision": "", **changed}


def linear(name: str, inwards: int, outwards: int, *, has_bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outwards, inwards)} | ({f"{name}.bias": (outwards,)} if has_bias else {})


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def attention(name: str, width: int) -> Shapes:
    """torch's own, with one matrix for query, key and value."""
    return {f"{name}.in_proj_weight": (3 * width, width), f"{name}.in_proj_bias": (3 * width,)} | linear(
        f"{name}.out_proj", width, width
    )


def timm_vit(prefix: str, shape: VitShape) -> Shapes:
    """Names and shapes of timm's VisionTransformer without a classifier."""
    width = shape.width
    found: Shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + shape.grid**2, width),
        "patch_embed.proj.weight": (width, 3, shape.patch_px, shape.patch_px),
        "patch_embed.proj.bias": (width,),
        **norm("norm", width),
    }
    for block in (f"blocks.{number}" for number in range(shape.depth)):
        found |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        found |= linear(f"{block}.attn.qkv", width, 3 * width) | linear(f"{block}.attn.proj", width, width)
        found |= linear(f"{block}.mlp.fc1", width, 4 * width) | linear(f"{block}.mlp.fc2", 4 * width, width)
        if shape.has_layer_scale:
            found |= {f"{block}.ls1.gamma": (width,), f"{block}.ls2.gamma": (width,)}
    return {f"{prefix}{name}": size for name, size in found.items()}


def shapes_of(network: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def made_up(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of these names and shapes, such that every tensor matters."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(size, generator=generator) * 0.2 + (1.0 if name.endswith("norm.weight") else 0.0)
        for name, size in shapes.items()
    }
