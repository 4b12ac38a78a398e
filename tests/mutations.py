"""Damage to slides as disks, networks and bad writers do it: seeded, so that any one of them can be made again.

As a script it writes them: ``python tests/mutations.py slide.svs folder 300 --seed 0``.
"""

import argparse
import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import tifffile

T = TypeVar("T")
SPECIAL = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1)
"""Numbers at which programs break."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """One damaged copy: its number under the seed, the kind of damage, its bytes."""

    index: int
    kind: str
    content: bytes


def flip_bytes(content: bytes, generator: random.Random) -> bytes:
    """1 to 64 bytes changed, anywhere, or near one of the two ends, where directories like to lie."""
    damaged = bytearray(content)
    low, high = generator.choice([(0, len(content)), (0, min(len(content), 4096)), (-min(len(content), 4096), 0)])
    for _ in range(generator.randint(1, 64)):
        damaged[generator.randrange(low, high)] ^= generator.randint(1, 255)
    return bytes(damaged)


def zero_block(content: bytes, generator: random.Random) -> bytes:
    """A range of zeros, as a lost disk block or a hole of a download."""
    start, length = _range(content, generator)
    return content[:start] + bytes(length) + content[start + length :]


def shuffle_blocks(content: bytes, generator: random.Random) -> bytes:
    """Two blocks of one size exchanged, as a damaged file system does it."""
    size = min(generator.choice([512, 4096, 65536]), len(content) // 2)
    first = generator.randrange(0, len(content) - 2 * size + 1)
    second = generator.randrange(first + size, len(content) - size + 1)
    left, right = content[first : first + size], content[second : second + size]
    return content[:first] + right + content[first + size : second] + left + content[second + size :]


def insert_range(content: bytes, generator: random.Random) -> bytes:
    """Bytes too many, so that everything behind is shifted."""
    start, length = _range(content, generator)
    return content[:start] + generator.randbytes(min(length, 4096)) + content[start:]


def delete_range(content: bytes, generator: random.Random) -> bytes:
    """Bytes too few, inside the file or at its end."""
    start, length = _range(content, generator)
    return content[:start] + content[start + length :]


def overwrite_tag(content: bytes, generator: random.Random) -> bytes:
    """One to three fields (type, count, value) of directory entries overwritten: the file lies about itself.

    What is no TIFF has no such entries, and gets bytes flipped.
    """
    if content[:2] not in (b"II", b"MM"):
        return flip_bytes(content, generator)
    entries, is_big, order = _entries(content)
    damaged = bytearray(content)
    wide = 8 if is_big else 4
    for _ in range(generator.randint(1, 3)):
        entry = generator.choice(entries)
        shift, width = generator.choice([(2, 2), (4, wide), (4 + wide, wide), (4 + wide, wide)])
        number = generator.choice([generator.choice(SPECIAL), generator.getrandbits(64), generator.randrange(65536)])
        damaged[entry + shift : entry + shift + width] = (number % (1 << (8 * width))).to_bytes(width, order)
    return bytes(damaged)


KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    kind.__name__: kind
    for kind in (flip_bytes, zero_block, shuffle_blocks, insert_range, delete_range, overwrite_tag)
}  # fmt: skip


def mutate(content: bytes, generator: random.Random) -> bytes:
    """One kind of damage, chosen by ``generator``; for one state of it always the same."""
    return KINDS[generator.choice(list(KINDS))](content, generator)


def mutations(content: bytes, seed: int, n: int) -> Iterator[Mutation]:
    """``n`` damaged copies, each kind in turn; a copy depends on the seed and its own number only."""
    for index in range(n):
        kind = list(KINDS)[index % len(KINDS)]
        yield Mutation(index=index, kind=kind, content=KINDS[kind](content, random.Random(f"{seed}/{index}")))


def read_each(slide: Path, folder: Path, *, seed: int, n: int, read: Callable[[Path], T]) -> list[tuple[Mutation, T]]:
    """Write the damaged copies of ``slide`` one at a time, and note what ``read`` makes of each.

    The bytes are dropped from the notes; ``mutations`` makes them again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    notes: list[tuple[Mutation, T]] = []
    for mutation in mutations(slide.read_bytes(), seed, n):
        path = folder / f"{mutation.index:04}-{mutation.kind}{slide.suffix}"
        path.write_bytes(mutation.content)
        try:
            notes.append((Mutation(index=mutation.index, kind=mutation.kind, content=b""), read(path)))
        finally:
            path.unlink()
    return notes


def _range(content: bytes, generator: random.Random) -> tuple[int, int]:
    """A place and a length between a byte and a quarter of the file, short ones as likely as long ones."""
    longest = max(1, len(content) // 4)
    length = generator.randint(1, min(longest, 2 ** generator.randint(0, longest.bit_length())))
    return generator.randrange(0, len(content) - length), length


def _entries(content: bytes) -> tuple[list[int], bool, str]:
    """Where the entries of all directories lie; whether they are BigTIFF's; the byte order."""
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        entries = [tag.offset for page in tiff.pages for tag in page.tags]
        return entries, tiff.is_bigtiff, "little" if tiff.byteorder == "<" else "big"


def _main() -> None:
    parser = argparse.ArgumentParser(description="write damaged copies of a slide")
    parser.add_argument("slide", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("n", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for mutation in mutations(options.slide.read_bytes(), options.seed, options.n):
        path = options.folder / f"{mutation.index:04}-{mutation.kind}{options.slide.suffix}"
        path.write_bytes(mutation.content)


if __name__ == "__main__":
    _main()
