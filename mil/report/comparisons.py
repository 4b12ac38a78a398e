"""How methods differ from their reference, on the same patients and fold by fold."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mil.metrics.across_folds import AcrossFolds
from mil.metrics.classification import Predictions
from mil.metrics.differences import Difference, holm
from mil.metrics.intervals import LEVELS, Level
from mil.report.fold_figures import difference_over_folds
from mil.report.methods import Method
from mil.report.repeat_intervals import difference_over_repeats

COMPARED = ("balanced_accuracy", "macro_auc", "macro_f1", "nll", "brier")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One figure of a method minus that of its reference, on the slides both predicted.

    Attributes:
        method: The first.
        reference: The second.
        level: Slides or patients.
        metric: Name of the figure.
        difference: With interval and p.
        p_holm: p adjusted for the number of methods compared in this figure and level.
        over_folds: The mean difference over folds; None where the two share no two folds.
        p_holm_over_folds: Its p, adjusted in the same way; nan when undefined.
    """

    method: Method
    reference: Method
    level: Level
    metric: str
    difference: Difference
    p_holm: float
    over_folds: AcrossFolds | None
    p_holm_over_folds: float


def compare(pairs: Sequence[tuple[Method, Method]], *, resamples: int, seed: int) -> list[Comparison]:
    """Every compared figure of every (method, reference), at both levels.

    Args:
        pairs: Methods that name the same classes and predicted some of the same slides.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """
    found: list[Comparison] = []
    for level in LEVELS:
        differences: defaultdict[str, list[Difference]] = defaultdict(list)
        over_folds: defaultdict[str, list[AcrossFolds | None]] = defaultdict(list)
        for method, reference in pairs:
            paired = difference_over_repeats(drawings(method, reference), level=level, resamples=resamples, seed=seed)
            across = difference_over_folds(method, reference, level)
            for name in COMPARED:
                differences[name].append(paired[name])
                over_folds[name].append(across.get(name))
        for name, row in differences.items():
            adjusted = holm([difference.p for difference in row])
            adjusted_over_folds = holm([np.nan if one is None else one.p for one in over_folds[name]])
            found += [
                Comparison(
                    method=pairs[place][0],
                    reference=pairs[place][1],
                    level=level,
                    metric=name,
                    difference=difference,
                    p_holm=adjusted[place],
                    over_folds=over_folds[name][place],
                    p_holm_over_folds=adjusted_over_folds[place],
                )
                for place, difference in enumerate(row)
            ]
    return found


def drawings(method: Method, reference: Method) -> list[tuple[Predictions, Predictions]]:
    """Each drawing of a method's folds beside the reference's of the same split; of another, beside its first."""
    is_same = reference.cell.get("split_sha256") == method.cell.get("split_sha256")
    others = {repeat.folds: repeat for repeat in reference.repeats} if is_same else {}
    pairs = [
        (repeat.predictions, others.get(repeat.folds, reference.repeats[0]).predictions) for repeat in method.repeats
    ]
    return [(one, other) for one, other in pairs if not set(one.slide_ids).isdisjoint(other.slide_ids)]
