"""On a real Ray cluster of two nodes on this machine: actors read and embed, whatever is stopped or killed."""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import bounded
import numpy as np
import pytest
from pyramids import tissue_pixels, write_slide

from feature_extraction.claims import claim
from feature_extraction.commands.ray_run import best_outcomes, joint_counters
from feature_extraction.commands.submit_ray import read_cluster
from feature_extraction.counters import Counters
from feature_extraction.errors import InputError
from feature_extraction.status import Outcome
from feature_extraction.store import FeatureFile
from mil.cli import main

N_SLIDES = 7
# Batches of one slide each, so that the arithmetic of a tile does not depend on its neighbours.
OPTIONS = ["tiling.step_px=75", "batch_size=32", "mix_slides=false", "device=cpu"]
needs_ray = pytest.mark.skipif(
    sys.platform != "linux" or not (Path(sys.executable).parent / "ray").exists(),
    reason="Ray is not installed in this environment (pip install 'promptmil[ray]'), or two nodes need two addresses",
)


def wait_for(is_true: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.05)


@dataclass
class Node:
    """One node: a session of processes that lives and dies by itself."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def processes(self) -> dict[int, str]:
        """The command line of each process of the session that is no zombie."""
        found: dict[int, str] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if os.getsid(int(folder.name)) == self.process.pid and "\nState:\tZ" not in (
                    (folder / "status").read_text()
                ):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # gone
        return found

    def actor(self, name: str) -> int | None:
        """The process of an actor on this node, None when it has none."""
        return next((process for process, words in self.processes().items() if words.startswith(f"ray::{name}")), None)

    def kill(self) -> None:
        """As when the power fails."""
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()


@dataclass
class Cluster:
    address: str
    environment: dict[str, str]
    head: Node
    second: Node
    commands: list["subprocess.Popen[bytes]"]

    def submit(self, out: Path, slides: Path, log: Path, **options: object) -> "subprocess.Popen[bytes]":
        """The command, as a user on the head would run it."""
        options = {"address": self.address, "encoder_cpus": 0, "encoder_gpus": 1, **options}
        words = ["cluster=ray", *(f"cluster.{key}={value}" for key, value in options.items())]
        command = [sys.executable, "-m", "mil", "extract", "submit", f"slides={slides}", f"out={out}", *words, *OPTIONS]
        with log.open("ab") as stream:
            self.commands.append(subprocess.Popen(command, stdout=stream, stderr=stream, env=self.environment))
        return self.commands[-1]


def start_node(folder: Path, name: str, environment: dict[str, str], *options: str) -> Node:
    log = folder / f"{name}.log"
    command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus=1", *options]
    command += ["--object-store-memory=100000000", "--disable-usage-stats"]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, start_new_session=True)
    return Node(process, log)


def is_up(node: Node) -> bool:
    assert node.process.poll() is None, node.log.read_text()
    return "Ray runtime started" in node.log.read_text()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # a short path: Ray's sockets lie in it
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1",  # containers have a small /dev/shm
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_initial_delay_ms": "2000",
        "OMP_NUM_THREADS": "1",
    }
    nodes: list[Node] = []
    commands: list[subprocess.Popen[bytes]] = []
    try:
        # It says that it has a GPU: so the encoder is there, and a core of each node is left for its two readers.
        options = ["--head", "--num-gpus=1", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"]
        nodes.append(start_node(folder, "head", environment, *options))
        wait_for(lambda: is_up(nodes[0]))
        address = re.findall(rf"'([^']+:{port})'", nodes[0].log.read_text())[0]
        nodes.append(start_node(folder, "second", environment, f"--address={address}", "--node-ip-address=127.0.0.2"))
        wait_for(lambda: is_up(nodes[1]))
        yield Cluster(address, environment, nodes[0], nodes[1], commands)
    finally:
        for command in commands:
            command.kill()
            command.wait()
        for node in reversed(nodes):
            node.kill()
        wait_for(lambda: not any(node.processes() for node in nodes), 20)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for index in range(N_SLIDES):
        write_slide(folder / f"S{index}.svs", tissue_pixels(2600, 2600, seed=index))
    return folder


def feature_files(out: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(out.glob("*/*.h5"))}


def rows_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    file = FeatureFile(path)
    return np.array(file.features()), file.coords_lv0


@needs_ray
@pytest.mark.pipeline
@pytest.mark.xdist_group("ray")
def test_robbed_of_a_node_and_of_its_encoder_and_stopped_it_leaves_what_one_machine_would_have_made(
    cluster: Cluster, slides: Path, tmp_path: Path
):
    here, there, log = tmp_path / "here", tmp_path / "there", tmp_path / "log"
    assert main(["extract", f"slides={slides}", f"out={here}", "threads=1", *OPTIONS]) == 0
    expected = {name: rows_of(path) for name, path in feature_files(here).items()}
    assert len(expected) == N_SLIDES
    locks = there / next(iter(feature_files(here).values())).parent.name / ".work" / "locks"
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second, contextlib.ExitStack() as third:
        # As another worker would: the actors wait for slides that are ours, which makes the order of things certain.
        for held, numbers in ((first, (2, 3, 4)), (second, (5,)), (third, (6,))):
            assert all(held.enter_context(claim(locks / f"S{number}.lock")) for number in numbers)

        command = cluster.submit(there, slides, log)
        wait_for(lambda: "2 of 2 readers" in log.read_text() or command.poll() is not None)
        nodes = re.findall(r"2 of 2 readers at work on (\S+), (\S+)", log.read_text())
        assert len(set(*nodes)) == 2, log.read_text()
        first.close()
        wait_for(lambda: len(feature_files(there)) > 2 or command.poll() is not None)
        cluster.second.kill()
        wait_for(lambda: "1 of 2 readers" in log.read_text().rpartition("2 of 2 readers")[2])
        wait_for(lambda: len(feature_files(there)) == 5)

        assert "an encoder actor was lost" not in log.read_text()
        os.kill(cluster.head.actor("EncoderHost"), signal.SIGKILL)
        wait_for(lambda: "an encoder actor was lost" in log.read_text())
        second.close()
        wait_for(lambda: "S5" in feature_files(there))

        command.send_signal(signal.SIGTERM)
        assert command.wait(120) == 4, log.read_text()
        assert feature_files(there).keys() == expected.keys() - {"S6"}
        summary = json.loads((there / "summary.json").read_text())
        assert (summary["requested"], summary["done"], summary["not_started"]) == (N_SLIDES, N_SLIDES - 1, 1)
        assert not (there / ".workers").exists()
        wait_for(lambda: not any("Host" in words for words in cluster.head.processes().values()))

    assert main(["extract", f"slides={slides}", f"out={there}", "threads=1", *OPTIONS]) == 0
    assert json.loads((there / "summary.json").read_text())["new"] == 1
    made = {name: rows_of(path) for name, path in feature_files(there).items()}
    assert made.keys() == expected.keys()
    for name, (embeddings, coords) in expected.items():
        np.testing.assert_array_equal(made[name][1], coords)
        np.testing.assert_array_equal(made[name][0], embeddings)


@needs_ray
@pytest.mark.pipeline
def test_without_a_cluster_it_says_so_at_once_and_starts_nothing(slides: Path, tmp_path: Path):
    words = ["cluster=ray", "cluster.address=127.0.0.1:1", f"slides={slides}", f"out={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "mil", "extract", "submit", *words]
    done = bounded.run(command, seconds=120)
    assert done.returncode == 2
    assert "no Ray cluster answers there" in done.stderr
    assert "Connection refused" in done.stderr
    assert not list((tmp_path / "out").glob("[!.]*"))


@pytest.mark.parametrize(
    ("key", "value"), [("readers", 0), ("encoders", "two"), ("reader_cpus", -1), ("encoder_gpus", True)]
)
def test_a_number_of_the_cluster_that_makes_no_sense_is_named(key: str, value: object):
    content = {"name": "ray", "address": "auto", "encoders": 1, "encoder_cpus": 1, "encoder_gpus": 0, "readers": 2}
    with pytest.raises(InputError, match=rf"cluster\.{key}={value}"):
        read_cluster({**content, "reader_cpus": 0.5, key: value})


def test_what_any_actor_achieved_counts_once_and_as_new_where_it_was_made():
    made = Outcome(slide_id="a", status="done", is_new=True, features="f")
    found = Outcome(slide_id="a", status="done", features="f")
    failed = Outcome(slide_id="a", status="failed", features="f")
    stopped = Outcome(slide_id="b", status="stopped", features="f")
    other_folder = Outcome(slide_id="a", status="stopped", features="g")
    for outcomes in ([failed, found, stopped, made, other_folder], [made, other_folder, found, failed, stopped]):
        best = best_outcomes(outcomes)
        assert sorted(best, key=lambda one: (one.features, one.slide_id)) == [made, stopped, other_folder]


def test_two_equal_actors_are_one_of_twice_the_speed_and_the_same_shares():
    one = Counters(n_readers=2).as_record() | {"wall_s": 10.0, "n_tiles": 500, "embedding_s": 8.0, "reading_s": 5.0}
    one |= {"waiting_tiles_s": 1.0, "device_share": 0.8, "readers_share": 0.25, "cores_share": 0.5, "tiles_per_s": 50.0}
    joint = joint_counters([one, one])
    assert (joint["wall_s"], joint["n_tiles"], joint["tiles_per_s"], joint["n_readers"]) == (10, 1000, 100, 4)
    for share in ("device_share", "readers_share", "cores_share", "waiting_tiles_s"):
        assert joint[share] == pytest.approx(one[share]), share
