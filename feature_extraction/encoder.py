"""CONTRACT of an encoder: facts known before any weight is read, then images and texts to vectors.

An encoder yaml's ``_target_`` builds an `EncoderSource` (cheap: facts only); `EncoderSource.load` reads the weights and
returns an `Encoder`. To add a family: one file in ``encoders/`` with these two classes, one yaml in ``conf/encoder/``.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from feature_extraction.errors import MismatchError

Space = Literal["joint", "backbone"]
"""``joint``: comparable with text. ``backbone``: the image tower before its projection into the joint space."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """What is known of an encoder before its weights are read.

    Attributes:
        name: Used in folder and file names.
        widths: Width of the embedding in each space the encoder offers.
        input_px: Side of the square image the network sees.
        resize_px: Tiles of another size are resized to this side, then cropped around their centre to ``input_px``;
            None when they are resized to ``input_px`` and nothing is cut off.
        tile_px: Side of a tile as the encoder's authors cut it, None when tiles need no resizing.
        tile_mpp: Micrometres per pixel the network was trained at, None when unknown.
        mean: Channel means (RGB, of values in 0..1) subtracted before the network.
        std: Channel standard deviations divided by after that.
        interpolation: How tiles are resized, ``bicubic`` or ``bilinear``, always antialiased.
        has_text: Whether there is a text tower, so that ``joint`` means something.
        context_length: Longest text in tokens, None without a text tower.
        licence: Licence of the weights, as their source states it.
        licence_ancestry: Licences of the weights these were derived from.
        source: Where the weights come from: ``package``, a hub id, or ``local``. Never a path.
        revision: Revision at the source, empty when it has none.
        is_gated: Whether the source wants a login and accepted terms.
        weights_sha256: Of the weights file as its source publishes it, empty when unknown.
        variant: Which of several embeddings of one network this is, empty when there is one only.
    """

    name: str
    widths: Mapping[str, int]
    input_px: int
    tile_mpp: float | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    has_text: bool = True
    context_length: int | None = None
    licence: str = "unknown"
    licence_ancestry: tuple[str, ...] = ()
    source: str = "local"
    revision: str = ""
    resize_px: int | None = None
    tile_px: int | None = None
    is_gated: bool = False
    weights_sha256: str = ""
    variant: str = ""

    @property
    def resized_px(self) -> int:
        """Side that tiles are resized to."""
        return self.resize_px or self.input_px

    def transform(self) -> dict[str, object]:
        """How a tile becomes an embedding, as plain data, for the feature file and its fingerprint."""
        particular = {"resize_px": self.resize_px, "variant": self.variant}
        return {
            "input_px": self.input_px,
            "interpolation": self.interpolation,
            "antialias": True,
            "mean": list(self.mean),
            "std": list(self.std),
            **{key: value for key, value in particular.items() if value},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """The last step of an image tower, from the backbone to the joint space, before unit length: ``x W + b``.

    Attributes:
        weight: W.
        bias: b.
    """

    weight: Float[Tensor, "backbone joint"]
    bias: Float[Tensor, " joint"]


def affine_projection(
    project: Callable[[Float[Tensor, "tile backbone"]], Float[Tensor, "tile joint"]], like: Float[Tensor, "1 backbone"]
) -> Projection | None:
    """The matrix of a map that is affine, None of any other map.

    Args:
        project: The map, before unit length.
        like: A vector that has the width, type and device of what it takes.
    """
    with torch.inference_mode():
        bias = project(torch.zeros_like(like))[0]
        weight = project(torch.eye(like.shape[1]).to(like)) - bias
        proof = torch.linspace(-2, 3, 2 * like.shape[1]).to(like).reshape(2, -1)
        if not torch.allclose(project(proof), proof @ weight + bias, rtol=1e-3, atol=1e-3 * float(weight.abs().max())):
            return None
    return Projection(weight=weight.cpu(), bias=bias.cpu())


class Encoder(ABC):
    """Loaded weights: tiles to vectors, texts to vectors of the same space.

    Attributes:
        spec: The facts.
        fingerprint: SHA-256 over the weight tensors of both towers (`fingerprint_of`).
        logit_scale: Natural logarithm of the factor on the cosine, as the weights store it.
        logit_bias: Added to the scaled cosine (sigmoid models), 0 where there is none.
    """

    spec: EncoderSpec
    fingerprint: str
    logit_scale: float
    logit_bias: float

    @abstractmethod
    def embed_tiles(
        self, tiles: UInt8[Tensor, "tile 3 height width"], spaces: Sequence[Space]
    ) -> dict[str, Float[Tensor, "tile dim"]]:
        """Embed RGB tiles; ``joint`` rows have unit length, ``backbone`` rows are as the network made them.

        Returns:
            float32 on the CPU, one entry for each of ``spaces``.
        """

    def project(self, backbone: Float[Tensor, "tile backbone"]) -> Float[Tensor, "tile joint"]:
        """Take vectors of the backbone space into the joint space: unit length, float32 on the CPU.

        Raises:
            MismatchError: The encoder's joint vectors are not a function of its backbone vectors.
        """
        raise MismatchError(f"encoder {self.spec.name} has no projection from its backbone space into the joint space")

    def projection(self) -> Projection | None:
        """What `project` does before unit length, None where there is no such step or it is not affine."""
        return None

    @abstractmethod
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "text dim"]:
        """Embed texts into the joint space, unit length, float32 on the CPU.

        A text's vector depends on its own words only: not on its neighbours, not on padding.

        Raises:
            MismatchError: The encoder has no text tower.
        """

    @abstractmethod
    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Length of each text in tokens before any cut, to compare with ``spec.context_length``."""


class EncoderSource(ABC):
    """What an encoder yaml describes: its facts at once, its weights on demand.

    Attributes:
        extra: The optional dependencies it needs, as in ``pip install 'promptmil[<extra>]'``; empty for none.
    """

    extra: ClassVar[str] = ""

    @property
    @abstractmethod
    def spec(self) -> EncoderSpec:
        """The facts, read without touching a weight.

        Raises:
            InputError: The weights folder is missing or of another family.
        """

    def weights_file(self) -> Path | None:
        """The file that the weights are read from, None when they are part of the package.

        Raises:
            InputError: It is neither here nor to be had.
        """
        return None

    def is_local(self) -> bool:
        """Whether the weights are on this machine for sure, so that no hub need be asked."""
        return True

    @abstractmethod
    def load(self, device: torch.device) -> Encoder:
        """Read the weights onto ``device``, in float32 and evaluation mode.

        Raises:
            InputError: The weights are missing, damaged, or do not fit the family.
        """


def to_network_input(
    tiles: UInt8[Tensor, "tile 3 height width"], spec: EncoderSpec
) -> Float[Tensor, "tile 3 side side"]:
    """Resize (antialiased), crop and normalise tiles on the device they are on."""
    is_their_size = tiles.shape[-2:] == (spec.resized_px, spec.resized_px)
    pixels = tiles if is_their_size else resize(tiles, spec.resized_px, spec.interpolation)
    cut = (spec.resized_px - spec.input_px) // 2
    pixels = pixels[..., cut : cut + spec.input_px, cut : cut + spec.input_px]
    mean = torch.tensor(spec.mean, device=tiles.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(spec.std, device=tiles.device).view(1, 3, 1, 1) * 255
    return (pixels.float() - mean) / std


def resize(
    tiles: UInt8[Tensor, "tile 3 height width"], side_px: int, mode: Literal["bicubic", "bilinear"]
) -> UInt8[Tensor, "tile 3 side side"]:
    """Resize tiles, antialiased, on the device they are on.

    Only the CPU resizes bytes as they are; elsewhere they are resized as floats and rounded: one step of 255 off at
    most, but for overshoots at hard edges, which bytes clip between the two passes.
    """
    is_cpu = tiles.device.type == "cpu"
    return _resized(tiles, side_px, mode) if is_cpu else resized_as_floats(tiles, side_px, mode)


def resized_as_floats(
    tiles: UInt8[Tensor, "tile 3 height width"], side_px: int, mode: Literal["bicubic", "bilinear"]
) -> UInt8[Tensor, "tile 3 side side"]:
    """The way of `resize` on devices that cannot resize bytes."""
    return _resized(tiles.float(), side_px, mode).round().clamp(0, 255).to(torch.uint8)


def _resized(tiles: Tensor, side_px: int, mode: str) -> Tensor:
    return torch.nn.functional.interpolate(tiles, size=(side_px, side_px), mode=mode, antialias=True)


def fingerprint_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hex SHA-256 over weight tensors: names, shapes and float32 values, in the order of their names.

    Values are compared as float32, so that the same weights stored in half precision have the same fingerprint.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        values = np.ascontiguousarray(tensor.detach().to("cpu", torch.float32).numpy())
        digest.update(f"{name}{list(values.shape)}".encode())
        digest.update(values.data)
    return digest.hexdigest()
