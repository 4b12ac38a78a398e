"""Small real slides for tests: tiled JPEG or deflate pyramids that OpenSlide opens, with known pixels."""

from pathlib import Path

import numpy as np
import tifffile

APERIO = "Aperio Image Library v12.0\n{w}x{h} [0,0 {w}x{h}] (256x256) JPEG/RGB Q=90|AppMag = {power}|MPP = {mpp}"


def tissue_pixels(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Pink noise in the middle of white glass: tissue to any detector, different at every pixel."""
    generator = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 245, np.uint8)
    blocks = generator.integers(0, 60, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, axis=0).repeat(8, axis=1)
    stain = (np.array([225, 120, 190]) - blocks[:height, :width]).clip(0, 255).astype(np.uint8)
    y, x = height // 8, width // 8
    pixels[y : height - y, x : width - x] = stain[y : height - y, x : width - x]
    return pixels


def write_slide(
    path: Path,
    pixels: np.ndarray,
    *,
    mpp: str | None = "0.5",
    power: str | None = "20",
    lossless: bool = True,
    levels: tuple[int, ...] = (1, 4),
) -> Path:
    """Write an Aperio-like pyramid; lossless, so that tests can compare pixels exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = pixels.shape[:2]
    description = APERIO.format(w=width, h=height, power=power, mpp=mpp)
    if mpp is None:
        description = description.split("|MPP")[0]
    if power is None:
        description = description.replace(f"|AppMag = {power}", "")
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "deflate" if lossless else "jpeg"}
    with tifffile.TiffWriter(path) as tiff:
        for factor in levels:
            level = pixels[::factor, ::factor] if factor > 1 else pixels
            tiff.write(level, description=description if factor == 1 else None, metadata=None, **options)
    return path


SCN = (
    '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="u">'
    '<collection name="c" uuid="u" sizeX="{0}" sizeY="{1}"><image name="i" uuid="u">'
    '<creationDate>2020-01-01T00:00:00</creationDate><device model="Leica SCN400;" version="1"/>'
    '<pixels sizeX="{2}" sizeY="{3}"><dimension sizeX="{2}" sizeY="{3}" r="0" ifd="0"/></pixels>'
    '<view sizeX="{4}" sizeY="{5}" offsetX="{6}" offsetY="{7}" spacingZ="0"/><scanSettings><objectiveSettings>'
    "<objective>20</objective></objectiveSettings><illuminationSettings><numericalAperture>0.4</numericalAperture>"
    "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image></collection>"
    "</scn>"
)


def write_scanned_area(path: Path, pixels: np.ndarray, *, corner: tuple[int, int], size: tuple[int, int]) -> Path:
    """Write a Leica-like slide of ``size`` (width, height) at .5 µm; only ``pixels``, from ``corner``, were scanned."""
    height, width = pixels.shape[:2]
    nm = [500 * pixel for pixel in (*size, width, height, *corner)]
    description = SCN.format(*nm[:2], width, height, *nm[2:]).encode()
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "deflate", "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(pixels, description=description, resolution=(2e4, 2e4), resolutionunit="CENTIMETER", **options)
    return path
