"""Will text help here: zero-shot on train and val patients, against permuted labels and words without meaning.

The figure that decides is the macro AUC of patients: an offset between classes, which the first label repairs, does
not count against the words. Two controls stand beside it. *Permuted labels*: the predictions stay, the patients'
labels change places. *Nonsense*: the class vectors are turned into random directions of the joint space that have the
same cosines between them, so that only what the words mean is gone. Exchanged names and random halves of the wording
are listed too and decide nothing: of few classes there are few exchanges.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from feature_extraction.errors import InputError
from feature_extraction.text_bank import TextBank
from mil.bag import Bag
from mil.metrics.classification import Predictions, by_patient, slide_metrics
from mil.metrics.intervals import Estimate, bootstrap_interval
from mil.parts import Pooling
from mil.preflight_controls import (
    Control,
    control,
    half_wordings,
    nonsense_vectors,
    shuffled_vectors,
    slide_logits_of_draws,
)
from mil.prompt_subsets import Spread, spread_of
from mil.zeroshot import background_column, softmax

Verdict = Literal["helps", "does not help", "cannot be said"]
FIGURE = "macro_auc"
FEWEST_PATIENTS = 5
"""Of a class; fewer say nothing."""
CHANCE, WEAK = 0.5, 0.65
"""Macro AUC of guessing, and of words that are hardly worth having."""
SURE, HARDLY = 0.05, 0.2
"""A p up to which a control is beaten, and from which on it plainly is not."""
N_PERMUTED, N_NONSENSE, N_WORDINGS = 1000, 200, 20
RULE = (
    f"Rule: text helps when the interval of the macro AUC lies above {CHANCE}, and at most {SURE:.0%} of the permuted "
    f"labels and of the nonsense directions reach its value. It does not when the interval ends below {WEAK}, or more "
    f"than {HARDLY:.0%} of the nonsense directions reach its value. Otherwise, and with fewer than {FEWEST_PATIENTS} "
    "patients of a class, it cannot be said."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """One slide of train or val.

    Attributes:
        patient_id: Its patient.
        label: Its class.
        bag: Its tiles, in the joint space.
    """

    patient_id: str
    label: str
    bag: Bag


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """How far the slides of a class are on their own side.

    Attributes:
        mean: Own score minus the best other, in units of the cosine, mean over slides.
        share_positive: Slides whose own class is first.
        n_slides: How many.
    """

    mean: float
    share_positive: float
    n_slides: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """All that was measured, and what it means.

    Attributes:
        verdict: The answer.
        reason: Which part of the rule gave it.
        metrics: Zero-shot figures of patients, with bootstrap intervals.
        patients: Patients of each class.
        called: Share of each class's patients by the class that zero-shot calls them.
        class_cosines: Cosine of each two classes' vectors, by ``first / second``.
        margins: By class.
        permuted: Labels permuted among patients.
        nonsense: Random directions with the same cosines between them.
        shuffled: Names of the classes exchanged.
        wordings: Each figure over random halves of the prompts; empty when there is one sentence a class.
    """

    verdict: Verdict
    reason: str
    metrics: Mapping[str, Estimate]
    patients: Mapping[str, int]
    called: Mapping[str, Mapping[str, float]]
    class_cosines: Mapping[str, float]
    margins: Mapping[str, Margin]
    permuted: Control
    nonsense: Control
    shuffled: Control
    wordings: Mapping[str, Spread]

    def plain(self) -> dict[str, object]:
        """As data for ``summary.json``."""
        return asdict(self)


def text_preflight(
    slides: Sequence[Labelled], bank: TextBank, classes: Sequence[str], pooling: Pooling, *, seed: int = 0
) -> Preflight:
    """Measure what the words are worth on these slides.

    Args:
        slides: Of train and val only.
        bank: The words, of the encoder of the bags.
        classes: In the order of the columns.
        pooling: How tile scores become a slide's.
        seed: Of every draw.

    Raises:
        InputError: No slide, or fewer than two classes.
    """
    if not slides or len(classes) < 2:
        raise InputError(f"preflight: expected slides of at least two classes, got {len(slides)} of {list(classes)}")
    generator = np.random.default_rng(seed)
    vectors = np.stack([bank.class_vector(name) for name in classes])
    draws = {
        "words": vectors[None],
        "shuffled": shuffled_vectors(vectors, generator),
        "nonsense": nonsense_vectors(vectors, N_NONSENSE, generator),
        "wordings": half_wordings(bank, classes, N_WORDINGS, seed),
    }
    directions = np.concatenate(list(draws.values()))
    background, scale = background_column(bank, classes), math.exp(bank.logit_scale)
    logits = np.stack(
        [slide_logits_of_draws(slide.bag, scale, directions, background, pooling) for slide in slides], axis=1
    )
    predictions = [by_patient(_predictions(slides, draw, classes)) for draw in logits]
    figures = [slide_metrics(found.labels, found.probabilities, found.classes) for found in predictions]
    ends = np.cumsum([len(drawn) for drawn in draws.values()])
    values = dict(zip(draws, np.split(np.array([found[FIGURE] for found in figures]), ends[:-1]), strict=True))
    observed = float(values["words"][0])
    permuted = control(observed, _permuted(predictions[0], generator))
    nonsense = control(observed, values["nonsense"])
    as_slides = _predictions(slides, logits[0], classes)
    metrics = bootstrap_interval(as_slides, level="patient", seed=seed)
    patients = _count_patients(slides, classes)
    verdict, reason = judge(metrics[FIGURE], (permuted, nonsense), patients)
    return Preflight(
        verdict=verdict,
        reason=reason,
        metrics=metrics,
        patients=patients,
        called=_called(predictions[0]),
        class_cosines=_cosines(vectors, classes),
        margins=_margins(logits[0] / scale, as_slides.labels, classes),
        permuted=permuted,
        nonsense=nonsense,
        shuffled=control(observed, values["shuffled"]),
        wordings=spread_of(figures[ends[-2] :]) if len(draws["wordings"]) else {},
    )


def judge(estimate: Estimate, controls: tuple[Control, Control], patients: Mapping[str, int]) -> tuple[Verdict, str]:
    """The rule.

    Args:
        estimate: The macro AUC of patients.
        controls: Permuted labels, nonsense directions.
        patients: Patients of each class.

    Returns:
        The verdict, and the part of the rule that gave it.
    """
    permuted, nonsense = controls
    few = [f"{name} {count}" for name, count in patients.items() if count < FEWEST_PATIENTS]
    if few:
        return "cannot be said", f"too few patients of class {', '.join(few)} (at least {FEWEST_PATIENTS} are needed)"
    if np.isnan(estimate.value) or np.isnan(estimate.low):
        return "cannot be said", estimate.reason or "the figure is not defined"
    if estimate.low > CHANCE and permuted.p <= SURE and nonsense.p <= SURE:
        return "helps", "zero-shot is better than chance, than permuted labels and than words without meaning"
    if estimate.high < WEAK:
        return "does not help", f"even the upper end of the interval is below {WEAK}"
    if nonsense.p > HARDLY:
        return "does not help", f"{nonsense.p:.0%} of the nonsense directions do as well as the words"
    return "cannot be said", "too uncertain either way: more patients, or other words"


def _predictions(slides: Sequence[Labelled], logits: np.ndarray, classes: Sequence[str]) -> Predictions:
    return Predictions(
        slide_ids=tuple(slide.bag.slide_id for slide in slides),
        patient_ids=tuple(slide.patient_id for slide in slides),
        classes=tuple(classes),
        labels=np.array([list(classes).index(slide.label) for slide in slides]),
        probabilities=softmax(logits),
    )


def _permuted(patients: Predictions, generator: np.random.Generator) -> Float64[np.ndarray, " draw"]:
    """The figure with the patients' labels permuted."""
    draws = [generator.permutation(patients.labels) for _ in range(N_PERMUTED)]
    return np.array([slide_metrics(labels, patients.probabilities, patients.classes)[FIGURE] for labels in draws])


def _count_patients(slides: Sequence[Labelled], classes: Sequence[str]) -> dict[str, int]:
    return {name: len({slide.patient_id for slide in slides if slide.label == name}) for name in classes}


def _cosines(vectors: Float64[np.ndarray, "class dim"], classes: Sequence[str]) -> dict[str, float]:
    gram = vectors @ vectors.T
    pairs = [(row, column) for row in range(len(classes)) for column in range(row + 1, len(classes))]
    return {f"{classes[row]} / {classes[column]}": float(gram[row, column]) for row, column in pairs}


def _margins(
    logits: Float64[np.ndarray, "slide class"], labels: Int64[np.ndarray, " slide"], classes: Sequence[str]
) -> dict[str, Margin]:
    rows = np.arange(len(labels))
    own = logits[rows, labels]
    others = logits.copy()
    others[rows, labels] = -np.inf
    margins = own - others.max(axis=1)
    found: dict[str, Margin] = {}
    for column, name in enumerate(classes):
        chosen = margins[labels == column]
        mean, share = (float(chosen.mean()), float((chosen > 0).mean())) if len(chosen) else (math.nan, math.nan)
        found[name] = Margin(mean=mean, share_positive=share, n_slides=len(chosen))
    return found


def _called(patients: Predictions) -> dict[str, dict[str, float]]:
    """Rows of the confusion matrix; a class without patients has no row."""
    said = patients.probabilities.argmax(axis=1)
    return {
        own: {
            name: float((said[patients.labels == row] == column).mean()) for column, name in enumerate(patients.classes)
        }
        for row, own in enumerate(patients.classes)
        if (patients.labels == row).any()
    }
