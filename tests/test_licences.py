"""The licences of an encoder's weights are shown, carried along, and refused where a profile forbids them."""

import json
from pathlib import Path

import pytest

from feature_extraction.errors import InputError
from feature_extraction.licences import forbidding, licence_line, require_profile
from feature_extraction.store import FeatureFile
from mil.cli import main


@pytest.mark.parametrize("licence", ["MIT", "Apache-2.0", "cc-by-4.0", "BSD-3-Clause"])
def test_a_licence_that_allows_commercial_use_passes(licence: str):
    assert forbidding(licence, ["MIT"]) == []
    require_profile("commercial", encoder="e", licence=licence, ancestry=["MIT"])


@pytest.mark.parametrize(
    ("licence", "ancestry"),
    [("CC-BY-NC-ND-4.0", []), ("MIT", ["CC-BY-NC-ND-4.0"]), ("unknown", []), ("MIT", ["unclear"])],
)
def test_a_licence_that_is_not_known_to_allow_it_is_refused_wherever_it_stands(licence: str, ancestry: list[str]):
    with pytest.raises(InputError, match=r"commercial.*(NC-ND|unknown|unclear)"):
        require_profile("commercial", encoder="e", licence=licence, ancestry=ancestry)
    require_profile("any", encoder="e", licence=licence, ancestry=ancestry)
    assert "not known to be allowed" in licence_line("e", licence, ancestry)


def test_an_unknown_profile_is_named():
    with pytest.raises(InputError, match="licence_profile=free: expected any or commercial"):
        require_profile("free", encoder="e", licence="MIT", ancestry=[])


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of weights that descend from others under a licence without commercial use."""
    import tiny_clip
    from pyramids import tissue_pixels, write_slide

    root = tmp_path_factory.mktemp("licences")
    write_slide(root / "slides" / "S1.svs", tissue_pixels(900, 900, seed=1))
    tiny_clip.save(root / "weights", "clip")
    words = [f"slides={root / 'slides'}", f"out={root / 'features'}", "tiling.tile_px=32", "qc=false"]
    assert main(["extract", *words, *encoder_of(root)]) == 0
    return root


def encoder_of(root: Path) -> list[str]:
    own = [f"encoder.path={root / 'weights'}", "encoder.name=tiny", "encoder.tile_mpp=2.0"]
    return ["encoder=hf_clip", *own, "encoder.licence=MIT", "encoder.licence_ancestry=[CC-BY-NC-ND-4.0]"]


def test_the_ancestry_is_in_the_feature_file(extracted: Path):
    header = FeatureFile(next((extracted / "features").glob("*/S1.h5"))).header
    assert (header.licence, json.loads(header.licence_ancestry)) == ("MIT", ["CC-BY-NC-ND-4.0"])


def test_a_commercial_run_refuses_the_weights_and_what_was_made_with_them(
    extracted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    features = f"features={extracted / 'features'}"
    commands = [
        ["extract", f"slides={extracted / 'slides'}", *encoder_of(extracted)],
        ["prompts", "prompts=demo", *encoder_of(extracted)],
        ["train", features, f"split={tmp_path / 'none.csv'}", "aggregator=mean"],
    ]
    for command in commands:
        out = tmp_path / command[0]
        assert main([*command, f"out={out}", "licence_profile=commercial"]) == 2, command
        assert "come under CC-BY-NC-ND-4.0" in capsys.readouterr().err
        assert not list(out.glob("[!.]*"))


def test_without_a_profile_the_ancestry_is_printed(extracted: Path, capsys: pytest.CaptureFixture[str]):
    words = [f"slides={extracted / 'slides'}", f"out={extracted / 'features'}", "tiling.tile_px=32", "qc=false"]
    assert main(["extract", *words, *encoder_of(extracted)]) == 0
    assert "licence MIT, derived from CC-BY-NC-ND-4.0" in capsys.readouterr().err
