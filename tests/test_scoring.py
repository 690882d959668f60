import pytest
import torch
from torch import nn

import heatproof as hp
from heatproof.errors import InputError
from heatproof.models import Classifier
from heatproof.probing import bf16_supported
from heatproof.scoring import metrics
from support.cases import PixelSum, Wavy
from support.nets import TinyCNN


@pytest.fixture
def clf():
    return Classifier(TinyCNN(channels=1).eval(), ["a", "b", "c"], channels=1, mean=[0.5], std=[0.2])


@pytest.fixture
def images():
    return torch.randn(3, 1, 16, 16)


@pytest.fixture
def maps():
    return torch.rand(3, 16, 16)


def test_the_model_may_be_a_bare_module(images, maps):
    net = Wavy(size=16).eval()
    options = {"metric": "faithfulness_estimate", "baseline": 0.0, "batch_size": 8}
    assert torch.equal(hp.score(net, images, maps, **options), hp.score(Classifier(net), images, maps, **options))
    with pytest.raises(InputError, match=r"normalisation of this model is unknown.*baseline=0.0"):
        hp.score(net, images, maps, metric="faithfulness_estimate")


def test_a_method_that_needs_gradients_stays_in_fp32_where_the_passes_over_changed_images_do_not(clf, images, maps):
    if not bf16_supported():
        pytest.skip("this CPU has no bfloat16 arithmetic")
    given = {"targets": [0, 1, 2], "batch_size": 8}
    for method, same in (("lrp_epsilon", True), ("gradcam", True), (("lime", {"samples": 20, "segments": 16}), False)):
        exact, rounded = (
            hp.score(clf, images, maps, metric="max_sensitivity", explain=method, precision=name, **given)
            for name in ("fp32", "bf16")
        )
        assert torch.equal(exact, rounded) == same


def test_a_baseline_of_each_image_s_own_goes_with_its_image(clf):
    images, maps = torch.randn(11, 1, 16, 16), torch.randn(11, 2, 16, 16)  # more than are scored at once
    own, targets = torch.randn(11, 1, 16, 16), torch.tensor([[0, 2]] * 11)
    for metric in ("deletion", "infidelity", "completeness"):
        given = {"metric": metric, "keys": [f"id{row}" for row in range(11)], "batch_size": 4, "targets": targets}
        together = hp.score(clf, images, maps, **{**given, "baseline": own})
        for row in (0, 9):
            one = {**given, "keys": [f"id{row}"], "targets": targets[row : row + 1]}
            alone = hp.score(clf, images[row : row + 1], maps[row : row + 1], **{**one, "baseline": own[row]})
            torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="must broadcast"):
        hp.score(clf, images, maps, metric="deletion", targets=targets, baseline=own[:10])


def test_targets_default_to_the_prediction(clf, images, maps):
    given = {"metric": "faithfulness_estimate", "batch_size": 8}
    found = hp.score(clf, images, maps, **given)
    assert torch.equal(found, hp.score(clf, images, maps, targets=clf.predict(images), **given))
    other = (clf.predict(images) + 1) % 3
    assert not torch.allclose(found, hp.score(clf, images, maps, targets=other.tolist(), **given))


def test_the_target_decides_which_output_is_looked_at(images):
    weights = torch.randn(3, 1, 16, 16)
    truth = images[:, 0] * weights[2]
    found = [hp.score(PixelSum(weights).eval(), images, truth, metric="faithfulness_estimate", baseline=0.0, output="logit",
                      targets=[t] * 3) for t in range(3)]  # fmt: skip
    assert torch.allclose(found[2], torch.ones(3), atol=1e-5)
    assert (found[0] < 0.9).all()


def test_a_region_counts_above_zero(clf, images, maps):
    roi = torch.rand(3, 16, 16) > 0.5
    found = hp.score(clf, images, maps, metric="relevance_mass_accuracy", roi=roi)
    for same in (roi.float() * 0.2, roi.to(torch.uint8) * 255):
        assert torch.equal(hp.score(clf, images, maps, metric="relevance_mass_accuracy", roi=same), found)
    assert torch.equal(hp.score(clf, images, maps, metric="energy_pointing_game", roi=roi), found)


@pytest.mark.parametrize("how", ["lrp_z", ("lrp_z", {"start": "one"}), ("lime", {"samples": 20, "segments": 9})])
def test_a_named_explanation_is_that_method_on_the_changed_image(clf, images, how):
    name, options = (how, {}) if isinstance(how, str) else how
    targets, keys = torch.tensor([0, 1, 2]), ["x", "y", "z"]
    maps = hp.explain(clf, images, targets, method=name, keys=keys, seed=5, **options)

    def by_hand(changed, chosen):
        wanted = [keys[int(t)] for t in chosen]  # here the target names the sample
        return hp.explain(clf, changed, chosen, method=name, keys=wanted, seed=5, **options)

    given = {"metric": "max_sensitivity", "targets": targets, "keys": keys, "seed": 5, "samples": 3, "radius": 0.1}
    found = hp.score(clf, images, maps, explain=how, **given)
    assert (found > 0).all()
    assert torch.allclose(found, hp.score(clf, images, maps, explain=by_hand, **given), rtol=1e-4)


@pytest.mark.parametrize("keys", [None, ["a", "b", "c"]])
def test_what_a_method_draws_does_not_change_with_the_image(clf, images, keys):
    maps = hp.explain(clf, images, method="control_random", keys=keys, seed=3)
    given = {"metric": "max_sensitivity", "explain": "control_random", "keys": keys}
    assert hp.score(clf, images, maps, seed=3, **given).tolist() == [0, 0, 0]
    assert (hp.score(clf, images, maps, seed=4, **given) > 0).all()


def test_a_callable_sees_few_images_at_a_time_and_may_use_gradients(clf, maps):
    sizes = []

    def saliency(images, targets):
        sizes.append(len(images))
        images = images.detach().requires_grad_()
        scores = clf(images).gather(1, targets[:, None]).sum()
        return torch.autograd.grad(scores, images)[0].abs().amax(1)

    images = torch.randn(10, 1, 16, 16)
    own = saliency(images, clf.predict(images))
    sizes.clear()
    found = hp.score(clf, images, own, metric="avg_sensitivity", explain=saliency, batch_size=3)
    assert (found > 0).all()
    assert max(sizes) == 3
    assert sum(sizes) == 100


def test_many_metrics_share_forward_passes_and_explanations(clf, images, maps):
    passes, explained = [], []
    clf.module.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))

    def explain(changed, targets):
        explained.append(len(changed))
        return changed[:, 0]

    roi = torch.rand(3, 16, 16) > 0.5
    wanted = [
        "avg_sensitivity",
        ("max_sensitivity", {"denominator": "input"}),
        {"metric": "faithfulness_estimate", "step": 64},
        {"metric": "faithfulness_estimate", "step": 64, "output": "logit", "as": "estimate_logit"},
        {"metric": "iou", "top": 5, "shape": "rectangle", "as": "iou_5"},
    ]
    targets = [0, 1, 2]
    found = hp.score_many(clf, images, maps, metrics=wanted, explain=explain, targets=targets, roi=roi, batch_size=8)
    assert list(found) == ["avg_sensitivity", "max_sensitivity", "faithfulness_estimate", "estimate_logit", "iou_5"]
    assert sum(explained) == 3 * 10
    # the plain images once, the masked ones once for two outputs
    assert sum(passes) == 3 + 3 * 4
    given = {"explain": explain, "targets": targets, "roi": roi}
    for label, metric, options in [
        ("avg_sensitivity", "avg_sensitivity", {}),
        ("max_sensitivity", "max_sensitivity", {"denominator": "input"}),
        ("faithfulness_estimate", "faithfulness_estimate", {"step": 64}),
        ("estimate_logit", "faithfulness_estimate", {"step": 64, "output": "logit"}),
        ("iou_5", "iou", {"top": 5, "shape": "rectangle"}),
    ]:
        assert torch.allclose(found[label], hp.score(clf, images, maps, metric=metric, **given, **options), atol=1e-5)


def test_curves_of_both_kinds_cost_one_pass_a_point_and_the_image_once(clf, images, maps):
    passes = []
    clf.module.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    options = {"step": 50, "baseline": "blur"}  # 6 points beside the image itself
    wanted = [("deletion", options), ("insertion", options), ("faithfulness_estimate", options),
              ("faithfulness_correlation", {"runs": 7})]  # fmt: skip
    hp.score_many(clf, images, maps, metrics=wanted, targets=[0, 1, 2], batch_size=8)
    assert sum(passes) == 3 * (1 + 6 + 6 + 6 + 7)


def test_maps_on_a_grid_of_their_own_are_for_token_metrics(clf, images):
    native, roi = torch.rand(3, 4, 4), torch.rand(3, 16, 16) > 0.5
    maps = native.repeat_interleave(4, 1).repeat_interleave(4, 2)
    given = {"metric": "relevance_mass_accuracy", "roi": roi}
    found = hp.score(clf, images, native, tokens=True, **given)
    assert torch.allclose(found, hp.score(clf, images, maps, **given))
    several = hp.score(
        clf, images, native[:, None].expand(-1, 2, -1, -1), metric="iou", roi=roi[:, None].expand(-1, 2, -1, -1),
        targets=torch.zeros(3, 2, dtype=torch.long), tokens=True,
    )  # fmt: skip
    assert several.shape == (3, 2)
    with pytest.raises(InputError, match=r"maps \[3, 4, 4\] do not fit images.*tokens=True"):
        hp.score_many(clf, images, native, metrics=[("iou", {"tokens": True}), "sparseness"], roi=roi)


def test_a_metric_without_a_curve_says_which_have_one(clf, images, maps):
    with pytest.raises(InputError, match="iou is not the area under a curve. Those that are: deletion, insertion"):
        hp.curve(clf, images, maps, metric="iou")
    with pytest.raises(InputError, match="deletion has no option 'stpe'. Did you mean 'step'"):
        hp.curve(clf, images, maps, stpe=3)
    x, y = hp.curve(clf, images, maps, metric="pixel_flipping", step=64)
    assert torch.equal(torch.stack([x, *y]), torch.stack([x, *hp.curve(clf, images, maps, step=64)[1]]))


def test_metrics_that_need_no_model_do_not_run_it(images, maps):
    class Silent(nn.Module):
        def forward(self, images):
            raise AssertionError("the model ran")

    found = hp.score(Silent().eval(), images, maps, metric="sparseness")
    assert found.isfinite().all()


def test_progress_is_on_standard_error(clf, images, maps, capsys):
    hp.score(clf, images, maps, metric="faithfulness_estimate", progress=True)
    shown = capsys.readouterr()
    assert "scoring" in shown.err
    assert "100%" in shown.err
    assert shown.out == ""


def test_progress_moves_within_a_chunk(clf, images, maps, monkeypatch):
    seen = []

    class Bar:
        def __enter__(self):
            return seen.append

        def __exit__(self, *_):
            return None

    monkeypatch.setattr("heatproof.scoring.bar", lambda *_: Bar())
    hp.score_many(clf, images, maps, metrics=["sparseness", ("faithfulness_estimate", {"step": 64})], batch_size=6)
    assert seen == [3, 3 + 3 * 0.5, 3 + 3 * 1.0, 6]


@pytest.mark.parametrize("method", ["lrp_z", "gradcam"])
def test_the_callers_inference_mode_is_no_obstacle(clf, images, method):
    given = {"metric": "avg_sensitivity", "explain": method, "targets": [0, 1, 2], "samples": 2, "batch_size": 4}
    against = torch.tensor([1, 0, 0])
    expected = hp.score(clf, images, hp.explain(clf, images, [0, 1, 2], against=against, method=method), **given)
    with torch.inference_mode():
        inside = given | {"targets": torch.tensor([0, 1, 2])}  # tensors of this mode take part in no gradient
        maps = hp.explain(clf, images.clone(), inside["targets"], against=torch.tensor([1, 0, 0]), method=method)
        found = hp.score(clf, images.clone(), maps, **inside)
    assert torch.allclose(found, expected, rtol=1e-4)


def test_a_failure_leaves_nothing_behind(clf, images, maps):
    state = torch.get_rng_state()

    def broken(changed, targets):
        raise ValueError("no map today")

    with pytest.raises(ValueError, match="no map today"):
        hp.score(clf, images, maps, metric="avg_sensitivity", explain=broken)
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)


def test_the_registry_answers_a_miss():
    assert set(metrics()) >= {"faithfulness_estimate", "iou", "sparseness"}
    with pytest.raises(InputError, match=r"Unknown metric 'pointing_gmae'. Did you mean 'pointing_game'"):
        metrics()["pointing_gmae"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "faithfulness_estimat"}, "Unknown metric .* Did you mean 'faithfulness_estimate'"),
        ({"stpe": 3}, "no option 'stpe'. Did you mean 'step'"),
        ({"images": torch.zeros(3, 16, 16)}, r"images must be a float tensor \[B, C, H, W\]"),
        ({"images": torch.zeros(3, 1, 16, 16, dtype=torch.uint8)}, "images must be a float tensor"),
        ({"images": torch.full((3, 1, 16, 16), torch.nan)}, "NaN or infinite"),
        ({"maps": torch.rand(3, 8, 16)}, r"maps \[3, 8, 16\] do not fit images \[3, 1, 16, 16\]"),
        ({"maps": torch.rand(2, 16, 16)}, r"maps \[2, 16, 16\] do not fit"),
        (
            {"maps": torch.rand(3, 4, 4), "metric": "iou", "roi": torch.ones(3, 16, 16)},
            "own are for metrics under tokens",
        ),
        ({"maps": torch.rand(16, 16)}, "maps must be a float tensor"),
        ({"maps": torch.ones(3, 16, 16, dtype=torch.long)}, "maps must be a float tensor"),
        ({"maps": [[1.0]]}, "maps must be a float tensor .*, got list"),
        ({"maps": torch.rand(3, 2, 16, 16)}, r"are of targets \[3, 2\], got targets None"),
        ({"targets": [0, 1]}, "one row for each of the 3 images"),
        ({"targets": [0, 1, 3]}, r"targets must lie in 0..2"),
        ({"targets": torch.zeros(3, 1, dtype=torch.long)}, r"are of targets \[3\], got targets \[3, 1\]"),
        ({"targets": torch.zeros(3, 2, dtype=torch.long)}, r"are of targets \[3\], got targets \[3, 2\]"),
        ({"roi": torch.ones(3, 8, 8, dtype=torch.bool)}, r"roi must have the shape \[3, 16, 16\].*got \[3, 8, 8\]"),
        ({"metric": "iou"}, r"iou compares the map with a region: pass roi="),
        ({"metric": "avg_sensitivity"}, "avg_sensitivity explains changed images: pass explain="),
        ({"explain": "gradcma"}, "Unknown explainer 'gradcma'"),
        ({"explain": ("lime", {"sample": 3})}, "lime has no option 'sample'. Did you mean 'samples'"),
        ({"explain": 3}, r"explain must be a method name, \(name, options\) or a callable, got 3"),
        ({"keys": ["a"]}, "keys must hold one id"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"precision": "fp64"}, "precision must be 'fp32' or 'bf16'"),
    ],
)
def test_what_is_wrong_is_said(clf, images, maps, changes, message):
    given = {"images": images, "maps": maps, "metric": "faithfulness_estimate"} | changes
    with pytest.raises(InputError, match=message):
        hp.score(clf, given.pop("images"), given.pop("maps"), **given)


def test_training_mode_is_an_error(clf, images, maps):
    clf.module.train()
    with pytest.raises(InputError, match="training mode"):
        hp.score(clf, images, maps, metric="faithfulness_estimate")


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("iou", "metrics must be a list"),
        ([], "metrics must be a list with at least one metric"),
        (["iou", ("iou", {"top": 5})], "Two metrics are labelled 'iou'"),
        ([("iou", 5)], "A metric is a name"),
        ([{"top": 5}], "A metric is a name"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(clf, images, maps, metrics, message):
    with pytest.raises(InputError, match=message):
        hp.score_many(clf, images, maps, metrics=metrics, roi=torch.ones(3, 16, 16))
