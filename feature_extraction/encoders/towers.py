"""What families share: one network with an image tower, perhaps a text tower, and how it is used."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from feature_extraction.encoder import (
    Encoder,
    EncoderSpec,
    Projection,
    Space,
    affine_projection,
    fingerprint_of,
    to_network_input,
)
from feature_extraction.errors import InputError, MismatchError

Tokenize = Callable[[str], list[int]]
"""A text to its whole list of tokens, the first and the last of which are special."""


class Towers(nn.Module, ABC):
    """A network, on its device and in evaluation mode."""

    @abstractmethod
    def see(self, pixels: Float[Tensor, "tile 3 side side"]) -> Float[Tensor, "tile backbone"]:
        """Images to the backbone space."""

    def project(self, backbone: Float[Tensor, "tile backbone"]) -> Float[Tensor, "tile joint"]:
        """Backbone space to the joint space, of any length.

        Raises:
            NotImplementedError: There is no joint space.
        """
        raise NotImplementedError

    def read(self, tokens: Int[Tensor, "1 token"]) -> Float[Tensor, "1 joint"]:
        """One text to the joint space, of any length.

        Raises:
            NotImplementedError: There is no text tower.
        """
        raise NotImplementedError

    @property
    def log_scale(self) -> float:
        """Natural logarithm of the factor on the cosine, 0 without a joint space."""
        return self._scalar("logit_scale")

    @property
    def bias(self) -> float:
        """Added to the scaled cosine, 0 where there is none."""
        return self._scalar("logit_bias")

    def _scalar(self, name: str) -> float:
        found = [tensor for path, tensor in self.named_parameters() if path.rpartition(".")[2] == name]
        return found[0].item() if found else 0.0


class TowersEncoder(Encoder):
    """Loaded towers.

    Args:
        spec: The facts.
        network: Filled.
        tensors: What it was filled from, for the fingerprint.
        tokenize: None without a text tower, or without its tokenizer.
        remedy: What to do when there is no tokenizer.
        longest: Tokens that the text tower reads; longer texts lose their end, but not the last special token.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        network: Towers,
        tensors: Mapping[str, Tensor],
        *,
        tokenize: Tokenize | None = None,
        remedy: str = "",
        longest: int = 0,
    ) -> None:
        self.spec = spec
        self.fingerprint = fingerprint_of(tensors.items())
        self.logit_scale = network.log_scale
        self.logit_bias = network.bias
        self._network = network
        self._tokenize = tokenize
        self._remedy = remedy
        self._longest = longest
        self._device = next(network.parameters()).device

    @torch.inference_mode()
    def embed_tiles(
        self, tiles: UInt8[Tensor, "tile 3 height width"], spaces: Sequence[Space]
    ) -> dict[str, Float[Tensor, "tile dim"]]:
        """The image tower, then its projection and unit length for the joint space.

        Raises:
            MismatchError: A space that the encoder does not have.
        """
        for space in spaces:
            if space not in self.spec.widths:
                has = ", ".join(self.spec.widths)
                raise MismatchError(f"encoder {self.spec.name} has no {space} space, it has {has}")
        backbone = self._network.see(to_network_input(tiles.to(self._device), self.spec)).float()
        require_width(self.spec, backbone)
        made = {"backbone": backbone.cpu()}
        if "joint" in spaces:
            made["joint"] = self._joint(backbone)
        return {space: made[space] for space in spaces}

    @torch.inference_mode()
    def project(self, backbone: Float[Tensor, "tile backbone"]) -> Float[Tensor, "tile joint"]:
        """The projection, in float32 whatever the tower ran in, and unit length.

        Raises:
            MismatchError: There are not two spaces, or these are no vectors of the backbone space.
        """
        if not {"joint", "backbone"} <= set(self.spec.widths):
            return super().project(backbone)
        require_width(self.spec, backbone)
        return self._joint(backbone)

    def projection(self) -> Projection | None:
        """The network's, where it has two spaces and one is an affine map of the other."""
        if not {"joint", "backbone"} <= set(self.spec.widths):
            return None
        like = torch.zeros(1, self.spec.widths["backbone"], device=self._device)
        with torch.autocast(self._device.type, enabled=False):
            return affine_projection(self._network.project, like)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "text dim"]:
        """The text tower, one text at a time: no neighbour and no padding can change a vector.

        Raises:
            MismatchError: There is no text tower.
            InputError: There is no tokenizer.
        """
        tokenize = self._tokenizer()
        rows = [self._network.read(self._cut(tokenize(text))) for text in texts]
        width = self.spec.widths["joint"]
        unit = [nn.functional.normalize(row.float(), dim=-1).cpu() for row in rows]
        return torch.cat([torch.zeros(0, width), *unit])

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens with the special ones."""
        tokenize = self._tokenizer()
        return [len(tokenize(text)) + self._unwritten for text in texts]

    def _joint(self, backbone: Float[Tensor, "tile backbone"]) -> Float[Tensor, "tile joint"]:
        with torch.autocast(self._device.type, enabled=False):
            joint = self._network.project(backbone.to(self._device, torch.float32))
        return nn.functional.normalize(joint, dim=-1).cpu()

    @property
    def _unwritten(self) -> int:
        """Places of the context that no token of a text can take."""
        return (self.spec.context_length or self._longest) - self._longest

    def _tokenizer(self) -> Tokenize:
        if not self.spec.has_text:
            raise MismatchError(f"encoder {self.spec.name} has no text tower: images only")
        if self._tokenize is None:
            raise InputError(f"encoder {self.spec.name}: texts need its tokenizer; {self._remedy}")
        return self._tokenize

    def _cut(self, tokens: list[int]) -> Int[Tensor, "1 token"]:
        is_long = len(tokens) > self._longest
        kept = [*tokens[: self._longest - 1], tokens[-1]] if is_long else tokens
        return torch.tensor([kept], device=self._device)


def require_width(spec: EncoderSpec, backbone: Float[Tensor, "tile backbone"]) -> None:
    """Refuse what cannot be vectors before the projection; where there is one space only, the tower ends in it.

    Raises:
        MismatchError: They have another width.
    """
    expected, got = spec.widths.get("backbone", spec.widths.get("joint")), backbone.shape[-1]
    if got != expected:
        raise MismatchError(f"encoder {spec.name}: its backbone vectors have {expected} numbers, these have {got}")


def without(tensors: Mapping[str, Tensor], prefixes: Sequence[str]) -> dict[str, Tensor]:
    """Leave out tensors that are known and not needed; a wrapper's ``module.`` in front of every name goes too."""
    is_wrapped = all(name.startswith("module.") for name in tensors)
    bare = {name.removeprefix("module.") if is_wrapped else name: tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in bare.items() if not name.startswith(tuple(prefixes))}


def without_positions(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out 0, 1, 2, ...: transformers once kept them with the weights of a text tower and computes them now."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not (name.endswith(".position_ids") and torch.equal(tensor.flatten().cpu(), torch.arange(tensor.numel())))
    }


def ready(network: Towers, device: torch.device) -> Towers:
    """A filled network as it is used: on its device, in evaluation mode, not to be trained."""
    return network.to(device).eval().requires_grad_(requires_grad=False)
