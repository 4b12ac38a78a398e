"""The card of the demo encoder, written from what was measured."""

import math

from feature_extraction.encoders.demo import DemoEncoder

Accuracy = tuple[float, dict[str, float]]
"""Accuracy over all tiles, and by tissue."""


def card_text(encoder: DemoEncoder, *, near: Accuracy, far: Accuracy, n_steps: int, seed: int) -> str:
    """Markdown: what the encoder is, what it is not, its data, its figures, the command that makes it."""
    rows = "\n".join(f"| {tissue} | {near[1][tissue]:.2f} | {far[1][tissue]:.2f} |" for tissue in near[1])
    widths = ", ".join(f"{width} ({space})" for space, width in encoder.spec.widths.items())
    return f"""# The demo encoder

**What it is.** A toy dual encoder (image tower of five convolutions, text tower of word vectors) in the manner of CLIP,
trained on procedural *drawings* of tissue and captions from a small grammar. It lets every step of the pipeline run
offline.

**What it is not.** It has never seen a real slide. Its vectors have **no medical meaning**; do not use it on patients'
slides or for any conclusion about an encoder, an aggregator or a disease.

- Input: 96 px at 1.0 µm per pixel. Widths: {widths}.
- Logit scale: exp({encoder.logit_scale:.3f}) = {math.exp(encoder.logit_scale):.1f}. Fingerprint:
  `{encoder.fingerprint}`.
- Licence: Apache-2.0; no weights or images of others went into it.
- Data: `feature_extraction/synthetic`, drawn afresh by the training script; captions of `synthetic/captions.py`.
- Made by: `python -m feature_extraction.synthetic.train_encoder --steps {n_steps} --seed {seed}` (CPU, minutes).

Zero-shot top-1 accuracy over the {len(near[1])} tissues on tiles drawn with unseen seeds and stains, with phrases
and templates held out of training. *Like training*: same range of drawings. *Shifted*: drawings that lean towards what
they can be mistaken for, as in the demo cohort.

| tissue | like training | shifted |
|---|---|---|
{rows}
| **all** | **{near[0]:.3f}** | **{far[0]:.3f}** |
"""
