"""The recipes of this repository."""

from pathlib import Path

import pandas as pd
import pytest

from heatproof.study import data
from heatproof.study.defaults import check_registries, reductions
from heatproof.study.loading import load_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
NINE = ["attention", "attention_rollout", "transformer_lrp", "gradcam", "lrp_z", "lrp_epsilon", "lime", "control_random",
        "control_center"]  # fmt: skip
METRICS = {"faithfulness_estimate", "max_sensitivity", "avg_sensitivity", "pointing_game", "iou", "relevance_mass_accuracy",
           "sparseness"}  # fmt: skip


@pytest.mark.parametrize("name", ["demo", "chest_sample"])
def test_they_ask_for_every_method_and_metric(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    check_registries(recipe)
    assert [method.name for method in recipe.methods] == NINE
    assert {metric.name for metric in recipe.metrics} == METRICS
    shapes = [metric.options.get("shape", "mask") for metric in recipe.metrics if metric.name == "iou"]
    assert shapes == ["mask", "rectangle"]
    assert [model.source for model in recipe.models] == ["hf:vit", "monai:densenet121"]
    assert recipe.name == name


def test_the_chest_sample_explains_30_by_its_rule(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEATPROOF_SHARED", str(shared.parent))
    recipe = load_recipe(RECIPES / "chest_sample.yaml")
    dataset = data.split(data.load_dataset(recipe, Path("unused")), recipe)
    assert len(dataset) == 179
    assert dataset.samples.groupby("patient_id")["split"].nunique().max() == 1
    chosen = data.choose_explained(dataset, recipe)
    table = dataset.subset("test").samples.set_index("sample_id")
    annotated = pd.Series({sample: dataset.has_region(sample, "lesion") for sample in table.index})
    assert table.loc[chosen, "label"].value_counts().to_dict() == {"normal": 10, "covid19": 10, "pneumonia": 10}
    for label, rows in table.groupby("label"):
        there = annotated[rows.index]
        taken = there[[sample for sample in chosen if sample in rows.index]]
        assert taken.sum() == min(10, there.sum()), label
    listed = {(part, option): value for part, option, value, _ in reductions(recipe)}
    assert listed["lime", "samples"] == "200"
    assert listed["faithfulness_estimate", "step"] == "512"
    assert listed["max_sensitivity", "samples"] == listed["avg_sensitivity", "samples"] == "3"
    assert listed["data", "test_limit"] == "30"
