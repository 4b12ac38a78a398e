"""Composed configuration -> this package's own objects."""

import os
from collections.abc import Mapping
from typing import cast

import torch
from omegaconf import DictConfig, OmegaConf

from feature_extraction.encoder import EncoderSource, EncoderSpec, Space
from feature_extraction.errors import InputError
from feature_extraction.files import as_record
from feature_extraction.grid import Tiling
from feature_extraction.mpp import MPP_RANGE, MppRule
from feature_extraction.targets import construct
from feature_extraction.tissue import TissueRule
from feature_extraction.work import Extraction

ENCODER_PACKAGES = ("feature_extraction",)
SPEC_SLACK = 1.25
"""A tile may look this much finer or coarser to the network than what it was trained at."""


def encoder_source(config: DictConfig) -> EncoderSource:
    """The encoder that ``config.encoder`` names; no weight is read."""
    return construct(plain(config.encoder), kind=EncoderSource, packages=ENCODER_PACKAGES)


def extraction(config: DictConfig, spec: EncoderSpec) -> Extraction:
    """What `promptmil extract` is asked to make.

    Raises:
        InputError: An unknown space, or a geometry the encoder was not trained for.
    """
    spaces = tuple(dict.fromkeys([str(config.space), *(str(space) for space in config.also)]))
    unknown = [space for space in spaces if space not in spec.widths]
    if unknown:
        raise InputError(f"space={unknown[0]}: encoder {spec.name} offers {', '.join(spec.widths)}")
    if config.precision not in ("float32", "bf16"):
        raise InputError(f"precision={config.precision}: expected float32 or bf16")
    if not 0 <= config.tolerate_bad_tiles < 1:
        raise InputError(f"tolerate_bad_tiles={config.tolerate_bad_tiles}: expected a share, 0 to below 1")
    return Extraction(
        tiling=_tiling(config, spec),
        tissue=as_record(TissueRule, plain(config.tissue), "tissue"),
        mpp=MppRule(default_mpp=_default_mpp(config.default_mpp), from_objective=bool(config.mpp_from_objective)),
        spaces=cast("tuple[Space, ...]", spaces),
        precision=str(config.precision),
        tolerate_bad_tiles=float(config.tolerate_bad_tiles),
    )


def device(name: str) -> torch.device:
    """``auto`` takes the GPU when there is one.

    Raises:
        InputError: No such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device={name}: not on this machine ({str(error).splitlines()[0]}); use device=auto"
        ) from error
    return found


def n_threads(value: str | int) -> int:
    """``auto`` is one reader thread a core."""
    return os.cpu_count() or 1 if value == "auto" else at_least_one("threads", value)


def at_least_one(key: str, value: object) -> int:
    """A whole number from 1.

    Raises:
        InputError: It is not; the message names the key.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{key}={value}: expected a whole number of at least 1")
    return value


def plain(config: DictConfig) -> Mapping[str, object]:
    """A part of the configuration as plain, resolved data."""
    return cast("dict[str, object]", OmegaConf.to_container(config, resolve=True))


def _default_mpp(value: object) -> float | None:
    if value is None:
        return None
    low, high = MPP_RANGE
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"default_mpp={value}: expected µm per pixel between {low} and {high}")
    return float(value)


def _tiling(config: DictConfig, spec: EncoderSpec) -> Tiling:
    tile_px = at_least_one("tiling.tile_px", config.tiling.tile_px or spec.input_px)
    step_px = at_least_one("tiling.step_px", config.tiling.step_px or tile_px)
    tile_mpp = config.tiling.tile_mpp or spec.tile_mpp
    if tile_mpp is None:
        raise InputError(
            f"tiling.tile_mpp: encoder {spec.name} does not say what it was trained at; set tiling.tile_mpp=…"
        )
    if not isinstance(tile_mpp, int | float) or tile_mpp <= 0:
        raise InputError(f"tiling.tile_mpp={tile_mpp}: expected µm per pixel above 0")
    seen_mpp = tile_px * float(tile_mpp) / spec.input_px
    is_off = spec.tile_mpp is not None and not 1 / SPEC_SLACK <= seen_mpp / spec.tile_mpp <= SPEC_SLACK
    if is_off and not config.tiling.allow_off_spec:
        raise InputError(
            f"tiling: {tile_px} px at {tile_mpp} µm are {seen_mpp:.3g} µm per pixel to {spec.name}, trained at "
            f"{spec.tile_mpp}; change tiling.tile_px or tiling.tile_mpp, or set tiling.allow_off_spec=true"
        )
    return Tiling(tile_px=tile_px, tile_mpp=float(tile_mpp), step_px=step_px)
