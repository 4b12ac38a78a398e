"""Prompt sets: what each class of a task is called and what can be seen in it; how they are read and written."""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import yaml

from feature_extraction.errors import InputError
from feature_extraction.files import address, publish_text

Role = Literal["class", "background", "concept", "nontask"]
Severity = Literal["error", "warning"]
PLACEHOLDER = "CLASSNAME"
SET_KEYS = ("templates", "classes", "nontask", "source")
CLASS_KEYS = ("role", "names", "concepts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """What is wrong with a prompt set, in one place.

    Attributes:
        rule: Stable name of the kind of defect.
        severity: ``error``: no text bank is made of such a set; ``warning``: look at it.
        place: Where in the set, such as ``class LUAD, concept lepidic growth``.
        what: What was found.
        remedy: What to do.
    """

    rule: str
    severity: Severity
    place: str
    what: str
    remedy: str

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.place}: {self.what}; {self.remedy} [{self.rule}]"


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
    """Read a prompt set whose form is right; what its words are worth, `prompt_lint` says.

    Raises:
        InputError: Not a readable prompt set; every defect of its form at once.
    """
    prompt_set, defects = parse_prompt_set(path)
    if defects:
        raise InputError(f"prompts={path}: " + "; ".join(str(defect) for defect in defects))
    return prompt_set


def parse_prompt_set(path: Path) -> tuple[PromptSet, tuple[Defect, ...]]:
    """Read what can be read of a prompt set, and list what is wrong with its form; all of that are errors.

    Raises:
        InputError: No such file, not YAML, or nothing like a prompt set.
    """
    content, repeated = _load(path)
    classes = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(classes, dict):
        raise InputError(
            f"prompts={path}: expected a mapping with 'classes:' (and 'templates:', 'nontask:', 'source:')"
        )
    defects = [
        _error("repeated-key", "the file", f"the key {key!r} is in one mapping twice", "merge the two; YAML drops one")
        for key in repeated
    ]
    defects += _unknown_keys(content, SET_KEYS, "the file")
    templates = _read_texts(content.get("templates", [PLACEHOLDER + "."]), "templates", defects)
    prompt_set = PromptSet(
        name=path.stem,
        templates=templates,
        classes=tuple(_read_class(str(name), entry, defects) for name, entry in classes.items()),
        nontask=_read_mapping(content.get("nontask"), "nontask", defects),
        source=str(content.get("source") or ""),
    )
    return prompt_set, tuple(defects)


def write_prompt_set(path: Path, prompt_set: PromptSet, *, comment: str) -> None:
    """Publish a set as YAML that people edit.

    Args:
        path: The file.
        prompt_set: The set; its name is the file's.
        comment: What stands above it; each line becomes a comment.
    """
    classes: dict[str, object] = {}
    for entry in prompt_set.classes:
        role = {"role": "background"} if entry.is_background else {}
        concepts = {concept: list(texts) for concept, texts in entry.concepts.items()}
        classes[entry.name] = {**role, "names": list(entry.names), **({"concepts": concepts} if concepts else {})}
    content: dict[str, object] = {"templates": list(prompt_set.templates), "classes": classes}
    if prompt_set.nontask:
        content["nontask"] = {name: list(texts) for name, texts in prompt_set.nontask.items()}
    content["source"] = prompt_set.source
    header = "".join(f"# {line}\n" for line in comment.splitlines())
    publish_text(path, header + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110))


class _Loader(yaml.SafeLoader):
    """Remembers the keys that one mapping holds twice: YAML would keep the last in silence."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.repeated: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        """Build a mapping; the signature is PyYAML's."""
        counts = Counter(str(key.value) for key, _ in node.value)
        self.repeated += [key for key, count in counts.items() if count > 1]
        return super().construct_mapping(node, deep)


def _load(path: Path) -> tuple[object, list[str]]:
    """The file's content as plain data, and keys that are there twice."""
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        return loader.get_single_data(), loader.repeated
    except UnicodeDecodeError as error:
        raise InputError(f"prompts={path}: not UTF-8 text ({error}); save it as UTF-8") from error
    except OSError as error:
        raise InputError(
            f"prompts={path}: cannot be read ({error.strerror}); give a set's name or a YAML file"
        ) from error
    except yaml.YAMLError as error:
        raise InputError(f"prompts={path}: not valid YAML: {error}") from error


def _read_class(name: str, entry: object, defects: list[Defect]) -> PromptClass:
    place = f"class {name}"
    if not isinstance(entry, dict):
        defects.append(_error("not-a-mapping", place, f"expected a mapping with 'names:', got {entry!r}", "write one"))
        return PromptClass(name=name, is_background=False, names=(), concepts={})
    defects += _unknown_keys(entry, CLASS_KEYS, place)
    role = entry.get("role", "class")
    if role not in ("class", "background"):
        defects.append(_error("unknown-role", place, f"knows role class and background, got {role!r}", "correct it"))
    return PromptClass(
        name=name,
        is_background=role == "background",
        names=_read_texts(entry.get("names"), f"{place}: names", defects),
        concepts=_read_mapping(entry.get("concepts"), f"{place}: concepts", defects),
    )


def _read_mapping(value: object, place: str, defects: list[Defect]) -> dict[str, tuple[str, ...]]:
    """Name to texts; nothing there is an empty mapping."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        defects.append(_error("not-a-mapping", place, f"expected names with lists of texts, got {value!r}", "write so"))
        return {}
    return {str(name): _read_texts(texts, f"{place} {name}", defects) for name, texts in value.items()}


def _read_texts(value: object, place: str, defects: list[Defect]) -> tuple[str, ...]:
    """The texts of a list; anything else is a defect."""
    if not isinstance(value, list) or not value:
        what = f"expected a list of at least one text, got {value!r}"
        defects.append(_error("empty-list", place, what, "write the texts between brackets, or leave it out"))
        return ()
    texts = [text for text in value if isinstance(text, str) and text.strip()]
    defects += [
        _error("not-a-text", place, f"expected a non-empty text, got {text!r}", "write it between quotes")
        for text in value
        if not isinstance(text, str) or not text.strip()
    ]
    return tuple(texts)


def _unknown_keys(content: Mapping[object, object], known: tuple[str, ...], place: str) -> list[Defect]:
    return [
        _error("unknown-key", place, f"unknown key {str(key)!r}", f"known are {', '.join(known)}")
        for key in content
        if key not in known
    ]


def _error(rule: str, place: str, what: str, remedy: str) -> Defect:
    return Defect(rule=rule, severity="error", place=place, what=what, remedy=remedy)
