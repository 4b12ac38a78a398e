"""The drift audit: does each prototype still mean its own word after training?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from mil.aggregator import Aggregator, SixParts
from mil.bank import WordBank
from mil.head import TextHead
from mil.packed import SCALES


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One trained prototype beside the words that it may mean.

    Attributes:
        part: ``class``, ``concept`` or ``head``; with two magnifications also which, as in ``head coarse``.
        name: Its word: a class, or ``class / concept``.
        cosine: With its own word, 1 at the start.
        rank: Of its own word among the words of its kind by cosine; 1 is the nearest.
        nearest: The word that is nearest now.
    """

    part: str
    name: str
    cosine: float
    rank: int
    nearest: str

    @property
    def is_red(self) -> bool:
        """Whether it is nearer to another word than to its own."""
        return self.rank > 1


def audit(aggregator: Aggregator, classes: Sequence[str], concepts: Sequence[Sequence[str]]) -> list[Drift]:
    """Hold every prototype that started from a word against all words of its kind; empty without such prototypes.

    Under the margin rule a head's row starts as its word less the background's, and is held against such differences;
    the background itself has no row.

    Args:
        aggregator: After training.
        classes: Names, in the order of the logits.
        concepts: [class, concept] of each concept row.
    """
    members = aggregator.of_scales()
    found: list[Drift] = []
    for scale, member in enumerate(members):
        where = "" if len(members) == 1 else f" {SCALES[scale]}"
        found += [replace(one, part=one.part + where) for one in _of_member(member, classes, concepts)]
    return found


@torch.no_grad()
def _of_member(member: SixParts, classes: Sequence[str], concepts: Sequence[Sequence[str]]) -> list[Drift]:
    found: list[Drift] = []
    bank, head = member.bank, member.head
    if isinstance(bank, WordBank):
        now = bank()
        if now.classes is not None:
            found += _compared("class", now.classes, bank.base_classes, classes)
        if now.concepts is not None:
            names = [" / ".join(pair) for pair in concepts]
            found += _compared("concept", now.concepts, bank.base_concepts, names)
    if isinstance(head, TextHead):
        keep = head.is_trained[:, 0] > 0
        named = [name for name, is_kept in zip(classes, keep.tolist(), strict=True) if is_kept]
        found += _compared("head", (head.base + head.delta)[keep], head.base[keep], named)
    return found


def _compared(
    part: str, rows: Float[Tensor, "row dim"], words: Float[Tensor, "row dim"], names: Sequence[str]
) -> list[Drift]:
    if len(rows) == 0:
        return []
    cosines = normalize(rows.double(), dim=-1) @ normalize(words.double(), dim=-1).T
    return [
        Drift(
            part=part,
            name=names[row],
            cosine=float(of_row[row]),
            rank=1 + int((of_row > of_row[row]).sum()),
            nearest=names[int(of_row.argmax())],
        )
        for row, of_row in enumerate(cosines)
    ]
