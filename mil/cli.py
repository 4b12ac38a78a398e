"""The console command: find the command, let Hydra compose its configuration, hand it over (exit codes: `mil.jobs`)."""

import importlib
import re
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from feature_extraction.errors import InputError
from mil.jobs import BAD_INPUT, ELSEWHERE, PARTLY_FAILED, STOPPED, complain, guarded, worst
from mil.typed_words import flags_first, quoted, with_key

if TYPE_CHECKING:
    from omegaconf import DictConfig

COMMANDS = {
    "demo": ("mil.commands.demo", "make a small cohort, run every step on it, write report.html"),
    "doctor": ("mil.commands.doctor", "what works on this machine, and what the asked-for run lacks"),
    "extract": ("feature_extraction.commands.extract", "slides -> one feature file a slide"),
    "verify": (
        "feature_extraction.commands.verify",
        "feature files read wholly: invalid, missing, orphaned, duplicate",
    ),
    "convert": ("feature_extraction.commands.convert", "other tools' feature folders -> ours, and back"),
    "embed_slides": ("feature_extraction.commands.embed_slides", "feature files -> one vector a slide (TITAN)"),
    "prompts": ("feature_extraction.commands.prompts", "prompt set -> text bank"),
    "preflight": ("mil.commands.preflight", "will text help here: what it is worth on train and val patients"),
    "zeroshot": ("mil.commands.zeroshot", "feature files + text bank -> predictions without training"),
    "split": ("mil.commands.split", "labels -> patient-disjoint folds"),
    "train": ("mil.commands.train", "features + bank + split -> run folder; -m sweeps"),
    "tune": ("mil.commands.tune", "settings searched (optuna) on the train and val patients of a fold"),
    "bundle": ("mil.commands.bundle", "runs + features -> one folder with thresholds and hashes that predict runs"),
    "predict": ("mil.commands.predict", "run or bundle + features -> predictions"),
    "summarize": ("mil.commands.summarize", "sweep -> tables with intervals, report.html"),
    "heatmap": ("mil.commands.heatmap", "run + features -> contributions, PNG, GeoJSON for QuPath, viewer"),
    "view": ("mil.commands.view", "a viewer's folder, with the pixels of its slides, on 127.0.0.1"),
    "search": ("mil.commands.search", "words, or a tile, + features -> the tiles most like them, with pictures"),
}
ACTIONS = {  # a second word, and the configuration it is composed from
    "extract submit": (
        "feature_extraction.commands.submit",
        "extract",
        "on a cluster: cluster=slurm (job array) or cluster=ray (actors)",
    ),
    "extract status": ("feature_extraction.commands.status", "extract_status", "how far the extraction into out is"),
    "sweep status": ("mil.commands.sweep_status", "sweep", "how far a sweep is; takes the words of train -m"),
    "sweep submit": (
        "mil.commands.sweep_submit",
        "sweep",
        "a sweep's missing cells on a cluster: cluster=slurm (job array)",
    ),
    "prompts lint": (
        "feature_extraction.commands.prompts_lint",
        "prompts_lint",
        "every defect of a prompt set",
    ),
    "prompts import": (
        "feature_extraction.commands.prompts_import",
        "prompts_import",
        "prompts in another project's layout -> a prompt set to review",
    ),
    "prompts draft": (
        "feature_extraction.commands.prompts_draft",
        "prompts_draft",
        "a language model writes a prompt set to review",
    ),
}
SWEEP = "sweep"
"""First word of actions that are about all cells of a sweep, whether or not the line says -m."""
PROMPTS_KEY = "prompts="
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Polite ends; the last is what a batch file hands on when its time limit is near."""
LAUNCHER = "hydra/launcher="
SHOWS = frozenset({"--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"})
"""Flags that show something instead of running; Hydra takes them one at a time, and not with -m."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``promptmil <command> [overrides]`` and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        _say(_overview())
        return 0
    actions = [action for action in ACTIONS if action.startswith(f"{words[0]} ")]
    if words[0] not in COMMANDS and not actions:
        complain(f"promptmil: unknown command {words[0]!r}; known: {', '.join((*COMMANDS, SWEEP))}")
        return BAD_INPUT
    name = words[0]
    try:
        words = with_key(words)
    except InputError as error:
        complain(f"error: {error}")
        return BAD_INPUT
    if words[0] not in COMMANDS or (len(words) > 1 and words[1].isalpha()):
        name = " ".join(words[:2])
        if name not in ACTIONS:
            complain(f"promptmil: unknown action {name!r}; known: {', '.join(actions) or 'none of this command'}")
            return BAD_INPUT
    rest = flags_first([plain for word in words[len(name.split()) :] for plain in _as_plain_keys(word)])
    if name == "tune":
        from mil.tuned_words import collected

        rest = collected(rest)
    if words[0] == SWEEP:
        from mil.sweep_words import MULTIRUN

        rest = [word for word in rest if word not in MULTIRUN and not word.startswith(LAUNCHER)]
        rest = rest if SHOWS & set(rest) else ["-m", *rest]
    return _run(name, rest)


def _run(name: str, overrides: list[str]) -> int:
    """Hand the command to Hydra."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode

    from feature_extraction.configuration import conf_folder

    module, config_name, _ = ACTIONS[name] if name in ACTIONS else (COMMANDS[name][0], name, "")
    jobs = _Jobs(module, is_launched=_is_launched(overrides))

    def job(config: "DictConfig") -> None:
        jobs.take(config, is_cell=HydraConfig.get().mode is RunMode.MULTIRUN)

    application = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=config_name)(job)
    kept, sys.argv = sys.argv, [f"promptmil {name}", *overrides]
    GlobalHydra.instance().clear()  # a command may run others: the demo does
    try:
        with jobs.interrupts:
            cells = jobs.composed(config_name, overrides)
            if cells is None:
                application()
            for cell in cells or ():
                jobs.take(cell, is_cell=True)
            jobs.finish()
    except KeyboardInterrupt:  # between two cells of a sweep
        jobs.stop()
    except HydraException as error:
        complain(f"error: {error}")
        return BAD_INPUT
    except SystemExit as exit_request:  # Hydra's way of saying that the configuration does not compose
        if exit_request.code not in (0, None) and not jobs.codes:
            return PARTLY_FAILED if _is_launched(overrides) else BAD_INPUT
    finally:
        sys.argv = kept
    return worst(jobs.codes)


class CellError(Exception):
    """A cell failed in a process of Hydra's launcher."""


class _Jobs:
    """What Hydra composes, one configuration after the other. A job never raises, so that the others finish.

    Args:
        module: Of the command. Where it says how many cells may run at once, those of a sweep wait until all are known:
            Hydra's own launcher would run one after the other.
        is_launched: Whether a launcher of Hydra's runs the jobs in processes of its own. What is noted there is lost,
            so a job that fails there has to raise after all.
    """

    def __init__(self, module: str, *, is_launched: bool) -> None:
        self._module = module
        self._is_launched = is_launched
        self._cells: list[DictConfig] = []
        self.codes: list[int] = []
        self.interrupts = _Interrupts()

    def composed(self, config_name: str, words: Sequence[str]) -> "list[DictConfig] | None":
        """The cells of a sweep that this command takes together; None for anything else, which Hydra composes."""
        from mil.sweep_words import composed_cells, is_plain_sweep

        return composed_cells(config_name, words) if is_plain_sweep(words) and self._takes_cells() else None

    def take(self, config: "DictConfig", *, is_cell: bool) -> None:
        """Run a job, or keep it."""
        command = importlib.import_module(self._module)
        if self.interrupts.has_come and STOPPED not in self.codes:
            self.stop()
        if STOPPED in self.codes:
            return  # a signal stops the sweep, not only the cell it fell into
        if is_cell and not self._is_launched and self._takes_cells():
            self._cells.append(config)
            return
        with self.interrupts.running():
            code = guarded(command.run, config)
        if is_cell and self._is_launched:
            if code not in (0, ELSEWHERE):
                raise CellError(f"a cell ended with exit code {code}; what went wrong is said above")
            return
        self.codes.append(BAD_INPUT if code == ELSEWHERE else code)

    def finish(self) -> None:
        """Run the cells that were kept."""
        if not self._cells or STOPPED in self.codes:
            return
        command = importlib.import_module(self._module)
        sweep_run = importlib.import_module("mil.commands.sweep_run")
        with self.interrupts.running():
            if hasattr(command, "run_sweep"):
                self.codes.append(command.run_sweep(self._cells))
            else:
                self.codes += sweep_run.run_sweep(self._module, self._cells)

    def stop(self) -> None:
        """Nothing more is run."""
        complain("stopped; run the same command again to go on")
        self.codes.append(STOPPED)

    def _takes_cells(self) -> bool:
        command = importlib.import_module(self._module)
        return hasattr(command, "at_once") or hasattr(command, "run_sweep")


class _Interrupts:
    """While entered, a polite end and Ctrl-C are remembered; while a command runs, both interrupt wherever they fall.

    Remembered, because Python drops an exception that falls into a destructor. Not before a command runs, because the
    composition of a configuration takes an interrupt for a fault of the configuration. In other threads than the main
    one signals are not ours to handle.
    """

    def __init__(self) -> None:
        self.has_come = False
        self._is_running = False
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in SIGNALS}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def running(self) -> Generator[None]:
        """A command runs: what has come or comes interrupts it."""
        self._is_running = True
        try:
            if self.has_come:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_running = False

    def _take(self, _number: int, _frame: FrameType | None) -> None:
        self.has_come = True
        if self._is_running:
            raise KeyboardInterrupt


def _is_launched(words: Sequence[str]) -> bool:
    """Whether the line names a launcher of Hydra's that is not the one in this process."""
    return any(word.startswith(LAUNCHER) and word != f"{LAUNCHER}basic" for word in words)


def _as_plain_keys(word: str) -> list[str]:
    """Let ``prompts=`` take a name or a path, and ``encoder=`` a list: Hydra would read both as choices of a group.

    What is searched for is taken as it is typed: commas and brackets in it are no syntax.
    """
    if word.startswith(PROMPTS_KEY):
        return [f"prompts.set={word.removeprefix(PROMPTS_KEY)}"]
    asked = re.fullmatch(r"(text|like)=([^\['\"].*)", word, flags=re.DOTALL)
    if asked and asked[2] != "null":
        return [f"{asked[1]}={quoted(asked[2])}"]
    several = re.fullmatch(r"encoder=\[([\w-]+)((?:,[\w-]+)+)\]", word.replace(" ", ""))
    return [f"encoder={several[1]}", f"also_encoders=[{several[2][1:]}]"] if several else [word]


def _overview() -> str:
    lines = ["promptmil <command> [key=value …]   (promptmil <command> --help shows the keys)", ""]
    for name, (_, text) in COMMANDS.items():
        lines.append(f"  {name:<14} {text}")
        lines += _actions(name)
        if name == "train":
            lines += _actions(SWEEP)
    return "\n".join(lines)


def _actions(name: str) -> list[str]:
    return [f"  {a:<14} {what}" for a, (_, _, what) in ACTIONS.items() if a.startswith(f"{name} ")]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
