"""Tissue by a segmentation network given as a file: TorchScript or ONNX.

Input: RGB, float 0..1, NCHW, at the rule's mpp, sides a multiple of 32 (padded with white); the network normalises by
itself. Output: NCHW of the same height and width. Two channels: tissue where the second is the larger. One channel:
tissue where the probability is above .5, or, when any value lies outside 0..1 and they are therefore logits, above 0.
"""

import hashlib
import importlib
import importlib.util
import io
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8

from feature_extraction.errors import InputError

ONNX_SUFFIX = ".onnx"
MULTIPLE = 32
INNER, CONTEXT = 1024, 128
"""A large thumbnail goes through in squares of this side, each with this much around it, to bound the memory."""
PROBE_SIDE = 64

Network = Callable[[Float32[np.ndarray, "1 3 row column"]], Float32[np.ndarray, "..."]]


def segment_by_model(
    thumbnail: UInt8[np.ndarray, "row column 3"],
    path: Path,
    content_sha256: str,
    on_progress: Callable[[], None] = lambda: None,
) -> Bool[np.ndarray, "row column"]:
    """True where the network sees tissue.

    Args:
        thumbnail: RGB.
        path: The network.
        content_sha256: What the file must be.
        on_progress: Called after each square.

    Raises:
        InputError: The file is not that network any more, or its output has another size than its input.
    """
    scores = _scores(thumbnail, load_network(str(path), content_sha256), on_progress)
    if scores.shape[0] == 2:
        return scores[1] > scores[0]
    is_logit = bool(scores.min() < 0 or scores.max() > 1)
    return scores[0] > (0.0 if is_logit else 0.5)


def check_network(path: Path, content_sha256: str) -> None:
    """Try a network on white.

    Raises:
        InputError: It cannot be loaded or its output is not as the module says.
    """
    white = np.full((PROBE_SIDE, PROBE_SIDE, 3), 255, np.uint8)
    _scores(white, load_network(str(path), content_sha256), lambda: None)


@lru_cache(maxsize=2)
def load_network(path: str, content_sha256: str) -> Network:
    """The network of a file, loaded once a process.

    Raises:
        InputError: It is not the file the run began with, not a network, or its runtime is not installed.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"tissue.path: {Path(path).name}: cannot be read: {error.strerror or error}") from error
    if hashlib.sha256(data).hexdigest() != content_sha256:
        raise InputError(f"tissue.path: {Path(path).name}: the file changed while the run went on; start the run again")
    return _onnx(path, data) if path.lower().endswith(ONNX_SUFFIX) else _torchscript(path, data)


def _torchscript(path: str, data: bytes) -> Network:
    try:
        with warnings.catch_warnings():
            # TorchScript is deprecated in torch; networks in the field come as such files all the same.
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(io.BytesIO(data), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"tissue.path: {Path(path).name}: not a TorchScript file ({str(error).splitlines()[0]}); save the network "
            "with torch.jit.script(…).save, not its weights alone"
        ) from error

    def run(batch: Float32[np.ndarray, "1 3 row column"]) -> Float32[np.ndarray, "..."]:
        with torch.inference_mode():
            try:
                return module(torch.from_numpy(batch)).float().numpy()
            except (RuntimeError, AttributeError) as error:
                raise _run_error(path, error) from error

    return run


def _onnx(path: str, data: bytes) -> Network:
    if importlib.util.find_spec("onnxruntime") is None:
        raise InputError(f"tissue.path: {Path(path).name}: ONNX needs its runtime; pip install 'promptmil[onnx]'")
    # By name: it is an optional extra, and its errors live in a binary module without types.
    onnxruntime = importlib.import_module("onnxruntime")
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    faults = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NotImplemented)
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    except faults as error:
        raise InputError(
            f"tissue.path: {Path(path).name}: not an ONNX network ({str(error).splitlines()[0]})"
        ) from error
    name = session.get_inputs()[0].name

    def run(batch: Float32[np.ndarray, "1 3 row column"]) -> Float32[np.ndarray, "..."]:
        try:
            return cast("np.ndarray", session.run(None, {name: batch})[0]).astype(np.float32)
        except (*faults, state.RuntimeException) as error:
            raise _run_error(path, error) from error

    return run


def _scores(
    thumbnail: UInt8[np.ndarray, "row column 3"], network: Network, on_progress: Callable[[], None]
) -> Float32[np.ndarray, "channel row column"]:
    """The network's output for the whole thumbnail, square by square."""
    n_rows, n_columns = thumbnail.shape[:2]
    scores: Float32[np.ndarray, "channel row column"] | None = None
    for top in range(0, n_rows, INNER):
        for left in range(0, n_columns, INNER):
            y, x = max(0, top - CONTEXT), max(0, left - CONTEXT)
            window = thumbnail[y : top + INNER + CONTEXT, x : left + INNER + CONTEXT]
            found = _window_scores(window, network)
            inner = found[:, top - y : top - y + INNER, left - x : left - x + INNER]
            if scores is None:
                scores = np.empty((len(inner), n_rows, n_columns), np.float32)
            scores[:, top : top + INNER, left : left + INNER] = inner
            on_progress()
    if scores is None:
        raise InputError("a thumbnail without a pixel cannot be segmented")
    return scores


def _window_scores(
    window: UInt8[np.ndarray, "row column 3"], network: Network
) -> Float32[np.ndarray, "channel row column"]:
    n_rows, n_columns = window.shape[:2]
    padding = ((0, -n_rows % MULTIPLE), (0, -n_columns % MULTIPLE), (0, 0))
    padded = np.pad(window, padding, constant_values=255)
    batch = np.ascontiguousarray(padded.transpose(2, 0, 1)[None].astype(np.float32) / 255)
    found = network(batch)
    if found.ndim != 4 or found.shape[1] not in (1, 2) or found.shape[2:] != batch.shape[2:]:
        raise InputError(
            f"tissue.path: the network answers {tuple(found.shape)} to {batch.shape}; expected one or two channels of "
            "the same height and width"
        )
    if not np.isfinite(found).all():
        raise InputError("tissue.path: the network answers with values that are not finite")
    return found[0, :, :n_rows, :n_columns]


def _run_error(path: str, error: Exception) -> InputError:
    reason = str(error).strip().splitlines()[-1]
    return InputError(
        f"tissue.path: {Path(path).name}: the network does not take RGB float 0..1 of shape (1, 3, H, W) with any H "
        f"and W ({reason})"
    )
