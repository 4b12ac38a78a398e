"""`promptmil extract submit cluster=ray`: the extraction by actors of a Ray cluster that is there already."""

import contextlib
import importlib.metadata
import importlib.util
import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from feature_extraction.commands import settings
from feature_extraction.commands.extract import PARTLY_FAILED, STOPPED, progress_bar, slides_of, turned
from feature_extraction.commands.extract_report import error_line, report, summarise
from feature_extraction.commands.extract_tables import write_outcomes
from feature_extraction.commands.ray_encoder import EncoderJob
from feature_extraction.commands.ray_run import STOP_S, EncoderDemand, EncoderRun, best_outcomes, joint_counters
from feature_extraction.commands.stop import StopOnSignal
from feature_extraction.counters import progress_line, remaining_tiles
from feature_extraction.errors import InputError
from feature_extraction.files import publish_text
from feature_extraction.ray_nodes import Place, first_line
from feature_extraction.ray_readers import ReaderDemand
from feature_extraction.segment import require_one_slide
from feature_extraction.slides import SlideTable
from feature_extraction.status import Outcome

POLL_SECONDS = 0.5
ROOM_SECONDS = 30.0
CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RayCluster:
    """What ``conf/cluster/ray.yaml`` says.

    Attributes:
        address: Of the cluster's head, or ``auto``.
        encoders: Encoder actors.
        encoder: What each of them asks of the cluster.
        readers: Reader actors for each of them.
    """

    address: str
    encoders: int
    encoder: EncoderDemand
    readers: ReaderDemand


def read_cluster(content: Mapping[str, object]) -> RayCluster:
    """Check what ``conf/cluster/ray.yaml`` says, as plain data.

    Raises:
        InputError: A number out of range; the message names the key.
    """
    cpus = _amount(content, "reader_cpus")
    return RayCluster(
        address=str(content["address"]),
        encoders=settings.at_least_one("cluster.encoders", content["encoders"]),
        encoder=EncoderDemand(cpus=_amount(content, "encoder_cpus"), gpus=_amount(content, "encoder_gpus")),
        readers=ReaderDemand(
            n_actors=settings.at_least_one("cluster.readers", content["readers"]),
            cpus=cpus,
            n_threads=max(1, round(cpus)),
        ),
    )


def run_on_ray(config: DictConfig) -> int:
    """Extract every slide that is not done yet on the cluster; returns the exit code."""
    started = time.monotonic()
    cluster = read_cluster(settings.plain(config.cluster))
    console, out = Console(stderr=True), Path(config.out)
    table, redaction = slides_of(config, out)
    with _marker(out) as marker:
        job = _job(config, cluster, table, redaction, marker)
        n_asked = job.n_asked + len(job.sources) * len(table.failures)
        with _connected(cluster.address), StopOnSignal() as stop:
            runs = _watch(job, cluster, console, stop)
    news = [run.news for run in runs if run.news is not None and run.news.folders]
    folders = news[0].folders if news else ()
    refused = [replace(Outcome.failed(e), features=folder.name) for folder in folders for e in table.failures]
    outcomes = [*_fates(runs), *refused]
    write_outcomes(out, folders, outcomes)
    summary = summarise(outcomes, [folder.name for folder in folders], time.monotonic() - started, n_asked)
    counters = joint_counters([one.counters for one in news]) if news else {}
    report(console, out, summary | {"counters": counters}, folders, news[0].device if news else "cpu")
    if stop.is_asked and (summary["stopped"] or summary["not_started"]):
        return STOPPED
    return PARTLY_FAILED if summary["failed"] or summary["not_started"] else 0


def _job(
    config: DictConfig, cluster: RayCluster, table: SlideTable, redact: Callable[[str, str], str], marker: Path
) -> EncoderJob:
    """What every encoder actor is to do, refused here when it can be known here that it cannot be done."""
    if config.stage.dir is not None:
        raise InputError(
            "stage.dir: cluster=ray reads slides where they are, on whichever node has room; leave stage.dir out"
        )
    if not isinstance(config.device, str):
        raise InputError(f"device={config.device}: with cluster=ray each encoder actor has one device; use device=auto")
    if config.reading.method != "all":
        raise InputError("reading: cluster=ray reads all tissue; for a budget use cluster=slurm or one machine")
    sources = tuple(settings.encoder_sources(config))
    for source in sources:
        extraction = settings.extraction(config, source.spec)
        require_one_slide(extraction.tissue, len(table.records))
        settings.plan_rules(config, extraction)
    sent = OmegaConf.create(dict(settings.plain(config)))
    sent.wait = True  # whoever is left takes over what the lost had
    sent.threads = cluster.readers.n_actors * cluster.readers.n_threads
    if config.device == "auto" and not cluster.encoder.gpus:
        sent.device = "cpu"
    place = Place(
        folder=Path.cwd(),
        must_see=(Path(config.slides).absolute(), marker),
        version=importlib.metadata.version("promptmil"),
    )
    records = SlideTable(records=table.records, failures=())
    return EncoderJob(config=sent, sources=sources, table=records, redact=redact, readers=cluster.readers, place=place)


def _watch(job: EncoderJob, cluster: RayCluster, console: Console, stop: StopOnSignal) -> list[EncoderRun]:
    """Start the encoder actors and hear of them until every slide has its fate, or until told to stop."""
    said: set[str] = set()
    with progress_bar(console) as progress:

        def say(line: str) -> None:
            progress.console.print(line, markup=False, soft_wrap=True, highlight=False)

        task = progress.add_task("slides", total=job.n_asked, speed="")
        runs = [
            EncoderRun(replace(job, table=turned(job.table, index, cluster.encoders)), cluster.encoder, say)
            for index in range(cluster.encoders)
        ]
        asks_room, end = time.monotonic() + ROOM_SECONDS, math.inf
        while not _is_over(runs) and time.monotonic() < end:
            _look(runs)
            if stop.is_asked and end == math.inf:
                end = _tell_to_stop(runs)
            outcomes = _fates(runs)
            for line in [error_line(outcome) for outcome in outcomes if outcome.status == "failed"]:
                if line not in said:
                    said.add(line)
                    say(line)
            if time.monotonic() > asks_room:
                asks_room = math.inf
                _say_if_waiting(runs, cluster, say)
            progress.update(task, completed=len(outcomes), speed=_speed(runs, outcomes, job))
            time.sleep(POLL_SECONDS)
        for run in runs:
            run.kill()
    return runs


def _look(runs: Sequence[EncoderRun]) -> None:
    for run in runs:
        run.look()


def _fates(runs: Sequence[EncoderRun]) -> list[Outcome]:
    return best_outcomes([outcome for run in runs for outcome in run.outcomes])


def _tell_to_stop(runs: Sequence[EncoderRun]) -> float:
    """Tell every actor to stop; returns when they are out of time."""
    for run in runs:
        run.stop()
    return time.monotonic() + STOP_S


def _is_over(runs: Sequence[EncoderRun]) -> bool:
    """Whether all are through, or one found every slide done and the rest are lost or waiting for room."""
    left = [run for run in runs if not run.is_over]
    return not left or (any(run.is_complete for run in runs) and all(run.is_silent for run in left))


def _speed(runs: Sequence[EncoderRun], outcomes: Sequence[Outcome], job: EncoderJob) -> str:
    news = [run.news for run in runs if run.news is not None and run.news.counters]
    if not news:
        return ""
    # Tiles of several encoders are read once; each actor counts only what it embedded, so the slides done are asked.
    n_tiles = sum(outcome.n_tiles for outcome in outcomes) // len(job.sources)
    left = remaining_tiles(
        planned_tiles=n_tiles, planned_slides=len(outcomes), n_slides=job.n_asked, done_tiles=n_tiles
    )
    return progress_line(joint_counters([one.counters for one in news]), news[0].device, left)


def _say_if_waiting(runs: Sequence[EncoderRun], cluster: RayCluster, say: Callable[[str], None]) -> None:
    """Say what lacks when no encoder actor has found room, or none of its reader actors."""
    import ray

    if any(run.news is not None and run.news.reader_nodes for run in runs):
        return
    asked, readers = cluster.encoder, cluster.readers
    free = ray.available_resources()
    say(
        f"waiting for room: {cluster.encoders} encoder actors of {asked.cpus:g} cores and {asked.gpus:g} GPUs, and "
        f"{readers.n_actors} reader actors of {readers.cpus:g} cores for each; "
        f"free on the cluster: {free.get('CPU', 0):g} cores, {free.get('GPU', 0):g} GPUs"
    )


@contextmanager
def _marker(out: Path) -> Generator[Path, None, None]:
    """A file by which a node shows that its ``out`` is ours."""
    path = out.absolute() / ".workers" / f"ray-{secrets.token_hex(8)}"
    publish_text(path, "promptmil extract submit cluster=ray runs\n")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # unless others use it


@contextmanager
def _connected(address: str) -> Generator[None, None, None]:
    if importlib.util.find_spec("ray") is None:
        raise InputError("cluster=ray: Ray is not installed; pip install 'promptmil[ray]', alike on all nodes")
    import ray
    from ray.exceptions import RayError

    try:
        address = _known(address)
        _require_listener(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as error:
        raise InputError(
            f"cluster.address={address}: no Ray cluster answers there ({first_line(error)}); start one with ray start "
            "--head and run this on one of its nodes, give its address as host:port, or use cluster=slurm"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _known(address: str) -> str:
    """What ``auto`` stands for here; ``auto`` when Ray itself must look for a cluster on this machine."""
    if address != "auto":
        return address
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"  # noqa: S108 - written by Ray
    return os.environ.get("RAY_ADDRESS") or (note.read_text().strip() if note.is_file() else address)


def _require_listener(address: str) -> None:
    """Ray itself knocks at a closed door for many minutes.

    Raises:
        OSError: Nobody listens.
        ValueError: It is no ``host:port``.
    """
    if address == "auto":
        return  # then Ray finds none, or one that runs
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ValueError("not host:port")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


def _amount(content: Mapping[str, object], key: str) -> float:
    value = content[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
        raise InputError(f"cluster.{key}={value}: expected a number of at least 0")
    return float(value)
