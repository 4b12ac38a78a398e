"""What each tile of a slide said: contributions that sum to the logit, and evidence for every tile.

Everything is computed again in double precision from the stored features and weights, along two ways that must agree:
summing the tiles' contributions, and scoring the pooled vector.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import normalize

from feature_extraction.errors import DamagedFileError
from mil.aggregator import Aggregator, SixParts
from mil.bag import Bag, pack_tiles
from mil.bank import WordBank
from mil.embed import UnitEmbed
from mil.head import TextHead
from mil.task import Task

SUM_TOLERANCE = 1e-5
"""Of the logit, relative above 1: the promise printed on every map."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The layers of one slide's map at one magnification, one row a tile and one column a class.

    Attributes:
        bag: The slide at this magnification.
        contribution: c_ik; the column sums to the logit less the bias and what `elsewhere` says; zero outside a top-J.
        evidence: e_ik, what the tile says for the class, for every tile.
        attention: a_ik.
        concept_share: Share of each concept among its class's, one column a concept; empty without concepts.
        logits: One a class.
        bias: One a class.
        probabilities: One a class.
        elsewhere: One a class: the sum of the contributions at the other magnification, zero without one.
        similarity: tau v . t of the words before any training, for every tile; None without text in the tiles' space.
        concept_of_tile: Column of the concept nearest to the tile; -1 where a class without concepts is nearer, or
            there are none.
    """

    bag: Bag
    contribution: Float64[np.ndarray, "tile class"]
    evidence: Float64[np.ndarray, "tile class"]
    attention: Float64[np.ndarray, "tile class"]
    concept_share: Float64[np.ndarray, "tile concept"]
    logits: Float64[np.ndarray, " class"]
    bias: Float64[np.ndarray, " class"]
    probabilities: Float64[np.ndarray, " class"]
    elsewhere: Float64[np.ndarray, " class"]
    similarity: Float64[np.ndarray, "tile class"] | None
    concept_of_tile: Int64[np.ndarray, " tile"]

    @property
    def is_sparse(self) -> bool:
        """Whether some tiles count nothing, so that a map needs the evidence."""
        return bool((self.attention == 0).any())

    def map_layer(self) -> Float64[np.ndarray, "tile class"]:
        """What a map shows: evidence of a sparse pool, contributions of a dense one."""
        return self.evidence if self.is_sparse else self.contribution


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """The words of a run before any training, unit length.

    Attributes:
        classes: One row a class.
        concepts: One row a concept.
        membership: 1 where a concept (row) belongs to a class (column).
        scale: The encoder's factor on the cosine.
        is_start: Whether the aggregator started from them, so that its own rows have the same names.
        is_joint: Whether the embeddings in the bags are in their space.
    """

    classes: Float[Tensor, "class width"]
    concepts: Float[Tensor, "concept width"]
    membership: Float[Tensor, "concept class"]
    scale: float
    is_start: bool
    is_joint: bool


@torch.inference_mode()
def explain(aggregator: Aggregator, task: Task, bag: Bag, words: Words | None = None) -> list[Explanation]:
    """Compute the layers of one slide at each of its magnifications, the finest first.

    Args:
        aggregator: Of the run.
        task: Of the run.
        bag: The slide.
        words: Of the run; without them there is neither similarity nor a concept.

    Raises:
        DamagedFileError: Contributions and logit disagree beyond `SUM_TOLERANCE`.
    """
    exact = copy.deepcopy(aggregator).double().eval()
    tiles = [one.tensor(torch.float64) for one in bag.scales()]
    output = exact(torch.cat(tiles), pack_tiles([tiles]))
    logits = exact.pooled(output)[0]
    summed = output.contribution.sum(dim=0) + output.bias
    gap = (summed - logits).abs() / logits.abs().clamp(min=1)
    if float(gap.max()) > SUM_TOLERANCE:
        raise DamagedFileError(
            f"slide={bag.slide_id}: contributions sum to {summed.tolist()}, the logits are {logits.tolist()}"
        )
    sizes = [len(of_scale) for of_scale in tiles]
    explanations: list[Explanation] = []
    for one, member, of_scale, contribution, evidence, attention, vectors in zip(
        bag.scales(),
        exact.of_scales(),
        tiles,
        output.contribution.split(sizes),
        output.evidence.split(sizes),
        output.attention.split(sizes),
        output.vectors.split(sizes),
        strict=True,
    ):
        unit = None if words is None else _in_space_of_words(member, of_scale, words)
        share, nearest = _concepts(member, vectors, unit, words)
        explanations.append(
            Explanation(
                bag=one,
                contribution=contribution.numpy(),
                evidence=evidence.numpy(),
                attention=attention.numpy(),
                concept_share=share.numpy(),
                logits=logits.numpy(),
                bias=output.bias.numpy(),
                probabilities=task.probabilities(logits.unsqueeze(0))[0].numpy(),
                elsewhere=(output.contribution.sum(dim=0) - contribution.sum(dim=0)).numpy(),
                similarity=None if unit is None or words is None else _similarity(unit, words),
                concept_of_tile=nearest.numpy(),
            )
        )
    return explanations


def auc_against(scores: Float64[np.ndarray, " tile"], is_positive: Bool[np.ndarray, " tile"]) -> float:
    """Area under the ROC curve of tile scores, nan when one of the two groups is empty."""
    if is_positive.all() or not is_positive.any():
        return float("nan")
    return float(roc_auc_score(is_positive, scores))


def share_inside(scores: Float64[np.ndarray, " tile"], is_positive: Bool[np.ndarray, " tile"], top: int = 20) -> float:
    """Share of the ``top`` strongest tiles that are positive (all of a smaller slide); ties go to the earlier tile."""
    strongest = np.argsort(-scores, kind="stable")[:top]
    return float(is_positive[strongest].mean())


def _in_space_of_words(
    member: SixParts, tiles: Float[Tensor, "tile dim"], words: Words
) -> Float[Tensor, "tile width"] | None:
    """Unit vectors before anything that was learned; None where the encoder has no way from the tiles to its words."""
    if isinstance(member.embed, UnitEmbed):
        return UnitEmbed.forward(member.embed, tiles)
    return normalize(tiles, dim=-1) if words.is_joint else None


def _similarity(unit: Float[Tensor, "tile width"], words: Words) -> Float64[np.ndarray, "tile class"]:
    return (words.scale * (unit @ words.classes.to(unit).T)).numpy()


def _concepts(
    member: SixParts,
    vectors: Float[Tensor, "tile width"],
    unit: Float[Tensor, "tile joint"] | None,
    words: Words | None,
) -> tuple[Float[Tensor, "tile concept"], Int[Tensor, " tile"]]:
    """Softmax over the concepts of a class of tau v . c, one column a concept; and the nearest concept of each tile.

    Of the rows that were learned where they started as the words, else of the words themselves.
    """
    none = torch.full((len(vectors),), -1)
    bank, head = member.bank, member.head
    if words is None:
        return vectors.new_zeros((len(vectors), 0)), none
    if words.is_start and isinstance(bank, WordBank) and isinstance(head, TextHead):
        rows, scale, seen = bank().rows, float(head.scale()), vectors
    elif unit is not None:
        unnamed = words.membership.sum(dim=0) == 0
        rows, scale, seen = torch.cat([words.concepts, words.classes[unnamed]]).to(unit), words.scale, unit
    else:
        return vectors.new_zeros((len(vectors), 0)), none
    n_concepts = len(words.concepts)
    scores = scale * (seen @ rows.T)
    shares = torch.zeros_like(scores[:, :n_concepts])
    for members in words.membership.bool().T:
        shares[:, members] = scores[:, :n_concepts][:, members].softmax(dim=1)
    if not n_concepts:
        return shares, none
    nearest = scores.argmax(dim=1)
    return shares, nearest.where(nearest < n_concepts, none)
