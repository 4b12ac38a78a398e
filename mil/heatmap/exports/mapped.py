"""One map, as every export sees it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mil.heatmap.backdrop import Backdrop
from mil.heatmap.contributions import Explanation
from mil.heatmap.exports.placement import SlidePlace


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """The map of one slide at one magnification.

    Attributes:
        explanation: Its layers.
        classes: In the order of the columns of the layers.
        shown: Column of the class that the pictures show.
        place: Where it lies on the slide.
        region_share: Share of the map that becomes a region.
        backdrop: What lies under its pictures.
        path: Of the slide, None when it is not at hand.
        concept_names: [class, concept] of each column of the concept shares.
        concepts: Of `mil.heatmap.concept_table`.
        about: Of `mil.heatmap.about`.
    """

    explanation: Explanation
    classes: Sequence[str]
    shown: int
    place: SlidePlace
    region_share: float
    backdrop: Backdrop
    path: Path | None
    concept_names: Sequence[Sequence[str]]
    concepts: pd.DataFrame
    about: Mapping[str, object]

    @property
    def layer(self) -> str:
        """Name of the layer that is shown."""
        return "evidence" if self.explanation.is_sparse else "contribution"
