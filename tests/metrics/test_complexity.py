import math

import pytest
import torch

from heatproof.errors import InputError
from heatproof.metrics.complexity import complexity, effective_complexity, sparseness
from support.cases import localization_case, slow_gini


def scores(maps):
    return sparseness(localization_case(maps, torch.ones(maps.shape, dtype=torch.bool)))


def test_one_pixel_of_many_has_it_all():
    maps = torch.zeros(1, 4, 5)
    maps[0, 2, 3] = -7.0
    assert scores(maps).item() == pytest.approx(1 - 1 / 20)


def test_agreement_with_the_mean_absolute_difference_of_all_pairs():
    maps = torch.randn(4, 9, 7)
    maps[1] = maps[1].exp()
    assert scores(maps).tolist() == pytest.approx([slow_gini(m) for m in maps.numpy()], abs=1e-12)


def test_it_knows_neither_sign_nor_scale():
    maps = torch.randn(3, 6, 6)
    assert torch.allclose(scores(maps), scores(-maps.abs() * 1e-20))


def test_equal_magnitudes_are_not_sparse_and_a_constant_map_is_undefined():
    checks = (torch.arange(16).view(1, 4, 4) % 2).float() * 2 - 1
    assert scores(checks).item() == pytest.approx(0)
    assert scores(torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])).isnan().all()


def case_of(maps):
    return localization_case(maps, torch.ones(maps.shape, dtype=torch.bool))


def slow_entropy(values):
    shares = [abs(v) / sum(abs(w) for w in values) for v in values]
    return -sum(p * math.log(p) for p in shares if p > 0)


def test_complexity_is_the_entropy_of_the_shares():
    maps = torch.randn(4, 5, 7)
    maps[1] = maps[1].exp()
    maps[2, :2] = 0.0
    maps[3] = -maps[3].abs() * 1e-30
    expected = [slow_entropy(m.double().flatten().tolist()) for m in maps]
    assert complexity(case_of(maps)).tolist() == pytest.approx(expected, abs=1e-12)
    shares = complexity(case_of(maps), normalized=True).tolist()
    assert shares == pytest.approx([value / math.log(35) for value in expected], abs=1e-12)


def test_complexity_from_one_pixel_to_all():
    one = torch.zeros(1, 4, 4)
    one[0, 1, 2] = -3.0
    assert complexity(case_of(one)).item() == 0
    checks = (torch.arange(16).view(1, 4, 4) % 2).float() * 2 - 1
    assert complexity(case_of(checks)).item() == pytest.approx(math.log(16))
    assert complexity(case_of(checks), normalized=True).item() == pytest.approx(1)
    assert complexity(case_of(checks.abs())).isnan().all(), "a constant map"


def test_effective_complexity_counts_what_exceeds_a_share_of_the_largest():
    maps = torch.zeros(2, 3, 4)
    maps[0].view(-1)[:5] = torch.tensor([-2.0, 1.0, 3e-5, 1e-5, -1e-6])  # shares 1, 0.5, 1.5e-5, 0.5e-5, ...
    maps[1] = -1e-20 * maps[0]
    assert effective_complexity(case_of(maps)).tolist() == [3, 3]
    assert effective_complexity(case_of(maps), tolerance=0.1).tolist() == [2, 2]
    assert effective_complexity(case_of(maps), tolerance=0).tolist() == [5, 5]
    assert effective_complexity(case_of(maps), tolerance=1).tolist() == [0, 0]


@pytest.mark.parametrize("function", [sparseness, complexity, effective_complexity])
def test_undefined_maps(function):
    maps = torch.rand(4, 4, 4)
    maps[0], maps[1], maps[2] = 0.0, torch.nan, -maps[2]
    assert function(case_of(maps)).isnan().tolist() == [True, True, False, False]


def test_a_tolerance_is_a_share():
    with pytest.raises(InputError, match="tolerance must be a number, from 0 to 1, got 1.5"):
        effective_complexity(case_of(torch.rand(1, 4, 4)), tolerance=1.5)
