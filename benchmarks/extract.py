"""What extraction costs: reading, resampling, a whole run, slide borders, the encoder's precision.

    python -P benchmarks/extract.py [--tiles <folder of H&E pictures>] [--weights <dual encoder>] [--rounds 3]

Makes its slides (4:2:0 and 4:4:4 JPEG, Q85) from the pictures, or from drawn tissue. Everything is CPU seconds per
1,000 tiles of 256 px, the median of rounds that take turns in one process; what counts are the ratios. ``floor`` is
libjpeg-turbo decoding each touched JPEG tile once. On a machine with a GPU it also runs a random ViT-B/16 at 448 px.
"""

import argparse
import math
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import ClassVar

import numpy as np
import openslide
import simplejpeg
import tifffile
import torch
from PIL import Image

from feature_extraction import readers as readers_room
from feature_extraction.counters import Counters, Eta, diagnose
from feature_extraction.encoder import Encoder, EncoderSpec, Space, fingerprint_of, to_network_input
from feature_extraction.encoders.hf_clip import HfClipSource
from feature_extraction.extract import Extractor, Listener, Throughput
from feature_extraction.grid import Tiling
from feature_extraction.jpeg_tiff import START, JpegLevel, jpeg_levels
from feature_extraction.mpp import MppRule
from feature_extraction.plan import PlanRules
from feature_extraction.reader import TileReader, TileSource
from feature_extraction.reader_process import Answer, MakePlan, ReadTiles, Request
from feature_extraction.readers import Readers
from feature_extraction.slides import SlideRecord, SlideTable
from feature_extraction.synthetic.slide import SlidePlan as DrawingPlan
from feature_extraction.synthetic.slide import draw_slide
from feature_extraction.tissue import TissueRule
from feature_extraction.work import Extraction, Lane

TILE = 256
PEERS_FLOOR = 0.25
PEERS_1X = (("CLAM", 2.9), ("TRIDENT", 2.8))
PEERS_2X = (("TRIDENT", 8.2),)
"""CPU seconds per 1,000 tiles that other tools were measured at with a tiny encoder, and the floor of that machine."""


class TinyEncoder(Encoder):
    """Mean colour of 8 x 8 fields through one matrix: next to nothing, so that the rest shows."""

    def __init__(self) -> None:
        self.spec = EncoderSpec(
            name="tiny", widths={"joint": 64}, input_px=TILE, tile_mpp=0.5, mean=(0.5,) * 3, std=(0.5,) * 3
        )
        self._matrix = torch.randn(192, 64, generator=torch.Generator().manual_seed(0))
        self.fingerprint = fingerprint_of([("matrix", self._matrix)])
        self.logit_scale, self.logit_bias = 0.0, 0.0

    def embed_tiles(self, tiles: torch.Tensor, spaces: Sequence[Space]) -> dict[str, torch.Tensor]:
        """Embed."""
        fields = torch.nn.functional.avg_pool2d(tiles[:, :, ::4, ::4].float(), TILE // 32).flatten(1)
        return {"joint": torch.nn.functional.normalize(fields @ self._matrix, dim=-1)}

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """It knows no words."""
        raise NotImplementedError

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """It knows no words."""
        raise NotImplementedError


class VitEncoder(TinyEncoder):
    """A vision transformer with random weights."""

    def __init__(self, *, input_px: int, width: int, device: torch.device) -> None:
        from transformers import ViTConfig, ViTModel

        super().__init__()
        torch.manual_seed(0)
        config = ViTConfig(hidden_size=width, num_attention_heads=width // 64, intermediate_size=4 * width)
        config.image_size, config.num_hidden_layers = input_px, 12
        self.spec = EncoderSpec(
            name="vit", widths={"joint": width}, input_px=input_px, tile_mpp=0.5, mean=(0.5,) * 3, std=(0.5,) * 3
        )
        self._device = device
        self._model = ViTModel(config, add_pooling_layer=False).to(device).eval()
        self.fingerprint = fingerprint_of(self._model.named_parameters())

    @torch.inference_mode()
    def embed_tiles(self, tiles: torch.Tensor, spaces: Sequence[Space]) -> dict[str, torch.Tensor]:
        """Embed."""
        states = self._model(pixel_values=to_network_input(tiles.to(self._device), self.spec)).last_hidden_state
        return {"joint": torch.nn.functional.normalize(states[:, 0].float(), dim=-1).cpu()}


class TimedReaders(Readers):
    """Notes when plans and tiles arrive."""

    plans: ClassVar[list[float]] = []
    tiles_at: ClassVar[list[float]] = []

    def ask(self, request: Request) -> "Future[Answer]":
        """Ask, and note when the answer is there."""
        answer = super().ask(request)
        log = {MakePlan: self.plans, ReadTiles: self.tiles_at}.get(type(request))
        if log is not None:
            answer.add_done_callback(lambda _: log.append(time.perf_counter()))
        return answer


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def side_by_side(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Median CPU seconds per 1,000 tiles of each way, the ways taking turns."""
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begin = cpu_seconds()
            n_tiles = way()
            seen[name].append(1000 * (cpu_seconds() - begin) / n_tiles)
    return {name: statistics.median(values) for name, values in seen.items()}


def make_slide(path: Path, side: int, tiles: Path | None, subsampling: tuple[int, int]) -> Path:
    """A tiled JPEG slide with levels 1x, 4x, 16x, from pictures or from drawn tissue."""
    if tiles is not None:
        pictures = sorted(file for file in tiles.rglob("*") if file.suffix.lower() in (".jpeg", ".jpg", ".png"))
        generator = np.random.default_rng(0)
        pixels = np.zeros((side, side, 3), np.uint8)
        for index in range((side // 224) ** 2):
            with Image.open(pictures[int(generator.integers(len(pictures)))]) as picture:
                y, x = divmod(index, side // 224)
                pixels[y * 224 : (y + 1) * 224, x * 224 : (x + 1) * 224] = np.asarray(
                    picture.convert("RGB").resize((224, 224))
                )
    else:
        drawn = draw_slide(DrawingPlan(label="normal", seed=0, stain_seed=0)).pixels
        repeats = (math.ceil(side / drawn.shape[0]), math.ceil(side / drawn.shape[1]), 1)
        pixels = np.tile(drawn, repeats)[:side, :side]
    description = f"Aperio Image Library v0\r\n{side}x{side} (256x256) JPEG/RGB Q=85|AppMag = 20|MPP = 0.5"
    with tifffile.TiffWriter(path) as tiff:
        for factor in (1, 4, 16):
            tiff.write(
                np.asarray(Image.fromarray(pixels).reduce(factor)) if factor > 1 else pixels,
                photometric="rgb",
                tile=(256, 256),
                compression="jpeg",
                compressionargs={"level": 85},
                subsampling=subsampling,
                subfiletype=0 if factor == 1 else 1,
                description=description if factor == 1 else None,
                metadata=None,
            )
    return path


def floor(path: Path, level: JpegLevel) -> int:
    """Decode each JPEG tile once; returns their number."""
    data = path.read_bytes()
    for offset, count in zip(level.offsets, level.byte_counts, strict=True):
        simplejpeg.decode_jpeg(level.head + data[offset + len(START) : offset + count], "RGB")
    return len(level.offsets)


def corners(side: int, extent: int, shift: int) -> list[tuple[int, int]]:
    """Tiles row by row, begun ``shift`` pixels from the corner."""
    starts = range(shift, side - extent + 1, extent)
    return [(x, y) for y in starts for x in starts]


def by_openslide(path: Path, places: Sequence[tuple[int, int]], extent: int) -> int:
    """The way of most tools: read_region, RGB, Pillow's bicubic where the size changes."""
    slide = openslide.OpenSlide(path)
    for corner in places:
        tile = slide.read_region(corner, 0, (extent, extent)).convert("RGB")
        np.asarray(tile if extent == TILE else tile.resize((TILE, TILE), Image.Resampling.BICUBIC))
    slide.close()
    return len(places)


def by_us(path: Path, places: Sequence[tuple[int, int]], extent: int) -> int:
    """Our reader."""
    size = (float(extent), float(extent))
    source = TileSource(slide_id="S", path=path, decoder="direct", level=0, size_lv0=size, side_px=TILE)
    reader = TileReader()
    for corner in places:
        reader.read(source, corner)
    return len(places)


def differences(path: Path, places: Sequence[tuple[int, int]], extent: int) -> int:
    """The largest difference of our tiles from OpenSlide's (and Pillow's) in steps of 255."""
    slide, reader = openslide.OpenSlide(path), TileReader()
    size = (float(extent), float(extent))
    source = TileSource(slide_id="S", path=path, decoder="direct", level=0, size_lv0=size, side_px=TILE)
    worst = 0
    for corner in places[:: max(1, len(places) // 200)]:
        tile = slide.read_region(corner, 0, (extent, extent)).convert("RGB")
        expected = np.asarray(tile if extent == TILE else tile.resize((TILE, TILE), Image.Resampling.BICUBIC))
        worst = max(worst, int(np.abs(reader.read(source, corner).astype(int) - expected).max()))
    return worst


def run_extraction(
    encoder: Encoder,
    slides: Sequence[Path],
    *,
    mpp: float,
    may_decode: bool,
    device: torch.device,
    tile_px: int = TILE,
    service: type[Readers] = Readers,
) -> tuple[int, dict[str, float]]:
    """A whole run into a folder of its own; returns tiles and counters."""
    tiling = Tiling(tile_px=tile_px, tile_mpp=0.5, step_px=tile_px)
    precision = "float32" if device.type == "cpu" else "bf16"
    extraction = Extraction(tiling=tiling, tissue=TissueRule(), mpp=MppRule(), spaces=("joint",), precision=precision)
    rules = PlanRules(tiling=tiling, tissue=extraction.tissue, mpp=extraction.mpp, may_decode=may_decode)
    records = tuple(
        SlideRecord(slide_id=f"{path.stem}-{i}", path=path, mpp=(mpp, mpp)) for i, path in enumerate(slides)
    )
    n_threads = os.cpu_count() or 1
    counters = Counters(n_readers=n_threads)
    with tempfile.TemporaryDirectory() as out:
        Extractor(
            [Lane.of(encoder, extraction, Path(out))],
            rules,
            Throughput(
                device=device,
                batch_size=64 if device.type == "cpu" else 256,
                n_threads=n_threads,
                mix_slides=True,
                service=service,
            ),
            listener=Listener(on_outcome=lambda _: None),
            counters=counters,
            eta=Eta(len(records)),
        ).run(SlideTable(records=records))
    record = counters.as_record()
    return int(record["n_tiles"]), record


def reading_rows(path: Path, side: int, rounds: int, name: str) -> list[str]:
    """Tiles at the slide's own resolution, on and off the JPEG tiles' corners, and at twice its mpp."""
    level = jpeg_levels(path, openslide.OpenSlide(path).level_dimensions)[0]
    if level is None:
        raise SystemExit(f"{path.name}: its level 0 is not tiled JPEG")
    rows: list[str] = []
    for what, extent, shift, least in (
        ("1x, aligned", TILE, 0, 3.0),
        ("1x, not aligned", TILE, 100, 3.0),
        ("2x the mpp", 2 * TILE, 0, 4.0),
    ):
        places = corners(side, extent, shift)
        costs = side_by_side(
            {
                "floor": lambda: floor(path, level),
                "openslide": lambda p=places, e=extent: by_openslide(path, p, e),
                "ours": lambda p=places, e=extent: by_us(path, p, e),
            },
            rounds,
        )
        per_tile = (extent / TILE) ** 2  # JPEG tiles under each of ours
        base = costs["floor"] * per_tile
        aim = 2.3 if "4:4:4" in name and extent == TILE else least
        rows.append(
            f"| {name}, {what} | {base:.2f} | {costs['openslide'] / base:.1f}x | {costs['ours'] / base:.2f}x "
            f"| **{costs['openslide'] / costs['ours']:.1f}x** (aim {aim}) "
            f"| {differences(path, places, extent)} |"
        )
    return rows


def end_to_end_rows(path: Path, rounds: int) -> list[str]:
    """Whole runs with a tiny encoder, by direct decode and by OpenSlide only."""
    level = jpeg_levels(path, openslide.OpenSlide(path).level_dimensions)[0]
    if level is None:
        raise SystemExit(f"{path.name}: its level 0 is not tiled JPEG")
    rows: list[str] = []
    for what, mpp, peers in (("1x", 0.5, PEERS_1X), ("2x the mpp", 0.25, PEERS_2X)):
        records: list[dict[str, float]] = []

        def run(*, may_decode: bool, mpp: float = mpp, records: list[dict[str, float]] = records) -> int:
            slides = [path] * (4 if mpp == 0.5 else 8)
            n_tiles, record = run_extraction(
                TinyEncoder(), slides, mpp=mpp, may_decode=may_decode, device=torch.device("cpu")
            )
            records.append(record)
            return n_tiles

        costs = side_by_side(
            {
                "floor": lambda: floor(path, level),
                "openslide": lambda run=run: run(may_decode=False),
                "ours": lambda run=run: run(may_decode=True),
            },
            rounds,
        )
        floor_s = costs["floor"] * (0.5 / mpp) ** 2
        walls = [
            one["wall_s"] / max(one["reading_cpu_s"] / one["n_readers"], one["embedding_s"]) for one in records[1::2]
        ]
        theirs = ", ".join(
            f"{name} {cost / PEERS_FLOOR / (0.5 / mpp) ** 2 * floor_s / costs['ours']:.1f}x" for name, cost in peers
        )
        rows.append(
            f"| {what} | {costs['openslide']:.2f} | {costs['ours']:.2f} ({costs['ours'] / floor_s:.1f}x the floor) "
            f"| **{costs['openslide'] / costs['ours']:.1f}x** | {theirs} | {statistics.median(walls):.2f} |"
        )
    return rows


def border_lines(path: Path) -> list[str]:
    """How long after a grid its first tiles are there, and how long a ViT waits over several slides."""
    TimedReaders.plans.clear()
    TimedReaders.tiles_at.clear()
    encoder = VitEncoder(input_px=TILE, width=384, device=torch.device("cpu"))
    small = [path] * 4
    n_tiles, record = run_extraction(
        encoder, small, mpp=0.5, may_decode=True, device=torch.device("cpu"), service=TimedReaders
    )
    share = 100 * record["waiting_tiles_s"] / record["wall_s"]
    first_batch = sorted(at for at in TimedReaders.tiles_at if at > TimedReaders.plans[0])[64 // 8 - 1]
    return [
        f"- first batch {first_batch - TimedReaders.plans[0]:.3f} s after the first grid (aim .25)",
        (
            f"- the model waited {share:.1f} % of {record['wall_s']:.0f} s "
            f"over {len(small)} slides of {n_tiles // len(small)} tiles, the start included (aim 2 %); "
            f"{diagnose(record, 'cpu')}"
        ),
    ]


def precision_line(weights: Path | None, tiles: torch.Tensor) -> str:
    """A ViT-S on the CPU in float32 and in bf16."""
    device = torch.device("cpu")
    if weights is None:
        encoder: Encoder = VitEncoder(input_px=224, width=384, device=device)
    else:
        encoder = HfClipSource(path=str(weights), tile_mpp=0.5).load(device)

    def embed(*, is_half: bool) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            return encoder.embed_tiles(tiles, ["joint"])["joint"].float()

    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(3):
        for is_half in (False, True):
            begin = cpu_seconds()
            embed(is_half=is_half)
            seconds[is_half].append(cpu_seconds() - begin)
    gain = statistics.median(seconds[False]) / statistics.median(seconds[True])
    cosine = (embed(is_half=False) * embed(is_half=True)).sum(1).min()
    name = "random ViT-S/16" if weights is None else "ViT-S/14 of --weights"
    return f"- {name}, 224 px: bf16 is **{gain:.1f}x** float32 (aim 2.7), least cosine {float(cosine):.5f} (aim .9995)"


def gpu_line(path: Path, device: torch.device) -> str:
    """A random ViT-B/16 at 448 px: a whole run against the model alone."""
    encoder = VitEncoder(input_px=448, width=768, device=device)
    blank = torch.zeros((256, 3, 448, 448), dtype=torch.uint8, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        encoder.embed_tiles(blank, ["joint"])
        begin = time.perf_counter()
        for _ in range(10):
            encoder.embed_tiles(blank, ["joint"])
    alone = 2560 / (time.perf_counter() - begin)
    n_tiles, record = run_extraction(encoder, [path] * 16, mpp=0.25, may_decode=True, device=device, tile_px=448)
    run = n_tiles / record["wall_s"]
    return f"- ViT-B/16, 448 px, {device}: {run:.0f} tiles/s, model alone {alone:.0f}: {diagnose(record, str(device))}"


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=8192)
    options = parser.parse_args()
    readers_room.START_METHOD = "fork"  # the reader's CPU seconds are then a child's, and imports are not in them
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sampled = make_slide(Path(folder) / "s420.svs", options.side, options.tiles, (2, 2))
        full = make_slide(Path(folder) / "s444.svs", options.side, options.tiles, (1, 1))
        print("| reading | floor, s | openslide / floor | ours / floor | openslide / ours | max difference |")
        print("|---|---|---|---|---|---|")
        for path, name in ((sampled, "4:2:0"), (full, "4:4:4")):
            print("\n".join(reading_rows(path, options.side, options.rounds, name)), flush=True)
        print(
            "\n| whole run, tiny encoder | OpenSlide only, s | ours, s | ratio | by others' figures (aim 4.5) | wall* |"
        )
        print("|---|---|---|---|---|---|")
        print("\n".join(end_to_end_rows(sampled, options.rounds)), flush=True)
        small = make_slide(Path(folder) / "small.svs", 2304, options.tiles, (2, 2))
        torch.set_num_threads(2)
        print("\n" + "\n".join(border_lines(small)), flush=True)
        first = openslide.OpenSlide(sampled).read_region((0, 0), 0, (224 * 8, 224 * 4)).convert("RGB")
        pieces = np.asarray(first).reshape(4, 224, 8, 224, 3).swapaxes(1, 2).reshape(32, 224, 224, 3)
        print(precision_line(options.weights, torch.from_numpy(pieces.copy()).permute(0, 3, 1, 2)), flush=True)
        if torch.cuda.is_available():
            print(gpu_line(sampled, torch.device("cuda")))


if __name__ == "__main__":
    main()
