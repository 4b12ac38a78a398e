"""What does not belong together is refused by every command, with the two fingerprints in the message."""

import json
from pathlib import Path

import pandas as pd
import pytest
import tiny_clip
from pyramids import tissue_pixels, write_slide

from feature_extraction.text_bank import read_bank
from mil.cli import main
from mil.feature_folder import FeatureFolder

pytestmark = pytest.mark.pipeline
CLASSES = {"LUAD": ["a gland"], "LUSC": ["keratin pearls"]}
N_PATIENTS = 8


class Study:
    """Eight slides in the features of two revisions of one encoder, and in one of them also before its projection."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for index in range(N_PATIENTS):
            write_slide(folder / "slides" / f"S{index}.svs", tissue_pixels(400, 400, seed=index))
        rows = [f"S{index},P{index},{list(CLASSES)[index % 2]}" for index in range(N_PATIENTS)]
        (folder / "labels.csv").write_text("\n".join(["slide_id,patient_id,label", *rows]))
        for name, more in (("words", "gland"), ("other_words", "stroma")):
            lines = [
                f"  {key}: {{names: ['{value[0]} {more}', 'an image of {more} {key}']}}"
                for key, value in CLASSES.items()
            ]
            (folder / f"{name}.yaml").write_text("\n".join(['source: "a test"', "classes:", *lines]))
        for revision in (1, 2):
            tiny_clip.save(folder / f"weights{revision}", "clip", seed=revision)
            assert main(["extract", *self.encoder(revision), *self.slides(), f"out={self.features(revision)}"]) == 0
            assert main(["prompts", *self.encoder(revision), *self.prompts("words"), f"out={self.bank(revision)}"]) == 0
        words = [f"out={self.features('backbone')}", "space=backbone"]
        assert main(["extract", *self.encoder(1), *self.slides(), *words]) == 0
        assert main(["prompts", *self.encoder(1), *self.prompts("other_words"), f"out={self.bank('other')}"]) == 0
        words = [f"labels={folder / 'labels.csv'}", f"out={folder}", "folds=2"]
        assert main(["split", *words]) == 0
        self.split = folder / "kfold.csv"

    def encoder(self, revision: int) -> list[str]:
        return ["encoder=hf_clip", f"encoder.path={self.folder / f'weights{revision}'}", "encoder.name=tiny"]

    def slides(self) -> list[str]:
        return [f"slides={self.folder / 'slides'}", "qc=false", "tiling.tile_px=64", "tiling.allow_off_spec=true"]

    def prompts(self, name: str) -> list[str]:
        return [f"prompts={self.folder / f'{name}.yaml'}"]

    def features(self, kind: object) -> Path:
        return self.folder / f"features_{kind}"

    def bank(self, kind: object) -> Path:
        return self.folder / f"bank_{kind}"

    def weights_of(self, kind: object) -> str:
        return FeatureFolder(self.features(kind)).header.encoder_fingerprint[:8]

    def train(self, kind: object, bank: object, out: Path, *words: str) -> int:
        inputs = [f"features={self.features(kind)}", f"bank={self.bank(bank)}", f"split={self.split}", f"out={out}"]
        return main(["train", *inputs, "trainer.max_epochs=1", *words])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("mixing"))


@pytest.fixture(scope="module")
def run(study: Study) -> Path:
    """A run on the first revision."""
    assert study.train(1, 1, study.folder / "runs") == 0
    (done,) = (study.folder / "runs").glob("*/done.json")
    return done.parent


def test_two_revisions_of_one_encoder_share_name_and_width_and_are_not_the_same(study: Study):
    first, second = (FeatureFolder(study.features(revision)).header for revision in (1, 2))
    assert (first.encoder, first.space) == (second.encoder, second.space) == ("tiny", "joint")
    assert first.encoder_fingerprint != second.encoder_fingerprint


@pytest.mark.parametrize("command", ["zeroshot", "train"])
def test_words_of_another_revision_are_refused(
    command: str, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    inputs = [f"features={study.features(1)}", f"bank={study.bank(2)}", f"out={tmp_path / 'out'}"]
    words = {"zeroshot": [f"labels={study.folder / 'labels.csv'}"], "train": [f"split={study.split}"]}
    assert main([command, *inputs, *words[command]]) == 2
    said = capsys.readouterr().err
    assert study.weights_of(1) in said
    assert study.weights_of(2) in said


@pytest.mark.parametrize("command", ["zeroshot", "train"])
def test_words_and_stored_vectors_before_the_projection_are_never_compared(
    command: str, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """`train` has the projection in the bank; what compares tiles with words as they are stored has not."""
    inputs = [f"features={study.features('backbone')}", f"bank={study.bank(1)}", f"out={tmp_path / 'out'}"]
    words = {
        "zeroshot": [f"labels={study.folder / 'labels.csv'}"],
        "train": [f"split={study.split}", "filter_nontask=true"],
    }
    assert main([command, *inputs, *words[command]]) == 2
    said = capsys.readouterr().err
    assert "backbone space" in said
    assert said.count(study.weights_of(1)) == 2  # one encoder, two spaces


@pytest.mark.parametrize("command", ["predict", "heatmap"])
@pytest.mark.parametrize("kind", [2, "backbone"])
def test_a_run_refuses_features_of_another_revision_or_space(
    command: str, kind: object, study: Study, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([command, f"run={run}", f"features={study.features(kind)}", f"out={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().err
    assert study.weights_of(1) in said
    assert study.weights_of(kind) in said
    assert not list(tmp_path.glob("out/[!.]*"))


def test_runs_of_two_prompt_sets_are_not_averaged(
    study: Study, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert study.train(1, "other", run.parent) == 0
    inputs = [f"runs={run.parent}", f"features={study.features(1)}", f"out={tmp_path / 'out'}"]
    assert main(["predict", *inputs]) == 2
    said = capsys.readouterr().err
    for kind in (1, "other"):
        assert read_bank(study.bank(kind)).prompt_set_sha256[:8] in said


def test_a_file_of_another_configuration_in_a_folder_costs_its_slide(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (first,), (second,) = (list(study.features(kind).glob("tiny-*")) for kind in (1, 2))
    folder = tmp_path / "mixed"
    folder.mkdir()
    for path in first.glob("*.h5"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "S7.h5").write_bytes((second / "S7.h5").read_bytes())
    words = [f"features={folder}", f"bank={study.bank(1)}", f"out={tmp_path / 'out'}"]
    assert main(["zeroshot", *words, f"labels={study.folder / 'labels.csv'}"]) == 3
    said = capsys.readouterr().err
    for name in (first.name, second.name):
        assert name.rpartition("-")[2] in said
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == N_PATIENTS - 1
    assert list(json.loads((tmp_path / "out" / "summary.json").read_text())["unused"]) == ["S7"]
