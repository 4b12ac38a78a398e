"""Zero-shot beyond one number: subsets of the prompts, several classes at once, patients, and maps of the tiles."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bags import CLASSES, bag, rows
from PIL import Image

from feature_extraction.errors import InputError
from feature_extraction.prompts import PromptRow
from feature_extraction.synthetic.cohort import make_cohort
from feature_extraction.text_bank import TextBank
from mil.cli import main
from mil.heatmap.class_map import class_map, class_table
from mil.parts import Pooling
from mil.prompt_subsets import draw_class_vectors, spread_of
from mil.zeroshot import slide_logits
from mil.zeroshot_study import patient_means, stability, subset_probabilities

TEMPLATES = ("CLASSNAME.", "an image of CLASSNAME.")
NAMES = ("one", "two", "three", "four")


def bank(*, names: tuple[str, ...] = NAMES, templates: tuple[str, ...] = TEMPLATES, bias: float = 0.0) -> TextBank:
    """Every class with the same number of names, each in each template, and one non-task thing."""
    listed: list[PromptRow] = []
    for class_name in CLASSES:
        role = "background" if class_name == "normal" else "class"
        for name in names:
            for template in templates:
                text = template.replace("CLASSNAME", f"{class_name} {name}")
                listed.append(
                    PromptRow(text=text, role=role, owner=class_name, class_name=class_name, template=template)
                )
    listed.append(PromptRow(text="glass", role="nontask", owner="glass", class_name="", template=TEMPLATES[0]))
    return TextBank(
        rows=tuple(listed),
        embeddings=rows(len(listed), seed=7),
        logit_scale=math.log(20),
        logit_bias=bias,
        prompt_set="test",
        prompt_set_sha256="0" * 64,
        encoder="test",
        encoder_fingerprint="f" * 64,
    )


def test_a_draw_is_the_normalised_mean_of_half_the_names_in_half_the_templates():
    words = bank()
    drawn = draw_class_vectors(words, CLASSES, n_subsets=20, seed=0)
    of_class = [index for index, row in enumerate(words.rows) if row.owner == "alpha"]
    candidates = []
    for first in range(len(NAMES)):
        for second in range(first + 1, len(NAMES)):
            for template in range(len(TEMPLATES)):
                chosen = [of_class[name * len(TEMPLATES) + template] for name in (first, second)]
                mean = words.embeddings[chosen].astype(np.float64).mean(axis=0)
                candidates.append(mean / np.linalg.norm(mean))
    gaps = np.abs(drawn[:, 0, None] - np.array(candidates)[None]).max(axis=2)
    assert gaps.min(axis=1).max() < 1e-12  # every draw is one of the possible ones
    assert len(set(gaps.argmin(axis=1).tolist())) > 4  # and not always the same
    np.testing.assert_array_equal(drawn, draw_class_vectors(words, CLASSES, n_subsets=20, seed=0))
    assert not np.array_equal(drawn, draw_class_vectors(words, CLASSES, n_subsets=20, seed=1))


def test_a_prompt_set_with_nothing_to_draw_is_refused():
    with pytest.raises(InputError, match="one name a class and one template"):
        draw_class_vectors(bank(names=("one",), templates=TEMPLATES[:1]), CLASSES, n_subsets=5, seed=0)


def test_the_only_subset_predicts_what_zero_shot_predicts():
    words = bank(names=("one",))
    words = replace(words, embeddings=np.repeat(words.embeddings[::2], 2, axis=0)[: len(words.rows)])
    bags = {f"S{seed}": bag(9, seed) for seed in range(4)}  # both templates of a class have one vector
    pooling = Pooling(rule="margin", top_j=3)
    drawn = subset_probabilities(bags, words, CLASSES, pooling, n_subsets=3, seed=0)
    logits = np.stack([slide_logits(one, words, CLASSES, pooling) for one in bags.values()])
    powers = np.exp(logits)
    for subset in drawn:
        np.testing.assert_allclose(subset, powers / powers.sum(axis=1, keepdims=True), atol=1e-9)


def test_stability_counts_the_subsets_that_agree():
    whole = np.array([[0.7, 0.3], [0.2, 0.8]])
    drawn = np.array([[[0.6, 0.4], [0.1, 0.9]], [[0.4, 0.6], [0.3, 0.7]]])
    table = stability(drawn, whole, ["a", "b"])
    assert table["agreement"].tolist() == [0.5, 1.0]
    np.testing.assert_allclose(table["p_sd"], [0.1, 0.1])


def test_a_spread_is_made_of_quartiles():
    spread = spread_of([{"auc": value, "never": float("nan")} for value in (0.5, 0.6, 0.7, 0.8, 0.9)])
    assert list(spread) == ["auc"]
    assert (spread["auc"].low, spread["auc"].median, spread["auc"].high) == pytest.approx((0.6, 0.7, 0.8))


def test_a_patient_is_the_mean_of_its_slides():
    table = pd.DataFrame(
        {"slide_id": ["a", "b", "c"], "patient_id": ["2", "1", "2"], "label": ["x", "y", "x"], "p_x": [0.2, 0.5, 0.6]}
    )
    found = patient_means(table)
    assert found["patient_id"].tolist() == ["1", "2"]
    assert found["slides"].tolist() == [1, 2]
    assert found["p_x"].tolist() == pytest.approx([0.5, 0.4])


def test_every_tile_is_called_what_it_resembles_most():
    words = bank()
    vectors = [*(words.class_vector(name) for name in CLASSES), words.nontask_vector("glass")]
    noise = rows(40, seed=5).astype(np.float64)
    tiles = np.concatenate([np.stack(vectors) + 0.1 * noise[:4], np.stack(vectors)[::-1] + 0.1 * noise[4:8]])
    one = replace(bag(8, 0), features=tiles.astype(np.float32))
    found = class_map(one, words, CLASSES)
    expected = [*CLASSES, "glass"]
    table = class_table(found)
    assert table["class"].tolist() == expected + expected[::-1]
    np.testing.assert_allclose(table[[f"p_{name}" for name in expected]].sum(axis=1), 1)
    assert found.shares() == dict.fromkeys(expected, 0.25)


@pytest.mark.pipeline
def test_the_command_writes_patients_intervals_subsets_and_maps(tmp_path: Path):
    cohort = make_cohort(tmp_path / "cohort", n_patients=6, seed=3)
    assert main(["prompts", "prompts=demo", f"out={tmp_path / 'bank'}"]) == 0
    assert main(["extract", f"slides={cohort.slides}", f"out={tmp_path / 'features'}", "qc=false"]) == 0
    (bank_file,) = (tmp_path / "bank").glob("*.safetensors")
    inputs = [f"features={tmp_path / 'features'}", f"bank={bank_file}"]
    out = tmp_path / "zs"
    words = [*inputs, f"labels={cohort.labels}", f"out={out}", "subsets=8", "maps=true", f"slides={cohort.slides}"]
    assert main(["zeroshot", *words]) == 0

    predictions = pd.read_csv(out / "predictions.csv", dtype=str)
    patients = pd.read_csv(out / "patients.csv", dtype=str)
    assert sorted(patients["patient_id"]) == sorted(set(predictions["patient_id"]))
    metrics = json.loads((out / "metrics.json").read_text())
    for level in ("slide", "patient"):
        estimate = metrics["test_intervals"][level]["balanced_accuracy"]
        assert estimate["low"] <= estimate["value"] <= estimate["high"]
    subsets = pd.read_csv(out / "subsets.csv")
    assert len(subsets) == 8
    spread = metrics["subsets"]["balanced_accuracy"]
    assert spread["median"] == pytest.approx(subsets["balanced_accuracy"].median())
    assert set(pd.read_csv(out / "stability.csv", dtype={"slide_id": str})["slide_id"]) == set(predictions["slide_id"])
    first = predictions["slide_id"][0]
    tiles = pd.read_parquet(out / "maps" / f"{first}.classes.parquet")
    assert {"normal", "glandular", "keratinizing"} & set(tiles["class"])
    with Image.open(out / "maps" / f"{first}.classes.png") as picture:
        assert picture.size[0] > 500

    table = pd.read_csv(cohort.labels, dtype=str)
    table["label"] = table["label"].replace({"glandular": "glandular;keratinizing"})
    table.to_csv(tmp_path / "several.csv", index=False)
    words = [*inputs, f"labels={tmp_path / 'several.csv'}", f"out={tmp_path / 'several'}", "task=multilabel"]
    assert main(["zeroshot", *words]) == 0
    several = pd.read_csv(tmp_path / "several" / "predictions.csv")
    assert [name for name in several.columns if name.startswith("p_")] == ["p_normal", "p_glandular", "p_keratinizing"]
    assert json.loads((tmp_path / "several" / "metrics.json").read_text())["test"]["macro_auc"] > 0.5
