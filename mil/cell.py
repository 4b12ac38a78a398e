"""What determines one cell of a sweep: the request, the files it names, and the address of both together."""

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from feature_extraction.encoder import Projection
from feature_extraction.errors import InputError
from feature_extraction.files import address
from feature_extraction.header import FeatureHeader
from feature_extraction.text_bank import TextBank, require_match
from mil.aggregator import n_scales
from mil.feature_folder import BagSet, FeatureFolder, require_space
from mil.fit import Training
from mil.module import Optimization
from mil.null_labels import permuted_labels
from mil.parts import INITS, Init
from mil.reads import Reads
from mil.splits.file import PARTS, SplitTable
from mil.task import build_task

AUTO = "auto"
"""Value of ``pooling.top_j`` that lets the validation part choose."""
PERMUTE_LABELS = "permute_labels"
"""Key of ``cell.json``: 0 for the labels as they are, else the seed of their permutation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """What determines a run. Paths are where to find things; what is found there is what counts.

    Attributes:
        features: Folder of feature files of each magnification, the finest first.
        bank: Text bank, None for an aggregator without text.
        split: Split CSV.
        out: Folder of runs.
        fold: Of the split.
        seed: Of initialisation, order and draws.
        space: Embeddings to use, None for the primary ones.
        filter_nontask: Leave out tiles that look like non-task things.
        in_memory: Read every bag into memory first.
        words: ``own``, or a control of `mil.word_controls`.
        permute_labels: 0, or the seed of a permutation of the labels (`mil.null_labels`): the control without signal.
        aggregator: Composed yaml.
        task: Composed yaml.
        rule: Pooling rule, None for the default of the bank.
        top_j: Of the pooling, or ``auto``.
        optimization: How parameters move.
        training: How long and how wide.
        checkpoint_s: Least seconds between two checkpoints; what a run finds does not depend on it.
    """

    features: tuple[Path, ...]
    bank: Path | None
    split: Path
    out: Path
    fold: int
    seed: int
    space: str | None
    filter_nontask: bool
    in_memory: bool
    words: str
    permute_labels: int = 0
    aggregator: Mapping[str, object]
    task: Mapping[str, object]
    rule: str | None
    top_j: int | str
    optimization: Optimization
    training: Training
    checkpoint_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CellInputs:
    """Everything read from the files that a request names.

    Attributes:
        split: The split; with permuted labels where the request asks for that.
        split_sha256: Of the split as it is in the file.
        bank: The words, those of the control if it is one; None without text.
        header: Of one feature file of the finest magnification; the others agree with it.
        folder_name: Of the feature folders.
        tile_mpp: µm per tile pixel of each magnification.
        space: Of the bags.
        bags: Those that can be used.
        init: What the aggregator starts from.
    """

    split: SplitTable
    split_sha256: str
    bank: TextBank | None
    header: FeatureHeader
    folder_name: str
    tile_mpp: tuple[float, ...]
    space: str
    bags: BagSet
    init: Init

    @property
    def text(self) -> TextBank | None:
        """The words, where they can be compared with the bags: in the joint space, or by the encoder's projection."""
        return self.bank if self.space == "joint" or self.projection is not None else None

    @property
    def projection(self) -> Projection | None:
        """What takes the bags into the space of the words, None where they are in it, or there is no such map."""
        return None if self.bank is None or self.space == "joint" else self.bank.projection


def read_inputs(request: TrainRequest, reads: Reads | None = None) -> CellInputs:
    """Read what a request names and check that it belongs together.

    Args:
        request: The cell.
        reads: What other cells have read already; None reads anew.

    Raises:
        InputError: A file is missing, or text is needed and there is none.
        MismatchError: Bank and features are of different encoders or spaces.
    """
    init: Init | None = next((known for known in INITS if known == request.aggregator.get("init")), None)
    if init is None:
        raise InputError(f"aggregator.init={request.aggregator.get('init')}: expected {', '.join(INITS)}")
    reads = reads or Reads()
    kind = build_task(request.task).labels
    given = reads.split(request.split, kind)
    split = permuted_labels(given, seed=request.permute_labels, kind=kind) if request.permute_labels else given
    folders = reads.folders(request.features)
    header = folders[0].header
    _require_scales(request.aggregator, folders)
    space = request.space or header.space
    for folder in folders:
        require_space(space, folder)
    bank = None if request.bank is None else reads.bank(request.bank, request.words, request.seed)
    if init == "text" and bank is None:
        raise InputError("this aggregator starts from text: give bank=… (made with `promptmil prompts`)")
    if bank is not None:
        is_compared = request.filter_nontask or (init == "text" and bank.projection is None)
        require_match(
            bank,
            encoder=header.encoder,
            encoder_fingerprint=header.encoder_fingerprint,
            space=space if is_compared else "joint",
        )
    wanted = [row.slide_id for part in PARTS for row in split.part(request.fold, part)]
    bags = reads.bags(folders, wanted, space, bank if request.filter_nontask else None)
    if request.in_memory:
        bags = replace(bags, bags={slide_id: bag.in_memory() for slide_id, bag in bags.bags.items()})
    return CellInputs(
        split=split,
        split_sha256=given.sha256(),
        bank=bank,
        header=header,
        folder_name=" + ".join(folder.path.name for folder in folders),
        tile_mpp=tuple(folder.header.tile_mpp for folder in folders),
        space=space,
        bags=bags,
        init=init,
    )


def _require_scales(aggregator: Mapping[str, object], folders: Sequence[FeatureFolder]) -> None:
    expected = n_scales(aggregator)
    if len(folders) != expected:
        needed = "features=[fine folder,coarse folder]" if expected == 2 else "one folder, or aggregator.scales=2"
        raise InputError(
            f"aggregator={aggregator.get('name')} reads {expected} magnification(s), features has {len(folders)}; "
            f"give {needed}"
        )


def cell_record(request: TrainRequest, inputs: CellInputs) -> dict[str, object]:
    """The content address of a run, and what `promptmil summarize` groups runs by."""
    bank = inputs.bank
    determines = {
        "aggregator": dict(request.aggregator),
        "task": dict(request.task),
        "pooling": {"rule": request.rule, "top_j": request.top_j},
        "optimizer": asdict(request.optimization),
        "trainer": asdict(request.training),
        "split": inputs.split_sha256,
        "fold": request.fold,
        "seed": request.seed,
        "space": inputs.space,
        "filter_nontask": request.filter_nontask,
        "words": request.words,
        PERMUTE_LABELS: request.permute_labels,
        "features": address(dict(inputs.bags.content)),
        "prompts": bank and bank.prompt_set_sha256,
        "encoder": inputs.header.encoder_fingerprint,
        "version": importlib.metadata.version("promptmil"),
    }
    return {
        "cell": address(determines)[:12],
        "aggregator": str(request.aggregator.get("name", "unnamed")),
        "init": inputs.init,
        "words": request.words,
        PERMUTE_LABELS: request.permute_labels,
        "space": inputs.space,
        "encoder": inputs.header.encoder,
        "encoder_fingerprint": inputs.header.encoder_fingerprint,
        "features_folder": inputs.folder_name,
        "prompt_set": bank and bank.prompt_set,
        "prompt_set_sha256": bank and bank.prompt_set_sha256,
        "split_name": request.split.stem,
        "split_sha256": inputs.split_sha256,
        "scheme": inputs.split.scheme,
        "shots": inputs.split.shots,
        "labels": build_task(request.task).labels.name,
        "fold": request.fold,
        "seed": request.seed,
        "pooling": {"rule": request.rule, "top_j": request.top_j},
        "max_epochs": request.training.max_epochs,
        "licence": inputs.header.licence,
        "licence_ancestry": ", ".join(json.loads(inputs.header.licence_ancestry)),
        "version": determines["version"],
        "determined_by": determines,
    }
