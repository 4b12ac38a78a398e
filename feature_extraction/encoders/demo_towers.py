"""The two small networks of the demo encoder, and how its text becomes numbers."""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

CHANNELS = (32, 64, 128, 192)
BACKBONE_WIDTH = 192
JOINT_WIDTH = 128
WORD_WIDTH = 96
N_BUCKETS = 1024
"""Rows of the table that pieces of words are hashed into, so that an unknown word still has a vector."""
CONTEXT_LENGTH = 48
UNKNOWN = 0
"""Row of the word table for words without one of their own; always zero."""

Vocabulary = Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Texts as numbers; rows are padded on the right.

    Attributes:
        words: Row of each word in the word table, `UNKNOWN` for unknown words and padding.
        pieces: Rows of each word's pieces in the table of pieces.
        is_piece: True where ``pieces`` holds a piece and no padding.
        is_word: True where ``words`` holds a word and no padding.
    """

    words: Int64[Tensor, "text word"]
    pieces: Int64[Tensor, "text word piece"]
    is_piece: Bool[Tensor, "text word piece"]
    is_word: Bool[Tensor, "text word"]

    def to(self, device: torch.device) -> "Tokens":
        """The same tokens on a device."""
        return Tokens(
            words=self.words.to(device),
            pieces=self.pieces.to(device),
            is_piece=self.is_piece.to(device),
            is_word=self.is_word.to(device),
        )


def split_words(text: str) -> list[str]:
    """Lower-case words and numbers in order; everything else separates them."""
    return re.findall(r"[a-z0-9]+", text.lower())


@cache
def word_pieces(word: str) -> list[int]:
    """Rows of a word's three- and four-letter pieces, word ends marked, in the table of pieces."""
    marked = f"<{word}>"
    pieces = [marked[start : start + size] for size in (3, 4) for start in range(len(marked) - size + 1)]
    return [zlib.crc32(piece.encode()) % N_BUCKETS for piece in pieces or [marked]]


def tokenize(texts: Sequence[str], vocabulary: Vocabulary) -> Tokens:
    """Turn texts into `Tokens`, cut after `CONTEXT_LENGTH` words; a text without words gets one unknown word."""
    split = [(split_words(text) or [""])[:CONTEXT_LENGTH] for text in texts]
    pieces = [[word_pieces(word) for word in words] for words in split]
    n_words = max(len(words) for words in split)
    n_pieces = max(len(piece) for text in pieces for piece in text)
    words = np.zeros((len(texts), n_words), np.int64)
    rows = np.zeros((len(texts), n_words, n_pieces), np.int64)
    is_piece = np.zeros((len(texts), n_words, n_pieces), np.bool_)
    for text, (names, parts) in enumerate(zip(split, pieces, strict=True)):
        words[text, : len(names)] = [vocabulary.get(name, UNKNOWN) for name in names]
        for position, part in enumerate(parts):
            rows[text, position, : len(part)] = part
            is_piece[text, position, : len(part)] = True
    words, pieces_of, is_there = (torch.from_numpy(table) for table in (words, rows, is_piece))
    return Tokens(words=words, pieces=pieces_of, is_piece=is_there, is_word=is_there.any(dim=-1))


class ImageTower(nn.Module):
    """Four strided convolutions and one pointwise, averaged over the tile.

    Args:
        is_training_form: With batch normalisation, as it is trained; the stored form has it folded into the weights.
    """

    def __init__(self, *, is_training_form: bool = False) -> None:
        super().__init__()
        widths = (3, *CHANNELS, BACKBONE_WIDTH)
        sides, strides = (5, 3, 3, 3, 1), (3, 2, 2, 2, 1)
        layers: list[nn.Module] = []
        for index, side in enumerate(sides):
            stride = strides[index]
            layers.append(nn.Conv2d(widths[index], widths[index + 1], side, stride=stride, padding=side // 2))
            layers.append(nn.BatchNorm2d(widths[index + 1]) if is_training_form else nn.Identity())
            layers.append(nn.ReLU())
        self.layers = nn.Sequential(*layers)
        self.layers.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch's stub lacks it
        self.projection = nn.Linear(BACKBONE_WIDTH, JOINT_WIDTH, bias=False)

    def forward(self, pixels: Float[Tensor, "tile 3 height width"]) -> Float[Tensor, "tile backbone"]:
        """Vectors of the backbone space."""
        return self.layers(pixels.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3))

    def project(self, backbone: Float[Tensor, "tile backbone"]) -> Float[Tensor, "tile joint"]:
        """Backbone vectors into the joint space, unit length."""
        return nn.functional.normalize(self.projection(backbone), dim=-1)


class TextTower(nn.Module):
    """Word vectors, mixed with their neighbours (so that order counts), pooled by attention, projected."""

    def __init__(self, n_words: int) -> None:
        super().__init__()
        self.words = nn.Embedding(n_words, WORD_WIDTH, padding_idx=UNKNOWN)
        self.pieces = nn.Embedding(N_BUCKETS, WORD_WIDTH)
        self.mix = nn.Conv1d(WORD_WIDTH, WORD_WIDTH, 3, padding=1)
        self.attention = nn.Linear(WORD_WIDTH, 1)
        self.projection = nn.Linear(WORD_WIDTH, JOINT_WIDTH)
        nn.init.normal_(self.words.weight, std=0.3)
        nn.init.normal_(self.pieces.weight, std=0.3)
        nn.init.zeros_(self.words.weight[UNKNOWN].detach())

    def forward(self, tokens: Tokens) -> Float[Tensor, "text joint"]:
        """Vectors of the joint space, unit length."""
        weight = tokens.is_piece.float()
        pieces = (self.pieces(tokens.pieces) * weight[..., None]).sum(dim=2)
        vectors = self.words(tokens.words) + pieces / weight.sum(dim=2, keepdim=True).clamp(min=1)
        vectors = vectors * tokens.is_word[..., None]
        mixed = vectors + nn.functional.gelu(self.mix(vectors.transpose(1, 2)).transpose(1, 2))
        scores = self.attention(mixed).squeeze(-1).masked_fill(~tokens.is_word, float("-inf"))
        pooled = (scores.softmax(dim=-1)[..., None] * mixed).sum(dim=1)
        return nn.functional.normalize(self.projection(pooled), dim=-1)
