"""Runs grouped into methods: everything the same but fold and seed."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from feature_extraction.errors import InputError
from mil.cohort import listed
from mil.metrics.classification import Predictions, slide_metrics
from mil.report.pooled import RunPredictions, pool, read_predictions, val_predictions
from mil.report.repeats import Repeat, repeats_of
from mil.runs import Run

_OWN_TO_A_RUN = frozenset({"cell", "fold", "seed"})
_DETAILS = "determined_by"
_DETAILS_OWN_TO_A_RUN = frozenset({"features"})
"""Hash of the bags a run read; the folds of a few-shot split read different ones."""
SPLIT_FIELDS = ("shots", "scheme", "split_name", "split_sha256", f"{_DETAILS}.split")
"""What of a method's identity is its split."""
_NAMING_ORDER = (
    "init",
    "words",
    "encoder",
    "space",
    "pooling.rule",
    "pooling.top_j",
    "prompt_set",
    "max_epochs",
    "features_folder",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Method:
    """A way to classify slides, with what it predicted for slides it had not seen.

    Attributes:
        name: Aggregator and what tells it from the others of the sweep; the same for every number of shots.
        cell: ``cell.json`` of its first run: where its figures come from.
        shots: Training patients per class, None for all labels, 0 for none.
        folds: Those with a run.
        missing_folds: Those that other methods of the sweep have on this split.
        seeds: All seeds.
        uneven_folds: Folds that lack a seed which other folds have.
        predictions: Out-of-fold, one row a slide; with several repeats, the mean over them, which no figure is made of.
        unlabelled: Test slides without a label.
        never_tested: Slides trained or validated on that are test in no run.
        runs: What each run predicted.
        run_folds: The fold of each.
        repeats: The drawings of its folds; one, unless a slide is test in several.
    """

    name: str
    cell: Mapping[str, object]
    shots: int | None
    folds: tuple[int, ...]
    missing_folds: tuple[int, ...]
    seeds: tuple[int, ...]
    uneven_folds: tuple[int, ...]
    predictions: Predictions
    unlabelled: tuple[str, ...]
    never_tested: tuple[str, ...]
    runs: tuple[RunPredictions, ...]
    run_folds: tuple[int, ...]
    repeats: tuple[Repeat, ...]

    @property
    def aggregator(self) -> str:
        """Name of the aggregator."""
        return str(self.cell.get("aggregator"))

    @property
    def title(self) -> str:
        """The name with the shots."""
        return f"{self.name}, {shots_text(self.shots)}"


def shots_text(shots: int | None) -> str:
    """Shots for people."""
    return "all labels" if shots is None else f"{shots} shots" if shots != 1 else "1 shot"


def group_methods(runs: Sequence[Run]) -> tuple[list[Method], list[Run]]:
    """The methods, ordered by shots then name, and the runs without a labelled test slide.

    Raises:
        InputError: Predictions that cannot be read or do not belong together.
    """
    groups = named_groups(runs)
    built = [_method(group, name, folds_of_split(runs, group[0])) for name, group in groups]
    methods = [method for method in built if method is not None]
    left_out = [run for (_, group), method in zip(groups, built, strict=True) if method is None for run in group]
    return sorted(methods, key=_order), left_out


def named_groups(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Runs that differ in fold and seed only, together under a name."""
    groups: defaultdict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[json.dumps(identity_of(run.cell), sort_keys=True)].append(run)
    members = list(groups.values())
    return list(zip(_names([identity_of(group[0].cell) for group in members]), members, strict=True))


def val_score(method: Method, metric: str) -> float:
    """Mean over runs of a slide-level figure on the validation part; nan without one. The only figure to rank by."""
    parts = [val_predictions(run) for run in method.runs]
    scores = [
        slide_metrics(part.labels, part.probabilities, part.classes)[metric] for part in parts if part is not None
    ]
    return float(np.mean(scores)) if scores else float("nan")


def _method(group: Sequence[Run], name: str, expected_folds: Iterable[int]) -> Method | None:
    predicted = tuple(read_predictions(run) for run in group)
    pooled = pool(predicted)
    if pooled.test is None:
        return None
    seeds: defaultdict[int, set[int]] = defaultdict(set)
    for run in group:
        seeds[_whole(run, "fold")].add(_whole(run, "seed"))
    every_seed = set[int]().union(*seeds.values())
    cell = group[0].cell
    run_folds = tuple(_whole(run, "fold") for run in group)
    return Method(
        name=name,
        cell=cell,
        shots=None if cell.get("shots") is None else _whole(group[0], "shots"),
        folds=tuple(sorted(seeds)),
        missing_folds=tuple(sorted(set(expected_folds) - set(seeds))),
        seeds=tuple(sorted(every_seed)),
        uneven_folds=tuple(sorted(fold for fold, found in seeds.items() if found != every_seed)),
        predictions=pooled.test,
        unlabelled=pooled.unlabelled,
        never_tested=pooled.never_tested,
        runs=predicted,
        run_folds=run_folds,
        repeats=repeats_of(predicted, run_folds, scheme=str(cell.get("scheme"))),
    )


def _order(method: Method) -> tuple[bool, int, str]:
    return method.shots is None, method.shots or 0, method.name


def folds_of_split(runs: Sequence[Run], one: Run) -> set[int]:
    """Every fold that some run of the sweep has on the same split."""
    return {_whole(run, "fold") for run in runs if run.cell.get("split_sha256") == one.cell.get("split_sha256")}


def _whole(run: Run, key: str) -> int:
    value = run.cell.get(key)
    if not isinstance(value, int):
        raise InputError(f"{run.folder}: cell.json has {key}={value!r}, expected a whole number; run it again")
    return value


def _flatten(value: object, name: str, into: dict[str, str]) -> None:
    if not isinstance(value, Mapping):
        into[name] = value if isinstance(value, str) else json.dumps(value)
        return
    for key, item in value.items():
        is_own = key in _OWN_TO_A_RUN or (name == _DETAILS and key in _DETAILS_OWN_TO_A_RUN)
        if not (name.startswith(_DETAILS) and is_own):
            _flatten(item, f"{name}.{key}", into)


def _names(identities: Sequence[Mapping[str, str]]) -> list[str]:
    """A name each: the aggregator, and the fewest fields that tell methods of one aggregator apart."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for place, identity in enumerate(identities):
        groups[identity.get("aggregator", "unnamed")].append(place)
    names = [""] * len(identities)
    for aggregator, places in groups.items():
        members = [identities[place] for place in places]
        rows = [{key: value for key, value in member.items() if key not in SPLIT_FIELDS} for member in members]
        fields = _telling_fields(rows)
        for place, row in zip(places, rows, strict=True):
            names[place] = " · ".join([aggregator, *(_field_text(field, row.get(field, "none")) for field in fields)])
    return _told_apart(names, identities)


def _telling_fields(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Fields that split the rows further than those before them did, the readable ones first."""
    every = {key for row in rows for key in row}
    ordered = [*(key for key in _NAMING_ORDER if key in every), *sorted(every - set(_NAMING_ORDER))]
    chosen: list[str] = []
    for field in ordered:
        more = [*chosen, field]
        if _n_told(rows, more) > _n_told(rows, chosen):
            chosen = more
    return chosen


def _n_told(rows: Sequence[Mapping[str, str]], fields: Sequence[str]) -> int:
    """How many kinds of rows these fields tell apart."""
    return len({tuple(row.get(field) for field in fields) for row in rows})


def _field_text(field: str, value: str) -> str:
    short = value[:8] if len(value) >= 40 else value
    readable = {"init": f"{short} init", "words": f"{short} words", "encoder": short, "space": f"{short} space"}
    return readable.get(field, f"{field.removeprefix(f'{_DETAILS}.')}={short}")


def _told_apart(names: Sequence[str], identities: Sequence[Mapping[str, str]]) -> list[str]:
    """Add the split where two methods of one name have the same number of shots."""
    keys = [(name, identity.get("shots")) for name, identity in zip(names, identities, strict=True)]
    return [
        f"{name} · split {identity.get('split_name')} {identity.get('split_sha256', '')[:6]}"
        if keys.count(key) > 1
        else name
        for name, identity, key in zip(names, identities, keys, strict=True)
    ]


def identity_of(cell: Mapping[str, object]) -> dict[str, str]:
    """Everything that runs of one method share, flattened to ``pooling.rule`` and the like, as text."""
    flat: dict[str, str] = {}
    for name, value in cell.items():
        if name not in _OWN_TO_A_RUN:
            _flatten(value, name, flat)
    return flat


def reference_of(method: Method, methods: Sequence[Method], reference: str) -> Method | None:
    """The method to compare with: of those so named, the one that shares most; None for a reference itself.

    Args:
        method: To be compared.
        methods: Of the sweep, in order.
        reference: An aggregator or a method name.

    Raises:
        InputError: No method is so named.
    """
    named = [one for one in methods if reference in (one.aggregator, one.name)]
    if not named:
        known = sorted({one.aggregator for one in methods})
        raise InputError(f"reference={reference}: no such method in the sweep; expected one of {listed(known)}")
    if method in named:
        return None
    mine = identity_of(method.cell)
    shared = [
        (one.shots == method.shots, sum(mine.get(k) == v for k, v in identity_of(one.cell).items())) for one in named
    ]
    return named[shared.index(max(shared))]
