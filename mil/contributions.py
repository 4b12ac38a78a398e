"""What each tile of a slide said: contributions that sum to the logit, and evidence for every tile.

Everything is computed again in double precision from the stored features and weights, along two ways that must agree:
summing the tiles' contributions, and scoring the pooled vector.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64
from sklearn.metrics import roc_auc_score

from feature_extraction.errors import DamagedFileError
from mil.aggregator import Aggregator, SixParts
from mil.bag import Bag, pack_tiles
from mil.bank import WordBank
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

    @property
    def is_sparse(self) -> bool:
        """Whether some tiles count nothing, so that a map needs the evidence."""
        return bool((self.attention == 0).any())

    def map_layer(self) -> Float64[np.ndarray, "tile class"]:
        """What a map shows: evidence of a sparse pool, contributions of a dense one."""
        return self.evidence if self.is_sparse else self.contribution


@torch.inference_mode()
def explain(aggregator: Aggregator, task: Task, bag: Bag) -> list[Explanation]:
    """Compute the layers of one slide at each of its magnifications, the finest first.

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
    return [
        Explanation(
            bag=one,
            contribution=contribution.numpy(),
            evidence=evidence.numpy(),
            attention=attention.numpy(),
            concept_share=_concept_shares(member, vectors).numpy(),
            logits=logits.numpy(),
            bias=output.bias.numpy(),
            probabilities=task.probabilities(logits.unsqueeze(0))[0].numpy(),
            elsewhere=(output.contribution.sum(dim=0) - contribution.sum(dim=0)).numpy(),
        )
        for one, member, contribution, evidence, attention, vectors in zip(
            bag.scales(),
            exact.of_scales(),
            output.contribution.split(sizes),
            output.evidence.split(sizes),
            output.attention.split(sizes),
            output.vectors.split(sizes),
            strict=True,
        )
    ]


def auc_against(scores: Float64[np.ndarray, " tile"], is_positive: Bool[np.ndarray, " tile"]) -> float:
    """Area under the ROC curve of tile scores, nan when one of the two groups is empty."""
    if is_positive.all() or not is_positive.any():
        return float("nan")
    return float(roc_auc_score(is_positive, scores))


def _concept_shares(member: SixParts, vectors: torch.Tensor) -> torch.Tensor:
    """Softmax over the concepts of a class of tau v . c, one column a concept."""
    bank, head = member.bank, member.head
    if not isinstance(bank, WordBank) or not isinstance(head, TextHead):
        return vectors.new_zeros((len(vectors), 0))
    concepts = bank().concepts
    if concepts is None or len(concepts) == 0:
        return vectors.new_zeros((len(vectors), 0))
    scores = head.scale() * (vectors @ concepts.T)
    shares = torch.zeros_like(scores)
    for members in bank.membership.bool().T:
        shares[:, members] = scores[:, members].softmax(dim=1)
    return shares
