"""A folder in transformers' format: what its JSON files say of the model, and the model itself."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from feature_extraction.errors import InputError

PIL_BILINEAR, PIL_BICUBIC = 2, 3


def read_json(path: Path) -> dict[str, object]:
    """A file of the folder.

    Raises:
        InputError: It is not there or not JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path.parent.name}: {path.name} is missing or not JSON; is this a transformers model?"
        ) from error


def section(content: Mapping[str, object], key: str) -> dict[str, object]:
    """A part of such a file, empty when it is not there."""
    found = content.get(key)
    return {str(name): value for name, value in found.items()} if isinstance(found, Mapping) else {}


def input_px(image: Mapping[str, object]) -> int | None:
    """Side of the network's input, from whichever way the processor states it; None when it does not."""
    for key in ("crop_size", "size") if image.get("do_center_crop") else ("size", "crop_size"):
        size = image.get(key)
        if isinstance(size, int):
            return size
        sides = section(image, key)
        side = sides.get("shortest_edge") or sides.get("height")
        if side:
            return int(str(side))
    return None


def interpolation(image: Mapping[str, object]) -> Literal["bicubic", "bilinear"] | None:
    """How the processor resizes: bicubic when it does not say, None for a way that we do not have."""
    resample = image.get("resample", PIL_BICUBIC)
    if resample == PIL_BICUBIC:
        return "bicubic"
    return "bilinear" if resample == PIL_BILINEAR else None


def triple(values: object) -> tuple[float, float, float] | None:
    """Three channel values, None when they are not there.

    Raises:
        InputError: Something else is.
    """
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != 3:
        raise InputError(f"preprocessor_config.json: expected three channel values, got {values}")
    r, g, b = (float(value) for value in values)
    return r, g, b


def filled(
    model: type, folder: Path, *, what: str, unused: str | None = None, options: Mapping[str, bool] | None = None
) -> nn.Module:
    """The network of a folder, in float32; every tensor of it is in the file, and none is left over.

    Args:
        model: A model class of transformers.
        folder: With configuration and weights.
        what: For the message, such as ``encoder.path=…``.
        unused: How the names of tensors begin that may be left over.
        options: Of its constructor.

    Raises:
        InputError: The weights cannot be read, or they are of another network.
    """
    try:
        network, info = model.from_pretrained(  # pyright: ignore[reportAttributeAccessIssue]  # every model class has it
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True, **(options or {})
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{what}: cannot be loaded as {model.__name__}: {error}") from error
    lacking = sorted(info["missing_keys"])
    surplus = sorted(name for name in info["unexpected_keys"] if unused is None or not name.startswith(unused))
    for names, fault in ((lacking, "missing"), (surplus, "unexpected")):
        if names:
            raise InputError(
                f"{what}: the weights do not fit {model.__name__}: {len(names)} {fault}: {', '.join(names[:5])}"
            )
    return network
