"""`promptmil prompts lint`: every defect of a prompt set at once."""

import csv
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from feature_extraction.commands import settings
from feature_extraction.commands.licence import say_licences
from feature_extraction.commands.prompts_report import say_defects
from feature_extraction.configuration import prompt_set_path
from feature_extraction.errors import InputError
from feature_extraction.prompt_lint import lint_file

BAD_INPUT = 2


def run(config: DictConfig) -> int:
    """Lint a prompt set; returns the exit code."""
    path = prompt_set_path(str(config.prompts.set))
    encoder = None
    if OmegaConf.select(config, "encoder") is not None:
        source = settings.encoder_source(config)
        if not source.spec.has_text:
            raise InputError(f"encoder={source.spec.name}: has no text tower; lint without it, or take one that has")
        say_licences([source.spec], Console(stderr=True))
        encoder = source.load(settings.device(config.device))
    labels = None if config.labels is None else _labels(Path(config.labels))
    defects = lint_file(path, encoder=encoder, labels=labels)
    return BAD_INPUT if say_defects(Console(), path, defects) else 0


def _labels(path: Path) -> set[str]:
    """The classes of a labels table."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            found = {str(row["label"]).strip() for row in csv.DictReader(stream)}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise InputError(f"labels={path}: expected a CSV with a column label ({error!r})") from error
    return found - {""}
