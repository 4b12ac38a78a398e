"""The whole way on a labelled cohort, through the commands: every method with intervals, maps against the truth.

    python -P benchmarks/cohort.py [--data <folder> --weights <folder> --prompts lung] [--out <folder>]

``--data`` holds ``slides/``, ``labels.csv`` (patient_id, slide_id, label), ``truth/<slide_id>.geojson``; ``--weights``
is a dual encoder in transformers' format. Without them: the drawn cohort of the demo and its encoder. Prints a Markdown
table: balanced accuracy and macro-AUC per slide with 95 % patient bootstrap intervals. The last two rows are controls
outside the product: logistic regression (scikit-learn) on mean-pooled joint vectors, and on the mean and deviation of
each slide's colours.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from feature_extraction.slide import Slide
from feature_extraction.synthetic.cohort import make_cohort
from mil.cli import main as promptmil
from mil.feature_folder import FeatureFolder, load_bags
from mil.metrics.classification import Predictions
from mil.metrics.intervals import bootstrap_interval
from mil.splits.file import SplitTable, read_split

FOLDS = 5


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
    parser.add_argument("--out", type=Path, default=Path("bench_out"))
    parser.add_argument("--prompts", default="demo")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--seeds", default="0,1")
    options = parser.parse_args()
    out = options.out
    data = options.data or make_cohort(out / "cohort", workers=2).folder
    encoder = ["encoder=hf_clip", f"encoder.path={options.weights}"] if options.weights else ["encoder=demo"]
    slides = f"slides={data / 'slides'}"
    run(["extract", *encoder, slides, f"out={out / 'features'}", "also=[backbone]", f"precision={options.precision}"])
    run(["prompts", f"prompts={options.prompts}", *encoder, f"out={out / 'bank'}"])
    run(["split", f"labels={data / 'labels.csv'}", f"out={out / 'splits'}", f"folds={FOLDS}"])
    (bank,) = (out / "bank").glob("*.safetensors")
    sweep(out, bank, data / "labels.csv", options.seeds)
    run(["summarize", f"runs={out / 'runs'}", f"out={out / 'summary'}", "level=slide"])
    maps = [f"features={out / 'features'}", f"truth={data / 'truth'}"]
    aucs: dict[str, object] = {}
    for name in ("prompt", "topj", "gated_abmil"):
        run(["heatmap", f"runs={out / 'runs' / f'{name}_seed0'}", *maps, f"out={out / 'maps' / name}"])
        aucs[name] = json.loads((out / "maps" / name / "summary.json").read_text())["tile_auc"]
    print_table(out, data)
    print("\nmean tile AUC against the truth (label class; slides with tumour):")
    for name, values in aucs.items():
        print(f"  {name}: {json.dumps(values)}")


def sweep(out: Path, bank: Path, labels: Path, seeds: str) -> None:
    """Zero-shot by each rule; text start, head only, attention and mean pooling, the last two also on backbone."""
    features = f"features={out / 'features'}"
    for rule in ("mean", "topj", "margin"):
        words = [features, f"bank={bank}", f"labels={labels}", f"pooling={rule}"]
        run(["zeroshot", *words, f"out={out / 'runs' / f'zeroshot_{rule}'}"])
    folds = ",".join(str(fold) for fold in range(FOLDS))
    train = ["train", "-m", features, f"split={out / 'splits' / 'kfold.csv'}", f"fold={folds}"]
    for seed in seeds.split(","):
        with_text = [*train, f"seed={seed}", f"bank={bank}"]
        for name in ("prompt", "topj"):
            run([*with_text, f"aggregator={name}", f"out={out / 'runs' / f'{name}_seed{seed}'}"])
        for name in ("gated_abmil", "mean_linear"):
            plain = [*train, f"seed={seed}", f"aggregator={name}"]
            run([*plain, f"out={out / 'runs' / f'{name}_seed{seed}'}"])
            run([*plain, "space=backbone", f"out={out / 'runs' / f'{name}_backbone_seed{seed}'}"])


def print_table(out: Path, data: Path) -> None:
    """The rows of the summary and the two controls."""
    results = pd.read_csv(out / "summary" / "results.csv")
    chosen = results[(results["level"] == "slide") & results["metric"].isin(["balanced_accuracy", "macro_auc"])]
    print("\n| method | space | balanced accuracy | macro-AUC |\n|---|---|---|---|")
    for (name, space), rows in chosen.groupby(["method", "space"], sort=False):
        values = rows.set_index("metric")
        cells = [interval(values.loc[metric]) for metric in ("balanced_accuracy", "macro_auc")]
        print(f"| {name} | {space} | {' | '.join(cells)} |")
    split = read_split(out / "splits" / "kfold.csv")
    ids = [row.slide_id for row in split.rows]
    bags = load_bags([FeatureFolder(out / "features")], ids, space="joint").bags
    means = {name: bag.unit_rows().mean(axis=0) for name, bag in bags.items()}
    for name, vectors in {"mean of tiles": means, "colour": colours(ids, data)}.items():
        estimates = bootstrap_interval(control(split, vectors), level="slide")
        cells = [interval(estimates[metric]) for metric in ("balanced_accuracy", "macro_auc")]
        print(f"| logistic regression, {name} (control) |  | {' | '.join(cells)} |")


def interval(estimate: object) -> str:
    """Value and interval; both the table's rows and an Estimate have these fields."""
    value, low, high = (float(getattr(estimate, name)) for name in ("value", "low", "high"))
    return f"{value:.3f} ({low:.3f}-{high:.3f})"


def control(split: SplitTable, vectors: dict[str, np.ndarray]) -> Predictions:
    """Out-of-fold probabilities of a logistic regression, standardised and fitted on train and val of each fold."""
    classes = split.classes
    found: dict[str, np.ndarray] = {}
    for fold in range(split.n_folds):
        fitted = [row for part in ("train", "val") for row in split.part(fold, part)]
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
        model.fit([vectors[row.slide_id] for row in fitted], [row.label for row in fitted])
        for row in split.part(fold, "test"):
            found[row.slide_id] = model.predict_proba([vectors[row.slide_id]])[0]
    return Predictions(
        slide_ids=tuple(row.slide_id for row in split.rows),
        patient_ids=tuple(row.patient_id for row in split.rows),
        classes=classes,
        labels=np.array([classes.index(row.label) for row in split.rows]),
        probabilities=np.array([found[row.slide_id] for row in split.rows]),
    )


def colours(slide_ids: list[str], data: Path) -> dict[str, np.ndarray]:
    """Mean and deviation of each channel over the tissue of a thumbnail."""
    paths = {path.stem: path for path in (data / "slides").iterdir()}
    found: dict[str, np.ndarray] = {}
    for slide_id in slide_ids:
        with Slide(slide_id, paths[slide_id]) as slide:
            pixels = slide.thumbnail(slide.bounds_lv0(), 8.0).reshape(-1, 3).astype(float)
        tissue = pixels[(pixels.max(axis=1) - pixels.min(axis=1)) > 20]
        found[slide_id] = np.concatenate([tissue.mean(axis=0), tissue.std(axis=0)])
    return found


if __name__ == "__main__":
    main()
