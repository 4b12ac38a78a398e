"""Whether site and class go together so closely that nothing may be corrected by site."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Int64
from scipy.stats import chi2_contingency
from scipy.stats.contingency import association

from feature_extraction.errors import InputError
from mil.cohort import listed

STRONGEST = 0.5
"""Cramer's V above which site and class count as confounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confounding:
    """How closely site and class go together, over patients.

    Attributes:
        cramers_v: 0 (independent) to 1 (one says the other); nan with a single site or class.
        sites: Names, sorted.
        classes: Names, sorted.
        counts: Patients by site and class.
        one_class_sites: Site to its class, for sites whose patients are all of one, where there are several classes.
        p_value: Of the chi-square test of independence, not corrected for small tables; nan as above.
    """

    cramers_v: float
    sites: tuple[str, ...]
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    one_class_sites: dict[str, str]
    p_value: float

    @property
    def reason(self) -> str:
        """Why site and class are confounded, empty when they are not."""
        said: list[str] = []
        if self.cramers_v > STRONGEST:
            said.append(f"Cramer's V of site and class is {self.cramers_v:.2f}, above {STRONGEST:g}")
        if self.one_class_sites:
            said.append(f"all patients of site {listed(self.one_class_sites)} are of one class")
        return "; ".join(said)


def confounding(sites: Sequence[str], labels: Sequence[str], patient_ids: Sequence[str]) -> Confounding:
    """``V = sqrt(chi^2 / (n (min(rows, columns) - 1)))`` over patients (Cramer 1946); a patient counts once a site.

    Args:
        sites: Of each slide.
        labels: Class of each slide.
        patient_ids: Patient of each slide.

    Raises:
        InputError: No slide.
    """
    if len(patient_ids) == 0:
        raise InputError("confounding: no slide with a site and a class; expected at least one")
    patients = sorted(set(zip(patient_ids, sites, labels, strict=True)))
    site_names, rows = np.unique([site for _, site, _ in patients], return_inverse=True)
    class_names, columns = np.unique([label for *_, label in patients], return_inverse=True)
    counts = np.zeros((len(site_names), len(class_names)), dtype=np.int64)
    np.add.at(counts, (rows, columns), 1)
    is_defined = min(counts.shape) > 1
    has = {str(site): class_names[row > 0] for site, row in zip(site_names, counts, strict=True)}
    one_class = {site: str(names[0]) for site, names in has.items() if len(names) == 1}
    return Confounding(
        cramers_v=float(association(counts, method="cramer")) if is_defined else math.nan,
        sites=tuple(map(str, site_names)),
        classes=tuple(map(str, class_names)),
        counts=tuple(tuple(int(n) for n in row) for row in counts),
        one_class_sites=one_class if counts.shape[1] > 1 else {},
        p_value=_p_value(counts) if is_defined else math.nan,
    )


def _p_value(counts: Int64[np.ndarray, "site class"]) -> float:
    _, p_value, _, _ = cast("tuple[float, float, int, object]", chi2_contingency(counts, correction=False))
    return p_value


def require_separable(found: Confounding) -> None:
    """Refuse to correct by site where site and class are confounded.

    Raises:
        InputError: With what was found.
    """
    if found.reason:
        raise InputError(
            f"harmonisation refused: {found.reason}. Removing the site would remove the class with it; give patients "
            "of every class from every site, or report each site by itself"
        )
