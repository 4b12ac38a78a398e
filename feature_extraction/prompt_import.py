"""Prompts that others published, in their own layouts, as a prompt set: classes by name, never by position.

| from | layout |
|---|---|
| ``vila_mil``, ``focus`` | CSV without a header, one sentence a row: every class at the first scale, then at the next |
| ``mscpt`` | JSON ``{class: {small_mag: [description], big_mag: [description]}}`` |
| ``hive_mil`` | JSON ``{class: {term: description}}``, the coarse terms first |
| ``conch``, ``keep`` | JSON ``{draw: {classnames: {class: [name] or name}, templates: [template] or template}}`` |

A draw of the last two is one sample of names and templates; the union of all draws is taken. The sentences of the
first two name their class and scale before they describe it: the name becomes a name, the description a concept.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from feature_extraction.errors import InputError
from feature_extraction.prompts import PLACEHOLDER, PromptClass, PromptSet

SCALES = ("low resolution", "high resolution")
DEFAULT_TEMPLATES = (PLACEHOLDER + ".", f"an H&E image of {PLACEHOLDER}.")
_SENTENCE = re.compile(
    r"\bof (?P<name>.+?) at (?P<scale>[\w-]+ (?:resolution|magnification))\b.*?\bcharacteristics of (?P<what>.+)",
    re.IGNORECASE | re.DOTALL,
)

Draft = dict[str, PromptClass]
"""Classes by name, in the order of the source."""


def import_prompts(
    layout: str,
    sources: Sequence[Path],
    *,
    name: str,
    classes: Sequence[str] = (),
    background: str | None = None,
) -> PromptSet:
    """Read others' prompt files.

    Args:
        layout: A key of ``LAYOUTS``.
        sources: The files; several are put together.
        name: Of the set.
        classes: Names of the classes: in the order of the rows where a layout has positions only, else those to take.
        background: The class that every slide contains; no layout says which it is.

    Raises:
        InputError: Another layout, a class that is not there, or positions without ``classes``.
    """
    if layout not in LAYOUTS:
        raise InputError(f"from={layout}: unknown layout; known are {', '.join(LAYOUTS)}")
    if not sources:
        raise InputError("source=…: expected at least one file")
    found: Draft = {}
    templates: tuple[str, ...] = ()
    for path in sources:
        read, more = LAYOUTS[layout](path, classes)
        templates = _union(templates, more)
        for label, entry in read.items():
            found[label] = _merged(found[label], entry) if label in found else entry
    unknown = [label for label in (*classes, *filter(None, [background])) if label not in found]
    if unknown:
        raise InputError(f"class {', '.join(unknown)} is not in {_names(sources)}; it has {', '.join(found)}")
    kept = {label: found[label] for label in classes or found}
    return PromptSet(
        name=name,
        templates=templates or DEFAULT_TEMPLATES,
        classes=tuple(_with_role(entry, is_background=label == background) for label, entry in kept.items()),
        nontask={},
        source=f"imported from {_names(sources)}, layout of {layout}; the words and their licence are their authors'",
    )


def _read_two_scales(path: Path, classes: Sequence[str]) -> tuple[Draft, tuple[str, ...]]:
    """ViLa-MIL and FOCUS: rows by scale, then class; the classes are positions."""
    sentences = _one_column(path)
    if not classes:
        raise InputError(f"{path}: its classes are positions; say which they are, in this order: classes=[…]")
    n_classes = len(classes)
    if len(sentences) % n_classes:
        raise InputError(
            f"{path}: {len(sentences)} rows are no multiple of the {n_classes} classes; correct classes=[…]"
        )
    found: Draft = {}
    for place, label in enumerate(classes):
        own = sentences[place::n_classes]
        parts = [_SENTENCE.search(sentence) for sentence in own]
        stated = list(dict.fromkeys(part["name"] for part in parts if part))
        if len(stated) > 1:
            raise InputError(
                f"{path}: by position class {label} is called {' and '.join(map(repr, stated))}; "
                f"the order or number of classes=[{', '.join(classes)}] is another"
            )
        concepts = _collected(
            (part["scale"].lower(), part["what"].strip()) if part else (_scale(row, len(own)), sentence)
            for row, (part, sentence) in enumerate(zip(parts, own, strict=True))
        )
        found[label] = _entry(label, names=stated or [label], concepts=concepts)
    return found, ()


def _read_two_magnifications(path: Path, _classes: Sequence[str]) -> tuple[Draft, tuple[str, ...]]:
    """MSCPT: lists of descriptions at two magnifications."""
    found: Draft = {}
    for label, value in _mapping(_read_json(path), path, "the file").items():
        scales = _mapping(value, path, label)
        concepts = {
            scale.replace("_", " "): _texts(texts, path, f"{label}: {scale}") for scale, texts in scales.items()
        }
        found[label] = _entry(label, names=[label], concepts=concepts)
    return found, ()


def _read_terms(path: Path, _classes: Sequence[str]) -> tuple[Draft, tuple[str, ...]]:
    """HiVE-MIL: a description of each term."""
    found: Draft = {}
    for label, value in _mapping(_read_json(path), path, "the file").items():
        terms = _mapping(value, path, label)
        texts = ((term.lower(), _texts(value, path, f"{label}: {term}")) for term, value in terms.items())
        concepts = _collected((term, text) for term, several in texts for text in several)
        found[label] = _entry(label, names=[label], concepts=concepts)
    return found, ()


def _read_draws(path: Path, _classes: Sequence[str]) -> tuple[Draft, tuple[str, ...]]:
    """CONCH and KEEP: draws of names and templates."""
    content = _mapping(_read_json(path), path, "the file")
    draws = [content] if "classnames" in content else [_mapping(draw, path, key) for key, draw in content.items()]
    names: dict[str, tuple[str, ...]] = {}
    templates: tuple[str, ...] = ()
    for draw in draws:
        if set(draw) != {"classnames", "templates"}:
            raise InputError(f"{path}: expected classnames and templates, got {', '.join(draw)}; is it another layout?")
        for label, value in _mapping(draw["classnames"], path, "classnames").items():
            names[label] = _union(names.get(label, ()), _texts(value, path, label))
        templates = _union(templates, _texts(draw["templates"], path, "templates"))
    return {label: _entry(label, names=texts, concepts={}) for label, texts in names.items()}, templates


LAYOUTS: Mapping[str, Callable[[Path, Sequence[str]], tuple[Draft, tuple[str, ...]]]] = {
    "vila_mil": _read_two_scales,
    "focus": _read_two_scales,
    "mscpt": _read_two_magnifications,
    "conch": _read_draws,
    "keep": _read_draws,
    "hive_mil": _read_terms,
}


def _one_column(path: Path) -> list[str]:
    rows = [row for row in csv.reader(io.StringIO(_read_text(path))) if any(cell.strip() for cell in row)]
    if not rows or any(len(row) != 1 for row in rows):
        raise InputError(f"{path}: expected one quoted sentence a row and no header; is it another layout?")
    return [row[0].strip() for row in rows]


def _read_json(path: Path) -> object:
    """JSON, in which a key stands once in its object: Python's reader would keep the last in silence."""

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            raise InputError(f"{path}: {', '.join(map(repr, twice))} is in one object twice; rename one")
        return dict(pairs)

    try:
        return json.loads(_read_text(path), object_pairs_hook=once)
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); is it another layout?") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"source={path}: cannot be read as UTF-8 text ({error}); give the file") from error


def _mapping(value: object, path: Path, where: str) -> dict[str, object]:
    if not isinstance(value, dict) or not value:
        raise InputError(f"{path}: {where}: expected an object with entries; is it another layout?")
    return {str(key): entry for key, entry in value.items()}


def _texts(value: object, path: Path, where: str) -> tuple[str, ...]:
    """One text or a list of them, without the blanks around."""
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(text, str) and text.strip() for text in listed):
        raise InputError(f"{path}: {where}: expected a text or a list of texts; is it another layout?")
    return tuple(dict.fromkeys(str(text).strip() for text in listed))


def _collected(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """(concept, text) pairs by concept; none overwrites another."""
    found: dict[str, tuple[str, ...]] = {}
    for concept, text in pairs:
        found[concept] = _union(found.get(concept, ()), (text,))
    return found


def _scale(row: int, n_scales: int) -> str:
    return SCALES[row] if n_scales == len(SCALES) else f"scale {row + 1}"


def _entry(label: str, *, names: Sequence[str], concepts: Mapping[str, tuple[str, ...]]) -> PromptClass:
    return PromptClass(name=label, is_background=False, names=tuple(names), concepts=concepts)


def _with_role(entry: PromptClass, *, is_background: bool) -> PromptClass:
    return PromptClass(name=entry.name, is_background=is_background, names=entry.names, concepts=entry.concepts)


def _merged(first: PromptClass, second: PromptClass) -> PromptClass:
    concepts = dict(first.concepts)
    for name, texts in second.concepts.items():
        concepts[name] = _union(concepts.get(name, ()), texts)
    return _entry(first.name, names=_union(first.names, second.names), concepts=concepts)


def _union(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *second)))


def _names(sources: Sequence[Path]) -> str:
    return ", ".join(path.name for path in sources)
