"""How far the cells of a sweep are. The files are the state: who asks needs no process that ran before."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from feature_extraction.claims import is_claimed
from feature_extraction.errors import PromptmilError
from feature_extraction.files import is_valid
from feature_extraction.lease import SEEMS_DEAD_S
from mil.cell import TrainRequest, cell_record, read_inputs
from mil.failures import read_failure
from mil.reads import Reads
from mil.resume import CHECKPOINT, Checkpoints
from mil.runs import check_run, lock_of

State = Literal["done", "running", "failed", "stopped", "missing"]
STATES: tuple[State, ...] = ("done", "running", "failed", "stopped", "missing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where one cell stands.

    Attributes:
        cell: Its address; empty when its inputs do not belong together, so that it has none.
        name: For people.
        state: ``done``; ``running``, a process has claimed it; ``failed``; ``stopped``, it would go on from a
            checkpoint; ``missing``, it would start at the beginning.
        epoch: Epochs that its checkpoint holds, 0 without one.
        epochs: Epochs asked for.
        message: Of the error, empty without one.
    """

    cell: str
    name: str
    state: State
    epoch: int = 0
    epochs: int = 0
    message: str = ""


def standing(request: TrainRequest, reads: Reads) -> Standing:
    """Where a cell stands now; nothing is written, no other process is disturbed.

    Args:
        request: The cell.
        reads: Of the sweep.
    """
    name = f"{request.aggregator.get('name')} fold {request.fold} seed {request.seed}"
    try:
        cell = str(cell_record(request, read_inputs(request, reads))["cell"])
    except PromptmilError as error:
        return Standing(cell="", name=name, state="failed", epochs=request.training.max_epochs, message=str(error))
    state, epoch, message = _state(request, cell)
    epochs = request.training.max_epochs
    return Standing(cell=cell, name=name, state=state, epoch=epoch, epochs=epochs, message=message)


def standings(requests: Sequence[TrainRequest]) -> list[Standing]:
    """Where the cells of a sweep stand, in their order; a cell that was asked for twice is there once."""
    reads = Reads()
    found: dict[str, Standing] = {}
    for request in requests:
        one = standing(request, reads)
        found.setdefault(one.cell or f"{one.name}: {one.message}", one)
    return list(found.values())


def _state(request: TrainRequest, cell: str) -> tuple[State, int, str]:
    """State, epochs kept, and message."""
    folder = request.out / cell
    if is_valid(folder, check_run):
        return "done", request.training.max_epochs, ""
    # Asked before the failure: the attempt that removes the record has the claim.
    is_running = is_claimed(lock_of(request.out, cell), dead_after_s=SEEMS_DEAD_S)
    if not is_running and is_valid(folder, check_run):  # sealed between the two questions
        return "done", request.training.max_epochs, ""
    epoch = Checkpoints(path=folder / CHECKPOINT, cell=cell, every_s=request.checkpoint_s).epochs_done()
    failure = read_failure(request.out, cell)
    if is_running:
        return "running", epoch, ""
    if failure is not None:
        return "failed", epoch, f"{failure.error}: {failure.message}"
    return ("stopped" if epoch else "missing"), epoch, ""
