"""The relevance family at the front door: options, starts and what a model must have."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from heatproof.errors import InputError, UnsupportedOperationError
from heatproof.relevance import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Preset,
    WSquare,
    ZBox,
    Zero,
    composite,
    presets,
    run,
    z_plus,
)
from support.nets import TinyCNN, TinyViT
from support.reference import reference, tiny_vit, worst_share

FROM_ONE = ["lrp_alpha_beta", "lrp_zplus", "deep_taylor", "excitation_backprop"]
FROM_LOGIT = ["lrp_z", "lrp_epsilon", "lrp_gamma", "lrp_composite", "attn_lrp", "cp_lrp", "lrp"]


@pytest.fixture
def classifier() -> hp.Classifier:
    return hp.Classifier(TinyCNN().eval(), image_size=16, mean=[0.5, 0.4, 0.3], std=[0.25, 0.2, 0.5])


@pytest.mark.parametrize("method", [*FROM_LOGIT, *FROM_ONE])
def test_relevance_starts_at_one_or_at_the_logit(classifier: hp.Classifier, method: str) -> None:
    images = torch.rand(3, 3, 16, 16) * 3 - 1
    one, logit = (hp.explain(classifier, images, [0, 1, 2], method=method, start=start) for start in ("one", "logit"))
    scores = classifier(images).detach()[range(3), [0, 1, 2]].view(-1, 1, 1)
    torch.testing.assert_close(one * scores, logit)
    assert torch.equal(hp.explain(classifier, images, [0, 1, 2], method=method), one if method in FROM_ONE else logit)
    with pytest.raises(InputError, match="start must be 'logit' or 'one', got 'zero'"):
        hp.explain(classifier, images, method=method, start="zero")


@pytest.mark.parametrize("method", FROM_ONE)
def test_a_logit_of_exactly_zero_is_undefined(method: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).eval()
    nn.init.zeros_(net[1].weight[:1])
    options = {"low": 0.0, "high": 1.0} if method == "deep_taylor" else {}
    maps = hp.explain(net, torch.rand(2, 1, 2, 2), [0, 1], method=method, **options)
    assert maps[0].isnan().all()
    assert maps[1].isfinite().all()


def test_alpha_and_beta_by_hand(classifier: hp.Classifier) -> None:
    """One neuron, contributions 2, 1 and -4: the first two share α, the third has −β."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 1, bias=False)).eval()
    net[1].weight.data = torch.tensor([[2.0, -1.0, 4.0]])
    image = torch.tensor([1.0, -1.0, -1.0]).view(1, 1, 1, 3)
    for options, expected in (({}, [4 / 3, 2 / 3, -1]), ({"alpha": 1, "beta": 0}, [2 / 3, 1 / 3, 0])):
        found = hp.explain(net, image, [0], method="lrp_alpha_beta", **options)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32).view(1, 1, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 2, "beta": 2}, "alpha - beta must be 1, got alpha=2, beta=2"),
        ({"alpha": 2, "beta": -1}, "beta must be a number, at least 0, got -1"),
        ({"alpha": 0.5, "beta": 0}, "alpha must be a number, at least 1, got 0.5"),
    ],
)
def test_bad_alpha_and_beta(classifier: hp.Classifier, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        hp.explain(classifier, torch.rand(1, 3, 16, 16), method="lrp_alpha_beta", **options)


def test_the_box_of_deep_taylor_is_that_of_the_raw_intensities(classifier: hp.Classifier) -> None:
    images = torch.rand(2, 3, 16, 16) * 3 - 1.5
    default = hp.explain(classifier, images, [0, 1], method="deep_taylor")
    low, high = [-2.0, -2.0, -0.6], [2.0, 3.0, 1.4]  # (0 - mean) / std and (1 - mean) / std
    given = hp.explain(classifier.module, images, [0, 1], method="deep_taylor", low=low, high=high)
    torch.testing.assert_close(given, default)
    assert not torch.allclose(hp.explain(classifier, images, [0, 1], method="deep_taylor", low=-3), default)
    assert not torch.allclose(hp.explain(classifier, images, [0, 1], method="deep_taylor", high=4.0), default)
    torch.testing.assert_close(
        hp.explain(classifier, images, [0, 1], method="deep_taylor", low=-3),
        hp.explain(classifier, images, [0, 1], method="deep_taylor", low=[-3, -3, -3]),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"normalisation is unknown: give low= and high=.*\(low is missing\)"),
        ({"low": 0.0}, r"\(high is missing\)"),
        ({"low": 1.0, "high": 1.0}, "low must lie below high"),
        ({"low": [0.0, 0.0], "high": 1.0}, "low must be one number or one for each of the 3 channels"),
    ],
)
def test_bad_boxes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        hp.explain(TinyCNN().eval(), torch.rand(1, 3, 16, 16), method="deep_taylor", **options)


@pytest.mark.parametrize("method", FROM_ONE)
def test_on_a_cnn_only_alpha_beta_has_negative_relevance(classifier: hp.Classifier, method: str) -> None:
    maps = hp.explain(classifier, torch.rand(2, 3, 16, 16) * 2.4 - 0.6, method=method)
    assert bool((maps < 0).any()) == (method == "lrp_alpha_beta")


@pytest.mark.parametrize("method", FROM_ONE)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_transformers_model_is_served_whatever_its_attention(method: str, implementation: str) -> None:
    """The fused attention and the one written out scale queries and scores at different places."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48, image_size=16,
                       patch_size=8, num_labels=3)  # fmt: skip
    torch.manual_seed(1)
    config._attn_implementation = implementation
    model = hp.Classifier(ViTForImageClassification(config).eval(), image_size=16, mean=[0.5] * 3, std=[0.5] * 3)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    fused = hp.Classifier(ViTForImageClassification._from_config(config, attn_implementation="sdpa").eval(),
                          image_size=16, mean=[0.5] * 3, std=[0.5] * 3)  # fmt: skip
    fused.module.load_state_dict(model.module.state_dict())
    maps = hp.explain(model, images, [0, 1], method=method)
    assert maps.isfinite().all()
    assert (maps.flatten(1).abs().sum(1) > 0).all()
    torch.testing.assert_close(maps, hp.explain(fused, images, [0, 1], method=method), rtol=1e-3,
                               atol=1e-4 * float(maps.abs().max()))  # fmt: skip


def test_scaled_queries_and_scaled_scores_are_the_same_attention() -> None:
    class Late(nn.Module):
        early = False

        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.head = (nn.Linear(6, 6) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = x.flatten(2)
            q, k, v = self.q(tokens), self.k(tokens), self.v(tokens)
            scores = (q * 0.4) @ k.transpose(1, 2) if self.early else (q @ k.transpose(1, 2)) * 0.4
            return self.head(scores.softmax(-1) @ v).mean(1)

    class Early(Late):
        early = True

    late, early = Late().double().eval(), Early().double().eval()
    early.load_state_dict(late.state_dict())
    images = torch.randn(2, 4, 2, 3, dtype=torch.float64)
    for method in ("lrp_alpha_beta", "lrp_zplus"):
        maps = [hp.explain(model, images, [0, 1], method=method) for model in (late, early)]
        torch.testing.assert_close(*maps)


def through_the_engine(model: nn.Module, images: Tensor, preset: Preset, **options: bool) -> Tensor:
    passed = run(model, images, preset, **options)
    return passed.relevance(passed.logits[:, 1]).sum(1)


LOW, HIGH = torch.full((3, 1, 1), -1.0), torch.full((3, 1, 1), 2.0)
BOX = {"low": -1.0, "high": 2.0}
AS_PRESETS: list[tuple[str, dict[str, Any], Preset]] = [
    ("lrp_gamma", {}, presets.lrp_gamma(0.25)),
    ("lrp_gamma", {"gamma": 1.0}, presets.lrp_gamma(1.0)),
    ("lrp_alpha_beta", {"bias": "ignore"}, presets.lrp_alpha_beta(bias=False)),
    ("lrp_zplus", {"bias": "absorb"}, presets.lrp_zplus()),
    ("lrp_zplus", {"bias": "ignore"}, presets.lrp_zplus(bias=False)),
    ("excitation_backprop", {}, presets.lrp_zplus(bias=False)),
    ("lrp_composite", BOX, presets.lrp_composite(ZBox(LOW, HIGH), 0.25, 1e-6)),
    ("lrp_composite", {"gamma": 1.0, **BOX}, presets.lrp_composite(ZBox(LOW, HIGH), 1.0)),
    ("lrp_composite", {"epsilon": 0.5, "first": "flat"}, presets.lrp_composite(Flat(), 0.25, 0.5)),
    ("lrp_composite", {"first": "w_square", "start": "one"}, presets.lrp_composite(WSquare(), start="one")),
    ("lrp_composite", {"first": "none"}, presets.lrp_composite(None)),
    ("attn_lrp", {}, presets.attn_lrp(0.25, 0.05)),
    ("attn_lrp", {"gamma_conv": 1.0}, presets.attn_lrp(1.0, 0.05)),
    ("attn_lrp", {"gamma_linear": 0}, presets.attn_lrp(0.25, 0)),
    ("cp_lrp", {}, presets.cp_lrp(0.25, 0.05)),
    ("cp_lrp", {"gamma_conv": 0, "gamma_linear": 1.0}, presets.cp_lrp(0, 1.0)),
    ("lrp", {}, composite()),
    ("lrp", {"preset": presets.lrp_zplus()}, presets.lrp_zplus()),
    ("lrp", {"preset": presets.lrp_zplus(), "start": "logit"}, presets.lrp_zplus("logit")),
]


def test_options_of_an_explainer_are_those_of_its_preset() -> None:
    """On a transformer with biases as after training."""
    model = TinyViT(image=16, width=24, depth=1).double().eval()
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 3 - 1
    for part in model.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.normal_(part.bias, std=0.2)
    for method, options, preset in AS_PRESETS:
        found = hp.explain(model, images, [1, 1], method=method, **options)
        torch.testing.assert_close(found, through_the_engine(model, images, preset).float(), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lrp_gamma", {"gamma": 1.0}),
        ("lrp_alpha_beta", {"bias": "ignore"}),
        ("lrp_zplus", {"bias": "ignore"}),
        ("lrp_composite", {"gamma": 1.0}),
        ("lrp_composite", {"epsilon": 0.5}),
        ("lrp_composite", {"first": "flat"}),
        ("lrp_composite", {"first": "w_square"}),
        ("lrp_composite", {"first": "none"}),
        ("lrp_composite", {"low": -4.0}),
        ("lrp_composite", {"high": 5.0}),
        ("attn_lrp", {"gamma_conv": 1.0}),
        ("attn_lrp", {"gamma_linear": 1.0}),
        ("cp_lrp", {"gamma_conv": 1.0}),
        ("cp_lrp", {"gamma_linear": 1.0}),
    ],
)
def test_an_option_changes_the_map(classifier: hp.Classifier, method: str, options: dict[str, Any]) -> None:
    nn.init.uniform_(classifier.module.head.bias, 0.5, 1)
    images = torch.rand(2, 3, 16, 16) * 2.4 - 0.6
    plain = hp.explain(classifier, images, [0, 1], method=method)
    changed = hp.explain(classifier, images, [0, 1], method=method, **options)
    assert (changed - plain).abs().max() > 1e-3 * plain.abs().max()


def test_chefers_full_propagation_is_the_authors(shared: Path) -> None:
    stored = reference(shared)
    maps = hp.explain(tiny_vit(stored), stored["x"], stored["t"], method="chefer")
    assert worst_share(maps, stored["full"]) < 1e-4


def test_chefers_box_is_each_images_own() -> None:
    """A brighter image in the batch changes nothing; nor does a pixel between the limits, for the others' limits."""
    model, images = TinyViT(depth=1).double().eval(), torch.rand(2, 3, 32, 32, dtype=torch.float64)
    passed = run(model, images[:1], presets.chefer(images[:1].min(), images[:1].max()))
    expected = passed.relevance(passed.logits[:, 1]).sum(1).float()
    images[1] *= 30
    torch.testing.assert_close(hp.explain(model, images, [1, 1], method="chefer")[:1], expected)


RULES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"dense": "z"}, {"dense": Zero()}),
    ({"dense": {"rule": "epsilon", "epsilon": 0.5}}, {"dense": Epsilon(0.5)}),
    ({"conv": {"rule": "epsilon", "relative": True}}, {"conv": Epsilon(0.25, relative=True)}),
    ({"conv": "gamma", "sums": "gamma"}, {"conv": Gamma(0.25), "sums": Gamma(0.25)}),
    ({"conv": {"rule": "gamma", "gamma": 1}, "norm": "z"}, {"conv": Gamma(1), "norm": Zero()}),
    ({"last": "alpha_beta"}, {"last": AlphaBeta(2, 1)}),
    ({"conv": {"rule": "alpha_beta", "alpha": 3, "beta": 2, "bias": "ignore"}}, {"conv": AlphaBeta(3, 2, bias=False)}),
    ({"conv": "z_plus", "first": "flat"}, {"conv": z_plus(), "first": Flat()}),
    ({"conv": {"rule": "z_plus", "bias": "ignore"}}, {"conv": z_plus(bias=False)}),
    ({"first": "w_square"}, {"first": WSquare()}),
    ({"first": {"rule": "z_box", "low": -1, "high": [2, 2, 2.0]}}, {"first": ZBox(LOW, HIGH)}),
    ({"conv?": "z_plus", "conv2": "gamma"}, {"modules": {"conv?": z_plus()}}),
    ({"*": {"rule": "gamma", "gamma": 2}, "conv": "flat"}, None),
    (
        {"conv1": "flat", "head": {"rule": "epsilon", "epsilon": 1}},
        {"modules": {"conv1": Flat(), "head": Epsilon(1.0)}},
    ),
]


def test_rules_as_plain_data_make_the_composite_that_they_name() -> None:
    model, images = TinyCNN().double().eval(), torch.rand(2, 3, 8, 8, dtype=torch.float64) * 3 - 1
    maps = []
    for rules, parts in RULES:
        if parts is None:
            with pytest.raises(InputError, match="Flat is a rule of first layers"):
                hp.explain(model, images, [1, 1], method="lrp", rules=rules)
            continue
        for start in ("logit", "one"):
            found = hp.explain(model, images, [1, 1], method="lrp", rules=rules, start=start)
            preset = composite(**parts, start=start)
            torch.testing.assert_close(found, through_the_engine(model, images, preset).float(), rtol=1e-4, atol=1e-9)
        maps.append(found)
    assert all(
        (maps[i] - maps[j]).abs().max() > 1e-4 * maps[j].abs().max()
        for j in range(len(maps))
        for i in range(j)
        if (i, j) != (0, 1)
    )


def test_the_box_of_rules_as_plain_data_is_that_of_the_raw_intensities(classifier: hp.Classifier) -> None:
    images = torch.rand(2, 3, 16, 16) * 3 - 1.5
    box = {"low": [-2.0, -2.0, -0.6], "high": [2.0, 3.0, 1.4]}
    for method, default, given in (
        ("lrp", {"rules": {"first": "z_box"}}, {"rules": {"first": {"rule": "z_box", **box}}}),
        ("lrp_composite", {}, box),
    ):
        expected = hp.explain(classifier, images, [0, 1], method=method, **default)
        torch.testing.assert_close(hp.explain(classifier.module, images, [0, 1], method=method, **given), expected)
    with pytest.raises(InputError, match="z-box rule needs .*normalisation is unknown"):
        hp.explain(classifier.module, images, method="lrp", rules={"first": "z_box"})


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lrp", {"rules": {"conv": "gama"}}, "Unknown rule 'gama' of 'conv'. Did you mean 'gamma'.*alpha_beta, epsilon"),
        ("lrp", {"rules": {"conv": {"rule": "gamma", "gama": 1}}}, "gamma of 'conv' has no option 'gama'. Did you mean"),
        ("lrp", {"rules": {"first": {"rule": "flat", "gamma": 1}}}, "flat of 'first' has no option 'gamma'"),
        ("lrp", {"rules": {"conv": {"gamma": 1}}}, "rule of 'conv' must be a name or a mapping such as {rule: gamma}"),
        ("lrp", {"rules": {"conv": 0.25}}, "rule of 'conv' must be a name or a mapping .*got 0.25"),
        ("lrp", {"rules": {"conv": {"rule": "gamma", "gamma": -1}}}, "gamma must be a number, at least 0, got -1"),
        ("lrp", {"rules": {"conv": {"rule": "alpha_beta", "alpha": 3}}}, "alpha - beta must be 1, got alpha=3"),
        ("lrp", {"rules": {"conv": {"rule": "z_plus", "bias": False}}}, "bias must be 'absorb' or 'ignore', got False"),
        ("lrp", {"rules": {"dens": "z"}}, "rule for 'dens', which is no kind.*Did you mean 'dense'"),
        ("lrp", {"rules": {"cnv1": "z"}}, "rule for 'cnv1', .*matches no module .*Did you mean 'conv1'"),
        ("lrp", {"rules": {"bn1": "z"}}, "rule for 'bn1', .*matches no module with a dense layer or convolution"),
        ("lrp", {"rules": "gamma"}, "rules must map dense, conv, .* to rules, got 'gamma'"),
        ("lrp", {"preset": "gamma"}, "preset must be a heatproof.relevance.Preset, got 'gamma'"),
        ("lrp", {"preset": presets.lrp_z(), "rules": {"conv": "z"}}, "rules or a preset, got both"),
        ("lrp_composite", {"first": "zbox"}, "first must be 'z_box' or 'w_square' or 'flat' or 'none', got 'zbox'"),
        ("lrp_composite", {"first": "flat", "low": 0.0}, "limits of first='z_box', got first='flat'"),
        ("lrp_composite", {"low": 1.0, "high": 0.0}, "low must lie below high"),
        ("lrp_composite", {"gamma": -1}, "gamma must be a number, at least 0, got -1"),
        ("lrp_composite", {"epsilon": "small"}, "epsilon must be a number, at least 0, got 'small'"),
        ("lrp_epsilon", {"epsilon": -1e-3}, "epsilon must be a number, at least 0, got -0.001"),
        ("lrp_gamma", {"gamma": "large"}, "gamma must be a number, at least 0, got 'large'"),
        ("attn_lrp", {"gamma_conv": -0.1}, "gamma must be a number, at least 0, got -0.1"),
        ("cp_lrp", {"gamma_linear": -0.1}, "gamma must be a number, at least 0, got -0.1"),
        ("lrp_zplus", {"bias": "none"}, "bias must be 'absorb' or 'ignore', got 'none'"),
        ("lrp_alpha_beta", {"bias": True}, "bias must be 'absorb' or 'ignore', got True"),
    ],
)  # fmt: skip
def test_bad_options(classifier: hp.Classifier, method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        hp.explain(classifier, torch.rand(1, 3, 16, 16), method=method, **options)


def test_a_rule_of_first_layers_at_another_module_is_an_error(classifier: hp.Classifier) -> None:
    with pytest.raises(
        UnsupportedOperationError, match="gives Flat to the module 'conv2', which does not see the image"
    ):
        hp.explain(classifier, torch.rand(1, 3, 16, 16), method="lrp", rules={"conv2": "flat"})
