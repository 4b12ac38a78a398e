"""A map as a pyramidal OME-TIFF: float32, a channel for each class, every level in its place on the slide."""

import io
import math
import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import tifffile
from jaxtyping import Float32

from feature_extraction.files import address
from feature_extraction.pseudonyms import printable
from mil.heatmap.about import USE
from mil.heatmap.contributions import Explanation
from mil.heatmap.exports.placement import MapPixels, SlidePlace, map_pixels, map_values

TIFF_TILE = 256
"""Side of the tiles inside the file."""
LONGEST_TOP = 1024
"""Pixels of the longer side that the coarsest level may have, unless a pixel is smaller than a tile."""
NAMESPACE = "promptmil/map"


def map_ome_tiff(explanation: Explanation, classes: Sequence[str], place: SlidePlace) -> bytes:
    """The contributions of every class, and the evidence of every class where most tiles contribute nothing.

    A pixel of any level is the mean of the tiles that cover its centre, nan where none does: levels are computed from
    the tiles and not from each other, so that none is shifted or blurred. Each is exactly half of the one before, the
    size of the first being padded for that. ``PhysicalSizeX`` and ``Y`` are µm of a pixel, ``PositionX`` and ``Y`` of a
    plane the map's top-left corner in µm from the top-left corner of the full slide; the same in level-0 pixels is in
    the annotation `NAMESPACE`.

    Args:
        explanation: Of one slide at one magnification.
        classes: In the order of the columns of the layers.
        place: Of the slide.
    """
    names, layers = _channels(explanation, classes)
    pixels = _padded(map_pixels(explanation.bag, place), n_levels := _n_levels(explanation, place))
    levels = [
        np.stack([map_values(explanation.bag, layer, halved(pixels, level)) for layer in layers]).astype(np.float32)
        for level in range(n_levels)
    ]
    return _tiff(levels, names, pixels, place, explanation.bag.slide_id)


def halved(pixels: MapPixels, times: int) -> MapPixels:
    """The pixels of a coarser level, each side halved some times."""
    factor = 2**times
    return replace(
        pixels,
        pixel_lv0=(pixels.pixel_lv0[0] * factor, pixels.pixel_lv0[1] * factor),
        shape=(pixels.shape[0] // factor, pixels.shape[1] // factor),
    )


def _channels(explanation: Explanation, classes: Sequence[str]) -> tuple[list[str], list[np.ndarray]]:
    """Names and values of the channels."""
    layers = {"contribution": explanation.contribution}
    if explanation.is_sparse:
        layers["evidence"] = explanation.evidence
    named = {
        f"{layer} {printable(name)}": values[:, column]
        for layer, values in layers.items()
        for column, name in enumerate(classes)
    }
    return list(named), list(named.values())


def _n_levels(explanation: Explanation, place: SlidePlace) -> int:
    """As many as there are until a pixel is as large as a tile and the picture is small."""
    pixels = map_pixels(explanation.bag, place)
    pairs = zip(explanation.bag.size_lv0, pixels.pixel_lv0, strict=True)
    until_tile = math.floor(math.log2(max(1.0, min(size / pixel for size, pixel in pairs) + 1e-9)))
    until_small = math.ceil(math.log2(max(1.0, max(pixels.shape) / LONGEST_TOP)))
    return 1 + max(until_tile, until_small)


def _padded(pixels: MapPixels, n_levels: int) -> MapPixels:
    """A size that can be halved without a rest: readers tell a level's scale from the ratio of the sizes."""
    unit = 2 ** (n_levels - 1)
    rows, columns = (-(-extent // unit) * unit for extent in pixels.shape)
    return replace(pixels, shape=(rows, columns))


def _tiff(
    levels: Sequence[Float32[np.ndarray, "channel _ _"]],
    names: Sequence[str],
    pixels: MapPixels,
    place: SlidePlace,
    slide_id: str,
) -> bytes:
    um = [pixel * mpp for pixel, mpp in zip(pixels.pixel_lv0, place.slide_mpp, strict=True)]
    corner_um = [corner * mpp for corner, mpp in zip(pixels.origin_lv0, place.slide_mpp, strict=True)]
    key = {"slide": slide_id, **asdict(pixels), "channels": list(names), "sum": [float(np.nansum(levels[0]))]}
    metadata = {
        "axes": "CYX",
        "Name": printable(slide_id),
        "UUID": str(uuid.UUID(address(key)[:32])),  # derived, so that the same map is the same file
        "Creator": "promptmil",
        "PhysicalSizeX": um[0],
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": um[1],
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": list(names)},
        "Plane": {
            "PositionX": [corner_um[0]] * len(names),
            "PositionXUnit": ["µm"] * len(names),
            "PositionY": [corner_um[1]] * len(names),
            "PositionYUnit": ["µm"] * len(names),
        },
        "MapAnnotation": {
            "Namespace": NAMESPACE,
            "x_lv0": repr(pixels.origin_lv0[0]),
            "y_lv0": repr(pixels.origin_lv0[1]),
            "pixel_width_lv0": repr(pixels.pixel_lv0[0]),
            "pixel_height_lv0": repr(pixels.pixel_lv0[1]),
            "slide_width_lv0": repr(place.size_lv0[0]),
            "slide_height_lv0": repr(place.size_lv0[1]),
            "use": USE,
        },
    }
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream, ome=True) as writer:
        for number, level in enumerate(levels):
            writer.write(
                level,
                photometric="minisblack",
                planarconfig=None,
                tile=(TIFF_TILE, TIFF_TILE),
                compression="deflate",
                resolution=(1e4 / um[0] / 2**number, 1e4 / um[1] / 2**number),
                resolutionunit="CENTIMETER",
                metadata=metadata if number == 0 else None,
                subifds=len(levels) - 1 if number == 0 else None,
                subfiletype=0 if number == 0 else 1,
                software=False,
                maxworkers=1,
            )
    return stream.getvalue()
