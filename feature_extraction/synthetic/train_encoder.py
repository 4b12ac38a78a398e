"""Train the demo encoder on drawings and write its weights, vocabulary and card.

Run as ``python -m feature_extraction.synthetic.train_encoder [--steps N] [--seed N] [--out FOLDER]``.
"""

import argparse
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.random import Generator
from safetensors.torch import save
from torch import Tensor, nn

from feature_extraction.encoder import to_network_input
from feature_extraction.encoders.demo import SPEC, DemoEncoder
from feature_extraction.encoders.demo_towers import UNKNOWN, ImageTower, TextTower, Tokens, split_words, tokenize
from feature_extraction.files import publish, publish_json, publish_text
from feature_extraction.synthetic.captions import Caption, held_out_captions, random_caption, training_words
from feature_extraction.synthetic.tissue import TISSUES, Tissue
from feature_extraction.synthetic.training_card import card_text
from feature_extraction.synthetic.training_tiles import Fields, draw_fields

log = logging.getLogger(__name__)

SIDE_PX = 96
BATCH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Towers:
    """What is trained."""

    image: ImageTower
    text: TextTower
    logit_scale: nn.Parameter

    def parameters(self) -> list[nn.Parameter]:
        """Every trained tensor."""
        return [*self.image.parameters(), *self.text.parameters(), self.logit_scale]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Tiles, one caption for each, and how they relate.

    Attributes:
        pixels: Normalised network input.
        tokens: The captions.
        is_match: True where tile (row) and caption (column) belong together.
        is_unclear: True where they half belong together, so that the pair is left out.
    """

    pixels: Float[Tensor, "tile 3 96 96"]
    tokens: Tokens
    is_match: Tensor
    is_unclear: Tensor


def make_batch(rng: Generator, fields: Fields, vocabulary: dict[str, int]) -> Batch:
    """Crop, mix, augment and caption tiles."""
    chosen = rng.integers(len(fields.tissues), size=(2, BATCH))
    tiles, others = (_crops(rng, fields, index) for index in chosen)
    tissues, partners = fields.tissues[chosen]
    is_pair = (rng.random(BATCH) < 0.15) & (tissues != partners)
    beside_glass = ~is_pair & (rng.random(BATCH) < 0.25)
    others[torch.from_numpy(beside_glass)] = torch.from_numpy(
        rng.uniform(232, 250, (int(beside_glass.sum()), 3, 1, 1)).astype(np.float32)
    )
    share = _half_plane(rng) * torch.from_numpy((is_pair | beside_glass).astype(np.float32))[:, None, None, None]
    pixels = _augment(rng, tiles * (1 - share) + others * share)
    pairs = zip(tissues, partners, is_pair, strict=True)
    shown = [(TISSUES[a], TISSUES[b] if mixed else None) for a, b, mixed in pairs]
    captions = [random_caption(rng, tissue, other) for tissue, other in shown]
    tokens = _forget_words(rng, tokenize([caption.text for caption in captions], vocabulary))
    seen = [frozenset(name for name in pair if name is not None) for pair in shown]
    relation = _relations(seen, captions)
    return Batch(
        pixels=to_network_input(pixels.round().to(torch.uint8), SPEC),
        tokens=tokens,
        is_match=torch.from_numpy(relation == 1),
        is_unclear=torch.from_numpy(relation == 0),
    )


def contrastive_loss(towers: Towers, batch: Batch) -> Float[Tensor, ""]:
    """CLIP's symmetric loss with every matching pair a positive and unclear pairs left out."""
    images = towers.image.project(towers.image(batch.pixels))
    logits = towers.logit_scale.exp() * images @ towers.text(batch.tokens).T
    logits = logits.masked_fill(batch.is_unclear, float("-inf"))
    target = batch.is_match.float()
    losses = []
    for scores, wanted in ((logits, target), (logits.T, target.T)):
        log_share = scores.log_softmax(dim=-1).masked_fill(wanted == 0, 0)
        losses.append(-((wanted * log_share).sum(dim=-1) / wanted.sum(dim=-1)).mean())
    return (losses[0] + losses[1]) / 2


def train(towers: Towers, fields: Fields, vocabulary: dict[str, int], *, steps: int, seed: int) -> None:
    """Train the towers in place."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(towers.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    start = time.monotonic()
    for step in range(steps):
        loss = contrastive_loss(towers, make_batch(rng, fields, vocabulary))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            towers.logit_scale.clamp_(max=math.log(100))
        if step % 25 == 0 or step == steps - 1:
            log.info("step %d of %d, loss %.3f, %.0f s", step, steps, loss.item(), time.monotonic() - start)


def stored_tensors(towers: Towers) -> dict[str, Tensor]:
    """The weights in half precision, batch normalisation folded into the convolutions."""
    folded: dict[str, Tensor] = {}
    layers = list(towers.image.layers)
    for index in range(0, len(layers), 3):
        conv, norm = layers[index], layers[index + 1]
        if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
            raise TypeError(f"layer {index}: expected a convolution and its normalisation")
        fused = torch.nn.utils.fusion.fuse_conv_bn_eval(conv.eval(), norm.eval())
        folded |= {f"image.layers.{index}.{name}": tensor for name, tensor in fused.state_dict().items()}
    folded["image.projection.weight"] = towers.image.projection.weight
    folded |= {f"text.{name}": tensor for name, tensor in towers.text.state_dict().items()}
    stored = {name: tensor.detach().half().contiguous() for name, tensor in folded.items()}
    return stored | {"logit_scale": towers.logit_scale.detach().clone()}


def zero_shot_accuracy(encoder: DemoEncoder, fields: Fields) -> tuple[float, dict[str, float]]:
    """Share of tiles nearest to the held-out captions of their own tissue; also by tissue."""
    captions = held_out_captions()
    rows = [encoder.embed_texts(captions[tissue]).mean(dim=0) for tissue in TISSUES]
    texts = nn.functional.normalize(torch.stack(rows), dim=-1)
    tiles = torch.from_numpy(fields.pixels[:, :SIDE_PX, :SIDE_PX]).permute(0, 3, 1, 2).contiguous()
    best = (encoder.embed_tiles(tiles, ["joint"])["joint"] @ texts.T).argmax(dim=1).numpy()
    is_right = best == fields.tissues
    return float(is_right.mean()), {
        tissue: float(is_right[fields.tissues == index].mean()) for index, tissue in enumerate(TISSUES)
    }


def main() -> None:
    """Draw, train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--n-each", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    default_out = Path(__file__).parent.parent / "encoders" / "demo_weights"
    parser.add_argument("--out", type=Path, default=default_out)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(options.seed)
    words = sorted({word for text in training_words() for word in split_words(text)})
    vocabulary = {word: row for row, word in enumerate(words, start=1)}
    fields = draw_fields(options.seed, n_each=options.n_each, n_stains=2, likeness=(0.0, 0.6), variety=0.9)
    log.info("%d fields drawn", len(fields.tissues))
    image = ImageTower(is_training_form=True)
    towers = Towers(
        image=image,
        text=TextTower(len(words) + 1),
        logit_scale=nn.Parameter(torch.tensor(math.log(1 / 0.07))),
    )
    train(towers, fields, vocabulary, steps=options.steps, seed=options.seed)
    tensors = stored_tensors(towers)
    encoder = DemoEncoder(dict(tensors), vocabulary, torch.device("cpu"))
    near = zero_shot_accuracy(encoder, _test_fields(options.seed + 1, (0.0, 0.6)))
    far = zero_shot_accuracy(encoder, _test_fields(options.seed + 2, (0.6, 1.2)))
    log.info("held-out zero-shot accuracy %.3f, shifted drawings %.3f %s", near[0], far[0], json.dumps(far[1]))
    publish(options.out / "model.safetensors", save(tensors))
    publish_json(options.out / "vocabulary.json", {"words": words})
    publish_text(
        options.out / "CARD.md", card_text(encoder, near=near, far=far, n_steps=options.steps, seed=options.seed)
    )


def _test_fields(seed: int, likeness: tuple[float, float]) -> Fields:
    """Fresh drawings under stains that training did not see."""
    return draw_fields(10_000 + seed, n_each=40, n_stains=1, likeness=likeness, variety=1.0)


def _crops(rng: Generator, fields: Fields, index: Int64[np.ndarray, "tile"]) -> Float[Tensor, "tile 3 96 96"]:
    """A random crop of each chosen field, turned and mirrored at random."""
    tops, lefts = rng.integers(fields.pixels.shape[1] - SIDE_PX + 1, size=(2, len(index)))
    tiles = []
    for field, top, left in zip(index, tops, lefts, strict=True):
        crop = fields.pixels[field, top : top + SIDE_PX, left : left + SIDE_PX]
        crop = np.rot90(crop, int(rng.integers(4)))
        tiles.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).float()


def _half_plane(rng: Generator) -> Float[Tensor, "tile 1 96 96"]:
    """Share (0..1) of a second picture: a half plane in a random direction over 25 to 60 % of each tile."""
    turn = rng.uniform(0, 2 * np.pi, (BATCH, 1, 1))
    axis = np.linspace(-0.5, 0.5, SIDE_PX)
    position = axis[:, None] * np.cos(turn) + axis * np.sin(turn)
    share = 1 / (1 + np.exp(-(position - rng.uniform(-0.1, 0.25, (BATCH, 1, 1))) * 40))
    return torch.from_numpy(share.astype(np.float32))[:, None]


def _augment(rng: Generator, pixels: Float[Tensor, "tile 3 96 96"]) -> Float[Tensor, "tile 3 96 96"]:
    """Vary stain strength and tint (a power of the transmitted light), blur some, add noise; values 0..255."""
    power = torch.from_numpy(rng.normal(1, 0.15, (BATCH, 1, 1, 1)) * rng.normal(1, 0.06, (BATCH, 3, 1, 1))).float()
    light = (pixels / 255).clamp(1e-3, 1) ** power.clamp(0.5, 1.6)
    is_blurred = torch.from_numpy(rng.random(BATCH) < 0.2)[:, None, None, None]
    blurred = nn.functional.avg_pool2d(light, 3, stride=1, padding=1, count_include_pad=False)
    light = torch.where(is_blurred, blurred, light)
    noise = torch.from_numpy(rng.standard_normal(light.shape, dtype=np.float32)) * 0.01
    return ((light + noise) * 255).clamp(0, 255)


def _forget_words(rng: Generator, tokens: Tokens) -> Tokens:
    """Hide one word in eight from the word table, so that its pieces learn to stand for it."""
    is_hidden = torch.from_numpy(rng.random(tuple(tokens.words.shape)) < 0.125)
    words = tokens.words.masked_fill(is_hidden, UNKNOWN)
    return Tokens(words=words, pieces=tokens.pieces, is_piece=tokens.is_piece, is_word=tokens.is_word)


def _relations(tiles: Sequence[frozenset[Tissue]], captions: Sequence[Caption]) -> Int64[np.ndarray, "tile caption"]:
    """1 where a caption describes a tile, 0 where it does so in part, -1 where not at all."""
    shown = np.array([[tissue in tile for tissue in TISSUES] for tile in tiles])
    named = np.array([[tissue in caption.tissues for tissue in TISSUES] for caption in captions])
    is_composed = np.array([caption.is_composed for caption in captions])
    is_mixed = shown.sum(axis=1) > 1
    is_related = (shown[:, None] & named).any(axis=-1)
    is_same = (shown[:, None] == named).all(axis=-1)
    is_whole = np.where(is_mixed[:, None], is_composed & is_same, ~is_composed)
    return np.where(is_related, is_whole.astype(np.int64), -1)


if __name__ == "__main__":
    main()
