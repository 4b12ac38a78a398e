"""`promptmil heatmap`: run + features (+ slides) -> tile tables with their figures, PNG, and exports of the maps."""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from feature_extraction.commands.licence import check_licence
from feature_extraction.errors import DamagedFileError, InputError, SlideError
from feature_extraction.files import publish_json, publish_text
from feature_extraction.pseudonyms import redact
from feature_extraction.slides import read_slide_table
from mil.commands import settings
from mil.commands.side_by_side import START_METHOD, begin_process
from mil.feature_folder import FeatureFolder
from mil.heatmap.explain import LoadedRun, load_runs, open_features, require_one_method, runs_by_slide
from mil.heatmap.exports.chosen import known_exports
from mil.heatmap.exports.qupath import IMPORTER, importer
from mil.heatmap.slide_map import MapRequest, SlideSource, map_slide
from mil.viewer.export import SlideExport, export_slide, write_index

PARTLY_FAILED = 3
VIEWER = "viewer"
"""Its folder, in that of the maps."""
SLIDES_A_PROCESS = 16
"""Fewer are not worth the start of a process."""
FIGURES = ("aopc", "gain", "sufficiency", "necessity", "smallest_k")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One slide for any process, which opens runs and features itself, once."""

    slide_id: str
    run: str
    path: Path | None
    run_path: Path | None
    runs_path: Path | None
    features: tuple[Path, ...]
    request: MapRequest
    viewer_tiles: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    """A line of the summary, or why there is none."""

    line: Mapping[str, object] | None = None
    failure: str = ""


def run(config: DictConfig) -> int:
    """Map every slide asked for; returns the exit code."""
    console = Console(stderr=True)
    run_path, runs_path = settings.optional_path(config.run), settings.optional_path(config.runs)
    feature_paths = settings.paths(config.features)
    runs, features = _opened(run_path, runs_path, feature_paths)
    check_licence(config.licence_profile, runs[0].card, console)
    chosen = _chosen(config, runs, features)
    paths = {} if config.slides is None else {r.slide_id: r.path for r in read_slide_table(Path(config.slides)).records}
    request = MapRequest(
        out=Path(config.out),
        truth=settings.optional_path(config.truth),
        region_share=config.region_share,
        is_measured=bool(config.faithfulness),
        exports=known_exports(config.exports),
    )
    jobs = [
        _Job(
            slide_id=slide_id,
            run=loaded.folder.name,
            path=paths.get(slide_id),
            run_path=run_path,
            runs_path=runs_path,
            features=feature_paths,
            request=request,
            viewer_tiles=_viewer_tiles(config),
        )
        for slide_id, loaded in chosen.items()
    ]
    n_processes = _n_processes(config.parallel, len(jobs))
    found = list(track(_mapped(jobs, n_processes), "maps", total=len(jobs), console=console, transient=True))
    place = {job.slide_id: number for number, job in enumerate(jobs)}
    done = sorted((one.line for one in found if one.line), key=lambda line: place[str(line["slide_id"])])
    failures = [one.failure for one in found if one.failure]
    summary = _summary(done, failures, has_truth=config.truth is not None)
    publish_json(request.out / "summary.json", summary)
    if "geojson" in request.exports:
        publish_text(request.out / IMPORTER, importer())
    if config.viewer:
        write_index(request.out, request.out / VIEWER, [str(line["slide_id"]) for line in done])
        console.print(f"viewer: open {request.out / VIEWER / 'index.html'}", soft_wrap=True, markup=False)
    console.print(f"{len(done)} maps -> {request.out}", soft_wrap=True, markup=False)
    for name, title in (("tile_auc", "tile AUC against the truth"), ("faithfulness", "mean faithfulness")):
        if name in summary:
            console.print(f"{title}: {json.dumps(summary[name])}", soft_wrap=True, markup=False)
    for text in failures:
        console.print(f"failed: {text}", soft_wrap=True, markup=False)
    return PARTLY_FAILED if failures else 0


def _mapped(jobs: Sequence[_Job], n_processes: int) -> Iterator[_Done]:
    """Every slide, in the order in which they are done."""
    if n_processes == 1:
        yield from map(_map_one, jobs)
        return
    context = get_context(START_METHOD)
    if START_METHOD == "forkserver":
        context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(n_processes, mp_context=context, initializer=begin_process)
    futures = {pool.submit(_map_one, job): job for job in jobs}
    try:
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenProcessPool:
                said = "a process was killed (out of memory?); run the same command again, with a smaller parallel=…"
                yield _Done(failure=f"slide={futures[future].slide_id}: {said}")
    finally:
        pool.shutdown(cancel_futures=True)


def _map_one(job: _Job) -> _Done:
    """One slide, with a message where its files are at fault."""
    runs, features = _opened(job.run_path, job.runs_path, job.features)
    own = next(one for one in runs if one.folder.name == job.run)
    others = [one for one in runs if one is not own]
    source = SlideSource(slide_id=job.slide_id, run=own, others=others, features=features, path=job.path)
    try:
        line = map_slide(source, job.request)
        if job.viewer_tiles is not None:
            headers = [folder.open(job.slide_id).header for folder in features]
            export = SlideExport(slide_id=job.slide_id, headers=headers, path=job.path)
            export_slide(export, job.request.out, job.request.out / VIEWER, job.viewer_tiles)
        return _Done(line=line)
    except (DamagedFileError, SlideError) as error:
        return _Done(failure=_without_names(str(error), job.slide_id, job.path))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return _Done(failure=f"slide={job.slide_id}: a file could not be read or written: {reason}")


@functools.lru_cache(maxsize=1)
def _opened(
    run: Path | None, runs: Path | None, features: tuple[Path, ...]
) -> tuple[list[LoadedRun], tuple[FeatureFolder, ...]]:
    """Runs and features, opened once in each process."""
    loaded = load_runs(run, runs)
    require_one_method(loaded)
    return loaded, open_features(features, loaded)


def _n_processes(asked: object, n_slides: int) -> int:
    if asked == "auto":
        return max(1, min(settings.n_cores(), n_slides // SLIDES_A_PROCESS))
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise InputError(f"parallel={asked}: expected auto or a whole number of at least 1")
    return min(asked, n_slides)


def _viewer_tiles(config: DictConfig) -> int | None:
    """Of a slide's picture in the viewer, None without a viewer."""
    n_tiles = config.viewer_tiles
    if isinstance(n_tiles, bool) or not isinstance(n_tiles, int) or n_tiles < 1:
        raise InputError(f"viewer_tiles={n_tiles}: expected a whole number of at least 1")
    return n_tiles if config.viewer else None


def _without_names(text: str, slide_id: str, path: Path | None) -> str:
    """A message about a slide without the names of its file and folders."""
    return text if path is None else redact(text, path, slide_id)


def _chosen(config: DictConfig, runs: list[LoadedRun], features: Sequence[FeatureFolder]) -> dict[str, LoadedRun]:
    """Each slide with the run that explains it."""
    is_single = config.run is not None
    chosen = dict.fromkeys(features[0].slide_ids(), runs[0]) if is_single else runs_by_slide(runs)
    if config.slide_ids is None:
        return chosen
    unknown = [slide_id for slide_id in config.slide_ids if slide_id not in chosen]
    if unknown:
        raise InputError(f"slide_ids: {', '.join(unknown)} not among the slides of features=… and the runs' test parts")
    return {slide_id: chosen[slide_id] for slide_id in config.slide_ids}


def _summary(lines: list[Mapping[str, object]], failures: list[str], *, has_truth: bool) -> dict[str, object]:
    summary: dict[str, object] = {"command": "heatmap", "maps": len(lines), "failures": failures, "slides": lines}
    if has_truth:
        names = {name: None for line in lines for name in line if name.startswith(("auc_", "top20_"))}
        means: dict[str, object] = {"slides": 0}
        for name in names:
            values = np.array([line[name] for line in lines if line.get(name) is not None], dtype=float)
            means[name] = round(float(values.mean()), 4) if len(values) else None
            means["slides"] = len(values) if name == "auc_evidence" else means["slides"]
        summary["tile_auc"] = means
    reports = [line["faithfulness"] for line in lines if isinstance(line.get("faithfulness"), dict)]
    if reports:
        summary["faithfulness"] = _mean_figures(reports)
    return summary


def _mean_figures(reports: Sequence[object]) -> dict[str, dict[str, float]]:
    """Mean over the slides of each figure of each layer."""
    found: dict[str, dict[str, list[float]]] = {}
    for report in reports:
        layers = report["layers"] if isinstance(report, dict) else {}
        for layer, figures in layers.items():
            for name in FIGURES:
                found.setdefault(layer, {}).setdefault(name, []).append(float(figures[name]["value"]))
    return {
        layer: {name: round(float(np.mean(values)), 4) for name, values in figures.items()}
        for layer, figures in found.items()
    }
