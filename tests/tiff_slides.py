"""Slides in every kind of TIFF that preflight must know: directories in front, behind, BigTIFF, big-endian, NDPI."""

import random
import struct
from pathlib import Path

import tifffile
from pyramids import tissue_pixels, write_slide

from feature_extraction.preflight import Defect, find_defect
from feature_extraction.synthetic.tiff import write_pyramid


def write_behind(path: Path, *, bigtiff: bool = False, order: str = "<") -> Path:
    """A slide as libtiff writes it: the tiles first, their directory behind them, the values behind that."""
    source = write_slide(path.with_name("source.svs"), tissue_pixels(700, 600), lossless=False)
    out = bytearray(struct.pack(order + ("HHHHQ" if bigtiff else "HHI"), 0, *((43, 8, 0, 0) if bigtiff else (42, 0))))
    out[:2] = b"II" if order == "<" else b"MM"
    wide, pointer_at = ("Q", 8) if bigtiff else ("I", 4)
    with tifffile.TiffFile(source) as tiff:
        for page in tiff.pages:
            offsets = []
            for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
                tiff.filehandle.seek(offset)
                offsets.append(len(out))
                out += tiff.filehandle.read(length)
            entries = [(256, 4, [page.imagewidth]), (257, 4, [page.imagelength]), (258, 3, [8, 8, 8]), (259, 3, [7]),
                       (262, 3, [int(page.photometric)]), (270, 2, list(page.description.encode() + b"\0")),
                       (277, 3, [3]), (322, 4, [256]), (323, 4, [256]), (324, 4, offsets),
                       (325, 4, list(page.databytecounts)), (530, 3, list(page.tags[530].value)),
                       (347, 7, list(page.jpegtables or b""))]  # fmt: skip
            entries = sorted(entry for entry in entries if entry[2])
            struct.pack_into(order + wide, out, pointer_at, len(out))
            table = len(out) + (8 if bigtiff else 2)
            step, room = (20, 8) if bigtiff else (12, 4)
            pointer_at = table + step * len(entries)
            out += bytes(pointer_at + room - len(out))
            struct.pack_into(order + ("Q" if bigtiff else "H"), out, table - (8 if bigtiff else 2), len(entries))
            for row, (tag, kind, values) in enumerate(entries):
                packed = struct.pack(order + str(len(values)) + {2: "B", 3: "H", 4: "I", 7: "B"}[kind], *values)
                at = table + step * row
                struct.pack_into(order + "HH" + wide, out, at, tag, kind, len(values))
                if len(packed) <= room:
                    out[at + step - room : at + step - room + len(packed)] = packed
                else:
                    struct.pack_into(order + wide, out, at + step - room, len(out))
                    out += packed
    path.write_bytes(out)
    return path


def write_bigtiff(path: Path) -> Path:
    pixels = tissue_pixels(700, 600)
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for factor in (1, 4):
            level = pixels[::factor, ::factor]
            tiff.write(level, tile=(256, 256), photometric="rgb", compression="deflate", metadata=None)
    return path


def write_generic(path: Path) -> Path:
    write_pyramid(path, tissue_pixels(1100, 1100), mpp=0.5, flavour="generic")
    return path


def write_aperio(path: Path) -> Path:
    return write_slide(path, tissue_pixels(700, 600), lossless=False)


WRITERS = {"aperio": write_aperio, "generic": write_generic, "bigtiff": write_bigtiff, "behind": write_behind}
MORE_WRITERS = {
    "behind, big-endian": lambda path: write_behind(path, bigtiff=True, order=">"),
    "behind, bigtiff": lambda path: write_behind(path, bigtiff=True),
    "lossless": lambda path: write_slide(path, tissue_pixels(700, 600)),
    "one level": lambda path: write_slide(path, tissue_pixels(400, 500), levels=(1,)),
}


def write_ndpi(path: Path, start: int) -> int:
    """A sparse file of one NDPI level behind ``start``; its length."""
    entries = [(256, 4, 1, 64), (257, 4, 1, 64), (259, 3, 1, 7), (273, 4, 1, start), (279, 4, 1, 50_000),
               (65420, 4, 1, 1), (65421, 11, 1, int.from_bytes(struct.pack("<f", 20.0), "little")),
               (65427, 2, 40_000, start + 5_000)]  # fmt: skip
    directory = start + 60_000
    table = struct.pack("<H", len(entries))
    table += b"".join(struct.pack("<HHII", *entry[:3], entry[3] % (1 << 32)) for entry in entries) + bytes(8)
    table += b"".join(struct.pack("<I", entry[3] >> 32) for entry in entries)
    with path.open("wb") as stream:
        stream.write(b"II*\0" + struct.pack("<Q", directory))
        stream.seek(start)
        stream.write(random.Random(0).randbytes(60_000) + table)
    return directory + len(table)


def named(path: Path) -> Defect:
    defect = find_defect(path)
    assert defect is not None
    assert defect.remedy
    return defect
