"""`promptmil prompts import`: prompts in the layout of another project -> a prompt set to review."""

from pathlib import Path

from omegaconf import DictConfig, ListConfig
from rich.console import Console

from feature_extraction.commands.prompts_report import require_new, say_defects
from feature_extraction.prompt_import import import_prompts
from feature_extraction.prompt_lint import lint_file
from feature_extraction.prompts import write_prompt_set

PARTLY_FAILED = 3


def run(config: DictConfig) -> int:
    """Import prompts; returns the exit code: 3 when the file is written but needs corrections."""
    out = require_new(Path(config.out))
    layout = str(config["from"])
    given = config.source if isinstance(config.source, ListConfig) else [config.source]
    prompts = import_prompts(
        layout,
        [Path(str(source)) for source in given],
        name=out.stem,
        classes=[str(name) for name in config.classes],
        background=None if config.background is None else str(config.background),
    )
    comment = f"Imported from the layout of {layout}; read it before use: `promptmil prompts lint prompts={out.name}`."
    write_prompt_set(out, prompts, comment=comment)
    console = Console(stderr=True)
    n_texts = sum(1 for _ in prompts.rows())
    console.print(f"{len(prompts.classes)} classes, {n_texts} sentences -> {out}", soft_wrap=True, markup=False)
    return PARTLY_FAILED if say_defects(console, out, lint_file(out)) else 0
