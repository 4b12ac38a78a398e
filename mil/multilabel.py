"""Slides that are of any number of classes at once: their labels, their probabilities from words, their figures."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score

from feature_extraction.errors import InputError
from feature_extraction.text_bank import TextBank
from mil.parts import Pooling

SEPARATOR = ";"


def label_matrix(
    labels: Sequence[str], classes: Sequence[str], background: str | None
) -> Bool[np.ndarray, "slide class"]:
    """Which slide is of which class; ``LUAD;LUSC`` is of both, the name of the background class of none.

    Raises:
        InputError: A name that is no class.
    """
    named = [[part.strip() for part in label.split(SEPARATOR)] for label in labels]
    unknown = sorted({name for names in named for name in names} - {*classes, background})
    if unknown:
        raise InputError(
            f"class {', '.join(unknown)} is in the labels but not in the prompt set (it has {', '.join(classes)}); "
            f"several classes of one slide are written A{SEPARATOR}B"
        )
    return np.array([[name in names for name in classes] for names in named], dtype=bool).reshape(-1, len(classes))


def class_probabilities(
    logits: Float64[np.ndarray, "slide class"], bank: TextBank, pooling: Pooling
) -> Float64[np.ndarray, "slide class"]:
    """One probability a class, each on its own: the sigmoid of the margin, or of the score and the encoder's bias.

    Raises:
        InputError: Neither exists, so that nothing says where "no" ends and "yes" begins.
    """
    if pooling.rule == "margin":
        return expit(logits)
    if bank.logit_bias == 0:
        raise InputError(
            f"multilabel=true: {bank.encoder} gives scores without a zero; use pooling.rule=margin with a class of "
            "role background in the prompt set, or an encoder trained with a bias (SigLIP)"
        )
    return expit(logits + bank.logit_bias)


def multilabel_metrics(
    is_class: Bool[np.ndarray, "slide class"],
    probabilities: Float64[np.ndarray, "slide class"],
    classes: Sequence[str],
) -> dict[str, object]:
    """Area under the ROC curve and average precision of each class and their means over the classes they exist for.

    A figure is None where undefined, with the reason in ``undefined``.
    """
    found: dict[str, object] = {}
    undefined: dict[str, str] = {}
    for name, figure in (("auc", roc_auc_score), ("average_precision", average_precision_score)):
        values: list[float] = []
        for column, class_name in enumerate(classes):
            truth = is_class[:, column]
            key = f"{name}_{class_name}"
            if truth.all() or not truth.any():
                found[key] = None
                undefined[key] = f"{'every' if truth.all() else 'no'} slide is {class_name}"
                continue
            values.append(float(figure(truth, probabilities[:, column])))
            found[key] = values[-1]
        found[f"macro_{name}"] = float(np.mean(values)) if values else None
        if not values:
            undefined[f"macro_{name}"] = "no class has slides with and without it"
    return {**found, "undefined": undefined}
