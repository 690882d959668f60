"""The relevance family at the front door: options, starts and what a model must have."""

from typing import Any

import pytest
import torch
from torch import nn

import heatproof as hp
from heatproof.errors import InputError
from support.nets import TinyCNN

FROM_ONE = ["lrp_alpha_beta", "lrp_zplus", "deep_taylor"]


@pytest.fixture
def classifier() -> hp.Classifier:
    return hp.Classifier(TinyCNN().eval(), image_size=16, mean=[0.5, 0.4, 0.3], std=[0.25, 0.2, 0.5])


@pytest.mark.parametrize("method", ["lrp_z", "lrp_epsilon", *FROM_ONE])
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
