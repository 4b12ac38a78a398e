"""One slide in work: its claim, its journal, and the moment it is sealed into a feature file."""

import importlib.metadata
import json
import shutil
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float16, Float32

from feature_extraction.claims import is_still_ours
from feature_extraction.encoder import Encoder, EncoderSpec, Space
from feature_extraction.errors import SlideError
from feature_extraction.files import address, publish
from feature_extraction.grid import Tiling
from feature_extraction.header import FeatureHeader
from feature_extraction.journal import Journal
from feature_extraction.mpp import MppRule
from feature_extraction.plan import SlidePlan
from feature_extraction.reading import ReadingRule
from feature_extraction.segment import facts_in
from feature_extraction.status import Outcome
from feature_extraction.store import SCHEMA_VERSION, FeatureRows, write_features
from feature_extraction.tissue import TissueRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """Everything that determines the rows, beside the slide and the weights.

    Attributes:
        tiling: What a tile is.
        tissue: Which tiles are kept.
        mpp: What to do when a slide does not say its mpp.
        spaces: Which embeddings to keep; the first is the primary one.
        precision: Arithmetic of the encoder.
        tolerate_bad_tiles: Share of a slide's tiles that may be unreadable; they are left out and listed.
        reading: How tiles are chosen among those with tissue, None to read them all.
    """

    tiling: Tiling
    tissue: TissueRule
    mpp: MppRule
    spaces: tuple[Space, ...]
    precision: str = "float32"
    tolerate_bad_tiles: float = 0.0
    reading: ReadingRule | None = None

    def fingerprint(self, spec: EncoderSpec, encoder_fingerprint: str) -> str:
        """Hex SHA-256 of this configuration with these weights; its first 8 digits name the folder.

        What is tolerated of a slide and how its mpp may be found are left out: they change whether a slide can be done,
        and a file says what was done. So following the remedy of one slide does not make the others again.
        """
        content = json.loads(json.dumps(asdict(self)))
        del content["mpp"], content["tolerate_bad_tiles"]
        content["tissue"] = self.tissue.described()
        if self.reading is None:
            del content["reading"]  # as before there was a choice: the folders of complete extractions keep their names
        transform = spec.transform()
        return address({"schema": SCHEMA_VERSION, "encoder": encoder_fingerprint, "transform": transform, **content})


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One encoder of a run, and where its rows go.

    Attributes:
        encoder: Loaded weights.
        extraction: What to make with them.
        folder: The feature folder.
    """

    encoder: Encoder
    extraction: Extraction
    folder: Path

    @classmethod
    def of(cls, encoder: Encoder, extraction: Extraction, out: Path) -> "Lane":
        """A lane into ``<out>/<encoder>-<hash8>``: two configurations can never share a folder."""
        name = f"{encoder.spec.name}-{extraction.fingerprint(encoder.spec, encoder.fingerprint)[:8]}"
        return cls(encoder=encoder, extraction=extraction, folder=out / name)

    @property
    def fingerprint(self) -> str:
        """Of the configuration with these weights."""
        return self.extraction.fingerprint(self.encoder.spec, self.encoder.fingerprint)

    @property
    def widths(self) -> list[int]:
        """Of each space that is kept."""
        return [self.encoder.spec.widths[space] for space in self.extraction.spaces]


class SlideWork:
    """A slide whose rows are being made for one encoder. Closing it keeps the journal for the next run.

    Args:
        plan: What is read.
        lane: For which encoder.
    """

    def __init__(self, plan: SlidePlan, lane: Lane) -> None:
        self.plan = plan
        self.lane = lane
        self.slide_id = plan.record.slide_id
        self.folder = lane.folder
        self.path = lane.folder / f"{self.slide_id}.h5"
        self._claim = ExitStack()
        key = address(
            {
                "extraction": lane.fingerprint,
                "slide": plan.info.fingerprint,
                "mpp": [plan.info.mpp.x, plan.info.mpp.y],
                "tissue": dict(plan.tissue),
                "tiles": len(plan.coords_lv0),
                **({} if plan.chosen is None else {"reading": plan.chosen.described}),
            }
        )
        if plan.qc_jpeg:
            publish(lane.folder / "qc" / f"{self.slide_id}.jpg", plan.qc_jpeg)
        self._journal = Journal(
            journal_path(lane.folder, self.slide_id), key=key, width=sum(lane.widths), dtype=np.dtype(np.float16)
        )
        self._n_bad = int(np.isnan(self._journal.read()[:, 0]).sum())
        self.is_open = True

    def keep(self, claim: ExitStack) -> None:
        """Take the claim over: it is ours until the work is closed."""
        self._claim = claim

    @property
    def n_done(self) -> int:
        """Rows in the journal, good and bad."""
        return self._journal.n_rows

    @property
    def is_complete(self) -> bool:
        """Whether every row is in the journal."""
        return self.n_done == len(self.plan.coords_lv0)

    def is_ours(self) -> bool:
        """Whether nobody has taken the slide over from us; asked before anything is written."""
        return self.is_open and is_still_ours(lock_path(self.folder, self.slide_id))

    def require_room(self) -> None:
        """Refuse a slide whose rows would not fit on the disk, before the first of them is made.

        Raises:
            SlideError: Too little is free.
        """
        n_left = len(self.plan.coords_lv0) - self.n_done
        # The rows that lack in the journal, and the whole file beside it.
        needed = (n_left + len(self.plan.coords_lv0)) * sum(self.lane.widths) * 2
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise self._disk_error(f"{needed:,} bytes are needed, {free:,} are free")

    def accept(
        self, rows: Float32[np.ndarray, "tile width"], is_read: Bool[np.ndarray, " tile"], error: SlideError | None
    ) -> None:
        """Take the next rows into the journal; an unreadable tile becomes a row of nan that sealing leaves out.

        Args:
            rows: Of all spaces side by side.
            is_read: Which of them come from a tile.
            error: Why the others do not.

        Raises:
            SlideError: More tiles are unreadable than tolerated (the given error), a vector is not finite in half
                precision, or the disk refuses.
        """
        self._n_bad += int((~is_read).sum())
        if error is not None and self._n_bad > self.lane.extraction.tolerate_bad_tiles * len(self.plan.coords_lv0):
            raise error
        stored = to_half(rows)
        self._require_finite(rows, is_read, "the encoder gave a value that is not finite")
        self._require_finite(stored, is_read, "a value is larger than half precision holds (65504)")
        stored[~is_read] = np.nan
        try:
            self._journal.append(stored)
        except OSError as fault:
            raise self._disk_error(fault.strerror or str(fault)) from fault

    def _require_finite(self, rows: np.ndarray, is_read: Bool[np.ndarray, " tile"], cause: str) -> None:
        is_bad = is_read & ~np.isfinite(rows).all(axis=1)
        if is_bad.any():
            row = self.n_done + int(np.argmax(is_bad))
            x, y = self.plan.coords_lv0[row]
            raise SlideError(
                slide_id=self.slide_id,
                stage="embed",
                cause=f"{cause}, for tile {row} at level-0 ({x}, {y})",
                remedy="check the encoder's weights (promptmil doctor), or keep another space",
                code="E-nonfinite",
            )

    def seal(self) -> int:
        """Publish the feature file, remove the journal, free the claim.

        Returns:
            The number of rows in the file.

        Raises:
            SlideError: The disk refuses; the journal stays.
        """
        try:
            return self._seal()
        except OSError as error:
            raise self._disk_error(error.strerror or str(error)) from error

    def _seal(self) -> int:
        values = self._journal.read()
        is_good = ~np.isnan(values[:, 0])
        parts = np.split(values[is_good], np.cumsum(self.lane.widths)[:-1], axis=1)
        rows = FeatureRows(
            spaces={
                space: np.ascontiguousarray(part)
                for space, part in zip(self.lane.extraction.spaces, parts, strict=True)
            },
            coords_lv0=self.plan.coords_lv0[is_good],
            tissue_fraction=self.plan.tissue_fraction[is_good],
            failed_coords_lv0=self.plan.coords_lv0[~is_good],
            chosen=None if self.plan.chosen is None else self.plan.chosen.where(is_good),
        )
        write_features(self.path, self._header(), rows)
        self._journal.remove()
        self.is_open = False
        self._claim.close()
        return int(is_good.sum())

    def close(self) -> None:
        """Stop here; rows and journal stay for the next run."""
        if self.is_open:
            self.is_open = False
            try:
                self._journal.close()
            finally:
                self._claim.close()

    def outcome(self, n_tiles: int) -> Outcome:
        """What to say of this slide once it is sealed with ``n_tiles`` rows."""
        return Outcome(
            slide_id=self.slide_id,
            status="done" if n_tiles else "empty",
            is_new=True,
            n_tiles=n_tiles,
            n_failed=self._n_bad,
            slide_mpp=self.plan.info.mpp.x,
            mpp_source=self.plan.info.mpp.source,
            reader=self.plan.decoder,
            file=self.path.name,
            **asdict(facts_in(self.plan.tissue)),
        )

    def _header(self) -> FeatureHeader:
        info, extraction, encoder = self.plan.info, self.lane.extraction, self.lane.encoder
        spec, tiling, primary = encoder.spec, extraction.tiling, extraction.spaces[0]
        return FeatureHeader(
            slide_id=self.slide_id,
            slide_fingerprint=info.fingerprint,
            encoder=spec.name,
            encoder_fingerprint=encoder.fingerprint,
            extraction_fingerprint=self.lane.fingerprint,
            space=primary,
            normalized=primary == "joint",
            logit_scale=encoder.logit_scale,
            logit_bias=encoder.logit_bias,
            licence=spec.licence,
            licence_ancestry=json.dumps(list(spec.licence_ancestry)),
            slide_mpp_x=info.mpp.x,
            slide_mpp_y=info.mpp.y,
            mpp_source=info.mpp.source,
            tile_mpp=tiling.tile_mpp,
            tile_size_px=tiling.tile_px,
            tile_size_lv0=json.dumps(list(self.plan.grid.size_lv0)),
            step_lv0=json.dumps(list(self.plan.grid.step_lv0)),
            read_level=self.plan.level,
            level0_width=info.width_lv0,
            level0_height=info.height_lv0,
            bounds_lv0=json.dumps(list(info.bounds_lv0)),
            objective_power=info.objective_power or 0.0,
            transform=json.dumps(spec.transform()),
            tissue=json.dumps(dict(self.plan.tissue)),
            precision=extraction.precision,
            reader=self.plan.decoder,
            created_with=f"promptmil {importlib.metadata.version('promptmil')}",
            slide_sha256=self.plan.slide_sha256,
            reading="" if self.plan.chosen is None else self.plan.chosen.described,
        )

    def _disk_error(self, said: str) -> SlideError:
        return SlideError(
            slide_id=self.slide_id,
            stage="write",
            cause=f"{self.folder.name} cannot be written: {said}",
            remedy="free space or choose another out=…, then run the same command again",
            code="E-disk",
        )


def journal_path(folder: Path, slide_id: str) -> Path:
    """Where the rows of a slide in work lie."""
    return folder / ".work" / "journal" / f"{slide_id}.rows"


def lock_path(folder: Path, slide_id: str) -> Path:
    """What a worker claims before it works on a slide."""
    return folder / ".work" / "locks" / f"{slide_id}.lock"


def to_half(rows: Float32[np.ndarray, "tile width"]) -> Float16[np.ndarray, "tile width"]:
    """Round to half precision; what does not fit becomes infinite, quietly, for the caller to refuse."""
    with np.errstate(over="ignore"):
        return rows.astype(np.float16)
