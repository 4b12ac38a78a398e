"""Part 3 of an aggregator, bank: prototypes that start as words."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.functional import normalize

from feature_extraction.errors import InputError
from mil.parts import Bank, Facts, Prototypes


class WordBank(Bank):
    """Class and concept rows as the words are, nothing trained; tiles are ranked by the class rows.

    Under the margin rule the background's row is subtracted, ``t_k - t_n``. With ``init=random`` the rows are random
    unit vectors.

    Args:
        facts: Given by the composition.
    """

    base_classes: torch.Tensor
    base_concepts: torch.Tensor
    membership: torch.Tensor

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        if facts.text is None:
            raise InputError("this aggregator has prototypes: give bank=… (made with `promptmil prompts`)")
        self.margin_class = facts.margin_class
        classes, concepts = facts.text.classes, facts.text.concepts
        if facts.init == "random":
            classes, concepts = (normalize(torch.randn_like(rows), dim=-1) for rows in (classes, concepts))
        self.register_buffer("base_classes", classes.clone())
        self.register_buffer("base_concepts", concepts.clone())
        self.register_buffer("membership", facts.text.membership.clone())

    def forward(self) -> Prototypes:
        """The words."""
        return self._prototypes(self.base_classes, self.base_concepts, self.base_classes)

    def _prototypes(self, classes: torch.Tensor, concepts: torch.Tensor, selection: torch.Tensor) -> Prototypes:
        if self.margin_class is not None:
            selection = selection - classes[self.margin_class]
        return Prototypes(classes=classes, concepts=concepts, selection=selection)


class PromptBank(WordBank):
    """Words that learn: rows c = t + alpha * delta, delta = 0 at the start.

    Selection row of class k: ``q_k = c_k + sum over its concepts m of rho_m c_m``, rho = 0 at the start.

    Args:
        facts: Given by the composition.
        alpha: How far a step moves a row; a constant.
    """

    def __init__(self, facts: Facts, *, alpha: float = 1.0) -> None:
        super().__init__(facts)
        self.alpha = alpha
        self.delta_classes = nn.Parameter(torch.zeros_like(self.base_classes))
        self.delta_concepts = nn.Parameter(torch.zeros_like(self.base_concepts))
        self.rho = nn.Parameter(torch.zeros(len(self.base_concepts)))

    def forward(self) -> Prototypes:
        """The rows as they are now."""
        classes = self.base_classes + self.alpha * self.delta_classes
        concepts = self.base_concepts + self.alpha * self.delta_concepts
        selection = classes + self.membership.T @ (self.rho.unsqueeze(1) * concepts)
        return self._prototypes(classes, concepts, selection)

    def residuals(self) -> Iterator[nn.Parameter]:
        """Everything trainable: zero is the text."""
        yield from (self.delta_classes, self.delta_concepts, self.rho)
