"""The phantom of a recipe: every option reaches the pictures, and mistakes are named by their key."""

import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from heatproof.datasets.phantom import Phantom, Scanners, Shortcut, make_phantom
from heatproof.errors import InputError
from heatproof.images.read import read_image
from heatproof.study import data
from heatproof.study.loading import parse_recipe
from heatproof.study.recipe import PhantomSpec, Recipe, ScannersSpec, ShortcutSpec

HOW_TO = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "plant-a-shortcut.md"


def recipe(phantom: dict[str, Any], **others: Any) -> Recipe:
    plain = {"name": "x", "data": {"phantom": phantom, **others}, "models": [{"name": "m", "source": "hf:vit"}]}
    return parse_recipe({**plain, "methods": ["control_center"], "metrics": ["sparseness"]})


def test_the_keys_and_their_defaults_are_those_of_the_options() -> None:
    for spec, options in ((PhantomSpec, Phantom), (ShortcutSpec, Shortcut), (ScannersSpec, Scanners)):
        assert list(spec.model_fields) == [field.name for field in fields(options)]
    assert PhantomSpec().phantom() == Phantom(classes=[])
    assert ShortcutSpec(label="x").model_dump() == asdict(Shortcut("x"))
    assert ScannersSpec().model_dump() == asdict(Scanners())


def test_a_study_gets_the_phantom_that_the_recipe_describes(tmp_path: Path) -> None:
    spec = {
        "patients": 10, "size": 48, "task": "multilabel", "classes": ["nodule", "effusion"], "prevalence": {"nodule": 0.5},
        "shortcut": {"label": "nodule", "text": "AP"}, "scanners": {"label": "effusion", "strength": 1.0}, "bits": 16,
    }  # fmt: skip
    found = data.load_dataset(recipe(spec, region="marker"), tmp_path)
    expected = make_phantom(
        tmp_path / "same",
        **{**spec, "shortcut": Shortcut("nodule", text="AP"), "scanners": Scanners(label="effusion", strength=1.0)},
    )
    assert (found.task, found.classes) == ("multilabel", ("nodule", "effusion"))
    np.testing.assert_array_equal(found.targets(), expected.targets())
    for ours, theirs in zip(found.samples["image"], expected.samples["image"], strict=True):
        np.testing.assert_array_equal(read_image(ours).pixels, read_image(theirs).pixels)
    assert (found.samples["marker"] == found.samples["label_nodule"]).all()
    assert (found.samples["scanner"].eq("B") == found.samples["label_effusion"].eq(1)).all()
    again = data.load_dataset(recipe(spec), tmp_path)
    assert again.root == found.root  # made once
    assert data.load_dataset(recipe({**spec, "seed": 1}), tmp_path).root != found.root


def test_the_recipe_of_the_documentation_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", HOW_TO.read_text(encoding="utf-8"), re.S)
    written = yaml.safe_load(block)["data"]
    phantom = recipe(written["phantom"] | {"patients": 4}, region=written["region"])
    assert phantom.data.phantom is not None
    assert data.load_dataset(phantom, tmp_path).task == "multilabel"


@pytest.mark.parametrize(
    ("phantom", "message"),
    [
        ({"shortcut": {"label": "edema"}}, "data.phantom: shortcut: 'edema' is not one of the classes."),
        ({"shortcut": {"label": "nodule", "strenght": 1}}, "shortcut.strenght: unknown key. Did you mean 'strength'"),
        ({"shortcut": {"strength": 1}}, "data.phantom.shortcut.label: missing."),
        ({"shortcut": {"label": "nodule", "rate": 3}}, "shortcut.rate: Input should be less than or equal to 1"),
        ({"scanners": {"count": 1}}, "data.phantom.scanners.count: Input should be greater than or equal to 2"),
        ({"scanners": {"count": 9}}, "scanners: count must be a whole number, from 1 to 4, got 9."),
        ({"uncertain": 0.1}, "data.phantom: prevalence and uncertain belong to task 'multilabel'"),
        ({"format": "dicom", "bits": 8}, "data.phantom: bits of a dicom file must be 12 or 16, got 8."),
        ({"patients": 0}, "data.phantom.patients: Input should be greater than or equal to 1"),
    ],
)  # fmt: skip
def test_mistakes_are_named(phantom: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        recipe(phantom)
    assert message in str(caught.value)
