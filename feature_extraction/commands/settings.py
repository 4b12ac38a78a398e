"""Composed configuration -> this package's own objects."""

import os
from collections.abc import Mapping, Sequence
from typing import cast

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from feature_extraction.batch_size import find_batch_size
from feature_extraction.embedding import Embedder
from feature_extraction.encoder import EncoderSource, EncoderSpec, Space
from feature_extraction.errors import InputError
from feature_extraction.extract import Throughput
from feature_extraction.grid import Tiling
from feature_extraction.licences import require_profile
from feature_extraction.mpp import MPP_RANGE, MppRule
from feature_extraction.plan import PlanRules
from feature_extraction.segment import read_tissue_rule
from feature_extraction.targets import construct
from feature_extraction.work import Extraction, Lane

ENCODER_PACKAGES = ("feature_extraction",)
CPU_BATCH, LARGEST_BATCH = 64, 1024
SPEC_SLACK = 1.25
"""A tile may look this much finer or coarser to the network than what it was trained at."""


def encoder_source(config: DictConfig) -> EncoderSource:
    """The encoder that ``config.encoder`` names; no weight is read.

    Raises:
        InputError: It cannot be described, or ``licence_profile`` does not allow its weights.
    """
    source = construct(plain(config.encoder), kind=EncoderSource, packages=ENCODER_PACKAGES)
    if config.licence_profile != "any":
        spec = source.spec
        require_profile(config.licence_profile, encoder=spec.name, licence=spec.licence, ancestry=spec.licence_ancestry)
    return source


def encoder_sources(config: DictConfig) -> list[EncoderSource]:
    """Every encoder of the run: ``encoder``, and those that share its reading.

    Raises:
        InputError: Two of them have one name, so their folders could not be told apart.
    """
    name = str(HydraConfig.get().job.config_name)
    others = [hydra.compose(name, [f"encoder={other}"]) for other in config.also_encoders]
    sources = [encoder_source(config), *(encoder_source(other) for other in others)]
    names = [source.spec.name for source in sources]
    if len(set(names)) < len(names):
        raise InputError(f"encoder: {', '.join(names)} are not all different; give each a name of its own in its yaml")
    return sources


def extraction(config: DictConfig, spec: EncoderSpec) -> Extraction:
    """What `promptmil extract` is asked to make.

    Raises:
        InputError: An unknown space, or a geometry the encoder was not trained for.
    """
    primary = config.space or ("joint" if "joint" in spec.widths else "backbone")
    spaces = tuple(dict.fromkeys([str(primary), *(str(space) for space in config.also)]))
    unknown = [space for space in spaces if space not in spec.widths]
    if unknown:
        raise InputError(f"space={unknown[0]}: encoder {spec.name} offers {', '.join(spec.widths)}")
    if config.precision not in ("float32", "bf16"):
        raise InputError(f"precision={config.precision}: expected float32 or bf16")
    if not 0 <= config.tolerate_bad_tiles < 1:
        raise InputError(f"tolerate_bad_tiles={config.tolerate_bad_tiles}: expected a share, 0 to below 1")
    return Extraction(
        tiling=_tiling(config, spec),
        tissue=read_tissue_rule(plain(config.tissue)),
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


def local_devices(config: DictConfig) -> list[str]:
    """Names of the devices of this machine to use.

    Raises:
        InputError: A cluster is meant, or the list is empty.
    """
    if config.cluster.name != "local":
        raise InputError(f"cluster={config.cluster.name}: only submit submits: promptmil extract submit cluster=…")
    return devices(config.device)


def devices(value: object) -> list[str]:
    """Names of devices: ``auto`` is every GPU, else the CPU.

    Raises:
        InputError: An empty list.
    """
    if value == "auto":
        n_gpus = torch.cuda.device_count()
        return [f"cuda:{index}" for index in range(n_gpus)] if n_gpus else ["cpu"]
    names = [str(name) for name in value] if isinstance(value, ListConfig) else [str(value)]
    if not names:
        raise InputError("device=[]: expected auto, a device, or a list of devices")
    return names


def plan_rules(config: DictConfig, extraction: Extraction) -> PlanRules:
    """How slides are planned.

    Raises:
        InputError: An unknown decoder.
    """
    if config.decoder not in ("auto", "openslide"):
        raise InputError(f"decoder={config.decoder}: expected auto or openslide")
    return PlanRules(
        tiling=extraction.tiling,
        tissue=extraction.tissue,
        mpp=extraction.mpp,
        may_decode=config.decoder == "auto",
        draws=bool(config.qc),
        hashes=bool(config.hash_slides),
    )


def throughput(config: DictConfig, on: torch.device, lanes: Sequence[Lane]) -> Throughput:
    """How the machine is used.

    Raises:
        InputError: A number that makes no sense.
    """
    if not isinstance(config.stall_seconds, int | float) or config.stall_seconds <= 0:
        raise InputError(f"stall_seconds={config.stall_seconds}: expected seconds above 0")
    return Throughput(
        device=on,
        batch_size=_batch_size(config.batch_size, on, lanes),
        n_threads=n_threads(config.threads),
        mix_slides=bool(config.mix_slides),
        stall_seconds=float(config.stall_seconds),
        waits_for_others=bool(config.wait),
    )


def _batch_size(value: object, on: torch.device, lanes: Sequence[Lane]) -> int:
    """``auto`` is 64 on a CPU, where larger gains nothing, and by trial on anything else."""
    if value != "auto":
        return at_least_one("batch_size", value)
    if on.type == "cpu":
        return CPU_BATCH
    side = lanes[0].extraction.tiling.tile_px
    embedders = [Embedder(lane, on, LARGEST_BATCH) for lane in lanes]
    return min(
        find_batch_size(lambda n, e=embedder: e.try_out(n, side), largest=LARGEST_BATCH) for embedder in embedders
    )


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
    tile_px = at_least_one("tiling.tile_px", config.tiling.tile_px or spec.tile_px or spec.resized_px)
    step_px = at_least_one("tiling.step_px", config.tiling.step_px or tile_px)
    tile_mpp = config.tiling.tile_mpp or spec.tile_mpp
    if tile_mpp is None:
        raise InputError(
            f"tiling.tile_mpp: encoder {spec.name} does not say what it was trained at; set tiling.tile_mpp=…"
        )
    if not isinstance(tile_mpp, int | float) or tile_mpp <= 0:
        raise InputError(f"tiling.tile_mpp={tile_mpp}: expected µm per pixel above 0")
    seen_mpp = tile_px * float(tile_mpp) / spec.resized_px
    is_off = spec.tile_mpp is not None and not 1 / SPEC_SLACK <= seen_mpp / spec.tile_mpp <= SPEC_SLACK
    if is_off and not config.tiling.allow_off_spec:
        raise InputError(
            f"tiling: {tile_px} px at {tile_mpp} µm are {seen_mpp:.3g} µm per pixel to {spec.name}, trained at "
            f"{spec.tile_mpp}; change tiling.tile_px or tiling.tile_mpp, or set tiling.allow_off_spec=true"
        )
    return Tiling(tile_px=tile_px, tile_mpp=float(tile_mpp), step_px=step_px)
