"""Dual encoders in the format of open_clip (QuiltNet, BiomedCLIP, PathCLIP, PathGen-CLIP, OmiCLIP).

open_clip builds the network and its tokenizer; weights are read strictly, and tiles are prepared as the card says.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from feature_extraction.encoder import EncoderSpec
from feature_extraction.encoders.card import differences
from feature_extraction.encoders.card_source import CardSource
from feature_extraction.encoders.hf_folder import section
from feature_extraction.encoders.open_clip_towers import (
    OpenClipTowers,
    backbone_width,
    build,
    of_towers,
    read_tokenizer,
    upstream_tensors,
)
from feature_extraction.encoders.packages import require
from feature_extraction.encoders.towers import TowersEncoder, ready
from feature_extraction.encoders.weights import find_folder, is_here, load_strictly, read_tensors
from feature_extraction.errors import InputError

Section = dict[str, object]
CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
TEXT_FILES = ("config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.model")
FORMER_NAMES = {"proj": "hf_proj_type", "pooler_type": "hf_pooler_type"}
"""Of a text tower's options: what open_clip called them when the first such checkpoints were published."""


class OpenClipSource(CardSource):
    """A dual encoder to be built with open_clip.

    Args:
        path: The checkpoint file, a folder with ``open_clip_config.json`` and the weights, or a hub id.
        spec: The card; what the configuration says must agree with it.
        model: The architecture of a checkpoint that comes without configuration: its name in open_clip, or its content
            (``embed_dim``, ``vision_cfg``, ``text_cfg``). None reads ``open_clip_config.json``.
        weights: Names of the weights file in a folder; the first one that is there counts.
        quick_gelu: Whether the towers compute with OpenAI's approximation of GELU; None for what the architecture says.
            The wrong one gives vectors that look right.
        text_path: Folder or hub id with configuration and tokenizer of a text tower in transformers' format; None for
            the one that the configuration names, which is another one than ``path``.
    """

    extra = "open_clip"

    def __init__(
        self,
        *,
        path: str,
        spec: Mapping[str, object],
        model: str | Mapping[str, object] | None = None,
        weights: Sequence[str] = WEIGHTS,
        quick_gelu: bool | None = None,
        text_path: str | None = None,
    ) -> None:
        super().__init__(path, spec, weights)
        if not {"joint", "backbone"} <= set(self._spec.widths):
            raise InputError(f"encoder {self._spec.name}: the open_clip family has both spaces; state both spec.widths")
        self._model = model
        self._quick_gelu = quick_gelu
        self._text_path = text_path

    def is_local(self) -> bool:
        """Whether everything is read from this machine: weights, and a text tower's configuration and tokenizer."""
        if self._text_path is not None:
            return super().is_local() and is_here(self._text_path)
        return super().is_local() and all(is_here(name) for name in self._text_names())

    def load(self, device: torch.device) -> TowersEncoder:
        """Build the network and its tokenizer, and read the weights strictly.

        Raises:
            InputError: open_clip is missing, the configuration is not the card's, or the weights are missing, damaged,
                or of another network.
        """
        require("open_clip", extra=self.extra)
        file = self.weights_file()
        architecture, preprocessing = self._configuration()
        tokenizer = read_tokenizer(section(architecture, "text_cfg"))
        network = build(architecture)
        defects = differences(_stated(architecture, preprocessing, network, self._spec), self._spec)
        if defects:
            raise InputError(f"encoder.path={self._path}: is not {self._spec.name}: {'; '.join(defects)}")
        tensors = upstream_tensors(read_tensors(file), network)
        load_strictly(network, tensors, f"encoder.path={self._path}")
        return TowersEncoder(
            self._spec,
            ready(OpenClipTowers(network, tokenizer), device),
            of_towers(tensors),
            tokenize=tokenizer.tokenize,
            longest=tokenizer.context_length,
        )

    def _configuration(self) -> tuple[Section, Section]:
        """Architecture and preprocessing; the text tower's name is already a folder here."""
        stated = self._stated_configuration() if self._model is None else {}
        architecture = section(stated, "model_cfg") if self._model is None else self._given_architecture(self._model)
        if not {"embed_dim", "vision_cfg", "text_cfg"} <= set(architecture):
            raise InputError(
                f"encoder.path={self._path}: embed_dim, vision_cfg and text_cfg must be in the model's configuration, "
                f"got {sorted(architecture)}"
            )
        if self._quick_gelu is not None:
            architecture["quick_gelu"] = self._quick_gelu
        architecture["vision_cfg"] = section(architecture, "vision_cfg")
        architecture["text_cfg"] = self._text_section(section(architecture, "text_cfg"))
        return architecture, section(stated, "preprocess_cfg")

    def _text_names(self) -> list[str]:
        """Where the configuration says that the text tower's own files are; none in most models."""
        if isinstance(self._model, str):
            return []
        try:
            stated = self._model or section(self._stated_configuration(), "model_cfg")
        except InputError:  # `load` says what is wrong
            return []
        text = section(stated, "text_cfg")
        return [str(text[key]) for key in ("hf_model_name", "hf_tokenizer_name") if text.get(key) is not None]

    def _stated_configuration(self) -> Section:
        file = self._beside((CONFIG,))
        if file is None:
            raise InputError(
                f"encoder.path={self._path}: no {CONFIG} with it; name the architecture, as in encoder.model=ViT-B-16"
            )
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise InputError(f"encoder.path={self._path}: {CONFIG} is not JSON; fetch it again") from error

    def _given_architecture(self, model: str | Mapping[str, object]) -> Section:
        if not isinstance(model, str):
            return dict(model)
        found = require("open_clip", extra=self.extra).get_model_config(model)
        if found is None:
            raise InputError(f"encoder.model={model}: unknown; open_clip.list_models() says which are")
        return dict(found)

    def _text_section(self, text: Section) -> Section:
        """Where a text tower in transformers' format is meant, its name becomes a local folder."""
        name = text.get("hf_model_name")
        if name is not None:
            text = {FORMER_NAMES.get(key, key): value for key, value in text.items()}
            text["hf_model_name"] = str(self._text_folder(str(name)))
        tokenizer = text.get("hf_tokenizer_name")
        if tokenizer is not None:
            text["hf_tokenizer_name"] = str(self._text_folder(str(tokenizer)))
        return text

    def _text_folder(self, name: str) -> Path:
        try:
            return find_folder(self._text_path or name, revision="", patterns=TEXT_FILES)
        except InputError as error:
            raise InputError(
                f"encoder {self._spec.name}: configuration and tokenizer of its text tower come from another place, "
                f"{self._text_path or name}, which is not to be had; set encoder.text_path to a local folder with them"
            ) from error


def _stated(
    architecture: Mapping[str, object], preprocessing: Mapping[str, object], network: torch.nn.Module, card: EncoderSpec
) -> EncoderSpec:
    """The card with what configuration and network say instead; what they leave open stays as in the card."""
    text, vision = section(architecture, "text_cfg"), section(architecture, "vision_cfg")
    joint = int(str(architecture["embed_dim"]))
    said: Section = {
        "widths": {"joint": joint, "backbone": backbone_width(network, joint)},
        "input_px": vision.get("image_size", card.input_px),
        "context_length": text.get("context_length", 77),
    }
    for key in ("mean", "std"):
        values = preprocessing.get(key)
        if isinstance(values, list):
            said[key] = tuple(float(value) for value in values)
    if preprocessing.get("interpolation") in ("bicubic", "bilinear"):
        said["interpolation"] = preprocessing["interpolation"]
    return replace(card, **said)  # pyright: ignore[reportArgumentType]  # compared with the card, not used
