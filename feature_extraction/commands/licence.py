"""The licence of the weights, at the start of every command that uses them or what was made with them."""

import json
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from rich.console import Console

from feature_extraction.encoder import EncoderSpec
from feature_extraction.licences import forbidding, licence_line, require_profile


@runtime_checkable
class MadeWithWeights(Protocol):
    """What a feature file's header and a model's card say of the weights behind them."""

    @property
    def encoder(self) -> str:
        """Name."""
        ...

    @property
    def licence(self) -> str:
        """Of the weights."""
        ...

    @property
    def licence_ancestry(self) -> str:
        """JSON list of the licences behind it."""
        ...


def check_licence(profile: object, made: MadeWithWeights, console: Console) -> None:
    """Hold the licences behind a file against ``licence_profile``, and name those that limit its use.

    Raises:
        InputError: The profile does not allow them.
    """
    ancestry = [str(name) for name in json.loads(made.licence_ancestry)]
    require_profile(profile, encoder=made.encoder, licence=made.licence, ancestry=ancestry)
    _say(console, made.encoder, made.licence, ancestry)


def say_licences(specs: Iterable[EncoderSpec], console: Console) -> None:
    """Name the licences of encoders that limit their use; the profile was held against them when they were chosen."""
    for spec in specs:
        _say(console, spec.name, spec.licence, list(spec.licence_ancestry))


def _say(console: Console, encoder: str, licence: str, ancestry: list[str]) -> None:
    if forbidding(licence, ancestry):
        console.print(licence_line(encoder, licence, ancestry), soft_wrap=True, markup=False, style="yellow")
