"""Composed configuration of `promptmil train` -> the cell it asks for."""

import math
from pathlib import Path

from omegaconf import DictConfig

from feature_extraction.errors import InputError
from feature_extraction.files import as_record
from mil.cell import TrainRequest
from mil.commands import settings
from mil.fit import Training
from mil.module import Optimization


def request_of(config: DictConfig) -> TrainRequest:
    """The cell.

    Raises:
        InputError: A value that makes no sense.
    """
    return TrainRequest(
        features=settings.paths(config.features),
        bank=settings.optional_path(config.bank),
        split=Path(config.split),
        out=Path(config.out),
        fold=int(config.fold),
        seed=int(config.seed),
        space=config.space,
        filter_nontask=bool(config.filter_nontask),
        in_memory=bool(config.in_memory),
        words=str(config.words),
        permute_labels=_permutation(config.permute_labels),
        aggregator=settings.plain(config.aggregator),
        task=settings.plain(config.task),
        rule=config.pooling.rule,
        top_j=settings.top_j(config.pooling.top_j),
        optimization=as_record(Optimization, settings.plain(config.optimizer), "optimizer"),
        training=as_record(Training, {**settings.plain(config.trainer), "seed": int(config.seed)}, "trainer"),
        checkpoint_s=_checkpoint_s(config.checkpoint_s),
    )


def _checkpoint_s(asked: object) -> float:
    if isinstance(asked, bool) or not isinstance(asked, int | float) or not 0 <= asked < math.inf:
        raise InputError(f"checkpoint_s={asked}: expected a number of seconds, 0 for a checkpoint after each epoch")
    return float(asked)


def _permutation(asked: object) -> int:
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 0:
        raise InputError(f"permute_labels={asked}: expected 0 for the labels as they are, or the seed of a permutation")
    return asked
