"""A cell that was trained becomes its run folder; its test part is opened here (`mil.sealed`)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
import yaml

from feature_extraction.files import publish_json, publish_text
from feature_extraction.text_bank import write_bank
from mil.aggregator import Aggregator
from mil.cell import CellInputs, TrainRequest
from mil.checkpoint import BANK, ModelCard, write_model
from mil.drift import audit
from mil.fit import Fitted, Fold, Labelled, logits_of
from mil.predictions import predictions_table
from mil.runs import UNUSED, write_done
from mil.sealed import SealedPart, count_reading, readings_before
from mil.splits.file import SplitRow
from mil.task import Outcome, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCell:
    """A cell that is ours to train.

    Attributes:
        request: What was asked for.
        inputs: What it names.
        record: Content of ``cell.json``.
        folder: The run folder.
    """

    request: TrainRequest
    inputs: CellInputs
    record: dict[str, object]
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyCell:
    """A cell with everything that training needs.

    Attributes:
        cell: Which.
        rows: Of the split, those of train and val whose slides can be used, by part.
        labelled: Bags and targets of train and val.
        test: The test part.
        shots: Training patients of the rarest class.
        task: Fitted to the training part.
        card: Of the model.
        aggregator: At its start.
    """

    cell: OpenCell
    rows: Mapping[str, list[SplitRow]]
    labelled: Mapping[str, Labelled]
    test: SealedPart
    shots: int
    task: Task
    card: ModelCard
    aggregator: Aggregator

    @property
    def fold(self) -> Fold:
        """What training may see."""
        return Fold(train=self.labelled["train"], val=self.labelled["val"], shots=self.shots)


def write_run(ready: ReadyCell, fitted: Fitted) -> dict[str, object]:
    """Evaluate the weights that training left in the aggregator and write the run folder; returns its metrics."""
    cell, task, aggregator, card = ready.cell, ready.task, ready.aggregator, ready.card
    request, inputs, folder, classes = cell.request, cell.inputs, cell.folder, card.classes
    batch_size = request.training.batch_size
    outcomes = {
        part: _outcome(aggregator, task, bags, batch_size) for part, bags in ready.labelled.items() if bags.bags
    }
    metrics = _metrics(fitted, card, task, {p: (ready.labelled[p], outcome) for p, outcome in outcomes.items()})
    tables = [_table(ready.rows[p], task, outcome, classes, request.fold, p) for p, outcome in outcomes.items()]
    if ready.test.n_slides:
        test = ready.test.read(aggregator, task, classes, batch_size=batch_size)
        metrics |= {"test": test.figures, "test_readings": readings_before(request.out, folder.name) + 1}
        tables.append(_table(test.rows, task, test.outcome, classes, request.fold, "test"))
    write_model(folder, aggregator, card)
    drifts = audit(aggregator, classes, card.concepts)
    if drifts:
        publish_text(folder / "drift.csv", pd.DataFrame([asdict(one) for one in drifts]).to_csv(index=False))
        metrics["drift"] = {
            "prototypes": len(drifts),
            "red": [f"{one.part} {one.name}" for one in drifts if one.is_red],
        }
    publish_text(folder / "predictions.csv", pd.concat(tables).to_csv(index=False))
    determined_by = yaml.safe_dump(cell.record["determined_by"], sort_keys=False, allow_unicode=True)
    publish_text(folder / "config.yaml", determined_by)
    if inputs.bank is not None:
        write_bank(folder / BANK, inputs.bank)
    publish_text(folder / "log.csv", _log(fitted))
    publish_json(folder / UNUSED, inputs.bags.unused)
    publish_json(folder / "cell.json", cell.record)
    publish_json(folder / "metrics.json", metrics)
    write_done(folder)
    if ready.test.n_slides:
        count_reading(request.out, folder.name)
    return metrics


def _outcome(aggregator: Aggregator, task: Task, part: Labelled, batch_size: int) -> Outcome:
    return task.predict(torch.from_numpy(logits_of(aggregator, part.bags, batch_size=batch_size)))


def _table(
    rows: Sequence[SplitRow], task: Task, outcome: Outcome, classes: list[str], fold: int, part: str
) -> pd.DataFrame:
    score = None if outcome.score is None or task.score_name is None else (task.score_name, outcome.score)
    return predictions_table(rows, outcome.probabilities, classes, fold=fold, part=part, score=score)


def _metrics(
    fitted: Fitted, card: ModelCard, task: Task, parts: Mapping[str, tuple[Labelled, Outcome]]
) -> dict[str, object]:
    """What the run says of itself before the test part is opened."""
    found: dict[str, object] = {
        part: task.metrics(labelled.labels, outcome, card.classes)
        for part, (labelled, outcome) in parts.items()
        if part != "train"
    }
    return found | {
        "best_epoch": fitted.best_epoch,
        "epochs": len(fitted.train_losses),
        "pooling": {"rule": card.rule, "top_j": card.top_j},
    }


def _log(fitted: Fitted) -> str:
    """``epoch,train_loss,val_loss``; epoch 0 is the start."""
    n_epochs = len(fitted.train_losses)
    table = pd.DataFrame({"epoch": range(n_epochs + 1), "train_loss": [None, *fitted.train_losses]})
    table["val_loss"] = fitted.val_losses or None
    return table.to_csv(index=False)
