"""Real transformers dual encoders with small random weights, saved as their authors would."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

TEXT = "a an the of image histology H&E tumor normal lung gland keratin pearls sheets stroma blood pen glass one two"
WORDS = TEXT.split(" ")
SIDE = 32


def _tokenizer(folder: Path, context: int) -> None:
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<start>", "<end>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
        model_max_length=context,
    ).save_pretrained(folder)


def _processor(folder: Path, kind: str) -> None:
    size = {"height": SIDE, "width": SIDE} if kind == "siglip" else {"shortest_edge": SIDE}
    content = {"size": size, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "resample": 3}
    if kind == "clip":
        content |= {"do_center_crop": True, "crop_size": {"height": SIDE, "width": SIDE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))


def save(folder: Path, kind: str, seed: int = 0) -> Path:
    """Write a model of one of the three kinds that the family reads."""
    torch.manual_seed(seed)
    context = 16
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = common | {"image_size": SIDE, "patch_size": 8}
    text = common | {
        "vocab_size": 4 + len(WORDS),
        "max_position_embeddings": context,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if kind == "clip":
        config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
        model = transformers.CLIPModel(config)
    elif kind == "siglip":
        config = transformers.SiglipConfig(vision_config=vision, text_config=text)
        model = transformers.SiglipModel(config)
    else:
        config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
            transformers.ViTConfig(**vision), transformers.BertConfig(**text), projection_dim=24
        )
        model = transformers.VisionTextDualEncoderModel(config)
    model.save_pretrained(folder)
    _tokenizer(folder, context)
    _processor(folder, kind)
    return folder
