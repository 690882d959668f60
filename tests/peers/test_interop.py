"""An unpatched Quantus, and captum, evaluate Heatproof's explainers."""

import re
from pathlib import Path

import numpy as np
import pytest
import quantus
import torch
from captum.metrics import sensitivity_max

import heatproof as hp
from heatproof.interop import captum_explanation_func, quantus_explain_func
from support.nets import TinyCNN, TinyViT

SIZE, COUNT, CLASSES = 16, 4, 3
PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "use-with-quantus.md"
PLAIN = {"normalise": False, "abs": False, "disable_warnings": True, "display_progressbar": False}


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def case(request):
    return TinyCNN(classes=CLASSES, channels=request.param).eval(), torch.randn(COUNT, request.param, SIZE, SIZE)


TARGETS = np.array([0, 2, 1, 1])


def input_x_gradient(model, inputs, targets, **_):
    """By autograd alone; on a network of linear layers and ReLU it is LRP-z."""
    with torch.enable_grad():
        images = torch.tensor(inputs, dtype=torch.float32, requires_grad=True)
        model(images)[range(len(inputs)), targets].sum().backward()
    return (images.grad * images.detach()).sum(1, keepdim=True).numpy()


def evaluate(metric, net, images, explain_func=None, maps=None, **given):
    np.random.seed(0)  # noqa: NPY002 Quantus draws from the global state
    arrays = {"x_batch": images.numpy().copy(), "y_batch": TARGETS, "a_batch": maps}
    same = {"channel_first": True, "device": "cpu", "batch_size": COUNT}
    return metric(model=net, **arrays, **same, explain_func=explain_func, **given)


def metrics():
    """Fresh ones: a metric remembers its scores."""
    return {
        "faithfulness_estimate": quantus.FaithfulnessEstimate(features_in_step=SIZE, **PLAIN),
        "max_sensitivity": quantus.MaxSensitivity(nr_samples=4, lower_bound=0.2, **PLAIN),
        "random_logit": quantus.RandomLogit(num_classes=CLASSES, **PLAIN),
        "mprt": quantus.MPRT(similarity_func=quantus.similarity_func.correlation_pearson, **PLAIN),
    }


@pytest.mark.parametrize("name", ["faithfulness_estimate", "max_sensitivity", "random_logit", "mprt"])
def test_quantus_scores_our_maps_as_it_scores_the_same_maps_made_elsewhere(case, name):
    net, images = case
    ours = evaluate(metrics()[name], net, images, quantus_explain_func, explain_func_kwargs={"method": "lrp_z"})
    theirs = evaluate(metrics()[name], net, images, input_x_gradient)
    if name == "mprt":
        ours, theirs = (np.array([scores[layer] for layer in theirs]) for scores in (ours, theirs))
    assert np.isfinite(theirs).all()
    assert np.ptp(theirs) > 1e-3
    assert np.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("method", ["saliency", "lime", "control_random"])
@pytest.mark.parametrize("name", ["faithfulness_estimate", "max_sensitivity", "random_logit", "mprt"])
def test_maps_made_before_are_the_maps_made_within(case, name, method):
    """`a_batch` from `heatproof.explain` and `a_batch` from the function give the same scores."""
    net, images = case
    options = {"lime": {"samples": 20, "segments": 16, "segmentation": "grid"}}.get(method, {})
    maps = hp.explain(net, images, TARGETS, method=method, **options)[:, None].numpy()
    given = {"explain_func_kwargs": {"method": method, **options}}
    within = evaluate(metrics()[name], net, images, quantus_explain_func, **given)
    before = evaluate(metrics()[name], net, images, quantus_explain_func, maps=maps, **given)
    if name == "mprt":
        within, before = list(within.values()), list(before.values())
    assert np.isfinite(before).all()
    assert np.allclose(within, before, atol=1e-5)


def test_randomised_weights_are_seen_with_and_without_a_classifier(case):
    """MPRT hands over copies; a classifier that is passed along must not put its own weights in their place."""
    net, images = case
    like = hp.Classifier(net, mean=[0.5] * images.shape[1], std=[0.5] * images.shape[1], channels=images.shape[1])
    given = [{"method": "lrp_z"}, {"method": "lrp_z", "classifier": like}]
    bare, known = (evaluate(metrics()["mprt"], net, images, quantus_explain_func, explain_func_kwargs=g) for g in given)
    assert np.allclose(list(bare.values()), list(known.values()))
    assert np.min(list(bare.values())) < 0.9


def test_transformers_are_evaluated_too():
    net, images = TinyViT(image=SIZE, patch=4, classes=CLASSES).eval(), torch.randn(COUNT, 3, SIZE, SIZE)
    for name, metric in metrics().items():
        if name == "mprt":  # Quantus cannot randomise a class token, which has no reset_parameters
            continue
        scores = evaluate(metric, net, images, quantus_explain_func)
        maps = quantus_explain_func(net, images.numpy(), TARGETS)
        assert np.allclose(scores, evaluate(metrics()[name], net, images, quantus_explain_func, maps=maps), atol=1e-5)


def test_captum_measures_our_sensitivity(case):
    net, images = case
    noise = [0.1 * torch.randn_like(images) for _ in range(3)]

    def same_noise(inputs, radius):  # each image three times in a row
        return inputs + torch.stack(noise, 1).flatten(0, 1)

    function = captum_explanation_func(net, method="lrp_z")
    found = sensitivity_max(
        function, images, perturb_func=same_noise, n_perturb_samples=3, target=torch.tensor(TARGETS)
    )
    base = hp.explain(net, images, TARGETS, method="lrp_z").flatten(1)
    moved = [hp.explain(net, images + shift, TARGETS, method="lrp_z").flatten(1) for shift in noise]
    expected = torch.stack([(m - base).norm(dim=1) / base.norm(dim=1) for m in moved]).amax(0)
    assert torch.allclose(found, expected, rtol=1e-4)


def test_the_page_runs_as_written(capsys):
    """Both kinds of blocks, in order; what a comment says is printed is printed."""
    code = "\n".join(re.findall(r"```py(?:thon)?\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S))
    exec(compile(code, str(PAGE), "exec"), {})
    printed = [line for line in capsys.readouterr().out.splitlines() if line]
    assert printed == re.findall(r"^# (.*)$", code, re.M)
