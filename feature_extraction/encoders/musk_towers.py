"""The network of MUSK, a BEiT-3: shared blocks in which images and texts have weights of their own, A and B.

Parameters are named as in torchscale, whose naming the published weights follow.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from feature_extraction.encoders.towers import Towers

Expert = Literal["A", "B"]
"""Which weights of a block: A for images, B for texts."""
FIRST_POSITION = 2
"""Rows of a position table before this one are never used (Fairseq kept them for padding)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MuskShape:
    """Sizes of a BEiT-3 with heads.

    Attributes:
        width: Of a token, and of the joint space.
        depth: Number of blocks.
        n_heads: Attention heads in each block.
        hidden: Width of the hidden layer of each block.
        patch_px: Side of the square patches that an image is cut into.
        image_px: Side of an image.
        vocabulary: Number of tokens known.
        context: Places in the table of text positions.
    """

    width: int
    depth: int
    n_heads: int
    hidden: int
    patch_px: int
    image_px: int
    vocabulary: int
    context: int


MUSK_LARGE = MuskShape(
    width=1024, depth=24, n_heads=16, hidden=4096, patch_px=16, image_px=384, vocabulary=64010, context=1024
)


class Musk(Towers):
    """Both towers.

    Args:
        shape: The sizes.
        is_multiscale: Whether the backbone vector also holds what is seen in the four quarters at twice the size.
    """

    def __init__(self, shape: MuskShape, *, is_multiscale: bool) -> None:
        super().__init__()
        self._is_multiscale = is_multiscale
        self._side = shape.image_px
        self._width = shape.width
        self.beit3 = _Beit3(shape)
        self.language_head = nn.Linear(shape.width, shape.width, bias=False)
        self.vision_head = nn.Linear(shape.width, shape.width, bias=False)
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def see(self, pixels: Float[Tensor, "tile 3 side side"]) -> Float[Tensor, "tile backbone"]:
        """The image's class token; with several scales, next to the mean of those of its enlarged quarters."""
        whole = self.beit3.see(pixels)
        if not self._is_multiscale:
            return whole
        side = self._side
        large = interpolate(pixels.float(), size=(2 * side, 2 * side), mode="bicubic").to(pixels.dtype)
        corners = [(top, left) for top in (0, side) for left in (0, side)]
        quarters = [self.beit3.see(large[..., top : top + side, left : left + side]) for top, left in corners]
        return torch.cat([whole, torch.stack(quarters).mean(dim=0)], dim=-1)

    def project(self, backbone: Float[Tensor, "tile backbone"]) -> Float[Tensor, "tile joint"]:
        """The image head on the class token of the whole image; the quarters have no part in it."""
        return self.vision_head(backbone[:, : self._width])

    def read(self, tokens: Int[Tensor, "1 token"]) -> Float[Tensor, "1 joint"]:
        """The text head on the first token."""
        return self.language_head(self.beit3.read(tokens))


class _Beit3(nn.Module):
    def __init__(self, shape: MuskShape) -> None:
        super().__init__()
        self.text_embed = nn.Embedding(shape.vocabulary, shape.width)
        self.vision_embed = _VisionEmbed(shape)
        self.encoder = _Encoder(shape)

    def see(self, pixels: Tensor) -> Float[Tensor, "tile width"]:
        return self.encoder(self.vision_embed(pixels), "A")[:, 0]

    def read(self, tokens: Tensor) -> Float[Tensor, "text width"]:
        return self.encoder(self.text_embed(tokens), "B")[:, 0]


class _VisionEmbed(nn.Module):
    def __init__(self, shape: MuskShape) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, shape.width, kernel_size=shape.patch_px, stride=shape.patch_px)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, shape.width))  # of the pretraining; part of the weights
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))

    def forward(self, pixels: Tensor) -> Float[Tensor, "tile token width"]:
        patches = self.proj(pixels).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)


class _Encoder(nn.Module):
    def __init__(self, shape: MuskShape) -> None:
        super().__init__()
        n_patches = (shape.image_px // shape.patch_px) ** 2
        self.embed_positions = nn.ModuleDict(
            {
                "A": nn.Embedding(FIRST_POSITION + 1 + n_patches, shape.width),
                "B": nn.Embedding(shape.context, shape.width),
            }
        )
        self.layers = nn.ModuleList(_Block(shape) for _ in range(shape.depth))
        self.layer_norm = _norms(shape.width)

    def forward(self, tokens: Float[Tensor, "row token width"], expert: Expert) -> Float[Tensor, "row token width"]:
        places = torch.arange(FIRST_POSITION, FIRST_POSITION + tokens.shape[1], device=tokens.device)
        tokens = tokens + self.embed_positions[expert](places)
        for layer in self.layers:
            tokens = layer(tokens, expert)
        return self.layer_norm[expert](tokens)


class _Block(nn.Module):
    def __init__(self, shape: MuskShape) -> None:
        super().__init__()
        self.self_attn_layer_norm = _norms(shape.width)
        self.self_attn = _Attention(shape)
        self.final_layer_norm = _norms(shape.width)
        self.ffn = nn.ModuleDict({"A": _FeedForward(shape), "B": _FeedForward(shape)})

    def forward(self, tokens: Tensor, expert: Expert) -> Tensor:
        tokens = tokens + self.self_attn(self.self_attn_layer_norm[expert](tokens), expert)
        return tokens + self.ffn[expert](self.final_layer_norm[expert](tokens))


class _Attention(nn.Module):
    """Attention with a norm of its own before the last map."""

    def __init__(self, shape: MuskShape) -> None:
        super().__init__()
        self._n_heads = shape.n_heads
        self.k_proj = _maps(shape.width)
        self.v_proj = _maps(shape.width)
        self.q_proj = _maps(shape.width)
        self.out_proj = _maps(shape.width)
        self.inner_attn_ln = _norms(shape.width)

    def forward(self, tokens: Tensor, expert: Expert) -> Tensor:
        parts = [part[expert](tokens) for part in (self.q_proj, self.k_proj, self.v_proj)]
        heads = [part.unflatten(-1, (self._n_heads, -1)).transpose(1, 2) for part in parts]
        mixed = scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return self.out_proj[expert](self.inner_attn_ln[expert](mixed))


class _FeedForward(nn.Module):
    def __init__(self, shape: MuskShape) -> None:
        super().__init__()
        self.fc1 = nn.Linear(shape.width, shape.hidden)
        self.fc2 = nn.Linear(shape.hidden, shape.width)
        self.ffn_layernorm = nn.LayerNorm(shape.hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(self.ffn_layernorm(nn.functional.gelu(self.fc1(tokens))))


def _norms(width: int) -> nn.ModuleDict:
    return nn.ModuleDict({"A": nn.LayerNorm(width), "B": nn.LayerNorm(width)})


def _maps(width: int) -> nn.ModuleDict:
    return nn.ModuleDict({"A": nn.Linear(width, width), "B": nn.Linear(width, width)})
