import pytest
import torch

from heatproof.metrics.complexity import sparseness
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
