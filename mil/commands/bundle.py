"""`promptmil bundle`: runs + their features -> one folder that `promptmil predict bundle=…` runs."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from feature_extraction.commands.licence import check_licence
from feature_extraction.errors import InputError
from mil.bag import slide_vectors
from mil.bundle import SCHEMA, BundleCard, Unusual, write_bundle
from mil.cohort import listed
from mil.commands import settings
from mil.feature_folder import load_bags
from mil.heatmap.explain import LoadedRun, load_runs, open_features, require_one_method
from mil.labels import ONE_CLASS
from mil.report.methods import Method, group_methods
from mil.runs import find_runs
from mil.trust.conformal import calibrate, coverage_band, fewest_patients
from mil.trust.out_of_distribution import ALPHA as UNUSUAL_ALPHA
from mil.trust.out_of_distribution import NEIGHBOURS, NearestSlides, fit_nearest
from mil.trust.temperature import fit_temperature

SCORES = ("lac", "aps")


def run(config: DictConfig) -> int:
    """Write a bundle; returns the exit code."""
    console = Console(stderr=True)
    if config.score not in SCORES:
        raise InputError(f"score={config.score}: expected one of {listed(SCORES)}")
    runs = load_runs(settings.optional_path(config.run), settings.optional_path(config.runs))
    require_one_method(runs)
    _require_classes(runs)
    check_licence(config.licence_profile, runs[0].card, console)
    method = _method(Path(config.run or config.runs))
    unseen = method.repeats[0].predictions
    temperature = fit_temperature(unseen, part="out_of_fold")
    calibration = calibrate(
        unseen, score=config.score, alpha=float(config.alpha), is_class_conditional=bool(config.by_class)
    )
    nearest, n_training, reason = _training_slides(config, runs)
    unusual = None if nearest is None else Unusual(k=nearest.k, threshold=nearest.threshold, n_patients=n_training)
    n_patients = len(set(unseen.patient_ids))
    card = BundleCard(
        schema=SCHEMA,
        method=method.title,
        models=[one.folder.name for one in runs],
        fitted_on=f"the test parts of {len(runs)} run(s), {n_patients} patients",
        guarantee=_guarantee(method, len(runs), float(config.alpha)),
        temperature=asdict(temperature),
        calibration=asdict(calibration),
        unusual=None if unusual is None else asdict(unusual),
        why_not_unusual=reason,
        files={},
    )
    out = Path(config.out)
    write_bundle(out, [one.folder for one in runs], card, nearest)
    for sentence in (card.guarantee, reason and f"no unusual slide can be told: {reason}", temperature.reason):
        if sentence:
            console.print(sentence, soft_wrap=True, markup=False)
    console.print(f"{len(runs)} model(s), {n_patients} patients -> {out}", soft_wrap=True, markup=False)
    return 0


def _require_classes(runs: Sequence[LoadedRun]) -> None:
    if runs[0].task.labels is not ONE_CLASS:
        raise InputError(
            f"bundle: task {type(runs[0].task).__name__} does not say one class a patient, so there are no "
            "prediction sets of it; use `promptmil predict run=…`"
        )


def _method(root: Path) -> Method:
    methods, _ = group_methods([run for run in find_runs(root) if (run.folder / "model.json").is_file()])
    if len(methods) != 1:
        names = listed(method.title for method in methods) or "none"
        raise InputError(
            f"bundle: expected the runs of one method with labelled test slides, got {names}; name its folder"
        )
    return methods[0]


def _training_slides(config: DictConfig, runs: Sequence[LoadedRun]) -> tuple[NearestSlides | None, int, str]:
    """What tells an unusual slide, from how many patients, or why there is none."""
    if config.features is None:
        return None, 0, "features=… is not given"
    patient_of: dict[str, str] = {}
    for one in runs:
        training = one.predictions[one.predictions["part"] == "train"]
        patient_of |= dict(zip(training["slide_id"].tolist(), training["patient_id"].tolist(), strict=True))
    n_patients, needed = len(set(patient_of.values())), fewest_patients(UNUSUAL_ALPHA)
    if n_patients < needed:
        return None, n_patients, f"{n_patients} training patients, {needed} are needed"
    folders = open_features(settings.paths(config.features), runs)
    bags = load_bags(folders, sorted(patient_of), space=runs[0].card.space, nontask_of=runs[0].nontask_bank())
    if bags.unused:
        raise InputError(
            f"features={config.features}: {len(bags.unused)} training slides cannot be read "
            f"({listed(bags.unused)}); give the features that the runs were trained on"
        )
    vectors = slide_vectors(list(bags.bags.values()))
    return fit_nearest(vectors, [patient_of[name] for name in bags.bags], k=NEIGHBOURS), n_patients, ""


def _guarantee(method: Method, n_models: int, alpha: float) -> str:
    """What may be said of the sets: exact where the very predictor that is bundled had not seen the patients."""
    n_patients = len(set(method.repeats[0].predictions.patient_ids))
    band = coverage_band(n_patients, alpha)
    if len(method.folds) == 1:
        return (
            f"Sets hold the class of {1 - alpha:.0%} of patients like the {n_patients} that they were calibrated on; "
            f"9 such calibrations in 10 reach between {band.low:.0%} and {band.high:.0%}."
        )
    return (
        f"Sets aim at {1 - alpha:.0%} of patients. Each of {n_patients} patients was judged by the model of the fold "
        f"that had not seen them, and the bundle predicts by the mean of {n_models} models: an aim, not a promise. "
        "For a promise bundle a single fold."
    )
