"""What each concept adds to a class, and what becomes of the prediction without the tiles that show it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool

from mil.heatmap.contributions import Explanation
from mil.heatmap.faithfulness import Said

RANDOM_SETS = 19


def concept_table(explanation: Explanation, classes: Sequence[str], concepts: Sequence[Sequence[str]]) -> pd.DataFrame:
    """One row a concept.

    Columns: class, concept, contribution (``sum_i share_im c_ik``; over the concepts of a class they sum to its
    contributions), tiles (how many are nearest to this concept, of the concepts of all classes and the names of classes
    that have none).
    """
    rows: list[dict[str, object]] = []
    for column, (owner, concept) in enumerate(concepts if explanation.concept_share.shape[1] else ()):
        share = explanation.concept_share[:, column]
        rows.append(
            {
                "class": owner,
                "concept": concept,
                "contribution": float(share @ explanation.contribution[:, list(classes).index(owner)]),
                "tiles": int((explanation.concept_of_tile == column).sum()),
            }
        )
    return pd.DataFrame(rows, columns=["class", "concept", "contribution", "tiles"])


def add_counterfactuals(table: pd.DataFrame, explanation: Explanation, said: Said, class_name: str) -> pd.DataFrame:
    """The table with what becomes of the explained class's probability when all tiles of a concept are dropped.

    New columns: explained, change (probability without the tiles nearest to the concept, less the slide's),
    random_change (mean of the same for as many random tiles), p (share of the random sets, and this one, whose
    probability is as far from the slide's or farther). Empty for a concept that no tile shows, or every one.

    Args:
        table: Of `concept_table`.
        explanation: Of the same slide.
        said: The probability of the explained class from some tiles.
        class_name: The explained class.
    """
    n_tiles = said.n_tiles
    generator = np.random.default_rng(0)
    whole = said.whole()
    found = np.full((len(table), 3), np.nan)
    for column in range(len(table)):
        is_shown = explanation.concept_of_tile == column
        n_shown = int(is_shown.sum())
        if 0 < n_shown < n_tiles:
            kept = np.concatenate([~is_shown[None], _random_rest(generator, n_tiles, n_shown)])
            change = said(kept) - whole
            p = np.mean(np.abs(change) >= abs(change[0]))
            found[column] = change[0], change[1:].mean(), p
    return table.assign(explained=class_name, change=found[:, 0], random_change=found[:, 1], p=found[:, 2])


def _random_rest(generator: np.random.Generator, n_tiles: int, n_dropped: int) -> Bool[np.ndarray, "set tile"]:
    kept = np.ones((RANDOM_SETS, n_tiles), dtype=bool)
    for row in kept:
        row[generator.choice(n_tiles, n_dropped, replace=False)] = False
    return kept
