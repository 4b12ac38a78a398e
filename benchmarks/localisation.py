"""Which layer of a map finds the tumour, and which one shows what the model goes by.

    python -P benchmarks/localisation.py --data <folder> --weights <folder> [--prompts lung] [--out <folder>]
        [--features <folder> --bank <file>] [--one-stain]

``--data`` and ``--weights`` as in `benchmarks/cohort.py`; without them the drawn cohort of the demo and its encoder.
``--features`` and ``--bank`` take what was made before. Trains `prompt`, `gated_abmil` and `transmil` on five folds and
prints, as the mean over the slides with tumour, for each layer of the map of the true class: the AUC and the share of
the 20 strongest tiles against ``truth/``, AOPC and symmetric relevance gain (beside random orders). Blueness is the
mean of blue less red of a tile, a baseline that knows nothing of tissue.

``--one-stain`` does the same on a harder cohort made from these slides: every tile is shifted and stretched, channel by
channel, to one mean (plus noise that is the same for all) and one deviation, so that colour tells nothing.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from feature_extraction.slide import Slide
from feature_extraction.synthetic.cohort import make_cohort
from feature_extraction.synthetic.tiff import write_pyramid
from mil.cli import main as promptmil
from mil.feature_folder import FeatureFolder, load_bags
from mil.heatmap.contributions import auc_against, explain, share_inside
from mil.heatmap.explain import LoadedRun, load_runs, open_features, runs_by_slide
from mil.heatmap.faithfulness import Said, measure
from mil.heatmap.kept_tiles import reader_of
from mil.heatmap.slide_map import relevance
from mil.heatmap.truth import covered_fraction, read_regions

METHODS = ("prompt", "gated_abmil", "transmil")
MEAN, DEVIATION, NOISE = (190.0, 150.0, 195.0), (30.0, 40.0, 25.0), 4.0
"""Of one stain: of red, green and blue, and of the shift that each tile is given at random."""
REGION_SHARE = 0.05
FOLDS = "0,1,2,3,4"


def run(words: list[str]) -> None:
    """Run a command, or stop."""
    code = promptmil(words)
    if code:
        raise SystemExit(f"promptmil {' '.join(words)} ended with {code}")


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--out", type=Path, default=Path("localisation_out"))
    parser.add_argument("--prompts", default="demo")
    parser.add_argument("--features", type=Path)
    parser.add_argument("--bank", type=Path)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--one-stain", action="store_true")
    options = parser.parse_args()
    out = options.out
    data = options.data or make_cohort(out / "cohort", workers=2).folder
    if options.one_stain:
        data = one_stain_cohort(data, out / "one_stain_cohort")
    encoder = ["encoder=hf_clip", f"encoder.path={options.weights}"] if options.weights else ["encoder=demo"]
    features = options.features
    if features is None:
        features = out / "features"
        extract = ["extract", *encoder, f"slides={data / 'slides'}", f"out={features}", "qc=false"]
        run([*extract, f"precision={options.precision}"])
    if options.bank is None:
        run(["prompts", f"prompts={options.prompts}", *encoder, f"out={out / 'bank'}"])
    bank = options.bank or next((out / "bank").glob("*.safetensors"))
    run(["split", f"labels={data / 'labels.csv'}", f"out={out / 'splits'}", "folds=5"])
    blueness = blueness_of(features, data)
    tables: list[pd.DataFrame] = []
    for name in options.methods.split(","):
        runs = out / "runs" / name
        split = [f"split={out / 'splits' / 'kfold.csv'}", f"fold={FOLDS}", f"aggregator={name}", f"out={runs}"]
        run(["train", "-m", f"features={features}", f"bank={bank}", *split])
        tables.append(figures_of(runs, features, data / "truth", blueness).assign(method=name))
    show(pd.concat(tables))


def one_stain_cohort(data: Path, out: Path) -> Path:
    """The slides with every tile of one colour statistic; labels and truth as they are."""
    (out / "slides").mkdir(parents=True, exist_ok=True)
    shutil.copytree(data / "truth", out / "truth", dirs_exist_ok=True)
    shutil.copy(data / "labels.csv", out / "labels.csv")
    for path in sorted((data / "slides").iterdir()):
        target = out / "slides" / path.name
        if not target.is_file():
            with Slide(path.stem, path) as slide:
                pixels = slide.thumbnail(slide.bounds_lv0(), 1.0).copy()
            table = pd.read_csv(data / "truth" / f"{path.stem}.csv")
            generator = np.random.default_rng(len(table))
            for row in table.itertuples():
                side = int(row.size_lv0)
                place = np.s_[row.y_lv0 : row.y_lv0 + side, row.x_lv0 : row.x_lv0 + side]
                pixels[place] = of_one_stain(pixels[place], generator.normal(0, NOISE, 3))
            write_pyramid(target, pixels, mpp=0.5, flavour="aperio")
    return out


def of_one_stain(tile: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The tile with one mean and deviation of each channel; a few rounds, because clipping moves both."""
    wanted = tile.astype(np.float32)
    for _ in range(3):
        flat = wanted.reshape(-1, 3)
        wanted = (wanted - flat.mean(axis=0)) / np.maximum(flat.std(axis=0), 1) * DEVIATION + MEAN + shift
        wanted = wanted.clip(0, 255)
    return wanted.round().astype(np.uint8)


def blueness_of(features: Path, data: Path) -> dict[str, np.ndarray]:
    """Mean of blue less red of each tile of each slide."""
    folder, found = FeatureFolder(features), {}
    bags = load_bags([folder], folder.slide_ids(), space="joint").bags
    for path in sorted((data / "slides").iterdir()):
        if path.stem in bags:
            bag = bags[path.stem]
            with Slide(path.stem, path) as slide:
                pixels = slide.thumbnail((0, 0, *slide.bounds_lv0()[2:]), 1.0).astype(float)
            side = round(bag.size_lv0[0])
            found[path.stem] = np.array(
                [(pixels[y : y + side, x : x + side] @ [-1, 0, 1]).mean() for x, y in bag.coords_lv0.tolist()]
            )
    return found


def figures_of(runs: Path, features: Path, truth: Path, blueness: dict[str, np.ndarray]) -> pd.DataFrame:
    """One row a slide with tumour and layer, each slide by the run in which it is test."""
    loaded = load_runs(None, runs)
    folders = open_features((features,), loaded)
    rows: list[dict[str, object]] = []
    for slide_id, one in runs_by_slide(loaded).items():
        label = str(one.predictions.set_index("slide_id").loc[slide_id, "label"])
        if label != one.card.background:
            region = truth / f"{slide_id}.geojson"
            rows += slide_rows(slide_id, label, one, folders, region, blueness[slide_id])
    return pd.DataFrame(rows)


def slide_rows(
    slide_id: str, label: str, one: LoadedRun, folders: tuple[FeatureFolder, ...], region: Path, blueness: np.ndarray
) -> list[dict[str, object]]:
    """The figures of one slide's layers for its true class."""
    column = one.card.classes.index(label)
    bag = load_bags(folders, [slide_id], space=one.card.space).bags[slide_id]
    (explanation,) = explain(one.aggregator, one.task, bag, one.words())
    reader = reader_of(one.aggregator, bag)
    layers = relevance(explanation, column, one.card, reader.occlusion()) | {"blueness": blueness}
    is_inside = covered_fraction(read_regions(region), bag.coords_lv0, bag.size_lv0) >= 0.5
    report = measure(Said(reader, one.task, column), layers, REGION_SHARE)
    rows: list[dict[str, object]] = []
    for name, values in layers.items():
        figures = None if report is None else report.layers[name]
        rows.append(
            {
                "slide_id": slide_id,
                "layer": name,
                "auc": auc_against(values, is_inside),
                "top20": share_inside(values, is_inside),
                "aopc": figures and figures.aopc.value,
                "aopc_random": figures and figures.aopc.random,
                "gain": figures and figures.gain.value,
                "exposed": figures and figures.aopc.p > 0.05,
            }
        )
    return rows


def show(rows: pd.DataFrame) -> None:
    """Means over the slides, as Markdown."""
    print(f"\n{rows['slide_id'].nunique()} slides with tumour\n")
    print("| method | layer | tile AUC | top 20 | AOPC | random | gain | AOPC p > .05 |")
    print("|---|---|---|---|---|---|---|---|")
    for (method, layer), part in rows.groupby(["method", "layer"], sort=False):
        means = part[["auc", "top20", "aopc", "aopc_random", "gain"]].astype(float).mean()
        cells = " | ".join(f"{value:.3f}" for value in means)
        print(f"| `{method}` | {layer} | {cells} | {int(part['exposed'].sum())} of {len(part)} |")


if __name__ == "__main__":
    main()
