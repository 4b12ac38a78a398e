"""Dual encoders in the format of transformers: CLIP, SigLIP, and any vision-text dual encoder.

Weights come from a local folder or the hub's cache. Preprocessing is ours, from what the folder states, so
that torchvision is not needed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from feature_extraction.encoder import EncoderSource, EncoderSpec
from feature_extraction.encoders.card import differences, read_spec
from feature_extraction.encoders.hf_folder import filled, input_px, interpolation, read_json, section, triple
from feature_extraction.encoders.packages import require
from feature_extraction.encoders.towers import Towers, TowersEncoder, ready
from feature_extraction.encoders.weights import find_file, find_folder, is_here
from feature_extraction.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLASSES = {
    "clip": "CLIPModel",
    "siglip": "SiglipModel",
    "vision-text-dual-encoder": "VisionTextDualEncoderModel",
}
DESCRIPTION = ("*.json", "*.txt", "*.model")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class HfClipSource(EncoderSource):
    """A dual encoder to be loaded with transformers.

    Args:
        path: Folder with configuration, preprocessor, tokenizer and ``model.safetensors``, or a hub id.
        spec: The card of a model that is known; what the folder says must agree with it. Without one the folder's
            word is taken, with what follows:
        name: For folder and file names; the last part of ``path`` when None.
        tile_mpp: µm per pixel the weights were trained at, None when unknown.
        revision: At the hub.
        licence: Of the weights.
        licence_ancestry: Licences of what the weights were derived from.
    """

    extra = "hf"

    def __init__(
        self,
        *,
        path: str,
        spec: Mapping[str, object] | None = None,
        name: str | None = None,
        tile_mpp: float | None = None,
        revision: str = "",
        licence: str = "unknown",
        licence_ancestry: Sequence[str] = (),
    ) -> None:
        self._path = path
        self._card = None if spec is None else read_spec(spec)
        self._name = name or Path(path).name
        self._tile_mpp = tile_mpp
        self._revision = revision if self._card is None else self._card.revision
        self._licence = licence
        self._licence_ancestry = tuple(licence_ancestry)

    @property
    def spec(self) -> EncoderSpec:
        """The facts: the card, or what the folder's JSON files say."""
        return self._card or self._stated()

    def _stated(self) -> EncoderSpec:
        """What the folder's JSON files say."""
        folder = self._folder()
        config = read_json(folder / "config.json")
        kind, image = self._kind(config), read_json(folder / "preprocessor_config.json")
        side_px, resized = input_px(image), interpolation(image)
        mean, std = triple(image.get("image_mean")), triple(image.get("image_std"))
        if side_px is None or resized is None or mean is None or std is None:
            raise InputError(
                f"encoder.path={self._path}: preprocessor_config.json must have size, image_mean, image_std, and "
                f"resample 2 (bilinear) or 3 (bicubic); got {image}"
            )
        return EncoderSpec(
            name=self._name,
            widths=_widths(kind, config),
            input_px=side_px,
            tile_mpp=self._tile_mpp,
            mean=mean,
            std=std,
            interpolation=resized,
            context_length=_context_length(config),
            licence=self._licence,
            licence_ancestry=self._licence_ancestry,
            source="local" if Path(self._path).is_dir() else self._path,
            revision=self._revision,
        )

    def weights_file(self) -> Path:
        """The file that the weights are read from.

        Raises:
            InputError: It is neither here nor to be had.
        """
        return find_file(self._path, WEIGHTS, revision=self._revision)

    def is_local(self) -> bool:
        """Whether ``path`` is a folder here."""
        return is_here(self._path)

    def load(self, device: torch.device) -> TowersEncoder:
        """Read weights and tokenizer; every tensor of the network must be in the file.

        Raises:
            InputError: Not there, not whole, or not the model that the card describes.
        """
        transformers = require("transformers", extra=self.extra)
        transformers.utils.logging.disable_progress_bar()
        folder, spec = self._folder(), self.spec
        self.weights_file()  # brings it into the hub's cache, beside the rest of the folder
        contradicting = differences(self._stated(), spec)
        if contradicting:
            raise InputError(f"encoder.path={self._path}: is not {spec.name}: {'; '.join(contradicting)}")
        kind = self._kind(read_json(folder / "config.json"))
        network = filled(getattr(transformers, CLASSES[kind]), folder, what=f"encoder.path={self._path}")
        tokenizer = self._tokenizer(folder)
        return TowersEncoder(
            spec,
            ready(HfClipTowers(network, pads_to=_padded(kind, spec, tokenizer)), device),
            dict(network.named_parameters()),
            tokenize=lambda text: list(tokenizer(text)["input_ids"]),
            longest=spec.context_length or 0,
        )

    def _kind(self, config: Mapping[str, object]) -> str:
        kind = str(config.get("model_type"))
        if kind not in CLASSES:
            raise InputError(
                f"encoder.path={self._path}: model_type is {kind!r}, the hf_clip family reads {', '.join(CLASSES)}"
            )
        return kind

    def _tokenizer(self, folder: Path) -> "PreTrainedTokenizerBase":
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"encoder.path={self._path}: its tokenizer cannot be read: {error}") from error

    def _folder(self) -> Path:
        return find_folder(self._path, revision=self._revision, patterns=DESCRIPTION)


class HfClipTowers(Towers):
    """A filled ``CLIPModel``, ``SiglipModel`` or ``VisionTextDualEncoderModel``.

    Args:
        network: It.
        pads_to: Length that texts are padded to and the padding token, where the text tower was trained to read its
            padding (SigLIP); None where padding is not seen.
    """

    def __init__(self, network: nn.Module, *, pads_to: tuple[int, int] | None) -> None:
        super().__init__()
        self.network = network
        self._pads_to = pads_to

    def see(self, pixels: Float[Tensor, "tile 3 side side"]) -> Float[Tensor, "tile backbone"]:
        """The image tower, pooled."""
        return self.network.get_submodule("vision_model")(pixel_values=pixels).pooler_output

    def project(self, backbone: Float[Tensor, "tile backbone"]) -> Float[Tensor, "tile joint"]:
        """The image tower's projection."""
        return self._projected("visual_projection", backbone)

    def read(self, tokens: Int[Tensor, "1 token"]) -> Float[Tensor, "1 joint"]:
        """The text tower, pooled, and its projection."""
        if self._pads_to is not None:
            length, pad = self._pads_to
            tokens = nn.functional.pad(tokens, (0, length - tokens.shape[1]), value=pad)
        pooled = self.network.get_submodule("text_model")(input_ids=tokens).pooler_output
        return self._projected("text_projection", pooled)

    def _projected(self, name: str, pooled: Tensor) -> Tensor:
        """SigLIP's towers end in the joint space and have no projection."""
        layer = dict(self.network.named_children()).get(name)
        return pooled if layer is None else layer(pooled)


def _padded(kind: str, spec: EncoderSpec, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, int] | None:
    if kind != "siglip":
        return None
    return spec.context_length or 0, int(str(tokenizer.pad_token_id))


def _widths(kind: str, config: Mapping[str, object]) -> dict[str, int]:
    hidden = int(str(section(config, "vision_config").get("hidden_size", 768)))
    if kind == "siglip":
        return {"joint": hidden}
    return {"joint": int(str(config.get("projection_dim", 512))), "backbone": hidden}


def _context_length(config: Mapping[str, object]) -> int:
    default = {"siglip": 64}.get(str(config.get("model_type")), 77)
    return int(str(section(config, "text_config").get("max_position_embeddings", default)))
