"""Rules of the linter that need the words alone: each yields the defects of one kind."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from typing import TypeVar

from feature_extraction.prompt_inspection import Inspected, Text, error, place_of, texts_of, warning
from feature_extraction.prompt_words import (
    canonical,
    contains_name,
    estimated_tokens,
    find_chat_remnant,
    find_list_remnant,
    find_markup,
    find_negation,
    find_placeholder,
    find_strange,
    find_typographic,
    is_generic,
)
from feature_extraction.prompts import PLACEHOLDER, Defect

T = TypeVar("T")
CLIP_CONTEXT = 77
SHORTEST_NAME = 3
"""A class called ``a`` would be found in every sentence."""
MOST_UNEQUAL = 3
"""So many times more names in one class than in another."""
DRAFT = "DRAFT"
"""What the source of a generated, unread set starts with."""


def too_few_classes(seen: Inspected) -> Iterator[Defect]:
    """Fewer than two classes."""
    n_classes = len(seen.prompts.classes)
    if n_classes < 2:
        yield error("too-few-classes", "classes", f"needs at least two classes, got {n_classes}", "add one")


def several_backgrounds(seen: Inspected) -> Iterator[Defect]:
    """More than one class that every slide contains."""
    names = [entry.name for entry in seen.prompts.classes if entry.is_background]
    if len(names) > 1:
        what = f"at most one class may have role: background, got {', '.join(names)}"
        yield error("several-backgrounds", "classes", what, "leave it at the one that every slide contains")


def placeholder_of_templates(seen: Inspected) -> Iterator[Defect]:
    """A template without the place of the name, or with several."""
    for text in seen.prompts.templates:
        count = text.count(PLACEHOLDER)
        if count == 0:
            what = f"template without {PLACEHOLDER}: {text!r}"
            yield error("template-without-placeholder", "templates", what, f"write {PLACEHOLDER} where the name goes")
        elif count > 1:
            what = f"{PLACEHOLDER} {count} times in {text!r}"
            yield error("template-with-several-placeholders", "templates", what, "leave one")


def foreign_placeholders_of_templates(seen: Inspected) -> Iterator[Defect]:
    """Markup or a placeholder of another tool in a template."""
    for text in seen.prompts.templates:
        rest = text.replace(PLACEHOLDER, "name")
        found = find_placeholder(rest) or find_markup(rest)
        if found:
            what = f"{found!r} in {text!r}"
            yield error("unfilled-placeholder", "templates", what, f"{PLACEHOLDER} is the only placeholder; remove it")


def templates_without_effect(seen: Inspected) -> Iterator[Defect]:
    """Two templates that are one."""
    for texts in _groups(seen.prompts.templates, canonical):
        listed = " and ".join(repr(text) for text in texts)
        if len(set(texts)) < len(texts):
            yield error("repeated-text", "templates", f"the same template twice: {listed}", "remove one")
        else:
            what = f"templates that differ in case, spaces or punctuation only: {listed}"
            yield warning(
                "template-without-effect", "templates", what, "they count twice and say nothing new; remove one"
            )


def repeated_texts(seen: Inspected) -> Iterator[Defect]:
    """The same text twice, in one class or in two."""
    for group in _groups(texts_of(seen.prompts), lambda text: canonical(text.text)):
        places = " and ".join(dict.fromkeys(text.place for text in group))
        first = group[0].text
        if len({text.owner for text in group}) > 1:
            yield error(
                "shared-text", places, f"the same text twice: {first!r}", "it cannot tell them apart; keep it in one"
            )
        elif len({text.text for text in group}) < len(group):
            yield error("repeated-text", places, f"the same text twice: {first!r}", "remove one")
        else:
            what = f"texts that differ in case, spaces or punctuation only: {' and '.join(repr(t.text) for t in group)}"
            yield warning("nearly-repeated-text", places, what, "they count twice and say nothing new; remove one")


def repeated_sentences(seen: Inspected) -> Iterator[Defect]:
    """Different names and templates that make one sentence."""
    made = [row for row in seen.prompts.rows() if row.template]
    for rows in _groups(made, lambda row: row.text):
        if len({row.template for row in rows}) > 1:
            what = (
                f"the same sentence twice: {rows[0].text!r}, of the templates {sorted({row.template for row in rows})}"
            )
            yield error("repeated-text", f"class {rows[0].owner}, names", what, "change a name or a template")


def names_in_concepts(seen: Inspected) -> Iterator[Defect]:
    """A concept that says what the class is called, not what can be seen."""
    for text in texts_of(seen.prompts):
        for entry in seen.prompts.classes if text.kind == "concept" else ():
            names = [name for name in (entry.name, *entry.names) if len(name) >= SHORTEST_NAME]
            found = next((name for name in names if contains_name(text.text, name)), None)
            if found is None:
                continue
            what = f"{text.text!r} has the name {found!r} of class {entry.name} in it"
            if entry.name == text.owner:
                yield warning(
                    "class-name-in-concept", text.place, what, "say what can be seen; the names are listed above it"
                )
            else:
                yield error(
                    "class-name-in-concept", text.place, what, "the text is drawn to that class; say what can be seen"
                )


def negations(seen: Inspected) -> Iterator[Defect]:
    """Texts that deny: CLIP-like towers hear what is denied and not that it is."""
    for text in texts_of(seen.prompts):
        found = find_negation(text.text)
        if found:
            what = f"{found!r} in {text.text!r}: text towers ignore it and look for what is denied"
            yield warning("negation", text.place, what, "say what is there instead")


def unfilled_placeholders(seen: Inspected) -> Iterator[Defect]:
    """A place that somebody was to fill in, or markup."""
    for text in texts_of(seen.prompts):
        placeholder, markup = find_placeholder(text.text), find_markup(text.text)
        if placeholder:
            what = f"{placeholder!r} in {text.text!r}"
            yield error("unfilled-placeholder", text.place, what, "fill it in; only templates have a placeholder")
        elif markup:
            yield error("markup", text.place, f"{markup!r} in {text.text!r}", "write plain words")


def remnants(seen: Inspected) -> Iterator[Defect]:
    """Bullets, numbers and politeness of generated text."""
    for text in texts_of(seen.prompts):
        found = find_list_remnant(text.text) or find_chat_remnant(text.text)
        if found:
            yield error("generated-remnant", text.place, f"starts with {found!r}: {text.text!r}", "remove that")


def strange_characters(seen: Inspected) -> Iterator[Defect]:
    """Characters that look like others, or like nothing."""
    templates = [Text(text=text, kind="template", owner="", place="templates") for text in seen.prompts.templates]
    for text in (*templates, *texts_of(seen.prompts)):
        strange, typographic = find_strange(text.text), find_typographic(text.text)
        if strange:
            what = f"{strange} in {text.text!r}: invisible, or not the Latin letter that it looks like"
            yield error("strange-character", text.place, what, "type it anew")
        if typographic:
            what = f"{typographic} in {text.text!r}: other tokens than the plain quote, dash or space"
            yield warning("typographic-character", text.place, what, "type the plain one")


def generic_texts(seen: Inspected) -> Iterator[Defect]:
    """Words that fit every tile."""
    for text in texts_of(seen.prompts):
        if text.kind != "nontask" and is_generic(text.text):
            what = f"{text.text!r} fits any tile of any slide"
            yield warning("generic-text", text.place, what, "say the organ, the diagnosis or what can be seen")


def labels_as_names(seen: Inspected) -> Iterator[Defect]:
    """A class whose only name is its label: text towers know few abbreviations."""
    for entry in seen.prompts.classes:
        if [canonical(name) for name in entry.names] == [canonical(entry.name)]:
            what = f"the only name is the label {entry.name!r}"
            yield warning("label-as-name", f"class {entry.name}, names", what, "add what it is called in reports")


def unequal_names(seen: Inspected) -> Iterator[Defect]:
    """One class with many names, another with few."""
    counts = {entry.name: len(entry.names) for entry in seen.prompts.classes if entry.names}
    if counts and max(counts.values()) > MOST_UNEQUAL * min(counts.values()):
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        what = f"very unequal numbers of names: {listed}"
        yield warning("unequal-names", "classes", what, "a mean of many is closer to everything; even them out")


def sources(seen: Inspected) -> Iterator[Defect]:
    """Nobody knows who wrote it, or nobody has read it."""
    if not seen.prompts.source.strip():
        yield warning("no-source", "source", "no source", "say who or what wrote it, and when")
    elif seen.prompts.source.startswith(DRAFT):
        what = "a draft of a language model that nobody has reviewed"
        yield warning("unreviewed-draft", "source", what, f"read it, correct it, take {DRAFT} from the source")


def lengths_without_encoder(seen: Inspected) -> Iterator[Defect]:
    """Sentences that may be too long for the usual text tower."""
    for row in () if seen.measured else seen.prompts.rows():
        n_tokens = estimated_tokens(row.text)
        if n_tokens > CLIP_CONTEXT:
            what = f"about {n_tokens} tokens, a CLIP tower reads {CLIP_CONTEXT}: {row.text!r}"
            yield warning(
                "maybe-too-long", place_of(row), what, "shorten it, or lint with encoder=… for the exact length"
            )


def labels_and_classes(seen: Inspected) -> Iterator[Defect]:
    """Labels that no words are written for, and the other way round."""
    names = [entry.name for entry in seen.prompts.classes]
    for label in sorted(seen.labels or ()):
        if label not in names:
            close = get_close_matches(label.casefold(), [name.casefold() for name in names], n=1)
            hint = f"is it the class {close[0]!r}?" if close else f"the set has {', '.join(names)}"
            what = f"label {label!r} has no prompts"
            yield error("label-without-prompts", "classes", what, f"add a class of exactly this name; {hint}")
    for name in names if seen.labels else ():
        if name not in (seen.labels or ()):
            yield warning(
                "class-without-label",
                f"class {name}",
                "no such label in labels",
                "correct the name, or leave it unused",
            )


def _groups(items: Sequence[T], key: Callable[[T], str]) -> Iterator[list[T]]:
    """Items that have a key in common with another."""
    groups: defaultdict[str, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    yield from (group for group in groups.values() if len(group) > 1)
