"""The maps that other libraries get are those of `heatproof.explain`, under whatever they have switched off."""

import copy

import numpy as np
import pytest
import torch

import heatproof as hp
from heatproof.errors import InputError
from heatproof.interop import captum_explanation_func, quantus_explain_func
from support.isolation import run_python
from support.nets import TinyCNN, TinyViT

SIZE = 32


@pytest.fixture
def images():
    return torch.randn(3, 3, SIZE, SIZE)


TARGETS = np.array([0, 2, 1])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize(
    ("build", "given"),
    [
        (TinyViT, {}),
        (TinyViT, {"method": "attention_rollout", "start_layer": 1}),
        (TinyCNN, {"method": "gradcam"}),
        (TinyCNN, {"method": "lrp_z", "strict": False}),
        (TinyCNN, {"method": "control_random", "seed": 5, "keys": ["a", "b", "c"]}),
    ],
    ids=["default", "rollout", "gradcam", "lrp", "random"],
)
def test_maps_are_those_of_explain(images, build, given, context):
    net = build().eval()
    expected = hp.explain(net, images, TARGETS, **{"method": "transformer_lrp", **given})
    with context():
        found = quantus_explain_func(model=net, inputs=images.numpy(), targets=TARGETS, **given)
    assert isinstance(found, np.ndarray)
    assert (found.dtype, found.shape) == (np.float32, (3, 1, SIZE, SIZE))
    assert np.array_equal(found[:, 0], expected.numpy())


def test_each_image_is_explained_for_its_own_target(images):
    """The gradient times the input, from autograd."""
    net = TinyCNN().eval()
    inputs = images.clone().requires_grad_()
    net(inputs)[range(3), TARGETS].sum().backward()
    found = quantus_explain_func(net, images.numpy(), TARGETS, method="lrp_z")
    assert np.allclose(found[:, 0], (inputs.grad * images).sum(1), atol=1e-6)


def test_other_kinds_of_arrays_do(images):
    net = TinyCNN().eval()
    expected = quantus_explain_func(net, images.numpy(), TARGETS, method="gradcam")
    doubles, numbers = images.numpy().astype(np.float64), TARGETS.tolist()
    assert np.array_equal(quantus_explain_func(net, doubles, numbers, method="gradcam", device="cpu"), expected)
    assert np.array_equal(quantus_explain_func(net, images, torch.tensor(TARGETS), method="gradcam"), expected)
    assert quantus_explain_func(net.double(), images.numpy(), TARGETS, method="gradcam").dtype == np.float32


def test_the_classifier_says_what_the_module_does_not(images):
    """Black is a number of the normalisation; the weights are those of the module that was handed over."""
    net, other = TinyCNN().eval(), TinyCNN().eval()
    known = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "classes": ["a", "b", "c"]}
    expected = hp.explain(hp.Classifier(net, **known), images, TARGETS, method="integrated_gradients")
    given = {"method": "integrated_gradients", "classifier": hp.Classifier(other, **known)}
    assert np.array_equal(quantus_explain_func(net, images.numpy(), TARGETS, **given)[:, 0], expected.numpy())
    with pytest.raises(InputError, match="normalisation"):
        quantus_explain_func(net, images.numpy(), TARGETS, method="integrated_gradients")
    lime = {"method": "lime", "samples": 20, "segments": 16, "segmentation": "grid"}
    sigmoid, softmax = (hp.Classifier(net, task=task) for task in ("multilabel", "multiclass"))
    expected = hp.explain(sigmoid, images, TARGETS, **lime).numpy()
    assert np.array_equal(
        quantus_explain_func(net, images.numpy(), TARGETS, classifier=sigmoid, **lime)[:, 0], expected
    )
    assert not np.array_equal(hp.explain(softmax, images, TARGETS, **lime).numpy(), expected)
    two = hp.Classifier(other, classes=["a", "b"])
    with pytest.raises(InputError, match="3 outputs and 2 classes"):
        quantus_explain_func(net, images.numpy(), [0] * len(images), method="gradcam", classifier=two)


def test_nothing_is_left_behind(images):
    net, before = TinyCNN().eval(), images.clone()
    state = copy.deepcopy(net.state_dict())
    quantus_explain_func(net, images.numpy(), TARGETS, method="gradcam")
    assert torch.equal(images, before)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "gradcm"}, "gradcam"),
        ({"method": "gradcam", "layr": "conv1"}, "layr"),
        ({"method": "gradcam", "resolution": "native"}, "resolution"),
        ({"method": "gradcam", "targets": [[0], [1], [2]]}, "one class an image"),
        ({"method": "gradcam", "targets": [0, 1]}, "3 images"),
        ({"method": "gradcam", "targets": [0, 1, 3]}, "3"),
        ({"method": "gradcam", "inputs": np.zeros((3, SIZE, SIZE))}, "B, C, H, W"),
    ],
)
def test_bad_input(images, given, message):
    with pytest.raises(InputError, match=message):
        quantus_explain_func(**{"model": TinyCNN().eval(), "inputs": images.numpy(), "targets": TARGETS, **given})
    with pytest.raises(InputError, match="training mode"):
        quantus_explain_func(TinyCNN(), images.numpy(), TARGETS, method="gradcam")


def test_captum_function(images):
    net = TinyCNN().eval()
    function = captum_explanation_func(net, method="gradcam", layer="conv1")
    expected = hp.explain(net, images, TARGETS, method="gradcam", layer="conv1")[:, None]
    with torch.no_grad():
        assert torch.equal(function(images, target=torch.tensor(TARGETS)), expected)
        (found,) = function((images,), torch.tensor(TARGETS))
    assert torch.equal(found, expected)
    one = hp.explain(net, images, [1, 1, 1], method="gradcam", layer="conv1")[:, None]
    assert torch.equal(function(images, 1), one)
    own = hp.explain(net, images, method="gradcam", layer="conv1")[:, None]
    assert torch.equal(function(images), own)
    with pytest.raises(InputError, match="tuple of 2"):
        function((images, images))


def test_the_other_libraries_are_not_imported():
    loaded = run_python("import heatproof.interop, sys; print(sorted({'quantus', 'captum'} & set(sys.modules)))")
    assert loaded.strip() == "[]"
