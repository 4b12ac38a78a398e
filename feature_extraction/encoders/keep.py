"""KEEP: a ViT-L/16 with a two-layer head, and PubMedBERT; rebuilt, so that no remote code is run.

The remote code fails with current timm: it gives LayerScale's vector another name than timm does.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from feature_extraction.encoders.card_source import CardSource
from feature_extraction.encoders.packages import require
from feature_extraction.encoders.towers import Tokenize, Towers, TowersEncoder, ready, without, without_positions
from feature_extraction.encoders.vit import VisionTransformer, VitShape
from feature_extraction.encoders.weights import load_strictly, read_tensors
from feature_extraction.errors import InputError

if TYPE_CHECKING:
    from transformers import BertModel

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TOKENIZERS = ("vocab.txt", "tokenizer.json")
LONGEST = 256
IMAGE = VitShape(width=1024, depth=24, n_heads=16, patch_px=16, image_px=224, has_layer_scale=True)


class Keep(Towers):
    """Both towers.

    Args:
        image: Sizes of the image tower.
        joint: Width of the joint space, which is that of the text tower.
        text: The text tower.
    """

    def __init__(self, image: VitShape, joint: int, text: "BertModel") -> None:
        super().__init__()
        self.visual = VisionTransformer(image)
        self.visual_head = nn.Sequential(nn.Linear(image.width, joint), nn.GELU(), nn.Linear(joint, joint))
        self.text = text
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def see(self, pixels: Float[Tensor, "tile 3 side side"]) -> Float[Tensor, "tile backbone"]:
        """The class token of the image."""
        return self.visual(pixels)[:, 0]

    def project(self, backbone: Float[Tensor, "tile backbone"]) -> Float[Tensor, "tile joint"]:
        """The head."""
        return self.visual_head(backbone)

    def read(self, tokens: Int[Tensor, "1 token"]) -> Float[Tensor, "1 joint"]:
        """BERT's pooled class token."""
        return self.text(input_ids=tokens, attention_mask=torch.ones_like(tokens)).pooler_output


class KeepSource(CardSource):
    """KEEP.

    Args:
        path: The folder with weights, ``config.json`` and vocabulary, its weights file, or a hub id.
        spec: The card.
        image: Sizes of the image tower.
    """

    extra = "hf"

    def __init__(self, *, path: str, spec: Mapping[str, object], image: VitShape = IMAGE) -> None:
        super().__init__(path, spec, WEIGHTS)
        self._image = image

    def load(self, device: torch.device) -> TowersEncoder:
        """Read the weights strictly, and the tokenizer if it is there; images need none.

        Raises:
            InputError: The weights are missing, damaged, or not KEEP's; or transformers is not installed.
        """
        text = self._text_tower()
        with torch.device("meta"):
            network = Keep(self._image, self._spec.widths["joint"], text)
        stored = without_positions(without(read_tensors(self.weights_file()), ()))
        tensors = {_timm_name(name): tensor for name, tensor in stored.items()}
        load_strictly(network, tensors, f"encoder.path={self._path}")
        return TowersEncoder(
            self._spec,
            ready(network, device),
            tensors,
            tokenize=self._tokenize(text.config.vocab_size),
            remedy="put KEEP's vocab.txt beside the weights",
            longest=LONGEST,
        )

    def _text_tower(self) -> "BertModel":
        """A BERT of the sizes in ``config.json``, not filled."""
        require("transformers", extra=self.extra)
        from transformers import BertConfig, BertModel

        file = self._beside(("config.json",))
        if file is None:
            raise InputError(f"encoder.path={self._path}: KEEP's config.json must be beside its weights")
        return BertModel(BertConfig.from_dict(_text_config(file)))

    def _tokenize(self, vocabulary: int) -> Tokenize | None:
        file = self._beside(TOKENIZERS)
        if file is None:  # asked first: transformers makes up an empty vocabulary where there is none
            return None
        from transformers import BertTokenizer

        tokenizer = BertTokenizer.from_pretrained(file.parent, local_files_only=True, do_lower_case=True)
        if len(tokenizer) != vocabulary:
            raise InputError(f"{file.name}: has {len(tokenizer)} tokens, KEEP's text tower knows {vocabulary}")
        encode = cast("Callable[[str], list[int]]", tokenizer.encode)
        return lambda text: list(encode(text))


def _timm_name(name: str) -> str:
    """KEEP calls timm's ``ls1.gamma`` ``ls1.weight``."""
    return name.replace(".ls1.weight", ".ls1.gamma").replace(".ls2.weight", ".ls2.gamma")


def _text_config(file: Path) -> dict[str, object]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))["text_config"]
        return dict(config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"encoder.path: {file.name} beside the weights has no text_config: is this KEEP?") from error
