"""One slide in work: its claim, its journal, and the moment it is sealed into a feature file."""

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float16, Float32

from feature_extraction.encoder import EncoderSpec, Space
from feature_extraction.errors import SlideError
from feature_extraction.files import address
from feature_extraction.grid import Tiling
from feature_extraction.header import FeatureHeader
from feature_extraction.journal import Journal
from feature_extraction.mpp import MppRule
from feature_extraction.plan import SlidePlan
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
    """

    tiling: Tiling
    tissue: TissueRule
    mpp: MppRule
    spaces: tuple[Space, ...]
    precision: str = "float32"
    tolerate_bad_tiles: float = 0.0

    def fingerprint(self, spec: EncoderSpec, encoder_fingerprint: str) -> str:
        """Hex SHA-256 of this configuration with these weights; its first 8 digits name the folder.

        What is tolerated of a slide and how its mpp may be found are left out: they change whether a slide can be done,
        and a file says what was done. So following the remedy of one slide does not make the others again.
        """
        content = json.loads(json.dumps(asdict(self)))
        del content["mpp"], content["tolerate_bad_tiles"]
        transform = spec.transform()
        return address({"schema": SCHEMA_VERSION, "encoder": encoder_fingerprint, "transform": transform, **content})


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderFacts:
    """What a feature file says of the encoder that made it.

    Attributes:
        spec: The facts known before the weights.
        fingerprint: Of the weights.
        logit_scale: Natural logarithm of the factor on the cosine.
        logit_bias: Added to the scaled cosine.
    """

    spec: EncoderSpec
    fingerprint: str
    logit_scale: float
    logit_bias: float


class SlideWork:
    """A slide whose rows are being made. Closing it keeps the journal for the next run.

    Args:
        plan: What is read.
        extraction: How.
        facts: By which encoder.
        folder: The feature folder.
        claim: Holds the claim on this slide until the work is closed.
    """

    def __init__(
        self, plan: SlidePlan, extraction: Extraction, facts: EncoderFacts, folder: Path, claim: ExitStack
    ) -> None:
        self.plan = plan
        self.slide_id = plan.record.slide_id
        self.path = folder / f"{self.slide_id}.h5"
        self._extraction = extraction
        self._facts = facts
        self._claim = claim
        self._widths = [facts.spec.widths[space] for space in extraction.spaces]
        self._fingerprint = extraction.fingerprint(facts.spec, facts.fingerprint)
        key = address(
            {
                "extraction": self._fingerprint,
                "slide": plan.info.fingerprint,
                "mpp": [plan.info.mpp.x, plan.info.mpp.y],
                "tiles": len(plan.coords_lv0),
            }
        )
        self._journal = Journal(
            journal_path(folder, self.slide_id), key=key, width=sum(self._widths), dtype=np.dtype(np.float16)
        )
        self._n_bad = int(np.isnan(self._journal.read()[:, 0]).sum())
        self.is_open = True

    @property
    def n_done(self) -> int:
        """Rows in the journal, good and bad."""
        return self._journal.n_rows

    @property
    def is_complete(self) -> bool:
        """Whether every row is in the journal."""
        return self.n_done == len(self.plan.coords_lv0)

    @property
    def n_bad(self) -> int:
        """Tiles that could not be read."""
        return self._n_bad

    def check_bad(self, is_read: Bool[np.ndarray, " tile"], error: SlideError | None) -> None:
        """Count unreadable tiles against what is tolerated.

        Raises:
            SlideError: Too many; the first error of this slide.
        """
        self._n_bad += int((~is_read).sum())
        if error is not None and self._n_bad > self._extraction.tolerate_bad_tiles * len(self.plan.coords_lv0):
            raise error

    def accept(self, rows: Float32[np.ndarray, "tile width"], is_read: Bool[np.ndarray, " tile"]) -> None:
        """Take the next rows into the journal; an unreadable tile becomes a row of nan that sealing leaves out.

        Raises:
            SlideError: A vector is not finite in half precision, or the disk refuses.
        """
        stored = to_half(rows)
        self._require_finite(rows, is_read, "the encoder gave a value that is not finite")
        self._require_finite(stored, is_read, "a value is larger than half precision holds (65504)")
        stored[~is_read] = np.nan
        try:
            self._journal.append(stored)
        except OSError as error:
            raise self._disk_error(error) from error

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
            raise self._disk_error(error) from error

    def _seal(self) -> int:
        values = self._journal.read()
        is_good = ~np.isnan(values[:, 0])
        parts = np.split(values[is_good], np.cumsum(self._widths)[:-1], axis=1)
        rows = FeatureRows(
            spaces={space: np.ascontiguousarray(part) for space, part in zip(self._spaces(), parts, strict=True)},
            coords_lv0=self.plan.coords_lv0[is_good],
            tissue_fraction=self.plan.tissue_fraction[is_good],
            failed_coords_lv0=self.plan.coords_lv0[~is_good],
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

    def _spaces(self) -> Sequence[str]:
        return self._extraction.spaces

    def _header(self) -> FeatureHeader:
        info, spec, tiling = self.plan.info, self._facts.spec, self._extraction.tiling
        primary = self._extraction.spaces[0]
        return FeatureHeader(
            slide_id=self.slide_id,
            slide_fingerprint=info.fingerprint,
            encoder=spec.name,
            encoder_fingerprint=self._facts.fingerprint,
            extraction_fingerprint=self._fingerprint,
            space=primary,
            normalized=primary == "joint",
            logit_scale=self._facts.logit_scale,
            logit_bias=self._facts.logit_bias,
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
            tissue=json.dumps(asdict(self._extraction.tissue)),
            precision=self._extraction.precision,
            reader="openslide",
            created_with=f"promptmil {importlib.metadata.version('promptmil')}",
        )

    def _disk_error(self, error: OSError) -> SlideError:
        return SlideError(
            slide_id=self.slide_id,
            stage="write",
            cause=f"{self.path.parent.name} cannot be written: {error.strerror or error}",
            remedy="free space or choose another out=…, then run the same command again",
            code="E-disk",
        )


def journal_path(folder: Path, slide_id: str) -> Path:
    """Where the rows of a slide in work lie."""
    return folder / ".work" / "journal" / f"{slide_id}.rows"


def to_half(rows: Float32[np.ndarray, "tile width"]) -> Float16[np.ndarray, "tile width"]:
    """Round to half precision; what does not fit becomes infinite, quietly, for the caller to refuse."""
    with np.errstate(over="ignore"):
        return rows.astype(np.float16)


def side_by_side(embeddings: Mapping[str, Float32[np.ndarray, "tile dim"]], spaces: Sequence[str]) -> np.ndarray:
    """The embeddings of one batch as journal rows: all spaces of a tile in one row, in the order of ``spaces``."""
    return np.concatenate([embeddings[space] for space in spaces], axis=1)
