"""What families have in common whose facts are a card, and whose weights are a file here or at a hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from feature_extraction.encoder import EncoderSource, EncoderSpec
from feature_extraction.encoders.card import read_spec
from feature_extraction.encoders.weights import find_beside, find_file, is_here
from feature_extraction.errors import InputError


class CardSource(EncoderSource):
    """A source whose facts are its card.

    Args:
        path: The weights file, its folder, or a hub id.
        spec: The card.
        weights: Names of the weights file in a folder; the first one that is there counts.
        tokenizer: The tokenizer's file, its folder, or a hub id; None when it is next to the weights or there is none.
    """

    def __init__(
        self, path: str, spec: Mapping[str, object], weights: Sequence[str], *, tokenizer: str | None = None
    ) -> None:
        self._path = path
        self._tokenizer = tokenizer
        self._spec = read_spec(spec)
        self._weights = tuple(weights)

    @property
    def spec(self) -> EncoderSpec:
        """The card."""
        return self._spec

    def weights_file(self) -> Path:
        """The file that the weights are read from.

        Raises:
            InputError: It is neither here nor to be had.
        """
        return find_file(self._path, self._weights, revision=self._spec.revision)

    def is_local(self) -> bool:
        """Whether weights and tokenizer are read from this machine."""
        return all(is_here(place) for place in (self._path, self._tokenizer) if place is not None)

    def _beside(self, names: Sequence[str]) -> Path | None:
        """The first of ``names`` next to the weights, None when none is there."""
        return find_beside(self._path, names, revision=self._spec.revision)

    def _tokenizer_file(self, names: Sequence[str]) -> Path | None:
        """Where ``encoder.tokenizer`` says, else next to the weights; None when it is not there."""
        if self._tokenizer is None:
            return self._beside(names)
        return find_file(self._tokenizer, names, revision="", key="encoder.tokenizer")

    def _require_image_only(self, family: str) -> None:
        if self._spec.has_text:
            raise InputError(
                f"encoder {self._spec.name}: the {family} family has no text tower; set spec.has_text=false"
            )
