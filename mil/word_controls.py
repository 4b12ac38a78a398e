"""Controls of what the words are worth: the same training with exchanged words, with nonsense, or with names alone.

If a model that starts from exchanged or meaningless words does as well, the words were of no use to it.
"""

from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from feature_extraction.errors import InputError
from feature_extraction.prompts import PromptRow
from feature_extraction.text_bank import TextBank

Words = Literal["own", "shuffled", "nonsense", "names"]


def controlled(bank: TextBank, words: str, seed: int) -> TextBank:
    """The bank that a control trains with.

    Args:
        bank: The task's words.
        words: ``own``; ``shuffled``, each class and its concepts take the words of another class; ``nonsense``, every
            word turned by one random rotation, so that words keep their distances and lose the pictures; ``names``,
            without concepts.
        seed: Of the exchange and the rotation.

    Raises:
        InputError: No such control, or one class only.
    """
    generator = np.random.default_rng(seed)
    if words == "own":
        return bank
    if words == "shuffled":
        return _shuffled(bank, generator)
    if words == "nonsense":
        return _rotated(bank, generator)
    if words == "names":
        return _chosen(bank, [row.role != "concept" for row in bank.rows])
    raise InputError(f"words={words}: expected {', '.join(get_args(Words))}")


def _shuffled(bank: TextBank, generator: np.random.Generator) -> TextBank:
    classes = bank.class_names()
    if len(classes) < 2:
        raise InputError("words=shuffled: there is one class, and no other words to give it")
    source = dict(zip(classes, _derangement(classes, generator), strict=True))
    rows: list[PromptRow] = []
    places: list[int] = []
    for name in classes:
        for place, row in enumerate(bank.rows):
            if row.class_name == source[name]:
                rows.append(_of_class(row, name, is_background=name == bank.background()))
                places.append(place)
    for place, row in enumerate(bank.rows):
        if row.role == "nontask":
            rows.append(row)
            places.append(place)
    return replace(bank, rows=tuple(rows), embeddings=bank.embeddings[places])


def _of_class(row: PromptRow, name: str, *, is_background: bool) -> PromptRow:
    if row.role == "concept":
        return replace(row, class_name=name)
    return replace(row, class_name=name, owner=name, role="background" if is_background else "class")


def _derangement(names: tuple[str, ...], generator: np.random.Generator) -> list[str]:
    """An order in which no name stands at its own place."""
    while True:
        order = [names[place] for place in generator.permutation(len(names))]
        if all(one != other for one, other in zip(names, order, strict=True)):
            return order


def _rotated(bank: TextBank, generator: np.random.Generator) -> TextBank:
    dim = bank.embeddings.shape[1]
    rotation, _ = np.linalg.qr(generator.standard_normal((dim, dim)))
    is_task = np.array([row.role != "nontask" for row in bank.rows])
    turned = np.where(is_task[:, None], bank.embeddings @ rotation, bank.embeddings)
    return replace(bank, embeddings=turned.astype(np.float32))


def _chosen(bank: TextBank, is_kept: list[bool]) -> TextBank:
    rows = tuple(row for row, keep in zip(bank.rows, is_kept, strict=True) if keep)
    return replace(bank, rows=rows, embeddings=bank.embeddings[is_kept])
