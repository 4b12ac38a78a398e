"""What a map says of itself."""

import importlib.metadata
from collections.abc import Mapping

from feature_extraction.files import sha256_of_file
from mil.checkpoint import TENSORS
from mil.heatmap.contributions import Explanation
from mil.heatmap.explain import LoadedRun
from mil.heatmap.kept_tiles import Reader
from mil.heatmap.layers import LAYER_MEANING

USE = "research use only"


def map_metadata(
    run: LoadedRun, explanation: Explanation, reader: Reader, line: Mapping[str, object]
) -> dict[str, object]:
    """Everything that is known of a map beside its tiles, as plain data.

    Args:
        run: That explains the slide.
        explanation: Of the slide at one magnification.
        reader: That dropped its tiles.
        line: Of the summary, with the figures of this magnification.
    """
    card = run.card
    return {
        **line,
        "use": USE,
        "model": {
            "aggregator": card.aggregator.get("name"),
            "init": card.init,
            "sha256": sha256_of_file(run.folder / TENSORS),
        },
        "task": card.task.get("_target_"),
        "classes": card.classes,
        "background": card.background,
        "bias": dict(zip(card.classes, explanation.bias.tolist(), strict=True)),
        "at_the_other_magnification": dict(zip(card.classes, explanation.elsewhere.tolist(), strict=True)),
        "layers": LAYER_MEANING,
        "dropping": reader.how,
        "encoder": card.encoder,
        "encoder_fingerprint": card.encoder_fingerprint,
        "space": card.space,
        "tile_mpp": card.tile_mpp,
        "licence": card.licence,
        "licence_ancestry": card.licence_ancestry,
        "versions": {name: importlib.metadata.version(name) for name in ("promptmil", "torch", "numpy")},
    }
