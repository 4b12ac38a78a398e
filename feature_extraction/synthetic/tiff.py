"""Write pixels as a pyramid that OpenSlide reads, as a scanner's file or as plain TIFF."""

import io
from pathlib import Path
from typing import Literal

import numpy as np
import tifffile
from jaxtyping import UInt8
from PIL import Image

from feature_extraction.files import publish

Flavour = Literal["aperio", "generic"]

TILE_PX = 256
"""Side of the JPEG tiles inside the file."""


def write_pyramid(
    path: Path,
    pixels: UInt8[np.ndarray, "height width 3"],
    *,
    mpp: float | None,
    flavour: Flavour,
    quality: int = 85,
) -> None:
    """Publish a pyramidal TIFF of JPEG tiles with levels 1x, 4x and, while the sides stay above 256 px, 16x.

    Args:
        path: Where to; ``.svs`` for Aperio's flavour and ``.tiff`` for the generic one by custom.
        pixels: Level 0, RGB.
        mpp: Micrometres per pixel of level 0; None writes none.
        flavour: ``aperio`` states mpp in the description, ``generic`` in the resolution tags.
        quality: JPEG quality, 1 to 100.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    stream = io.BytesIO()
    unit = "CENTIMETER" if mpp is not None and flavour == "generic" else "NONE"
    per_unit = 1e4 / mpp if mpp is not None and flavour == "generic" else 1.0
    with tifffile.TiffWriter(stream) as writer:
        for index, level in enumerate(_levels(pixels)):
            downsample = pixels.shape[0] / level.shape[0]
            writer.write(
                level,
                photometric="rgb",
                tile=(TILE_PX, TILE_PX),
                compression="jpeg",
                compressionargs={"level": quality},
                subfiletype=0 if index == 0 else 1,
                description=_aperio_description(pixels, mpp, quality) if flavour == "aperio" and index == 0 else None,
                resolution=(per_unit / downsample, per_unit / downsample),
                resolutionunit=unit,
                metadata=None,
                software=False,
                maxworkers=1,
            )
    publish(path, stream.getbuffer())


def _levels(pixels: UInt8[np.ndarray, "height width 3"]) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Level 0 and its box-averaged reductions by 4 and 16."""
    levels = [pixels]
    while len(levels) < 3 and min(levels[-1].shape[:2]) >= 4 * TILE_PX:
        levels.append(np.array(Image.fromarray(levels[-1]).reduce(4)))
    return levels


def _aperio_description(pixels: UInt8[np.ndarray, "height width 3"], mpp: float | None, quality: int) -> str:
    """What an Aperio scanner writes into ImageDescription."""
    height, width = pixels.shape[:2]
    size = f"{width}x{height} [0,0 {width}x{height}] ({TILE_PX}x{TILE_PX}) JPEG/RGB Q={quality}"
    scale = "AppMag = 20" if mpp is None else f"AppMag = {20 if mpp > 0.35 else 40}|MPP = {mpp:g}"
    return f"Aperio Image Library v0 (a drawing of promptmil)\r\n{size}|{scale}"
