"""Where an encoder's weights are, and how they get into a network: a folder, a file or a hub; every tensor or none."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from feature_extraction.errors import InputError


def find_folder(path: str, *, revision: str, patterns: Sequence[str]) -> Path:
    """The local folder of a model; a hub id is fetched, or found in the hub's cache when offline.

    Args:
        path: A local folder, or ``owner/name`` at the hub.
        revision: At the hub; empty for the newest.
        patterns: Which files are wanted, such as ``*.json``.

    Raises:
        InputError: It is neither here nor to be had.
    """
    if Path(path).is_dir():
        return Path(path)
    if not _is_hub_id(path):
        raise InputError(f"encoder.path={path}: no such folder; give a local folder with the weights, or a hub id")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(f"encoder.path={path}: no such folder, and a hub needs pip install 'promptmil[hf]'") from error
    try:
        return Path(snapshot_download(path, revision=revision or None, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        raise InputError(
            f"encoder.path={path}: no such folder, and not to be had from the hub ({type(error).__name__}); "
            "give a local folder with the weights, or log in and accept the model's terms"
        ) from error


def find_file(path: str, names: Sequence[str], *, revision: str) -> Path:
    """The weights file: ``path`` itself, or the first of ``names`` in that folder or at that hub id.

    Raises:
        InputError: There is none.
    """
    if Path(path).is_file():
        return Path(path)
    for name in names:  # one at a time: a hub may offer the same weights in several formats
        file = find_folder(path, revision=revision, patterns=[name]) / name
        if file.is_file():
            return file
    raise InputError(f"encoder.path={path}: {' or '.join(names)} is not in it; give the file itself")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a weights file onto the CPU.

    A checkpoint of a training run is unwrapped: its ``state_dict`` or ``model`` is what counts.

    Raises:
        InputError: Not safetensors, nor a torch file that holds tensors only. A pickle that would run code is refused.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"encoder.path={path}: holds more than tensors and would run code when read; load it once where you trust "
            f"it and save its state_dict as .safetensors ({str(error).splitlines()[0]})"
        ) from error
    except (OSError, RuntimeError, SafetensorError, EOFError, ValueError) as error:
        raise InputError(
            f"encoder.path={path}: not readable as weights ({str(error).splitlines()[0]}); fetch it again"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {str(name): value for name, value in dict(content).items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"encoder.path={path}: there is no tensor in it")
    return tensors


def load_strictly(network: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Fill a network: every tensor of it from ``tensors``, and none left over.

    Args:
        network: To be filled; it may be on the meta device, and then takes the tensors as they are.
        tensors: By the network's own names.
        what: For the message, such as ``encoder.path=…``.

    Raises:
        InputError: Tensors are missing, left over, or of another shape.
    """
    own = network.state_dict()
    defects = {
        "missing": sorted(set(own) - set(tensors)),
        "unexpected": sorted(set(tensors) - set(own)),
        "of another shape": [
            f"{name} (got {list(tensors[name].shape)}, expected {list(own[name].shape)})"
            for name in sorted(set(own) & set(tensors))
            if tensors[name].shape != own[name].shape
        ],
    }
    said = [f"{len(names)} {kind}: {', '.join(names[:5])}" for kind, names in defects.items() if names]
    if said:
        raise InputError(f"{what}: the weights do not fit {type(network).__name__}: {'; '.join(said)}")
    is_meta = any(tensor.is_meta for tensor in own.values())
    whole = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    network.load_state_dict(whole, assign=is_meta)


def _is_hub_id(path: str) -> bool:
    """``owner/name`` and nothing that only a path has."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).suffix
