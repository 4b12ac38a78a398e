"""What is open_clip's own: its networks, taken apart into towers and projection, and its tokenizers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from jaxtyping import Float, Int
from torch import Tensor, nn

from feature_extraction.encoders.packages import require
from feature_extraction.encoders.towers import Tokenize, Towers, without, without_positions
from feature_extraction.errors import InputError

EXTRA = "open_clip"
DECODER = "text_decoder"
"""CoCa's writer of captions, which no embedding needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """A checkpoint's tokenizer.

    Attributes:
        tokenize: A text to its tokens, the special ones included and nothing cut.
        pad: Token behind the last one, up to the context length.
        context_length: Tokens that the text tower reads.
    """

    tokenize: Tokenize
    pad: int
    context_length: int


class OpenClipTowers(Towers):
    """A filled open_clip network of any of its three kinds.

    Args:
        network: ``CLIP``, ``CustomTextCLIP`` or ``CoCa``; it is taken apart.
        tokenizer: How its texts are padded.
    """

    def __init__(self, network: nn.Module, tokenizer: Tokenizer) -> None:
        super().__init__()
        if hasattr(network, DECODER):
            delattr(network, DECODER)
        self._tokenizer = tokenizer
        self.network = network
        self.image, self.projection = _taken_apart(network.get_submodule("visual"))

    def see(self, pixels: Float[Tensor, "tile 3 side side"]) -> Float[Tensor, "tile backbone"]:
        """The image tower, pooled, before its projection."""
        return self.image(pixels)

    def project(self, backbone: Float[Tensor, "tile backbone"]) -> Float[Tensor, "tile joint"]:
        """The image tower's projection."""
        return self.projection(backbone)

    def read(self, tokens: Int[Tensor, "1 token"]) -> Float[Tensor, "1 joint"]:
        """The text tower, on the whole context as in training: CoCa's class token stands behind the padding."""
        missing = self._tokenizer.context_length - tokens.shape[1]
        padded = nn.functional.pad(tokens, (0, missing), value=self._tokenizer.pad)
        return self.network.encode_text(padded, normalize=False)  # pyright: ignore[reportCallIssue]  # all three have it


class MatrixProjection(nn.Module):
    """A projection that open_clip keeps as a bare matrix, input by output.

    Args:
        matrix: Its weights.
    """

    def __init__(self, matrix: nn.Parameter) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, rows: Float[Tensor, "row backbone"]) -> Float[Tensor, "row joint"]:
        """Multiply."""
        return rows @ self.matrix


def build(architecture: Mapping[str, object]) -> nn.Module:
    """Make the network of a configuration, unfilled; nothing is fetched.

    Args:
        architecture: ``model_cfg`` of an open_clip configuration; a text tower in transformers' format is named by a
            local folder with its ``config.json``.

    Raises:
        InputError: open_clip cannot make it.
    """
    open_clip = require("open_clip", extra=EXTRA)
    content = dict(architecture)
    vision = dict(cast("Mapping[str, object]", content["vision_cfg"]))
    text = dict(cast("Mapping[str, object]", content["text_cfg"]))
    is_custom = bool(content.pop("custom_text", False)) or text.get("hf_model_name") is not None
    kind = open_clip.CoCa if "multimodal_cfg" in content else open_clip.CustomTextCLIP if is_custom else open_clip.CLIP
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if text.get("hf_model_name") is not None:
        require("transformers", extra="hf")
        text["hf_model_pretrained"] = False
    try:
        return kind(**content | {"vision_cfg": vision, "text_cfg": text})
    except (TypeError, ValueError, RuntimeError, OSError, KeyError) as error:
        raise InputError(f"open_clip cannot make the architecture that is configured: {error}") from error


def backbone_width(network: nn.Module, joint_width: int) -> int:
    """Width of the image tower before its projection; the joint width where the tower ends in the joint space."""
    visual = network.get_submodule("visual")
    projection = getattr(visual, "proj", None)
    if isinstance(projection, nn.Parameter):
        return projection.shape[0]
    return int(str(visual.get_submodule("trunk").num_features)) if _has_head(visual) else joint_width


def upstream_tensors(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """A checkpoint's tensors under the names of today's open_clip.

    Three things differ between its releases and none of them is a weight: ``module.`` in front of every name, the
    numbers of the text positions, and scalars of shape (1,).
    """
    found, own = without_positions(without(tensors, ())), network.state_dict()
    for name in ("logit_scale", "logit_bias"):
        if name in found and name in own and found[name].numel() == 1:
            found[name] = found[name].reshape(own[name].shape)
    return found


def of_towers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that embeddings come from, for the fingerprint."""
    return without(tensors, (f"{DECODER}.",))


def read_tokenizer(text: Mapping[str, object]) -> Tokenizer:
    """The tokenizer of a text tower: CLIP's, which open_clip brings, or one in transformers' format.

    Args:
        text: ``text_cfg`` of the configuration; ``hf_tokenizer_name`` is a local folder.

    Raises:
        InputError: It cannot be read.
    """
    open_clip = require("open_clip", extra=EXTRA)
    context_length = int(str(text.get("context_length", 77)))
    options = dict(cast("Mapping[str, object]", text.get("tokenizer_kwargs") or {}))
    folder = text.get("hf_tokenizer_name")
    if folder is None:
        clip = open_clip.SimpleTokenizer(context_length=context_length, **options)
        first, last = clip.sot_token_id, clip.eot_token_id
        return Tokenizer(
            tokenize=lambda words: [first, *clip.encode(words), last], pad=0, context_length=context_length
        )
    if text.get("tokenizer_mode") or options.get("strip_sep_token"):
        raise InputError("text_cfg: tokenizer_mode and strip_sep_token are not supported")
    require("transformers", extra="hf")
    try:
        theirs = open_clip.tokenizer.HFTokenizer(str(folder), context_length=context_length, **options)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder}: no tokenizer can be read from it: {str(error).partition(chr(10))[0]}") from error
    return Tokenizer(
        tokenize=lambda words: list(theirs.tokenizer(theirs.clean_fn(words))["input_ids"]),
        pad=theirs.tokenizer.pad_token_id,
        context_length=context_length,
    )


def _taken_apart(visual: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The image tower and its projection; the latter does nothing where the tower ends in the joint space."""
    if hasattr(visual, "output_tokens"):
        visual.output_tokens = False  # pyright: ignore[reportArgumentType]  # CoCa's, for its decoder
    projection = getattr(visual, "proj", None)
    if isinstance(projection, nn.Parameter):
        visual.register_parameter("proj", None)
        return visual, MatrixProjection(projection)
    if _has_head(visual):
        return visual.get_submodule("trunk"), visual.get_submodule("head")
    return visual, nn.Identity()


def _has_head(visual: nn.Module) -> bool:
    """Whether it is a timm network with a projection behind it, and nothing but that."""
    parts = set(dict(visual.get_submodule("head").named_children())) if hasattr(visual, "head") else set[str]()
    return bool(parts & {"proj", "mlp"}) and "pool" not in parts
