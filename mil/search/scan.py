"""The tiles of a cohort that are most like some words, or like another tile: the best of each slide, then of all."""

import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64

from feature_extraction.errors import DamagedFileError
from mil.feature_folder import NO_TISSUE
from mil.search.files import SearchedFile, require_rows
from mil.search.scores import Histogram, Queries, best_apart, ranked, score


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many tiles are wanted.

    Attributes:
        hits: Of each query.
        per_patient: At most so many of them of one patient.
    """

    hits: int
    per_patient: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A tile that was found.

    Attributes:
        query: Place of its query.
        rank: From 1, among the hits of the query.
        slide_id: The slide.
        row: Of the tile in the slide's file.
        margin: Its log-odds against the competitors, or its cosine.
        percentile: How many of a hundred tiles of the cohort have a lower margin.
    """

    query: int
    rank: int
    slide_id: str
    row: int
    margin: float
    percentile: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """What a search found.

    Attributes:
        hits: By query, then rank.
        files: The files that were scored, by slide id.
        n_tiles: Tiles in them.
        unused: Slide id to reason.
    """

    hits: tuple[Hit, ...]
    files: Mapping[str, SearchedFile]
    n_tiles: int
    unused: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Candidates:
    """The best tiles of one slide: row and margin for each query, best first."""

    file: SearchedFile
    best: tuple[tuple[Int64[np.ndarray, " hit"], Float32[np.ndarray, " hit"]], ...]


def search(
    slide_ids: Sequence[str],
    reopen: Callable[[str, bool], SearchedFile],
    queries: Queries,
    limits: Limits,
    *,
    patients: Mapping[str, str],
    on_slide: Callable[[], None] = lambda: None,
) -> Found:
    """Score every tile of every slide; a slide that cannot be read is listed and the others are searched.

    Args:
        slide_ids: Which slides.
        reopen: Slide id, and whether what earlier searches noted is trusted, to the file; raises `DamagedFileError`.
        queries: What is looked for.
        limits: How many tiles.
        patients: Patient of a slide; a slide that is not there is a patient of its own.
        on_slide: Called after each slide.
    """
    histogram = Histogram(len(queries.names), queries.limit)
    unused: dict[str, str] = {}

    def one(slide_id: str) -> _Candidates | None:
        try:
            return _candidates(reopen(slide_id, True), queries, min(limits.hits, limits.per_patient), histogram)
        except (DamagedFileError, OSError) as error:
            unused[slide_id] = _reason(slide_id, error)
        return None

    found: dict[str, _Candidates] = {}
    with _one_thread_each() as pool:
        for slide_id, candidates in zip(slide_ids, pool.map(one, slide_ids), strict=True):
            on_slide()
            if candidates is not None:
                found[slide_id] = candidates
    hits = _confirmed(found, reopen, queries, limits, patients, histogram, unused)
    empty = {name: NO_TISSUE for name, one in found.items() if one.file.rows.n_tiles == 0}
    files = {name: one.file for name, one in found.items()}
    return Found(
        hits=tuple(hits),
        files=files,
        n_tiles=sum(file.rows.n_tiles for file in files.values()),
        unused=dict(sorted({**unused, **empty}.items())),
    )


def _candidates(file: SearchedFile, queries: Queries, n_wanted: int, histogram: Histogram) -> _Candidates:
    """Score a slide, count its margins, keep its best tiles."""
    margins = score(file, queries)
    histogram.add(margins)
    is_origin = queries.origin is not None and queries.origin[0] == file.slide_id
    taken = [queries.origin[1]] if is_origin and queries.origin is not None else []
    best: list[tuple[np.ndarray, np.ndarray]] = []
    for row in margins:
        if taken or file.noted.is_overlapping:
            rows = best_apart(row, n_wanted, file.rows.coords_lv0(), file.noted.size_lv0, taken)
        else:
            rows = ranked(row, min(n_wanted, len(row)))[:n_wanted]
        best.append((rows, row[rows]))
    return _Candidates(file=file, best=tuple(best))


def _confirmed(
    found: dict[str, _Candidates],
    reopen: Callable[[str, bool], SearchedFile],
    queries: Queries,
    limits: Limits,
    patients: Mapping[str, str],
    histogram: Histogram,
    unused: dict[str, str],
) -> list[Hit]:
    """The hits, whose blocks are held against their checksums also where the record spared the rest of the file.

    A slide that fails leaves ``found`` for ``unused``, and its place goes to the next best.
    """
    sure = {name for name, one in found.items() if one.file.expected is not None}
    while True:
        hits = [hit for query in range(len(queries.names)) for hit in _ranked_hits(query, found, limits, patients)]
        for slide_id in sorted({hit.slide_id for hit in hits} - sure):
            try:
                require_rows(reopen(slide_id, False), [hit.row for hit in hits if hit.slide_id == slide_id])
                sure.add(slide_id)
            except (DamagedFileError, OSError) as error:
                unused[slide_id] = _reason(slide_id, error)
                del found[slide_id]
        if all(hit.slide_id in found for hit in hits):
            return [_with_percentile(hit, histogram) for hit in hits]


def _ranked_hits(
    query: int, found: Mapping[str, _Candidates], limits: Limits, patients: Mapping[str, str]
) -> Iterator[Hit]:
    """The best tiles of the cohort, at most so many a patient; equal margins go by slide and row."""
    names = sorted(found)
    if not names:
        return
    rows, margins = (np.concatenate([found[name].best[query][part] for name in names]) for part in (0, 1))
    slides = np.repeat(np.arange(len(names)), [len(found[name].best[query][0]) for name in names])
    n_of: Counter[tuple[str, bool]] = Counter()
    rank = 0
    for place in np.lexsort((rows, slides, -margins)).tolist():
        name = names[slides[place]]
        patient = (patients.get(name, name), name in patients)
        n_of[patient] += 1
        if n_of[patient] > limits.per_patient:
            continue
        rank += 1
        yield Hit(
            query=query,
            rank=rank,
            slide_id=name,
            row=int(rows[place]),
            margin=float(margins[place]),
            percentile=float("nan"),
        )
        if rank == limits.hits:
            return


def _with_percentile(hit: Hit, histogram: Histogram) -> Hit:
    return Hit(
        query=hit.query,
        rank=hit.rank,
        slide_id=hit.slide_id,
        row=hit.row,
        margin=hit.margin,
        percentile=histogram.percentile(hit.query, hit.margin),
    )


def _reason(slide_id: str, error: Exception) -> str:
    """Why a slide is not used, without the path that the system's errors name."""
    if isinstance(error, DamagedFileError):
        return str(error).removeprefix(f"slide={slide_id}: ")
    what = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
    return f"its feature file cannot be read ({what})"


@contextmanager
def _one_thread_each() -> Generator[ThreadPoolExecutor]:
    """A thread a core, each of which computes alone: slides are many, and blocks too small to be shared out."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(os.cpu_count() or 1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)
