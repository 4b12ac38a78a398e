"""The networks of CONCH (v1: both towers of a CoCa; v1.5: images only), parameters named as their weights name them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from feature_extraction.encoders.towers import Towers
from feature_extraction.encoders.vit import VisionTransformer, VitShape

PAD = 0
"""The padding token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextShape:
    """Sizes of the text tower.

    Attributes:
        vocabulary: Number of tokens known.
        context: Places in a text, the last of which is the class token's.
        width: Of a token.
        depth: Number of blocks.
        n_heads: Attention heads in each block.
    """

    vocabulary: int
    context: int
    width: int
    depth: int
    n_heads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConchShape:
    """Sizes of CONCH v1: its towers, the width of its joint space, the heads of its pooler."""

    image: VitShape
    text: TextShape
    joint: int
    n_pool_heads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConchVisionShape:
    """Sizes of CONCH v1.5: its tower, the width and the heads of its pooler."""

    image: VitShape
    pooled: int
    n_pool_heads: int


CONCH = ConchShape(
    image=VitShape(width=768, depth=12, n_heads=12, patch_px=16, image_px=448),
    text=TextShape(vocabulary=32007, context=128, width=768, depth=12, n_heads=12),
    joint=512,
    n_pool_heads=8,
)
CONCH_VISION = ConchVisionShape(
    image=VitShape(width=1024, depth=24, n_heads=16, patch_px=16, image_px=448, has_layer_scale=True),
    pooled=768,
    n_pool_heads=8,
)


class Conch(Towers):
    """CONCH v1 without what only captions need.

    Args:
        shape: The sizes.
    """

    def __init__(self, shape: ConchShape) -> None:
        super().__init__()
        self.visual = _Visual(shape)
        self.text = _Text(shape.text, shape.joint)
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def see(self, pixels: Float[Tensor, "tile 3 side side"]) -> Float[Tensor, "tile backbone"]:
        """What the contrastive pooler takes from the image."""
        tokens = self.visual.trunk(pixels)
        return self.visual.ln_contrast(self.visual.attn_pool_contrast(tokens))

    def project(self, backbone: Float[Tensor, "tile backbone"]) -> Float[Tensor, "tile joint"]:
        """One matrix."""
        return backbone @ self.visual.proj_contrast

    def read(self, tokens: Int[Tensor, "1 token"]) -> Float[Tensor, "1 joint"]:
        """The class token of the text, projected."""
        return self.text(tokens)


class ConchVision(Towers):
    """CONCH v1.5: a ViT-L and a pooler.

    Args:
        shape: The sizes.
    """

    def __init__(self, shape: ConchVisionShape) -> None:
        super().__init__()
        self.trunk = VisionTransformer(shape.image)
        self.attn_pool_contrast = _BiaslessPooler(shape)
        self.ln_contrast = nn.LayerNorm(shape.pooled)

    def see(self, pixels: Float[Tensor, "tile 3 side side"]) -> Float[Tensor, "tile backbone"]:
        """What the pooler takes from the image."""
        return self.ln_contrast(self.attn_pool_contrast(self.trunk(pixels)))


class _Visual(nn.Module):
    def __init__(self, shape: ConchShape) -> None:
        super().__init__()
        self.trunk = VisionTransformer(shape.image)
        self.attn_pool_contrast = _Pooler(shape)
        self.ln_contrast = nn.LayerNorm(shape.joint)
        self.proj_contrast = nn.Parameter(torch.zeros(shape.joint, shape.joint))


class _Pooler(nn.Module):
    """One learned query looks at all tokens."""

    def __init__(self, shape: ConchShape) -> None:
        super().__init__()
        width = shape.image.width
        self.query = nn.Parameter(torch.zeros(1, shape.joint))
        self.attn = nn.MultiheadAttention(shape.joint, shape.n_pool_heads, kdim=width, vdim=width, batch_first=True)
        self.ln_q = nn.LayerNorm(shape.joint)
        self.ln_k = nn.LayerNorm(width)

    def forward(self, tokens: Float[Tensor, "tile token width"]) -> Float[Tensor, "tile joint"]:
        keys = self.ln_k(tokens)
        query = self.ln_q(self.query).expand(len(tokens), -1, -1)
        return self.attn(query, keys, keys, need_weights=False)[0][:, 0]


class _BiaslessPooler(nn.Module):
    """The same in v1.5, whose linear maps have no bias and keys and values come from one matrix."""

    def __init__(self, shape: ConchVisionShape) -> None:
        super().__init__()
        self._n_heads = shape.n_pool_heads
        self.query = nn.Parameter(torch.zeros(1, shape.pooled))
        self.ln_k = nn.LayerNorm(shape.image.width)
        self.ln_q = nn.LayerNorm(shape.pooled)
        self.to_q = nn.Linear(shape.pooled, shape.pooled, bias=False)
        self.to_kv = nn.Linear(shape.image.width, 2 * shape.pooled, bias=False)
        self.to_out = nn.Linear(shape.pooled, shape.pooled, bias=False)

    def forward(self, tokens: Float[Tensor, "tile token width"]) -> Float[Tensor, "tile pooled"]:
        query = self.to_q(self.ln_q(self.query)).expand(len(tokens), -1, -1)
        key, value = self.to_kv(self.ln_k(tokens)).chunk(2, dim=-1)
        heads = [part.unflatten(-1, (self._n_heads, -1)).transpose(1, 2) for part in (query, key, value)]
        mixed = scaled_dot_product_attention(*heads)
        return self.to_out(mixed.transpose(1, 2).flatten(2))[:, 0]


class _Text(nn.Module):
    """A causal transformer whose class token stands behind the text."""

    def __init__(self, shape: TextShape, joint: int) -> None:
        super().__init__()
        self._context = shape.context
        self.token_embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.positional_embedding = nn.Parameter(torch.zeros(shape.context, shape.width))
        self.cls_emb = nn.Parameter(torch.zeros(shape.width))
        self.transformer = _TextBlocks(shape)
        self.ln_final = nn.LayerNorm(shape.width)
        self.text_projection = nn.Parameter(torch.zeros(shape.width, joint))

    def forward(self, tokens: Int[Tensor, "text token"]) -> Float[Tensor, "text joint"]:
        padded = nn.functional.pad(tokens, (0, self._context - 1 - tokens.shape[1]), value=PAD)
        last = self.cls_emb.expand(len(padded), 1, -1)
        places = torch.cat([self.token_embedding(padded), last], dim=1) + self.positional_embedding
        mask = _allowed(padded)
        for block in self.transformer.resblocks:
            places = block(places, mask)
        return self.ln_final(places[:, -1]) @ self.text_projection


class _TextBlocks(nn.Module):
    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_TextBlock(shape) for _ in range(shape.depth))


class _TextBlock(nn.Module):
    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.width)
        self.attn = nn.MultiheadAttention(shape.width, shape.n_heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(shape.width)
        self.mlp = _TextMlp(shape.width)

    def forward(self, places: Tensor, allowed: Tensor) -> Tensor:
        heads = self.attn.num_heads
        forbidden = torch.where(allowed, 0.0, -torch.inf).to(places.dtype).repeat_interleave(heads, dim=0)
        normed = self.ln_1(places)
        places = places + self.attn(normed, normed, normed, need_weights=False, attn_mask=forbidden)[0]
        return places + self.mlp(self.ln_2(places))


class _TextMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, places: Tensor) -> Tensor:
        return self.c_proj(nn.functional.gelu(self.c_fc(places)))


def _allowed(tokens: Int[Tensor, "text token"]) -> Bool[Tensor, "text place place"]:
    """True where a place (row) may look: at itself and what precedes it; the class token at the text only.

    The class token's row is one place further right than the text: it sees the first padding and, unless the text fills
    the context, not itself. The weights were trained so.
    """
    length = tokens.shape[1] + 1
    causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
    allowed = causal.repeat(len(tokens), 1, 1)
    allowed[:, -1, 1:] &= tokens != PAD
    return allowed
