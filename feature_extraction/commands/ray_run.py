"""A run of encoder actors as the command sees it: start them, hear of them, replace what is lost, tell them to stop.

State is in files: an actor that is lost loses nothing, others or its successor take its slides over.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from feature_extraction.commands.ray_encoder import EncoderHost, EncoderJob, News
from feature_extraction.ray_nodes import first_line, plain_cause
from feature_extraction.status import Outcome

if TYPE_CHECKING:
    from ray.actor import ActorHandle

LOSSES_ALLOWED = 5
"""An encoder actor that is lost so often without doing a slide meanwhile is not started again."""
SILENT_S = 20.0
"""An encoder actor that says nothing for so long is not waited for when another has found every slide done."""
STOP_S = 12.0
"""Time for actors that were told to stop; what they have written is kept in any case."""
BEST_FIRST = ("done", "empty", "failed", "stopped", "elsewhere")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderDemand:
    """What each encoder actor asks of the cluster.

    Attributes:
        cpus: Cores.
        gpus: GPUs.
    """

    cpus: float
    gpus: float


class EncoderRun:
    """One encoder actor and its successors. Not for several threads.

    Args:
        job: What to do.
        demand: What the actor asks of the cluster.
        say: Called with a line for people.
    """

    def __init__(self, job: EncoderJob, demand: EncoderDemand, say: Callable[[str], None]) -> None:
        self._job, self._demand, self._say = job, demand, say
        self.outcomes: list[Outcome] = []
        self.news: News | None = None
        self.is_over = False
        self.is_complete = False
        self._n_losses = 0
        self._is_stopping = False
        self._said = ""
        self._begin()

    @property
    def is_silent(self) -> bool:
        """Whether it has said nothing for long: it waits for room, or is out of reach."""
        return time.monotonic() - self._heard > SILENT_S

    def look(self) -> None:
        """Take what it has said since; never waits.

        Raises:
            PromptmilError: It cannot work as asked.
        """
        if self.is_over:
            return
        if self._coming.done():
            self._take(self._coming, self._hear)
        if self._work.done() and not self.is_over:
            self._take(self._work, self._end)

    def stop(self) -> None:
        """Tell it to end soon."""
        self._is_stopping = True
        self._handle.stop.remote()

    def kill(self) -> None:
        """End it now."""
        import ray

        ray.kill(self._handle)

    def _begin(self) -> None:
        import ray

        options = ray.remote(EncoderHost).options(
            num_cpus=self._demand.cpus, num_gpus=self._demand.gpus, max_concurrency=4, scheduling_strategy="SPREAD"
        )
        self._handle = cast("ActorHandle[EncoderHost]", options.remote(self._job))
        self._work: Future[News] = self._handle.work.remote().future()
        self._coming: Future[News] = self._handle.news.remote().future()
        self._heard = time.monotonic()

    def _take(self, said: "Future[News]", take: Callable[[News], None]) -> None:
        """Take an answer; without one the actor is lost, and another begins."""
        from ray.exceptions import RayError, RayTaskError

        try:
            news = said.result()
        except RayTaskError as error:
            raise plain_cause(error) from error
        except RayError as error:
            self._replace(first_line(error))
        else:
            self._heard = time.monotonic()
            take(news)

    def _hear(self, news: News) -> None:
        self.news = news
        self.outcomes += news.outcomes
        if any(outcome.is_new for outcome in news.outcomes):
            self._n_losses = 0
        self._coming = self._handle.news.remote().future()
        readers = f"{len(news.reader_nodes)} of {self._job.readers.n_actors} readers at work"
        line = f"encoder on {news.node}, {readers} on {', '.join(sorted(set(news.reader_nodes)))}"
        if news.reader_nodes and line != self._said:
            self._said = line
            self._say(line)

    def _end(self, news: News) -> None:
        self.news, self.outcomes = news, self.outcomes + list(news.outcomes)
        self.is_over = self.is_complete = True

    def _replace(self, reason: str) -> None:
        self._n_losses += 1
        self._say(f"an encoder actor was lost: {reason}")
        self.kill()  # it may be out of reach only
        if self._is_stopping or self._n_losses >= LOSSES_ALLOWED:
            self.is_over = True
        else:
            self._begin()


def best_outcomes(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """One fate a slide and feature folder: what any actor achieved counts, and who computed it before who found it."""
    best: dict[tuple[str, str], Outcome] = {}
    for outcome in outcomes:
        key = outcome.features, outcome.slide_id
        if key not in best or _rank(outcome) < _rank(best[key]):
            best[key] = outcome
    return list(best.values())


def _rank(outcome: Outcome) -> tuple[int, bool]:
    return BEST_FIRST.index(outcome.status), not outcome.is_new


def joint_counters(records: Sequence[Mapping[str, int | float]]) -> dict[str, int | float]:
    """The counters of several encoder actors as if of one: tiles and readers add up, shares of the time are averaged.

    Args:
        records: Of `Counters.as_record`, at least one.
    """
    n = len(records)
    wall = max(record["wall_s"] for record in records)
    joint = {key: sum(record[key] for record in records) for key in records[0]}
    mean = ("embedding_s", "waiting_tiles_s", "waiting_writer_s", "cores_share", "queue_share")
    joint |= {key: joint[key] / n for key in mean}
    return joint | {
        "wall_s": wall,
        "tiles_per_s": joint["n_tiles"] / wall,
        "device_share": joint["embedding_s"] / wall,
        "readers_share": joint["reading_s"] / (wall * joint["n_readers"]),
    }
