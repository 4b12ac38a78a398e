"""`promptmil view`: a viewer's folder served to this machine only, with the pixels of the slides at hand."""

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from feature_extraction.files import require_folder
from feature_extraction.slides import read_slide_table
from mil.viewer.live import LiveSlides, read_manifest
from mil.viewer.server import LOOPBACK, make_server


def run(config: DictConfig) -> int:
    """Serve until it is stopped; returns the exit code."""
    console = Console(stderr=True)
    folder = require_folder(Path(config.folder), "folder")
    manifest = read_manifest(folder)
    paths = {} if config.slides is None else {r.slide_id: r.path for r in read_slide_table(Path(config.slides)).records}
    slides = LiveSlides(manifest, paths)
    for slide_id in slides.strangers:
        text = f"slide={slide_id}: not the file that its map was made from, or not readable; its page shows what it has"
        console.print(text, soft_wrap=True, markup=False)
    with make_server(folder, slides, config.port) as server:
        address = f"http://{LOOPBACK}:{server.server_address[1]}/"
        console.print(
            f"{len(manifest)} slides, {len(slides)} at full resolution: open {address} (Ctrl-C ends)",
            soft_wrap=True,
            markup=False,
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print("ended", markup=False)
        finally:
            slides.close()
    return 0
