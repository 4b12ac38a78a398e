"""Where patients come from, and how much that tells of their label."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy.stats import chi2_contingency
from scipy.stats.contingency import association

from feature_extraction.errors import InputError
from mil.cohort import Cohort, listed
from mil.ids import alike
from mil.labels import LabelKind

CONFOUNDED = 0.5
"""Cramér's V from which on site and label are told apart by nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteAssociation:
    """How site and label go together, over patients.

    Attributes:
        cramers_v: ``sqrt(chi² / (n (min(sites, classes) - 1)))``, 0 to 1, not corrected for small tables.
        p_value: Of the chi-square test of independence.
        one_class: Site to its class, for sites with patients of one class only.
    """

    cramers_v: float
    p_value: float
    one_class: dict[str, str]

    @property
    def is_confounded(self) -> bool:
        """Whether nobody can tell an effect of the site from one of the label."""
        return self.cramers_v > CONFOUNDED or bool(self.one_class)


def site_groups(cohort: Cohort) -> dict[str, str]:
    """Patient to site, ordered by patient; sites that share a patient are one, named ``A + B``.

    Raises:
        InputError: A slide without a site, or two names that are probably one site.
    """
    unknown = [row.slide_id for row in cohort.rows if row.site is None]
    if unknown:
        raise InputError(
            f"labels: no site for slide {listed(unknown)}; fill in the column site, or leave the slides out"
        )
    sites: defaultdict[str, set[str]] = defaultdict(set)
    for row in cohort.rows:
        sites[row.patient_id].add(row.site or "")
    twice = alike({name for names in sites.values() for name in names})
    if twice:
        raise InputError(f"labels: two names of one site: {listed(twice)}; write one of them")
    group = {name: frozenset((name,)) for names in sites.values() for name in names}
    for names in sites.values():
        joined = frozenset().union(*(group[name] for name in names))
        group |= dict.fromkeys(joined, joined)
    return {patient: " + ".join(sorted(group[min(names)])) for patient, names in sorted(sites.items())}


def site_association(cohort: Cohort, kind: LabelKind) -> SiteAssociation | None:
    """How site and label go together; None where fewer than two sites, or two groups of labels, are known."""
    groups = kind.groups(cohort.labels_of_patients(), 1)
    pairs = sorted({(row.site, groups[row.patient_id], row.patient_id) for row in cohort.rows if row.site is not None})
    counts = Counter((site, label) for site, label, _ in pairs)
    sites, labels = sorted({site for site, _ in counts}), sorted({label for _, label in counts})
    if len(sites) < 2 or len(labels) < 2:
        return None
    table = np.array([[counts[site, label] for label in labels] for site in sites])
    found = {site: [label for label in labels if counts[site, label]] for site in sites}
    _, p_value, _, _ = cast("tuple[float, float, int, object]", chi2_contingency(table, correction=False))
    return SiteAssociation(
        cramers_v=float(association(table, method="cramer")),
        p_value=p_value,
        one_class={site: has[0] for site, has in found.items() if len(has) == 1},
    )


def patients_of(sites: Mapping[str, str], chosen: Iterable[str]) -> list[str]:
    """The patients of some sites, in their order."""
    wanted = set(chosen)
    return [patient for patient, site in sites.items() if site in wanted]
