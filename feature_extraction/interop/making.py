"""Make the feature file of a slide that another tool embedded: through a journal, sealed, and read again."""

import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped

from feature_extraction.errors import DamagedFileError, SlideError
from feature_extraction.files import address, is_valid
from feature_extraction.header import FeatureHeader
from feature_extraction.interop.incoming import Import, Incoming
from feature_extraction.interop.peer import reading
from feature_extraction.journal import Journal
from feature_extraction.store import FeatureRows, check_features, content_sha256, write_features
from feature_extraction.work import journal_path

ROWS_A_BLOCK = 8192
UNIT = 1e-3
"""A row whose length is 1 within this counts as normalised, which half precision keeps."""


def find_made(incoming: Incoming) -> FeatureHeader | None:
    """What an earlier run made, if it is whole and what this run would make."""
    found: list[FeatureHeader] = []

    def check(path: Path) -> None:
        header = check_features(path, extraction_fingerprint=incoming.fingerprint).header
        used = (header.slide_mpp_x, header.slide_mpp_y)
        is_same = used == (incoming.placement.mpp.x, incoming.placement.mpp.y)
        is_same &= json.loads(header.tissue).get("source") == incoming.source
        if incoming.info is not None and incoming.provable is not None:
            is_same &= header.slide_fingerprint == incoming.info.fingerprint  # empty where it was only declared
        if not is_same:
            raise DamagedFileError(f"{path.name}: made from another file, with another mpp, or not proved yet")
        found.append(header)

    return found[0] if is_valid(incoming.path, check) else None


def make(ask: Import, incoming: Incoming, *, is_proved: bool) -> FeatureHeader:
    """Take the rows over, publish the file, and read it again.

    A run that was killed is continued where its journal ends.

    Raises:
        SlideError: The source cannot be read to its end, holds what is no number, or the disk refuses.
    """
    try:
        return _make(ask, incoming, is_proved=is_proved)
    except (OSError, DamagedFileError) as error:
        said = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise SlideError(
            slide_id=incoming.file.slide_id,
            stage="write",
            cause=f"{incoming.folder.name} cannot be written: {said}",
            remedy="free space or choose another out=…, then run the same command again",
            code="E-disk",
        ) from error


def in_made_space(ask: Import, rows: Shaped[np.ndarray, "row width"]) -> Shaped[np.ndarray, "row dim"]:
    """Rows as they will be kept, of the same precision.

    Raises:
        MismatchError: They are to be projected, and the encoder has no such map.
    """
    if not ask.projects:
        return rows
    return ask.encoder.project(torch.from_numpy(np.array(rows, np.float32))).numpy().astype(rows.dtype)


def _make(ask: Import, incoming: Incoming, *, is_proved: bool) -> FeatureHeader:
    order, peer = incoming.placement.order, incoming.peer
    journal = _journal(ask, incoming)
    try:
        for rows in _further_rows(ask, incoming, journal.n_rows):
            journal.append(rows)
        values = journal.read()[order]
        header = _header(ask, incoming, is_proved=is_proved, is_normalized=_is_normalized(values))
        unknown = np.full(len(values), np.nan, np.float32)
        rows = FeatureRows(
            spaces={ask.made_space: values},
            coords_lv0=incoming.placement.coords_lv0[order],
            tissue_fraction=(unknown if peer.tissue_fraction is None else peer.tissue_fraction)[order],
            failed_coords_lv0=np.empty((0, 2), np.int64),
        )
        write_features(incoming.path, header, rows)
        written = check_features(incoming.path, extraction_fingerprint=incoming.fingerprint)
        if content_sha256(written.features(), written.coords_lv0) != content_sha256(values, rows.coords_lv0):
            raise DamagedFileError(f"{incoming.path.name} holds other rows than were written")
        journal.remove()
    finally:
        journal.close()
    return header


def _journal(ask: Import, incoming: Incoming) -> Journal:
    key = address({"fingerprint": incoming.fingerprint, "source": incoming.source, "rows": incoming.n_tiles})
    return Journal(
        journal_path(incoming.folder, incoming.file.slide_id),
        key=key,
        width=ask.encoder.spec.widths[ask.made_space],
        dtype=_kept_dtype(incoming.peer.dtype),
    )


def _further_rows(ask: Import, incoming: Incoming, n_done: int) -> Iterator[Shaped[np.ndarray, "row dim"]]:
    """The rows from ``n_done`` on, in parts, in the order of the source."""
    for start in range(n_done, incoming.n_tiles, ROWS_A_BLOCK):
        with reading(incoming.file):
            stored = incoming.peer.read(start, min(start + ROWS_A_BLOCK, incoming.n_tiles))
        with np.errstate(over="ignore"):
            rows = stored.astype(_kept_dtype(incoming.peer.dtype), copy=False)
        rows = in_made_space(ask, rows)
        if not np.isfinite(rows).all():
            raise SlideError(
                slide_id=incoming.file.slide_id,
                stage="read",
                cause=f"{incoming.file.path.name} holds values that are not finite, from row {start} on",
                remedy="extract this slide again with the tool, or with promptmil",
                code="E-nonfinite",
            )
        yield rows


def _header(ask: Import, incoming: Incoming, *, is_proved: bool, is_normalized: bool) -> FeatureHeader:
    placement, info, peer = incoming.placement, incoming.info, incoming.peer
    spec, tool = ask.encoder.spec, ask.reader.name
    return FeatureHeader(
        slide_id=incoming.file.slide_id,
        slide_fingerprint="" if info is None else info.fingerprint,
        encoder=spec.name,
        encoder_fingerprint=ask.encoder.fingerprint,
        extraction_fingerprint=incoming.fingerprint,
        space=ask.made_space,
        normalized=is_normalized,
        logit_scale=ask.encoder.logit_scale,
        logit_bias=ask.encoder.logit_bias,
        licence=spec.licence,
        licence_ancestry=json.dumps(list(spec.licence_ancestry)),
        slide_mpp_x=placement.mpp.x,
        slide_mpp_y=placement.mpp.y,
        mpp_source=placement.mpp.source,
        tile_mpp=placement.tile_mpp,
        tile_size_px=peer.geometry.tile_px,
        tile_size_lv0=json.dumps(list(placement.size_lv0)),
        step_lv0=json.dumps(list(placement.step_lv0)),
        read_level=peer.geometry.read_level,
        level0_width=placement.width_lv0,
        level0_height=placement.height_lv0,
        bounds_lv0=json.dumps(list(placement.bounds_lv0)),
        objective_power=0.0 if info is None else info.objective_power or 0.0,
        transform=json.dumps(spec.transform()),
        tissue=json.dumps({"method": "imported", "tool": tool, "encoder": peer.encoder, "source": incoming.source}),
        precision="unknown",
        reader=tool,
        created_with=f"promptmil {importlib.metadata.version('promptmil')}",
        fingerprint_source="verified" if is_proved else "declared",
    )


def _kept_dtype(stored: np.dtype) -> np.dtype:
    """Half and single precision stay as they are; anything else becomes single."""
    return np.dtype(np.float16 if stored == np.float16 else np.float32)


def _is_normalized(rows: Shaped[np.ndarray, "tile dim"]) -> bool:
    lengths = np.linalg.norm(rows.astype(np.float32), axis=1)
    return bool(len(rows)) and bool((np.abs(lengths - 1) < UNIT).all())
