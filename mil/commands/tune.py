"""`promptmil tune`: settings searched with optuna on the train and val patients of one fold, never on its test part."""

import hashlib
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from rich.console import Console

from feature_extraction.errors import InputError
from feature_extraction.files import publish_json, publish_text
from mil.commands import settings
from mil.commands.split import label_kind
from mil.jobs import STOPPED
from mil.runs import find_runs
from mil.splits.file import read_split, write_split
from mil.splits.inner import inner_split
from mil.tuned_words import Choices, Interval, space_of

if TYPE_CHECKING:
    import optuna

OWN_KEYS = re.compile(r"(tuned|trials|inner_folds|split|fold|out)=.*", re.DOTALL)
STUDY, SPLIT = "study.log", "kfold.csv"


def run(config: DictConfig) -> int:
    """Try settings until there are ``trials`` of them, and say which did best; returns the exit code."""
    if importlib.util.find_spec("optuna") is None:
        raise InputError("tune: optuna is not installed; pip install 'promptmil[tune]'")
    space = space_of([str(word) for word in config.tuned])
    if not space:
        raise InputError('tune: nothing to search; name values, such as "optimizer.lr=tag(log,interval(1e-5,1e-2))"')
    out, fold = Path(config.out), int(config.fold)
    kind = label_kind(settings.plain(config.task))
    inner = inner_split(
        read_split(Path(config.split), kind=kind),
        fold,
        n_folds=int(config.inner_folds),
        seed=int(config.seed),
        kind=kind,
    )
    write_split(inner, out / SPLIT)
    folds = f"fold={','.join(str(number) for number in range(inner.n_folds))}"
    words = [word for word in sys.argv[1:] if not OWN_KEYS.fullmatch(word)]
    base = ["train", "-m", *words, f"split={out / SPLIT}", folds]
    study = _study(out, fold=fold, seed=int(config.seed), space=space, split=inner.sha256(), words=words)
    code = _try_settings(study, space, base, out, n_trials=int(config.trials))
    return code or _report(study, out)


def _study(
    out: Path, *, fold: int, seed: int, space: Mapping[str, object], split: str, words: Sequence[str]
) -> "optuna.Study":
    """The study in a folder, with the trials that a kill cut short to be tried again.

    Raises:
        InputError: The folder holds another study.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    asked = repr((fold, seed, sorted((key, repr(value)) for key, value in space.items()), split, sorted(words)))
    name = hashlib.sha256(asked.encode()).hexdigest()[:12]
    storage = JournalStorage(JournalFileBackend(str(out / STUDY)))
    others = [other for other in optuna.get_all_study_names(storage) if other != name]
    if others:
        raise InputError(f"out={out}: holds a search of other settings ({others[0]}); choose another folder")
    sampler = optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(storage=storage, study_name=name, sampler=sampler, load_if_exists=True)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def _try_settings(
    study: "optuna.Study", space: Mapping[str, Choices | Interval], base: Sequence[str], out: Path, *, n_trials: int
) -> int:
    """Train trial after trial; returns the exit code of the first that was stopped, else 0."""
    from optuna.trial import TrialState

    from mil.cli import main

    distributions = {key: _distribution(values) for key, values in space.items()}
    console = Console(stderr=True)
    while len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))) < n_trials:
        trial = study.ask(distributions)
        chosen = _assignments(trial.params)
        folder = out / "runs" / hashlib.sha256("\n".join(chosen).encode()).hexdigest()[:12]
        code = main([*base, *chosen, f"out={folder}"])
        if code == STOPPED:
            return code
        if code:
            study.tell(trial, state=TrialState.PRUNED)
            console.print(f"trial {trial.number}: {' '.join(chosen)}: not trained", soft_wrap=True, markup=False)
            continue
        loss = _validation_loss(folder)
        study.tell(trial, loss)
        console.print(
            f"trial {trial.number}: {' '.join(chosen)}: validation loss {loss:.4f}", soft_wrap=True, markup=False
        )
    return 0


def _validation_loss(folder: Path) -> float:
    """Mean over the inner folds of the loss of the weights that were kept, on the patients that chose them."""
    logs = [pd.read_csv(run.folder / "log.csv") for run in find_runs(folder)]
    return float(np.mean([log["val_loss"].min() for log in logs]))


def _report(study: "optuna.Study", out: Path) -> int:
    """Write ``trials.csv`` and ``summary.json``, and print the words that did best."""
    from optuna.trial import TrialState

    trials = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    table = pd.DataFrame([{"trial": one.number, "validation_loss": one.value, **one.params} for one in trials])
    publish_text(out / "trials.csv", table.sort_values("validation_loss").to_csv(index=False))
    done = [one for one in trials if one.state == TrialState.COMPLETE]
    if not done:
        raise InputError("tune: no trial could be trained; what went wrong is said above")
    best = _assignments(study.best_params)
    publish_json(
        out / "summary.json",
        {
            "command": "tune",
            "trials": len(trials),
            "trained": len(done),
            "best": best,
            "validation_loss": study.best_value,
        },
    )
    Console().print(" ".join(best), soft_wrap=True, markup=False, highlight=False)
    return 0


def _assignments(params: Mapping[str, object]) -> list[str]:
    """Words for `promptmil train`, in the order of their keys."""
    return [f"{key}={value}" for key, value in sorted(params.items())]


def _distribution(values: Choices | Interval) -> "optuna.distributions.BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, Choices):
        return CategoricalDistribution(values.words)
    if values.is_whole:
        return IntDistribution(int(values.low), int(values.high), log=values.is_log)
    return FloatDistribution(values.low, values.high, log=values.is_log)
