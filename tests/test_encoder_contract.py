"""Every yaml of conf/encoder, found by itself, describes an encoder; those with weights at hand keep the promises."""

from pathlib import Path

import pytest
import torch
import yaml

from feature_extraction.encoder import Encoder, EncoderSource
from feature_extraction.targets import construct

FOLDER = Path(__file__).parent.parent / "conf" / "encoder"
MEMBERS = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def source_of(name: str) -> EncoderSource:
    config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    config = {key: "none" if value == "???" else value for key, value in config.items()}
    return construct(config, kind=EncoderSource, packages=("feature_extraction",))


@pytest.mark.parametrize("name", MEMBERS)
def test_a_yaml_says_what_it_is_and_builds_its_source_without_weights(name: str):
    assert (FOLDER / f"{name}.yaml").read_text().startswith("# ")
    source_of(name)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return source_of("demo").load(torch.device("cpu"))


def tiles(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_shipped_encoder_keeps_its_spec(encoder: Encoder):
    found = encoder.embed_tiles(tiles(5), list(encoder.spec.widths))
    assert {space: rows.shape[1] for space, rows in found.items()} == dict(encoder.spec.widths)
    assert all(torch.isfinite(rows).all() for rows in found.values())
    torch.testing.assert_close(found["joint"].norm(dim=1), torch.ones(5))
    assert len(encoder.fingerprint) == 64


def test_bf16_agrees_with_float32(encoder: Encoder):
    exact = encoder.embed_tiles(tiles(16), ["joint"])["joint"]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encoder.embed_tiles(tiles(16), ["joint"])["joint"].float()
    assert torch.nn.functional.cosine_similarity(exact, rounded).min() > 0.999
