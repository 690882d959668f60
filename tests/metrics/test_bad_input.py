"""What every metric makes of maps, models and numbers that make no sense, at the front door."""

import math

import pytest
import torch

import heatproof as hp
from heatproof.errors import InputError
from heatproof.metrics import METRICS
from heatproof.probing import precision
from support.battery import Layered, Small, inputs, run, same

COUNTED = ("step", "window", "regions", "subset_size", "segments", "k", "runs", "samples", "bins", "steps")
AS_MANY_AS_ONE_LIKES = ("runs", "samples", "bins", "steps")
NUMBERS = ("radius", "tolerance", "noise", "top", "coverage", "shift")
GRIDS = ("grid", "tokens")
CHOICES = ("units", "denominator", "output", "similarity", "order", "ties", "empty", "shape", "threshold", "distance",
           "segmentation")  # fmt: skip
BESIDE = {"coverage": {"tokens": (4, 4)}, "noise": {"window": None}}  # what an option means something with
MASS = ("relevance_mass_accuracy", "attribution_localization")  # whose share of nothing is undefined


def with_options(*options):
    return [(name, option) for name, entry in METRICS.items() for option in options if option in entry.options]


def two(name, maps=None, images=None, **options):
    """The scores of two samples."""
    given = [values[:2] for values in inputs()]
    return run(name, given[0] if images is None else images, given[1] if maps is None else maps, given[2], **options)


@pytest.mark.parametrize("name", METRICS)
def test_maps_that_rank_nothing_are_nan_also_where_no_map_ranks(name):
    images, _, roi = (values[:3] for values in inputs())
    maps = torch.stack([torch.full((8, 8), 0.3), torch.zeros(8, 8), torch.full((8, 8), torch.nan)])
    assert run(name, images, maps, roi).isnan().all()


@pytest.mark.parametrize("name", METRICS)
def test_a_map_of_negative_values_has_a_score(name):
    images, maps, roi = inputs()
    maps = -maps.abs() - 0.1
    found = run(name, images, maps, roi)
    assert found.isnan().all() if name in MASS else found.isfinite().all()
    if "absolute" in METRICS[name].options and "explain" not in METRICS[name].needs:
        assert torch.allclose(run(name, images, maps, roi, absolute=True), run(name, images, -maps, roi), atol=1e-5)


@pytest.mark.parametrize("name", [name for name, entry in METRICS.items() if "explain" in entry.needs])
@pytest.mark.parametrize("value", [0.0, 0.7, math.nan, math.inf, -math.inf])
def test_explanations_that_rank_nothing_give_no_infinite_score(name, value):
    def explained(images, targets, model=None):
        maps = torch.rand_like(images[:, 0])
        maps[::2] = value
        return maps

    images, maps, roi = inputs()
    found = run(name, images, maps, roi, explain=explained)
    assert not found.isinf().any()
    all_bad = run(name, images, maps, roi, explain=lambda x, t, model=None: torch.full_like(x[:, 0], value))
    assert not all_bad.isinf().any()
    if not math.isfinite(value):
        assert all_bad.isnan().all()


@pytest.mark.parametrize("name", [name for name, entry in METRICS.items() if "explain" in entry.needs])
def test_explanations_of_another_size_are_refused(name):
    with pytest.raises(InputError, match=r"explain= must give maps \[\d+, 8, 8\] for images .* got \[\d+, 4, 4\]"):
        two(name, explain=lambda x, t, model=None: x[:, 0, :4, :4])
    with pytest.raises(InputError, match=r"explain= must give a tensor of maps \[n, H, W\], got ndarray"):
        two(name, explain=lambda x, t, model=None: x[:, 0].numpy())


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("size", [(4, 4), (8, 7), (16, 16)])
def test_a_map_of_another_size_is_refused(name, size):
    with pytest.raises(InputError, match=rf"maps \[2, {size[0]}, {size[1]}\] do not fit images \[2, 1, 8, 8\]"):
        two(name, torch.rand(2, *size))


@pytest.mark.parametrize("name", [name for name, entry in METRICS.items() if "tokens" in entry.options])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (16, 16)])
def test_a_map_on_any_grid_of_its_own_has_a_score(name, size):
    found = two(name, torch.rand(2, *size), tokens=True)
    assert found.isnan().all() if size == (1, 1) else found.isfinite().all()


@pytest.mark.parametrize(("name", "option"), with_options(*COUNTED))
def test_a_count_that_cannot_be_is_refused(name, option):
    for number in (0, -1, 2.0, True, "2", *([] if option in AS_MANY_AS_ONE_LIKES else [10_000])):
        with pytest.raises(InputError, match=f"{option} must be a whole number"):
            two(name, **{option: number})


@pytest.mark.parametrize(("name", "option"), with_options(*NUMBERS))
def test_a_number_that_cannot_be_is_refused(name, option):
    beside = {other: value for other, value in BESIDE.get(option, {}).items() if other in METRICS[name].options}
    too_small, too_large = [] if option == "shift" else [-0.1], [200] if option in ("top", "coverage") else []
    for number in ("2", True, math.nan, *too_small, *too_large):
        with pytest.raises(InputError, match=f"{option} must be a number"):
            two(name, **beside, **{option: number})


@pytest.mark.parametrize(("name", "option"), with_options(*GRIDS))
def test_a_grid_that_cannot_be_is_refused(name, option):
    for grid in ((0, 4), (4, 9), (2.0, 2), (2, 2, 2), "44", 4):
        with pytest.raises(InputError, match=f"{option} must be"):
            two(name, **{option: grid})


@pytest.mark.parametrize(("name", "option"), with_options(*CHOICES))
def test_an_unknown_choice_is_refused(name, option):
    for choice in ("nonsense", ["logit"]):
        with pytest.raises(InputError, match=f"{option} must be"):
            two(name, **{option: choice})


@pytest.mark.parametrize(("name", "option"), with_options("baseline"))
@pytest.mark.parametrize("baseline", ["blcak", [0.0], None, torch.zeros(3, 5)])
def test_a_baseline_that_is_none_is_refused(name, option, baseline):
    with pytest.raises(InputError, match=option):
        two(name, baseline=baseline)


@pytest.mark.parametrize("name", METRICS)
def test_what_a_model_of_unknown_normalisation_cannot_give_is_refused_and_the_rest_is_not(name):
    wants_raw = {"black", "raw"} & {value for value in METRICS[name].options.values() if isinstance(value, str)}
    if wants_raw:
        with pytest.raises(InputError, match='baseline=0.0, units="normalized"'):
            two(name, model=Layered().eval())
    advised = {"baseline": 0.0, "units": "normalized"}
    given = {option: value for option, value in advised.items() if option in METRICS[name].options}
    assert two(name, model=Layered().eval(), **given).isfinite().any() or "cohort" in METRICS[name].needs


@pytest.mark.parametrize("name", METRICS)
def test_bf16_without_the_hardware_is_refused(name, monkeypatch):
    monkeypatch.setattr(precision, "bf16_supported", lambda device: False)
    with pytest.raises(InputError, match=r"bf16.*this cpu does not have. Use 'fp32'"):
        two(name, precision="bf16")


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("most", [1, 3])
def test_out_of_memory_halves_and_goes_on(name, most):
    """In the model's own passes, and where a method explains."""
    net, (images, maps, roi) = Layered().eval(), inputs()
    small = Small(net, most).eval()
    given = {"batch_size": 8, "targets": None}
    if "explain" in METRICS[name].needs:
        given["explain"] = "saliency"
    found = [
        run(name, images, maps, roi, model=hp.Classifier(module, channels=1, mean=[0.4], std=[0.3]), **given)
        for module in (small, Small(net, 10**6).eval())
    ]
    assert same(*found)
    assert (small.refused > 0) == ("model" in METRICS[name].needs)


def test_out_of_memory_in_a_callable_halves_and_goes_on():
    images, maps, _ = inputs()
    small = Small(Layered(), 3).eval()

    def gradient(x, targets):
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(small(leaf).gather(1, targets[:, None]).sum(), leaf)[0].sum(1)

    found = [run("avg_sensitivity", images, maps, explain=gradient, batch_size=size) for size in (8, 1)]
    assert small.refused > 0
    assert same(*found)
