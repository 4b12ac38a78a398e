"""Part 3 of an aggregator, bank: prototypes that start as words, at random or as clusters of tiles."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from sklearn.cluster import KMeans
from torch import Tensor, nn
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
        unnamed = self.membership.sum(dim=0) == 0
        return Prototypes(
            rows=torch.cat([concepts, classes[unnamed]]),
            membership=torch.cat([self.membership, torch.eye(len(classes)).to(self.membership)[unnamed]]),
            classes=classes,
            concepts=concepts,
            selection=selection,
        )


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


class RowBank(Bank):
    """The rows that speak for the classes, trainable: c = t + delta, delta = 0 at the start.

    With ``init=random`` they are random unit vectors, with ``init=kmeans`` the centres of clusters of training tiles;
    such rows have no names and speak for no class in particular.

    Args:
        facts: Given by the composition.
        n_rows: Without words.
    """

    base: torch.Tensor
    membership: torch.Tensor
    classes: torch.Tensor | None

    def __init__(self, facts: Facts, *, n_rows: int = 16) -> None:
        super().__init__()
        self.init = facts.init
        if facts.init == "text":
            rows, membership = facts.named_rows
        else:
            rows = normalize(torch.randn(n_rows, facts.width), dim=-1)
            membership = torch.zeros(n_rows, facts.n_classes)
        self.register_buffer("base", rows.clone())
        self.register_buffer("membership", membership.clone())
        classes = facts.text.classes if facts.init == "text" and facts.text is not None else None
        self.register_buffer("classes", classes)
        self.delta = nn.Parameter(torch.zeros_like(rows))

    @torch.no_grad()
    def fit(self, tiles: Float[Tensor, "tile width"]) -> None:
        """Cluster the vectors of training tiles, drawn without regard to their order."""
        if self.init == "kmeans":
            n_rows = min(len(self.base), len(tiles))
            found = KMeans(n_clusters=n_rows, n_init="auto", random_state=0).fit(tiles.double().numpy())
            centres = torch.from_numpy(found.cluster_centers_).to(self.base)
            self.base[:n_rows] = normalize(centres, dim=-1)

    def forward(self) -> Prototypes:
        """The rows as they are now."""
        return Prototypes(rows=self.base + self.delta, membership=self.membership, classes=self.classes)

    def residuals(self) -> Iterator[nn.Parameter]:
        """Zero is the text, or where the rows started."""
        yield self.delta
