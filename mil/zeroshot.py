"""Slide predictions from words alone, in double precision and plain loops: what every start is tested against."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from feature_extraction.errors import InputError
from feature_extraction.text_bank import TextBank
from mil.bag import Bag
from mil.parts import Pooling

TOP_J_CHOICES = (1, 5, 10, 20, 50)


def slide_logits(bag: Bag, bank: TextBank, classes: Sequence[str], pooling: Pooling) -> Float64[np.ndarray, " class"]:
    """Logits of one slide.

    ``s_ik = tau v_i . t_k``; mean, max or the mean of the J largest of each class. Under the margin rule it is the
    mean of the J largest of ``s_ik - s_in`` for a class k, and 0 for the background n.
    """
    return pool_scores(tile_scores(bag, bank, classes), background_column(bank, classes), pooling)


def background_column(bank: TextBank, classes: Sequence[str]) -> int | None:
    """Where the class that every slide contains stands, None when it is not among the classes."""
    name = bank.background()
    return None if name is None or name not in classes else list(classes).index(name)


def pool_scores(
    scores: Float64[np.ndarray, "tile class"], background: int | None, pooling: Pooling
) -> Float64[np.ndarray, " class"]:
    """Logits of one slide from the scores of its tiles, by the rule of `slide_logits`."""
    if pooling.rule == "margin" and background is not None:
        scores = scores - scores[:, [background]]
    n_chosen = min(pooling.n_chosen or len(scores), len(scores))
    logits = np.empty(scores.shape[1])
    for column in range(scores.shape[1]):
        best_first = np.sort(scores[:, column])[::-1]
        logits[column] = best_first[:n_chosen].mean()
    return logits


def tile_scores(bag: Bag, bank: TextBank, classes: Sequence[str]) -> Float64[np.ndarray, "tile class"]:
    """Tau v . t for every tile and class."""
    words = np.stack([bank.class_vector(name) for name in classes])
    return math.exp(bank.logit_scale) * bag.unit_rows() @ words.T


def softmax(logits: Float64[np.ndarray, "slide class"]) -> Float64[np.ndarray, "slide class"]:
    """Rows that sum to 1."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def choose_top_j(
    bags: Sequence[Bag], labels: Int64[np.ndarray, " slide"], bank: TextBank, classes: Sequence[str], pooling: Pooling
) -> int:
    """The J with the best balanced accuracy of zero-shot on these slides, then the lower loss, then the smaller J.

    Args:
        bags: Of the validation part only.
        labels: Class index of each.
        bank: The words.
        classes: In the order of the labels.
        pooling: The rule; its J is ignored.
    """
    ranked: list[tuple[float, float, int]] = []
    for top_j in TOP_J_CHOICES:
        candidate = Pooling(rule=pooling.rule, top_j=top_j)
        logits = np.stack([slide_logits(bag, bank, classes, candidate) for bag in bags])
        probabilities = softmax(logits)
        is_right = logits.argmax(axis=1) == labels
        recall = np.mean([is_right[labels == label].mean() for label in np.unique(labels)])
        loss = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)).mean()
        ranked.append((-float(recall), float(loss), top_j))
    return min(ranked)[2]


def resolve_pooling(rule: str | None, top_j: int, *, background: str | None) -> Pooling:
    """The default rule: the margin over the background class where there is one, else the J largest."""
    chosen = rule or ("margin" if background else "topj")
    if chosen not in ("mean", "max", "topj", "margin"):
        raise InputError(f"pooling.rule={rule}: expected mean, max, topj or margin")
    if chosen == "margin" and background is None:
        raise InputError("pooling.rule=margin needs a class with role: background in the prompt set; use topj")
    if top_j < 1:
        raise InputError(f"pooling.top_j={top_j}: expected at least 1")
    return Pooling(rule=chosen, top_j=top_j)
