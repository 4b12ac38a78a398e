"""The cells that the words of a sweep name, composed as Hydra composes them, but what they share only once.

Hydra composes every cell from its files, twice: 300 cells take half a minute. Here each combination of groups is
composed by Hydra, with the first of all values, and copies of it are given the other values.
"""

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from feature_extraction.configuration import conf_folder

MULTIRUN = ("-m", "--multirun")


def is_plain_sweep(words: Sequence[str]) -> bool:
    """Whether a line asks for a sweep and for nothing more of Hydra: no other flag, no ``hydra.…``."""
    overrides = [word for word in words if word not in MULTIRUN]
    return len(overrides) < len(words) and not any(word.startswith(("-", "hydra", "+hydra")) for word in overrides)


def composed_cells(config_name: str, words: Sequence[str]) -> list[DictConfig]:
    """The configuration of every cell, in Hydra's order: the last word changes fastest.

    Args:
        config_name: Of the command.
        words: Of its line, of which `is_plain_sweep` is true.

    Raises:
        HydraException: A word is none, or they do not compose.
    """
    overrides = [word for word in words if word not in MULTIRUN]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        parser = OverridesParser.create()
        typed = parser.parse_overrides(overrides)
        first = compose(config_name, [_choices(one)[0] for one in typed], return_hydra_config=True)
        params = cast("Mapping[str, object]", OmegaConf.to_container(first.hydra.sweeper.params or DictConfig({})))
        asked = parser.parse_overrides([f"{key}={value}" for key, value in params.items()]) + typed
        by_key = {one.get_key_element(): one for one in asked}  # what is typed replaces what an experiment says
        return _product(config_name, list(by_key.values()), parser)


def _choices(override: Override) -> list[str]:
    """The override, once for each of its values."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _product(config_name: str, overrides: Sequence[Override], parser: OverridesParser) -> list[DictConfig]:
    choices = [_choices(one) for one in overrides]
    is_value = [_is_swept_value(one) for one in overrides]
    values = {
        word: parser.parse_overrides([word])[0].value()
        for words, is_one in zip(choices, is_value, strict=True)
        for word in words
        if is_one
    }
    bases: dict[tuple[str, ...], DictConfig] = {}
    cells: list[DictConfig] = []
    for words in itertools.product(*choices):
        shared = tuple(own[0] if is_one else word for own, word, is_one in zip(choices, words, is_value, strict=True))
        if shared not in bases:
            bases[shared] = compose(config_name, list(shared))
        cell = copy.deepcopy(bases[shared])
        for override, word in zip(overrides, words, strict=True):
            if word in values:
                OmegaConf.update(cell, override.key_or_group, values[word], merge=True)
        cells.append(cell)
    return cells


def _is_swept_value(override: Override) -> bool:
    """Whether it gives a key that is there one of several values, and so changes nothing else."""
    is_plain = override.is_sweep_override() and not (override.is_add() or override.is_force_add())
    return is_plain and not GlobalHydra.instance().config_loader().get_group_options(override.key_or_group)
