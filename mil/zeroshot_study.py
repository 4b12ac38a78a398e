"""What is said of a zero-shot prediction: figures with intervals, patients, and how much hangs on the wording."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float64

from feature_extraction.text_bank import TextBank
from mil.bag import Bag
from mil.metrics.classification import Predictions, slide_metrics
from mil.metrics.intervals import LEVELS, bootstrap_interval
from mil.parts import Pooling
from mil.prompt_subsets import Spread, draw_class_vectors, spread_of
from mil.zeroshot import background_column, pool_scores, softmax


def figures_with_intervals(predictions: Predictions) -> dict[str, object]:
    """Every figure on slides and on patients: value and 95 % interval over patients, or the reason why not."""
    found: dict[str, object] = {}
    for level in LEVELS:
        found[level] = {
            name: {"reason": estimate.reason}
            if estimate.reason
            else {"value": estimate.value, "low": estimate.low, "high": estimate.high}
            for name, estimate in bootstrap_interval(predictions, level=level).items()
        }
    return found


def patient_means(predictions: pd.DataFrame) -> pd.DataFrame:
    """``patient_id, label, slides, p_<class>…``, and a score: means of each patient's slides, ordered by patient."""
    about = ("slide_id", "patient_id", "fold", "part", "label")
    columns = [str(name) for name in predictions.columns if name not in about]
    means = predictions.pivot_table(index="patient_id", values=columns, aggfunc="mean")[columns].reset_index()
    counts = Counter(predictions["patient_id"].tolist())
    labels = dict(zip(predictions["patient_id"], predictions["label"], strict=True))
    means.insert(1, "label", [labels[name] for name in means["patient_id"]])
    means.insert(2, "slides", [counts[name] for name in means["patient_id"]])
    return means


def subset_probabilities(
    bags: Mapping[str, Bag], bank: TextBank, classes: Sequence[str], pooling: Pooling, *, n_subsets: int, seed: int
) -> Float64[np.ndarray, "subset slide class"]:
    """Zero-shot probabilities of every slide from random subsets of the prompts (`draw_class_vectors`)."""
    vectors = draw_class_vectors(bank, classes, n_subsets=n_subsets, seed=seed)
    background = background_column(bank, classes)
    factor = np.exp(bank.logit_scale)
    logits = np.empty((n_subsets, len(bags), len(classes)))
    for place, bag in enumerate(bags.values()):
        rows = factor * bag.unit_rows()
        for subset in range(n_subsets):
            logits[subset, place] = pool_scores(rows @ vectors[subset].T, background, pooling)
    return np.stack([softmax(one) for one in logits])


def stability(
    drawn: Float64[np.ndarray, "subset slide class"],
    whole: Float64[np.ndarray, "slide class"],
    slide_ids: Sequence[str],
) -> pd.DataFrame:
    """``slide_id, agreement, p_sd``: share of subsets that name the same class, and how far its probability moves."""
    best = whole.argmax(axis=1)
    of_best = drawn[:, np.arange(len(best)), best]
    agreement = (drawn.argmax(axis=2) == best).mean(axis=0)
    return pd.DataFrame({"slide_id": list(slide_ids), "agreement": agreement, "p_sd": of_best.std(axis=0)})


def subset_figures(
    drawn: Float64[np.ndarray, "subset slide class"], labels: np.ndarray, classes: Sequence[str]
) -> tuple[pd.DataFrame, dict[str, Spread]]:
    """Every figure of every subset, one row a subset, and their medians and quartiles."""
    figures = [slide_metrics(labels, probabilities, classes) for probabilities in drawn]
    return pd.DataFrame(figures), spread_of(figures)
