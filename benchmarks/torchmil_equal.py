"""The same numbers as torchmil's, with copied weights, where it computes the same formula.

    pip install --no-deps --target <peer> torchmil einops
    python -P benchmarks/torchmil_equal.py --peer <peer>

ABMIL, gated ABMIL, CLAM-SB and DSMIL as whole members of ``conf/aggregator`` from random (DSMIL is given our query
network: torchmil's queries are not unit vectors); of TransMIL the attention and the convolution of positions, because
torchmil's has a class token and its square follows the rows. Prints a markdown table of the largest differences.
"""

import argparse
import importlib
import sys
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn
from torch.nn.functional import normalize

from mil.aggregator import Aggregator, compose
from mil.assign import Attention
from mil.assign_tiers import CriticalTile
from mil.context_nystrom import SquareConvolution, nystrom_attention
from mil.head import LinearHead
from mil.packed import pack
from mil.parts import Facts, Pooling

CONF = Path(__file__).parent.parent / "conf" / "aggregator"
DIM, N_TILES, N_CLASSES = 32, 50, 2
DEPTH, LANDMARKS, N_CELLS = 16, 8, 64


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True)
    sys.path.append(str(parser.parse_args().peer))
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    found = {
        "abmil": abmil("abmil", "abmil.ABMIL", gated=False),
        "gated_abmil": abmil("gated_abmil", "abmil.ABMIL", gated=True),
        "clam_sb": abmil("clam_sb", "clam.CLAM_SB", gated=True),
        "dsmil": dsmil(),
        "transmil: attention, one head": attention(),
        "transmil: convolution of positions": positions(),
    }
    print("| member | largest difference of a logit or value |\n|---|---|")
    for name, difference in found.items():
        print(f"| {name} | {difference:.1e} |")


def peer(name: str, **options: object) -> nn.Module:
    """A torchmil module in single precision and evaluation mode."""
    module, _, kind = name.rpartition(".")
    return getattr(importlib.import_module(f"torchmil.{module}"), kind)(**options).eval()


def member(name: str) -> Aggregator:
    """A member from random, standardised by other tiles."""
    facts = Facts(
        dim=DIM,
        width=DIM,
        n_classes=N_CLASSES,
        background=None,
        text=None,
        logit_scale=0.0,
        pooling=Pooling(rule="topj", top_j=1),
        init="random",
    )
    aggregator = compose(yaml.safe_load((CONF / f"{name}.yaml").read_text()), facts)
    aggregator.fit_parts(3 * torch.randn(100, DIM) + 1)
    return aggregator.eval()


def copy(target: nn.Module, name: str, weight: Tensor, bias: Tensor | None = None) -> None:
    """Put a layer's weights in place."""
    layer = next(one for one in target.get_submodule(name).modules() if isinstance(one, nn.Linear | nn.Conv2d))
    layer.get_parameter("weight").copy_(weight)
    if bias is not None:
        layer.get_parameter("bias").copy_(bias)


def linear(aggregator: Aggregator) -> nn.Linear:
    """The layer of a classic head."""
    if not isinstance(aggregator.head, LinearHead):
        raise TypeError(type(aggregator.head).__name__)
    return aggregator.head.linear


def abmil(name: str, kind: str, *, gated: bool) -> float:
    """Attention pooling; torchmil has one output, so each class in turn."""
    ours = member(name)
    if not isinstance(ours.assign, Attention):
        raise TypeError(type(ours.assign).__name__)
    head, gate, tiles = linear(ours), ours.assign.gate, torch.randn(N_TILES, DIM)
    expected: list[Tensor] = []
    for k in range(N_CLASSES):
        theirs = peer(f"models.{kind}", in_shape=(DIM,), att_dim=64, gated=gated, feat_ext=ours.embed)
        copy(theirs, "pool.fc1", gate.content.weight, gate.content.bias)
        copy(theirs, "pool.fc2", gate.out.weight)
        if gate.gate is not None:
            copy(theirs, "pool.fc_gated", gate.gate.weight, gate.gate.bias)
        copy(theirs, "classifier", head.weight[k : k + 1], head.bias[k : k + 1])
        expected.append(theirs(tiles.unsqueeze(0))[0])
    return float((ours(tiles, pack([N_TILES])).logits[0] - torch.stack(expected)).abs().max())


class Queries(nn.Module):
    """Unit queries, so scaled that torchmil's ``q . q / sqrt(depth)`` is beta times their cosine."""

    def __init__(self, assign: CriticalTile, width: int) -> None:
        super().__init__()
        self.assign = assign
        self.factor = (assign.beta * width**0.5) ** 0.5

    def forward(self, vectors: Tensor) -> Tensor:
        """Query of each tile."""
        return self.factor * normalize(vectors + self.assign.query(vectors), dim=-1)


def dsmil() -> float:
    """The mean of both streams, each class in turn."""
    ours = member("dsmil")
    if not isinstance(ours.assign, CriticalTile):
        raise TypeError(type(ours.assign).__name__)
    head, tiles = linear(ours), torch.randn(N_TILES, DIM)
    expected: list[Tensor] = []
    for k in range(N_CLASSES):
        theirs = peer("models.dsmil.DSMIL", in_shape=(DIM,), feat_ext=ours.embed)
        theirs.add_module("q_nn", Queries(ours.assign, head.in_features))
        for classifier in ("inst_classifier", "bag_classifier"):
            copy(theirs, classifier, head.weight[k : k + 1], head.bias[k : k + 1])
        bag_logit, instance_logits = theirs(tiles.unsqueeze(0), return_inst_pred=True)
        expected.append((bag_logit[0] + instance_logits.max()) / 2)
    return float((ours(tiles, pack([N_TILES])).logits[0] - torch.stack(expected)).abs().max())


def attention() -> float:
    """Nystrom attention, cells a multiple of the landmarks (torchmil puts zero rows before them otherwise)."""
    theirs = peer(
        "nn.NystromAttention", in_dim=DEPTH, att_dim=DEPTH, n_heads=1, n_landmarks=LANDMARKS, pinv_iterations=6
    )
    cells = torch.randn(N_CELLS, DEPTH)
    query, key, value = (cells @ theirs.get_parameter("qkv_nn.weight").T)[None, None].chunk(3, dim=-1)
    return float((nystrom_attention(query, key, value, LANDMARKS)[0] - theirs(cells.unsqueeze(0))).abs().max())


def positions() -> float:
    """PPEG, which leaves a class token alone."""
    theirs, ours = peer("models.transmil.PPEG", dim=DEPTH), SquareConvolution(DEPTH)
    for name, layer in zip(("proj", "proj1", "proj2"), ours.layers, strict=True):
        copy(theirs, name, layer.get_parameter("weight"), layer.get_parameter("bias"))
    cells = torch.randn(N_CELLS, DEPTH)
    side = int(N_CELLS**0.5)
    expected = theirs(torch.cat([torch.zeros(1, DEPTH), cells]).unsqueeze(0), side, side)[0, 1:]
    return float((ours(cells) - expected).abs().max())


if __name__ == "__main__":
    main()
