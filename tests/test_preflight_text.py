"""Will text help here: planted signal is found, absent signal is not, and test patients are never read."""

import csv
import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from test_store import HEADER

from feature_extraction.configuration import conf_folder
from feature_extraction.encoders.demo import DemoSource
from feature_extraction.errors import InputError, MismatchError
from feature_extraction.prompts import read_prompt_set
from feature_extraction.store import FeatureRows, write_features
from feature_extraction.text_bank import TextBank, build_bank, write_bank
from mil.bag import Bag
from mil.commands.preflight import report, run
from mil.metrics.intervals import Estimate
from mil.parts import Pooling
from mil.preflight import RULE, Labelled, judge, text_preflight
from mil.preflight_controls import Control

POOLING = Pooling(rule="topj", top_j=3)
N_TILES = 12


@pytest.fixture(scope="module")
def words() -> TextBank:
    prompts = read_prompt_set(conf_folder() / "prompts" / "demo.yaml")
    return build_bank(prompts, DemoSource().load(torch.device("cpu")))


def planted(words: TextBank, label: str, strength: float, seed: int) -> np.ndarray:
    """Tiles in random directions, some of them leaning toward their class's words."""
    rows = np.random.default_rng(seed).standard_normal((N_TILES, words.embeddings.shape[1]))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[:4] += strength * words.class_vector(label)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def cohort(words: TextBank, strength: float, n_patients: int) -> list[Labelled]:
    """Two slides a patient, classes in turn."""
    slides: list[Labelled] = []
    classes = ("glandular", "keratinizing")
    for patient in range(n_patients):
        for place in range(2):
            label = classes[patient % 2]
            rows = planted(words, label, strength, seed=10 * patient + place)
            coords = np.zeros((N_TILES, 2), np.int64)
            bag = Bag(slide_id=f"P{patient}_{place}", features=rows, coords_lv0=coords, size_lv0=(1.0, 1.0))
            slides.append(Labelled(patient_id=f"P{patient}", label=label, bag=bag))
    return slides


def test_words_that_tell_the_classes_apart_help(words: TextBank):
    found = text_preflight(cohort(words, 0.8, 24), words, ["glandular", "keratinizing"], POOLING)
    assert found.verdict == "helps"
    assert found.metrics["macro_auc"].value > 0.9
    assert found.metrics["macro_auc"].low > 0.5
    assert found.metrics["macro_auc"].n_patients == 24
    assert found.permuted.p <= 0.01
    assert found.nonsense.p <= 0.01
    assert found.permuted.median == pytest.approx(0.5, abs=0.06)
    assert min(margin.mean for margin in found.margins.values()) > 0
    assert found.shuffled.high < 0.5  # the names exchanged
    text = report(found, where="train and val of fold 0", pooling=POOLING)
    assert text.startswith("Text helps here: ")
    assert RULE in text
    assert "24 patients of train and val of fold 0" in text


def test_words_that_say_nothing_do_not_help(words: TextBank):
    found = text_preflight(cohort(words, 0.0, 60), words, ["glandular", "keratinizing"], POOLING)
    assert found.verdict == "does not help"
    assert found.metrics["macro_auc"].low < 0.5
    assert found.permuted.p > 0.05
    assert found.nonsense.p > 0.05


def renamed(words: TextBank, names: dict[str, str]) -> TextBank:
    """The same vectors, as the words of other classes."""
    rows = tuple(
        dataclasses.replace(row, owner=names.get(row.owner, row.owner)) if row.role == "class" else row
        for row in words.rows
    )
    return dataclasses.replace(words, rows=rows)


def test_permuted_names_do_not_help_and_are_suspected(words: TextBank):
    wrong = renamed(words, {"glandular": "keratinizing", "keratinizing": "glandular"})
    found = text_preflight(cohort(words, 0.8, 24), wrong, ["glandular", "keratinizing"], POOLING)
    assert found.verdict == "does not help"
    assert found.metrics["macro_auc"].high < 0.5
    assert found.called["glandular"]["keratinizing"] > 0.5
    text = report(found, where="train and val of fold 0", pooling=POOLING)
    assert text.startswith("Text does not help here: ")
    assert "are the names with the right classes?" in text
    assert re.search(r"\d+% of the glandular patients are called keratinizing", text)


def test_the_wording_is_varied_where_there_are_words_to_vary(words: TextBank):
    slides = cohort(words, 0.8, 12)
    found = text_preflight(slides, words, ["glandular", "keratinizing"], POOLING)
    spread = found.wordings["macro_auc"]
    assert 0.5 < spread.low <= spread.median <= spread.high <= 1
    assert "Random halves of the wording: macro AUC" in report(found, where="train", pooling=POOLING)
    first = {row.owner: place for place, row in reversed(list(enumerate(words.rows))) if row.role == "class"}
    kept = sorted(first.values())
    one = dataclasses.replace(words, rows=tuple(words.rows[place] for place in kept), embeddings=words.embeddings[kept])
    found = text_preflight(slides, one, ["glandular", "keratinizing"], POOLING)
    assert found.wordings == {}
    assert "Random halves" not in report(found, where="train", pooling=POOLING)


def test_few_patients_say_nothing_however_good_the_figure(words: TextBank):
    found = text_preflight(cohort(words, 0.8, 8), words, ["glandular", "keratinizing"], POOLING)
    assert found.metrics["macro_auc"].value > 0.9
    assert found.verdict == "cannot be said"
    assert found.reason == "too few patients of class glandular 4, keratinizing 4 (at least 5 are needed)"


def test_the_same_seed_gives_the_same_figures(words: TextBank):
    slides = cohort(words, 0.3, 12)
    first, again = (text_preflight(slides, words, ["glandular", "keratinizing"], POOLING, seed=3) for _ in range(2))
    assert first == again


def estimate(low: float, high: float) -> Estimate:
    value = (low + high) / 2
    return Estimate(value=value, low=low, high=high, n_patients=40, n_slides=40, reason="")


@pytest.mark.parametrize(
    ("low", "high", "permuted", "nonsense", "verdict"),
    [
        (0.7, 0.9, 0.01, 0.01, "helps"),
        (0.7, 0.9, 0.01, 0.1, "cannot be said"),
        (0.7, 0.9, 0.1, 0.01, "cannot be said"),
        (0.7, 0.9, 0.01, 0.3, "does not help"),
        (0.45, 0.9, 0.01, 0.01, "cannot be said"),
        (0.3, 0.6, 0.5, 0.1, "does not help"),
        (0.51, 0.6, 0.04, 0.04, "helps"),
        (math.nan, math.nan, 0.01, 0.01, "cannot be said"),
    ],
)
def test_the_rule_is_what_it_says(low: float, high: float, permuted: float, nonsense: float, verdict: str):
    controls = tuple(Control(n=100, median=0.5, high=0.6, p=p) for p in (permuted, nonsense))
    assert judge(estimate(low, high), controls, {"a": 20, "b": 20})[0] == verdict
    assert judge(estimate(low, high), controls, {"a": 20, "b": 4})[0] == "cannot be said"


class Study:
    """Feature files, a bank and a split of 30 patients: 24 are seen, 6 are test."""

    def __init__(self, folder: Path, words: TextBank, *, licence: str = "Apache-2.0") -> None:
        self.folder = folder
        self.licence = licence
        self.features = folder / "features"
        self.features.mkdir()
        write_bank(folder / "bank.safetensors", words)
        lines = [["patient_id", "slide_id", "label", "site", "fold_0"]]
        self.test: list[Path] = []
        for patient in range(30):
            part = ("test", "train", "train", "val", "train")[patient // 2 % 5]
            slide = f"{'a_test' if part == 'test' else 'seen'}_{patient:02d}"
            label = ("glandular", "keratinizing")[patient % 2]
            lines.append([f"P{patient:02d}", slide, label, "", part])
            path = self.features / f"{slide}.h5"
            self.write(path, planted(words, label, 0.8, seed=patient), words)
            if part == "test":
                self.test.append(path)
        with (folder / "kfold.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows(lines)

    def write(self, path: Path, rows: np.ndarray, words: TextBank) -> None:
        header = dataclasses.replace(
            HEADER,
            slide_id=path.stem,
            encoder=words.encoder,
            encoder_fingerprint=words.encoder_fingerprint,
            licence=self.licence,
        )
        content = FeatureRows(
            spaces={"joint": rows},
            coords_lv0=np.stack([np.arange(len(rows)) * 192, np.zeros(len(rows))], axis=1).astype(np.int64),
            tissue_fraction=np.ones(len(rows), np.float32),
            failed_coords_lv0=np.empty((0, 2), np.int64),
        )
        write_features(path, header, content)

    def preflight(self, out: str, *more: str) -> tuple[int, dict[str, object]]:
        words = [
            f"features={self.features}",
            f"bank={self.folder / 'bank.safetensors'}",
            f"split={self.folder / 'kfold.csv'}",
            "fold=0",
            f"out={self.folder / out}",
            *more,
        ]
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            code = run(compose("preflight", words))
        return code, json.loads((self.folder / out / "summary.json").read_text())


@pytest.mark.parametrize("fate", ["deleted", "corrupted", "cut", "turned to another class"])
def test_test_patients_are_never_read(tmp_path: Path, words: TextBank, fate: str, capsys: pytest.CaptureFixture[str]):
    study = Study(tmp_path, words)
    assert len(study.test) == 6
    code, before = study.preflight("before")
    assert code == 0
    assert before["verdict"] == "helps"
    assert before["patients"] == {"glandular": 12, "keratinizing": 12}
    for path in study.test:
        if fate == "deleted":
            path.unlink()
        elif fate == "corrupted":
            path.write_bytes(b"no HDF5 at all")
        elif fate == "cut":
            path.write_bytes(path.read_bytes()[:3000])
        else:
            path.unlink()
            study.write(path, planted(words, "normal", 9.0, seed=1), words)
    code, after = study.preflight("after")
    assert code == 0
    assert after == before
    assert "Text helps here" in capsys.readouterr().err


def test_a_seen_slide_that_is_damaged_is_listed_and_does_count(tmp_path: Path, words: TextBank):
    study = Study(tmp_path, words)
    _, before = study.preflight("before")
    (study.features / "seen_02.h5").write_bytes(b"no HDF5 at all")
    code, after = study.preflight("after")
    assert code == 3
    assert list(after["unused"]) == ["seen_02"]
    assert after["patients"] == {"glandular": 11, "keratinizing": 12}
    assert after["metrics"] != before["metrics"]


def test_the_command_tells_words_in_place_from_words_out_of_place(
    tmp_path: Path, words: TextBank, capsys: pytest.CaptureFixture[str]
):
    study = Study(tmp_path, words)
    assert study.preflight("right")[1]["verdict"] == "helps"
    names = {"glandular": "keratinizing", "keratinizing": "glandular"}
    write_bank(tmp_path / "bank.safetensors", renamed(words, names))
    code, found = study.preflight("wrong")
    assert (code, found["verdict"]) == (0, "does not help")
    shown = capsys.readouterr().err
    assert "Text helps here: " in shown
    assert "Text does not help here: " in shown


def test_the_licence_behind_the_features_is_named_and_the_profile_obeyed(
    tmp_path: Path, words: TextBank, capsys: pytest.CaptureFixture[str]
):
    study = Study(tmp_path, words, licence="CC-BY-NC-ND-4.0")
    assert study.preflight("out")[0] == 0
    assert "licence CC-BY-NC-ND-4.0; commercial use is not known to be allowed" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"come under CC-BY-NC-ND-4\.0"):
        study.preflight("none", "licence_profile=commercial")
    assert not (tmp_path / "none").exists()


def test_another_encoders_words_and_an_unknown_choice_are_refused(tmp_path: Path, words: TextBank):
    study = Study(tmp_path, words)
    with pytest.raises(InputError, match="auto: the preflight measures one J"):
        study.preflight("out", "pooling.top_j=auto")
    other = dataclasses.replace(words, encoder_fingerprint="0" * 64)
    write_bank(tmp_path / "bank.safetensors", other)
    with pytest.raises(MismatchError, match="00000000") as caught:
        study.preflight("out")
    assert words.encoder_fingerprint[:8] in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["cox", "multilabel"])
def test_labels_that_are_not_one_class_are_refused_before_anything_is_read(tmp_path: Path, words: TextBank, task: str):
    study = Study(tmp_path, words)
    (tmp_path / "kfold.csv").unlink()
    with pytest.raises(InputError, match=f"task=mil.tasks.{task}.* a slide of this task has not one class"):
        study.preflight("out", f"task={task}")
