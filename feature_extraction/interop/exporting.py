"""Write our feature files in another tool's layout: published, read again, and left alone where they are right."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from feature_extraction.errors import DamagedFileError, InputError, MismatchError, SlideError
from feature_extraction.files import is_valid, publish
from feature_extraction.header import FeatureHeader
from feature_extraction.interop.outgoing import Outgoing, PeerWriter
from feature_extraction.status import Outcome
from feature_extraction.store import FeatureFile
from feature_extraction.verify import feature_folders


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What is asked for.

    Attributes:
        writer: Of the tool.
        source: A feature folder of ours.
        out: Where the tool's folders are made.
        space: Which embeddings, None for the primary ones.
    """

    writer: PeerWriter
    source: Path
    out: Path
    space: str | None


def folder_of(source: Path) -> Path:
    """The one feature folder that ``source`` is or holds.

    Raises:
        InputError: None, or several.
    """
    try:
        folders = feature_folders(source)
    except InputError as error:
        raise InputError(
            f"source={source}: no feature folder of promptmil; give the out=… of `promptmil extract`"
        ) from error
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise InputError(f"source={source}: holds several feature folders: {names}; name one of them")
    return folders[0]


def first_header(folder: Path) -> FeatureHeader:
    """What the first whole file of a feature folder says of itself.

    Raises:
        InputError: None of them is whole.
    """
    paths = _slides_in(folder)
    for path in paths:
        with suppress(DamagedFileError):
            return FeatureFile(path).header
    raise InputError(f"source={folder}: none of its {len(paths)} files is a whole feature file of promptmil")


def export(ask: Export, on_outcome: Callable[[Outcome], None] = lambda _: None) -> list[Outcome]:
    """Export every slide; one that fails costs itself.

    Raises:
        MismatchError: No slide has the space that is asked for.
    """
    outcomes: list[Outcome] = []
    lacking: list[MismatchError] = []
    for path in _slides_in(ask.source):
        try:
            outcome = _one(ask, path)
        except MismatchError as error:
            lacking.append(error)
            outcome = Outcome.failed(_failure(path, "match", str(error), "choose a space that every slide has"))
        except DamagedFileError as error:
            outcome = Outcome.failed(
                _failure(path, "read", str(error), "run `promptmil verify`, extract the slide again")
            )
        except OSError as error:
            remedy = "check the space and the rights of out=…, then run the same command again"
            outcome = Outcome.failed(_failure(path, "write", error.strerror or str(error), remedy))
        except SlideError as error:
            outcome = Outcome.failed(error)
        outcomes.append(outcome)
        on_outcome(outcome)
    if lacking and len(lacking) == len(outcomes):
        raise lacking[0]
    return outcomes


def _slides_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.h5") if not path.name.startswith("."))


def _one(ask: Export, path: Path) -> Outcome:
    file = FeatureFile(path)
    files = ask.writer.write(_outgoing(file, ask.space))
    is_new = False
    for name, data in files.items():
        if not is_valid(ask.out / name, lambda written, data=data: _require_bytes(written, data)):
            is_new = True
            publish(ask.out / name, data)
            _require_bytes(ask.out / name, data)
    n_tiles = file.shape[0]
    return Outcome(
        slide_id=file.header.slide_id,
        status="done" if n_tiles else "empty",
        is_new=is_new,
        n_tiles=n_tiles,
        slide_mpp=file.header.slide_mpp_x,
        mpp_source=file.header.mpp_source,
        features=ask.source.name,
        file=next(iter(files)),
    )


def _outgoing(file: FeatureFile, space: str | None) -> Outgoing:
    wanted = space or file.header.space
    if wanted not in file.spaces:
        raise MismatchError(f"space={wanted}: {file.path.name} holds {', '.join(file.spaces)}")
    return Outgoing(
        header=file.header,
        space=wanted,
        features=file.features_of(wanted),
        coords_lv0=file.coords_lv0,
        tissue_fraction=file.tissue_fraction,
    )


def _require_bytes(path: Path, data: bytes) -> None:
    """Whether the disk holds exactly what was to be written."""
    if path.read_bytes() != data:
        raise DamagedFileError(f"{path.name}: holds other bytes than were written")


def _failure(path: Path, stage: str, cause: str, remedy: str) -> SlideError:
    return SlideError(slide_id=path.stem, stage=stage, cause=cause, remedy=remedy, code="E-export")
