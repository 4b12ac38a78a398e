"""Each member from a start without text equals its paper's formulas, written as plain float64 loops over tiles.

The loops take the weights by name from the aggregator's state and call nothing of ``mil``. Every parameter is moved at
random first, so that no formula is tested at a zero that hides it. What departs from a paper, as the first line of the
member's yaml says, departs here as well.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from bags import CLASSES, LOG_SCALE, bag, bank, facts

from mil.aggregator import Aggregator, compose
from mil.packed import pack

FOLDER = Path(__file__).parent.parent / "conf" / "aggregator"
TAU = math.exp(LOG_SCALE)
BACKGROUND = 2
Weights = dict[str, np.ndarray]
Loop = Callable[[Weights, np.ndarray], np.ndarray]


def made(name: str, init: str) -> Aggregator:
    """A member with every parameter off its start, in double precision."""
    torch.manual_seed(0)
    aggregator = compose(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()), facts("margin", 3, init))
    aggregator.fit_parts(torch.cat([bag(60, seed).tensor() for seed in range(3)]))
    with torch.no_grad():
        for parameter in aggregator.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return aggregator.double().eval()


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def gelu(values: np.ndarray) -> np.ndarray:
    return np.array([0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in values])


def unit(values: np.ndarray) -> np.ndarray:
    return values / math.sqrt(float(values @ values))


def linear(w: Weights, layer: str, x: np.ndarray) -> np.ndarray:
    return w[f"{layer}.weight"] @ x + w[f"{layer}.bias"]


def hidden(w: Weights, tiles: np.ndarray) -> np.ndarray:
    """h_i = relu(W x_i + b), x standardised by the tiles that the member was fitted to."""
    fitted = np.concatenate([bag(60, seed).features for seed in range(3)]).astype(np.float64)
    mean, deviation = fitted.mean(axis=0), np.sqrt(((fitted - fitted.mean(axis=0)) ** 2).mean(axis=0))
    return np.stack([np.maximum(linear(w, "embed.layers.0", (x - mean) / deviation), 0) for x in tiles])


def adapted(w: Weights, tiles: np.ndarray) -> np.ndarray:
    """v_i = norm(x + f(x))."""
    rows = [unit(x) for x in tiles]
    return np.stack([unit(x + linear(w, "embed.out", gelu(linear(w, "embed.adapter.0", x)))) for x in rows])


def gate(w: Weights, part: str, h: np.ndarray, *, gated: bool = True) -> np.ndarray:
    """Scores of a tile: w (tanh(V h)), with sigm(U h) between where it is gated (Ilse et al. eq. 8 and 9)."""
    content = np.tanh(linear(w, f"{part}.content", h))
    return w[f"{part}.out.weight"] @ (content * sigmoid(linear(w, f"{part}.gate", h)) if gated else content)


def head(w: Weights, z: np.ndarray, layer: str = "head.linear") -> np.ndarray:
    return w[f"{layer}.weight"] @ z + w[f"{layer}.bias"]


def abmil(w: Weights, tiles: np.ndarray, *, gated: bool = False) -> np.ndarray:
    h = hidden(w, tiles)
    a = softmax(np.array([gate(w, "assign.gate", one, gated=gated)[0] for one in h]))
    return head(w, sum((a[i] * h[i] for i in range(len(h))), np.zeros(h.shape[1])))


def gated_abmil(w: Weights, tiles: np.ndarray) -> np.ndarray:
    return abmil(w, tiles, gated=True)


def clam_mb(w: Weights, tiles: np.ndarray) -> np.ndarray:
    """s_m = W_c,m h_slide,m with h_slide,m = sum_k a_k,m h_k."""
    h = hidden(w, tiles)
    scores = np.stack([gate(w, "assign.gate", one) for one in h])
    logits: list[float] = []
    for m in range(scores.shape[1]):
        a = softmax(scores[:, m])
        slide = sum((a[i] * h[i] for i in range(len(h))), np.zeros(h.shape[1]))
        logits.append(float(w["head.linear.weight"][m] @ slide + w["head.linear.bias"][m]))
    return np.array(logits)


def dsmil(w: Weights, tiles: np.ndarray) -> np.ndarray:
    """c = (c_m + c_b) / 2, c_m the largest instance score, c_b that of sum_i softmax_i(<q_i, q_m>) h_i; one head."""
    h = hidden(w, tiles)
    queries = [
        unit(one + linear(w, "assign.query.2", np.maximum(linear(w, "assign.query.0", one), 0))) * math.sqrt(10.0)
        for one in h
    ]
    logits: list[float] = []
    for row, bias in zip(w["head.linear.weight"], w["head.linear.bias"], strict=True):
        instance = [float(row @ one) for one in h]
        critical = instance.index(max(instance))
        u = softmax(np.array([float(q @ queries[critical]) for q in queries]))
        b = sum((u[i] * h[i] for i in range(len(h))), np.zeros(h.shape[1]))
        logits.append((instance[critical] + bias + float(row @ b) + bias) / 2)
    return np.array(logits)


def dtfd(w: Weights, tiles: np.ndarray) -> np.ndarray:
    """Tier 1: attention in each of 4 pseudo-bags; tier 2: attention over what they give; one head."""
    h = hidden(w, tiles)
    order = sorted(range(len(h)), key=lambda i: float(w["assign.direction"] @ h[i]))
    distilled: list[np.ndarray] = []
    for dealt in [order[g::4] for g in range(min(4, len(h)))]:
        a = softmax(np.array([gate(w, "assign.first", h[i])[0] for i in dealt]))
        distilled.append(sum((a[j] * h[i] for j, i in enumerate(dealt)), np.zeros(h.shape[1])))
    a = softmax(np.array([gate(w, "assign.second", one)[0] for one in distilled]))
    return head(w, sum((a[g] * one for g, one in enumerate(distilled)), np.zeros(h.shape[1])))


def additive(w: Weights, tiles: np.ndarray) -> np.ndarray:
    """sum_i psi(a_i h_i), psi(x) = W x + (net(x) - net(0)), and a bias."""
    h = hidden(w, tiles)
    a = softmax(np.array([gate(w, "assign.gate", one)[0] for one in h]))

    def net(x: np.ndarray) -> np.ndarray:
        return w["head.out.weight"] @ gelu(linear(w, "head.hidden.0", x))

    total = w["head.linear.linear.bias"].copy()
    for i in range(len(h)):
        x = a[i] * h[i]
        total += w["head.linear.linear.weight"] @ x + net(x) - net(np.zeros_like(x))
    return total


def prototypes_random(w: Weights, tiles: np.ndarray) -> np.ndarray:
    """Each row's attention over the tiles, then the mean of what the rows saw."""
    return _prototypes(w, hidden(w, tiles), beta=1.0)


def prototypes_kmeans(w: Weights, tiles: np.ndarray) -> np.ndarray:
    return _prototypes(w, np.stack([unit(x) for x in tiles]), beta=TAU)


def _prototypes(w: Weights, v: np.ndarray, beta: float) -> np.ndarray:
    seen: list[np.ndarray] = []
    for row in w["bank.base"] + w["bank.delta"]:
        a = softmax(np.array([beta * float(one @ row) for one in v]))
        seen.append(sum((a[i] * v[i] for i in range(len(v))), np.zeros(v.shape[1])))
    return head(w, np.mean(seen, axis=0))


def mixture(w: Weights, tiles: np.ndarray) -> np.ndarray:
    """E-step, means moved with a prior of 10 tiles, E-step; then a linear score of [pi, pi mu, pi variance]."""
    v = np.stack([unit(x) for x in tiles])
    rows = w["bank.base"] + w["bank.delta"]
    first = [softmax(np.array([TAU * float(one @ row) for row in rows])) for one in v]
    moved = [
        unit(10 * row + sum((first[i][m] * v[i] for i in range(len(v))), np.zeros(v.shape[1])))
        for m, row in enumerate(rows)
    ]
    second = [softmax(np.array([TAU * float(one @ row) for row in moved])) for one in v]
    total = w["head.linear.linear.bias"].copy()
    for m in range(len(rows)):
        amount = math.fsum(shares[m] for shares in second)
        mu = sum((second[i][m] * v[i] for i in range(len(v))), np.zeros(v.shape[1])) / amount
        spread = sum((second[i][m] * (v[i] - mu) ** 2 for i in range(len(v))), np.zeros(v.shape[1])) / amount
        pi = amount / len(v)
        for k in range(len(total)):
            total[k] += pi * float(
                w["head.weights.share"][m, k]
                + (w["head.linear.linear.weight"][k] + w["head.weights.shift"][m, k]) @ mu
                + w["head.weights.spread"][m, k] @ spread
            )
    return total


def h2t(w: Weights, tiles: np.ndarray) -> np.ndarray:
    """The mean of each prototype's tiles, by its share, scored linearly."""
    v = np.stack([unit(x) for x in tiles])
    shares = [softmax(np.array([200.0 * float(one @ row) for row in w["bank.base"] + w["bank.delta"]])) for one in v]
    total = w["head.linear.linear.bias"].copy()
    for m in range(len(w["bank.base"])):
        weighted = sum((shares[i][m] * v[i] for i in range(len(v))), np.zeros(v.shape[1])) / len(v)
        total += (w["head.linear.linear.weight"] + w["head.weights.shift"][m]) @ weighted
    return total


def protocount(w: Weights, tiles: np.ndarray) -> np.ndarray:
    """How much of the slide each prototype has, scored linearly."""
    rows = w["bank.base"] + w["bank.delta"]
    shares = [softmax(np.array([20.0 * float(unit(x) @ row) for row in rows])) for x in tiles]
    return w["head.weights.share"].T @ np.mean(shares, axis=0)


def transport(w: Weights, tiles: np.ndarray) -> np.ndarray:
    """Sinkhorn's plan between tiles and words, both of uniform mass; a class hears the plan's columns of its words."""
    v = adapted(w, tiles)
    rows = w["bank.base"] + w["bank.delta"]
    similarity = np.stack([TAU * rows @ one + gate(w, "assign.gate", one) for one in v])
    kernel = np.exp(similarity - similarity.max())
    by_tile, by_row = np.ones(len(v)), np.ones(len(rows))
    for _ in range(20):
        by_row = np.array([1 / len(rows) / float(kernel[:, m] @ by_tile) for m in range(len(rows))])
        by_tile = np.array([1 / len(v) / float(kernel[i] @ by_row) for i in range(len(v))])
    plan = by_tile[:, None] * kernel * by_row[None, :]
    words = np.stack([bank().class_vector(name) for name in CLASSES])
    logits = np.zeros(len(words))
    for k in range(len(words)):
        mass = sum((plan[:, m] for m in range(len(rows)) if w["bank.membership"][m, k] == 1), np.zeros(len(v)))
        z = sum((mass[i] / mass.sum() * v[i] for i in range(len(v))), np.zeros(v.shape[1]))
        weight = words[k] - words[BACKGROUND] + w["head.delta"][k]
        logits[k] = math.exp(LOG_SCALE + float(w["head.delta_log_scale"])) * float(weight @ z) + w["head.bias"][k]
    logits[BACKGROUND] = 0
    return logits


CASES: list[tuple[str, str, Loop]] = [
    ("abmil", "random", abmil),
    ("gated_abmil", "random", gated_abmil),
    ("clam_sb", "random", gated_abmil),
    ("clam_mb", "random", clam_mb),
    ("dsmil", "random", dsmil),
    ("dtfd", "random", dtfd),
    ("additive", "random", additive),
    ("prototypes", "random", prototypes_random),
    ("prototypes", "kmeans", prototypes_kmeans),
    ("mixture", "kmeans", mixture),
    ("h2t", "kmeans", h2t),
    ("protocount", "kmeans", protocount),
    ("transport", "text", transport),
]


@pytest.mark.parametrize("n_tiles", [1, 3, 25])
@pytest.mark.parametrize(("name", "init", "loop"), [pytest.param(*case, id=f"{case[0]}-{case[1]}") for case in CASES])
def test_forward_pass_equals_the_formulas_of_the_paper(name: str, init: str, loop: Loop, n_tiles: int):
    aggregator = made(name, init)
    tiles = bag(n_tiles, seed=n_tiles).tensor(torch.float64)
    with torch.inference_mode():
        found = aggregator(tiles, pack([n_tiles])).logits[0].numpy()
    weights = {key: value.numpy() for key, value in aggregator.state_dict().items()}
    np.testing.assert_allclose(found, loop(weights, tiles.numpy()), atol=1e-5, rtol=0)
