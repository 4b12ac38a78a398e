"""Where an encoder's weights are, and how they get into a network: a folder, a file or a hub; every tensor or none."""

import http.client
import pickle
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from feature_extraction.errors import InputError

PATIENCE_S = 10.0
"""How long the hub may say nothing at all."""
FILES = frozenset({".bin", ".json", ".pt", ".pth", ".safetensors", ".spm", ".txt"})


def is_here(path: str) -> bool:
    """Whether ``path`` is a file or a folder of this machine, rather than a hub id."""
    return Path(path).is_file() or Path(path).is_dir()


def find_folder(path: str, *, revision: str, patterns: Sequence[str], key: str = "encoder.path") -> Path:
    """The local folder of a model; a hub id is fetched, or found in the hub's cache when offline.

    Args:
        path: A local folder, or ``owner/name`` at the hub.
        revision: At the hub; empty for the newest.
        patterns: Which files are wanted, such as ``*.json``.
        key: What the user sets ``path`` with, for the message.

    Raises:
        InputError: It is neither here nor to be had.
    """
    if Path(path).is_dir():
        return Path(path)
    if not _is_hub_id(path):
        raise InputError(f"{key}={path}: no such folder; give a local folder with the weights, or a hub id")
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(f"{key}={path}: no such folder, and a hub needs pip install 'promptmil[hf]'") from error
    is_alone = not huggingface_hub.is_offline_mode() and _is_out_of_reach(huggingface_hub.constants.ENDPOINT)
    try:
        return Path(
            huggingface_hub.snapshot_download(
                path, revision=revision or None, allow_patterns=list(patterns), local_files_only=is_alone
            )
        )
    except Exception as error:  # its own, those of its HTTP library (which it has changed before), and the system's
        raise InputError(
            f"{key}={path}: no such folder, and not to be had from the hub ({_reason(error)}); "
            f"set {key} to a local folder with the weights"
        ) from error


def find_file(path: str, names: Sequence[str], *, revision: str, key: str = "encoder.path") -> Path:
    """A file: ``path`` itself, or the first of ``names`` in that folder or at that hub id.

    Raises:
        InputError: There is none.
    """
    if Path(path).is_file():
        return Path(path)
    file = find_in_folder(path, names, revision=revision, key=key)
    if file is None:
        raise InputError(f"{key}={path}: {' or '.join(names)} is not in it; give the file itself")
    return file


def find_in_folder(path: str, names: Sequence[str], *, revision: str, key: str = "encoder.path") -> Path | None:
    """The first of ``names`` that a folder or a hub id has, None when it has none of them.

    Raises:
        InputError: The folder is neither here nor to be had.
    """
    for name in names:  # one at a time: a hub may offer the same weights in several formats
        file = find_folder(path, revision=revision, patterns=[name], key=key) / name
        if file.is_file():
            return file
    return None


def find_beside(path: str, names: Sequence[str], *, revision: str) -> Path | None:
    """A file next to the weights at ``path``: the first of ``names``, None when none is there.

    Raises:
        InputError: ``path`` is neither here nor to be had.
    """
    place = str(Path(path).parent) if Path(path).is_file() else path
    return find_in_folder(place, names, revision=revision)


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
    """``owner/name`` and nothing that only a path has; a name may well have dots in it."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and Path(path).suffix not in FILES


@cache
def _is_out_of_reach(hub: str) -> bool:
    """Whether nothing at all answers there.

    Asked first because the hub's client would try again and again, half a minute long, and wait minutes for a network
    that swallows what is sent. Any answer, a refusal included, is the client's to deal with, and so is what only its
    own settings know: certificates, and proxies of other kinds than the standard library has.
    """
    if "all" in urllib.request.getproxies():
        return False
    request = urllib.request.Request(hub, method="HEAD")  # noqa: S310 - the address that the client itself uses
    try:
        urllib.request.urlopen(request, timeout=PATIENCE_S).close()  # noqa: S310
    except urllib.error.HTTPError:
        return False
    except urllib.error.URLError as error:
        return isinstance(error.reason, OSError) and not isinstance(error.reason, ssl.SSLError)
    except TimeoutError:
        return True
    except (OSError, http.client.HTTPException):
        return False
    return False


def _reason(error: Exception) -> str:
    """Why the hub gave nothing, in a few words."""
    from huggingface_hub import errors, is_offline_mode

    if isinstance(error, errors.GatedRepoError):
        return "its terms are not accepted: accept them in a browser, then `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such model, or it is private: `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision"
    if is_offline_mode():
        return "HF_HUB_OFFLINE is set and its cache does not have it"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return "it cannot be reached and its cache does not have it"
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
