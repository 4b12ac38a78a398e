"""Every yaml of conf/encoder, found by itself: facts without weights, and one line for whoever has none."""

import re
import socket
from pathlib import Path

import pytest
import yaml
from pyramids import tissue_pixels, write_slide

from feature_extraction.configuration import conf_folder
from feature_extraction.encoder import EncoderSource, EncoderSpec
from feature_extraction.encoder_table import encoder_table, listed_encoders, with_table
from feature_extraction.encoders.card import differences, read_spec
from feature_extraction.errors import InputError
from feature_extraction.targets import construct
from mil.cli import main

FOLDER = conf_folder() / "encoder"
MEMBERS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
CONFIGS = {name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in MEMBERS}
OWN = [name for name in MEMBERS if "???" in CONFIGS[name].values()]
NAMED = [name for name in MEMBERS if name not in OWN]
README = Path(__file__).parent.parent / "README.md"
CARD = {"name": "x", "widths": {"joint": 4}, "input_px": 8, "tile_mpp": 0.5, "mean": [0, 0, 0], "std": [1, 1, 1]}


@pytest.mark.parametrize("name", NAMED)
def test_a_card_is_complete_without_weights_and_without_a_network(name: str, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    spec = construct(CONFIGS[name], kind=EncoderSource, packages=("feature_extraction",)).spec
    assert spec.name == name  # folders and files are named by it
    assert spec.has_text == ("joint" in spec.widths) == (spec.context_length is not None)
    assert spec.tile_mpp is not None
    assert spec.licence
    assert "CC-BY-NC-ND" not in spec.licence or spec.is_gated or spec.source != "local"
    assert re.fullmatch(r"package|[\w.-]+/[\w.-]+", spec.source), "where the weights come from, never a path"
    assert re.fullmatch(r"|[0-9a-f]{64}", spec.weights_sha256)
    assert re.fullmatch(r"|1|[0-9a-f]{40}", spec.revision)
    assert all(0 < value < 1 for value in (*spec.mean, *spec.std))


@pytest.mark.parametrize("name", MEMBERS)
def test_a_yaml_begins_with_what_it_is(name: str):
    assert re.match(r"# .{20,}", (FOLDER / f"{name}.yaml").read_text())


@pytest.mark.pipeline
@pytest.mark.parametrize("name", [name for name in MEMBERS if name != "demo"])
def test_without_weights_it_says_what_is_missing_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_slide(tmp_path / "slides" / "S1.svs", tissue_pixels(300, 300, seed=1))
    words = [f"slides={tmp_path / 'slides'}", f"out={tmp_path / 'out'}", f"encoder={name}", "device=cpu"]
    given = [f"encoder.{key}=nowhere/nothing" for key, value in CONFIGS[name].items() if value == "???"]
    assert main(["extract", *words, *given]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith("weights of")]
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    assert re.search(r"encoder\.|pip install", errors[0])
    assert not list(tmp_path.glob("out/[!.]*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": [0, 0]}, r"mean must be three numbers, got \[0, 0\]"),
        ({"widths": {"text": 4}}, "widths must say the width of joint, backbone or both"),
        ({"widths": {"joint": 0}}, "whole numbers of at least 1"),
        ({"input_px": "large"}, "input_px must be a whole number"),
        ({"has_text": False}, "has_text must be true exactly when there is a joint space"),
        ({"interpolation": "nearest"}, "interpolation must be bicubic or bilinear, got nearest"),
        ({"licence_ancestry": "MIT"}, "licence_ancestry must be a list"),
        ({"colour": "blue"}, "unknown key colour"),
    ],
)
def test_a_wrong_card_is_refused_by_its_key(change: dict[str, object], message: str):
    assert read_spec(CARD) == EncoderSpec(
        name="x", widths={"joint": 4}, input_px=8, tile_mpp=0.5, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    with pytest.raises(InputError, match=message):
        read_spec(CARD | change)
    with pytest.raises(InputError, match="input_px is missing"):
        read_spec({key: value for key, value in CARD.items() if key != "input_px"})


def test_what_a_folder_states_is_held_against_the_card():
    card = read_spec(CARD)
    assert differences(card, card) == []
    assert differences(read_spec(CARD | {"input_px": 16}), card) == ["input_px is 16, expected 8"]


def test_the_table_of_the_readme_is_made_from_the_yamls():
    text = README.read_text()
    table = encoder_table(listed_encoders(FOLDER))
    assert with_table(text, table) == text, "run `make fix`"
    for name in MEMBERS:
        assert f"| `{name}` |" in text
