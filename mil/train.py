"""Train one cell of a sweep: one aggregator on one fold with one seed, into one run folder named by its content."""

from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import lightning
import numpy as np
import torch

from feature_extraction.claims import claim
from feature_extraction.errors import ElsewhereError, InputError, MismatchError
from feature_extraction.files import is_valid, read_json
from mil.aggregator import Aggregator, compose
from mil.bag import Bag
from mil.cell import AUTO, CellInputs, TrainRequest, cell_record, read_inputs
from mil.checkpoint import ModelCard
from mil.data import drawn_tiles
from mil.failures import recorded
from mil.feature_folder import BagSet
from mil.finite import require_finite
from mil.fit import ALONE, Course, Fitted, Labelled, fit
from mil.labels import ONE_CLASS
from mil.losses import InstanceClusters
from mil.resume import CHECKPOINT, Checkpoints, tidy
from mil.run_writer import OpenCell, ReadyCell, write_run
from mil.runs import check_run, lock_of
from mil.sealed import SealedPart
from mil.splits.file import SplitRow
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


def train_cell(request: TrainRequest, course: Course = ALONE) -> TrainResult:
    """Train a cell unless it is done; a cell that another process works on is refused, a killed one goes on.

    Args:
        request: The cell.
        course: Who is told of it; its checkpoints are those of the cell.

    Raises:
        ElsewhereError: Another process works on it.
        InputError: Inputs that do not belong together, a class missing from the prompts or from a part.
        DamagedFileError: A slide has features that are not finite.
        DivergedError: Training left the finite numbers.
    """
    with open_cell(request) as cell:
        if isinstance(cell, TrainResult):
            return cell
        ready = prepare(cell)
        kept = Checkpoints(path=cell.folder / CHECKPOINT, cell=str(cell.record["cell"]), every_s=request.checkpoint_s)
        fitted = fit(
            ready.aggregator,
            ready.task,
            fold=ready.fold,
            optimization=request.optimization,
            training=request.training,
            init=cell.inputs.init,
            course=replace(course, checkpoints=kept),
        )
        return finish(ready, fitted)


@contextmanager
def open_cell(request: TrainRequest) -> Generator[OpenCell | TrainResult]:
    """Read what a request names, and claim its cell while the block runs.

    Yields:
        The cell, or what became of it when it is done.

    Raises:
        InputError: Inputs that do not belong together.
        ElsewhereError: Another process works on the cell.
    """
    inputs = read_inputs(request)
    record = cell_record(request, inputs)
    folder = request.out / str(record["cell"])
    if is_valid(folder, check_run):
        tidy(folder)  # a kill may have come between the seal and this
        yield _found(folder, inputs)
        return
    with claim(lock_of(request.out, str(record["cell"]))) as is_ours:
        if not is_ours:
            raise ElsewhereError(
                f"cell {record['cell']} is being trained by another process; wait for it, or use another out=…"
            )
        if is_valid(folder, check_run):  # sealed by another process between the question and the claim
            yield _found(folder, inputs)
        else:
            with recorded(request.out, str(record["cell"])):
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
    parts = {part: _usable(inputs, request.fold, part) for part in ("train", "val")}
    task, words = build_task(request.task), words_of(inputs.bank)
    classes = task.classes([row.label for row in inputs.split.rows], words)
    labelled = {part: _labelled(rows, inputs.bags, task, classes) for part, rows in parts.items()}
    _require_classes(parts["train"], inputs.split.rows, task)
    card = _card(request, inputs, task, classes, labelled["val"])
    text = None if inputs.text is None else prototypes(inputs.text, classes)
    aggregator = compose(request.aggregator, card.facts(text, inputs.projection))
    _require_instance_labels(aggregator, task, card)
    is_margin = card.rule == "margin" and card.background is not None
    task.start(classes, words, is_margin=is_margin, is_text=inputs.init == "text")
    task.fit(torch.tensor(list(labelled["train"].labels)), len(classes))
    card = replace(card, learned=task.state())
    _fit_parts(aggregator, labelled["train"].bags)
    tested = _usable(inputs, request.fold, "test")
    return ReadyCell(
        cell=_without_bags(cell),
        rows=parts,
        labelled=labelled,
        test=SealedPart(tested, _labelled(tested, inputs.bags, task, classes)),
        shots=_shots(parts["train"], task),
        task=task,
        card=card,
        aggregator=aggregator,
    )


def finish(ready: ReadyCell, fitted: Fitted) -> TrainResult:
    """Evaluate the weights that training left in the aggregator, and write the run folder."""
    metrics = write_run(ready, fitted)
    tidy(ready.cell.folder)
    return TrainResult(folder=ready.cell.folder, is_new=True, metrics=metrics, unused=ready.cell.inputs.bags.unused)


def _fit_parts(aggregator: Aggregator, bags: Sequence[Bag]) -> None:
    drawn = [[drawn_tiles(one, TILES_A_BAG_TO_FIT) for one in bag.scales()] for bag in bags]
    tiles = [torch.cat(of_scale) for of_scale in zip(*drawn, strict=True)]
    if not all(torch.isfinite(of_scale).all() for of_scale in tiles):
        require_finite(bags)  # parts that cluster would end with an error that names no slide
    aggregator.fit_parts(*tiles)


def _without_bags(cell: OpenCell) -> OpenCell:
    """What goes along with training must not hold the test bags either."""
    return replace(cell, inputs=replace(cell.inputs, bags=replace(cell.inputs.bags, bags={})))


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


def _shots(train: Sequence[SplitRow], task: Task) -> int:
    """Training patients of the rarest class; of labels without classes, all of them."""
    patients: defaultdict[str, set[str]] = defaultdict(set)
    for row in train:
        for name in task.labels.required(row.label) or ("",):
            patients[name].add(row.patient_id)
    return min(len(some) for some in patients.values())


def _require_instance_labels(aggregator: Aggregator, task: Task, card: ModelCard) -> None:
    if task.labels is not ONE_CLASS and any(isinstance(module, InstanceClusters) for module in aggregator.modules()):
        raise InputError(
            f"aggregator={card.aggregator.get('name')}: labels tiles by the class of their slide, and this task's "
            "slides have not one class; use aggregator.losses=[] or another aggregator"
        )


def _card(request: TrainRequest, inputs: CellInputs, task: Task, classes: list[str], val: Labelled) -> ModelCard:
    bank, projection = inputs.text, inputs.projection
    words = words_of(bank)
    background = None if words is None else task.reference(classes, words)
    pooling = resolve_pooling(request.rule, 1 if request.top_j == AUTO else int(request.top_j), background=background)
    top_j = pooling.top_j
    if request.top_j == AUTO:
        if bank is None or projection is not None or not val.bags:
            raise InputError(
                "pooling.top_j=auto chooses on the validation part by the words: needs bank=…, a val part and "
                "embeddings of the joint space"
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
        text_dim=None if projection is None else projection.weight.shape[1],
        space=inputs.space,
        encoder=header.encoder,
        encoder_fingerprint=header.encoder_fingerprint,
        tile_mpp=list(inputs.tile_mpp),
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
    widths = {one.features.shape[1] for bag in bags.bags.values() for one in bag.scales()}
    if len(widths) != 1:
        raise MismatchError(f"the bags have widths {sorted(widths)}, expected one; extract them with one configuration")
    return widths.pop()
