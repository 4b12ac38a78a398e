"""The drift audit: does each prototype still mean its own word after training?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from mil.aggregator import Aggregator, SixParts
from mil.packed import SCALES
from mil.word_rows import word_rows


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
    names = {"class": list(classes), "concept": [" / ".join(pair) for pair in concepts], "head": list(classes)}
    found: list[Drift] = []
    for kind in word_rows(member):
        named = [name for name, is_own in zip(names[kind.part], kind.is_own.tolist(), strict=True) if is_own]
        found += _compared(kind.part, kind.rows[kind.is_own], kind.words[kind.is_own], named)
    return found


def _compared(
    part: str, rows: Float[Tensor, "row dim"], words: Float[Tensor, "row dim"], names: Sequence[str]
) -> list[Drift]:
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
