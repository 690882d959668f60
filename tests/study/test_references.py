"""A method of a study that is made of training images gets them from the training split."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from heatproof.datasets.table import load_table
from heatproof.errors import InputError
from heatproof.explanation import explain, methods
from heatproof.images.read import read_image
from heatproof.models import Classifier
from heatproof.models.checkpoint import load_checkpoint
from heatproof.study.loading import parse_recipe
from heatproof.study.plan import map_passes
from heatproof.study.references import draw_references
from heatproof.study.runner import plan_study, run_study
from heatproof.study.store import Run
from heatproof.study.writing import Failures
from support.nets import TinyCNN
from support.studies import SEED, SIZE, write_data
from support.studies import recipe as tiny

AVERAGE = {"method": "control_average", "base": "lrp_epsilon", "samples": 3}


def changes(folder: Path) -> dict[str, Any]:
    """One untrained model, the control and its base method, a metric of each kind."""
    model = tiny(folder)["models"][0] | {"training": None}
    metrics = ["sparseness", "pointing_game", {"metric": "max_sensitivity", "samples": 2}]
    return {"models": [model], "methods": [AVERAGE, "lrp_epsilon"], "metrics": metrics}


def study(folder: Path, **other: Any) -> Run:
    return run_study(
        parse_recipe(tiny(folder, **changes(folder), **other), folder=folder), folder / "run", progress=False
    )


def first_of(samples: list[str], seed: int, count: int) -> list[str]:
    """By the order that the seed gives them."""
    order = {
        name: hashlib.blake2b(f"{seed}\x1f{name}\x1freference".encode(), digest_size=8).digest() for name in samples
    }
    return sorted(samples, key=order.__getitem__)[:count]


def test_a_map_is_the_mean_of_those_of_the_training_images_of_its_class(tmp_path: Path) -> None:
    table = write_data(tmp_path)
    run = study(tmp_path)
    assert len(run.failures) == 0
    clf = load_checkpoint(run.path / "models" / "vit")
    train = table[table["split"] == "train"]
    expected = []
    for target, name in enumerate(("left", "right")):
        chosen = first_of(list(train.loc[train["label"] == name, "sample_id"]), SEED, 3)
        images = clf.read([tmp_path / "images" / f"{sample}.png" for sample in chosen])
        expected.append(explain(clf, images, [target] * 3, method="lrp_epsilon").mean(0).numpy())
    seen = set()
    for path in sorted((run.path / "maps" / "vit" / "control_average").glob("*.npz")):
        with np.load(path) as stored:
            for found, target in zip(stored["maps"], stored["target"], strict=True):
                size = np.abs(expected[target]).max()
                np.testing.assert_allclose(found, expected[target], rtol=1e-4, atol=1e-5 * size)
                seen.add(int(target))
    assert seen
    scores = run.scores.query("method == 'control_average'")
    assert scores["value"].notna().groupby(scores["metric"]).sum().to_dict() == {
        "max_sensitivity": 10,
        "pointing_game": 9,
        "sparseness": 10,
    }
    assert (scores.query("metric == 'max_sensitivity'")["value"] == 0).all(), "a changed image has the same average"


def test_without_training_images_the_study_does_not_begin(tmp_path: Path) -> None:
    table = write_data(tmp_path)
    for missing, message in (("all", "'train' is empty"), ("left", "Classes without training images: left")):
        rest = table[(table["split"] != "train") | ((table["label"] != missing) & (missing != "all"))]
        rest.to_csv(tmp_path / "samples.csv", index=False)
        with pytest.raises(InputError, match=message):
            plan_study(parse_recipe(tiny(tmp_path, **changes(tmp_path)), folder=tmp_path), progress=False)
    others = {**changes(tmp_path), "methods": ["lrp_epsilon"]}
    plan_study(parse_recipe(tiny(tmp_path, **others), folder=tmp_path), progress=False)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({**AVERAGE, "base": "lrp_epsilom"}, r"methods\[0\]: control_average: .*Did you mean 'lrp_epsilon'"),
        ({**AVERAGE, "samples": 0}, "samples must be a whole number"),
        (
            {**AVERAGE, "references": "train"},
            r"methods\[0\]: control_average: references are drawn from .*training split",
        ),
        ({**AVERAGE, "labels": [0]}, r"methods\[0\]: control_average: labels are drawn from .*training split"),
    ],
)
def test_options_that_cannot_be_are_found_before_the_work(method: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_data(tmp_path)
    wanted = {**changes(tmp_path), "methods": [method]}
    with pytest.raises(InputError, match=message):
        plan_study(parse_recipe(tiny(tmp_path, **wanted), folder=tmp_path), progress=False)


def test_the_plan_counts_the_maps_that_it_is_made_of() -> None:
    found = methods()
    base = map_passes(found["lrp_epsilon"], {})
    assert map_passes(found["control_average"], {"base": "lrp_epsilon", "samples": 7}) == 7 * base
    assert map_passes(found["lrp_gradcam"], {"base": "lrp_epsilon"}) == base + map_passes(found["gradcam"], {})


def test_an_image_of_several_classes_comes_once_for_each_and_one_that_cannot_be_read_not_at_all(tmp_path: Path) -> None:
    labels = {"a": (1, 0), "b": (1, 1), "c": (0, 1), "d": (0, 0), "e": (1, 1)}
    rows = []
    for n, (sample, (left, top)) in enumerate(labels.items()):
        Image.new("L", (SIZE, SIZE), 40 * n).save(tmp_path / f"{sample}.png")
        rows.append({"sample_id": sample, "image": f"{sample}.png", "split": "train", "left": left, "top": top})
    Image.new("L", (SIZE, SIZE)).save(tmp_path / "t.png")
    rows.append({**rows[0], "sample_id": "t", "image": "t.png", "split": "test"})
    pd.DataFrame(rows).to_csv(tmp_path / "samples.csv", index=False)
    dataset = load_table(tmp_path / "samples.csv", label_columns=["left", "top"])
    options: dict[str, Any] = {"task": "multilabel", "image_size": SIZE, "channels": 1, "mean": [0.5], "std": [0.5]}
    clf = Classifier(TinyCNN(2, 1).eval(), ["left", "top"], **options)
    pixels = {sample: clf.preprocessing(read_image(tmp_path / f"{sample}.png"))[0] for sample in labels}

    def drawn(count: int, seed: int = 0) -> tuple[list[tuple[str, int]], Failures]:
        failures: Failures = []
        found = draw_references(clf, dataset, count, seed, failures)
        names = [next(s for s in labels if torch.equal(pixels[s], image)) for image in found["references"]]
        return list(zip(names, found["labels"].tolist(), strict=True)), failures

    pairs, failures = drawn(9)
    assert sorted(pairs) == [("a", 0), ("b", 0), ("b", 1), ("c", 1), ("e", 0), ("e", 1)]
    assert failures == []
    for seed in range(4):
        pairs, _ = drawn(2, seed)
        expected = [(s, k) for k, of in enumerate((["a", "b", "e"], ["b", "c", "e"])) for s in first_of(of, seed, 2)]
        assert pairs == expected
    (tmp_path / "e.png").write_bytes(b"no image")
    pairs, failures = drawn(9)
    assert sorted(pairs) == [("a", 0), ("b", 0), ("b", 1), ("c", 1)]
    assert [row["sample_id"] for row in failures] == ["e"]
