"""One slide on its way in: what is asked for, what it is, where it goes; nothing is written yet."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feature_extraction.encoder import Encoder, Space
from feature_extraction.errors import InputError, SlideError
from feature_extraction.files import address
from feature_extraction.interop.peer import PeerFile, PeerReader, PeerSlide, reading
from feature_extraction.interop.placing import Placement, place
from feature_extraction.mpp import Mpp, MppRule
from feature_extraction.slide import Slide, SlideInfo, fingerprint_file
from feature_extraction.slides import SlideRecord
from feature_extraction.store import SCHEMA_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """What is asked for.

    Attributes:
        reader: Of the tool.
        out: The feature folder is made in it.
        encoder: What the user declares the embeddings to be of.
        space: In which space they are stored.
        projects: Whether they are to be projected into the joint space.
        tile_mpp: µm per tile pixel, None for what the tool was asked for.
        mpp: What to do when a slide does not say its mpp.
        slides: The slide files that are at hand, or whose mpp is known, by slide id.
        unusable: Why rows of that table are no slide, by slide id.
    """

    reader: PeerReader
    out: Path
    encoder: Encoder
    space: Space
    projects: bool
    tile_mpp: float | None
    mpp: MppRule
    slides: Mapping[str, SlideRecord]
    unusable: Mapping[str, SlideError]

    def __post_init__(self) -> None:
        spec = self.encoder.spec
        if self.space not in spec.widths:
            raise InputError(f"space={self.space}: encoder {spec.name} offers {', '.join(spec.widths)}")
        if self.projects and (self.space != "backbone" or "joint" not in spec.widths):
            raise InputError(
                "project=true: takes vectors of space=backbone into the joint space of an encoder that has both; "
                f"got space={self.space}, encoder {spec.name} offers {', '.join(spec.widths)}"
            )

    @property
    def made_space(self) -> Space:
        """The space of the files that are made."""
        return "joint" if self.projects else self.space


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """One slide on its way in.

    Attributes:
        file: Where it comes from.
        peer: What the tool says of it.
        placement: Where its tiles lie.
        record: The row of the slide table, None when it has none.
        info: Of the slide file, None when that is not at hand.
        source: Fingerprint of the tool's files.
        fingerprint: Of everything that determines the rows but the slide.
        folder: The feature folder.
    """

    file: PeerFile
    peer: PeerSlide
    placement: Placement
    record: SlideRecord | None
    info: SlideInfo | None
    source: str
    fingerprint: str
    folder: Path

    @property
    def path(self) -> Path:
        """The feature file to be."""
        return self.folder / f"{self.file.slide_id}.h5"

    @property
    def n_tiles(self) -> int:
        """Rows."""
        return len(self.peer.coords)

    @property
    def provable(self) -> SlideRecord | None:
        """The slide to prove the embeddings on, None when it is not at hand or has no tile."""
        return self.record if self.info is not None and self.n_tiles else None


def prepare(ask: Import, file: PeerFile) -> Incoming:
    """Open one slide of the tool and place its tiles.

    Raises:
        SlideError: It cannot be read, lacks what no one else can say, or contradicts the slide file.
    """
    peer = ask.reader.open(file)
    record, info = ask.slides.get(file.slide_id), None
    if record is not None and (record.mpp is None or record.path.is_file()):
        with Slide(record.slide_id, record.path) as slide:
            info = slide.info(record.mpp, ask.mpp)
    mpp = _mpp(file.slide_id, record, info, peer, ask.mpp)
    placement = place(file.slide_id, peer, mpp, info, ask.tile_mpp)
    fingerprint = _fingerprint(ask, peer, placement)
    with reading(file):
        rows = fingerprint_file(file.path) if len(peer.coords) else ""
    tiles = hashlib.sha256(np.ascontiguousarray(peer.coords).data).hexdigest()
    source = address({"rows": rows, "tiles": tiles, "tile_size": peer.geometry.tile_size})
    return Incoming(
        file=file,
        peer=peer,
        placement=placement,
        record=record,
        info=info,
        source=source,
        fingerprint=fingerprint,
        folder=ask.out / f"{ask.encoder.spec.name}-{fingerprint[:8]}",
    )


def _mpp(slide_id: str, record: SlideRecord | None, info: SlideInfo | None, peer: PeerSlide, rule: MppRule) -> Mpp:
    """The slide's or the table's own value, else what the tool says, else the default.

    Raises:
        SlideError: None of them.
    """
    if info is not None:
        return info.mpp
    if record is not None and record.mpp is not None:
        return Mpp(x=record.mpp[0], y=record.mpp[1], source="table")
    if peer.geometry.slide_mpp is not None:
        return Mpp(x=peer.geometry.slide_mpp, y=peer.geometry.slide_mpp, source="tool")
    if rule.default_mpp is not None:
        return Mpp(x=rule.default_mpp, y=rule.default_mpp, source="default")
    raise SlideError(
        slide_id=slide_id,
        stage="mpp",
        cause="its µm per pixel are unknown: neither the tool's files nor slides=… tell them",
        remedy="list it in slides=… (a folder of slides, or a CSV with path, slide_id and mpp), or set default_mpp=…",
        code="E-mpp",
    )


def _fingerprint(ask: Import, peer: PeerSlide, placement: Placement) -> str:
    """Hex SHA-256 of everything that determines the rows but the slide, as far as it is known."""
    geometry = peer.geometry
    overlap = None
    if geometry.step is not None:
        overlap = round((1 - geometry.step / geometry.tile_size[0]) * geometry.tile_px)
    return address(
        {
            "schema": SCHEMA_VERSION,
            "imported_from": ask.reader.name,
            "encoder": ask.encoder.fingerprint,
            "transform": ask.encoder.spec.transform(),
            "stored_space": ask.space,
            "space": ask.made_space,
            "tile_px": geometry.tile_px,
            "tile_mpp": round(placement.tile_mpp, 6),
            "overlap_px": overlap,
        }
    )
