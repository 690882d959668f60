import copy
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from scipy.stats import entropy, spearmanr
from torch import nn

import heatproof as hp
from heatproof.errors import InputError, UnsupportedModelError
from heatproof.metrics.randomization import (
    efficient_mprt,
    model_parameter_randomization,
    random_logit,
    randomized,
    smooth_mprt,
)
from heatproof.metrics.similarity import ssim
from heatproof.models import Classifier
from heatproof.probing import SampleRandom
from support.cases import Wavy, make_case
from support.nets import TinyCNN, TinyViT

SIZE = 16
CASCADES = [model_parameter_randomization, smooth_mprt]


class Stack(nn.Module):
    """Three layers and a free parameter; its gradient depends on the image."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(SIZE * SIZE) + 1)
        self.first, self.last = nn.Linear(SIZE * SIZE, 6), nn.Linear(6, 3)

    def forward(self, images):
        return self.last(torch.tanh(self.first(images.flatten(1) * self.scale)))


def saliency(images, targets, model):
    """The gradient of the model it is given."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        return torch.autograd.grad(model(images).gather(1, targets[:, None]).sum(), images)[0].sum(1)


def case_of(net, images, targets=None, **options):
    own = Classifier(net.eval(), channels=images.shape[1])
    targets = torch.zeros(len(images), dtype=torch.long) if targets is None else targets

    def explain(x, t, model=own):
        return saliency(x, t, model)

    return make_case(own, images, saliency(images, targets, own), targets, explainer=explain, **options)


@pytest.fixture
def images():
    return torch.randn(3, 1, SIZE, SIZE)


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("order", "steps"),
    [
        ("top_down", [{"last.weight", "last.bias"}, {"first.weight", "first.bias"}, {"scale"}]),
        ("bottom_up", [{"scale"}, {"first.weight", "first.bias"}, {"last.weight", "last.bias"}]),
    ],
)
def test_layers_are_randomised_one_after_another(order, steps):
    net = Stack().eval()
    before, last = state(net), state(net)
    for step, model in zip(steps, randomized(Classifier(net), order, 0), strict=True):
        now = state(model.module)
        assert changed(last, now) == step
        assert model.module is not net
        last = now
    assert not changed(before, state(net)), "the model itself stays"
    assert changed(before, last) == set(before)


@pytest.mark.parametrize("build", [TinyViT, TinyCNN])
def test_every_parameter_of_a_network_is_randomised_but_what_is_initialised_to_a_constant(build):
    net = build().eval()
    with torch.no_grad():  # as if trained: norms too have moved away from where they start
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    *_, model = randomized(Classifier(net), "top_down", 0)
    before, after = dict(net.named_parameters()), dict(model.module.named_parameters())
    assert {"cls_token", "pos_embed"} <= set(before) or build is TinyCNN
    for name, values in before.items():
        assert not torch.isclose(values, after[name], atol=1e-4).any() or values.numel() > 40, name
        assert not torch.equal(values, after[name]), name
        assert values.numel() == 1 or (values != after[name]).double().mean() > 0.99, name
    if build is TinyCNN:
        assert model.module.bn1.running_mean.eq(0).all()


def test_a_parameter_without_a_layer_keeps_its_scale():
    net = nn.Module()
    net.large, net.zero, net.one = (
        nn.Parameter(p) for p in (torch.full((4000,), 30.0), torch.zeros(4000), torch.ones(1))
    )
    net.eval()
    (model,) = randomized(Classifier(net), "top_down", 0)
    assert model.module.large.square().mean().sqrt().item() == pytest.approx(30, rel=0.05)
    assert abs(model.module.large.mean().item()) < 3
    assert model.module.zero.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.module.one.item() != 1


class HalfReset(nn.Linear):
    """A layer whose own initialisation forgets one of its parameters."""

    def __init__(self):
        super().__init__(4, 4)
        self.gain = nn.Parameter(torch.full((4,), 2.0))


def test_what_a_layer_does_not_initialise_is_drawn_too():
    layer = HalfReset().eval()
    (model,) = randomized(Classifier(layer), "top_down", 0)
    assert changed(state(layer), state(model.module)) == {"weight", "bias", "gain"}
    attention = nn.MultiheadAttention(8, 2).eval()
    *_, model = randomized(Classifier(attention), "top_down", 0)
    assert {"in_proj_weight", "out_proj.weight"} <= changed(state(attention), state(model.module))


def test_draws_belong_to_seed_and_layer():
    net = Stack().eval()

    def final(order, seed):
        *_, model = randomized(Classifier(net), order, seed)
        return state(model.module)

    generator = torch.get_rng_state()
    assert not changed(final("top_down", 0), final("bottom_up", 0)), "all layers randomised are the same model"
    assert torch.equal(torch.get_rng_state(), generator)
    torch.rand(5)
    assert not changed(final("top_down", 0), final("top_down", 0))
    assert changed(final("top_down", 0), final("top_down", 1)) == set(state(net))
    with_more = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    *_, model = randomized(Classifier(with_more), "top_down", 0)
    assert not torch.equal(model.module[0].weight, model.module[1].weight), "each layer has draws of its own"


def test_threads_that_randomise_at_once_do_not_draw_from_each_other():
    class Slow(nn.Linear):
        def reset_parameters(self):
            time.sleep(0.002)  # another thread's turn
            super().reset_parameters()

    net = nn.Sequential(Slow(6, 5), Slow(5, 4), Slow(4, 3)).eval()

    def final(seed):
        *_, model = randomized(Classifier(net), "top_down", seed)
        return state(model.module)

    expected, generator = [final(seed) for seed in range(4)], torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(final, range(4)))
    for before, after in zip(expected, found, strict=True):
        assert not changed(before, after)
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_model_without_parameters():
    with pytest.raises(UnsupportedModelError, match="no parameters"):
        next(randomized(Classifier(nn.Flatten().eval()), "top_down", 0))


@pytest.mark.parametrize("order", ["top_down", "bottom_up"])
@pytest.mark.parametrize("similarity", ["spearman", "ssim"])
def test_agreement_with_the_definition(images, order, similarity):
    net, targets = Stack().eval(), torch.tensor([0, 2, 1])
    case = case_of(net, images, targets)
    found = model_parameter_randomization(case, order=order, similarity=similarity)
    own = copy.deepcopy(net)
    *_, full = randomized(Classifier(net), order, 0)
    parts = [["last.weight", "last.bias"], ["first.weight", "first.bias"], ["scale"]]
    rows = []
    for names in parts if order == "top_down" else reversed(parts):
        own.load_state_dict({**state(own), **{name: full.module.state_dict()[name] for name in names}})
        maps = saliency(images, targets, own)
        pairs = zip(case.maps, maps, strict=True)
        if similarity == "spearman":
            rows.append([spearmanr(a.flatten(), b.flatten()).statistic for a, b in pairs])
        else:
            rows.append([ssim(a[None], b[None]).item() for a, b in pairs])
    expected = torch.tensor(rows).mean(0)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert (found < 0.9).all()


@pytest.mark.parametrize("function", CASCADES)
@pytest.mark.parametrize("similarity", ["spearman", "ssim"])
def test_a_map_that_ignores_the_model_stays_the_same(images, function, similarity):
    options = {"samples": 3} if function is smooth_mprt else {}
    case = make_case(Stack(), images, images[:, 0], explainer=lambda x, t, model=None: x[:, 0])
    for order in ("top_down", "bottom_up"):
        assert function(case, order=order, similarity=similarity, **options).tolist() == pytest.approx([1] * 3)


def test_smooth_maps_are_means_over_noisy_images(images):
    net, targets = Stack().eval(), torch.tensor([0, 2, 1])
    case = case_of(net, images, targets)
    found = smooth_mprt(case, samples=4, noise=0.3)
    streams = SampleRandom(0, ["0", "1", "2"])
    noise = [streams.normal(1, SIZE, SIZE, purpose=f"smoothing {number}") for number in range(4)]
    span = torch.stack([0.3 * (image.max() - image.min()) for image in images]).view(3, 1, 1, 1)

    def averaged(model):
        return torch.stack([saliency(images + span * draw, targets, model) for draw in noise]).mean(0)

    original, rows = averaged(net), []
    for model in randomized(Classifier(net), "top_down", 0):
        pairs = zip(original, averaged(model), strict=True)
        rows.append([spearmanr(a.flatten(), b.flatten()).statistic for a, b in pairs])
    assert found.tolist() == pytest.approx(torch.tensor(rows).mean(0).tolist(), abs=1e-4)
    assert smooth_mprt(case, samples=1, noise=0).tolist() == pytest.approx(
        model_parameter_randomization(case).tolist(), abs=1e-5
    )


@pytest.mark.parametrize(("count", "sizes"), [(1, [16, 4]), (3, [15, 15, 15, 15]), (20, [20] * 20)])
def test_noisy_images_are_explained_together_and_no_more_than_memory_allows(count, sizes):
    seen = []

    def counted(x, targets, model=None):
        seen.append(len(x))
        return x[:, 0]

    images = torch.randn(count, 1, SIZE, SIZE)
    smooth_mprt(make_case(nn.Sequential(nn.Flatten(), nn.Linear(SIZE**2, 3)), images, images[:, 0], explainer=counted),
                samples=20)  # fmt: skip
    assert seen == 2 * sizes, "the model itself, and its one layer randomised"


def test_efficient_is_the_rise_in_entropy(images):
    case = case_of(Stack().eval(), images)
    *_, model = randomized(case.model, "bottom_up", 0)
    maps = saliency(images, case.targets, model)

    def slow_entropy(values, bins):
        return entropy(torch.histogram(values.double().flatten(), bins).hist.numpy())

    for bins in (100, 10):
        before = [slow_entropy(m, bins) for m in case.maps]
        after = [slow_entropy(m, bins) for m in maps]
        expected = [(b - a) / a for a, b in zip(before, after, strict=True)]
        assert efficient_mprt(case, bins=bins).tolist() == pytest.approx(expected, abs=1e-6)


def test_both_similarities_share_the_explanations_and_the_copy_is_one(images):
    models, calls = set(), []

    def counted(x, targets, model=None):
        models.add(id(model.module))
        calls.append(len(x))
        return saliency(x, targets, model)

    case = make_case(Stack(), images, torch.randn(3, SIZE, SIZE), explainer=counted)
    model_parameter_randomization(case)
    assert sum(calls) == 3 * 3
    model_parameter_randomization(case, similarity="ssim")
    assert sum(calls) == 3 * 3
    assert len(models) == 1
    efficient_mprt(case)
    assert sum(calls) == 4 * 3, "one model, not a cascade"
    model_parameter_randomization(case, order="bottom_up")
    assert sum(calls) == 7 * 3


def test_every_batch_sees_the_same_random_weights():
    net, images = TinyCNN(channels=1).eval(), torch.randn(11, 1, SIZE, SIZE)
    maps = hp.explain(net, images, [0] * 11, method="saliency")
    given = {"metric": "model_parameter_randomization", "explain": "saliency"}
    full = hp.score(net, images, maps, targets=[0] * 11, **given)
    alone = torch.cat([hp.score(net, images[b : b + 1], maps[b : b + 1], targets=[0], **given) for b in range(11)])
    torch.testing.assert_close(full, alone, atol=1e-5, rtol=1e-4)
    assert full.isfinite().all()
    other = hp.score(net, images, maps, targets=[0] * 11, seed=1, **given)
    assert not torch.allclose(full, other, atol=1e-3)


def test_a_constant_map_of_a_randomised_model_is_nan_and_not_a_similarity(images):
    calls = []

    def sometimes(x, targets, model=None):
        calls.append(model)
        maps = x[:, 0].clone()
        if len(calls) == 2:  # of three models
            maps[1] = 0.0
        return maps

    case = make_case(Stack(), images, images[:, 0], explainer=sometimes)
    assert model_parameter_randomization(case).isnan().tolist() == [False, True, False]
    assert len(calls) == 3
    assert model_parameter_randomization(case, similarity="ssim").isfinite().all()


def test_random_logit_is_the_similarity_with_another_class():
    net, images = Wavy(classes=5, size=SIZE).eval(), torch.randn(40, 1, SIZE, SIZE)
    targets = torch.arange(40) % 5
    seen = []

    def remembered(x, t):
        seen.append(t)
        return saliency(x, t, net)

    case = make_case(net, images, saliency(images, targets, net), targets, explainer=remembered)
    found = random_logit(case)
    (others,) = seen
    assert (others != targets).all()
    assert set(others.tolist()) == set(range(5))
    counts = torch.bincount((others - targets) % 5, minlength=5)
    assert counts[0] == 0
    assert (counts[1:] >= 3).all(), "each of the others is drawn"
    expected = ssim(case.maps, saliency(images, others, net))
    assert torch.allclose(found, expected, atol=1e-6)
    assert found.abs().mean() < 0.5


def test_random_logit_of_what_does_not_know_the_class_is_one(images):
    case = make_case(Wavy(size=SIZE), images, images[:, 0], explainer=lambda x, t: x[:, 0])
    assert random_logit(case).tolist() == pytest.approx([1] * 3)


def test_random_logit_of_two_classes_is_that_of_the_other(images):
    targets = torch.tensor([0, 1, 0])
    maps = torch.randn(2, 3, SIZE, SIZE)

    def by_class(x, t):
        return torch.stack([maps[c, b] for b, c in enumerate(t.tolist())])

    case = make_case(Wavy(classes=2, size=SIZE), images, by_class(images, targets), targets, explainer=by_class)
    assert random_logit(case).tolist() == pytest.approx(ssim(maps[0], maps[1]).tolist())


def test_random_logit_needs_another_class(images):
    case = make_case(Wavy(classes=1, size=SIZE), images, images[:, 0], explainer=lambda x, t: x[:, 0])
    with pytest.raises(InputError, match="only one"):
        random_logit(case)


@pytest.mark.parametrize("function", [*CASCADES, efficient_mprt, random_logit])
def test_undefined_maps_are_nan_and_negative_ones_are_not(images, function):
    maps = torch.rand(3, SIZE, SIZE)
    maps[0], maps[1, 0, 0], maps[2] = 0.3, torch.nan, -maps[2]
    case = make_case(Stack(), images, maps, explainer=lambda x, t, model=None: saliency(x, t, model or case.model))
    assert function(case).isnan().tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (model_parameter_randomization, {"order": "both"}, "order must be 'top_down' or 'bottom_up', got 'both'"),
        (model_parameter_randomization, {"similarity": "rank"}, "similarity must be 'spearman' or 'ssim', got 'rank'"),
        (smooth_mprt, {"samples": 0}, "samples must be a whole number, at least 1"),
        (smooth_mprt, {"noise": -0.1}, "noise must be a number, at least 0"),
        (efficient_mprt, {"bins": 0}, "bins must be a whole number"),
    ],
)
def test_impossible_options_are_refused(images, function, options, message):
    case = case_of(Stack().eval(), images)
    with pytest.raises(InputError, match=message):
        function(case, **options)


def test_a_callable_must_take_the_changed_model(images):
    net = Stack().eval()
    given = {"metric": "efficient_mprt", "targets": [0, 0, 0]}
    with pytest.raises(InputError, match="explains a changed copy of the model, and the callable explains its own"):
        hp.score(net, images, images[:, 0], explain=lambda x, t: x[:, 0], **given)
    kept = hp.score(net, images, images[:, 0], explain=lambda x, t, **_: x[:, 0], **given)
    assert kept.tolist() == [0, 0, 0]


def test_every_family_explains_the_changed_model():
    net, images = TinyViT(channels=1, image=SIZE, patch=4, depth=2).eval(), torch.randn(2, 1, SIZE, SIZE)
    before = state(net)
    for method in ("transformer_lrp", "attention_rollout", "input_x_gradient"):
        maps = hp.explain(net, images, [0, 1], method=method)
        found = hp.score_many(net, images, maps, explain=method, targets=[0, 1], metrics=[
            "model_parameter_randomization", "efficient_mprt"])  # fmt: skip
        assert found["model_parameter_randomization"].isfinite().all(), method
        assert (found["model_parameter_randomization"] < 0.95).all(), method
        assert (found["efficient_mprt"] != 0).all(), method
    assert not changed(before, state(net))
    assert all(parameter.grad is None for parameter in net.parameters())


def test_explanations_that_know_neither_model_nor_class():
    net, images = TinyViT(channels=1, image=SIZE, patch=4, depth=2).eval(), torch.randn(2, 1, SIZE, SIZE)
    metrics = ["random_logit", "model_parameter_randomization"]
    found = {}
    for method in ("control_edges", "control_random", "attention_rollout", "input_x_gradient"):
        maps = hp.explain(net, images, [0, 1], method=method)
        scores = hp.score_many(net, images, maps, explain=method, targets=[0, 1], metrics=metrics)
        found[method] = [scores[metric].tolist() for metric in metrics]
    for control in ("control_edges", "control_random"):
        assert found[control] == [pytest.approx([1, 1])] * 2
    of_class, of_model = found["attention_rollout"]
    assert of_class == pytest.approx([1, 1]), "attention does not know the class"
    assert max(of_model) < 0.95, "it does know the model"
    assert max(found["input_x_gradient"][0]) < 0.95
