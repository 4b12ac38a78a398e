"""A Vision Transformer: pre-norm blocks, learned positions, one class token; parameters named as timm names them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

NORM_EPS = 1e-6
"""Of every LayerNorm inside a timm ViT; torch's own default is ten times larger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VitShape:
    """Sizes of one Vision Transformer.

    Attributes:
        width: Of a token.
        depth: Number of blocks.
        n_heads: Attention heads in each block.
        patch_px: Side of the square patches that an image is cut into.
        image_px: Side of the image that the learned positions are for.
        mlp_ratio: Width of the hidden layer over the width of a token.
        has_layer_scale: Whether each branch of a block is multiplied by a learned vector.
    """

    width: int
    depth: int
    n_heads: int
    patch_px: int
    image_px: int
    mlp_ratio: int = 4
    has_layer_scale: bool = False

    @property
    def grid(self) -> int:
        """Patches along one side of an image."""
        return self.image_px // self.patch_px


class VisionTransformer(nn.Module):
    """Images to normalised tokens, the class token first.

    Args:
        shape: The sizes.
    """

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.shape = shape
        self.patch_embed = _PatchEmbed(shape)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + shape.grid**2, shape.width))
        self.blocks = nn.Sequential(*(_Block(shape) for _ in range(shape.depth)))
        self.norm = nn.LayerNorm(shape.width, eps=NORM_EPS)

    def forward(self, pixels: Float[Tensor, "tile 3 side side"]) -> Float[Tensor, "tile token width"]:
        """Class token, then patches row by row."""
        patches = self.patch_embed(pixels)
        first = self.cls_token.expand(len(patches), -1, -1)
        return self.norm(self.blocks(torch.cat([first, patches], dim=1) + self.pos_embed))


class _PatchEmbed(nn.Module):
    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, shape.width, kernel_size=shape.patch_px, stride=shape.patch_px)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class _Block(nn.Module):
    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=NORM_EPS)
        self.attn = _Attention(shape)
        self.ls1 = _LayerScale(shape.width) if shape.has_layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(shape.width, eps=NORM_EPS)
        self.mlp = _Mlp(shape)
        self.ls2 = _LayerScale(shape.width) if shape.has_layer_scale else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class _Attention(nn.Module):
    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self._n_heads = shape.n_heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.proj = nn.Linear(shape.width, shape.width)

    def forward(self, tokens: Tensor) -> Tensor:
        n, length, width = tokens.shape
        heads = self.qkv(tokens).view(n, length, 3, self._n_heads, width // self._n_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(n, length, width))


class _Mlp(nn.Module):
    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.fc1 = nn.Linear(shape.width, shape.mlp_ratio * shape.width)
        self.fc2 = nn.Linear(shape.mlp_ratio * shape.width, shape.width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(tokens)))


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma


def resized_positions(
    positions: Float[Tensor, "1 stored width"], grid: int, mode: str, *, margin: float = 0.0
) -> Float[Tensor, "1 token width"]:
    """Learned positions for another number of patches; the class token's stays as it is.

    Args:
        positions: The class token's, then those of a square grid of patches.
        grid: Patches along one side, wanted.
        mode: ``bilinear`` or ``bicubic``, without antialiasing.
        margin: Added to ``grid`` when the scale is worked out; some models were trained with .1 and see their
            positions that much nearer together.
    """
    stored = round((positions.shape[1] - 1) ** 0.5)
    if stored == grid:
        return positions
    first, patches = positions[:, :1], positions[:, 1:].float()
    square = patches.reshape(1, stored, stored, -1).permute(0, 3, 1, 2)
    if margin:
        square = interpolate(square, scale_factor=(grid + margin) / stored, mode=mode)
    else:
        square = interpolate(square, size=(grid, grid), mode=mode)
    return torch.cat([first.float(), square.flatten(2).transpose(1, 2)], dim=1)
