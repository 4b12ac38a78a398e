"""How far the other runs of a method say the same of a slide."""

from collections.abc import Iterable

import numpy as np

from mil.bag import Bag
from mil.heatmap.contributions import Explanation, explain
from mil.heatmap.explain import LoadedRun
from mil.heatmap.faithfulness import rank_correlation


def agreement(explanation: Explanation, shown: int, others: Iterable[tuple[LoadedRun, Bag]]) -> dict[str, object]:
    """How alike the ranks of the tiles are in the maps of other runs, and how far their predictions differ.

    Returns:
        ``runs``, how many others have a map of the same tiles; ``rank_correlation``, None where it is not defined;
        ``probability``, of the explained class: ``low`` and ``high`` over this run and the others that saw the slide
        neither in training nor in validation, and how many ``runs`` that are; None where this is the only one.

    Args:
        explanation: Of the slide by the run that explains it.
        shown: Column of the explained class.
        others: The other runs, each with the slide as it sees it.
    """
    maps = [explanation.map_layer()[:, shown]]
    chances = [float(explanation.probabilities[shown])]
    for run, bag in others:
        if not np.array_equal(bag.coords_lv0, explanation.bag.coords_lv0):  # filter_nontask may keep other tiles
            continue
        found = explain(run.aggregator, run.task, bag)[0]
        maps.append(found.map_layer()[:, shown])
        if not run.has_learned_from(bag.slide_id):
            chances.append(float(found.probabilities[shown]))
    correlation = rank_correlation(np.stack(maps))
    return {
        "runs": len(maps) - 1,
        "rank_correlation": correlation if np.isfinite(correlation) else None,
        "probability": None if len(chances) == 1 else {"runs": len(chances), "low": min(chances), "high": max(chances)},
    }
