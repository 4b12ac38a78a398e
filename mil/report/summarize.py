"""A sweep's runs -> every figure of every method with its interval, and how methods differ on the same patients."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from feature_extraction.errors import InputError
from mil.cohort import listed
from mil.metrics.across_folds import AcrossFolds
from mil.metrics.bootstrap import RESAMPLES
from mil.metrics.intervals import LEVELS, Estimate, Level
from mil.report.accounts import Accounts, accounts_of
from mil.report.comparisons import Comparison, compare
from mil.report.controls import Control, controls_of
from mil.report.drift_figures import WordDrift, word_drifts
from mil.report.fold_figures import over_folds
from mil.report.map_figures import MethodMaps, map_warnings, maps_of
from mil.report.methods import Method, group_methods, reference_of
from mil.report.null_checks import NullCheck, null_checks, null_warnings, real_and_null
from mil.report.repeat_intervals import interval_over_repeats
from mil.report.run_figures import RunFigure, predicts_a_class, run_figures
from mil.report.site_figures import SiteGap, SiteSigns, SiteSource, site_gaps, site_signs
from mil.report.sweep_guards import require_one_sweep
from mil.report.trusted import MethodTrust, trust_of
from mil.runs import find_runs, unfinished_runs

ZEROSHOT = "zeroshot"
RELIABLE_ECE_PATIENTS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One figure of one method.

    Attributes:
        method: Whose.
        level: Slides, or patients by the mean of their slides.
        metric: Name of the figure.
        estimate: Its value and interval.
        over_folds: Its mean over folds; None for a method of one fold.
    """

    method: Method
    level: Level
    metric: str
    estimate: Estimate
    over_folds: AcrossFolds | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Everything a report of a sweep says.

    Attributes:
        methods: Ordered by shots, then name; never by a result.
        results: Every figure at both levels, in the order of the methods.
        comparisons: Empty without a reference.
        n_runs: Finished runs that were read.
        unfinished: Run folders that were started and are not done.
        warnings: What a reader must not overlook.
        of_runs: Figures that the runs computed themselves, ordered by shots, then name.
        drifts: How far each prototype went from its word.
        null_checks: Methods on permuted labels; their runs are in no other figure.
        trust: How far each method may be believed, in their order.
        controls: Each method that starts from its own words beside its controls.
        accounts: Where every slide went.
        sites: What the embeddings know of the sites; None where nobody asked.
        site_gaps: What a new site costs each method that was also trained on folds that leave a site out.
        maps: What is known of the maps of each method that has some.
    """

    methods: tuple[Method, ...]
    results: tuple[Result, ...]
    comparisons: tuple[Comparison, ...]
    n_runs: int
    unfinished: tuple[str, ...]
    warnings: tuple[str, ...]
    of_runs: tuple[RunFigure, ...] = ()
    drifts: tuple[WordDrift, ...] = ()
    null_checks: tuple[NullCheck, ...] = ()
    trust: tuple[MethodTrust, ...] = ()
    controls: tuple[Control, ...] = ()
    accounts: Accounts
    sites: SiteSigns | None = None
    site_gaps: tuple[SiteGap, ...] = ()
    maps: tuple[MethodMaps, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether no run, fold or seed that the sweep shows signs of is missing."""
        gaps = any(method.missing_folds or method.uneven_folds for method in self.methods)
        return not gaps and not self.unfinished and not any(figure.missing_folds for figure in self.of_runs)

    @property
    def gaps(self) -> tuple[str, ...]:
        """What is missing, a sentence each."""
        of_methods = [
            f"{method.title}: {gap}"
            for method in self.methods
            for gap, folds in (
                (f"no run of fold {listed(map(str, method.missing_folds))}", method.missing_folds),
                (f"fold {listed(map(str, method.uneven_folds))} lacks a seed", method.uneven_folds),
            )
            if folds
        ]
        unfinished = [f"not finished, or changed: {listed(self.unfinished)}"] if self.unfinished else []
        return (*unfinished, *of_methods, *_gaps_of_runs(self.of_runs))


def summarize(
    root: Path,
    *,
    reference: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    sites: SiteSource | None = None,
    maps: Sequence[Path] = (),
) -> Summary:
    """Read a sweep and compute what it says.

    Args:
        root: Folder with run folders, at any depth.
        reference: Aggregator or method name to compare with; None takes zero-shot when it is there.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
        sites: Where sites and embeddings are, None to leave them out.
        maps: Folders that `promptmil heatmap` wrote for these runs.

    Raises:
        InputError: No finished run with a labelled test slide, an unknown reference, runs that are mixed or
            contradict another, or maps that are not of these runs.
    """
    found = find_runs(root)
    unfinished = tuple(path.relative_to(root).as_posix() for path in unfinished_runs(root, found))
    runs, checks = real_and_null(found)[0], null_checks(found, resamples=resamples, seed=seed)
    require_one_sweep(runs)
    methods, left_out = group_methods([run for run in runs if predicts_a_class(run)])
    of_runs, drifts = run_figures(runs, resamples=resamples, seed=seed), word_drifts(runs)
    if not methods and not of_runs and not checks:
        raise InputError(
            f"runs={root}: expected finished runs with labelled test slides, got {len(found)} finished and "
            f"{len(unfinished)} unfinished runs; train first, or finish them"
        )
    results = _results(methods, resamples=resamples, seed=seed)
    chosen = reference or (ZEROSHOT if any(method.aggregator == ZEROSHOT for method in methods) else None)
    pairs = [] if chosen is None else [(method, reference_of(method, methods, chosen)) for method in methods]
    comparable = [(a, b) for a, b in pairs if b is not None and _is_comparable(a, b)]
    comparisons = compare(comparable, resamples=resamples, seed=seed)
    of_maps = maps_of(maps, runs, resamples=resamples, seed=seed) if maps else []
    unlabelled = [run.folder.relative_to(root).as_posix() for run in left_out]
    return Summary(
        methods=tuple(methods),
        results=tuple(results),
        comparisons=tuple(comparisons),
        n_runs=len(found),
        unfinished=unfinished,
        warnings=(
            *_warnings(methods, unfinished, unlabelled),
            *_gaps_of_runs(of_runs),
            *_lost_words(drifts),
            *null_warnings(checks),
            *map_warnings(of_maps),
        ),
        of_runs=tuple(of_runs),
        drifts=tuple(drifts),
        null_checks=tuple(checks),
        trust=tuple(trust_of(method, resamples=resamples, seed=seed) for method in methods),
        controls=tuple(controls_of(methods, resamples=resamples, seed=seed)),
        accounts=accounts_of(runs),
        sites=None if sites is None else site_signs(sites, runs, resamples=resamples, seed=seed),
        site_gaps=tuple(site_gaps(methods, resamples=resamples, seed=seed)),
        maps=tuple(of_maps),
    )


def _results(methods: Sequence[Method], *, resamples: int, seed: int) -> list[Result]:
    found: list[Result] = []
    for method in methods:
        for level in LEVELS:
            across = over_folds(method, level)
            repeats = [repeat.predictions for repeat in method.repeats]
            estimates = interval_over_repeats(repeats, level=level, resamples=resamples, seed=seed)
            found += [
                Result(method=method, level=level, metric=name, estimate=estimate, over_folds=across.get(name))
                for name, estimate in estimates.items()
            ]
    return found


def _is_comparable(method: Method, reference: Method) -> bool:
    """Whether both name the same classes and predicted some of the same slides."""
    first, second = method.predictions, reference.predictions
    return first.classes == second.classes and not set(first.slide_ids).isdisjoint(second.slide_ids)


def _warnings(methods: Sequence[Method], unfinished: Sequence[str], unlabelled: Sequence[str]) -> list[str]:
    said: list[str] = []
    if unfinished:
        said.append(
            f"Runs that are not finished or have changed are not counted ({len(unfinished)}): {listed(unfinished)}."
        )
    if unlabelled:
        said.append(f"{len(unlabelled)} runs have no labelled test slide, and are not counted: {listed(unlabelled)}.")
    for method in methods:
        said += [f"{method.title}: {sentence}" for sentence in _gaps(method)]
    classes = {method.predictions.classes for method in methods}
    if len(classes) > 1:
        said.append(
            f"Methods have different classes and are not comparable: {'; '.join(map(listed, sorted(classes)))}."
        )
    sizes = {len(method.predictions.slide_ids) for method in methods}
    if len(sizes) > 1:
        said.append(
            f"Methods were tested on different numbers of slides ({listed(str(size) for size in sorted(sizes))}): only "
            "the paired differences compare the same patients."
        )
    return said


def _gaps(method: Method) -> list[str]:
    said: list[str] = []
    if method.missing_folds:
        said.append(f"MISSING fold {listed(map(str, method.missing_folds))}; its figures come from fewer patients.")
    if method.uneven_folds:
        said.append(f"fold {listed(map(str, method.uneven_folds))} lacks a seed that other folds have.")
    if method.never_tested:
        said.append(f"{len(method.never_tested)} slides are test in no run: {listed(method.never_tested, most=5)}.")
    if len(method.repeats) > 1:
        said.append(
            f"its folds were drawn {len(method.repeats)} times and test a patient more than once: figures are the "
            "mean over drawings, never of the mean prediction, which would be that of an ensemble; curves and trust "
            "are of the first."
        )
    if method.unlabelled:
        said.append(f"{len(method.unlabelled)} test slides have no label: {listed(method.unlabelled, most=5)}.")
    return said


def _gaps_of_runs(of_runs: Sequence[RunFigure]) -> list[str]:
    gaps = {(one.title, one.missing_folds): one for one in of_runs if one.missing_folds}
    return [f"{title}: MISSING fold {listed(map(str, folds))} of the figures of its runs." for title, folds in gaps]


def _lost_words(drifts: Sequence[WordDrift]) -> list[str]:
    red: defaultdict[str, list[str]] = defaultdict(list)
    for one in drifts:
        if one.n_red:
            red[one.method].append(f"{one.part} {one.word}")
    return [
        f"{method}: nearer to another word than to its own after training: {listed(red[method])}." for method in red
    ]
