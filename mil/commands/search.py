"""`promptmil search`: words, or a tile, + feature files -> the tiles of the cohort that are most like them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import UInt8
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress
from scipy.special import expit

from feature_extraction.commands.licence import check_licence
from feature_extraction.commands.settings import at_least_one, encoder_source
from feature_extraction.errors import InputError, MismatchError, SlideError
from feature_extraction.files import publish, publish_json, publish_text
from feature_extraction.header import FeatureHeader
from feature_extraction.pseudonyms import redact
from feature_extraction.slide import Slide
from feature_extraction.slides import read_slide_table
from feature_extraction.status import as_cell
from mil.cohort import read_patients
from mil.commands.unused import PARTLY_FAILED, say_unused
from mil.feature_folder import FeatureFolder, require_space
from mil.heatmap.layers import parquet_bytes
from mil.search.files import open_searched, read_noted, write_noted
from mil.search.page import ShownHit, contact_sheet_png, page_html, tile_picture
from mil.search.queries import queries_of_words, query_of_tile, require_encoder
from mil.search.scan import Found, Limits, search
from mil.search.scores import Queries

PAGE, SHEET = "hits.html", "contact_sheet.png"
COLUMNS = ("query", "rank", "slide_id", "patient_id", "x_lv0", "y_lv0", "width_lv0", "height_lv0")

Pictures = Mapping[tuple[str, int], UInt8[np.ndarray, "row column 3"]]
"""A tile's picture by slide id and row."""


def run(config: DictConfig) -> int:
    """Search, write the hits; returns the exit code."""
    console = Console(stderr=True)
    limits = Limits(hits=at_least_one("hits", config.hits), per_patient=at_least_one("per_patient", config.per_patient))
    folder = FeatureFolder(Path(config.features))
    check_licence(config.licence_profile, folder.header, console)
    patients = {} if config.labels is None else read_patients(Path(config.labels))
    paths = {} if config.slides is None else {r.slide_id: r.path for r in read_slide_table(Path(config.slides)).records}
    space, queries = _asked(config, folder)
    found = _search(folder, space, queries, limits, patients, console)
    if not found.n_tiles:
        listed = "; ".join(list(found.unused.values())[:3])
        raise InputError(f"features={config.features}: no slide with tiles to search ({listed or 'none there'})")
    out, table = Path(config.out), hits_table(found, queries, patients)
    failures: list[str] = []
    if paths:
        _write_pictures(out, _shown(found, table, paths, failures), _notes(config, folder.header, queries, found))
    else:
        for name in (PAGE, SHEET):
            (out / name).unlink(missing_ok=True)  # those of an earlier search show other hits
    publish(out / "hits.parquet", parquet_bytes(table))
    text = table.select_dtypes(exclude="number").columns
    publish_text(out / "hits.csv", table.assign(**{c: table[c].map(as_cell) for c in text}).to_csv(index=False))
    _write_summary(out, config, folder.header, queries, found, failures)
    console.print(_said(table, found, out), soft_wrap=True, markup=False, highlight=False)
    for line in failures:
        console.print(f"no picture: {line}", soft_wrap=True, markup=False)
    return max(say_unused(console, found.unused), PARTLY_FAILED if failures else 0)


def hits_table(found: Found, queries: Queries, patients: Mapping[str, str]) -> pd.DataFrame:
    """One row a hit, by query and rank.

    Columns: `COLUMNS`, then ``score`` (the probability among query and competitors; the cosine without competitors),
    ``margin`` (its log-odds, by which tiles are ranked), ``cosine`` and ``percentile``.
    """
    has_competitors = len(queries.competitors) > 0
    lines: list[dict[str, object]] = []
    for hit in found.hits:
        file = found.files[hit.slide_id]
        x, y = file.rows.coords_lv0()[hit.row].tolist()
        vector = file.rows.rows(hit.row, hit.row + 1)[0].astype(np.float64)
        cosine = float(queries.vectors[hit.query] @ vector / np.linalg.norm(vector))
        lines.append(
            {
                "query": queries.names[hit.query],
                "rank": hit.rank,
                "slide_id": hit.slide_id,
                "patient_id": patients.get(hit.slide_id, ""),
                "x_lv0": x,
                "y_lv0": y,
                "width_lv0": file.noted.size_lv0[0],
                "height_lv0": file.noted.size_lv0[1],
                "score": float(expit(hit.margin)) if has_competitors else cosine,
                "margin": hit.margin,
                "cosine": cosine,
                "percentile": hit.percentile,
            }
        )
    return pd.DataFrame(lines, columns=[*COLUMNS, "score", "margin", "cosine", "percentile"])


def _asked(config: DictConfig, folder: FeatureFolder) -> tuple[str, Queries]:
    """The space that is searched, and what for."""
    if (config.text is None) == (config.like is None):
        raise InputError("search: give either text=… (words) or like=<slide_id>:<x_lv0>,<y_lv0> (a tile)")
    if config.like is not None:
        space = config.space or ("joint" if "joint" in folder.spaces else folder.header.space)
        return str(space), query_of_tile(folder, str(config.like), str(space))
    if config.space not in (None, "joint"):
        raise InputError(f"space={config.space}: words are compared in the joint space; leave space out")
    require_space("joint", folder)
    source = encoder_source(config)
    if not source.spec.has_text:
        raise MismatchError(f"encoder {source.spec.name} has no text tower; choose one that has, to search by words")
    encoder = source.load(torch.device("cpu"))
    require_encoder(encoder, folder.header)
    return "joint", queries_of_words(
        _words(config.text), _words(config.against or []), [str(one) for one in config.templates], encoder
    )


def _words(value: str | Iterable[object]) -> list[str]:
    """A phrase, or a list of them."""
    return [value] if isinstance(value, str) else [str(one) for one in value]


def _search(
    folder: FeatureFolder,
    space: str,
    queries: Queries,
    limits: Limits,
    patients: Mapping[str, str],
    console: Console,
) -> Found:
    """Search the slides of the labels, else of the folder, and note the files that are whole."""
    slide_ids = list(patients) or folder.slide_ids()
    noted = read_noted(folder, space)
    reopen = partial(open_searched, folder, space=space, noted=noted)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("search", total=len(slide_ids))
        found = search(
            slide_ids,
            lambda slide_id, is_trusted: reopen(slide_id, is_trusted=is_trusted),
            queries,
            limits,
            patients=patients,
            on_slide=lambda: progress.advance(bar),
        )
    kept = {name: line for name, line in noted.items() if name not in found.unused}
    whole = kept | {name: file.noted for name, file in found.files.items() if name not in found.unused}
    if whole != noted:
        write_noted(folder, space, whole)
    return found


def _shown(
    found: Found, table: pd.DataFrame, paths: Mapping[str, Path], failures: list[str]
) -> dict[str, list[ShownHit]]:
    """The hits with their pictures, by query; a slide whose pixels cannot be read is added to ``failures``."""
    pictures = _pictures(found, paths, failures)
    shown: defaultdict[str, list[ShownHit]] = defaultdict(list)
    for hit, line in zip(found.hits, table.to_dict("records"), strict=True):
        shown[line["query"]].append(
            ShownHit(
                rank=hit.rank,
                slide_id=hit.slide_id,
                patient_id=line["patient_id"],
                x_lv0=line["x_lv0"],
                y_lv0=line["y_lv0"],
                score=line["score"],
                percentile=hit.percentile,
                pixels=pictures.get((hit.slide_id, hit.row)),
            )
        )
    return dict(shown)


def _pictures(found: Found, paths: Mapping[str, Path], failures: list[str]) -> Pictures:
    """Each slide is opened once."""
    rows: defaultdict[str, set[int]] = defaultdict(set)
    for hit in found.hits:
        rows[hit.slide_id].add(hit.row)
    pictures: dict[tuple[str, int], UInt8[np.ndarray, "row column 3"]] = {}
    for slide_id, wanted in rows.items():
        path, file = paths.get(slide_id), found.files[slide_id]
        if path is None:
            failures.append(f"slide={slide_id}: not among slides=…")
            continue
        coords = file.rows.coords_lv0()
        try:
            with Slide(slide_id, path) as slide:
                for row in sorted(wanted):
                    x, y = coords[row].tolist()
                    pictures[slide_id, row] = tile_picture(slide, (x, y), file.noted.size_lv0)
        except SlideError as error:
            failures.append(redact(str(error), path, slide_id))
        except OSError as error:
            failures.append(f"slide={slide_id}: cannot be read: {error.strerror or type(error).__name__}")
    return pictures


def _write_pictures(out: Path, shown: Mapping[str, Sequence[ShownHit]], notes: tuple[str, Sequence[str]]) -> None:
    """Write page and contact sheet; ``notes`` are what the score is and what is said of the search."""
    publish_text(out / PAGE, page_html(shown, score_name=notes[0], notes=notes[1]))
    publish(out / SHEET, contact_sheet_png(shown, score_name=notes[0], notes=notes[1]))


def _notes(config: DictConfig, header: FeatureHeader, queries: Queries, found: Found) -> tuple[str, list[str]]:
    """What the score is, and what is said of the search."""
    n_slides = len(found.files)
    most = f"at most {config.per_patient} of one {'slide' if config.labels is None else 'patient'}"
    searched = (
        f"{found.n_tiles:,} tiles of {n_slides:,} slides, {header.tile_size_px * header.tile_mpp:g} µm wide; {most}; "
        f"encoder {header.encoder}. Research use only."
    )
    if not len(queries.competitors):
        return "cos", [searched]
    against = ", ".join(_words(config.against))
    return "p", [searched, f"p: probability among the words looked for and their competitors ({against})."]


def _write_summary(
    out: Path, config: DictConfig, header: FeatureHeader, queries: Queries, found: Found, failures: Sequence[str]
) -> None:
    publish_json(
        out / "summary.json",
        {
            "command": "search",
            "queries": list(queries.names),
            "against": _words(config.against or []) if len(queries.competitors) else [],
            "templates": [str(one) for one in config.templates] if config.like is None else [],
            "logit_scale": queries.scale,
            "hits": int(config.hits),
            "per_patient": int(config.per_patient),
            "slides": len(found.files),
            "tiles": found.n_tiles,
            "encoder": header.encoder,
            "encoder_fingerprint": header.encoder_fingerprint,
            "licence": header.licence,
            "unused": dict(found.unused),
            "no_picture": list(failures),
        },
    )


def _said(table: pd.DataFrame, found: Found, out: Path) -> str:
    return f"{len(table)} hits among {found.n_tiles:,} tiles of {len(found.files):,} slides -> {out}"
