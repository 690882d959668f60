"""The models of a study: checked before it begins, trained on where they were interrupted, measured as one expects."""

import numpy as np
import pandas as pd
import pytest
import torch

from heatproof.datasets.table import load_table
from heatproof.errors import InputError
from heatproof.models.checkpoint import load_checkpoint, read_description
from heatproof.study.loading import parse_recipe
from heatproof.study.models import TRAINING, build_model, finish_model, performance_of, predictions_of
from heatproof.training.performance import performance
from heatproof.training.state import FILE, StateFile
from support.bright_side import write_bright_side
from support.studies import DENSENET
from support.studies import recipe as tiny

MODEL = {"name": "net", "source": "monai:densenet121", "image_size": 32, "channels": 1, "batch_size": 8}


@pytest.fixture
def dataset(tmp_path):
    return write_bright_side(tmp_path / "data", counts=(8, 4, 6), size=32)


def _recipe(tmp_path, **model):
    models = [{**MODEL, "config": DENSENET, **model}]
    return parse_recipe(tiny(tmp_path / "data", data={"samples": "samples.csv"}, models=models))


def _finish(tmp_path, recipe, dataset, notes=None):
    spec = recipe.models[0]
    clf = build_model(recipe, spec, dataset.classes, dataset.task)
    note = (notes if notes is not None else []).extend
    finish_model(tmp_path / "run" / "models" / spec.name, clf, spec, dataset, recipe, note=note, progress=False)
    return load_checkpoint(tmp_path / "run" / "models" / spec.name)


class StopHereError(Exception):
    pass


def test_a_training_goes_on_in_the_next_run(tmp_path, dataset, monkeypatch):
    recipe = _recipe(tmp_path, training={"epochs": 3, "batch_size": 4, "patience": None, "schedule": "cosine"})
    undisturbed = _finish(tmp_path / "whole", recipe, dataset)
    write = StateFile.write

    def stops(self, progress):
        write(self, progress)
        raise StopHereError

    with monkeypatch.context() as patch:
        patch.setattr(StateFile, "write", stops)
        with pytest.raises(StopHereError):
            _finish(tmp_path, recipe, dataset)
    run = tmp_path / "run"
    assert [path.relative_to(run).as_posix() for path in run.rglob("*.*")] == [f"{TRAINING}/net/{FILE}"]
    resumed = _finish(tmp_path, recipe, dataset)
    state = resumed.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in undisturbed.module.state_dict().items())
    assert sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()) == [
        "models/net/history.csv", "models/net/model.json", "models/net/model.safetensors",
    ]  # fmt: skip
    assert not (run / TRAINING).exists()
    kept = [pd.read_csv(f / "models" / "net" / "history.csv") for f in (run, tmp_path / "whole" / "run")]
    pd.testing.assert_frame_equal(*(frame.drop(columns="seconds") for frame in kept), check_exact=True)


def test_images_that_training_left_out_are_noted_before_the_model_is_there(tmp_path, dataset):
    (tmp_path / "data" / "images" / "train002.png").write_bytes(b"rubbish")
    recipe, notes = _recipe(tmp_path, training={"epochs": 1, "batch_size": 4}), []
    _finish(tmp_path, recipe, dataset, notes)
    assert [(row["sample_id"], row["stage"], row["error"]) for row in notes] == [("train002", "training", "ImageError")]


def test_a_model_without_training_is_saved_as_it_comes(tmp_path, dataset):
    recipe = _recipe(tmp_path)
    clf = build_model(recipe, recipe.models[0], dataset.classes)
    back = _finish(tmp_path, recipe, dataset)
    assert all(torch.equal(v, back.module.state_dict()[k]) for k, v in clf.module.state_dict().items())
    assert "training" not in read_description(tmp_path / "run" / "models" / "net")["extra"]


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"momentum": 0.9}, "models: net: momentum belongs to optimizer='sgd'"),
        ({"freeze": ["features.denseblok1"]}, "covers no parameter. Did you mean 'features.denseblock1"),
        ({"class_weights": {"lefft": 2}}, "'lefft' is no class. Did you mean 'left'"),
        ({"augment": {"rotat": 2}}, "Did you mean 'rotate'"),
        ({"freeze": "backbone", "layer_decay": 0.7}, "layer_decay=0.7 has no effect"),
        ({"precision": "fp16"}, "CUDA devices only"),
    ],
)
def test_training_options_are_checked_before_the_study_begins(tmp_path, dataset, training, message):
    recipe = _recipe(tmp_path, training=training)
    with pytest.raises(InputError, match=message):
        build_model(recipe, recipe.models[0], dataset.classes)


def test_the_task_is_the_specs_or_that_of_the_data(tmp_path, dataset):
    plain, several, single = (
        _recipe(tmp_path, **task) for task in ({}, {"task": "multilabel"}, {"task": "multiclass"})
    )
    classes = dataset.classes
    assert build_model(plain, plain.models[0], classes).task == "multiclass"
    assert build_model(plain, plain.models[0], classes, "multilabel").task == "multilabel"
    assert build_model(several, several.models[0], classes, "multiclass").task == "multilabel"
    assert build_model(single, single.models[0], classes, "multilabel").task == "multiclass"


def test_both_kinds_of_model_on_the_same_images(tmp_path, dataset):
    """Two models of a study that differ in nothing but `task`: their tables and figures are those of their kind."""
    found = {}
    for task in ("multiclass", "multilabel"):
        recipe = _recipe(tmp_path, name=task, task=task, training={"epochs": 1, "batch_size": 4})
        clf = _finish(tmp_path, recipe, dataset)
        assert clf.task == task
        table, failures = predictions_of(clf, dataset, recipe.models[0])
        assert not failures
        assert set(table["model"]) == {task}
        found[task] = table, performance_of(table, list(dataset.classes))
    assert "label" in found["multiclass"][0]
    assert "labels" in found["multilabel"][0]
    test = found["multilabel"][0].query("split == 'test'")
    assert test["label_left"].tolist() == [1, 0] * 3
    assert [quality["task"] for _, quality in found.values()] == ["multiclass", "multilabel"]
    assert all(quality["intervals"]["auroc_macro"]["patients"] == 3 for _, quality in found.values())
    want = performance(
        test[["label_left", "label_right"]], test[["p_left", "p_right"]], dataset.classes, task="multilabel",
        patients=test["patient_id"],
    )  # fmt: skip
    assert found["multilabel"][1] == want.to_dict()


def test_performance_follows_the_order_of_the_classes(tmp_path, dataset):
    recipe = _recipe(tmp_path)
    clf = build_model(recipe, recipe.models[0], dataset.classes)
    table, _ = predictions_of(clf, dataset, recipe.models[0])
    table.loc[table["sample_id"] == "test000", ["p_left", "p_right"]] = [0.9, 0.1]
    forth, back = (performance_of(table, list(order)) for order in (("left", "right"), ("right", "left")))
    assert np.array_equal(forth["confusion"], np.flip(back["confusion"]))
    assert forth["auroc"] == back["auroc"]
    assert forth["n"] == 6


def test_a_multiclass_model_of_a_data_set_with_several_labels_is_refused_with_its_name(tmp_path, dataset):
    table = pd.read_csv(tmp_path / "data" / "samples.csv")
    for name in ("left", "right"):
        table[name] = (table["label"] == name).astype(int)
    table.drop(columns="label").to_csv(tmp_path / "data" / "several.csv", index=False)
    several = load_table(tmp_path / "data" / "several.csv", label_columns=["left", "right"])
    recipe = _recipe(tmp_path, task="multiclass", training={"epochs": 1})
    with pytest.raises(InputError, match="models: net: A multi-class model needs one label an image"):
        _finish(tmp_path, recipe, several)
