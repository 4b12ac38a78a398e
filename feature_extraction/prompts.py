"""Prompt sets: what each class of a task is called and what can be seen in it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import yaml

from feature_extraction.errors import InputError
from feature_extraction.files import address

Role = Literal["class", "background", "concept", "nontask"]
PLACEHOLDER = "CLASSNAME"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptClass:
    """What one class of the task is called.

    Attributes:
        name: The class, as in the labels table.
        is_background: Whether every slide contains it (normal tissue).
        names: Ways to call it; each goes through every template.
        concepts: What can be seen in it, by concept name: descriptions used as they are.
    """

    name: str
    is_background: bool
    names: tuple[str, ...]
    concepts: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """Everything a text bank is made of.

    Attributes:
        name: Of the set.
        templates: Sentences with ``CLASSNAME`` in them.
        classes: In the order of the file.
        nontask: Things to recognise and ignore, by name; never classes.
        source: Who or what wrote it, and when.
    """

    name: str
    templates: tuple[str, ...]
    classes: tuple[PromptClass, ...]
    nontask: Mapping[str, tuple[str, ...]]
    source: str

    def sha256(self) -> str:
        """The content's address; the name and the source do not count."""
        return address(
            {
                "templates": list(self.templates),
                "classes": [asdict(entry) for entry in self.classes],
                "nontask": {name: list(texts) for name, texts in self.nontask.items()},
            }
        )

    def rows(self) -> Iterator["PromptRow"]:
        """Every sentence to embed, in the order of the file."""
        for entry in self.classes:
            role: Role = "background" if entry.is_background else "class"
            yield from self._templated(entry.names, role=role, owner=entry.name, class_name=entry.name)
            for concept, texts in entry.concepts.items():
                for text in texts:
                    yield PromptRow(text=text, role="concept", owner=concept, class_name=entry.name, template="")
        for name, texts in self.nontask.items():
            yield from self._templated(texts, role="nontask", owner=name, class_name="")

    def _templated(self, names: tuple[str, ...], *, role: Role, owner: str, class_name: str) -> Iterator["PromptRow"]:
        """Each name in each template."""
        for name in names:
            for template in self.templates:
                text = template.replace(PLACEHOLDER, name)
                yield PromptRow(text=text, role=role, owner=owner, class_name=class_name, template=template)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRow:
    """One sentence of a text bank.

    Attributes:
        text: What the text tower reads.
        role: What it stands for.
        owner: The class, concept or non-task thing it describes.
        class_name: The class it belongs to, empty for a non-task row.
        template: The template it was made with, empty when used as written.
    """

    text: str
    role: Role
    owner: str
    class_name: str
    template: str


def read_prompt_set(path: Path) -> PromptSet:
    """Read and check a prompt set.

    Raises:
        InputError: Not YAML, a class without names, no placeholder in a template, two background classes, a sentence
            twice, or an unknown key; all defects at once.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"prompts={path}: cannot be read ({error.strerror}); give a set's name or a YAML file"
        ) from error
    except yaml.YAMLError as error:
        raise InputError(f"prompts={path}: not valid YAML: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("classes"), dict):
        raise InputError(
            f"prompts={path}: expected a mapping with 'classes:' (and 'templates:', 'nontask:', 'source:')"
        )
    unknown = sorted(set(content) - {"templates", "classes", "nontask", "source"})
    classes = tuple(_read_class(str(name), entry, path) for name, entry in content["classes"].items())
    prompt_set = PromptSet(
        name=path.stem,
        templates=_texts(content.get("templates", [PLACEHOLDER + "."]), f"{path}: templates"),
        classes=classes,
        nontask={
            str(name): _texts(texts, f"{path}: nontask {name}")
            for name, texts in (content.get("nontask") or {}).items()
        },
        source=str(content.get("source", "")),
    )
    defects = [f"unknown key {key!r}" for key in unknown] + _defects(prompt_set)
    if defects:
        raise InputError(f"prompts={path}: " + "; ".join(defects))
    return prompt_set


def _read_class(name: str, entry: object, path: Path) -> PromptClass:
    if not isinstance(entry, dict):
        raise InputError(f"prompts={path}: class {name}: expected a mapping with 'names:', got {entry!r}")
    unknown = sorted(set(entry) - {"role", "names", "concepts"})
    if unknown or entry.get("role", "class") not in ("class", "background"):
        raise InputError(f"prompts={path}: class {name}: knows role (class, background), names, concepts; got {entry}")
    concepts = entry.get("concepts") or {}
    return PromptClass(
        name=name,
        is_background=entry.get("role") == "background",
        names=_texts(entry.get("names"), f"{path}: class {name}: names"),
        concepts={str(key): _texts(texts, f"{path}: concept {key}") for key, texts in concepts.items()},
    )


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        raise InputError(f"prompts={where}: expected a list of at least one non-empty text, got {value!r}")
    return tuple(str(text) for text in value)


def _defects(prompt_set: PromptSet) -> list[str]:
    """What makes a set wrong whatever the encoder."""
    found = [f"template without {PLACEHOLDER}: {text!r}" for text in prompt_set.templates if PLACEHOLDER not in text]
    backgrounds = [entry.name for entry in prompt_set.classes if entry.is_background]
    if len(backgrounds) > 1:
        found.append(f"at most one class may have role: background, got {', '.join(backgrounds)}")
    if len(prompt_set.classes) < 2:
        found.append("needs at least two classes")
    repeated = [text for text, count in Counter(row.text for row in prompt_set.rows()).items() if count > 1]
    found += [f"the same sentence twice: {text!r}" for text in repeated]
    return found
