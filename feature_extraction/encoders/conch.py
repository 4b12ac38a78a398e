"""CONCH v1 (images and texts) and v1.5 (images), rebuilt from the published architectures; no remote code is run."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from feature_extraction.encoders.card_source import CardSource
from feature_extraction.encoders.conch_towers import (
    CONCH,
    CONCH_VISION,
    Conch,
    ConchShape,
    ConchVision,
    ConchVisionShape,
)
from feature_extraction.encoders.packages import require
from feature_extraction.encoders.towers import Tokenize, TowersEncoder, ready, without
from feature_extraction.encoders.vit import resized_positions
from feature_extraction.encoders.weights import load_strictly, read_tensors
from feature_extraction.errors import InputError

WEIGHTS = ("pytorch_model.bin", "model.safetensors")
VISION_WEIGHTS = ("pytorch_model_vision.bin", "conch_v1_5_pytorch_model.bin", "model.safetensors")
TOKENIZERS = ("tokenizer.json", "conch_byte_level_bpe_uncased.json")
FOR_CAPTIONS = ("text_decoder.", "visual.attn_pool_caption.", "visual.ln_caption.")
POSITION_MARGIN = 0.1
"""v1.5 stretches the positions of a smaller image by this much too little."""


class ConchSource(CardSource):
    """CONCH v1.

    Args:
        path: The weights file, its folder, or a hub id.
        spec: The card.
        tokenizer: ``tokenizer.json``, its folder, or a hub id; None when it is beside the weights.
        shape: Sizes of the network.
    """

    extra = "hf"

    def __init__(
        self,
        *,
        path: str,
        spec: Mapping[str, object],
        tokenizer: str | None = None,
        shape: ConchShape = CONCH,
    ) -> None:
        super().__init__(path, spec, WEIGHTS, tokenizer=tokenizer)
        self._shape = shape

    def load(self, device: torch.device) -> TowersEncoder:
        """Read the weights strictly, and the tokenizer if it is there; images need none.

        Raises:
            InputError: The weights are missing, damaged, or not CONCH's.
        """
        tensors = without(read_tensors(self.weights_file()), FOR_CAPTIONS)
        with torch.device("meta"):
            network = Conch(self._shape)
        fitted = _fitted(tensors, "visual.trunk.pos_embed", self._shape.image.grid, "bilinear")
        load_strictly(network, fitted, f"encoder.path={self._path}")
        return TowersEncoder(
            self._spec,
            ready(network, device),
            tensors,
            tokenize=self._tokenize(),
            remedy="set encoder.tokenizer=… to conch_byte_level_bpe_uncased.json, which comes with CONCH's code",
            longest=self._shape.text.context - 1,
        )

    def _tokenize(self) -> Tokenize | None:
        file = self._tokenizer_file(TOKENIZERS)
        return None if file is None else read_bpe(file, self._shape.text.vocabulary)


class ConchVisionSource(CardSource):
    """CONCH v1.5, the tile encoder of TITAN.

    Args:
        path: The weights file, its folder, or a hub id.
        spec: The card.
        shape: Sizes of the network.
    """

    def __init__(self, *, path: str, spec: Mapping[str, object], shape: ConchVisionShape = CONCH_VISION) -> None:
        super().__init__(path, spec, VISION_WEIGHTS)
        self._shape = shape

    def load(self, device: torch.device) -> TowersEncoder:
        """Read the weights strictly.

        Raises:
            InputError: The weights are missing, damaged, or not CONCH v1.5's.
        """
        tensors = without(read_tensors(self.weights_file()), ())
        with torch.device("meta"):
            network = ConchVision(self._shape)
        fitted = _fitted(tensors, "trunk.pos_embed", self._shape.image.grid, "bicubic", margin=POSITION_MARGIN)
        load_strictly(network, fitted, f"encoder.path={self._path}")
        return TowersEncoder(self._spec, ready(network, device), tensors)


def read_bpe(path: Path, vocabulary: int) -> Tokenize:
    """CONCH's byte-level BPE, as its JSON file describes it.

    Raises:
        InputError: Not that file, another number of tokens than the network knows, or tokenizers is not installed.
    """
    tokenizers = require("tokenizers", extra="hf")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises nothing narrower
        raise InputError(f"{path.name}: not readable as a tokenizer ({error}); fetch it again") from error
    if tokenizer.get_vocab_size() != vocabulary:
        raise InputError(f"{path.name}: has {tokenizer.get_vocab_size()} tokens, CONCH's text tower knows {vocabulary}")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: list(tokenizer.encode(text).ids)


def _fitted(tensors: dict[str, Tensor], name: str, grid: int, mode: str, *, margin: float = 0.0) -> dict[str, Tensor]:
    """The tensors with positions for ``grid``, as upstream fits them to another size of image."""
    positions = tensors.get(name)
    if positions is None or positions.ndim != 3:
        return tensors
    return {**tensors, name: resized_positions(positions, grid, mode, margin=margin)}
