"""The demo encoder: a toy dual encoder that ships with the package, trained on drawings (``demo_weights/CARD.md``).

It has no medical meaning. It exists so that every step, text included, runs offline on any machine in seconds.
"""

import json
import math
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from feature_extraction.encoder import (
    Encoder,
    EncoderSource,
    EncoderSpec,
    Projection,
    Space,
    affine_projection,
    fingerprint_of,
    to_network_input,
)
from feature_extraction.encoders.demo_towers import (
    BACKBONE_WIDTH,
    CONTEXT_LENGTH,
    JOINT_WIDTH,
    ImageTower,
    TextTower,
    Vocabulary,
    split_words,
    tokenize,
)
from feature_extraction.encoders.towers import require_width
from feature_extraction.errors import InputError

SPEC = EncoderSpec(
    name="demo",
    widths={"joint": JOINT_WIDTH, "backbone": BACKBONE_WIDTH},
    input_px=96,
    tile_mpp=1.0,
    mean=(0.75, 0.6, 0.75),
    std=(0.2, 0.25, 0.2),
    interpolation="bicubic",
    context_length=CONTEXT_LENGTH,
    licence="Apache-2.0",
    source="package",
    revision="1",
)


class DemoSource(EncoderSource):
    """The weights inside the package."""

    @property
    def spec(self) -> EncoderSpec:
        """The facts, read without touching a weight."""
        return SPEC

    def load(self, device: torch.device) -> "DemoEncoder":
        """Read the weights onto ``device``, in float32 and evaluation mode.

        Raises:
            InputError: The weights are missing or damaged, so the installation is.
        """
        folder = files("feature_extraction.encoders").joinpath("demo_weights")
        vocabulary = _read_vocabulary(folder.joinpath("vocabulary.json"))
        return DemoEncoder(_read_tensors(folder.joinpath("model.safetensors")), vocabulary, device)


class DemoEncoder(Encoder):
    """Loaded towers.

    Args:
        tensors: Weights of both towers, prefixed ``image.`` and ``text.``, and the scalar ``logit_scale``.
        vocabulary: Row of each known word in the word table.
        device: Where the towers run.

    Raises:
        InputError: The tensors do not fit the towers.
    """

    def __init__(self, tensors: dict[str, Tensor], vocabulary: Vocabulary, device: torch.device) -> None:
        weights = {name: tensor.float() for name, tensor in tensors.items()}
        self.spec = SPEC
        self.logit_bias = 0.0
        self._device = device
        self._vocabulary = vocabulary
        self._image = ImageTower()
        self._text = TextTower(len(vocabulary) + 1)
        try:
            self.logit_scale = min(float(weights.pop("logit_scale")), math.log(100))
            self._image.load_state_dict(_below(weights, "image."))
            self._text.load_state_dict(_below(weights, "text."))
        except (KeyError, RuntimeError) as error:
            raise InputError(f"encoder demo: the weights do not fit ({error}); install the package again") from error
        self.fingerprint = fingerprint_of(weights.items())
        for tower in (self._image, self._text):
            tower.to(device).eval().requires_grad_(requires_grad=False)

    def embed_tiles(
        self, tiles: UInt8[Tensor, "tile 3 height width"], spaces: Sequence[Space]
    ) -> dict[str, Float[Tensor, "tile dim"]]:
        """Embed RGB tiles; ``joint`` rows have unit length, ``backbone`` rows are as the network made them."""
        with torch.inference_mode():
            backbone = self._image(to_network_input(tiles.to(self._device), self.spec))
            made = {"backbone": backbone, "joint": self._image.project(backbone)}
            return {space: made[space].float().cpu() for space in spaces}

    def project(self, backbone: Float[Tensor, "tile backbone"]) -> Float[Tensor, "tile joint"]:
        """The projection and unit length.

        Raises:
            MismatchError: These are no vectors of the backbone space.
        """
        require_width(self.spec, backbone)
        with torch.inference_mode():
            return self._image.project(backbone.to(self._device)).cpu()

    def projection(self) -> Projection | None:
        """The image tower's."""
        like = torch.zeros(1, self.spec.widths["backbone"], device=self._device)
        return affine_projection(self._image.projection, like)

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "text dim"]:
        """Embed texts into the joint space, one at a time: a neighbour cannot change a vector."""
        with torch.inference_mode():
            rows = [self._embed_text(text) for text in texts]
            return torch.cat(rows) if rows else torch.zeros(0, JOINT_WIDTH)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Number of words of each text before any cut."""
        return [len(split_words(text)) for text in texts]

    def _embed_text(self, text: str) -> Float[Tensor, "1 dim"]:
        tokens = tokenize([text], self._vocabulary).to(self._device)
        return self._text(tokens).cpu()


def _below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of one tower, named as the tower names them."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _read_tensors(path: Traversable) -> dict[str, Tensor]:
    """Read a safetensors file of the package."""
    try:
        return load_tensors(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise InputError(f"encoder demo: {path.name} is not readable ({error}); install the package again") from error


def _read_vocabulary(path: Traversable) -> dict[str, int]:
    """Read the list of known words; a word's row is its place in the list, from 1."""
    try:
        words = json.loads(path.read_text(encoding="utf-8"))["words"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"encoder demo: {path.name} is not readable ({error}); install the package again") from error
    return {word: row for row, word in enumerate(words, start=1)}
