"""A trained aggregator on disk: tensors as safetensors, everything else as plain JSON. No pickle is written or read."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from feature_extraction.encoder import Projection
from feature_extraction.errors import DamagedFileError
from feature_extraction.files import as_record, publish, publish_json, read_json
from mil.aggregator import Aggregator, compose
from mil.parts import Facts, Init, Pooling, TextPrototypes

TENSORS, CARD, BANK = "model.safetensors", "model.json", "bank.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What must be known to build the aggregator again and to feed it, as plain data.

    Attributes:
        aggregator: The composed yaml of the aggregator.
        task: The composed yaml of the task.
        classes: Names, in the order of the logits.
        background: The class that every slide contains, None without one.
        concepts: [class, concept] of each concept row.
        dim: Width of the embeddings.
        text_dim: Width of the text's space when the embeddings are projected into it, else None.
        space: Of the embeddings.
        encoder: Name of the encoder.
        encoder_fingerprint: Of its weights.
        tile_mpp: µm per tile pixel of each magnification, the finest first.
        tile_size_px: Side of a tile.
        logit_scale: Natural logarithm of the encoder's factor on the cosine.
        rule: Of the pooling.
        top_j: Of the pooling.
        init: ``text``, ``random`` or ``kmeans``.
        filter_nontask: Whether tiles that look like non-task things are left out.
        licence: Of the encoder's weights.
        licence_ancestry: JSON list of the licences behind it.
        learned: What the task took from the training part (weights, bins, anchors), as `Task.state` gives it.
    """

    aggregator: Mapping[str, object]
    task: Mapping[str, object]
    classes: list[str]
    background: str | None
    concepts: list[list[str]]
    dim: int
    text_dim: int | None
    space: str
    encoder: str
    encoder_fingerprint: str
    tile_mpp: list[float]
    tile_size_px: int
    logit_scale: float
    rule: str
    top_j: int
    init: Init
    filter_nontask: bool
    licence: str
    licence_ancestry: str
    learned: Mapping[str, object] = field(default_factory=dict[str, object])

    def facts(self, text: TextPrototypes | None, projection: Projection | None) -> Facts:
        """The facts that the parts are built from.

        Args:
            text: The words.
            projection: Of embeddings that are not in the text's space.
        """
        rule = self.rule
        if rule not in ("mean", "max", "topj", "margin"):
            raise DamagedFileError(f"{CARD}: unknown pooling rule {rule!r}")
        return Facts(
            dim=self.dim,
            width=self.dim,
            n_classes=len(self.classes),
            background=None if self.background is None else self.classes.index(self.background),
            text=text,
            logit_scale=self.logit_scale,
            pooling=Pooling(rule=rule, top_j=self.top_j),
            init=self.init,
            projection=projection,
        )


def write_model(folder: Path, aggregator: Aggregator, card: ModelCard) -> None:
    """Publish weights and card."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in aggregator.state_dict().items()}
    publish(folder / TENSORS, save(state))
    publish_json(folder / CARD, asdict(card))


def read_model(folder: Path) -> tuple[Aggregator, ModelCard]:
    """Build the aggregator a run left behind.

    Only classes inside this package are built, whatever the card says.

    Raises:
        DamagedFileError: A file is missing or damaged, or the tensors do not fit the card.
    """
    try:
        card = as_record(ModelCard, read_json(folder / CARD), f"{folder.name}/{CARD}")
        state = load((folder / TENSORS).read_bytes())
    except OSError as error:
        raise DamagedFileError(f"{folder}: not a finished run ({error.strerror}: {error.filename})") from error
    except SafetensorError as error:
        raise DamagedFileError(f"{folder}/{TENSORS}: damaged ({error})") from error
    aggregator = compose(card.aggregator, card.facts(_blank_text(card), _blank_projection(card)))
    try:
        aggregator.load_state_dict(state)
    except RuntimeError as error:
        raise DamagedFileError(f"{folder}/{TENSORS}: does not fit {CARD}: {error}") from error
    return aggregator.eval(), card


def _blank_text(card: ModelCard) -> TextPrototypes:
    """Rows of the right shape; the words themselves are among the tensors."""
    membership = torch.zeros(len(card.concepts), len(card.classes))
    for row, (class_name, _) in enumerate(card.concepts):
        membership[row, card.classes.index(class_name)] = 1
    return TextPrototypes(
        classes=torch.zeros(len(card.classes), card.text_dim or card.dim),
        concepts=torch.zeros(len(card.concepts), card.text_dim or card.dim),
        membership=membership,
    )


def _blank_projection(card: ModelCard) -> Projection | None:
    if card.text_dim is None:
        return None
    return Projection(weight=torch.zeros(card.dim, card.text_dim), bias=torch.zeros(card.text_dim))
