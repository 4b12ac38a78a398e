"""MUSK: a BEiT-3 for images and texts, rebuilt from the published architecture; no remote code is run."""

from collections.abc import Mapping
from pathlib import Path

import torch

from feature_extraction.encoders.card_source import CardSource
from feature_extraction.encoders.musk_towers import MUSK_LARGE, Musk, MuskShape
from feature_extraction.encoders.packages import require
from feature_extraction.encoders.towers import Tokenize, TowersEncoder, ready, without
from feature_extraction.encoders.weights import load_strictly, read_tensors
from feature_extraction.errors import InputError

WEIGHTS = ("model.safetensors", "musk.pth")
TOKENIZERS = ("tokenizer.spm",)
FOR_TRAINING = ("vl_decoder.", "mlm_head.", "mim_head.")
MULTISCALE = "ms2048"
"""The variant whose backbone vector holds two scales."""
LONGEST = 100
FIRST, LAST, UNKNOWN = 0, 2, 3
"""Tokens of XLM-R that are not where SentencePiece has them; every other one is one further on."""
UNSAID = 2
"""Tokens of XLM-R that are no pieces: the padding, and the mask at the end."""


class MuskSource(CardSource):
    """MUSK.

    Args:
        path: The weights file, its folder, or a hub id.
        spec: The card; its ``variant`` is empty or ``ms2048``.
        tokenizer: ``tokenizer.spm``, its folder, or a hub id; None when it is beside the weights.
        shape: Sizes of the network.
    """

    extra = "hf"

    def __init__(
        self, *, path: str, spec: Mapping[str, object], tokenizer: str | None = None, shape: MuskShape = MUSK_LARGE
    ) -> None:
        super().__init__(path, spec, WEIGHTS, tokenizer=tokenizer)
        self._shape = shape
        if self._spec.variant not in ("", MULTISCALE):
            raise InputError(f"encoder {self._spec.name}: variant={self._spec.variant}; expected none or {MULTISCALE}")

    def load(self, device: torch.device) -> TowersEncoder:
        """Read the weights strictly, and the tokenizer if it is there; images need none.

        Raises:
            InputError: The weights are missing, damaged, or not MUSK's.
        """
        tensors = without(read_tensors(self.weights_file()), FOR_TRAINING)
        with torch.device("meta"):
            network = Musk(self._shape, is_multiscale=self._spec.variant == MULTISCALE)
        load_strictly(network, tensors, f"encoder.path={self._path}")
        return TowersEncoder(
            self._spec,
            ready(network, device),
            tensors,
            tokenize=self._tokenize(),
            remedy="set encoder.tokenizer=… to MUSK's tokenizer.spm",
            longest=LONGEST,
        )

    def _tokenize(self) -> Tokenize | None:
        file = self._tokenizer_file(TOKENIZERS)
        return None if file is None else read_sentencepiece(file, self._shape.vocabulary)


def read_sentencepiece(path: Path, vocabulary: int) -> Tokenize:
    """XLM-R's tokens from a SentencePiece model.

    Raises:
        InputError: Not such a model, more tokens than the network knows, or sentencepiece is not installed.
    """
    sentencepiece = require("sentencepiece", extra="hf")
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path.name}: not readable as a SentencePiece model ({error}); fetch it again") from error
    if pieces.get_piece_size() + UNSAID > vocabulary:
        raise InputError(
            f"{path.name}: has {pieces.get_piece_size()} pieces, MUSK's text tower knows {vocabulary} tokens"
        )

    def tokenize(text: str) -> list[int]:
        found = [int(piece) for piece in pieces.encode(text)]
        return [FIRST, *(piece + 1 if piece else UNKNOWN for piece in found), LAST]

    return tokenize
