"""The text bank: a prompt set's sentences as vectors in an encoder's joint space."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from feature_extraction.encoder import Encoder, Projection
from feature_extraction.errors import DamagedFileError, InputError, MismatchError
from feature_extraction.files import address, as_record, publish
from feature_extraction.prompt_lint import refusals
from feature_extraction.prompts import PromptRow, PromptSet

PROJECTION = ("projection.weight", "projection.bias")
"""Tensors of a bank whose encoder has a projection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextBank:
    """A prompt set in an encoder's joint space.

    Attributes:
        rows: The sentences.
        embeddings: Their vectors, unit length, same order.
        logit_scale: Natural logarithm of the encoder's factor on the cosine.
        logit_bias: Added to the scaled cosine.
        prompt_set: Name of the set.
        prompt_set_sha256: Its content's address.
        encoder: Name of the encoder.
        encoder_fingerprint: Of its weights.
        projection: From the encoder's backbone space into the joint space, None where it has none.
    """

    rows: tuple[PromptRow, ...]
    embeddings: Float32[np.ndarray, "prompt dim"]
    logit_scale: float
    logit_bias: float
    prompt_set: str
    prompt_set_sha256: str
    encoder: str
    encoder_fingerprint: str
    projection: Projection | None = None

    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the prompt set."""
        return tuple(dict.fromkeys(row.owner for row in self.rows if row.role in ("class", "background")))

    def background(self) -> str | None:
        """The class that every slide contains, None when the set has none."""
        return next((row.owner for row in self.rows if row.role == "background"), None)

    def concepts(self) -> tuple[tuple[str, str], ...]:
        """(class, concept) pairs, in the order of the prompt set."""
        return tuple(dict.fromkeys((row.class_name, row.owner) for row in self.rows if row.role == "concept"))

    def nontask(self) -> tuple[str, ...]:
        """Names of the non-task things."""
        return tuple(dict.fromkeys(row.owner for row in self.rows if row.role == "nontask"))

    def class_vector(self, name: str) -> Float64[np.ndarray, " dim"]:
        """The re-normalised mean of a class's prompts."""
        return self._mean(lambda row: row.role in ("class", "background") and row.owner == name)

    def concept_vector(self, class_name: str, concept: str) -> Float64[np.ndarray, " dim"]:
        """The re-normalised mean of a concept's descriptions."""
        return self._mean(lambda row: row.role == "concept" and (row.class_name, row.owner) == (class_name, concept))

    def nontask_vector(self, name: str) -> Float64[np.ndarray, " dim"]:
        """The re-normalised mean of a non-task thing's prompts."""
        return self._mean(lambda row: row.role == "nontask" and row.owner == name)

    def _mean(self, is_member: Callable[[PromptRow], bool]) -> Float64[np.ndarray, " dim"]:
        chosen = np.array([is_member(row) for row in self.rows])
        mean = self.embeddings[chosen].astype(np.float64).mean(axis=0)
        return mean / np.linalg.norm(mean)


def build_bank(prompt_set: PromptSet, encoder: Encoder) -> TextBank:
    """Embed every sentence of a prompt set.

    Raises:
        MismatchError: The encoder has no text tower.
        InputError: The linter finds errors in the set, such as a sentence that the text tower would cut; all at once.
    """
    if not encoder.spec.has_text:
        raise MismatchError(f"encoder {encoder.spec.name} has no text tower; choose one that has, to use prompts")
    errors = refusals(prompt_set, encoder)
    if errors:
        listed = "\n  ".join(str(defect) for defect in errors)
        raise InputError(
            f"prompts={prompt_set.name}: no bank is made of a set with errors "
            f"(`promptmil prompts lint` lists warnings too):\n  {listed}"
        )
    rows = tuple(prompt_set.rows())
    return TextBank(
        rows=rows,
        embeddings=encoder.embed_texts([row.text for row in rows]).numpy(),
        logit_scale=encoder.logit_scale,
        logit_bias=encoder.logit_bias,
        prompt_set=prompt_set.name,
        prompt_set_sha256=prompt_set.sha256(),
        encoder=encoder.spec.name,
        encoder_fingerprint=encoder.fingerprint,
        projection=encoder.projection(),
    )


def bank_name(bank: TextBank) -> str:
    """``<prompt set>-<encoder>-<hash8>.safetensors``."""
    content = address({"prompts": bank.prompt_set_sha256, "encoder": bank.encoder_fingerprint})
    return f"{bank.prompt_set}-{bank.encoder}-{content[:8]}.safetensors"


def write_bank(path: Path, bank: TextBank) -> None:
    """Publish a bank: vectors and scale as tensors, everything else as JSON in the metadata."""
    described = {
        "prompts": [asdict(row) for row in bank.rows],
        "prompt_set": bank.prompt_set,
        "prompt_set_sha256": bank.prompt_set_sha256,
        "encoder": bank.encoder,
        "encoder_fingerprint": bank.encoder_fingerprint,
        "space": "joint",
    }
    tensors = {
        "embeddings": np.ascontiguousarray(bank.embeddings, np.float32),
        "logit_scale": np.array(bank.logit_scale, np.float64),
        "logit_bias": np.array(bank.logit_bias, np.float64),
    }
    if bank.projection is not None:
        tensors |= {PROJECTION[0]: bank.projection.weight.numpy(), PROJECTION[1]: bank.projection.bias.numpy()}
    publish(path, save(tensors, metadata={"promptmil": json.dumps(described, ensure_ascii=False)}))


def read_bank(path: Path) -> TextBank:
    """Read a bank.

    Args:
        path: The file, or a folder with exactly one bank in it.

    Raises:
        InputError: There is no such file, or the folder holds none or several.
        DamagedFileError: It is not a text bank of ours.
    """
    if path.is_dir():
        inside = sorted(path.glob("*.safetensors"))
        if len(inside) != 1:
            names = ", ".join(file.name for file in inside) or "none"
            raise InputError(f"bank={path}: expected one text bank in this folder, got {names}; name one of them")
        path = inside[0]
    if not path.is_file():
        raise InputError(f"bank={path}: no such file; make it with `promptmil prompts`")
    try:
        with safe_open(path, framework="numpy") as file:
            described = json.loads(file.metadata()["promptmil"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
            embeddings, scale, bias = (tensors[name] for name in ("embeddings", "logit_scale", "logit_bias"))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"bank={path}: not a text bank of promptmil ({error})") from error
    return TextBank(
        rows=tuple(as_record(PromptRow, row, str(path)) for row in described["prompts"]),
        embeddings=embeddings,
        logit_scale=float(scale),
        logit_bias=float(bias),
        prompt_set=described["prompt_set"],
        prompt_set_sha256=described["prompt_set_sha256"],
        encoder=described["encoder"],
        encoder_fingerprint=described["encoder_fingerprint"],
        projection=_projection(tensors),
    )


def _projection(tensors: Mapping[str, np.ndarray]) -> Projection | None:
    if not set(PROJECTION) <= set(tensors):
        return None
    weight, bias = (torch.from_numpy(tensors[name]) for name in PROJECTION)
    return Projection(weight=weight, bias=bias)


def require_match(bank: TextBank, *, encoder: str, encoder_fingerprint: str, space: str) -> None:
    """Refuse a bank and features that are not of one space.

    Args:
        bank: The words.
        encoder: Name of the features' encoder.
        encoder_fingerprint: Of its weights.
        space: Of the features; ``joint`` also for backbone features that are to be projected.

    Raises:
        MismatchError: Other weights, or features outside the joint space. Equal width is no proof.
    """
    if bank.encoder_fingerprint != encoder_fingerprint:
        raise MismatchError(
            f"the text bank is of encoder {bank.encoder} ({bank.encoder_fingerprint[:8]}), the features of {encoder} "
            f"({encoder_fingerprint[:8]}): their cosine means nothing; make the bank with the features' encoder"
        )
    if space != "joint":
        raise MismatchError(
            f"the features are in the {space} space of {encoder} ({encoder_fingerprint[:8]}), the text bank is in the "
            f"joint space ({bank.encoder_fingerprint[:8]}); extract with space=joint, or convert with project=true, "
            "to use text"
        )


def require_same_prompts(bank: TextBank, *, prompt_set: str, prompt_set_sha256: str) -> None:
    """Refuse a bank of other words than something was made with.

    Args:
        bank: The words at hand.
        prompt_set: Name of the set that something was made with.
        prompt_set_sha256: Its content's address; equal names are no proof.

    Raises:
        MismatchError: Other words.
    """
    if bank.prompt_set_sha256 != prompt_set_sha256:
        raise MismatchError(
            f"the text bank is of the prompt set {bank.prompt_set} ({bank.prompt_set_sha256[:8]}), this was made with "
            f"{prompt_set} ({prompt_set_sha256[:8]}): their classes and concepts are not the same vectors; "
            "use the bank it was made with"
        )
