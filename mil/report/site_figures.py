"""What the sites of a sweep's slides show: is the site in the embeddings, and what does a new site cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from feature_extraction.errors import InputError, MismatchError
from mil.bag import slide_vectors
from mil.cohort import is_missing, listed, read_rows
from mil.confounding import Confounding, confounding
from mil.feature_folder import FeatureFolder, load_bags
from mil.labels import ONE_CLASS
from mil.metrics.bootstrap import RESAMPLES
from mil.metrics.differences import Difference
from mil.report.methods import SPLIT_FIELDS, Method, identity_of, shots_text
from mil.report.page import Table
from mil.report.pooled import PREDICTIONS
from mil.report.readable import interval_text, p_text
from mil.runs import Run
from mil.splits.table import LEAVE_ONE_SITE_OUT, SITE_PRESERVED
from mil.trust.robustness import NEIGHBOURS, Robustness, robustness_index
from mil.trust.sites import SitePredictability, leave_site_out_gap, site_predictability

GAPS = ("balanced_accuracy", "macro_auc")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSource:
    """Where sites and embeddings of the sweep's slides are.

    Attributes:
        features: The feature folder.
        labels: CSV with ``slide_id`` and ``site``: the labels table, or a split.
    """

    features: Path
    labels: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSigns:
    """How much of a slide's mean vector is its site.

    Attributes:
        encoder: Of the vectors.
        space: Of the vectors.
        n_slides: With a site and features.
        n_patients: Of those slides.
        without: Slides of the sweep without a site or features, sorted.
        predictability: AUC of the site; None where there are too few sites.
        reason: Why there is none, else empty.
        confounding: Of site and class; None where labels are no classes.
        robustness: Over neighbours; None where labels are no classes.
    """

    encoder: str
    space: str
    n_slides: int
    n_patients: int
    without: tuple[str, ...]
    predictability: SitePredictability | None
    reason: str
    confounding: Confounding | None
    robustness: Robustness | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteGap:
    """Folds that mix sites minus folds that leave a site out, of one way to train, on the same patients.

    Attributes:
        mixed: The method on a split that mixes sites.
        left_out: The same on a leave-one-site-out split.
        differences: Each of `GAPS`.
    """

    mixed: Method
    left_out: Method
    differences: dict[str, Difference]


def site_signs(
    source: SiteSource, runs: Sequence[Run], *, resamples: int = RESAMPLES, seed: int = 0
) -> SiteSigns | None:
    """What the mean vectors of the slides of a sweep know of their sites; None for a sweep without runs.

    Args:
        source: Where to look.
        runs: Of the sweep; they say which slides it has, of which patients and classes.
        resamples: Of the intervals.
        seed: Of folds and draws.

    Raises:
        InputError: No column of sites, or no slide of the sweep has a site and features.
        MismatchError: The features are of no encoder of the sweep.
    """
    if not runs:
        return None
    folder = FeatureFolder(source.features)
    _require_encoder(folder, runs)
    sites, slides = _sites(source.labels), _slides(runs)
    header = folder.header
    bags = load_bags([folder], [name for name in slides if name in sites], space=header.space).bags
    if not bags:
        raise InputError(
            f"features={source.features}, labels={source.labels}: no slide of the sweep has a site and a feature file"
        )
    vectors = slide_vectors(list(bags.values()))
    names, patients, labels = [sites[one] for one in bags], *zip(*(slides[one] for one in bags), strict=True)
    is_of_classes = all(run.cell.get("labels", ONE_CLASS.name) == ONE_CLASS.name for run in runs) and all(labels)
    try:
        predictability, reason = site_predictability(vectors, names, patients, resamples=resamples, seed=seed), ""
    except InputError as error:
        predictability, reason = None, str(error)
    has_neighbours = is_of_classes and len(set(patients)) > 1
    return SiteSigns(
        encoder=header.encoder,
        space=header.space,
        n_slides=len(bags),
        n_patients=len(set(patients)),
        without=tuple(sorted(set(slides) - set(bags))),
        predictability=predictability,
        reason=reason,
        confounding=confounding(names, labels, patients) if is_of_classes else None,
        robustness=robustness_index(vectors, labels, names, patients) if has_neighbours else None,
    )


def site_gaps(methods: Sequence[Method], *, resamples: int = RESAMPLES, seed: int = 0) -> list[SiteGap]:
    """Every leave-one-site-out method beside the same training on folds that mix sites; the first drawing of each.

    Args:
        methods: Of the sweep.
        resamples: Of the bootstrap over patients.
        seed: Of the draws.
    """
    trained = [(method, _training_of(method)) for method in methods]
    pairs = [
        (one, other)
        for other, its in trained
        if other.cell.get("scheme") == LEAVE_ONE_SITE_OUT
        for one, own in trained
        if own == its and one.cell.get("scheme") not in (LEAVE_ONE_SITE_OUT, SITE_PRESERVED)
    ]
    found: list[SiteGap] = []
    for one, other in pairs:
        first, second = one.repeats[0].predictions, other.repeats[0].predictions
        if first.classes == second.classes and not set(first.slide_ids).isdisjoint(second.slide_ids):
            differences = leave_site_out_gap(first, second, resamples=resamples, seed=seed)
            found.append(SiteGap(mixed=one, left_out=other, differences={name: differences[name] for name in GAPS}))
    return found


def site_tables(signs: SiteSigns | None, gaps: Sequence[SiteGap]) -> list[Table]:
    """Both as tables; empty where there is nothing to show."""
    return [*([] if signs is None else [_signs_table(signs)]), *([_gap_table(gaps)] if gaps else [])]


def site_record(signs: SiteSigns | None) -> dict[str, object] | None:
    """The signs as plain data."""
    if signs is None:
        return None
    auc, index, told = signs.predictability, signs.robustness, signs.confounding
    return {
        "encoder": signs.encoder,
        "space": signs.space,
        "slides": signs.n_slides,
        "patients": signs.n_patients,
        "without": list(signs.without),
        "auc_of_site": None if auc is None else [auc.auc.value, auc.auc.low, auc.auc.high],
        "reason": signs.reason,
        "cramers_v": None if told is None else told.cramers_v,
        "robustness_index": None if index is None else index.value,
    }


def _require_encoder(folder: FeatureFolder, runs: Sequence[Run]) -> None:
    header = folder.header
    if header.encoder_fingerprint not in {run.cell.get("encoder_fingerprint") for run in runs}:
        known = listed(sorted({f"{run.cell.get('encoder')}" for run in runs}))
        raise MismatchError(
            f"features={folder.path}: made by {header.encoder} ({header.encoder_fingerprint[:8]}), and the runs are of "
            f"{known}; give the features that they were trained on"
        )


def _sites(path: Path) -> dict[str, str]:
    columns, lines = read_rows(path)
    if not {"slide_id", "site"} <= set(columns):
        raise InputError(f"labels={path}: expected the columns slide_id and site, got {listed(columns)}")
    return {line["slide_id"]: line["site"] for line in lines.values() if not is_missing(line["site"])}


def _slides(runs: Sequence[Run]) -> dict[str, tuple[str, str]]:
    """Slide to patient and label."""
    return {
        line["slide_id"]: (line["patient_id"], line["label"])
        for run in runs
        for line in read_rows(run.folder / PREDICTIONS)[1].values()
    }


def _training_of(method: Method) -> tuple[tuple[str, str], ...]:
    """What determines a method but for its split."""
    return tuple(sorted((k, v) for k, v in identity_of(method.cell).items() if k not in SPLIT_FIELDS or k == "shots"))


def _signs_table(signs: SiteSigns) -> Table:
    found, index, told = signs.predictability, signs.robustness, signs.confounding
    sites = () if found is None else found.sites
    said = f" {len(signs.without)} slides of the sweep have no site or no features." if signs.without else ""
    said += f" Not told apart, one patient each: {listed(found.left_out)}." if found and found.left_out else ""
    said += f" {signs.reason}." if signs.reason else ""
    said += f" Confounded: {told.reason}; read the other figures with care." if told and told.reason else ""
    return Table(
        title="Does the site show in the embeddings?",
        columns=(
            *("encoder", "slides", "patients", "sites", "AUC of the site", "site and class, Cramér's V"),
            *("robustness index", "same class, other site", "other class, same site"),
        ),
        rows=(
            (
                f"{signs.encoder}, {signs.space} space",
                str(signs.n_slides),
                str(signs.n_patients),
                str(len(sites)),
                "not defined" if found is None else interval_text(found.auc),
                "not defined" if told is None else f"{told.cramers_v:.2f}",
                "not defined" if index is None or index.reason else f"{index.value:.2f}",
                "" if index is None else str(index.same_class_other_site),
                "" if index is None else str(index.other_class_same_site),
            ),
        ),
        note="AUC of a linear model that tells the site from a slide's mean vector, patients kept together: .5 says "
        f"that it cannot. Robustness index: of the {NEIGHBOURS} nearest slides of other patients, those that share the "
        "class alone, over these and those that share the site alone; 1 is biology, 0 is the site. Where the site "
        f"shows, test on sites that training has not seen (scheme=leave_one_site_out).{said}",
    )


def _gap_table(gaps: Sequence[SiteGap]) -> Table:
    return Table(
        title="What a new site costs",
        columns=("method", "labels", "patients", "balanced accuracy", "p", "macro-AUC", "p"),
        rows=tuple(
            (
                gap.mixed.name,
                shots_text(gap.mixed.shots),
                str(gap.differences[GAPS[0]].estimate.n_patients),
                *(cell for name in GAPS for cell in _gap_cells(gap.differences[name])),
            )
            for gap in gaps
        ),
        note="The same training on folds that mix sites minus that on folds that leave a site out, on the same "
        "patients, with 95 % intervals: above 0, the model leans on sites that it knows.",
        n_text_columns=2,
    )


def _gap_cells(difference: Difference) -> tuple[str, str]:
    value = difference.estimate
    if value.reason:
        return "not defined", ""
    return f"{value.value:+z.2f} ({value.low:+z.2f} to {value.high:+z.2f})", p_text(difference.p)
