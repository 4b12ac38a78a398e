"""Train cells of a sweep that differ in fold and seed only as one, each into the run folder that it has alone."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from feature_extraction.errors import PromptmilError
from mil.cell import TrainRequest
from mil.failures import keep_failure
from mil.fit import Fitted
from mil.run_writer import OpenCell, ReadyCell
from mil.stacked import Member, fit_together
from mil.train import TrainResult, finish, open_cell, prepare


def train_together(
    requests: Sequence[TrainRequest], on_epoch: Callable[[], None] = lambda: None
) -> list[TrainResult | Exception]:
    """Train the cells that are not done; a fault of one costs that cell only.

    All are claimed until all are written, and none is written before all are trained: an interrupted group begins
    again. With ``pooling.top_j=auto`` only cells that chose the same J are one.

    Args:
        requests: The same but for fold and seed.
        on_epoch: Called after each epoch of each set of models that is one.

    Returns:
        What became of each: its result, or the error that its own training would have ended with.
    """
    outcomes: dict[int, TrainResult | Exception] = {}
    ready: dict[int, ReadyCell] = {}
    with ExitStack() as claims:
        for number, request in enumerate(requests):
            try:
                cell = claims.enter_context(open_cell(request))
            except (PromptmilError, OSError) as error:
                outcomes[number] = error
                continue
            if isinstance(cell, TrainResult):
                outcomes[number] = cell
                continue
            try:
                ready[number] = prepare(cell)
            except (PromptmilError, OSError) as error:
                outcomes[number] = _failed(cell, error)
        for numbers in _alike(ready):
            fitted = _fit([ready[number] for number in numbers], on_epoch)
            for number, one in zip(numbers, fitted, strict=True):
                outcomes[number] = _finished(ready.pop(number), one)
    return [outcomes[number] for number in range(len(requests))]


def _alike(ready: dict[int, ReadyCell]) -> list[list[int]]:
    """Cells of one J: it is a number in the parts, not a tensor that each model could have for itself."""
    by_pooling: dict[tuple[str, int], list[int]] = {}
    for number, one in ready.items():
        by_pooling.setdefault((one.card.rule, one.card.top_j), []).append(number)
    return list(by_pooling.values())


def _fit(cells: Sequence[ReadyCell], on_epoch: Callable[[], None]) -> list[Fitted | PromptmilError]:
    first = cells[0].cell
    members = [
        Member(aggregator=one.aggregator, task=one.task, fold=one.fold, seed=one.cell.request.training.seed)
        for one in cells
    ]
    return fit_together(
        members,
        optimization=first.request.optimization,
        training=first.request.training,
        init=first.inputs.init,
        on_epoch=on_epoch,
    )


def _finished(ready: ReadyCell, fitted: Fitted | PromptmilError) -> TrainResult | Exception:
    if isinstance(fitted, PromptmilError):
        return _failed(ready.cell, fitted)
    try:
        return finish(ready, fitted)
    except (PromptmilError, OSError) as error:
        return _failed(ready.cell, error)


def _failed(cell: OpenCell, error: Exception) -> Exception:
    keep_failure(cell.request.out, cell.folder.name, error)
    return error
