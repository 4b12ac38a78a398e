"""How much a zero-shot result hangs on the wording: the same prediction from random subsets of the prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int

from feature_extraction.errors import InputError
from feature_extraction.prompts import PromptRow
from feature_extraction.text_bank import TextBank


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A figure over the subsets.

    Attributes:
        median: Of the subsets.
        low: Their lower quartile.
        high: Their upper quartile.
    """

    median: float
    low: float
    high: float


def draw_class_vectors(
    bank: TextBank, classes: Sequence[str], *, n_subsets: int, seed: int
) -> Float64[np.ndarray, "subset class dim"]:
    """Class vectors as random halves of the prompts would give them.

    Each draw takes half of the templates (at least one), the same ones for every class, and half of each class's names
    (at least one); a class's vector is the re-normalised mean of what is left, as in the whole bank.

    Raises:
        InputError: There is one name a class and one template, so that nothing can be drawn.
    """
    tables = [_by_name_and_template(bank, name) for name in classes]
    if all(table.size == 1 for table in tables):
        raise InputError(
            f"subsets={n_subsets}: the prompt set {bank.prompt_set} has one name a class and one template, so "
            "there are no subsets to draw; add names or templates"
        )
    chance = np.random.default_rng(seed)
    n_templates = tables[0].shape[1]
    drawn = np.empty((n_subsets, len(classes), bank.embeddings.shape[1]))
    for subset in range(n_subsets):
        templates = _half(chance, n_templates)
        for column, table in enumerate(tables):
            rows = table[np.ix_(_half(chance, len(table)), templates)].ravel()
            mean = bank.embeddings[rows].astype(np.float64).mean(axis=0)
            drawn[subset, column] = mean / np.linalg.norm(mean)
    return drawn


def spread_of(figures: Sequence[dict[str, float]]) -> dict[str, Spread]:
    """Median and quartiles of each figure over the subsets, leaving out those in which it is not defined."""
    table = pd.DataFrame(figures).dropna(axis="columns", how="all")
    quartiles = table.quantile([0.25, 0.5, 0.75])
    return {
        str(name): Spread(low=float(low), median=float(median), high=float(high))
        for name, (low, median, high) in quartiles.items()
    }


def _by_name_and_template(bank: TextBank, class_name: str) -> Int[np.ndarray, "name template"]:
    """Rows of a class's prompts in the bank: a bank lists every name in every template, name after name."""

    def belongs(row: PromptRow) -> bool:
        return row.role in ("class", "background") and row.owner == class_name

    rows = [index for index, row in enumerate(bank.rows) if belongs(row)]
    n_templates = len({bank.rows[index].template for index in rows})
    return np.array(rows).reshape(-1, n_templates)


def _half(chance: np.random.Generator, n: int) -> Int[np.ndarray, " chosen"]:
    """Half of 0…n-1 at random, at least one, ascending."""
    return np.sort(chance.choice(n, size=max(1, n // 2), replace=False))
