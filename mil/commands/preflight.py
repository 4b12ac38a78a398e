"""`promptmil preflight`: will text help here, from the train and val patients of one fold."""

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from feature_extraction.commands.licence import check_licence
from feature_extraction.errors import InputError
from feature_extraction.files import publish_json
from feature_extraction.text_bank import read_bank, require_match
from mil.cohort import read_labels
from mil.commands import settings
from mil.commands.split import label_kind
from mil.commands.unused import say_unused
from mil.feature_folder import FeatureFolder, load_bags
from mil.labels import ONE_CLASS
from mil.metrics.intervals import Estimate
from mil.parts import Pooling
from mil.preflight import FIGURE, RULE, Labelled, Preflight, text_preflight
from mil.preflight_controls import Control
from mil.splits.file import SplitRow, check_split, read_split
from mil.text import order_classes
from mil.zeroshot import resolve_pooling

SEEN = ("train", "val")
OFTEN = 0.2
"""Share of a class's patients from which on it is said to be taken for another."""


def run(config: DictConfig) -> int:
    """Measure what the words are worth; returns the exit code."""
    console = Console(stderr=True)
    rows = _seen_rows(config)
    features = FeatureFolder(Path(config.features))
    bank = read_bank(Path(config.bank))
    header = features.header
    check_licence(config.licence_profile, header, console)
    space = "joint" if "joint" in features.spaces else header.space
    require_match(bank, encoder=header.encoder, encoder_fingerprint=header.encoder_fingerprint, space=space)
    classes = order_classes([row.label for row in rows], bank)
    top_j = settings.top_j(config.pooling.top_j)
    if isinstance(top_j, str):
        raise InputError("pooling.top_j=auto: the preflight measures one J; give a number")
    background = bank.background() if bank.background() in classes else None
    pooling = resolve_pooling(config.pooling.rule, top_j, background=background)
    nontask_of = bank if config.filter_nontask else None
    bags = load_bags([features], [row.slide_id for row in rows], space=space, nontask_of=nontask_of)
    slides = [
        Labelled(patient_id=row.patient_id, label=row.label, bag=bags.bags[row.slide_id])
        for row in rows
        if row.slide_id in bags.bags
    ]
    if not slides:
        raise InputError(f"features={config.features}: no train or val slide of the fold has a usable feature file")
    found = text_preflight(slides, bank, classes, pooling, seed=int(config.seed))
    text = report(found, where=f"{' and '.join(SEEN)} of fold {config.fold}", pooling=pooling)
    publish_json(
        Path(config.out) / "summary.json",
        {
            "command": "preflight",
            **found.plain(),
            "report": text,
            "rule": RULE,
            "fold": int(config.fold),
            "parts": list(SEEN),
            "pooling": {"rule": pooling.rule, "top_j": pooling.top_j},
            "filter_nontask": bool(config.filter_nontask),
            "seed": int(config.seed),
            "prompt_set": bank.prompt_set,
            "prompt_set_sha256": bank.prompt_set_sha256,
            "encoder": header.encoder,
            "encoder_fingerprint": header.encoder_fingerprint,
            "unused": bags.unused,
        },
    )
    console.print(text, soft_wrap=True, markup=False, highlight=False)
    return say_unused(console, bags.unused)


def _seen_rows(config: DictConfig) -> list[SplitRow]:
    """The train and val slides of the fold; no other is asked for from here on."""
    kind = label_kind(settings.plain(config.task))
    if kind is not ONE_CLASS:
        raise InputError(
            f"task={config.task['_target_']}: the preflight measures how well words tell classes, and a slide of this "
            "task has not one class; `promptmil zeroshot` has its figures"
        )
    table = read_split(Path(config.split), kind=kind)
    cohort = None
    if config.labels is not None:
        cohort = read_labels(Path(config.labels), slide_is_patient=config.slide_is_patient, kind=kind)
    check_split(table, cohort=cohort, kind=kind)
    return [row for part in SEEN for row in table.part(int(config.fold), part)]


def report(found: Preflight, *, where: str, pooling: Pooling) -> str:
    """What was found, for people, a line a matter; the answer first, the rule last.

    Args:
        found: The measurements.
        where: Which patients, such as ``train and val of fold 0``.
        pooling: What zero-shot did.
    """
    auc, accuracy = found.metrics[FIGURE], found.metrics["balanced_accuracy"]
    said = {"helps": "helps", "does not help": "does not help", "cannot be said": "may or may not help"}[found.verdict]
    margins = ", ".join(f"{name} {margin.mean:+.3f}" for name, margin in found.margins.items())
    cosines = ", ".join(f"{pair} {cosine:.2f}" for pair, cosine in found.class_cosines.items())
    zeroshot = (
        f"Zero-shot ({pooling.rule}, J = {pooling.n_chosen or 'all'}) on the {auc.n_patients} patients of {where}"
    )
    nonsense = f"nonsense directions {_beside(found.nonsense)}, p = {found.nonsense.p:.3f}"
    permuted = f"labels permuted {_beside(found.permuted)}, p = {found.permuted.p:.3f}"
    lines = [
        f"Text {said} here: {found.reason}.",
        f"{zeroshot}: macro AUC {_interval(auc)}, balanced accuracy {_interval(accuracy)}; 95 % intervals.",
        f"Macro AUC of the controls: {permuted}; {nonsense}; names exchanged {_beside(found.shuffled)}.",
        *_on_wording(found),
        f"Margin of the own class (cosine): {margins}; cosines between classes: {cosines}.",
        *_on_confusion(found),
        RULE,
    ]
    return "\n".join(lines)


def _on_wording(found: Preflight) -> list[str]:
    """How much hangs on the wording, and whether names stand with the wrong classes."""
    lines: list[str] = []
    if FIGURE in found.wordings:
        auc, accuracy = found.wordings[FIGURE], found.wordings["balanced_accuracy"]
        lines.append(
            f"Random halves of the wording: macro AUC, median {auc.median:.2f} (quartiles {auc.low:.2f} to "
            f"{auc.high:.2f}), balanced accuracy {accuracy.median:.2f} ({accuracy.low:.2f} to {accuracy.high:.2f})."
        )
    if found.shuffled.high > max(found.metrics[FIGURE].value, found.nonsense.high):
        lines.append("With the names of the classes exchanged it does better: are the names with the right classes?")
    return lines


def _on_confusion(found: Preflight) -> list[str]:
    """Which classes are taken for which."""
    pairs = [
        f"{share:.0%} of the {own} patients are called {other}"
        for own, shares in found.called.items()
        for other, share in shares.items()
        if other != own and share >= OFTEN
    ]
    return [f"Confused: {'; '.join(pairs)}."] if pairs else []


def _beside(drawn: Control) -> str:
    return f"median {drawn.median:.2f} (95 % below {drawn.high:.2f})"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
