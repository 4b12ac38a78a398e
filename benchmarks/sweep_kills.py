"""A sweep that is killed ten times and ends as if nothing had happened: 3 aggregators, 2 prompt sets, 5 folds, 2 seeds.

    python -P benchmarks/sweep_kills.py [--out sweep_kills_out] [--kills 10] [--epochs 30]
    python tests/slurm_node.py /tmp/slurm python -P benchmarks/sweep_kills.py --slurm

On the drawn cohort of the demo. First 60 cells undisturbed; then the same into another folder by two sweeps at once,
each of which is killed (SIGKILL of the sweep or of one of its workers) and started again, or with ``--slurm`` by an
array of tasks that are killed, requeued and told that their time is up, and submitted again until nothing is missing.
Prints one line a kill, and at the end whether each cell was computed once and every file of the results is equal, byte
for byte.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import yaml

from feature_extraction.configuration import conf_folder
from feature_extraction.synthetic.cohort import make_cohort
from mil.cli import main as promptmil

COMPARED = ("predictions.csv", "metrics.json", "log.csv", "model.safetensors", "cell.json")
TASKS = 4
HOLD_LESS = ["scontrol", "update", "StartTime=now+2"]
SHOW = ["squeue", "-h", "-r", "-o", "%i %T"]
BEGINS = ["squeue", "-h", "-r", "-t", "PENDING", "-o", "%i %S"]
FAULTS = {
    "killed": ["scancel", "--full", "--signal=KILL"],
    "told that its time is up": ["scancel", "--batch", "--signal=USR1"],
    "requeued": ["scontrol", "requeue"],
}


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("sweep_kills_out"))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slurm", action="store_true")
    options = parser.parse_args()
    out, draw = options.out.absolute(), random.Random(options.seed)  # noqa: S311 - moments of kills
    words = [*study(out), f"trainer.max_epochs={options.epochs}", "trainer.accelerator=cpu", "checkpoint_s=0"]
    begin = time.monotonic()
    run(["train", "-m", *words, f"out={out / 'calm'}"])
    calm_s = time.monotonic() - begin
    n_cells = len(list((out / "calm").glob("*/done.json")))
    print(f"undisturbed: {n_cells} cells in {calm_s:.0f} s", flush=True)
    watch = Watch(out / ("slurm" if options.slurm else "killed"))
    words += [f"out={watch.out}"]
    begin = time.monotonic()
    waits = (0.02 * calm_s, 1.5 * calm_s / options.kills)
    (through_slurm if options.slurm else two_sweeps)(words, watch, options.kills, waits, draw)
    print(f"disturbed: {len(watch.seen)} cells in {time.monotonic() - begin:.0f} s", flush=True)
    run(["sweep", "status", *words])
    trained = sum(path.read_text().count(": trained; ") for path in watch.logs())
    print(
        f"cells: {n_cells} asked for, {len(watch.seen)} done, {trained} said to be trained, {watch.again} sealed twice"
    )
    print(f"files that differ from the undisturbed sweep: {differences(out / 'calm', watch.out) or 'none'}")


def run(words: list[str]) -> None:
    """Run a command, or stop."""
    code = promptmil(words)
    if code:
        raise SystemExit(f"promptmil {' '.join(words)} ended with {code}")


def study(out: Path) -> list[str]:
    """The cohort, its features, two prompt sets and a split; returns the words of the sweep."""
    cohort = make_cohort(out / "cohort", workers=2)
    run(["extract", f"slides={cohort.slides}", f"out={out / 'features'}", "qc=false"])
    demo = yaml.safe_load((conf_folder() / "prompts" / "demo.yaml").read_text())
    classes = {name: {**one, "names": one["names"][:1]} for name, one in demo["classes"].items()}
    for one in classes.values():
        one.pop("concepts")
    plain = out / "plain.yaml"
    plain.write_text(yaml.safe_dump({"templates": demo["templates"][:1], "classes": classes, "source": "names alone"}))
    for name, prompts in (("demo", "demo"), ("plain", plain)):
        run(["prompts", f"prompts={prompts}", f"out={out / 'banks' / name}"])
    run(["split", f"labels={cohort.labels}", f"out={out / 'splits'}", "folds=5"])
    banks = f"bank={out / 'banks' / 'demo'},{out / 'banks' / 'plain'}"
    sweep = ["aggregator=prompt,zs_mil,gated_abmil", "fold=0,1,2,3,4", "seed=0,1"]
    return [f"features={out / 'features'}", banks, f"split={out / 'splits' / 'kfold.csv'}", *sweep]


@dataclass
class Watch:
    """Runs as they were when they were first done: one that is another later was computed twice."""

    out: Path
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    again: int = 0

    def look(self) -> None:
        """Look at what is done now."""
        for path in self.out.glob("*/done.json"):
            status = path.stat()
            identity = (status.st_ino, status.st_mtime_ns)
            self.again += self.seen.setdefault(path.parent.name, identity) != identity

    def logs(self) -> Iterator[Path]:
        """What the sweeps said."""
        yield from (*self.out.with_name("said").glob("*.log"), *self.out.glob("submit/*.log"))


def two_sweeps(words: list[str], watch: Watch, n_kills: int, waits: tuple[float, float], draw: random.Random) -> None:
    """Two sweeps over one folder, killed and started again until both end by themselves."""
    said = watch.out.with_name("said")
    said.mkdir(exist_ok=True)
    command = [sys.executable, "-P", "-m", "mil", "train", "-m", *words, "parallel=1"]

    def start(number: int) -> "subprocess.Popen[bytes]":
        at_once = f"parallel={number + 1}"  # the first sweep trains in its own process, the second in two workers
        with (said / f"{number}.log").open("ab") as stream:
            return subprocess.Popen([*command[:-1], at_once], stdout=stream, stderr=stream)

    sweeps = [start(0), start(1)]
    killed, next_kill = 0, time.monotonic() + draw.uniform(*waits)
    while any(sweep.poll() != 0 for sweep in sweeps):
        watch.look()
        for number, sweep in enumerate(sweeps):
            if sweep.poll() not in (None, 0):
                print(f"  sweep {number} ended with {sweep.returncode}: started again", flush=True)
                sweeps[number] = start(number)
        is_due = killed < n_kills and time.monotonic() > next_kill
        at_work = [sweep for sweep in sweeps if is_due and any(map(has_a_cell, [sweep.pid, *descendants(sweep.pid)]))]
        if at_work:
            sweep = draw.choice(at_work)
            victim = draw.choice([sweep.pid, *descendants(sweep.pid)])
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            killed += 1
            who = "itself" if victim == sweep.pid else "one of its processes"
            print(f"kill {killed}: sweep {sweeps.index(sweep)}, {who}; {len(watch.seen)} cells were done", flush=True)
            next_kill = time.monotonic() + draw.uniform(*waits)
        time.sleep(0.05)
    watch.look()


def has_a_cell(pid: int) -> bool:
    """Whether a lock file is open in a process, so that a kill falls into the work and not into the imports."""
    with suppress(OSError):
        return any(str(one.readlink()).endswith(".lock") for one in Path(f"/proc/{pid}/fd").iterdir())
    return False


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and those that they started."""
    with suppress(OSError):
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [one for child in children for one in (child, *descendants(child))]
    return []


def through_slurm(
    words: list[str], watch: Watch, n_kills: int, waits: tuple[float, float], draw: random.Random
) -> None:
    """Arrays of tasks, disturbed, and submitted again until nothing is missing."""
    happened = Counter[str]()
    submit = ["sweep", "submit", "cluster=slurm", f"cluster.tasks={TASKS}", "cluster.cpus=1", "cluster.mem=1G"]
    while promptmil(["sweep", "status", *words]):
        run([*submit, *words])
        happened["submitted"] += 1
        next_fault = time.monotonic() + draw.uniform(*waits)
        while states := tasks():
            watch.look()
            running = sorted(name for name, state in states.items() if state == "RUNNING")
            if running and sum(happened[name] for name in FAULTS) < n_kills and time.monotonic() > next_fault:
                what, name = draw.choice(list(FAULTS)), draw.choice(running)
                subprocess.run([*FAULTS[what], name], check=False)
                happened[what] += 1
                print(f"task {name} {what}; {len(watch.seen)} cells were done", flush=True)
                next_fault = time.monotonic() + draw.uniform(*waits)
            for name in held_back():
                subprocess.run([*HOLD_LESS, f"JobId={name}"], check=False)
            time.sleep(1)
        watch.look()
    print(dict(happened), flush=True)


def tasks() -> dict[str, str]:
    """State of each array task that is not over."""
    shown = subprocess.run(SHOW, check=True, capture_output=True, text=True).stdout
    return {name: state for name, _, state in (line.partition(" ") for line in shown.splitlines())}


def held_back() -> list[str]:
    """Tasks that begin later than in five seconds: Slurm holds a requeued one back for two minutes.

    One that begins sooner is left alone: told anew each time, it would never begin.
    """
    shown = subprocess.run(BEGINS, check=True, capture_output=True, text=True).stdout
    begins = dict(line.split(" ", 1) for line in shown.splitlines())
    soon = (datetime.now() + timedelta(seconds=5)).isoformat()  # noqa: DTZ005 - Slurm writes local time
    return [name for name, begin in begins.items() if begin[:1].isdigit() and begin > soon]


def differences(calm: Path, out: Path) -> list[str]:
    """Files that are missing, or not those of the calm sweep."""
    runs = [path.parent for path in calm.glob("*/done.json")]
    pairs = [(run / name, out / run.name / name) for run in runs for name in COMPARED]
    return [str(two) for one, two in pairs if not two.is_file() or one.read_bytes() != two.read_bytes()]


if __name__ == "__main__":
    main()
