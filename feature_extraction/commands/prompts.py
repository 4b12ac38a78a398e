"""`promptmil prompts`: a prompt set -> a text bank."""

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from feature_extraction.commands import settings
from feature_extraction.commands.licence import say_licences
from feature_extraction.configuration import prompt_set_path
from feature_extraction.files import publish_json
from feature_extraction.prompts import read_prompt_set
from feature_extraction.text_bank import bank_name, build_bank, write_bank


def run(config: DictConfig) -> int:
    """Embed a prompt set; returns the exit code."""
    prompt_set = read_prompt_set(prompt_set_path(str(config.prompts.set)))
    console = Console(stderr=True)
    source = settings.encoder_source(config)
    say_licences([source.spec], console)
    encoder = source.load(settings.device(config.device))
    bank = build_bank(prompt_set, encoder)
    out = Path(config.out)
    path = out / bank_name(bank)
    write_bank(path, bank)
    publish_json(
        out / "summary.json",
        {
            "command": "prompts",
            "bank": path.name,
            "prompt_set": bank.prompt_set,
            "prompt_set_sha256": bank.prompt_set_sha256,
            "encoder": bank.encoder,
            "encoder_fingerprint": bank.encoder_fingerprint,
            "classes": list(bank.class_names()),
            "background": bank.background(),
            "concepts": [f"{class_name}: {concept}" for class_name, concept in bank.concepts()],
            "nontask": list(bank.nontask()),
            "sentences": len(bank.rows),
        },
    )
    console.print(
        f"{len(bank.rows)} sentences, {len(bank.class_names())} classes, {len(bank.concepts())} concepts -> {path}",
        soft_wrap=True,
        markup=False,
    )
    return 0
