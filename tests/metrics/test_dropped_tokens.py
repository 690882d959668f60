"""Masking metrics under `drop`: they rank and take out tokens, against a vision transformer run by hand on those left."""

import itertools

import numpy as np
import pytest
import torch

import heatproof as hp
from heatproof.errors import InputError, UnsupportedModelError
from heatproof.metrics import METRICS
from heatproof.models import Classifier
from heatproof.probing import SampleRandom
from heatproof.study.loading import parse_recipe
from heatproof.study.trial import try_metrics
from support.cases import PixelSum, make_case, slow_pearson
from support.nets import TinyViT
from support.studies import recipe

TOKENS = 16  # 4 × 4 patches of 8 pixels
COUNT = 3
DROP = {"baseline": "drop"}


@pytest.fixture
def net():
    return TinyViT(classes=3).eval()


@pytest.fixture
def case(net):
    images, maps = torch.randn(COUNT, 3, 32, 32), torch.randn(COUNT, 32, 32)
    return make_case(net, images, maps, torch.tensor([0, 2, 1]))


@torch.no_grad()
def left_with(net, case, row, kept):
    """The target's probability of one image with the tokens `kept` alone."""
    x = net.patch_embed["proj"](case.images[row : row + 1]).flatten(2).transpose(1, 2) + net.pos_embed[:, 1:]
    x = torch.cat([net.cls_token + net.pos_embed[:, :1], x[:, sorted(kept)]], 1)
    for block in net.blocks:
        x = block(x)
    return net.head(net.norm(x)[:, 0]).softmax(1)[0, case.targets[row]].item()


def token_values(case, row, absolute=False):
    found = case.maps[row].double().reshape(4, 8, 4, 8).mean((1, 3)).flatten().numpy()
    return np.abs(found) if absolute else found


def curve(net, case, row, step, order):
    """The output without the first 0, step, 2 step, ... tokens of `order`."""
    counts = [*range(0, TOKENS, step), TOKENS]
    return [left_with(net, case, row, order[count:]) for count in counts]


@pytest.mark.parametrize("step", [1, 3, None])
@pytest.mark.parametrize("name", ["deletion", "lerf", "insertion", "srg", "monotonicity_arya"])
def test_curves(net, case, name, step):
    found = (METRICS[name].curve or METRICS[name].function)(case, step=step, **DROP)
    for row in range(COUNT):
        down = np.argsort(-token_values(case, row)).tolist()
        falling, rising = curve(net, case, row, step or 4, down), curve(net, case, row, step or 4, down[::-1])
        if name == "monotonicity_arya":
            order = np.argsort(-token_values(case, row, absolute=True)).tolist()
            expected = np.mean(np.diff(curve(net, case, row, step or 4, order)) <= 0)
            assert found[row].item() == pytest.approx(expected)
            continue
        put_back = [left_with(net, case, row, down[:count]) for count in [*range(0, TOKENS, step or 4), TOKENS]]
        expected = {"deletion": falling, "lerf": rising, "insertion": put_back,
                    "srg": np.subtract(rising, falling)}[name]  # fmt: skip
        assert found.y[row].tolist() == pytest.approx(expected, abs=1e-5)
    if name != "monotonicity_arya":
        assert found.x.tolist() == pytest.approx([c / TOKENS for c in [*range(0, TOKENS, step or 4), TOKENS]])


def test_road_takes_tenths_of_the_tokens(net, case):
    found = METRICS["road"].curve(case, **DROP)
    for row in range(COUNT):
        order = np.argsort(-token_values(case, row)).tolist()
        expected = [left_with(net, case, row, order[16 * q // 100 :]) for q in range(10, 100, 10)]
        assert found.y[row].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("absolute", [False, True])
def test_estimate(net, case, absolute):
    found = METRICS["faithfulness_estimate"].function(case, absolute=absolute, **DROP)
    for row in range(COUNT):
        values = token_values(case, row, absolute)
        order = np.argsort(-values)
        chunks = [order[start : start + 4].tolist() for start in range(0, TOKENS, 4)]
        whole = left_with(net, case, row, range(TOKENS))
        drops = [whole - left_with(net, case, row, set(range(TOKENS)) - set(chunk)) for chunk in chunks]
        assert found[row].item() == pytest.approx(slow_pearson([values[c].sum() for c in chunks], drops), abs=1e-4)


@pytest.mark.parametrize(("subset_size", "expected_size"), [(None, 4), (6, 6)])
def test_correlation_over_random_tokens(net, case, subset_size, expected_size):
    found = METRICS["faithfulness_correlation"].function(case, subset_size=subset_size, runs=9, **DROP)
    for row in range(COUNT):
        values, random = token_values(case, row), SampleRandom(0, [str(row)])
        sets = [random.subset(expected_size, 16, purpose=f"subset {k}")[0].tolist() for k in range(9)]
        whole = left_with(net, case, row, range(TOKENS))
        drops = [whole - left_with(net, case, row, set(range(TOKENS)) - set(chosen)) for chosen in sets]
        assert found[row].item() == pytest.approx(slow_pearson([values[s].sum() for s in sets], drops), abs=1e-4)


@pytest.mark.parametrize(("options", "regions"), [
    ({}, [[t] for t in range(16)]),
    ({"window": 2}, [[8 * i + 2 * j + k for k in (0, 1, 4, 5)] for i in range(2) for j in range(2)]),
])  # fmt: skip
def test_windows_of_tokens(net, case, options, regions):
    left, lost = (METRICS[name].curve(case, **options, **DROP) for name in ("selectivity", "region_perturbation"))
    for row in range(COUNT):
        values = token_values(case, row)
        ranked = sorted(regions, key=lambda region: -values[region].sum())
        gone = [set(itertools.chain(*ranked[:k])) for k in range(len(regions) + 1)]
        expected = [left_with(net, case, row, set(range(TOKENS)) - tokens) for tokens in gone]
        assert left.y[row].tolist() == pytest.approx(expected, abs=1e-5)
        assert lost.y[row].tolist() == pytest.approx([expected[0] - value for value in expected], abs=1e-5)


@pytest.mark.parametrize("options", [{"segmentation": "patches"}, {"segmentation": "grid", "segments": 16}])
def test_irof_of_tokens(net, case, options):
    found = METRICS["irof"].function(case, **options, **DROP)
    for row in range(COUNT):
        order = np.argsort(-token_values(case, row)).tolist()
        outputs = curve(net, case, row, 1, order)
        assert found[row].item() == pytest.approx(1 - np.mean(outputs[1:]) / outputs[0], abs=1e-5)
    with pytest.raises(InputError, match="segments made of whole tokens"):
        METRICS["irof"].function(case, **DROP)


def test_irof_of_patches_that_are_painted_over(net, case):
    patches = METRICS["irof"].function(case, segmentation="patches", baseline=0.0)
    assert torch.equal(patches, METRICS["irof"].function(case, segmentation="grid", segments=16, baseline=0.0))


def test_infidelity_of_squares_of_tokens(net, case):
    found = METRICS["infidelity"].function(case, samples=6, window=2, contributions=True, scale=False, **DROP)
    for row in range(COUNT):
        values, random = token_values(case, row), SampleRandom(0, [str(row)])
        errors = []
        for k in range(6):
            i, j = (random.uniform(2, purpose=f"square {k}")[0] * 3).long().tolist()
            square = [4 * (i + di) + j + dj for di in (0, 1) for dj in (0, 1)]
            drop = left_with(net, case, row, range(TOKENS)) - left_with(
                net, case, row, set(range(TOKENS)) - set(square)
            )
            errors.append((values[square].sum() - drop) ** 2)
        assert found[row].item() == pytest.approx(np.mean(errors), abs=1e-5)
    with pytest.raises(InputError, match="contributions=True"):
        METRICS["infidelity"].function(case, **DROP)


def test_sizes_of_sets_of_tokens(case):
    found = METRICS["sensitivity_n"].curve(case, runs=5, **DROP)
    assert (found.x * 16).tolist() == pytest.approx([1, 2, 3, 4, 5, 7, 9, 12])  # up to 80 % of 16
    assert found.y.isfinite().all()


MASKING = [name for name, entry in METRICS.items() if "baseline" in entry.options and entry.category == "faithfulness"]
GIVEN = {"irof": {"segmentation": "patches"}, "infidelity": {"contributions": True}, "sensitivity_n": {"runs": 5},
         "faithfulness_correlation": {"runs": 5}}  # fmt: skip


@pytest.mark.parametrize("name", MASKING)
def test_scores_do_not_depend_on_the_batch_and_what_ranks_no_tokens_has_none(net, case, name):
    clf = Classifier(net, image_size=32)
    maps = case.maps.clone()
    stripes = torch.tensor([1.0, -1.0]).repeat(16)  # which every token averages out
    maps[1] = stripes
    given = {"metric": name, "keys": list("abc"), **GIVEN.get(name, {}), **DROP}
    found = hp.score(clf, case.images, maps, targets=case.targets, **given)
    assert found.isnan().tolist() == [False, True, False]
    for row in (0, 2):
        one = slice(row, row + 1)
        alone = hp.score(clf, case.images[one], maps[one], targets=case.targets[one], batch_size=3,
                         **{**given, "keys": ["abc"[row]]})  # fmt: skip
        assert torch.allclose(alone, found[one], atol=1e-4)


@pytest.mark.parametrize("name", MASKING)
def test_a_model_without_tokens_is_named(name):
    case = make_case(PixelSum(torch.randn(3, 1, 8, 8)), torch.randn(2, 1, 8, 8), torch.rand(2, 8, 8))
    with pytest.raises(UnsupportedModelError, match="patches of a vision transformer"):
        METRICS[name].function(case, **GIVEN.get(name, {}), **DROP)


def test_a_step_counts_tokens(case):
    with pytest.raises(InputError, match="step must be a whole number, from 1 to 16, got 17"):
        METRICS["deletion"].function(case, step=17, **DROP)
    with pytest.raises(InputError, match="subset_size must be a whole number, from 1 to 16, got 17"):
        METRICS["faithfulness_correlation"].function(case, subset_size=17, **DROP)


def test_a_study_tries_them_on_a_stand_in_that_has_no_tokens(net, tmp_path):
    wanted = [{"metric": name, **GIVEN.get(name, {}), **DROP} for name in MASKING]
    clf = Classifier(net, ["a", "b", "c"], image_size=32, mean=[0.5] * 3, std=[0.5] * 3)
    try_metrics(parse_recipe(recipe(tmp_path, metrics=wanted)), clf)
