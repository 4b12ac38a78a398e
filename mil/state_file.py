"""A nested state (dicts, lists, tensors, plain values) as one safetensors file that holds no pickle."""

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from feature_extraction.errors import DamagedFileError
from feature_extraction.files import publish

State = Mapping[str, object]

_DICTS: dict[str, type[dict[object, object]]] = {"dict": dict, "ordered_dict": OrderedDict}


def write_state(path: Path, state: State, made_by: Mapping[str, str]) -> None:
    """Publish a state: its tensors as tensors, the rest as JSON in the header of the same file.

    Args:
        path: Of the file.
        state: dicts (keys of any kept type), OrderedDicts, lists, tuples, tensors, str, int, float, bool, None.
        made_by: Whose state it is; `read_state` must be given the same.

    Raises:
        TypeError: Something else is in it; the message says where. Nothing was written.
        OSError: The disk is full or the folder cannot be written; what was there before is whole.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps({"made_by": dict(made_by), "state": _encoded(state, tensors, "state")}, allow_nan=False)
    publish(path, save(tensors, metadata={"content": text, "sha256": _sha256(text, tensors)}))


def read_state(path: Path, made_by: Mapping[str, str]) -> dict[str, object]:
    """What `write_state` was given, with the same types; tensors are on the CPU.

    Raises:
        DamagedFileError: The file is not whole, or it is somebody else's; the message says which.
        OSError: There is no such file, or it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        text = metadata["content"]
        is_whole = metadata["sha256"] == _sha256(text, tensors)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:  # TypeError: no metadata at all
        raise DamagedFileError(f"{path}: damaged ({error})") from error
    if not is_whole:
        raise DamagedFileError(f"{path}: damaged (its bytes differ from its checksum)")
    content = json.loads(text)
    if content["made_by"] != dict(made_by):
        raise DamagedFileError(f"{path}: made by {content['made_by']}, expected {dict(made_by)}")
    return cast("dict[str, object]", _decoded(content["state"], tensors))


def _sha256(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Of everything that `read_state` returns: safetensors has no checksum of its own."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _encoded(value: object, tensors: dict[str, Tensor], where: str) -> object:
    """Plain data for JSON; tensors are put into ``tensors``. Whatever JSON would change gets a name for its type."""
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if isinstance(value, float) and kind is float:  # not NumPy's, which is a subclass
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Tensor) and kind in (Tensor, nn.Parameter):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()  # safetensors refuses memory that tensors share
        return {"tensor": name}
    if isinstance(value, list | tuple) and kind in (list, tuple):
        items = _encoded_items(cast("Iterable[object]", value), tensors, where)
        return items if kind is list else {"tuple": items}
    name = next((name for name, known in _DICTS.items() if kind is known), None)
    if name is None:
        raise TypeError(f"{where}: a {kind.__module__}.{kind.__qualname__} cannot be kept in a state file")
    pairs = cast("Mapping[object, object]", value).items()
    return {name: [_encoded_items(pair, tensors, f"{where}[{pair[0]!r}]") for pair in pairs]}


def _encoded_items(items: Iterable[object], tensors: dict[str, Tensor], where: str) -> list[object]:
    return [_encoded(item, tensors, where) for item in items]


def _decoded(value: object, tensors: Mapping[str, Tensor]) -> object:
    """What `_encoded` was given."""
    if isinstance(value, list):
        return [_decoded(item, tensors) for item in cast("list[object]", value)]
    if not isinstance(value, dict):
        return value
    ((name, content),) = cast("dict[str, object]", value).items()
    if name == "tensor":
        return tensors[str(content)]
    if name == "float":
        return float(str(content))
    items = cast("list[object]", _decoded(content, tensors))
    if name == "tuple":
        return tuple(items)
    return _DICTS[name]((key, one) for key, one in cast("list[list[object]]", items))
