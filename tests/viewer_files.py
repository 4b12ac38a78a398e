"""Maps of made-up numbers as `promptmil heatmap` writes them, real slides below them, and the viewer made from both."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyramids import tissue_pixels, write_slide
from test_store import HEADER

from feature_extraction.files import publish, publish_text
from feature_extraction.header import FeatureHeader
from feature_extraction.slide import fingerprint_file
from mil.heatmap.layers import parquet_bytes
from mil.viewer.export import SlideExport, export_slide, write_index

EVIL = '"><img src=x onerror=alert(1)>'
EVIL_CLASS, EVIL_CONCEPT = "<b>keratin</b></script><script>alert(2)</script>", "pearls' \"&amp;<i>\u2028"
CLASSES = ("normal", EVIL_CLASS, "glandular")
TILE, COLUMNS, ROWS = 224.5, 5, 4
MPP = 0.4387
LAYERS = ("contribution", "evidence", "attention", "similarity", "occlusion")


@dataclass(frozen=True, kw_only=True)
class Maps:
    """A folder of maps with its viewer.

    Attributes:
        out: Of `promptmil heatmap`.
        slides: Folder of the slides.
        sources: What each page was made from.
    """

    out: Path
    slides: Path
    sources: list[SlideExport]

    @property
    def viewer(self) -> Path:
        return self.out / "viewer"

    def url(self, slide_id: str) -> str:
        return (self.viewer / "slides" / slide_id / "index.html").as_uri()

    def table(self, slide_id: str, class_name: str) -> pd.DataFrame:
        table = pd.read_parquet(self.out / f"{slide_id}.tiles.parquet")
        return table[table["class"] == class_name].reset_index(drop=True)

    def export(self, most_tiles: int = 2000) -> None:
        for source in self.sources:
            export_slide(source, self.out, self.viewer, most_tiles)
        write_index(self.out, self.viewer, [source.slide_id for source in self.sources])


def make_maps(folder: Path, slide_ids: tuple[str, ...] = ("S1", "S2", EVIL), *, with_slides: bool = True) -> Maps:
    """Write the tables of slides that differ in everything, and the viewer of them."""
    sources: list[SlideExport] = []
    for number, slide_id in enumerate(slide_ids):
        path = folder / "slides" / f"{number}.svs"
        width, height = round(COLUMNS * TILE) + 30, round(ROWS * TILE) + 17
        write_slide(path, tissue_pixels(width, height, seed=number), levels=(1, 4))
        header = replace(
            HEADER,
            slide_id=slide_id,
            slide_fingerprint=fingerprint_file(path),
            bounds_lv0=json.dumps([0, 0, width, height]),
            tile_size_lv0=json.dumps([TILE, TILE]),
            step_lv0=json.dumps([TILE, TILE]),
            slide_mpp_x=MPP,
            slide_mpp_y=MPP,
        )
        write_map(folder / "maps", slide_id, number, header)
        sources.append(SlideExport(slide_id=slide_id, headers=[header], path=path if with_slides else None))
    maps = Maps(out=folder / "maps", slides=folder / "slides", sources=sources)
    maps.export()
    return maps


def write_map(out: Path, slide_id: str, number: int, header: FeatureHeader) -> None:
    """A tile table and a concept table, with the figures that `promptmil heatmap` measures."""
    generator = np.random.default_rng(number)
    row, column = np.divmod(np.arange(COLUMNS * ROWS), COLUMNS)
    rows: list[pd.DataFrame] = []
    for name in CLASSES:
        layers = {layer: generator.normal(size=COLUMNS * ROWS) for layer in LAYERS}
        layers["attention"] = np.abs(layers["attention"]) / np.abs(layers["attention"]).sum()
        share = generator.random(COLUMNS * ROWS) if name == EVIL_CLASS else np.full(COLUMNS * ROWS, np.nan)
        corners = {"x_lv0": np.floor(column * TILE + 0.5).astype(int), "y_lv0": np.floor(row * TILE + 0.5).astype(int)}
        rows.append(
            pd.DataFrame(
                {
                    "slide_id": slide_id,
                    **corners,
                    "size_lv0": TILE,
                    "class": name,
                    **layers,
                    "concept": "",
                    "concept_share": 0.0,
                    f"share {EVIL_CONCEPT}": share,
                }
            )
        )
    publish(
        out / f"{slide_id}.tiles.parquet", parquet_bytes(pd.concat(rows, ignore_index=True), about(slide_id, number))
    )
    text = pd.DataFrame(
        [{"class": EVIL_CLASS, "concept": EVIL_CONCEPT, "contribution": 1.5, "tiles": 3, "explained": EVIL_CLASS,
          "change": -0.25, "random_change": 0.0, "p": 0.05}]
    ).to_csv(index=False)  # fmt: skip
    publish_text(out / f"{slide_id}.concepts.csv", text)


def about(slide_id: str, number: int) -> dict[str, object]:
    """What a table says of itself."""
    chance = (0.1 + 0.2 * number, 0.0, 0.9 - 0.2 * number)
    probabilities = dict(zip(CLASSES, (chance[0], chance[2], 0.0), strict=True))
    decided = max(probabilities, key=lambda name: probabilities[name])
    figure = {"value": 0.5 + 0.1 * number, "random": 0.1, "p": 0.01}
    figures = dict.fromkeys(("aopc", "gain", "sufficiency", "necessity", "smallest_k"), figure)
    return {
        "slide_id": slide_id,
        "run": "0123456789ab",
        "label": EVIL_CLASS if number else "normal",
        "shown": EVIL_CLASS,
        "layer": "evidence",
        "predicted": f"predicted {decided} (p = {probabilities[decided]:.2f})",
        "logits": dict.fromkeys(CLASSES, 1.25),
        "probabilities": probabilities,
        "stability": {"runs": 2, "rank_correlation": float("nan")},
        "faithfulness": {"layers": {"evidence": figures}, "how": "closed form", "n_evidence": 1, "n_random": 9},
        "use": "research use only",
        "model": {"aggregator": "prompt", "init": "text", "sha256": "ab" * 32},
        "classes": list(CLASSES),
        "background": "normal",
        "bias": dict.fromkeys(CLASSES, 0.5),
        "encoder": "demo",
        "space": "joint",
        "licence": "Apache-2.0",
    }


@pytest.fixture(scope="session", name="maps")
def maps_fixture(tmp_path_factory: pytest.TempPathFactory) -> Maps:
    """Maps and their viewer, made once and not to be changed."""
    return make_maps(tmp_path_factory.mktemp("viewer"))
