"""Composed configuration -> this package's own objects."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from feature_extraction.errors import InputError


def plain(config: DictConfig) -> Mapping[str, object]:
    """A part of the configuration as plain, resolved data."""
    return cast("dict[str, object]", OmegaConf.to_container(config, resolve=True))


def paths(value: str | Sequence[str]) -> tuple[Path, ...]:
    """One path, or several as a list."""
    return (Path(value),) if isinstance(value, str) else tuple(Path(one) for one in value)


def optional_path(value: str | None) -> Path | None:
    """A path, or None."""
    return None if value is None else Path(value)


def top_j(value: str | int) -> int | str:
    """A number, or ``auto``.

    Raises:
        InputError: Neither.
    """
    if value == "auto" or isinstance(value, int):
        return value
    raise InputError(f"pooling.top_j={value}: expected a whole number or auto")


def n_cores() -> int:
    """Of this machine that this process may use."""
    return len(os.sched_getaffinity(0))
