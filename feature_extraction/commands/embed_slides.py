"""`promptmil embed_slides`: feature files of one folder -> one vector a slide, by a slide encoder (TITAN)."""

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from feature_extraction.commands.licence import check_licence
from feature_extraction.commands.settings import device, plain
from feature_extraction.encoders.titan import TitanSource
from feature_extraction.errors import InputError, MismatchError
from feature_extraction.slide_vectors import embed_slide, write_slide_vectors
from feature_extraction.store import FeatureFile
from feature_extraction.targets import construct
from feature_extraction.verify import feature_folders


def run(config: DictConfig) -> int:
    """Embed every slide of a feature folder; returns the exit code 0.

    Raises:
        InputError: No or several feature folders, the slide encoder cannot be had, or files do not fit it.
    """
    console = Console(stderr=True)
    chosen = plain(config.slide_encoder)
    source = construct(chosen, kind=TitanSource, packages=("feature_extraction",))
    folders = feature_folders(Path(config.features))
    if len(folders) != 1:
        raise InputError(
            f"features={config.features}: several feature folders: {', '.join(map(str, folders))}; name one"
        )
    files = [FeatureFile(path) for path in sorted(folders[0].glob("*.h5"))]
    fingerprints = {file.header.encoder_fingerprint for file in files}
    if len(fingerprints) != 1:
        raise MismatchError(f"features={config.features}: of several encoders: {', '.join(sorted(fingerprints))}")
    check_licence(config.licence_profile, files[0].header, console)
    encoder = source.load(device(str(config.device)))
    vectors = {
        file.header.slide_id: embed_slide(file, encoder)
        for file in track(files, "slides", console=console, transient=True)
    }
    out = Path(config.out) / "slides.safetensors"
    described = {
        "slide_encoder": source.name,
        "revision": source.revision,
        "licence": files[0].header.licence,
        "encoder": files[0].header.encoder,
        "encoder_fingerprint": fingerprints.pop(),
        "extraction_fingerprint": files[0].header.extraction_fingerprint,
    }
    write_slide_vectors(out, vectors, described)
    console.print(f"{len(vectors)} slides -> {out}", soft_wrap=True, markup=False)
    return 0
