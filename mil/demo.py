"""The steps of the demo: each is a command line that a user could type, in the order of the data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where the demo keeps what.

    Attributes:
        out: Its folder.
        slides: Of the drawn slides.
        labels: The labels table.
        truth: Folder of the true regions.
    """

    out: Path
    slides: Path
    labels: Path
    truth: Path

    @property
    def runs(self) -> Path:
        """The sweep."""
        return self.out / "runs"

    @property
    def features(self) -> Path:
        """The extract folder."""
        return self.out / "features"

    @property
    def maps(self) -> Path:
        """The heatmaps."""
        return self.out / "maps"

    @property
    def summary(self) -> Path:
        """Tables and plots of the sweep."""
        return self.out / "summary"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How big the demo is.

    Attributes:
        folds: Of the cross-validation.
        shots: Training patients a class of the few-shot rows.
        seed: Of splits and training.
        max_epochs: Of training.
    """

    folds: int
    shots: int
    seed: int
    max_epochs: int


def steps_to_features(paths: Paths, size: Size) -> list[list[str]]:
    """Words, embeddings and splits."""
    split = [
        "split",
        f"labels={paths.labels}",
        f"out={paths.out / 'splits'}",
        f"folds={size.folds}",
        f"seed={size.seed}",
    ]
    return [
        ["prompts", "prompts=demo", f"out={paths.out / 'bank'}"],
        ["extract", f"slides={paths.slides}", f"out={paths.features}"],
        [*split, "scheme=kfold"],
        [*split, "scheme=few_shot", f"shots={size.shots}"],
    ]


def steps_to_results(paths: Paths, size: Size, bank: Path) -> list[list[str]]:
    """Zero-shot, the sweep at few and at all labels, the tables, the maps."""
    common = [f"features={paths.features}", f"bank={bank}"]
    folds = ",".join(str(fold) for fold in range(size.folds))
    train = ["train", "-m", *common, f"fold={folds}", f"seed={size.seed}", f"trainer.max_epochs={size.max_epochs}"]
    splits = {f"few_shot_{size.shots}": "few", "kfold": "all"}
    return [
        ["zeroshot", *common, f"labels={paths.labels}", f"out={paths.runs / 'zeroshot'}"],
        *(
            [
                *train,
                f"split={paths.out / 'splits' / split}.csv",
                f"aggregator={name}",
                f"out={paths.runs / f'{name}_{few}'}",
            ]
            for split, few in splits.items()
            for name in ("gated_abmil", "prompt")
        ),
        [
            "summarize",
            f"runs={paths.runs}",
            f"features={paths.features}",
            f"labels={paths.labels}",
            f"out={paths.summary}",
        ],
        [
            "heatmap",
            f"runs={paths.runs / 'prompt_all'}",
            f"features={paths.features}",
            f"slides={paths.slides}",
            f"truth={paths.truth}",
            f"out={paths.maps}",
            "exports=[geojson,report]",
            "viewer=true",
        ],
    ]


def shown_maps(lines: Sequence[dict[str, object]], n_maps: int) -> list[str]:
    """Slides for the report: as many of each label as of the others, in the order of their ids."""
    by_label: dict[str, list[str]] = {}
    for line in sorted(lines, key=lambda line: str(line["slide_id"])):
        by_label.setdefault(str(line["label"]), []).append(str(line["slide_id"]))
    each = max(1, n_maps // max(1, len(by_label)))
    return [slide_id for label in sorted(by_label) for slide_id in by_label[label][:each]]
