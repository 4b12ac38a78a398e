"""Schemes that deal patients out, wherever they come from: k-fold, repeated, Monte-Carlo, few-shot."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from sklearn.model_selection import StratifiedKFold

from feature_extraction.errors import InputError
from mil.splits.draws import SHOTS, TEST, Drawing, Drawn, by_class, in_drawn_order, share, with_val

DEFAULT_REPEATS, DEFAULT_TEST_FRACTION = 3, 0.2
MOST_SHOTS_WITHOUT_VAL = 4
"""A few-shot training part this small has no val: choosing on more labels than one trains on is not few-shot."""


def kfold(drawing: Drawing) -> Drawn:
    """Each patient is test in exactly one fold; every class is spread evenly."""
    patients = np.array(list(drawing.labels))
    classes = np.array(list(drawing.labels.values()))
    settings = drawing.settings
    folds = StratifiedKFold(settings.folds, shuffle=True, random_state=settings.seed)
    tests = [patients[test].tolist() for _, test in folds.split(patients, classes)]
    return Drawn(folds=tuple(with_val(drawing, test, fold) for fold, test in enumerate(tests)))


def repeated_kfold(drawing: Drawing) -> Drawn:
    """``kfold`` again and again with seeds of their own, one after the other; the first is ``kfold`` of this seed."""
    settings = drawing.settings
    repeats = DEFAULT_REPEATS if settings.repeats is None else settings.repeats
    seeds = np.random.SeedSequence(settings.seed).generate_state(repeats)
    seeds[0] = settings.seed
    drawn = [kfold(replace(drawing, settings=replace(settings, seed=int(seed)))) for seed in seeds]
    note = f"{repeats} repeats of {settings.folds} folds: each patient is test in {repeats} of them"
    return Drawn(folds=tuple(fold for one in drawn for fold in one.folds), note=note)


def monte_carlo(drawing: Drawing) -> Drawn:
    """Every fold draws a test part of its own, a share of each class; a patient is test in any number of folds."""
    settings = drawing.settings
    fraction = DEFAULT_TEST_FRACTION if settings.test_fraction is None else settings.test_fraction
    tests = [share(drawing.labels, fraction, (settings.seed, fold), TEST, left=2) for fold in range(settings.folds)]
    never = len(set(drawing.labels).difference(*tests))
    return Drawn(
        folds=tuple(with_val(drawing, test, fold) for fold, test in enumerate(tests)),
        note=f"test parts are drawn independently: {never} of {len(drawing.labels)} patients are never test",
    )


def few_shot(drawing: Drawing) -> Drawn:
    """The test parts of ``kfold``, and the first of each class's training patients, in an order of their own.

    Raises:
        InputError: A class has fewer training patients than that.
    """
    folds = kfold(drawing).folds
    return Drawn(folds=tuple(_few(parts, drawing, fold) for fold, parts in enumerate(folds)))


def _few(parts: Mapping[str, str], drawing: Drawing, fold: int) -> dict[str, str]:
    """Keep ``shots`` of each class's training patients; those of fewer shots are among those of more."""
    shots = drawing.settings.shots or 0
    stay = ("test", "val") if shots > MOST_SHOTS_WITHOUT_VAL else ("test",)
    kept = {name: part for name, part in parts.items() if part in stay}
    training = {name: label for name, label in drawing.labels.items() if parts[name] == "train"}
    for number, (label, patients) in enumerate(by_class(training).items()):
        if len(patients) < shots:
            raise InputError(
                f"shots={shots}: fold {fold} has {len(patients)} training patients of class {label}; use fewer shots"
            )
        key = (drawing.settings.seed, fold, number, SHOTS)
        kept |= dict.fromkeys(in_drawn_order(patients, key)[:shots], "train")
    return {name: kept.get(name, "") for name in parts}
