"""The encoder actor of a Ray cluster: the extraction of one worker, reading through reader actors."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig

from feature_extraction.commands import settings
from feature_extraction.commands.extract import lanes_of
from feature_extraction.counters import Counters, Eta
from feature_extraction.encoder import EncoderSource
from feature_extraction.extract import Extractor, Listener
from feature_extraction.ray_nodes import Place
from feature_extraction.ray_readers import RayReaders, ReaderDemand
from feature_extraction.readers import ReaderSettings
from feature_extraction.slides import SlideTable
from feature_extraction.status import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderJob:
    """What one encoder actor is to do.

    Attributes:
        config: Of the command, resolved.
        sources: The encoders, to be loaded where the actor is.
        table: The slides, begun where no other actor begins.
        redact: Given a slide's id and a message, takes out what the message must not say.
        readers: Which reader actors it wants.
        place: What nodes must have.
    """

    config: DictConfig
    sources: tuple[EncoderSource, ...]
    table: SlideTable
    redact: Callable[[str, str], str]
    readers: ReaderDemand
    place: Place

    @property
    def n_asked(self) -> int:
        """Slides times encoders."""
        return len(self.sources) * len(self.table.records)


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """How far an encoder actor is.

    Attributes:
        node: Where it is.
        reader_nodes: Where its reader actors are, one name for each of those at work.
        device: Name of the device that embeds.
        folders: The feature folders; none before the encoders are loaded.
        outcomes: Fates that became known.
        counters: Of `Counters.as_record`; empty before the encoders are loaded.
    """

    node: str
    reader_nodes: tuple[str, ...]
    device: str
    folders: tuple[Path, ...]
    outcomes: tuple[Outcome, ...]
    counters: Mapping[str, int | float]


class EncoderHost:
    """The actor; `work` runs in one of its threads while the other methods are called.

    Args:
        job: What to do.
    """

    def __init__(self, job: EncoderJob) -> None:
        self._job = job
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._outcomes: list[Outcome] = []
        self._n_told = 0
        self._node, self._device = "", ""
        self._folders: tuple[Path, ...] = ()
        self._readers: RayReaders | None = None
        self._counters: Counters | None = None

    def work(self) -> News:
        """Extract every slide that is not done yet, or until told to stop; returns every fate.

        Raises:
            InputError: The encoders cannot be loaded here, or a node lacks something.
        """
        job = self._job
        self._node = job.place.settle()
        self._device = settings.devices(job.config.device)[0]
        device = settings.device(self._device)
        groups = lanes_of(job.config, job.sources, device, len(job.table.records))
        self._counters = counters = Counters(n_readers=settings.n_threads(job.config.threads))
        eta = Eta(len(job.table.records) * len(groups))
        self._folders = tuple(lane.folder for lanes in groups.values() for lane in lanes)
        listener = Listener(on_outcome=self._outcomes.append, should_stop=self._stop.is_set, redact=job.redact)
        for lanes in groups.values():
            if self._stop.is_set():
                break
            rules = settings.plan_rules(job.config, lanes[0].extraction)
            usage = replace(settings.throughput(job.config, device, lanes), service=self._reader_service)
            Extractor(lanes, rules, usage, listener=listener, counters=counters, eta=eta).run(job.table)
        return self._news(first=0)

    def news(self) -> News:
        """How far it is, with the fates that were not told before."""
        with self._lock:
            first, self._n_told = self._n_told, len(self._outcomes)
        return self._news(first=first)

    def stop(self) -> None:
        """End the work soon; journals are kept."""
        self._stop.set()

    def _reader_service(self, wanted: ReaderSettings) -> RayReaders:
        self._readers = RayReaders(wanted, self._job.readers, self._job.place)
        return self._readers

    def _news(self, first: int) -> News:
        return News(
            node=self._node,
            reader_nodes=self._readers.nodes() if self._readers is not None else (),
            device=self._device,
            folders=self._folders,
            outcomes=tuple(self._outcomes[first:]),
            counters=self._counters.as_record() if self._counters is not None else {},
        )
