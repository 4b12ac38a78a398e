"""A language model's draft of a prompt set: a file for people to review, never one to use as it comes.

Each class is asked for by itself. A reply that is not the JSON that was asked for gives the class no words, so that the
linter refuses the file until somebody writes them; what the model said is kept beside it.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Protocol, cast
from urllib.parse import urlsplit

from torch import Tensor

from feature_extraction.errors import InputError
from feature_extraction.prompt_rules import DRAFT
from feature_extraction.prompts import PLACEHOLDER, PromptClass, PromptSet

TEMPLATES = (PLACEHOLDER + ".", f"an H&E image of {PLACEHOLDER}.", f"a histopathology image showing {PLACEHOLDER}.")
COMMENT = """DRAFT of a language model; nobody has reviewed it, and models invent histology with great confidence.
Read every line, correct it, then run `promptmil prompts lint` on it. A class without names is one for which the model
gave nothing usable. When all is right, say in the source who reviewed it, and take the word DRAFT from it."""
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)

Writer = Callable[[str], str]
"""A request to a reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked of the model.

    Attributes:
        task: What the slides are and what is asked, in a few words.
        classes: Label to what it means.
        background: The label of the class that every slide contains, None without one.
        n_names: Names of a class.
        n_concepts: Things to see in it.
        n_descriptions: Descriptions of each.
    """

    task: str
    classes: Mapping[str, str]
    background: str | None
    n_names: int
    n_concepts: int
    n_descriptions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafted:
    """What came of it.

    Attributes:
        prompts: The set; a class whose reply could not be used has no names.
        replies: What the model said, by label.
        refused: Why a reply could not be used, by label.
    """

    prompts: PromptSet
    replies: Mapping[str, str]
    refused: Mapping[str, str]


class _Generates(Protocol):
    """What is used of a causal model of transformers."""

    def generate(
        self, *, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, do_sample: bool, pad_token_id: int
    ) -> Tensor:
        """The tokens asked with, and those that follow."""
        ...


def draft(wish: Wish, writer: Writer, *, name: str, model: str, on: date) -> Drafted:
    """Ask for every class.

    Args:
        wish: What to ask.
        writer: Who answers.
        name: Of the set.
        model: Name of the model, for the source.
        on: The day, for the source.

    Raises:
        InputError: Fewer than two classes, or the background is none of them.
    """
    if len(wish.classes) < 2:
        raise InputError(f"classes={list(wish.classes)}: expected at least two")
    if wish.background is not None and wish.background not in wish.classes:
        raise InputError(f"background={wish.background}: is none of the classes {', '.join(wish.classes)}")
    classes: list[PromptClass] = []
    replies: dict[str, str] = {}
    refused: dict[str, str] = {}
    for label in wish.classes:
        replies[label] = writer(request(wish, label))
        names: tuple[str, ...] = ()
        concepts: Mapping[str, tuple[str, ...]] = {}
        try:
            names, concepts = read_reply(replies[label])
        except ValueError as error:
            refused[label] = str(error)
        entry = PromptClass(name=label, is_background=label == wish.background, names=names, concepts=concepts)
        classes.append(entry)
    prompts = PromptSet(
        name=name,
        templates=TEMPLATES,
        classes=tuple(classes),
        nontask={},
        source=f"{DRAFT} by the model {model}, {on.isoformat()}, not reviewed",
    )
    return Drafted(prompts=prompts, replies=replies, refused=refused)


def request(wish: Wish, label: str) -> str:
    """The words that ask for one class."""
    others = ", ".join(meaning for other, meaning in wish.classes.items() if other != label)
    return (
        "You help a pathologist to describe what can be seen in H&E stained tissue under the microscope.\n"
        f"Task: {wish.task}\nClass to describe: {wish.classes[label]}\nIt must be told from: {others}\n"
        f"Give {wish.n_names} names under which reports mention this class, and {wish.n_concepts} visual criteria, "
        f"each with {wish.n_descriptions} descriptions of at most 15 words. Describe only what is visible in one small "
        "field: shapes, arrangement, nuclei, cytoplasm, stroma. Do not write a class's name in a description, do not "
        "deny anything (no 'no', 'not', 'without'), do not compare.\n"
        'Answer with one JSON object and nothing else: {"names": ["..."], "concepts": {"criterion": ["description"]}}\n'
    )


def read_reply(reply: str) -> tuple[tuple[str, ...], Mapping[str, tuple[str, ...]]]:
    """Names and concepts of the first JSON object in a reply that has them.

    Raises:
        ValueError: There is none; the message says what is wrong.
    """
    text = _THOUGHTS.sub(" ", reply)
    decoder = json.JSONDecoder()
    for start in (place for place, mark in enumerate(text) if mark == "{"):
        try:
            content, _ = decoder.raw_decode(text, start)
        except ValueError:
            continue
        if isinstance(content, dict) and {"names", "concepts"} <= set(content):
            return _texts(content["names"], "names"), _concepts(content["concepts"])
    raise ValueError("there is no JSON object with names and concepts in the reply")


def endpoint_writer(endpoint: str, *, model: str, max_tokens: int, timeout_seconds: float, key: str = "") -> Writer:
    """Asks a server that speaks OpenAI's chat completions.

    Args:
        endpoint: Its address up to the version, such as ``http://127.0.0.1:8000/v1``.
        model: The name it knows the model by.
        max_tokens: Longest reply.
        timeout_seconds: Longest wait for one.
        key: Sent as bearer token unless empty; never written anywhere.

    Raises:
        InputError: No http address; and of the writer: no answer, or not the answer of such a server.
    """
    address = urlsplit(endpoint)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise InputError(f"endpoint={endpoint}: expected an address such as http://127.0.0.1:8000/v1")
    connect = HTTPSConnection if address.scheme == "https" else HTTPConnection
    path = address.path.rstrip("/") + "/chat/completions"
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}

    def write(text: str) -> str:
        asked = {"model": model, "max_tokens": max_tokens, "temperature": 0.0, "stream": False}
        body = json.dumps({**asked, "messages": [{"role": "user", "content": text}]})
        connection = connect(str(address.hostname), address.port, timeout=timeout_seconds)
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            status, received = response.status, response.read()
        except (OSError, HTTPException) as error:
            raise InputError(f"endpoint={endpoint}: no answer ({error!r}); is the server running?") from error
        finally:
            connection.close()
        return _content(received, status, endpoint)

    return write


def local_writer(folder: Path, *, max_tokens: int) -> Writer:
    """Asks a transformers causal model in a local folder, greedily, on the CPU.

    Raises:
        InputError: transformers is missing, no such model there; and of the writer: the request is too long for it.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"model={folder}: no transformers model there (config.json is missing); or give endpoint=…")
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise InputError("prompts draft with a local model needs: pip install 'promptmil[hf]'") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"model={folder}: is no causal model that transformers reads ({error})") from error
    limit = getattr(model.config, "max_position_embeddings", None)

    def write(text: str) -> str:
        words = text
        if tokenizer.chat_template:
            turn = [{"role": "user", "content": text}]
            words = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
        encoded = tokenizer(words, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
        n_asked = encoded["input_ids"].shape[1]
        n_left = max_tokens if limit is None else min(max_tokens, limit - n_asked)
        if n_left < 1:
            raise InputError(f"model={folder}: reads {limit} tokens, the request has {n_asked}; take a larger model")
        made = cast("_Generates", model).generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=n_left,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
        return str(tokenizer.decode(made[0, n_asked:], skip_special_tokens=True))

    return write


def _content(received: bytes, status: int, endpoint: str) -> str:
    """The reply in a server's answer."""
    shown = received[:300].decode("utf-8", "replace")
    if status != 200:
        raise InputError(f"endpoint={endpoint}: answered {status}: {shown}")
    try:
        content = json.loads(received)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"endpoint={endpoint}: not a chat completion: {shown}") from error
    return str(content or "")


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        raise ValueError(f"{where}: expected a list of texts, got {str(value)[:80]}")
    return tuple(dict.fromkeys(str(text).strip() for text in value))


def _concepts(value: object) -> Mapping[str, tuple[str, ...]]:
    if not isinstance(value, dict) or not value:
        raise ValueError(f"concepts: expected an object with entries, got {str(value)[:80]}")
    return {str(name): _texts(texts, f"concept {name}") for name, texts in value.items()}
