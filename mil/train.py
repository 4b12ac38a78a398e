"""Train one cell of a sweep: one aggregator on one fold with one seed, into one run folder named by its content."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import lightning
import numpy as np
import torch

from feature_extraction.claims import claim
from feature_extraction.errors import InputError, MismatchError
from feature_extraction.files import is_valid, read_json
from mil.aggregator import Aggregator, compose
from mil.bag import BagSet
from mil.cell import AUTO, CellInputs, TrainRequest, cell_record, read_inputs
from mil.checkpoint import ModelCard
from mil.data import drawn_tiles
from mil.fit import Fitted, Labelled, fit
from mil.labels import ONE_CLASS
from mil.losses import InstanceClusters
from mil.run_writer import OpenCell, ReadyCell, write_run
from mil.runs import check_run
from mil.splits import PARTS, SplitRow
from mil.task import Task, build_task
from mil.text import prototypes, task_concepts, words_of
from mil.zeroshot import choose_top_j, resolve_pooling

TILES_A_BAG_TO_FIT = 256
"""Tiles of each training bag that means and deviations are taken from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What became of a cell.

    Attributes:
        folder: The run folder.
        is_new: Whether it was trained now, rather than found done.
        metrics: Content of ``metrics.json``.
        unused: Slide id to reason, for slides of the split that could not be used.
    """

    folder: Path
    is_new: bool
    metrics: Mapping[str, object]
    unused: Mapping[str, str]


def train_cell(request: TrainRequest, on_epoch: Callable[[], None] = lambda: None) -> TrainResult:
    """Train a cell unless it is done; a cell that another process works on is refused.

    Args:
        request: The cell.
        on_epoch: Called after each epoch.

    Raises:
        InputError: Inputs that do not belong together, a class missing from the prompts or from a part.
    """
    with open_cell(request) as cell:
        if isinstance(cell, TrainResult):
            return cell
        ready = prepare(cell)
        fitted = fit(
            ready.aggregator,
            ready.task,
            fold=ready.fold,
            optimization=request.optimization,
            training=request.training,
            init=cell.inputs.init,
            on_epoch=on_epoch,
        )
        return finish(ready, fitted)


@contextmanager
def open_cell(request: TrainRequest) -> Generator[OpenCell | TrainResult]:
    """Read what a request names, and claim its cell while the block runs.

    Yields:
        The cell, or what became of it when it is done.

    Raises:
        InputError: Inputs that do not belong together, or another process works on the cell.
    """
    inputs = read_inputs(request)
    record = cell_record(request, inputs)
    folder = request.out / str(record["cell"])
    if is_valid(folder, check_run):
        yield _found(folder, inputs)
        return
    with claim(request.out / ".locks" / f"{record['cell']}.lock") as is_ours:
        if not is_ours:
            raise InputError(
                f"cell {record['cell']} is being trained by another process; wait for it, or use another out=…"
            )
        if is_valid(folder, check_run):  # sealed by another process between the question and the claim
            yield _found(folder, inputs)
        else:
            yield OpenCell(request=request, inputs=inputs, record=record, folder=folder)


def _found(folder: Path, inputs: CellInputs) -> TrainResult:
    metrics = read_json(folder / "metrics.json")
    return TrainResult(folder=folder, is_new=False, metrics=metrics, unused=inputs.bags.unused)


def prepare(cell: OpenCell) -> ReadyCell:
    """Targets, task and aggregator of a cell, from its seed.

    Raises:
        InputError: The task, the aggregator and the inputs do not belong together, or a part lacks a class.
    """
    request, inputs = cell.request, cell.inputs
    lightning.seed_everything(request.seed, verbose=False)
    parts = {part: _usable(inputs, request.fold, part) for part in PARTS}
    task, words = build_task(request.task), words_of(inputs.bank)
    classes = task.classes([row.label for row in inputs.split.rows], words)
    labelled = {part: _labelled(rows, inputs.bags, task, classes) for part, rows in parts.items()}
    _require_classes(parts["train"], inputs.split.rows, task)
    card = _card(request, inputs, task, classes, labelled["val"])
    has_text = inputs.bank is not None and inputs.space == "joint"
    text = prototypes(inputs.bank, classes) if inputs.bank is not None and has_text else None
    aggregator = compose(request.aggregator, card.facts(text))
    _require_instance_labels(aggregator, task, card)
    is_margin = card.rule == "margin" and card.background is not None
    task.start(classes, words, is_margin=is_margin, is_text=inputs.init == "text")
    task.fit(torch.tensor(list(labelled["train"].labels)), len(classes))
    card = replace(card, learned=task.state())
    aggregator.fit_parts(torch.cat([drawn_tiles(bag, TILES_A_BAG_TO_FIT) for bag in labelled["train"].bags]))
    return ReadyCell(cell=cell, rows=parts, labelled=labelled, task=task, card=card, aggregator=aggregator)


def finish(ready: ReadyCell, fitted: Fitted) -> TrainResult:
    """Evaluate the weights that training left in the aggregator, and write the run folder."""
    metrics = write_run(ready, fitted)
    return TrainResult(folder=ready.cell.folder, is_new=True, metrics=metrics, unused=ready.cell.inputs.bags.unused)


def _usable(inputs: CellInputs, fold: int, part: str) -> list[SplitRow]:
    return [row for row in inputs.split.part(fold, part) if row.slide_id in inputs.bags.bags]


def _labelled(rows: list[SplitRow], bags: BagSet, task: Task, classes: list[str]) -> Labelled:
    targets = task.targets([row.label for row in rows], classes)
    return Labelled(bags=[bags.bags[row.slide_id] for row in rows], labels=targets)


def _require_classes(train: Sequence[SplitRow], rows: Sequence[SplitRow], task: Task) -> None:
    wanted, found = ({name for row in some for name in task.labels.required(row.label)} for some in (rows, train))
    missing = sorted(wanted - found)
    if missing:
        raise InputError(
            f"no usable slide {'of class ' if task.labels.is_class else ''}{', '.join(missing)} in the training part; "
            "extract the missing slides, or make another split"
        )


def _require_instance_labels(aggregator: Aggregator, task: Task, card: ModelCard) -> None:
    if task.labels is not ONE_CLASS and any(isinstance(loss, InstanceClusters) for loss in aggregator.losses):
        raise InputError(
            f"aggregator={card.aggregator.get('name')}: labels tiles by the class of their slide, and this task's "
            "slides have not one class; use aggregator.losses=[] or another aggregator"
        )


def _card(request: TrainRequest, inputs: CellInputs, task: Task, classes: list[str], val: Labelled) -> ModelCard:
    bank = inputs.bank if inputs.space == "joint" else None
    words = words_of(bank)
    background = None if words is None else task.reference(classes, words)
    pooling = resolve_pooling(request.rule, 1 if request.top_j == AUTO else int(request.top_j), background=background)
    top_j = pooling.top_j
    if request.top_j == AUTO:
        if bank is None or not val.bags:
            raise InputError(
                "pooling.top_j=auto chooses on the validation part by the words: needs bank=… and a val part"
            )
        if task.labels is not ONE_CLASS or background not in (None, bank.background()):
            raise InputError("pooling.top_j=auto chooses for task=classification; give a number")
        top_j = choose_top_j(val.bags, np.array(val.labels), bank, classes, pooling)
    header = inputs.header
    return ModelCard(
        aggregator=dict(request.aggregator),
        task=dict(request.task),
        classes=classes,
        background=background,
        concepts=[list(pair) for pair in task_concepts(bank, classes)] if bank is not None else [],
        dim=_width(inputs.bags),
        space=inputs.space,
        encoder=header.encoder,
        encoder_fingerprint=header.encoder_fingerprint,
        tile_mpp=header.tile_mpp,
        tile_size_px=header.tile_size_px,
        logit_scale=header.logit_scale,
        rule=pooling.rule,
        top_j=top_j,
        init=inputs.init,
        filter_nontask=request.filter_nontask,
        licence=header.licence,
        licence_ancestry=header.licence_ancestry,
    )


def _width(bags: BagSet) -> int:
    widths = {bag.features.shape[1] for bag in bags.bags.values()}
    if len(widths) != 1:
        raise MismatchError(f"the bags have widths {sorted(widths)}, expected one; extract them with one configuration")
    return widths.pop()
