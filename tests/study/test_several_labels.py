"""A study of images with several labels, each explained and compared with its own region."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from heatproof.errors import InputError
from heatproof.explanation import explain
from heatproof.images.read import read_image
from heatproof.metrics.chance import chance
from heatproof.models.checkpoint import load_checkpoint
from heatproof.scoring import score
from heatproof.study.loading import parse_recipe
from heatproof.study.runner import plan_study, run_study
from heatproof.study.store import Run
from support.studies import SIZE, VIT
from support.studies import recipe as tiny

HALVES = {"left": np.s_[:, : SIZE // 2], "top": np.s_[: SIZE // 2, :]}
CLASSES = list(HALVES)


def write_halves(folder: Path, counts: tuple[int, int, int] = (24, 8, 9)) -> None:
    """Images whose left half is bright, or the upper one, both or none; a mask of each half that is, but for test001."""
    random = np.random.default_rng(0)
    rows, regions = [], []
    (folder / "images").mkdir(parents=True)
    for name, mask in ((name, np.zeros((SIZE, SIZE), np.uint8)) for name in CLASSES):
        mask[HALVES[name]] = 255
        Image.fromarray(mask).save(folder / f"{name}.png")
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        for i in range(count):
            present = {"left": i % 2, "top": i // 2 % 2}
            pixels = random.integers(0, 60, (SIZE, SIZE))
            for name in CLASSES:
                pixels[HALVES[name]] += 90 * present[name]
            sample = f"{split}{i:03d}"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{sample}.png")
            rows.append({"sample_id": sample, "image": f"images/{sample}.png", "split": split, **present})
            regions += [
                {"sample_id": sample, "region": "half", "label": name, "kind": "mask", "data": f"{name}.png"}
                for name in CLASSES
                if present[name] and sample != "test001"
            ]
    pd.DataFrame(rows).to_csv(folder / "samples.csv", index=False)
    pd.DataFrame(regions).to_csv(folder / "regions.csv", index=False)


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    data = {
        "samples": str(folder / "samples.csv"),
        "regions": str(folder / "regions.csv"),
        "label_columns": CLASSES,
        "region": "half",
    }
    model = {"name": "vit", "source": "hf:vit", "image_size": SIZE, "channels": 1, "batch_size": 16, "config": VIT}
    return tiny(folder) | {
        "data": data,
        "models": [model | {"training": {"epochs": 2, "lr": 3e-3}}],
        "methods": [
            "lrp_epsilon",
            "attention",
            {"method": "lime", "samples": 8, "segmentation": "grid", "segments": 16},
        ],
        "metrics": [
            {"metric": "faithfulness_estimate", "step": 128},
            {"metric": "max_sensitivity", "samples": 2},
            "relevance_mass_accuracy",
        ],
        "target": CLASSES,
        **changes,
    }


def study(folder: Path, out: str = "run", **changes: Any) -> Run:
    return run_study(parse_recipe(recipe(folder, **changes), folder=folder), folder / out, progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("halves")
    write_halves(folder)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return study(folder)


def test_every_image_has_a_map_and_scores_for_each_target(run: Run) -> None:
    counts = run.scores.groupby(["method", "metric", "target"])["sample_id"].nunique()
    assert (counts == 9).all()
    assert len(counts) == 3 * 3 * 2
    assert run.targets("vit", "lrp_epsilon", "test003") == CLASSES
    assert run.data["task"] == "multilabel"


def test_maps_and_scores_are_those_of_the_front_doors(folder: Path, run: Run) -> None:
    clf = load_checkpoint(run.path / "models" / "vit")
    assert clf.task == "multilabel"
    images = clf.read([folder / "images" / "test003.png"])
    for place, target in enumerate(CLASSES):
        stored = torch.from_numpy(run.map("vit", "lrp_epsilon", "test003", target))
        found = explain(clf, images, [place], method="lrp_epsilon", keys=["test003"])[0]
        torch.testing.assert_close(stored, found, rtol=1e-4, atol=1e-6)
        region = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
        region[(0, *HALVES[target])] = True
        common = {"targets": [place], "keys": ["test003"]}
        rows = run.scores.query("sample_id == 'test003' and method == 'lrp_epsilon' and target == @target")
        values = rows.set_index("metric")["value"]
        mass = score(clf, images, stored[None], metric="relevance_mass_accuracy", roi=region, **common)
        estimate = score(clf, images, stored[None], metric="faithfulness_estimate", step=128, seed=3, **common)
        sensitivity = score(clf, images, stored[None], metric="max_sensitivity", samples=2, seed=3,
                            explain="lrp_epsilon", **common)  # fmt: skip
        for metric, expected in (("relevance_mass_accuracy", mass), ("faithfulness_estimate", estimate),
                                 ("max_sensitivity", sensitivity)):  # fmt: skip
            assert values[metric] == pytest.approx(expected.item(), rel=1e-4)


def test_chance_is_that_of_random_maps_on_the_methods_own_grid(run: Run) -> None:
    scores = run.scores.set_index(["sample_id", "method", "target", "metric"])
    for method, grid, upsampling in (("attention", (4, 4), "nearest"), ("lrp_epsilon", (SIZE, SIZE), "bilinear")):
        for target in CLASSES:
            roi = torch.from_numpy(run.roi("vit", "test003", target))[None]
            expected = chance(
                roi, metric="relevance_mass_accuracy", grid=grid, keys=["test003"], seed=3, upsampling=upsampling
            )
            found = scores.loc[("test003", method, target, "relevance_mass_accuracy"), "chance"]
            assert found == pytest.approx(expected.item(), abs=1e-6)
            assert found == pytest.approx(0.5, abs=0.05)
    assert scores.xs("max_sensitivity", level="metric")["chance"].isna().all()


def test_each_label_has_its_own_region_and_none_is_not_an_empty_one(run: Run) -> None:
    for name in CLASSES:
        expected = np.zeros((SIZE, SIZE), bool)
        expected[HALVES[name]] = True
        assert np.array_equal(run.roi("vit", "test003", name), expected)
    assert run.roi("vit", "test003").mean() == 0.75  # both together
    assert run.roi("vit", "test001", "left") is None  # nobody annotated it
    assert run.roi("vit", "test002", "left") is None  # only the upper half is annotated
    mass = run.scores.query("metric == 'relevance_mass_accuracy' and method == 'lrp_epsilon'")
    defined = set(mass.dropna()[["sample_id", "target"]].itertuples(index=False, name=None))
    assert ("test003", "left") in defined
    assert not {("test001", "left"), ("test002", "left"), ("test000", "top")} & defined


def test_every_label_that_is_there_and_the_likeliest(folder: Path) -> None:
    cheap = {"methods": ["attention"], "metrics": ["sparseness"]}
    own = study(folder, "own", target="label", **cheap)
    table = own.samples.set_index("sample_id")
    pairs = set(own.scores[["sample_id", "target"]].itertuples(index=False, name=None))
    test = table[table["split"] == "test"]
    assert pairs == {
        (sample, name) for sample in test.index for name in CLASSES if test.loc[sample, f"label_{name}"] == 1
    }
    assert "test000" not in own.cases("vit")  # it has no label, so there is nothing to explain
    likeliest = study(folder, "likeliest", target="predicted", **cheap)
    logits = likeliest.predictions.set_index("sample_id")[[f"logit_{name}" for name in CLASSES]]
    for row in likeliest.scores.itertuples():
        assert row.target == CLASSES[int(logits.loc[row.sample_id].argmax())]


def test_one_label_and_several_side_by_side_on_the_same_images(tmp_path: Path) -> None:
    from support.studies import write_data

    write_data(tmp_path)
    models = [{**recipe(tmp_path)["models"][0], "name": task, "task": task} for task in ("multiclass", "multilabel")]
    plain = tiny(tmp_path, models=models, methods=["attention"], metrics=["sparseness"])
    run = run_study(parse_recipe(plain, folder=tmp_path), tmp_path / "run", progress=False)
    assert [load_checkpoint(run.path / "models" / task).task for task in run.models] == run.models
    sums = {task: run.predictions.query("model == @task")[["p_left", "p_right"]].sum(axis=1) for task in run.models}
    assert np.allclose(sums["multiclass"], 1)
    assert not np.allclose(sums["multilabel"], 1, atol=1e-3)
    ids = run.scores.groupby("model")["sample_id"].apply(set)
    assert ids["multiclass"] == ids["multilabel"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("lef", "target: 'lef' is neither 'predicted', 'label' nor a class. Did you mean 'left'"),
        (["left", "down"], "target: 'down' is no class"),
        (["left", "left"], "target: a list of distinct classes is needed"),
        ([], "target: a list of distinct classes is needed"),
    ],
)
def test_a_target_that_is_no_class(folder: Path, target: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        plan_study(parse_recipe(recipe(folder, target=target), folder=folder), progress=False)
    assert message in str(caught.value)


def test_the_region_is_the_stored_one(folder: Path, run: Run) -> None:
    image = read_image(folder / "images" / "test003.png").pixels
    assert np.abs(run.image("vit", "test003") / 255 - image).max() < 1 / 255
