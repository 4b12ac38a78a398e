"""Dual encoders in the format of transformers: CLIP, SigLIP, and any vision-text dual encoder.

Weights come from a local folder or the hub's cache. Preprocessing is ours, from what the folder states, so
that torchvision is not needed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from feature_extraction.encoder import Encoder, EncoderSource, EncoderSpec, Space, fingerprint_of, to_network_input
from feature_extraction.encoders.card import differences, read_spec
from feature_extraction.encoders.weights import find_file, find_folder
from feature_extraction.errors import InputError, MismatchError

Tokenizer = Callable[..., Mapping[str, Tensor]]
CLASSES = {
    "clip": "CLIPModel",
    "siglip": "SiglipModel",
    "vision-text-dual-encoder": "VisionTextDualEncoderModel",
}
PIL_BILINEAR, PIL_BICUBIC = 2, 3
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
        config = _read(folder / "config.json")
        kind = str(config.get("model_type"))
        if kind not in CLASSES:
            raise InputError(
                f"encoder.path={self._path}: model_type is {kind!r}, the hf_clip family reads {', '.join(CLASSES)}"
            )
        image = _read(folder / "preprocessor_config.json")
        is_local = Path(self._path).is_dir()
        return EncoderSpec(
            name=self._name,
            widths=_widths(kind, config),
            input_px=_input_px(image),
            tile_mpp=self._tile_mpp,
            mean=_triple(image["image_mean"]),
            std=_triple(image["image_std"]),
            interpolation=_interpolation(image, self._path),
            context_length=_context_length(config),
            licence=self._licence,
            licence_ancestry=self._licence_ancestry,
            source="local" if is_local else self._path,
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
        return Path(self._path).exists()

    def load(self, device: torch.device) -> "HfClipEncoder":
        """Read weights and tokenizer; every tensor of the network must be in the file.

        Raises:
            InputError: Not there, not whole, or not the model that the card describes.
        """
        try:
            import transformers
        except ImportError as error:
            raise InputError("the hf_clip family needs transformers: pip install 'promptmil[hf]'") from error
        transformers.utils.logging.disable_progress_bar()
        folder, spec = self._folder(), self.spec
        self.weights_file()  # brings it into the hub's cache, beside the rest of the folder
        contradicting = differences(self._stated(), spec)
        if contradicting:
            raise InputError(f"encoder.path={self._path}: is not {spec.name}: {'; '.join(contradicting)}")
        kind = str(_read(folder / "config.json")["model_type"])
        try:
            model, info = getattr(transformers, CLASSES[kind]).from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"encoder.path={self._path}: cannot be loaded as {CLASSES[kind]}: {error}") from error
        if info["missing_keys"]:
            lacking = ", ".join(sorted(info["missing_keys"])[:5])
            raise InputError(
                f"encoder.path={self._path}: the weights lack {len(info['missing_keys'])} tensors: {lacking}"
            )
        return HfClipEncoder(spec, model.to(device).eval(), tokenizer, pads_to_context=kind == "siglip")

    def _folder(self) -> Path:
        return find_folder(self._path, revision=self._revision, patterns=DESCRIPTION)


class HfClipEncoder(Encoder):
    """A loaded dual encoder.

    Args:
        spec: The facts.
        model: ``CLIPModel``, ``SiglipModel`` or ``VisionTextDualEncoderModel``, in evaluation mode.
        tokenizer: Of its text tower.
        pads_to_context: Whether the text tower was trained on texts padded to the full context (SigLIP).
    """

    def __init__(
        self, spec: EncoderSpec, model: torch.nn.Module, tokenizer: Tokenizer, *, pads_to_context: bool
    ) -> None:
        self.spec = spec
        self.fingerprint = fingerprint_of(model.named_parameters())
        self.logit_scale = float(model.get_parameter("logit_scale").detach())
        bias = dict(model.named_parameters()).get("logit_bias")
        self.logit_bias = 0.0 if bias is None else float(bias.detach())
        self._model = model
        self._tokenizer = tokenizer
        self._pads_to_context = pads_to_context
        self._device = next(model.parameters()).device

    @torch.inference_mode()
    def embed_tiles(
        self, tiles: UInt8[Tensor, "tile 3 height width"], spaces: Sequence[Space]
    ) -> dict[str, Float[Tensor, "tile dim"]]:
        """Image tower, pooled; then its projection and unit length for the joint space."""
        pixels = to_network_input(tiles.to(self._device), self.spec)
        backbone = self._model.get_submodule("vision_model")(pixel_values=pixels).pooler_output
        found: dict[str, Tensor] = {}
        for space in spaces:
            if space not in self.spec.widths:
                raise MismatchError(
                    f"encoder {self.spec.name} has no {space} space, it has {', '.join(self.spec.widths)}"
                )
            found[space] = backbone.cpu() if space == "backbone" else self._to_joint("visual_projection", backbone)
        return found

    @torch.inference_mode()
    def project(self, backbone: Float[Tensor, "tile backbone"]) -> Float[Tensor, "tile joint"]:
        """The image tower's projection and unit length.

        Raises:
            MismatchError: SigLIP's tower ends in the joint space.
        """
        if "backbone" not in self.spec.widths:
            return super().project(backbone)
        return self._to_joint("visual_projection", backbone.to(self._device))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "text dim"]:
        """Text tower and projection, one text at a time: no neighbour and no padding can change a vector."""
        rows: list[Tensor] = []
        for text in texts:
            tokens = self._tokens(text)
            inputs = {name: tokens[name].to(self._device) for name in self._inputs(tokens)}
            pooled = self._model.get_submodule("text_model")(**inputs).pooler_output
            rows.append(self._to_joint("text_projection", pooled))
        return torch.cat(rows)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens with the special ones."""
        return [len(self._tokenizer(text)["input_ids"]) for text in texts]

    def _tokens(self, text: str) -> Mapping[str, Tensor]:
        if self._pads_to_context:
            length = self.spec.context_length
            return self._tokenizer(text, padding="max_length", max_length=length, return_tensors="pt")
        return self._tokenizer(text, return_tensors="pt")

    def _inputs(self, tokens: Mapping[str, Tensor]) -> list[str]:
        """What the text tower was trained to see; SigLIP reads its padding."""
        names = ["input_ids"] if self._pads_to_context else ["input_ids", "attention_mask"]
        return [name for name in names if name in tokens]

    def _to_joint(self, projection: str, pooled: Float[Tensor, "row width"]) -> Float[Tensor, "row dim"]:
        """Into the joint space, unit length; SigLIP's towers end there and have no projection."""
        layer = dict(self._model.named_children()).get(projection)
        joint = pooled if layer is None else layer(pooled)
        return torch.nn.functional.normalize(joint.float(), dim=-1).cpu()


def _read(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path.parent.name}: {path.name} is missing or not JSON; is this a transformers model?"
        ) from error
    return dict(content)


def _widths(kind: str, config: dict[str, object]) -> dict[str, int]:
    vision = _section(config, "vision_config")
    hidden = vision.get("hidden_size", 768)
    if kind == "siglip":
        return {"joint": int(str(hidden))}
    return {"joint": int(str(config.get("projection_dim", 512))), "backbone": int(str(hidden))}


def _context_length(config: dict[str, object]) -> int:
    text = _section(config, "text_config")
    default = {"siglip": 64}.get(str(config.get("model_type")), 77)
    return int(str(text.get("max_position_embeddings", default)))


def _section(config: dict[str, object], key: str) -> dict[str, object]:
    section = config.get(key)
    return dict(section) if isinstance(section, dict) else {}


def _input_px(image: dict[str, object]) -> int:
    """Side of the network's input, from whichever way the processor states it."""
    for key in ("crop_size", "size") if image.get("do_center_crop") else ("size", "crop_size"):
        size = image.get(key)
        if isinstance(size, int):
            return size
        if isinstance(size, dict):
            side = size.get("shortest_edge") or size.get("height")
            if side:
                return int(str(side))
    raise InputError(f"preprocessor_config.json: no size in it, got {sorted(image)}")


def _interpolation(image: dict[str, object], path: str) -> Literal["bicubic", "bilinear"]:
    resample = image.get("resample", PIL_BICUBIC)
    if resample == PIL_BICUBIC:
        return "bicubic"
    if resample == PIL_BILINEAR:
        return "bilinear"
    raise InputError(
        f"encoder.path={path}: resample={resample} in preprocessor_config.json; known: 2 bilinear, 3 bicubic"
    )


def _triple(values: object) -> tuple[float, float, float]:
    if not isinstance(values, list) or len(values) != 3:
        raise InputError(f"preprocessor_config.json: expected three channel values, got {values}")
    r, g, b = (float(value) for value in values)
    return r, g, b
