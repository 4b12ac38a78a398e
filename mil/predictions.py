"""The table of predictions, the same in every command that makes one."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float64

from mil.cohort import CohortRow
from mil.splits.file import SplitRow


def predictions_table(
    rows: Sequence[CohortRow | SplitRow],
    probabilities: Float64[np.ndarray, "slide class"],
    classes: Sequence[str],
    *,
    fold: int | None,
    part: str,
    score: tuple[str, Float64[np.ndarray, " slide"]] | None = None,
) -> pd.DataFrame:
    """``slide_id, patient_id, fold, part, label, p_<class>…``, one row a slide, in the order given.

    Args:
        rows: The slides.
        probabilities: One column a class.
        classes: Their names.
        fold: Of the split.
        part: Of the fold.
        score: Name and values of the number that a task without a predicted class predicts; the last column.
    """
    table = pd.DataFrame(
        {
            "slide_id": [row.slide_id for row in rows],
            "patient_id": [row.patient_id for row in rows],
            "fold": "" if fold is None else fold,
            "part": part,
            "label": [row.label for row in rows],
        }
    )
    for column, name in enumerate(classes):
        table[f"p_{name}"] = probabilities[:, column]
    if score is not None:
        table[score[0]] = score[1]
    return table
