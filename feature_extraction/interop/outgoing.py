"""CONTRACT between the export and a layout of another tool: one of our slides on its way out."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64, Shaped

from feature_extraction.errors import SlideError
from feature_extraction.header import FeatureHeader


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One slide to be written in another tool's layout.

    Attributes:
        header: Of our feature file.
        space: Which embeddings these are.
        features: Rows as stored.
        coords_lv0: Top-left corner of each tile, ordered by y and then x.
        tissue_fraction: Of each tile.
    """

    header: FeatureHeader
    space: str
    features: Shaped[np.ndarray, "tile dim"]
    coords_lv0: Int64[np.ndarray, "tile 2"]
    tissue_fraction: Float32[np.ndarray, " tile"]

    def require_corners_below(self, limit: int) -> None:
        """Refuse corners that the layout's numbers cannot hold.

        Raises:
            SlideError: One is larger than ``limit``.
        """
        if self.coords_lv0.size and int(self.coords_lv0.max()) > limit:
            cause = f"a tile lies at level-0 pixel {int(self.coords_lv0.max())}, the layout holds numbers up to {limit}"
            remedy = "export it in another layout"
            raise SlideError(
                slide_id=self.header.slide_id, stage="write", cause=cause, remedy=remedy, code="E-geometry"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerWriter:
    """How the folders of one tool are written.

    Attributes:
        name: The tool.
        losses: What its layout does not keep, a sentence each.
        write: The files of one slide: bytes by relative path.
    """

    name: str
    losses: tuple[str, ...]
    write: Callable[[Outgoing], dict[str, bytes]]
