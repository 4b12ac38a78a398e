"""Small bags and words for tests of the aggregators: random unit vectors, known sizes, no file."""

from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import normalize

from feature_extraction.prompts import PromptRow
from feature_extraction.text_bank import TextBank
from mil.bag import Bag, pack_tiles
from mil.packed import Packing
from mil.parts import Facts, Pooling, TextPrototypes

DIM = 16
CLASSES = ("alpha", "beta", "normal")
CONCEPTS = (("alpha", "a one"), ("alpha", "a two"), ("beta", "b one"))
LOG_SCALE = float(np.log(20.0))


def rows(n: int, seed: int, dim: int = DIM) -> np.ndarray:
    """Random unit rows."""
    values = np.random.default_rng(seed).standard_normal((n, dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def bag(n: int, seed: int) -> Bag:
    """A bag of n random tiles in one row of a grid."""
    coords = np.stack([np.arange(n) * 100, np.zeros(n, int)], axis=1).astype(np.int64)
    return Bag(slide_id=f"S{seed}", features=rows(n, seed), coords_lv0=coords, size_lv0=(100.0, 100.0))


def packed(n_scales: int, *bags_: torch.Tensor) -> tuple[torch.Tensor, Packing]:
    """Bags as an aggregator takes them; one that reads two magnifications gets the same tiles turned as coarse ones."""
    scaled = [(tiles,) if n_scales == 1 else (tiles, tiles.roll(1, dims=1)) for tiles in bags_]
    return torch.cat([tiles for one in scaled for tiles in one]), pack_tiles(scaled)


def scaled(n_scales: int, one: Bag) -> Bag:
    """The same for a bag."""
    return one if n_scales == 1 else replace(one, coarse=replace(one, features=np.roll(one.features, 1, axis=1)))


def bank(*, has_background: bool = True) -> TextBank:
    """A text bank of random words, two sentences a class."""
    listed: list[PromptRow] = []
    for name in CLASSES:
        role = "background" if name == "normal" and has_background else "class"
        texts = (f"{name} one", f"{name} two")
        listed += [PromptRow(text=text, role=role, owner=name, class_name=name, template="") for text in texts]
    for class_name, concept in CONCEPTS:
        listed.append(PromptRow(text=concept, role="concept", owner=concept, class_name=class_name, template=""))
    return TextBank(
        rows=tuple(listed),
        embeddings=rows(len(listed), seed=99),
        logit_scale=LOG_SCALE,
        logit_bias=0.0,
        prompt_set="test",
        prompt_set_sha256="0" * 64,
        encoder="test",
        encoder_fingerprint="f" * 64,
    )


def facts(rule: str = "margin", top_j: int = 3, init: str = "text", *, has_background: bool = True) -> Facts:
    """Facts of a task with these words."""
    words = bank(has_background=has_background)
    membership = torch.zeros(len(CONCEPTS), len(CLASSES))
    for row, (class_name, _) in enumerate(CONCEPTS):
        membership[row, CLASSES.index(class_name)] = 1
    text = TextPrototypes(
        classes=torch.tensor(np.stack([words.class_vector(name) for name in CLASSES])).float(),
        concepts=torch.tensor(np.stack([words.concept_vector(*pair) for pair in CONCEPTS])).float(),
        membership=membership,
    )
    return Facts(
        dim=DIM,
        width=DIM,
        n_classes=len(CLASSES),
        background=CLASSES.index("normal") if has_background else None,
        text=text,
        logit_scale=LOG_SCALE,
        pooling=Pooling(rule=rule, top_j=top_j),
        init=init,
    )


def unit(values: torch.Tensor) -> torch.Tensor:
    """Rows at unit length."""
    return normalize(values, dim=-1)
