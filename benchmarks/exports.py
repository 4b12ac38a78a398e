"""How large the exports of a map of 100,000 tiles are, and how long they take.

    python -P benchmarks/exports.py [--tiles 100000] [--classes 3]

A round slide of tiles of 448 level-0 pixels (224 at .5 µm on a slide of .25 µm). Three maps: smooth, as those of real
tissue are; noise, where every tile differs from its neighbours, the worst for merged regions; and a smooth one of tiles
that overlap by half. Regions are the 5 % strongest for and against each class. Prints megabytes, seconds on the clock
and of the processor (one thread), and how many objects there are.
"""

import argparse
import gzip
import json
import time
from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter

from mil.bag import Bag
from mil.heatmap.contributions import Explanation
from mil.heatmap.exports.asap import regions_asap
from mil.heatmap.exports.ome_tiff import map_ome_tiff
from mil.heatmap.exports.placement import SlidePlace
from mil.heatmap.exports.qupath import regions_geojson, tiles_geojson
from mil.heatmap.exports.regions import regions_of

SIZE_LV0, SLIDE_MPP, SHARE = 448.0, 0.25, 0.05


def drawn(n_tiles: int, n_classes: int, *, is_smooth: bool, step_lv0: float) -> tuple[Explanation, SlidePlace]:
    """A map on a disc of tiles."""
    side = int(np.ceil(np.sqrt(n_tiles / np.pi * 4))) + 2
    rows, columns = np.mgrid[:side, :side]
    distance = np.hypot(rows - side / 2, columns - side / 2).ravel()
    chosen = np.sort(np.argsort(distance, kind="stable")[:n_tiles])
    coords = np.floor(np.stack([columns.ravel(), rows.ravel()], axis=1)[chosen] * step_lv0 + 0.5).astype(np.int64)
    generator = np.random.default_rng(0)
    values = generator.standard_normal((n_classes + 1, side, side))
    if is_smooth:
        values = gaussian_filter(values, (0, 4, 4))
    values = (values / values.std()).reshape(n_classes + 1, -1).T[chosen]
    evidence, attention = 3 * values[:, 1:], np.exp(values[:, :1])
    attention = np.repeat(attention / attention.sum(), n_classes, axis=1)
    extent = int(side * step_lv0 + SIZE_LV0)
    bag = Bag(slide_id="S", features=np.empty((n_tiles, 0)), coords_lv0=coords, size_lv0=(SIZE_LV0, SIZE_LV0))
    explanation = Explanation(
        bag=bag,
        contribution=attention * evidence,
        evidence=evidence,
        attention=attention,
        concept_share=np.empty((n_tiles, 0)),
        logits=np.zeros(n_classes),
        bias=np.zeros(n_classes),
        probabilities=np.full(n_classes, 1 / n_classes),
        elsewhere=np.zeros(n_classes),
        similarity=None,
        concept_of_tile=np.full(n_tiles, -1),
    )
    place = SlidePlace(
        size_lv0=(extent, extent),
        bounds_lv0=(0, 0, extent, extent),
        slide_mpp=(SLIDE_MPP, SLIDE_MPP),
        step_lv0=(step_lv0, step_lv0),
    )
    return explanation, place


def main() -> None:
    """Draw, export, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=3)
    options = parser.parse_args()
    classes = [f"class {number}" for number in range(options.classes)]
    print("| map | export | MB | s | CPU s | objects |\n|---|---|---|---|---|---|")
    maps = (("smooth", True, SIZE_LV0), ("noise", False, SIZE_LV0), ("overlap", True, SIZE_LV0 / 2))
    for name, is_smooth, step in maps:
        explanation, place = drawn(options.tiles, options.classes, is_smooth=is_smooth, step_lv0=step)
        exports: dict[str, Callable[[], bytes]] = {
            "detections `.tiles.geojson.gz`": lambda e=explanation: tiles_geojson(e, classes),
            "regions `.regions.geojson.gz`": lambda e=explanation, p=place: regions_geojson(
                regions_of(e, classes, p, SHARE), p
            ),
            "ASAP `.asap.xml`": lambda e=explanation, p=place: regions_asap(regions_of(e, classes, p, SHARE)),
            "`.ome.tiff`": lambda e=explanation, p=place: map_ome_tiff(e, classes, p),
        }
        for title, make in exports.items():
            clock, processor = time.perf_counter(), time.process_time()
            data = make()
            clock, processor = time.perf_counter() - clock, time.process_time() - processor
            n_objects = len(json.loads(gzip.decompress(data))["features"]) if ".gz" in title else ""
            print(
                f"| {name} | {title} | {len(data) / 1e6:.2f} | {clock:.1f} | {processor:.1f} | {n_objects} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
