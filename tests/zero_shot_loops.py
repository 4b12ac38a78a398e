"""What each member's attention is before anything is learned, from the words, in double precision and plain loops.

Written from the formulas, beside the code that it is held against: nothing of ``mil`` is called. A new part of an
aggregator that starts from text needs its loop here; a new yaml of parts that are known needs nothing.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Start:
    """One bag and the words.

    Attributes:
        unit: Tiles at unit length, (tile, dim).
        scores: tau v . t, less the background's under the margin rule, (tile, class).
        classes: Class words, (class, dim).
        rows: What speaks for the classes: concepts, names of classes without, (row, dim).
        membership: 1 where a row speaks for a class, (row, class).
        tau: The encoder's factor.
        rule: Of the pooling.
        top_j: Of the pooling.
        weights: State of the aggregator, by name: for what starts at random.
    """

    unit: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    rows: np.ndarray
    membership: np.ndarray
    tau: float
    rule: str
    top_j: int
    weights: Mapping[str, np.ndarray]


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def top(scores: np.ndarray, count: int) -> np.ndarray:
    """1 / count for the largest, ties by order."""
    chosen = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]
    return np.array([1 / len(chosen) if i in chosen else 0.0 for i in range(len(scores))])


def uniform(start: Start, options: Mapping[str, object]) -> np.ndarray:
    return np.full((len(start.unit), 1), 1 / len(start.unit))


def attention(start: Start, options: Mapping[str, object]) -> np.ndarray:
    if options.get("start") != "random":
        n_queries = len(start.classes) if options.get("per_class") else 1
        return np.repeat(uniform(start, options), n_queries, axis=1)
    w = {name.removeprefix("assign.gate."): value for name, value in start.weights.items() if "assign.gate" in name}
    columns: list[np.ndarray] = []
    for query in w["out.weight"]:
        raw: list[float] = []
        for v in start.unit:
            content = np.tanh(w["content.weight"] @ v + w["content.bias"])
            gate = 1 / (1 + np.exp(-(w["gate.weight"] @ v + w["gate.bias"])))
            raw.append(float(query @ (content * gate)))
        columns.append(softmax(np.array(raw)))
    return np.stack(columns, axis=1)


def by_rule(start: Start, options: Mapping[str, object]) -> np.ndarray:
    n = len(start.unit)
    count = {"mean": n, "max": 1}.get(start.rule, start.top_j)
    return np.stack([top(column, count) for column in start.scores.T], axis=1)


def loudest(start: Start, options: Mapping[str, object]) -> np.ndarray:
    return np.stack([top(column, 1) for column in start.scores.T], axis=1)


def critical(start: Start, options: Mapping[str, object]) -> np.ndarray:
    mix, beta = float(str(options.get("mix", 0.5))), float(str(options.get("beta", 10.0)))
    columns: list[np.ndarray] = []
    for column in start.scores.T:
        alone = top(column, 1)
        alike = np.array([beta * float(v @ start.unit[int(alone.argmax())]) for v in start.unit])
        columns.append(mix * softmax(alike) + (1 - mix) * alone)
    return np.stack(columns, axis=1)


def two_tier(start: Start, options: Mapping[str, object]) -> np.ndarray:
    n = len(start.unit)
    n_groups = min(n, int(str(options.get("n_groups", 4))))
    order = np.argsort(start.unit @ start.weights["assign.direction"], kind="stable")
    group = {int(tile): place % n_groups for place, tile in enumerate(order)}
    sizes = [sum(one == g for one in group.values()) for g in range(n_groups)]
    return np.array([[1 / n_groups / sizes[group[i]]] for i in range(n)])


def tiles_of_rows(start: Start, options: Mapping[str, object]) -> np.ndarray:
    return np.stack([softmax(start.tau * start.unit @ row) for row in start.rows], axis=1)


def rows_of_tiles(start: Start, options: Mapping[str, object]) -> np.ndarray:
    n, steps = len(start.unit), int(str(options.get("em_steps", 0)))
    prior = float(str(options.get("prior", 10.0)))
    rows = start.rows
    for _ in range(steps):
        shares = np.stack([softmax(start.tau * rows @ v) for v in start.unit])
        moved = prior * start.rows + shares.T @ start.unit
        rows = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return np.stack([softmax(start.tau * rows @ v) / n for v in start.unit])


def transport(start: Start, options: Mapping[str, object]) -> np.ndarray:
    n, m = len(start.unit), len(start.rows)
    cost = start.tau * start.unit @ start.rows.T
    kernel = np.exp(cost - cost.max())
    u, v = np.ones(n), np.ones(m)
    for _ in range(int(str(options.get("n_iterations", 20)))):
        v = (1 / m) / (kernel.T @ u)
        u = (1 / n) / (kernel @ v)
    return u[:, None] * kernel * v[None, :]


def to_one(attention_: np.ndarray, options: Mapping[str, object]) -> np.ndarray:
    return attention_ / attention_.sum(axis=0) if options.get("normalise", True) else attention_


def shared(start: Start, weights: np.ndarray, options: Mapping[str, object]) -> np.ndarray:
    return np.repeat(weights, len(start.classes), axis=1)


def per_class(start: Start, weights: np.ndarray, options: Mapping[str, object]) -> np.ndarray:
    return weights


def average(start: Start, weights: np.ndarray, options: Mapping[str, object]) -> np.ndarray:
    total = weights.sum(axis=1, keepdims=True)
    return np.repeat(total / total.sum(), len(start.classes), axis=1)


def members(start: Start, weights: np.ndarray, options: Mapping[str, object]) -> np.ndarray:
    return to_one(weights @ start.membership, options)


def affinity(start: Start, weights: np.ndarray, options: Mapping[str, object]) -> np.ndarray:
    routing = np.stack([softmax(start.tau * start.classes @ row) for row in start.rows])
    return to_one(weights @ routing, options)


ASSIGN: dict[str, Callable[[Start, Mapping[str, object]], np.ndarray]] = {
    "mil.assign.Uniform": uniform,
    "mil.assign.Attention": attention,
    "mil.assign.TopJ": by_rule,
    "mil.assign.StraightThroughTopJ": by_rule,
    "mil.assign.TopEvidence": loudest,
    "mil.assign_tiers.CriticalTile": critical,
    "mil.assign_tiers.TwoTier": two_tier,
    "mil.assign_prototypes.TilesOfPrototype": tiles_of_rows,
    "mil.assign_prototypes.PrototypesOfTile": rows_of_tiles,
    "mil.assign_prototypes.Transport": transport,
}
ROUTE: dict[str, Callable[[Start, np.ndarray, Mapping[str, object]], np.ndarray]] = {
    "mil.route.Shared": shared,
    "mil.route.PerClass": per_class,
    "mil.route.Average": average,
    "mil.route.Members": members,
    "mil.route.Affinity": affinity,
}


def logits(start: Start, assign: Mapping[str, object], route: Mapping[str, object]) -> np.ndarray:
    """sum_i a0_ik s_ik of one bag."""
    weights = ASSIGN[str(assign["_target_"])](start, assign)
    a0 = ROUTE[str(route["_target_"])](start, weights, route)
    assert a0.shape == start.scores.shape
    return np.array([math.fsum(a0[:, k] * start.scores[:, k]) for k in range(a0.shape[1])])
