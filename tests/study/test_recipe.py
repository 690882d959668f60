"""Recipes: what is refused, and how the message leads to the mistake."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from heatproof.errors import InputError
from heatproof.study.defaults import check_registries, reductions
from heatproof.study.loading import load_recipe, parse_recipe, parse_yaml
from heatproof.study.recipe import Recipe, expand_variables
from support.studies import recipe as tiny


@pytest.fixture
def plain(tmp_path: Path) -> dict[str, Any]:
    return tiny(tmp_path)


def changed(plain: dict[str, Any], path: list[Any], value: Any) -> dict[str, Any]:
    copy = yaml.safe_load(yaml.safe_dump(plain))
    part = copy
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["nmae"], 1, "nmae: unknown key. Did you mean 'name'?"),
        (["data", "regoin"], "x", "data.regoin: unknown key. Did you mean 'region'"),
        (["data", "splits"], {"trian": 0.7}, "data.splits.trian: unknown key. Did you mean 'train'?"),
        (["models", 1, "training"], {"epoch": 3}, "models[1].training.epoch: unknown key. Did you mean 'epochs'?"),
        (["models", 0, "training", "lr"], -1, "models[0].training.lr: Input should be greater than 0, got -1."),
        (["models", 0, "name"], "a/b", "models[0].name: 'a/b' names a folder"),
        (["models", 1, "name"], "vit", "models of the same name (vit); rename one."),
        (["methods"], ["lime", {"method": "lime"}], "methods of the same name (lime); tell them apart with as:"),
        (["methods", 0], {"metod": "lime"}, "methods[0]: the key 'method' is missing; got the keys metod."),
        (["metrics", 2], 3, "metrics[2]: must be a name or a mapping with the key 'metric', got 3."),
        (["methods"], [], "methods: List should have at least 1 item"),
        (["data", "folder"], "x", "data: needs exactly one of samples, folder and phantom, got ['samples', 'folder']."),
        (["schema"], 2, "recipe: its schema is 2, and Heatproof 0.1.0 reads 1. Use the version"),
        (["models", 1, "training"], {"freeze": 3}, "models[1].training.freeze: Input should be"),
        (["models", 1, "training"], {"augment": "no!"}, "models[1].training.augment: Input should be a valid"),
        (["models", 0, "image_size"], "big", "models[0].image_size: Input should be a valid integer"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_by_the_path_of_its_key(
    plain: dict[str, Any], path: list[Any], value: Any, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe(changed(plain, path, value))
    assert message in str(caught.value)


def test_all_mistakes_are_named_at_once(plain: dict[str, Any]) -> None:
    plain["models"][0]["training"] = {"epoch": 1, "lr": 0}
    with pytest.raises(InputError, match=r"training\.lr(.|\n)*training\.epoch"):
        parse_recipe(plain)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: no such recipe"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"broken\.yaml: not a YAML file"):
        load_recipe(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(InputError, match="a recipe is a mapping"):
        load_recipe(tmp_path / "list.yaml")


def test_what_is_written_out_reads_back_the_same(plain: dict[str, Any]) -> None:
    plain["methods"].append({"method": "lime", "as": "odd", "options": {"method": "x", "samples": 3}})
    recipe = parse_recipe(plain)
    text = yaml.safe_dump(recipe.to_dict())
    assert parse_recipe(yaml.safe_load(text)) == recipe
    assert recipe.method("odd").options == {"method": "x", "samples": 3}
    assert recipe.to_dict()["schema"] == 1


def test_overrides_reach_keys_lists_and_new_mappings(plain: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(plain))
    wanted = [
        "seed=7", "models[0].training.epochs=9", "models.1.training.lr=1e-3", "data.splits.train=0.5",
        "methods[1]={method: lime, samples: 5, as: quick}", "models[0].training.patience=null",
    ]  # fmt: skip
    recipe = load_recipe(file, wanted)
    assert recipe.seed == 7
    assert recipe.models[0].training is not None
    assert (recipe.models[0].training.epochs, recipe.models[0].training.patience) == (9, None)
    assert recipe.models[1].training is not None
    assert recipe.models[1].training.lr == 1e-3
    assert recipe.data.splits is not None
    assert recipe.data.splits.fractions == {"train": 0.5, "val": 0, "test": 0}
    assert recipe.method("quick").options == {"samples": 5}
    assert load_recipe(file).to_dict() == parse_recipe(plain).to_dict()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "write it as key.path=value"),
        ("=3", "write it as key.path=value"),
        ("models[7].name=x", r"7 is not an index of this list; allowed: 0 to 1"),
        ("models.vit.name=x", "'vit' is not an index of this list"),
        ("seed.x=3", "'x' lies inside 0, which holds no keys"),
        ("name=[", "the value is not YAML"),
        ("models[0].trainig.epochs=3", r"models\[0\].trainig: unknown key. Did you mean 'training'"),
    ],
)
def test_an_override_that_leads_nowhere_is_an_error(
    plain: dict[str, Any], tmp_path: Path, override: str, message: str
) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**plain, "seed": 0}))
    with pytest.raises(InputError, match=message):
        load_recipe(tmp_path / "r.yaml", [override])


def test_paths_count_from_the_recipe_and_may_hold_variables(
    plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "r.yaml").write_text(yaml.safe_dump(plain))
    recipe = load_recipe(tmp_path / "deep" / "r.yaml")
    monkeypatch.delenv("HEATPROOF_TEST", raising=False)
    text = "${HEATPROOF_TEST:-../x}/y.csv"
    assert recipe.path(text).resolve() == (tmp_path / "x" / "y.csv").resolve()
    monkeypatch.setenv("HEATPROOF_TEST", "/data")
    assert recipe.path(text) == Path("/data/y.csv")
    monkeypatch.delenv("HEATPROOF_TEST")
    with pytest.raises(InputError, match="HEATPROOF_TEST is not set"):
        expand_variables("${HEATPROOF_TEST}/y")


def test_numbers_are_read_as_people_write_them() -> None:
    found = parse_yaml("a: 1e-4\nb: 3.0e-4\nc: -2E5\nd: e4\ne: 1\nf: 1e")
    assert found == {"a": 1e-4, "b": 3e-4, "c": -2e5, "d": "e4", "e": 1, "f": "1e"}
    with pytest.raises(yaml.YAMLError):
        parse_yaml("!!python/object/apply:os.getcwd []")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["methods", 0], "atention", r"methods\[0\]: Unknown explainer 'atention'. Did you mean 'attention'"),
        (["methods", 2], {"method": "lime", "sample": 5}, r"lime has no option 'sample'. Did you mean 'samples'"),
        (["metrics", 0], "sparsenes", r"metrics\[0\]: Unknown metric 'sparsenes'. Did you mean 'sparseness'"),
        (["metrics", 3], {"metric": "iou", "topp": 5}, r"metrics\[3\]: iou has no option 'topp'. Did you mean 'top'"),
        (["data", "region"], None, r"metrics\[2\]: pointing_game compares with a region: name it in data.region"),
    ],
)  # fmt: skip
def test_unknown_methods_metrics_and_options_are_refused(
    plain: dict[str, Any], path: list[Any], value: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_registries(parse_recipe(changed(plain, path, value)))


def test_every_number_that_is_not_the_default_is_listed(plain: dict[str, Any]) -> None:
    plain["data"]["test_limit"] = 6
    found = reductions(parse_recipe(plain))
    assert ("data", "test_limit", "6", "all test images") in found
    assert ("model vit", "hidden_size", "24", "768") in found
    assert ("model densenet", "block_config", "[2, 2]", "(6, 12, 24, 16)") in found
    assert ("model vit", "epochs", "2", "10") in found
    assert ("model vit", "image_size", "32", "224") in found
    assert ("lime", "samples", "12", "1000") in found
    assert ("faithfulness_estimate", "step", "128", "automatic") in found
    assert ("iou_50", "top", "50", "20") in found
    assert not [row for row in found if row[2] == row[3] or row[0] == "pointing_game"]


def test_a_recipe_of_defaults_has_no_reductions() -> None:
    recipe = Recipe.model_validate({
        "name": "x", "data": {"phantom": {}}, "models": [{"name": "m", "source": "hf:vit", "training": {}}],
        "methods": ["lime", {"method": "gradcam", "layer": None}], "metrics": ["sparseness"],
    })  # fmt: skip
    assert reductions(recipe) == []
