"""How long a search takes over very many tiles, in how much memory, and whether it finds what was planted.

    python -P benchmarks/search.py <folder> [--tiles 10000000] [--width 512] [--a-slide 10000]

``-P`` because this folder has files named like modules. Writes half-precision feature files once (10 million tiles of
width 512 are 10.5 GB); no file is read twice. Every query is a new process, as a command is: the first holds every
block against its checksum and notes the files, the later ones do not. Encoders and pictures are left out: they cost
what they cost for one sentence and some tiles. Files are in the system's cache as far as memory allows.
"""

import argparse
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from feature_extraction.header import FeatureHeader
from feature_extraction.store import FeatureRows, write_features
from mil.feature_folder import FeatureFolder
from mil.search.files import FOLDER, open_searched, read_noted, write_noted
from mil.search.scan import Limits, search
from mil.search.scores import Queries

N_PLANTED = 20
SIZE = "[224.0, 224.0]"


def main() -> None:
    """Write the files, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiles", type=int, default=10_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--a-slide", type=int, default=10_000)
    parser.add_argument("--query", type=int, help="be one query of so many phrases")
    options = parser.parse_args()
    n_slides = options.tiles // options.a_slide
    if options.query:
        print(json.dumps(ask(options.folder, options.width, options.query)))
        return
    began = time.monotonic()
    write(options.folder, n_slides, options.a_slide, options.width)
    n_bytes = sum(path.stat().st_size for path in options.folder.glob("*.h5"))
    print(f"{n_slides} files, {n_bytes / 1e9:.2f} GB, written in {time.monotonic() - began:.0f} s", flush=True)
    (options.folder / FOLDER / "joint.json").unlink(missing_ok=True)
    for name, n_phrases in (("first pass, 1 phrase", 1), ("1 phrase", 1), ("1 phrase again", 1), ("5 phrases", 5)):
        words = [str(options.folder), "--width", str(options.width), "--query", str(n_phrases)]
        command = [sys.executable, "-P", __file__, *words]
        began = time.monotonic()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        whole = time.monotonic() - began
        said = json.loads(done.stdout)
        print(
            f"{name:<22} search {said['seconds']:6.2f} s (CPU {said['cpu_s']:.2f} s)  process {whole:6.2f} s  "
            f"peak memory {said['peak_mb']:.0f} MB ({said['before_mb']:.0f} before)  "
            f"planted among the best {N_PLANTED}: {said['planted']}",
            flush=True,
        )


def write(folder: Path, n_slides: int, n_tiles: int, width: int) -> None:
    """Feature files of random rows; the first tile of each of `N_PLANTED` slides is near the phrase."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((n_tiles, width)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    columns = 100
    corners = np.stack([np.arange(n_tiles) % columns, np.arange(n_tiles) // columns], axis=1) * 224
    for number in range(n_slides):
        path = folder / f"S{number:05}.h5"
        if path.is_file():
            continue
        turned = np.roll(rows, number, axis=1).astype(np.float16)
        if number % max(1, n_slides // N_PLANTED) == 0 and number // max(1, n_slides // N_PLANTED) < N_PLANTED:
            near = phrases(width, 1)[0] + 0.5 * rows[number % n_tiles]
            turned[0] = near / np.linalg.norm(near)
        write_features(
            path,
            header(path.stem),
            FeatureRows(
                spaces={"joint": turned},
                coords_lv0=corners.astype(np.int64),
                tissue_fraction=np.ones(n_tiles, np.float32),
                failed_coords_lv0=np.empty((0, 2), np.int64),
            ),
        )


def header(slide_id: str) -> FeatureHeader:
    """Of a made-up slide."""
    return FeatureHeader(
        slide_id=slide_id,
        slide_fingerprint="0" * 64,
        encoder="random",
        encoder_fingerprint="f" * 64,
        extraction_fingerprint="e" * 64,
        space="joint",
        normalized=True,
        logit_scale=float(np.log(100)),
        logit_bias=0.0,
        licence="Apache-2.0",
        licence_ancestry="[]",
        slide_mpp_x=0.5,
        slide_mpp_y=0.5,
        mpp_source="openslide",
        tile_mpp=0.5,
        tile_size_px=224,
        tile_size_lv0=SIZE,
        step_lv0=SIZE,
        read_level=0,
        level0_width=22400,
        level0_height=22400,
        bounds_lv0="[0, 0, 22400, 22400]",
        objective_power=20.0,
        transform="{}",
        tissue="{}",
        precision="float32",
        reader="none",
        created_with="benchmarks/search.py",
    )


def phrases(width: int, n_phrases: int) -> np.ndarray:
    """Random words; the first is always the same."""
    vectors = np.random.default_rng(1).standard_normal((n_phrases, width))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ask(path: Path, width: int, n_phrases: int) -> dict[str, float | str]:
    """One search as the command makes it, from finding the folder to the hits."""
    before, began, cpu_began = peak_mb(), time.monotonic(), time.process_time()
    folder = FeatureFolder(path)
    noted = read_noted(folder, "joint")
    reopen = partial(open_searched, folder, space="joint", noted=noted)
    words = phrases(width, n_phrases + 3)
    queries = Queries(
        names=tuple(f"phrase {number}" for number in range(n_phrases)),
        vectors=words[:n_phrases],
        competitors=words[n_phrases:],
        scale=100.0,
    )
    found = search(
        folder.slide_ids(),
        lambda slide_id, is_trusted: reopen(slide_id, is_trusted=is_trusted),
        queries,
        Limits(hits=40, per_patient=3),
        patients={},
    )
    if len(noted) < len(found.files):
        write_noted(folder, "joint", {name: file.noted for name, file in found.files.items()})
    seconds, cpu_s = time.monotonic() - began, time.process_time() - cpu_began
    best = [hit for hit in found.hits if hit.query == 0 and hit.rank <= N_PLANTED]
    n_slides = len(found.files)
    planted = {f"S{number * max(1, n_slides // N_PLANTED):05}" for number in range(N_PLANTED)}
    n_found = sum(hit.row == 0 and hit.slide_id in planted for hit in best)
    return {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "before_mb": before,
        "peak_mb": peak_mb(),
        "planted": f"{n_found} of {len(best)}",
    }


def peak_mb() -> float:
    """Highest resident memory of this process so far, mapped pages of files included; Linux only.

    Not `resource.getrusage`, whose maximum a new process takes over from the one that started it.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
