"""`promptmil prompts draft`: a language model writes a prompt set for people to review."""

import os
from datetime import UTC, datetime
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from feature_extraction.commands import settings
from feature_extraction.commands.prompts_report import require_new, say_defects
from feature_extraction.errors import InputError
from feature_extraction.files import publish_json
from feature_extraction.prompt_draft import COMMENT, Wish, Writer, draft, endpoint_writer, local_writer
from feature_extraction.prompt_lint import lint_file
from feature_extraction.prompts import write_prompt_set

PARTLY_FAILED = 3
API_KEY = "PROMPTMIL_API_KEY"


def run(config: DictConfig) -> int:
    """Draft a prompt set; returns the exit code: 3 when the file is written but needs corrections."""
    out = require_new(Path(config.out))
    wish = _wish(config)
    name = str(config.model) if config.endpoint is not None else Path(str(config.model)).name
    today = datetime.now(UTC).date()
    drafted = draft(wish, _writer(config), name=out.stem, model=name, on=today)
    said = {"model": name, "date": today.isoformat(), "replies": drafted.replies, "refused": drafted.refused}
    publish_json(out.with_suffix(".replies.json"), said)
    write_prompt_set(out, drafted.prompts, comment=COMMENT)
    console = Console(stderr=True)
    for label, reason in drafted.refused.items():
        line = f"class {label}: {reason}; what it said is in {out.stem}.replies.json"
        console.print(line, soft_wrap=True, markup=False)
    console.print(f"a draft to review -> {out}", soft_wrap=True, markup=False)
    return PARTLY_FAILED if say_defects(console, out, lint_file(out)) else 0


def _wish(config: DictConfig) -> Wish:
    given = settings.plain(config)["classes"]
    if not isinstance(given, dict | list):
        raise InputError(
            f"classes={given}: expected labels, or labels with what they mean: {{LUAD: lung adenocarcinoma}}"
        )
    pairs = given.items() if isinstance(given, dict) else [(name, name) for name in given]
    return Wish(
        task=str(config.about),
        classes={str(label): str(meaning) for label, meaning in pairs},
        background=None if config.background is None else str(config.background),
        n_names=settings.at_least_one("n_names", config.n_names),
        n_concepts=settings.at_least_one("n_concepts", config.n_concepts),
        n_descriptions=settings.at_least_one("n_descriptions", config.n_descriptions),
    )


def _writer(config: DictConfig) -> Writer:
    max_tokens = settings.at_least_one("max_tokens", config.max_tokens)
    if config.endpoint is None:
        return local_writer(Path(str(config.model)), max_tokens=max_tokens)
    return endpoint_writer(
        str(config.endpoint),
        model=str(config.model),
        max_tokens=max_tokens,
        timeout_seconds=float(config.timeout_seconds),
        key=os.environ.get(API_KEY, ""),
    )
