"""Figures on all patients, on drawn ones and without some: all that an interval is made from."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int

from feature_extraction.errors import InputError
from mil.metrics.bca import Sampling, influences
from mil.metrics.resampling import leaving, patient_draws

RESAMPLES = 2000
VALUES_AT_ONCE = 4_000_000
"""Weights held in memory at once; more slides mean fewer resamples at a time."""
Figures = Callable[[Float64[np.ndarray, "resample slide"]], Mapping[str, Float64[np.ndarray, " resample"]]]
"""Figures by name from rows of weights, which say how much each slide counts."""


def samplings(
    figures: Figures, patient_ids: Sequence[str], strata: Sequence[str], *, resamples: int, seed: int
) -> dict[str, Sampling]:
    """Each figure on all rows, on every resample and without each patient; the draws depend on patients and seed alone.

    Args:
        figures: Of the rows; nan where undefined.
        patient_ids: Of each row.
        strata: Of each row.
        resamples: How many.
        seed: Of the draws.

    Raises:
        InputError: No row.
    """
    if not patient_ids:
        raise InputError("interval: no slide; expected at least one that was predicted")
    names, places = np.unique(np.array(patient_ids), return_inverse=True)
    of_patient = _strata_of_patients(len(names), places, strata)
    at_once = max(1, VALUES_AT_ONCE // len(places))
    values = figures(np.ones((1, len(places))))
    drawn = _on_each(figures, patient_draws(of_patient, resamples=resamples, seed=seed, at_once=at_once), places)
    groups = leaving(of_patient)
    without = _on_each(figures, groups.weights(at_once=at_once), places)
    return {
        name: Sampling(
            value=float(value[0]),
            drawn=drawn[name][np.isfinite(drawn[name])],
            undefined=1 - float(np.isfinite(drawn[name]).mean()),
            influence=influences(without.get(name, np.zeros(0)), groups.of_stratum, groups.staying),
            strata=groups.of_stratum,
            n_patients=groups.of_patients,
        )
        for name, value in values.items()
    }


def _strata_of_patients(n: int, places: Int[np.ndarray, " row"], strata: Sequence[str]) -> Int[np.ndarray, " patient"]:
    """One number a patient; patients whose rows are of several strata make strata of their own."""
    found: list[set[str]] = [set() for _ in range(n)]
    for place, stratum in zip(places.tolist(), strata, strict=True):
        found[place].add(stratum)
    return np.unique(np.array([json.dumps(sorted(one)) for one in found]), return_inverse=True)[1]


def _on_each(
    figures: Figures, weights: Iterator[Float64[np.ndarray, "draw patient"]], places: Int[np.ndarray, " row"]
) -> dict[str, Float64[np.ndarray, " draw"]]:
    """Every figure for every row of patients' weights; ``places`` has the patient of each row of the figures."""
    blocks = [figures(block[:, places]) for block in weights]
    return {name: np.concatenate([block[name] for block in blocks]) for name in (blocks[0] if blocks else ())}
