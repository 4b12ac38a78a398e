"""Schemes that keep a site whole: a model is tested on sites that it has not seen."""

from collections import Counter, defaultdict

import numpy as np

from feature_extraction.errors import InputError
from mil.cohort import listed
from mil.splits.draws import SITES, Drawing, Drawn, in_drawn_order, with_val
from mil.splits.site_balance import SiteFolds, balanced_sites
from mil.splits.sites import patients_of


def site_preserved(drawing: Drawing) -> Drawn:
    """Whole sites in one fold, every class as even as they allow (`mil.splits.site_balance`); val is of training sites.

    Raises:
        InputError: Fewer sites than folds, or than folds that can each test every class.
    """
    settings = drawing.settings
    names = sorted(set(drawing.sites.values()))
    if len(names) < settings.folds:
        raise InputError(
            f"folds={settings.folds}: expected {settings.folds} or more sites, got {len(names)} ({listed(names)}); use "
            f"folds={len(names)} or fewer, or scheme=leave_one_site_out"
        )
    key = (settings.seed, SITES)
    sites = in_drawn_order(names, key)  # ties are broken by the order
    found = _balanced(drawing, sites)
    order = [int(number) for number in in_drawn_order([str(number) for number in range(settings.folds)], (*key, 1))]
    tests = [[site for site, fold in zip(sites, found.fold, strict=True) if fold == number] for number in order]
    return Drawn(
        folds=tuple(with_val(drawing, patients_of(drawing.sites, test), fold) for fold, test in enumerate(tests)),
        note=_said(found),
    )


def leave_one_site_out(drawing: Drawing) -> Drawn:
    """One fold a site, in the order of their names; val is of the training sites.

    Raises:
        InputError: One site only, or a class that is at one site only.
    """
    names = sorted(set(drawing.sites.values()))
    if len(names) < 2:
        raise InputError(
            f"scheme=leave_one_site_out: expected two or more sites, got {listed(names)}; use scheme=kfold"
        )
    sites_of: defaultdict[str, set[str]] = defaultdict(set)
    for patient, found in drawing.names.items():
        for name in found:
            sites_of[name].add(drawing.sites[patient])
    alone = [f"{name} (site {min(where)})" for name, where in sorted(sites_of.items()) if len(where) == 1]
    if alone:
        what = "class " if drawing.kind.is_class else "slide "
        raise InputError(
            f"scheme=leave_one_site_out: {what}{listed(alone)} is at one site only, so nothing of it is left to "
            "train on without that site; leave the class out, or use scheme=kfold and say so"
        )
    tests = [patients_of(drawing.sites, [name]) for name in names]
    return Drawn(
        folds=tuple(with_val(drawing, test, fold) for fold, test in enumerate(tests)),
        note="test sites: " + ", ".join(f"fold {fold} {name}" for fold, name in enumerate(names)),
    )


def _balanced(drawing: Drawing, sites: list[str]) -> SiteFolds:
    folds = drawing.settings.folds
    counts = Counter((drawing.sites[patient], label) for patient, label in drawing.labels.items())
    classes = sorted(set(drawing.labels.values()))
    needed = _needed(drawing)
    rare = {label: [site for site in sorted(sites) if counts[site, label]] for label in classes if label in needed}
    few = [f"{label} ({len(where)}: {listed(where)})" for label, where in rare.items() if len(where) < folds]
    if few:
        fewest = min(len(where) for where in rare.values())
        instead = f"folds={fewest}, or " if fewest > 1 else ""
        raise InputError(
            f"folds={folds}: expected each class at {folds} or more sites, so that every fold can test it, got "
            f"{listed(few)}; use {instead}scheme=leave_one_site_out"
        )
    found = balanced_sites(
        np.array([[counts[site, label] for label in classes] for site in sites]),
        folds,
        in_every_fold=np.array([label in needed for label in classes]),
    )
    if found is None:
        raise InputError(
            f"folds={folds}: no way to put whole sites into folds leaves each class in every train, val and test part; "
            "use fewer folds, or scheme=leave_one_site_out"
        )
    return found


def _needed(drawing: Drawing) -> set[str]:
    """The classes that every test part must have: those that alone bring something that it needs."""
    if "test" not in drawing.kind.parts:
        return set()
    brought_by: defaultdict[str, set[str]] = defaultdict(set)
    for patient, names in drawing.names.items():
        for name in names:
            brought_by[name].add(drawing.labels[patient])
    return {min(labels) for labels in brought_by.values() if len(labels) == 1}


def _said(found: SiteFolds) -> str:
    proof = "no assignment is better" if found.is_exact else f"at most {found.gap:.0%} of it may be avoidable"
    return f"whole sites in folds: imbalance of the classes (chi-square) {found.imbalance:.3g}, {proof}"
