"""Image encoders in the format of transformers (Phikon is a ViT, Phikon-v2 a DINOv2); they have no text tower."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from feature_extraction.encoder import EncoderSpec
from feature_extraction.encoders.card import differences
from feature_extraction.encoders.card_source import CardSource
from feature_extraction.encoders.hf_folder import filled, input_px, read_json, triple
from feature_extraction.encoders.packages import require
from feature_extraction.encoders.towers import Towers, TowersEncoder, ready
from feature_extraction.encoders.weights import find_folder, read_tensors
from feature_extraction.errors import InputError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
CLASSES = {"vit": "ViTModel", "dinov2": "Dinov2Model"}
OPTIONS: dict[str, dict[str, bool]] = {"vit": {"add_pooling_layer": False}, "dinov2": {}}
UNUSED = "pooler."
"""A layer on the class token that transformers adds to a ViT; the encoders of this family do without."""


class HfVisionSource(CardSource):
    """An image encoder to be loaded with transformers; a tile's embedding is its class token.

    Args:
        path: Folder with ``config.json`` and the weights, or a hub id.
        spec: The card; what the folder says must agree with it.
    """

    extra = "hf"

    def __init__(self, *, path: str, spec: Mapping[str, object]) -> None:
        super().__init__(path, spec, WEIGHTS)
        self._require_image_only("hf_vision")

    def load(self, device: torch.device) -> TowersEncoder:
        """Read the weights; every tensor of the network must be in the file, and none may be left over.

        Raises:
            InputError: Not there, not whole, or not the model that the card describes.
        """
        transformers = require("transformers", extra=self.extra)
        transformers.utils.logging.disable_progress_bar()
        folder = find_folder(self._path, revision=self._spec.revision, patterns=["*.json"])
        file = self.weights_file()  # brings it into the hub's cache, beside the rest of the folder
        config = read_json(folder / "config.json")
        kind = str(config.get("model_type"))
        if kind not in CLASSES:
            known = ", ".join(CLASSES)
            raise InputError(f"encoder.path={self._path}: model_type is {kind!r}, the hf_vision family reads {known}")
        defects = differences(_stated(config, folder, self._spec), self._spec)
        if defects:
            raise InputError(f"encoder.path={self._path}: is not {self._spec.name}: {'; '.join(defects)}")
        network = filled(
            getattr(transformers, CLASSES[kind]),
            folder,
            what=f"encoder.path={self._path}",
            unused=UNUSED,
            options=OPTIONS[kind],
        )
        # Fingerprinted as published: transformers renames tensors from one release to the next.
        tensors = {name: tensor for name, tensor in read_tensors(file).items() if not name.startswith(UNUSED)}
        return TowersEncoder(self._spec, ready(HfTower(network), device), tensors)


class HfTower(Towers):
    """A loaded ``ViTModel`` or ``Dinov2Model``.

    Args:
        network: Filled.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def see(self, pixels: Float[Tensor, "tile 3 side side"]) -> Float[Tensor, "tile backbone"]:
        """The class token after the last layer's normalisation."""
        return self.network(pixel_values=pixels).last_hidden_state[:, 0]


def _stated(config: Mapping[str, object], folder: Path, card: EncoderSpec) -> EncoderSpec:
    """The card with what the folder's JSON files say instead; what they leave open stays as in the card."""
    file = folder / "preprocessor_config.json"
    image = read_json(file) if file.is_file() else {}
    return replace(
        card,
        widths={"backbone": int(str(config.get("hidden_size", card.widths["backbone"])))},
        mean=triple(image.get("image_mean")) or card.mean,
        std=triple(image.get("image_std")) or card.std,
        input_px=input_px(image) or card.input_px,
    )
