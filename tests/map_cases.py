"""Maps with known values on slides of every geometry, for tests of what is made from them."""

from dataclasses import dataclass

import numpy as np

from feature_extraction.grid import Tiling, make_grid
from mil.bag import Bag
from mil.heatmap.contributions import Explanation
from mil.heatmap.exports.placement import SlidePlace


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """How a slide is tiled."""

    mpp: tuple[float, float] = (0.5, 0.5)
    step_px: int = 64
    corner: tuple[int, int] = (0, 0)
    scanned: tuple[int, int] = (1000, 800)

    def tiling(self) -> Tiling:
        return Tiling(tile_px=64, tile_mpp=1.0, step_px=self.step_px)

    def bounds(self) -> tuple[int, int, int, int]:
        return (*self.corner, *self.scanned)


GEOMETRIES = {
    "plain": Geometry(),
    "odd mpp": Geometry(mpp=(0.4537, 0.4537)),
    "overlap": Geometry(step_px=32),
    "uneven overlap": Geometry(step_px=40),
    "gaps": Geometry(step_px=96),
    "non-square pixels": Geometry(mpp=(0.4, 0.7)),
    "scanned area": Geometry(corner=(333, 517)),
    "everything odd": Geometry(mpp=(0.4537, 0.6111), step_px=48, corner=(333, 517)),
}


def explanation_of(bag: Bag, layer: np.ndarray, attention: np.ndarray | None = None) -> Explanation:
    """A map that shows this layer; sparse when some attention is zero."""
    n_tiles, n_classes = layer.shape
    weights = np.full((n_tiles, 1), 1 / n_tiles) if attention is None else attention
    contribution = layer if attention is None else weights * layer
    return Explanation(
        bag=bag,
        contribution=contribution,
        evidence=layer,
        attention=np.repeat(weights, n_classes, axis=1),
        concept_share=np.zeros((n_tiles, 0)),
        logits=contribution.sum(axis=0),
        bias=np.zeros(n_classes),
        probabilities=np.full(n_classes, 1 / n_classes),
        elsewhere=np.zeros(n_classes),
        similarity=None,
        concept_of_tile=np.full(n_tiles, -1),
    )


def drawn_map(geometry: Geometry, *, n_classes: int = 2, share: float = 0.7) -> tuple[Explanation, SlidePlace]:
    """Random values on a random share of a slide's tiles."""
    grid = make_grid(geometry.tiling(), geometry.mpp, geometry.bounds())
    generator = np.random.default_rng(4)
    coords = grid.coords_lv0()
    coords = coords[generator.random(len(coords)) < share]
    bag = Bag(slide_id="S1", features=np.zeros((len(coords), 1), np.float16), coords_lv0=coords, size_lv0=grid.size_lv0)
    place = SlidePlace(
        size_lv0=(geometry.corner[0] + geometry.scanned[0] + 100, geometry.corner[1] + geometry.scanned[1] + 50),
        bounds_lv0=geometry.bounds(),
        slide_mpp=geometry.mpp,
        step_lv0=grid.step_lv0,
    )
    return explanation_of(bag, generator.standard_normal((len(coords), n_classes))), place
