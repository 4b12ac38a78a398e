"""Image encoders that timm has the architecture of (UNI, Virchow, GigaPath, H-optimus); they have no text tower."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from feature_extraction.encoder import EncoderSpec
from feature_extraction.encoders.card_source import CardSource
from feature_extraction.encoders.packages import require
from feature_extraction.encoders.towers import Towers, TowersEncoder, ready, without
from feature_extraction.encoders.weights import load_strictly, read_tensors
from feature_extraction.errors import InputError

POOLINGS = ("cls", "cls+mean", "own")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class TimmVisionSource(CardSource):
    """An image encoder to be built with timm and filled from a file; timm fetches nothing.

    Args:
        path: The weights file, its folder, or a hub id.
        spec: The card.
        architecture: timm's name of it, such as ``vit_large_patch16_224``.
        options: What its authors passed to ``timm.create_model``; a layer is given by its name in ``timm.layers``.
        pooling: ``cls`` takes the class token; ``cls+mean`` puts the mean of the patch tokens behind it, without the
            register tokens; ``own`` is the architecture's own pooling, for networks without tokens.
        weights: Names of the weights file in a folder; the first one that is there counts.
    """

    extra = "timm"

    def __init__(
        self,
        *,
        path: str,
        spec: Mapping[str, object],
        architecture: str,
        options: Mapping[str, object] | None = None,
        pooling: str = "cls",
        weights: Sequence[str] = WEIGHTS,
    ) -> None:
        super().__init__(path, spec, weights)
        self._require_image_only("timm_vision")
        if pooling not in POOLINGS:
            raise InputError(f"encoder.pooling={pooling}: expected one of {', '.join(POOLINGS)}")
        if pooling != "cls" and not self._spec.variant:  # the feature file must tell poolings of one network apart
            self._spec = replace(self._spec, variant=pooling)
        self._architecture = architecture
        self._options = dict(options or {})
        self._pooling: str = pooling

    def load(self, device: torch.device) -> TowersEncoder:
        """Build the network and read its weights strictly.

        Raises:
            InputError: timm is missing or knows no such architecture, the network is not what the card says, or the
                weights are missing, damaged, or of another network.
        """
        network = self.build()
        tensors = without(read_tensors(self.weights_file()), ())
        load_strictly(network, tensors, f"encoder.path={self._path}")
        return TowersEncoder(self._spec, ready(TimmTower(network, self._pooling), device), network.state_dict())

    def build(self) -> nn.Module:
        """The network as timm makes it, to be filled; on the meta device, where it costs nothing, if it can be.

        Raises:
            InputError: timm is missing or cannot make it, or it is not what the card says.
        """
        with torch.device("meta"):
            network = self._created()
        # What a network computes while it is built is not in the weights file: on the meta device it would be lost.
        if dict(network.named_buffers()).keys() - network.state_dict().keys():
            network = self._created()
        defects = _contradictions(network, self._spec, self._pooling)
        if defects:
            raise InputError(f"encoder {self._spec.name}: {self._architecture} is not what its card says: {defects}")
        return network

    def _created(self) -> nn.Module:
        timm = require("timm", extra=self.extra)
        options = {key: _layer(timm.layers, key, value) for key, value in self._options.items()}
        try:
            return timm.create_model(self._architecture, pretrained=False, num_classes=0, **options)
        except (RuntimeError, TypeError, ValueError) as error:
            given = f"encoder.architecture={self._architecture} encoder.options={self._options}"
            raise InputError(f"{given}: timm {timm.__version__} cannot make it: {error}") from error


class TimmTower(Towers):
    """A timm network and how its tokens become one vector.

    Args:
        network: Filled, without classifier.
        pooling: As in `TimmVisionSource`.
    """

    def __init__(self, network: nn.Module, pooling: str) -> None:
        super().__init__()
        self.network = network
        self._pooling = pooling
        self._n_prefix = _n_prefix(network)

    def see(self, pixels: Float[Tensor, "tile 3 side side"]) -> Float[Tensor, "tile backbone"]:
        """Tokens, pooled."""
        if self._pooling == "own":
            return self.network(pixels)
        tokens: Tensor = self.network.forward_features(pixels)  # pyright: ignore[reportCallIssue]  # every timm network has it
        if self._pooling == "cls":
            return tokens[:, 0]
        return torch.cat([tokens[:, 0], tokens[:, self._n_prefix :].mean(dim=1)], dim=1)


def _layer(layers: object, key: str, value: object) -> object:
    """What ``timm.layers`` calls by that name, where an option wants a layer; timm knows activations by name itself."""
    if not key.endswith("_layer") or key in ("act_layer", "norm_layer"):
        return value
    found = getattr(layers, str(value), None)
    if not isinstance(found, type | partial):
        raise InputError(f"encoder.options.{key}={value}: timm.layers has no such layer")
    return found


def _contradictions(network: nn.Module, spec: EncoderSpec, pooling: str) -> str:
    has_tokens = _n_prefix(network) > 0
    if pooling != "own" and not has_tokens:
        return f"it has no class token for pooling={pooling}; set encoder.pooling=own"
    width = int(str(getattr(network, "num_features", 0))) * (2 if pooling == "cls+mean" else 1)
    size = getattr(getattr(network, "patch_embed", None), "img_size", None)
    found = [f"it makes {width} numbers a tile, the card says {spec.widths['backbone']}"]
    found = found if width != spec.widths["backbone"] else []
    if isinstance(size, tuple) and size != (spec.input_px, spec.input_px):
        found.append(f"it sees {size[0]} px, the card says {spec.input_px}; set options.img_size")
    return "; ".join(found)


def _n_prefix(network: nn.Module) -> int:
    """Class and register tokens in front of the patch tokens, 0 in a network without tokens."""
    return int(str(getattr(network, "num_prefix_tokens", 0)))
