"""What every faithfulness metric makes of maps and numbers that make no sense, at the front door."""

import pytest
import torch

import heatproof as hp
from heatproof.errors import InputError
from heatproof.metrics import METRICS
from heatproof.models import Classifier
from support.cases import Wavy

MASKING = [name for name, entry in METRICS.items() if entry.category == "faithfulness"]
SMALL = {"window": 2, "runs": 5, "samples": 5, "subset_size": 9, "segments": 16, "radius": 1.4}
AS_MANY_AS_ONE_LIKES = ("runs", "samples")
COUNTS = [(name, option, number) for name in MASKING for option in METRICS[name].options
          if option in ("step", "window", "regions", "subset_size", "segments", *AS_MANY_AS_ONE_LIKES)
          for number in (0, -1, 2.0, True, 10_000) if number < 10_000 or option not in AS_MANY_AS_ONE_LIKES]  # fmt: skip


def value(name, maps, images=None, **options):
    images = torch.randn(len(maps), 1, 8, 8) if images is None else images
    clf = Classifier(Wavy().eval(), channels=1, mean=[0.4], std=[0.2])
    fitting = {option: number for option, number in SMALL.items() if option in METRICS[name].options}
    targets = torch.zeros(len(maps), dtype=torch.long)
    return hp.score(clf, images, maps, metric=name, targets=targets, batch_size=32, **(fitting | options))


@pytest.mark.parametrize("name", MASKING)
def test_maps_that_rank_nothing_are_nan_also_where_no_map_ranks(name):
    maps = torch.stack([torch.full((8, 8), 0.3), torch.zeros(8, 8), torch.full((8, 8), torch.nan)])
    assert value(name, maps).isnan().all()


@pytest.mark.parametrize("name", MASKING)
def test_a_map_of_negative_values_has_a_score(name):
    images, maps = torch.randn(6, 1, 8, 8), -torch.rand(6, 8, 8) - 0.1
    found = value(name, maps, images)
    assert found.isfinite().all()
    if "absolute" in METRICS[name].options:
        assert torch.allclose(value(name, maps, images, absolute=True), value(name, -maps, images), atol=1e-6)


@pytest.mark.parametrize("name", MASKING)
def test_a_map_of_another_size_is_refused(name):
    with pytest.raises(InputError, match=r"maps \[2, 4, 4\] do not fit images \[2, 1, 8, 8\]"):
        value(name, torch.rand(2, 4, 4), torch.randn(2, 1, 8, 8))


@pytest.mark.parametrize(("name", "option", "number"), COUNTS)
def test_a_number_that_cannot_be_is_refused(name, option, number):
    with pytest.raises(InputError, match=f"{option} must be a whole number"):
        value(name, torch.rand(2, 8, 8), **{option: number})


@pytest.mark.parametrize("name", [name for name in MASKING if "baseline" in METRICS[name].options])
@pytest.mark.parametrize("baseline", ["blcak", [0.0], None, torch.zeros(3, 5)])
def test_a_baseline_that_is_none_is_refused(name, baseline):
    with pytest.raises(InputError, match="baseline"):
        value(name, torch.rand(2, 8, 8), baseline=baseline)


@pytest.mark.parametrize("name", [name for name in MASKING if "output" in METRICS[name].options])
def test_an_unknown_output_is_refused(name):
    with pytest.raises(InputError, match="output must be 'probability' or 'logit', got 'class'"):
        value(name, torch.rand(2, 8, 8), output="class")
