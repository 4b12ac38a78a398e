"""Labels without signal: those of a split's patients, permuted. A training on them must end at chance."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from feature_extraction.errors import InputError
from mil.labels import ONE_CLASS, LabelKind
from mil.splits.table import PARTS, SplitTable

MOST_DRAWS = 1000


def permuted_labels(table: SplitTable, *, seed: int, kind: LabelKind = ONE_CLASS) -> SplitTable:
    """The split with its patients' labels permuted, the same for every fold, part and run of one seed.

    Every patient gets one label, and each label goes to as many patients as before. Patients are taken in random order
    and the labels dealt out so that every test part gets its even share of like labels, whatever it had: chance alone
    would leave a test part with more of a class and its training part with fewer, which puts pooled figures below
    chance; to keep each part's own counts would leave what sites know of the labels. Where a part then lacks something
    that it had and needs (a class, an event), labels are drawn again from where the generator stands.

    Args:
        table: The split.
        seed: Of the permutation, at least 1.
        kind: What a label is.

    Raises:
        InputError: No draw of `MOST_DRAWS` leaves every part with what it needs, or a seed below 1.
    """
    if seed < 1:
        raise InputError(f"permute_labels={seed}: expected 0 for the labels as they are, or the seed of a permutation")
    labels = {row.patient_id: row.label for row in table.rows}
    generator = np.random.default_rng(seed)
    needed = _needed(table, labels, kind)
    groups = _tested_together(table)
    for _ in range(MOST_DRAWS):
        drawn = _dealt(groups, labels, kind, generator)
        if all(needs <= found for needs, found in zip(needed, _needed(table, drawn, kind), strict=True)):
            rows = tuple(replace(row, label=drawn[row.patient_id]) for row in table.rows)
            return replace(table, rows=rows)
    raise InputError(
        f"permute_labels={seed}: {MOST_DRAWS} permutations all left a part without a class that it needs; make a split "
        "with larger parts or without the rarest class"
    )


def _tested_together(table: SplitTable) -> dict[int, list[str]]:
    """Patients by the first fold that they are test in, -1 for none; in the order of the table."""
    groups: defaultdict[int, dict[str, None]] = defaultdict(dict)
    for row in table.rows:
        groups[row.parts.index("test") if "test" in row.parts else -1][row.patient_id] = None
    return {fold: list(patients) for fold, patients in sorted(groups.items())}


def _dealt(
    groups: Mapping[int, list[str]], labels: Mapping[str, str], kind: LabelKind, generator: np.random.Generator
) -> dict[str, str]:
    """Patient to label. Patients stand so that every stretch has the same share of each group, labels by likeness."""
    places: list[tuple[float, str]] = []
    for patients in groups.values():
        order = generator.permutation(len(patients))
        shifts = generator.random(len(patients))
        places += [
            ((rank + shift) / len(patients), patients[number])
            for rank, (number, shift) in enumerate(zip(order, shifts, strict=True))
        ]
    like = kind.groups(labels, len(groups))
    names = generator.permutation(sorted(set(like.values())))
    block = {str(name): number for number, name in enumerate(names)}
    ties = generator.random(len(labels))
    dealt = sorted((block[like[patient]], tie, labels[patient]) for patient, tie in zip(labels, ties, strict=True))
    return {patient: label for (_, patient), (_, _, label) in zip(sorted(places), dealt, strict=True)}


def _needed(table: SplitTable, labels: Mapping[str, str], kind: LabelKind) -> list[set[str]]:
    """What each part of each fold has of the things that such parts need, with these labels."""
    return [
        {name for row in table.rows if row.parts[fold] == part for name in kind.required(labels[row.patient_id])}
        for fold in range(table.n_folds)
        for part in PARTS
        if part in kind.parts
    ]
