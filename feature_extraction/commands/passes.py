"""The passes of an extraction: one over all tissue, or a coarse one and a finer one where it points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from feature_extraction.coarse import CoarseReading
from feature_extraction.encoder import EncoderSource
from feature_extraction.errors import InputError, MismatchError
from feature_extraction.grid import Tiling
from feature_extraction.links import require_no_way_out
from feature_extraction.reading import ClassWords, ReadingRule
from feature_extraction.text_bank import TextBank, read_bank, require_match
from feature_extraction.work import Extraction, Lane

COARSE = "coarse"
"""Folder in ``out`` of the coarse features, so that ``features=<out>`` still means the fine ones."""
COARSER = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One run over the slides.

    Attributes:
        out: For the feature folders and tables.
        groups: The encoders by tile geometry.
        coarse: Chooses the tiles, None to read all tissue.
        must_wait: Whether slides that other workers have are waited for, whatever the configuration says.
    """

    out: Path
    groups: Mapping[Tiling, Sequence[Lane]]
    coarse: CoarseReading | None = None
    must_wait: bool = False

    @property
    def folders(self) -> list[Path]:
        """The feature folders."""
        return [lane.folder for lanes in self.groups.values() for lane in lanes]


def bank_to_read_by(config: DictConfig, sources: Sequence[EncoderSource]) -> TextBank | None:
    """The words that ``reading`` goes by, None when all tissue is read. No weights are read.

    Raises:
        InputError: An unknown method, a number out of range, several encoders, or no such bank.
        MismatchError: The encoder has no text tower.
    """
    reading = config.reading
    if reading.method == "all":
        return None
    if reading.method != "budget":
        raise InputError(f"reading.method={reading.method}: unknown; known: all, budget")
    _require_numbers(config)
    if len(sources) > 1:
        raise InputError("reading=budget: each encoder would choose other tiles; extract with one encoder at a time")
    spec = sources[0].spec
    if not spec.has_text or "joint" not in spec.widths:
        raise MismatchError(
            f"reading=budget: encoder {spec.name} has no text tower to choose tiles by; choose one that has, or "
            "reading=all"
        )
    return read_bank(Path(reading.bank))


def passes_of(config: DictConfig, groups: Mapping[Tiling, Sequence[Lane]], bank: TextBank | None) -> tuple[Pass, ...]:
    """What to run, in order.

    Args:
        config: Of the command.
        groups: The encoders as if all tissue were read.
        bank: Of `bank_to_read_by`.

    Raises:
        InputError: The coarse level is not coarser.
        MismatchError: The bank is of other weights.
    """
    out = Path(config.out)
    if bank is None:
        return (Pass(out=out, groups=groups),)
    ((lane,),) = groups.values()
    encoder = lane.encoder
    require_match(bank, encoder=encoder.spec.name, encoder_fingerprint=encoder.fingerprint, space="joint")
    first = Lane.of(encoder, coarse_extraction(lane.extraction, config.reading.coarse_mpp), out / COARSE)
    require_no_way_out(out, first.folder)
    rule = ReadingRule(
        budget=config.reading.budget,
        uncertain=float(config.reading.uncertain),
        prompt_set=bank.prompt_set,
        prompt_set_sha256=bank.prompt_set_sha256,
        coarse_mpp=first.extraction.tiling.tile_mpp,
        coarse_fingerprint=first.fingerprint,
    )
    second = Lane.of(encoder, replace(lane.extraction, reading=rule), out)
    coarse = CoarseReading(folder=first.folder, rule=rule, words=class_words(bank))
    return (
        Pass(out=out / COARSE, groups={first.extraction.tiling: [first]}, must_wait=True),
        Pass(out=out, groups={second.extraction.tiling: [second]}, coarse=coarse),
    )


def coarse_extraction(fine: Extraction, coarse_mpp: object) -> Extraction:
    """How the coarse look is made: the same tissue in larger tiles, in the joint space only.

    A coarse tile is kept where one kept fine tile would fill it so far, so that hardly a fine one lacks its parent.

    Raises:
        InputError: It would not be coarser.
    """
    tiling = fine.tiling
    mpp = COARSER * tiling.tile_mpp if coarse_mpp is None else coarse_mpp
    if isinstance(mpp, bool) or not isinstance(mpp, int | float) or not mpp > tiling.tile_mpp:
        raise InputError(f"reading.coarse_mpp={mpp}: expected µm per pixel above the tiles' ({tiling.tile_mpp})")
    share = (tiling.tile_mpp / mpp) ** 2
    return replace(
        fine,
        tiling=Tiling(tile_px=tiling.tile_px, tile_mpp=float(mpp), step_px=tiling.tile_px),
        tissue=replace(fine.tissue, min_fraction=fine.tissue.min_fraction * share),
        spaces=("joint",),
    )


def class_words(bank: TextBank) -> ClassWords:
    """The classes of a bank as vectors."""
    names, background = bank.class_names(), bank.background()
    return ClassWords(
        vectors=np.stack([bank.class_vector(name) for name in names]),
        background=None if background is None else names.index(background),
        scale=float(np.exp(bank.logit_scale)),
    )


def _require_numbers(config: DictConfig) -> None:
    budget, uncertain = config.reading.budget, config.reading.uncertain
    is_number = isinstance(budget, int) and not isinstance(budget, bool) and budget >= 1
    if not is_number and not (isinstance(budget, float) and 0 < budget <= 1):
        raise InputError(
            f"reading.budget={budget}: expected a number of tiles (500) or a share of them (above 0, to 1.0)"
        )
    if isinstance(uncertain, bool) or not isinstance(uncertain, int | float) or not 0 <= uncertain <= 1:
        raise InputError(f"reading.uncertain={uncertain}: expected a share of the budget, 0 to 1")
