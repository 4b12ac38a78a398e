"""The trained rows of an aggregator that started from words, beside those words."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from mil.aggregator import SixParts
from mil.bank import WordBank
from mil.head import TextHead


@dataclass(frozen=True, slots=True, kw_only=True)
class WordRows:
    """Rows of one kind.

    Attributes:
        part: ``class`` and ``concept`` rows of a bank, or the rows of a ``head``.
        rows: As they are now, with their gradient.
        words: What each was at the start.
        is_own: Whether the row is one; under the margin rule the background has none in the head.
    """

    part: Literal["class", "concept", "head"]
    rows: Float[Tensor, "row dim"]
    words: Float[Tensor, "row dim"]
    is_own: Bool[Tensor, " row"]


def word_rows(member: SixParts) -> Iterator[WordRows]:
    """Every row that started from a word; none in an aggregator without words.

    Under the margin rule a head's row starts as its word less the background's.
    """
    bank, head = member.bank, member.head
    if isinstance(bank, WordBank):
        now = bank()
        if now.classes is not None:
            yield _all_own("class", now.classes, bank.base_classes)
        if now.concepts is not None and len(now.concepts):
            yield _all_own("concept", now.concepts, bank.base_concepts)
    if isinstance(head, TextHead):
        yield WordRows(part="head", rows=head.base + head.delta, words=head.base, is_own=head.is_trained[:, 0] > 0)


def _all_own(part: Literal["class", "concept"], rows: Tensor, words: Tensor) -> WordRows:
    return WordRows(part=part, rows=rows, words=words, is_own=rows.new_ones(len(rows)) > 0)
