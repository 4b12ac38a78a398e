"""What training costs, against what it cannot cost less than: one step, one bag read, one epoch, several models.

    python -P benchmarks/mil.py [--rounds 15] [--peer <folder with torchmil>] [--only step,read,epoch,together]

``-P`` because this file would otherwise stand in for the package ``mil``. Interleaved rounds on the same bags in one
process, medians of its CPU-seconds, printed as ratios, because machines are noisy. ``together`` runs on the GPU where
there is one, and then takes seconds by the clock. ``--peer`` is a folder that torchmil
and what it needs were installed into (``pip install --no-deps --target``).
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mil.aggregator import Aggregator, compose
from mil.bag import Bag, Collate
from mil.fit import Fold, Labelled, Training, fit
from mil.freed_memory import keep_freed_memory
from mil.module import MilModule, Optimization
from mil.packed import Packing, pack
from mil.parts import Facts, Pooling
from mil.stacked import Member, device_of, fit_together
from mil.tasks.classification import Classification

N_TILES, DIM, WIDTH, HIDDEN, CLASSES = 10_000, 512, 512, 256, 2
N_BAGS, EPOCHS = 24, 3
N_MODELS, N_EPOCHS, N_OF_THEM = 8, 3, 8
OPTIMIZATION = Optimization(lr=1e-4, residual_decay=0.0, weight_decay=1e-4, scale_lr_factor=1.0)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--only", default="step,read,epoch,together")
    options = parser.parse_args()
    keep_freed_memory()  # as the command does
    parts = {"step": step, "read": read, "epoch": epoch, "together": together}
    for name in options.only.split(","):
        print(f"\n## {name}\n", flush=True)
        parts[name](options)


def medians(
    ways: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Median seconds of each way, one after the other in every round, the first round thrown away."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            begin = clock()
            way()
            taken[name].append(clock() - begin)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def show(found: Mapping[str, float], floor: str, unit: str = "CPU ms") -> None:
    """A table of milliseconds and ratios."""
    print(f"| way | {unit} | over {floor} |\n|---|---|---|")
    for name, seconds in found.items():
        print(f"| {name} | {1e3 * seconds:.2f} | {seconds / found[floor]:.2f} |", flush=True)


def gated(width: int = WIDTH, hidden: int = HIDDEN) -> Aggregator:
    """The member `gated_abmil` from random, as wide as CLAM's small model."""
    facts = Facts(
        dim=DIM,
        width=DIM,
        n_classes=CLASSES,
        background=None,
        text=None,
        logit_scale=0.0,
        pooling=Pooling(rule="topj", top_j=5),
        init="random",
    )
    parts = {
        "embed": {"_target_": "mil.embed.LinearEmbed", "width": width},
        "assign": {"_target_": "mil.assign.Attention", "hidden": hidden},
        "route": {"_target_": "mil.route.Shared"},
        "head": {"_target_": "mil.head.LinearHead"},
    }
    return compose(parts, facts)


def step(options: argparse.Namespace) -> None:
    """Forward and backward of one bag of 10,000 tiles."""
    torch.manual_seed(0)
    tiles, packing, label = torch.randn(N_TILES, DIM), pack([N_TILES]), torch.tensor([1])
    ways: dict[str, Callable[[], object]] = {
        "GEMM, float32": gemm_floor(tiles),
        "GEMM, bfloat16": gemm_floor(tiles.bfloat16()),
        "ours, float32": step_of(gated(), tiles, packing, label, autocast=False),
        "ours, bfloat16": step_of(gated(), tiles, packing, label, autocast=True),
    }
    if options.peer is not None:
        sys.path.append(str(options.peer))
        ways["torchmil ABMIL, float32"] = peer_step(tiles, label)
    show(medians(ways, options.rounds), "GEMM, float32")


def gemm_floor(tiles: Tensor) -> Callable[[], object]:
    """The matrix products of a step and nothing else: first layer, two gates, and what goes back through them."""
    first, gate = tiles.new_ones(DIM, WIDTH), tiles.new_ones(WIDTH, HIDDEN)
    hidden, gated_ = tiles.new_ones(N_TILES, WIDTH), tiles.new_ones(N_TILES, HIDDEN)

    def products() -> None:
        torch.mm(tiles, first)
        for _ in range(2):
            torch.mm(hidden, gate)
            torch.mm(hidden.T, gated_)
            torch.mm(gated_, gate.T)
        torch.mm(tiles.T, hidden)

    return products


def step_of(
    aggregator: Aggregator, tiles: Tensor, packing: Packing, label: Tensor, *, autocast: bool
) -> Callable[[], object]:
    """One of our steps, without the optimiser."""

    def run() -> None:
        aggregator.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = aggregator(tiles, packing).logits
        cross_entropy(logits.float(), label).backward()

    return run


def peer_step(tiles: Tensor, label: Tensor) -> Callable[[], object]:
    """The same step by torchmil."""
    from torchmil.models import ABMIL  # type: ignore[import-not-found]

    model: nn.Module = ABMIL(
        in_shape=(DIM,), att_dim=HIDDEN, gated=True, feat_ext=nn.Sequential(nn.Linear(DIM, WIDTH), nn.ReLU())
    )
    bag, target = tiles.unsqueeze(0), label.float()

    def run() -> None:
        model.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(bag), target).backward()

    return run


def read(options: argparse.Namespace) -> None:
    """One bag of 10,000 half-precision rows from the page cache to float32 in memory."""
    with tempfile.TemporaryDirectory() as name:
        rows = np.random.default_rng(0).standard_normal((N_TILES, DIM)).astype(np.float16)
        path = Path(name) / "rows.npy"
        np.save(path, rows)
        mapped = np.load(path, mmap_mode="c")
        bag = Bag(slide_id="S", features=mapped, coords_lv0=np.zeros((N_TILES, 2), np.int64), size_lv0=(1.0, 1.0))
        into = np.empty((N_TILES, DIM), np.float16)
        wide, collate = np.empty((N_TILES, DIM), np.float32), Collate()
        ways: dict[str, Callable[[], object]] = {
            "np.memmap + copy": lambda: np.copyto(into, mapped),
            "np.memmap + copy to float32 by NumPy": lambda: np.copyto(wide, mapped),
            "ours, to float32 in new memory": bag.tensor,
            "ours, to float32 as train reads a batch": lambda: collate([((bag.stored(),), 0, 0)]),
        }
        show(medians(ways, 4 * options.rounds), "np.memmap + copy")


def epoch(options: argparse.Namespace) -> None:
    """Training by the command's own code (bags mapped from files, packed, Lightning), against its steps alone."""
    for n_tiles, precision in ((10_000, "float32"), (1_000, "float32"), (1_000, "bf16")):
        with tempfile.TemporaryDirectory() as name:
            bags = mapped_bags(Path(name), n_tiles)
            labels = [row % CLASSES for row in range(N_BAGS)]
            ways = {
                "steps alone": steps_alone(bags, labels, precision),
                "train": epochs_of_fit(bags, labels, precision, n_tiles),
            }
            print(f"{N_BAGS} bags of {n_tiles:,} tiles, {precision}, one bag a step, {EPOCHS} epochs:\n")
            show(medians(ways, options.rounds // 3 + 1), "steps alone")
            print(flush=True)


def mapped_bags(folder: Path, n_tiles: int) -> list[Bag]:
    """Bags on disk, as feature files are."""
    bags: list[Bag] = []
    for row in range(N_BAGS):
        path = folder / f"{row}.npy"
        np.save(path, np.random.default_rng(row).standard_normal((n_tiles, DIM)).astype(np.float16))
        features = np.load(path, mmap_mode="c")
        coords = np.zeros((n_tiles, 2), np.int64)
        bags.append(Bag(slide_id=f"S{row}", features=features, coords_lv0=coords, size_lv0=(1.0, 1.0)))
    return bags


def steps_alone(bags: list[Bag], labels: list[int], precision: str) -> Callable[[], object]:
    """Forward, backward and optimiser of the epochs, the bags in memory and nothing else to do."""
    aggregator, task = gated(), Classification(class_weights="none")
    optimizer = MilModule(aggregator, task, OPTIMIZATION, "random").configure_optimizers()
    batches = [(bag.tensor(), pack([len(bag)]), torch.tensor([label])) for bag, label in zip(bags, labels, strict=True)]

    def run() -> None:
        for tiles, packing, label in batches * EPOCHS:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = task.loss(aggregator(tiles, packing).logits, label)
            loss.backward()
            optimizer.step()

    return run


def epochs_of_fit(bags: list[Bag], labels: list[int], precision: str, n_tiles: int) -> Callable[[], object]:
    """As `promptmil train` does it; without a validation part, which has no counterpart in the steps."""
    fold = Fold(train=Labelled(bags=bags, labels=labels), val=Labelled(bags=[], labels=[]))
    training = Training(
        max_epochs=EPOCHS, batch_size=1, max_tiles=n_tiles, accelerator="cpu", precision=precision, seed=0
    )

    def run() -> None:
        task = Classification(class_weights="none")
        fit(gated(), task, fold=fold, optimization=OPTIMIZATION, training=training, init="random")

    return run


def together(options: argparse.Namespace) -> None:
    """Eight models on the same bags: as one, and one after the other."""
    device = device_of("auto")
    clock, unit = (time.process_time, "CPU ms") if device.type == "cpu" else (time.perf_counter, "ms")
    for n_tiles in (200, 1_000):
        with tempfile.TemporaryDirectory() as name:
            bags = mapped_bags(Path(name), n_tiles)[:N_OF_THEM]
            labels = [row % CLASSES for row in range(N_OF_THEM)]
            ways = {
                "as one": eight_as_one(bags, labels, n_tiles),
                "one after the other": eight_fits(bags, labels, n_tiles),
            }
            print(
                f"{N_MODELS} models, {N_OF_THEM} bags of {n_tiles:,} tiles, one a step, {N_EPOCHS} epochs, {device}:\n"
            )
            show(medians(ways, options.rounds // 3 + 1, clock), "as one", unit)
            print(flush=True)


def eight_as_one(bags: list[Bag], labels: list[int], n_tiles: int) -> Callable[[], object]:
    """As `promptmil train -m parallel=stacked` trains them."""
    fold = Fold(train=Labelled(bags=bags, labels=labels), val=Labelled(bags=[], labels=[]))

    def run() -> None:
        task = Classification(class_weights="none")
        members = [Member(aggregator=gated(), task=task, fold=fold, seed=seed) for seed in range(N_MODELS)]
        fit_together(members, optimization=OPTIMIZATION, training=training_of(n_tiles), init="random")

    return run


def eight_fits(bags: list[Bag], labels: list[int], n_tiles: int) -> Callable[[], object]:
    """As `promptmil train -m parallel=1` trains them."""
    fold = Fold(train=Labelled(bags=bags, labels=labels), val=Labelled(bags=[], labels=[]))

    def run() -> None:
        for seed in range(N_MODELS):
            task, training = Classification(class_weights="none"), replace(training_of(n_tiles), seed=seed)
            fit(gated(), task, fold=fold, optimization=OPTIMIZATION, training=training, init="random")

    return run


def training_of(n_tiles: int) -> Training:
    """Some epochs, one bag a step, on the best device."""
    return Training(
        max_epochs=N_EPOCHS, batch_size=1, max_tiles=n_tiles, accelerator="auto", precision="float32", seed=0
    )


if __name__ == "__main__":
    main()
