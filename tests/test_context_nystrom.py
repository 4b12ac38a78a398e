"""TransMIL's context equals its formulas in plain float64 loops, starts as the identity and knows no order of tiles."""

import math

import numpy as np
import pytest
import torch
from bags import DIM, bag, facts

from feature_extraction.errors import InputError
from mil.context_nystrom import NystromContext, nystrom_attention, pseudo_inverse, square
from mil.packed import pack

HEADS, LANDMARKS = 4, 5
Weights = dict[str, np.ndarray]


def made(init: str = "random") -> NystromContext:
    """A context with every parameter off its start, in double precision; at a text start gamma stays."""
    torch.manual_seed(0)
    context = NystromContext(facts(init=init), heads=HEADS, n_landmarks=LANDMARKS, dropout=0.1).double().eval()
    with torch.no_grad():
        for name, parameter in context.named_parameters():
            if init != "text" or name != "gamma":
                parameter.add_(0.3 * torch.randn_like(parameter))
    return context


def layer_norm(w: Weights, part: str, x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / math.sqrt(x.var() + 1e-5) * w[f"{part}.weight"] + w[f"{part}.bias"]


def softmax_rows(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def inverted(a: np.ndarray) -> np.ndarray:
    """Xiong et al. 2021, eq. 11."""
    one = np.eye(len(a))
    z = a.T / (np.abs(a).sum(axis=0).max() * np.abs(a).sum(axis=1).max())
    for _ in range(6):
        z = 0.25 * z @ (13 * one - a @ z @ (15 * one - a @ z @ (7 * one - a @ z)))
    return z


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, n_landmarks: int) -> np.ndarray:
    """Xiong et al. 2021, eq. 13, of one head, with the whole N x N matrix."""
    n, root = len(q), math.sqrt(q.shape[1])
    m = min(n_landmarks, n)
    runs = [[i for i in range(n) if i * m // n == run] for run in range(m)]
    q_marks, k_marks = (np.stack([x[run].mean(axis=0) for run in runs]) for x in (q, k))
    between = inverted(softmax_rows(q_marks @ k_marks.T / root))
    return softmax_rows(q @ k_marks.T / root) @ between @ softmax_rows(q_marks @ k.T / root) @ v


def layer(w: Weights, part: str, cells: np.ndarray) -> np.ndarray:
    """x + W_o [head; head; ...], heads of norm(x)."""
    normed = np.stack([layer_norm(w, f"{part}.norm", x) for x in cells])
    q, k, v = np.split(normed @ w[f"{part}.project_in.weight"].T, 3, axis=1)
    depth = DIM // HEADS
    heads = [slice(h * depth, (h + 1) * depth) for h in range(HEADS)]
    joined = np.concatenate([attended(q[:, h], k[:, h], v[:, h], LANDMARKS) for h in heads], axis=1)
    return cells + joined @ w[f"{part}.project_out.weight"].T + w[f"{part}.project_out.bias"]


def convolved(w: Weights, cells: np.ndarray) -> np.ndarray:
    """PPEG: the cell at (row, column) sees the 7 x 7, 5 x 5 and 3 x 3 around it."""
    side = math.isqrt(len(cells))
    result = cells.copy()
    for row in range(side):
        for column in range(side):
            for place, reach in enumerate((3, 2, 1)):
                result[row * side + column] += w[f"positions.layers.{place}.bias"]
                for down in range(-reach, reach + 1):
                    for right in range(-reach, reach + 1):
                        y, x = row + down, column + right
                        if 0 <= y < side and 0 <= x < side:
                            kernel = w[f"positions.layers.{place}.weight"][:, 0, down + reach, right + reach]
                            result[row * side + column] += kernel * cells[y * side + x]
    return result


def expected(w: Weights, tiles: np.ndarray) -> np.ndarray:
    n = len(tiles)
    side = math.ceil(math.sqrt(n))
    first, second = tiles @ w["directions"][0], tiles @ w["directions"][1]
    line = sorted(range(n), key=lambda i: first[i])
    line += line[: side * side - n]
    rows = [sorted(range(r * side, (r + 1) * side), key=lambda s: second[line[s]]) for r in range(side)]
    seats = [s for row in rows for s in row]
    cells = layer(w, "first", np.stack([tiles[line[s]] for s in seats]))
    cells = layer(w, "second", convolved(w, cells))
    result = np.zeros_like(tiles)
    for cell, s in enumerate(seats):
        if s < n:
            result[line[s]] = tiles[line[s]] + w["gamma"] * (layer_norm(w, "norm", cells[cell]) - tiles[line[s]])
    return result


@pytest.mark.parametrize("n_tiles", [1, 2, 3, 5, 16, 30])
def test_forward_pass_equals_the_formulas_of_the_papers(n_tiles: int):
    context = made()
    tiles = bag(n_tiles, seed=n_tiles).tensor(torch.float64)
    with torch.inference_mode():
        found = context(tiles, pack([n_tiles])).numpy()
    weights = {key: value.numpy() for key, value in context.state_dict().items()}
    np.testing.assert_allclose(found, expected(weights, tiles.numpy()), atol=1e-5, rtol=0)


def test_order_of_the_tiles_and_other_bags_change_nothing():
    context = made()
    tiles, other = bag(23, 1).tensor(torch.float64), bag(7, 2).tensor(torch.float64)
    shuffle = torch.randperm(23, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        alone = context(tiles, pack([23]))
        packed = context(torch.cat([other, tiles[shuffle]]), pack([7, 23]))[7:]
    torch.testing.assert_close(packed, alone[shuffle])


def test_context_changes_nothing_at_a_text_start():
    vectors = torch.cat([bag(5, 1).tensor(torch.float64), bag(7, 2).tensor(torch.float64)])
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    torch.testing.assert_close(made("text")(vectors, pack([5, 7])), vectors)


def test_tiles_see_the_others_of_their_bag():
    context = made()
    tiles = bag(12, 1).tensor(torch.float64)
    changed = tiles.clone()
    changed[0] = -changed[0]
    before, after = context(tiles, pack([12])), context(changed, pack([12]))
    assert not torch.allclose(before[1:], after[1:], atol=1e-3)


@pytest.mark.parametrize("n_tiles", [1, 2, 3, 4, 10, 101])
def test_square_holds_every_tile_once_and_some_first_ones_twice(n_tiles: int):
    places = torch.from_numpy(np.random.default_rng(0).standard_normal((n_tiles, 2)))
    tile_of_cell, cell_of_tile = square(places)
    side = math.ceil(math.sqrt(n_tiles))
    assert torch.equal(tile_of_cell[cell_of_tile], torch.arange(n_tiles))
    extra = torch.bincount(tile_of_cell, minlength=n_tiles) - 1
    first = places[:, 0].argsort()[: side * side - n_tiles]
    assert set(extra.nonzero()[:, 0].tolist()) == set(first.tolist())


def test_neighbours_on_the_square_look_alike():
    places = torch.from_numpy(np.random.default_rng(0).random((400, 2)))
    grid = places[square(places)[0]].view(20, 20, 2)
    beside = (grid[:, 1:] - grid[:, :-1]).norm(dim=2).mean() + (grid[1:] - grid[:-1]).norm(dim=2).mean()
    assert beside / 2 < 0.2 * (places[:200] - places[200:]).norm(dim=1).mean()


def test_pseudo_inverse_undoes_a_matrix_that_can_be_undone():
    matrix = (4 * torch.eye(6, dtype=torch.float64) + torch.rand(6, 6, dtype=torch.float64)).softmax(dim=-1)[None, None]
    torch.testing.assert_close(
        matrix @ pseudo_inverse(matrix), torch.eye(6, dtype=torch.float64)[None, None], atol=1e-6, rtol=0
    )


def test_with_a_landmark_a_tile_it_is_full_attention():
    rows, value = torch.randn(2, 1, 2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    query = key = 3 * rows  # attention is near to the diagonal, where six steps of the pseudo-inverse are enough
    full = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(nystrom_attention(query, key, value, 6), full, atol=1e-3, rtol=0)


def test_half_precision_rounds_no_tile_into_another_cell():
    context = made().float()
    arranged: list[torch.Tensor] = []
    context.first.register_forward_pre_hook(lambda _, given: arranged.append(given[0]))
    tiles = bag(400, seed=1).tensor()
    with torch.inference_mode():
        context(tiles, pack([400]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            context(tiles, pack([400]))
    assert torch.equal(*arranged)


def test_half_precision_does_not_reach_the_pseudo_inverse():
    rows, value = torch.randn(2, 1, 2, 64, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected_ = nystrom_attention(3 * rows.float(), 3 * rows.float(), value.float(), 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nystrom_attention(3 * rows, 3 * rows, value, 64)
    assert (found - expected_).abs().mean() < 0.004 * expected_.abs().mean()  # 2^-8, one rounding; without care .011


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(InputError, match="heads=5: must divide the width of the vectors, 16"):
        NystromContext(facts(), heads=5)
