"""Every preset on unmodified models of the libraries that people use, in single precision.

A cell is a model under a preset: the forward pass gives the model's own logits, the map is finite and not empty, and it is
that of a replica in float64 which knows the rules in another form (`support.replica`). Where a method cannot serve a model,
the cell holds the error that says so. Each cell records the operations met (`--junit-xml`); the counts of maps, refusals and
skips are printed at the end.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from heatproof.errors import UnsupportedModelError
from heatproof.relevance import Preset, ZBox, presets, run
from heatproof.relevance.backward import ForwardPass
from support import matrix, replica
from support.matrix import MODELS, Entry

TARGET = 1
TOLERANCE = (
    1e-6  # of the map's largest value, in float64 (eager attention of transformers computes its softmax in float32)
)
SINGLE_PRECISION = (
    0.05  # what rounding may change of a map's size: sums of both signs that nearly cancel are divided by
)
ATTENTION = ("transformer_lrp", "attention", "attention_rollout", "generic_attention")
REFUSED = {
    "none": "needs self-attention, and the model ran none",
    "windowed": "attends within windows or over several scales",
    "class": "needs the same tokens in every block",
}
RELU_NETWORKS = ("torchvision-densenet", "torchvision-resnet", "torchvision-vgg", "monai-densenet",
                 "odd-reused-convolutions", "odd-in-place-resnet")  # fmt: skip


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Counter[str]]:
    """How many cells found what, printed when all have run."""
    found: Counter[str] = Counter()
    yield found
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\nmodel matrix: " + "; ".join(f"{count} {what}" for what, count in found.items()))  # noqa: T201


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, table: Counter[str]) -> tuple[str, Entry, hp.Classifier, Tensor, Tensor]:
    """A model, images and the model's own logits."""
    entry = MODELS[request.param]
    for name in entry.needs:
        if not matrix.installed(name):
            table[f"model skipped ({request.param} needs {name})"] += 1
            pytest.skip(f"{request.param} needs {name}, which is not installed")
    torch.manual_seed(0)
    model = hp.Classifier(matrix.build(request.param), image_size=entry.size, mean=[0.5] * 3, std=[0.125] * 3)
    images = torch.randn(2, 3, entry.size, entry.size).clamp(*replica.BOX)
    with torch.no_grad():
        return request.param, entry, model, images, model(images)


def preset_of(name: str, dtype: torch.dtype) -> Preset:
    box = [torch.full((3, 1, 1), end, dtype=dtype) for end in replica.BOX]
    if name == "deep_taylor":
        return presets.deep_taylor(*box)
    return presets.lrp_composite(ZBox(*box)) if name == "lrp_composite" else getattr(presets, name)()


def passed_in(model: hp.Classifier, images: Tensor, name: str, dtype: torch.dtype) -> tuple[ForwardPass, Tensor]:
    module = copy.deepcopy(model.module).to(dtype)
    passed = run(hp.Classifier(module), images.to(dtype), preset_of(name, dtype))
    return passed, passed.relevance(passed.logits[:, TARGET]).detach()


@pytest.mark.parametrize("name", replica.REPLICAS)
def test_relevance(
    case: tuple[str, Entry, hp.Classifier, Tensor, Tensor],
    table: Counter[str],
    name: str,
    record_property: Callable[[str, object], None],
) -> None:
    _, _, model, images, logits = case
    passed, found = passed_in(model, images, name, torch.float32)
    torch.testing.assert_close(passed.logits.detach(), logits, rtol=1e-5, atol=1e-5)
    assert found.isfinite().all()
    assert (found.abs().amax((1, 2, 3)) > 0).all()
    exact = passed_in(model, images, name, torch.float64)[1]
    expected, same_logits = replica.relevance(model.module, images, TARGET, replica.REPLICAS[name])
    torch.testing.assert_close(same_logits.float(), logits, rtol=1e-5, atol=1e-5)
    size = float(expected.abs().max())
    torch.testing.assert_close(exact, expected, rtol=0, atol=TOLERANCE * size)
    share = float((found - exact).norm() / exact.norm())
    assert share < SINGLE_PRECISION, f"single precision changes the map by {share:.0e} of its size"
    table["relevance maps checked against a replica"] += 1
    met = {operation.operation: (operation.count, operation.rule) for operation in passed.operations}
    assert met.keys() & {"linear", "conv"}
    for operation, (_, rule) in met.items():
        assert (rule == "ordinary gradient") == (operation not in passed.mode.preset.rules)
    record_property("operations", met)


@pytest.mark.parametrize("method", ATTENTION)
def test_attention(case: tuple[str, Entry, hp.Classifier, Tensor, Tensor], table: Counter[str], method: str) -> None:
    _, entry, model, images, _ = case
    if entry.attention != "whole":
        with pytest.raises(UnsupportedModelError, match=REFUSED[entry.attention]):
            hp.explain(model, images, [TARGET] * 2, method=method)
        table[f"refused: {entry.attention} attention"] += 1
        return
    maps = hp.explain(model, images, [TARGET] * 2, method=method, resolution="native")
    assert maps.shape == (2, 4, 4)
    assert maps.isfinite().all()
    assert (maps.amax((1, 2)) > 0).all()
    matrices = run(model, images, presets.NOTHING).capture.attention
    for attention in matrices:  # probabilities of the same number of tokens throughout
        torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
    table["attention maps"] += 1


def test_gradcam(case: tuple[str, Entry, hp.Classifier, Tensor, Tensor], table: Counter[str]) -> None:
    """Where a grid of features is found by itself."""
    model_name, _, model, images, _ = case
    if model_name == "odd-tied-weights":
        with pytest.raises(UnsupportedModelError, match=r"layer=\.\.\."):
            hp.explain(model, images, [TARGET] * 2, method="gradcam")
        table["refused: gradcam without a grid of features"] += 1
        return
    maps = hp.explain(model, images, [[0, 1, 2, 3, 4]] * 2, method="gradcam", resolution="native")
    assert maps.isfinite().all()
    assert (maps.amax((1, 2, 3)) > 0).all()  # of some target: what speaks against one is cut off
    table["gradcam maps"] += 1


@pytest.mark.parametrize(
    ("name", "layer"),
    [("timm-vit", "norm1"), ("timm-vit-qk-norm-layer-scale", "norm1"), ("timm-cait", "blocks.1.norm1"),
     ("hf-vit-sdpa", "layernorm_before"), ("torchvision-resnet", "layer3"), ("torchvision-efficientnet", "features.4")],
)  # fmt: skip
def test_gradcam_is_that_of_the_last_layer_with_a_grid(name: str, layer: str) -> None:
    """The formula on what a hook sees in a plain run: average gradients as weights, summed over channels, cut at 0."""
    torch.manual_seed(0)
    model, images = matrix.build(name), torch.randn(2, 3, 32, 32)
    kept: list[Tensor] = []
    module = [part for path, part in model.named_modules() if path.endswith(layer)][-1]
    handle = module.register_forward_hook(lambda _, __, output: kept.append(output))
    logits = hp.Classifier(model)(images)
    handle.remove()
    (slopes,) = torch.autograd.grad(logits[:, TARGET].sum(), kept)
    features = kept[0]
    if features.ndim == 3:  # tokens
        features, slopes = (t[:, -16:].mT.unflatten(2, (4, 4)) for t in (features, slopes))
    expected = (features * slopes.mean((2, 3), keepdim=True)).sum(1).clamp(min=0).detach()
    found = hp.explain(model, images, [TARGET] * 2, method="gradcam", resolution="native")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("name", RELU_NETWORKS)
def test_lrp_z_of_a_relu_network_is_input_times_gradient(name: str) -> None:
    torch.manual_seed(0)
    model = matrix.build(name).double().requires_grad_(False)
    images = torch.randn(2, 3, 32, 32).double().requires_grad_()
    (gradient,) = torch.autograd.grad(model(images)[:, TARGET].sum(), images)
    passed = run(model, images, presets.lrp_z())
    found = passed.relevance(passed.logits[:, TARGET])
    torch.testing.assert_close(found, (images * gradient).detach(), rtol=0, atol=1e-12 * float(found.abs().max()))


@pytest.mark.parametrize("name", sorted({*RELU_NETWORKS} - {"odd-in-place-resnet"}))  # which adds before its ReLUs
@pytest.mark.parametrize("preset", ["lrp_zplus", "excitation_backprop"])
def test_z_plus_conserves_in_a_relu_network_without_biases(name: str, preset: str) -> None:
    """From 1 at the target to 1 at the pixels, in single precision; every shift is taken out, the images are positive."""
    torch.manual_seed(0)
    model = matrix.build(name)
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.running_mean)
    passed = run(model, torch.rand(2, 3, 32, 32), preset_of(preset, torch.float32))
    for target in range(matrix.CLASSES):
        found = passed.relevance(passed.logits[:, target])
        speaks = passed.logits[:, target] > 0  # z⁺ gives nothing to a logit that no positive contribution makes
        torch.testing.assert_close(found.sum((1, 2, 3))[speaks], torch.ones(int(speaks.sum())), rtol=0, atol=1e-3)
        assert (found >= -1e-6).all()


@pytest.mark.parametrize("method", [*replica.REPLICAS, *ATTENTION])
def test_fused_and_written_out_attention_give_the_same_maps(method: str) -> None:
    """The same weights in both implementations of two libraries."""
    for fused, written in (("timm-vit", "timm-vit-unfused"), ("hf-vit-sdpa", "hf-vit-eager")):
        torch.manual_seed(0)
        models = [matrix.build(fused), matrix.build(written)]
        models[1].load_state_dict(models[0].state_dict())
        images = torch.randn(2, 3, 32, 32)
        options = {"mean": [0.5] * 3, "std": [0.125] * 3, "image_size": 32}
        first, second = (hp.explain(hp.Classifier(m, **options), images, [TARGET] * 2, method=method) for m in models)
        torch.testing.assert_close(first, second, rtol=0, atol=1e-3 * float(first.abs().max()))
