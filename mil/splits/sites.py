"""Where patients come from, and how much that tells of their label."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from feature_extraction.errors import InputError
from mil.cohort import Cohort, listed
from mil.confounding import Confounding, confounding
from mil.labels import LabelKind
from mil.splits.ids import alike


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


def site_association(cohort: Cohort, kind: LabelKind) -> Confounding | None:
    """How site and label go together; None where fewer than two sites, or two groups of labels, are known."""
    groups = kind.groups(cohort.labels_of_patients(), 1)
    known = [(row.site, groups[row.patient_id], row.patient_id) for row in cohort.rows if row.site is not None]
    if not known:
        return None
    sites, labels, patients = zip(*known, strict=True)
    found = confounding(sites, labels, patients)
    return found if min(len(found.sites), len(found.classes)) > 1 else None


def patients_of(sites: Mapping[str, str], chosen: Iterable[str]) -> list[str]:
    """The patients of some sites, in their order."""
    wanted = set(chosen)
    return [patient for patient, site in sites.items() if site in wanted]
