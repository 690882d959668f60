"""Options: what is out of range or without effect is refused, and a recipe has all of them."""

import inspect

import pytest
import torch

from heatproof.errors import InputError
from heatproof.study.recipe import TrainingSpec
from heatproof.training.augment import Augmentation
from heatproof.training.fit import fit
from heatproof.training.options import Options

NOT_OF_TRAINING = {"clf", "dataset", "seed", "device", "progress", "folder", "resume"}


def _options(**changes):
    spec = TrainingSpec().model_dump()
    return Options.of(**{**spec, "seed": 0, "device": "cpu", **changes})


def test_a_recipe_has_every_option_with_the_default_of_fit():
    parameters = inspect.signature(fit).parameters
    defaults = {name: p.default for name, p in parameters.items() if name not in NOT_OF_TRAINING}
    assert TrainingSpec().model_dump() == defaults


def test_what_stands_for_something_is_spelled_out():
    options = _options(optimizer="sgd", freeze=["blocks.*"], augment={"noise": 0.01}, class_weights={"a": 2})
    assert options.momentum == 0.9
    assert options.freeze == ("blocks.*",)
    assert options.augment == Augmentation(noise=0.01)
    assert _options().momentum is None
    assert _options(optimizer="sgd", momentum=0.0).momentum == 0.0


def test_the_identity_leaves_out_what_the_weights_do_not_depend_on():
    one, other = _options(), _options(workers=3, memory_gib=0.5)
    assert one.identity == other.identity
    assert one.record != other.record
    for change in (
        {"epochs": 11}, {"lr": 1e-3}, {"warmup": 1.0}, {"schedule": "cosine"}, {"freeze": "backbone"}, {"seed": 1},
        {"augment": {"flip": 0.5}}, {"augment": False}, {"class_weights": "balanced"}, {"patience": None},
    ):  # fmt: skip
        assert _options(**change).identity != one.identity, change


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": 0}, "lr"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"patience": 0}, "patience"),
        ({"precision": "fp8"}, "'fp32' or 'bf16' or 'fp16', got 'fp8'"),
        ({"precision": "fp16"}, "gradient scaler on CUDA devices only, this device is cpu. Use 'fp32'"),
        ({"device": "tpu"}, "device"),
        ({"memory_gib": -1}, "memory_gib"),
        ({"workers": -1}, "workers"),
        ({"seed": -1}, "seed"),
        ({"optimizer": "lion"}, "'adamw' or 'adam' or 'sgd', got 'lion'"),
        ({"momentum": 0.9}, r"momentum belongs to optimizer='sgd', got optimizer='adamw'"),
        ({"optimizer": "adam", "momentum": 0.0}, "momentum belongs to"),
        ({"optimizer": "sgd", "momentum": 1.0}, "momentum must be a number, from 0 to 0.999"),
        ({"schedule": "step"}, "'constant' or 'cosine'"),
        ({"warmup": -1}, "warmup"),
        ({"epochs": 3, "warmup": 3}, "shorter than the training of 3 epochs"),
        ({"layer_decay": 0}, "layer_decay"),
        ({"layer_decay": 1.1}, "layer_decay"),
        ({"freeze": "blocks"}, "'backbone' or a list of names"),
        ({"freeze": [3]}, "'backbone' or a list of names"),
        ({"augment": {"rotat": 3}}, "Did you mean 'rotate'"),
        ({"class_weights": "inverse"}, "'balanced', a mapping"),
        ({"class_weights": {"a": 0}}, r"class_weights\['a'\]"),
        ({"label_smoothing": 1}, "label_smoothing"),
        ({"grad_clip": 0}, "grad_clip"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        _options(**options)


def test_a_mapping_of_the_callers_is_copied():
    weights = {"a": 2.0}
    options = _options(class_weights=weights)
    weights["a"] = 3.0
    assert options.class_weights == {"a": 2.0}
    assert options.device == torch.device("cpu")
