"""TITAN: the CONCH v1.5 features of a whole slide to one vector, by the remote code of its authors.

It takes features and not tiles, so it is no `EncoderSource`. It is the one model here whose own code is run: only when
the user says so, and only at a revision that is pinned.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from feature_extraction.encoders.hf_folder import read_json, section
from feature_extraction.encoders.packages import require
from feature_extraction.encoders.weights import find_folder
from feature_extraction.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILES = ("*.json", "*.py", "*.safetensors", "*.txt")
COMMIT = re.compile("[0-9a-f]{40}")


class TitanSource:
    """Where TITAN is, and whether its code may be run.

    Args:
        path: A hub id, or a local folder with code and weights.
        revision: The full commit at the hub; a local folder is as it is.
        trust_remote_code: Whether Python code from ``path`` may be run on this machine.

    Attributes:
        name: Last part of ``path``.
        revision: The commit, or ``local``.

    Raises:
        InputError: It may not, or the revision is not pinned.
    """

    def __init__(self, *, path: str, revision: str = "", trust_remote_code: bool = False) -> None:
        if trust_remote_code is not True:
            raise InputError(
                f"slide_encoder.path={path}: TITAN runs Python code that comes with its weights; read it, then set "
                "slide_encoder.trust_remote_code=true"
            )
        if not Path(path).is_dir() and COMMIT.fullmatch(revision) is None:
            raise InputError(
                f"slide_encoder.revision={revision}: code from a hub is run at a full commit of 40 hex digits only"
            )
        self._path = path
        self.name = Path(path).name.lower()
        self.revision = "local" if Path(path).is_dir() else revision

    def load(self, device: torch.device) -> "TitanEncoder":
        """Run the model's code and read its weights, in float32 and evaluation mode.

        Raises:
            InputError: Not to be had, incomplete, a package of its code is missing, or it is no TITAN.
        """
        require("transformers", extra="hf")
        what = f"slide_encoder.path={self._path}"
        revision = "" if Path(self._path).is_dir() else self.revision
        folder = find_folder(self._path, revision=revision, patterns=FILES, key="slide_encoder.path")
        try:
            model, lacking = _built(folder)
        except Exception as error:  # code of others may raise anything
            raise InputError(f"{what}: cannot be loaded as TITAN: {str(error).partition(chr(10))[0]}") from error
        if lacking or not hasattr(model, "encode_slide_from_patch_features"):
            raise InputError(f"{what}: is not TITAN as published: it lacks {lacking[:5]}")
        return TitanEncoder(model.to(device).float().eval())


class TitanEncoder:
    """Loaded TITAN.

    Args:
        model: Of the remote code.

    Attributes:
        tile_encoder: The encoder that it was trained on, of whose backbone space it takes vectors.
        tile_mpp: µm per pixel of the tiles it was trained on.
    """

    tile_encoder: str = "conch_v1_5"
    tile_mpp: float = 0.5

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._device = next(model.parameters()).device

    @torch.inference_mode()
    def embed_slide(
        self, features: Float[Tensor, "tile width"], coords_lv0: Int[Tensor, "tile 2"], step_lv0: int
    ) -> Float[Tensor, " dim"]:
        """One vector of a slide, float32 on the CPU.

        Args:
            features: CONCH v1.5 vectors of its tiles.
            coords_lv0: Their top-left corners in level-0 pixels (x, y), same order.
            step_lv0: Level-0 pixels from one tile to the next.
        """
        embed = cast("nn.Module", self._model.encode_slide_from_patch_features)
        rows, corners = features.to(self._device, torch.float32), coords_lv0.to(self._device, torch.int64)
        return embed(rows[None], corners[None], step_lv0)[0].float().cpu()


def _built(folder: Path) -> tuple[nn.Module, list[str]]:
    """The model by the code in its folder, and the tensors that its weights lack."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    names = section(read_json(folder / "config.json"), "auto_map")
    # ``other/repository--module.Class`` would run code that nobody pinned: only what stands behind it counts.
    config_kind, model_kind = (
        get_class_from_dynamic_module(str(names[kind]).rpartition("--")[2], str(folder))
        for kind in ("AutoConfig", "AutoModel")
    )
    config = config_kind.from_pretrained(folder)
    finished = cast("type[PreTrainedModel]", _finished(model_kind))
    load = cast("Callable[..., tuple[nn.Module, Mapping[str, list[str]]]]", finished.from_pretrained)
    model, info = load(folder, config=config, output_loading_info=True, local_files_only=True)
    return model, sorted(info["missing_keys"])


def _finished(kind: type[nn.Module]) -> type:
    """The remote class, but that it also does what transformers 5 wants at the end of every constructor."""

    def build(self: nn.Module, *args: object, **kwargs: object) -> None:
        kind.__init__(self, *args, **kwargs)
        cast("nn.Module", self.post_init)()

    return type(kind.__name__, (kind,), {"__init__": build, "__module__": kind.__module__})
