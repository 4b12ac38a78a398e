"""From the files' words to the facts an aggregator is built from."""

from collections.abc import Sequence

import numpy as np
import torch

from feature_extraction.text_bank import TextBank
from mil.labels import in_order
from mil.parts import TextPrototypes
from mil.task import Words


def order_classes(labels: Sequence[str], bank: TextBank | None) -> list[str]:
    """The classes of a task, in the order of the prompt set (sorted without one).

    Raises:
        InputError: A class of the labels is not in the prompt set.
    """
    return in_order(labels, bank and bank.class_names(), bank.prompt_set if bank else "")


def words_of(bank: TextBank | None) -> Words | None:
    """What a task is told of a text bank."""
    if bank is None:
        return None
    return Words(
        prompt_set=bank.prompt_set,
        classes=tuple(bank.class_names()),
        background=bank.background(),
        logit_bias=bank.logit_bias,
    )


def prototypes(bank: TextBank, classes: Sequence[str]) -> TextPrototypes:
    """Class and concept rows of these classes, in this order."""
    concepts = task_concepts(bank, classes)
    dim = bank.embeddings.shape[1]
    membership = torch.zeros(len(concepts), len(classes))
    for row, (class_name, _) in enumerate(concepts):
        membership[row, classes.index(class_name)] = 1
    concept_rows = [bank.concept_vector(class_name, concept) for class_name, concept in concepts]
    return TextPrototypes(
        classes=_rows([bank.class_vector(name) for name in classes], dim),
        concepts=_rows(concept_rows, dim),
        membership=membership,
    )


def task_concepts(bank: TextBank, classes: Sequence[str]) -> list[tuple[str, str]]:
    """(class, concept) of the task's classes, in the order of the prompt set."""
    return [(class_name, concept) for class_name, concept in bank.concepts() if class_name in classes]


def _rows(vectors: list[np.ndarray], dim: int) -> torch.Tensor:
    return torch.from_numpy(np.stack(vectors) if vectors else np.zeros((0, dim))).float()
