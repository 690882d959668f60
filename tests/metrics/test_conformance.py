"""What every registered metric must do, whatever it measures. A new metric needs no new test here."""

import multiprocessing
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch

import heatproof as hp
from heatproof import score
from heatproof.errors import InputError
from heatproof.metrics import METRICS
from heatproof.probing import SampleRandom, bf16_supported
from support.battery import COUNT, FITTING, inputs, model, run, same, score_rows, score_rows_by_all

EVERY = list(range(COUNT))

# For each option some values that must make a difference to some score below.
ALTERNATIVES = {
    "step": [5],
    "baseline": ["black", "mean", "min", "noise", "blur", 0.7],
    "output": ["logit"],
    "absolute": [True],
    "samples": [3],
    "radius": [0.3],
    "units": ["normalized"],
    "denominator": ["input"],
    "same_prediction": [True],
    "tolerance": [2],
    "ties": ["any"],
    "empty": ["zero"],
    "top": [5, 40],
    "shape": ["rectangle"],
    "threshold": ["otsu", 0.5],
    "fill": [True],
    "weighted": [True],
    "k": [25],
    "subset_size": [5],
    "runs": [8],
    "tokens": [(4, 4), (3, 5)],
    "coverage": [0.5],
    "window": [3],
    "regions": [4],
    ("region_perturbation", "order"): ["lerf", "random"],
    "segments": [9],
    "segmentation": ["grid"],
    "noise": [0.3],
    "contributions": [True],
    "scale": [False],
    "distance": ["standardized"],
    "steps": [5],
    "grid": [(2, 2)],
    ("consistency", "k"): [2],
    "order": ["bottom_up"],
    "similarity": ["ssim"],
    "bins": [10],
    "layer": ["1"],
    "normalized": [True],
    ("effective_complexity", "tolerance"): [0.5],
    ("non_sensitivity", "tolerance"): [0.05],
    "shift": [0.5],
}
ONLY_WITH = {"coverage": {"tokens": (4, 4)}}  # options that mean something beside another one only
OF_MODELS = {"model_parameter_randomization", "efficient_mprt"}  # what they draw is the same for every sample
# Where rounding may change nothing.
OF_ORDER = {"sufficiency", "consistency", "non_sensitivity", "monotonicity_arya", "monotonicity_correlation"}
# Metrics that compare the maps of a cohort, so that one which ranks nothing is one less.
OF_MAPS = {"sufficiency", "consistency"}
CATEGORIES = {"faithfulness", "robustness", "localization", "complexity", "randomization", "axiomatic"}
OPTIONS = [(name, option, value) for name, entry in METRICS.items() for option, default in entry.options.items()
           for value in ALTERNATIVES.get((name, option)) or ALTERNATIVES[option] if value != default]  # fmt: skip


@pytest.mark.parametrize("name", METRICS)
def test_a_score_does_not_depend_on_the_batch(name):
    images, maps, roi = inputs()
    targets = torch.arange(COUNT) % 3
    full = run(name, images, maps, roi)
    assert full.dtype == torch.float32
    assert full.shape == (COUNT,)
    assert full.isfinite().all()
    for size in (1, 3, 64, None):
        assert same(run(name, images, maps, roi, batch_size=size), full)
    if "cohort" not in METRICS[name].needs:
        alone = [
            run(name, images[b : b + 1], maps[b : b + 1], roi[b : b + 1], targets=targets[b : b + 1])
            for b in range(COUNT)
        ]
        assert same(torch.cat(alone), full)
    order = torch.arange(COUNT).flip(0)
    assert same(run(name, images[order], maps[order], roi[order], targets=targets[order]), full[order])


@pytest.fixture
def busy_switching():
    """Threads take turns as often as can be."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def threads_of_torch():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", METRICS)
def test_a_score_does_not_depend_on_the_place_among_the_samples(name):
    full = score_rows(name, EVERY)
    order = torch.randperm(COUNT).tolist()
    assert same(score_rows(name, order), full[order])
    few = order[:4]
    assert same(score_rows(name, few, batch_size=None), full[few])


@pytest.mark.parametrize("name", METRICS)
def test_a_score_does_not_depend_on_the_number_of_threads(name, threads_of_torch):
    found = []
    for count in (1, 2):
        threads_of_torch(count)
        found.append(score_rows(name, EVERY))
    assert same(*found)


@pytest.mark.parametrize("name", METRICS)
def test_threads_that_score_at_once_do_not_disturb_each_other(name, busy_switching):
    """They share the model; each has some of the samples."""
    full, shared, state = score_rows(name, EVERY), model(name), torch.get_rng_state()
    parts = [EVERY[:4], EVERY[3:8], EVERY[6:]] * 2
    start = threading.Barrier(3)

    def share(rows):
        start.wait()
        return score_rows(name, rows, model=shared)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(share, parts))
    for rows, scores in zip(parts, found, strict=True):
        assert same(scores, full[rows])
    assert torch.equal(torch.get_rng_state(), state)


def test_processes_that_share_the_samples_score_what_one_does():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(score_rows_by_all, EVERY[:5])
        here = score_rows_by_all(EVERY[5:])
        for name, scores in there.result().items():
            assert same(torch.tensor(scores + here[name]), score_rows(name, EVERY)), name


@pytest.mark.parametrize("name", METRICS)
def test_a_map_that_ranks_nothing_has_no_score_and_the_others_keep_theirs(name):
    images, maps, roi = inputs()
    full = run(name, images, maps, roi)
    broken = maps.clone()
    broken[0], broken[1], broken[2, 4, 4], broken[3] = 0.0, 2.5, torch.nan, torch.nan
    broken[4, 0, 0], broken[5, 7, 7] = torch.inf, -torch.inf
    found = run(name, images, broken, roi)
    assert found[:6].isnan().all()
    rest = full[6:]
    if name in OF_MAPS:
        rest = run(name, images[6:], maps[6:], targets=torch.arange(6, COUNT) % 3)
    assert same(found[6:], rest)
    assert rest.isfinite().sum() >= (2 if name in OF_MAPS else len(rest))


@pytest.mark.parametrize("name", [name for name, entry in METRICS.items() if "roi" in entry.needs])
def test_an_empty_region_has_no_score_and_the_whole_image_has_one(name):
    images, maps, roi = inputs()
    roi[0], roi[1] = False, True
    found = run(name, images, maps, roi)
    whole = name == "roi_auc"  # which compares with what is outside
    assert found.isnan().tolist() == [True, whole] + [False] * (COUNT - 2)


LOCAL = [name for name, entry in METRICS.items() if entry.needs == {"roi"}]
CURVES = [name for name, entry in METRICS.items() if entry.curve is not None]


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("resolution", ["input", "native"])
def test_a_cell_counts_like_pixels_that_all_have_its_value(name, resolution):
    images, _, roi = inputs()
    native = torch.randn(COUNT, 4, 4)
    maps = native.repeat_interleave(2, 1).repeat_interleave(2, 2)
    options = {"threshold": 0.5} if name in ("iou", "dice") else {}
    if name == "relevance_rank_accuracy":  # whose pixels tied at the cut count by their share
        roi[:] = False
        roi[:, 2:5, 1:6] = True
    found = run(name, images, maps if resolution == "input" else native, roi, tokens=(4, 4), **options)
    assert same(found, run(name, images, maps, roi, **options))
    if resolution == "native":
        assert same(run(name, images, native, roi, tokens=True, **options), found)


@pytest.mark.parametrize("name", LOCAL)
def test_chance_is_the_mean_score_of_random_maps(name):
    images, _, roi = inputs()
    roi[0] = False
    options = {option: value for option, value in FITTING.items() if option in METRICS[name].options}
    keys = [f"id{i}" for i in range(COUNT)]
    given = {"metric": name, "grid": (4, 4), "samples": 30, **options}
    found = hp.chance(roi, keys=keys, **given)
    assert found.dtype == torch.float32
    assert found.isnan().tolist() == [True] + [False] * (COUNT - 1)
    random = SampleRandom(0, keys)
    maps = torch.nn.functional.interpolate(random.uniform(30, 4, 4, purpose="chance"), (8, 8), mode="bilinear")
    each = [run(name, images, maps[:, i], roi) for i in range(30)]
    assert same(found, torch.stack(each).mean(0))
    alone = [hp.chance(roi[b : b + 1], keys=[key], **given) for b, key in enumerate(keys)]
    assert same(torch.cat(alone), found)
    assert not same(hp.chance(roi, keys=keys, seed=1, **given), found)
    assert not same(hp.chance(roi, **given), found)


@pytest.mark.parametrize("name", CURVES)
def test_a_curve_is_that_of_the_score(name):
    images, maps, _ = inputs()
    maps[3] = 0.0
    fitting = {"step": 5, "window": 2, "runs": 12}
    options = {option: value for option, value in fitting.items() if option in METRICS[name].options}
    options |= {"metric": name, "targets": torch.arange(COUNT) % 3, "batch_size": 16}
    x, y = hp.curve(model(), images, maps, **options)
    assert x.dtype == y.dtype == torch.float32
    assert (x.diff() > 0).all()
    assert 0 <= x[0] < x[-1] <= 1
    if "step" in options:
        assert x.tolist() == pytest.approx([k / 64 for k in (*range(0, 64, 5), 64)])
    assert y.shape == (COUNT, len(x))
    assert y.isnan().all(1).tolist() == [b == 3 for b in range(COUNT)]
    value = torch.trapezoid(y, x) if METRICS[name].of_curve == "area" else y.nanmean(1)
    assert same(value, score(model(), images, maps, **options))
    several = torch.stack([maps, maps.flip(1)], 1)
    targets = torch.stack([options["targets"]] * 2, 1)
    both = hp.curve(model(), images, several, **(options | {"targets": targets}))[1]
    assert both.shape == (COUNT, 2, len(x))
    assert same(both[:, 0], y)


@pytest.mark.parametrize("name", METRICS)
def test_nothing_leaks(name):
    images, maps, roi = inputs()
    maps.requires_grad_()
    copies = [t.clone() for t in (images, maps, roi)]
    classifier, state = model(name), torch.get_rng_state()
    found = run(name, images, maps, roi, model=classifier)
    assert all(torch.equal(a, b) for a, b in zip((images, maps, roi), copies, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert not found.requires_grad
    assert maps.grad is None
    for parameter in classifier.module.parameters():
        assert parameter.requires_grad
        assert parameter.grad is None
    assert not classifier.module.training
    assert not classifier.module._forward_hooks


@pytest.mark.parametrize("name", METRICS)
def test_draws_follow_seed_and_key(name):
    images, maps, roi = inputs()
    maps = (maps > 0).float()  # ties everywhere
    keys = [f"id{i}" for i in range(COUNT)]
    first = run(name, images, maps, roi, keys=keys)
    assert torch.equal(run(name, images, maps, roi, keys=keys).nan_to_num(), first.nan_to_num())
    random = not same(run(name, images, maps, roi, keys=keys, seed=1), first)
    by_key = not same(run(name, images, maps, roi), first)
    assert random == (by_key or name in OF_MODELS), "a metric that draws must draw by seed and by key"


@pytest.mark.parametrize("name", METRICS)
def test_declared_bounds_hold(name):
    images, maps, roi = inputs()
    one_pixel = torch.zeros_like(maps)
    one_pixel[:, 3, 2] = 1.0
    low, high = METRICS[name].bounds
    for tried in (maps, -maps.abs(), maps.exp(), one_pixel, (maps > 0).float(), 1e-20 * maps, 1e20 * maps):
        found = run(name, images, tried, roi)
        found = found[~found.isnan()]
        assert low is None or (found >= low).all()
        assert high is None or (found <= high).all()


@pytest.mark.parametrize("name", METRICS)
def test_several_targets_score_like_each_alone(name):
    images, maps, roi = inputs()
    maps = torch.stack([maps, maps.flip(1)], 1)
    roi = torch.stack([roi, roi.flip(2)], 1)
    targets = torch.stack([torch.arange(COUNT) % 3, (torch.arange(COUNT) + 1) % 3], 1)
    found = run(name, images, maps, roi, targets=targets)
    assert found.shape == (COUNT, 2)
    for t in range(2):
        assert same(found[:, t], run(name, images, maps[:, t], roi[:, t], targets=targets[:, t]))


@pytest.mark.parametrize(("name", "option", "value"), OPTIONS)
def test_every_option_makes_a_difference(name, option, value):
    images, maps, roi = inputs()
    maps[0], roi[1] = maps[0].round(), False
    maps[0, :2] = maps[0].amax()
    images[2] *= 0.05  # close to a decision
    tried = (maps, maps.exp())
    beside = ONLY_WITH.get(option, {})
    changed = [run(name, images, m, roi, **beside, **{option: value}) for m in tried]
    assert not all(same(found, run(name, images, m, roi, **beside)) for found, m in zip(changed, tried, strict=True))


@pytest.mark.parametrize("name", METRICS)
def test_an_unknown_option_is_an_error(name):
    images, maps, roi = inputs()
    with pytest.raises(InputError, match=f"{name} has no option 'stpe'"):
        run(name, images, maps, roi, stpe=3)


@pytest.mark.parametrize("name", METRICS)
def test_bf16_scores_are_close(name):
    if not bf16_supported():
        pytest.skip("this CPU has no bfloat16 arithmetic")
    images, maps, roi = inputs()
    exact, rounded = run(name, images, maps, roi), run(name, images, maps, roi, precision="bf16")
    assert torch.allclose(exact, rounded, atol=0.15, rtol=0.02)
    if name not in OF_ORDER:
        assert torch.equal(exact, rounded) == ("model" not in METRICS[name].needs or "explain" in METRICS[name].needs)


def test_every_metric_says_what_it_is():
    for name, entry in METRICS.items():
        assert entry.summary.endswith((".", ":")), name
        assert entry.paper, name
        assert entry.needs <= {"model", "explain", "roi", "cohort"}, name
        assert entry.category in {
            "faithfulness",
            "robustness",
            "localization",
            "complexity",
            "randomization",
            "axiomatic",
        }, name


def test_the_metadata_of_this_version():
    found = {
        name: (e.category, e.higher_is_better, e.bounds, sorted(e.needs), list(e.options))
        for name, e in METRICS.items()
    }
    draws, asks = ["samples", "radius", "units", "denominator", "same_prediction"], ["explain", "model"]
    steps = ["step", "baseline", "output", "absolute"]
    kept = ["top", "shape", "threshold", "fill", "empty", "absolute"]
    cells = ["tokens", "coverage"]
    share = ("localization", True, (0, 1), ["roi"])
    assert found == {
        "sparseness": ("complexity", True, (0, 1), [], []),
        "faithfulness_estimate": ("faithfulness", True, (-1, 1), ["model"], steps),
        "faithfulness_correlation": ("faithfulness", True, (-1, 1), ["model"], ["subset_size", "runs", *steps[1:]]),
        "deletion": ("faithfulness", False, (None, None), ["model"], steps),
        "insertion": ("faithfulness", True, (None, None), ["model"], steps),
        "lerf": ("faithfulness", True, (None, None), ["model"], steps),
        "srg": ("faithfulness", True, (None, None), ["model"], steps),
        "road": ("faithfulness", False, (None, None), ["model"], steps[1:]),
        "irof": ("faithfulness", True, (None, None), ["model"], ["segments", "segmentation", *steps[1:]]),
        "region_perturbation": (
            "faithfulness",
            True,
            (None, None),
            ["model"],
            ["window", "regions", "order", *steps[1:]],
        ),
        "selectivity": ("faithfulness", False, (None, None), ["model"], ["window", *steps[1:]]),
        "sensitivity_n": ("faithfulness", True, (-1, 1), ["model"], ["runs", *steps[1:]]),
        "monotonicity_arya": ("faithfulness", True, (0, 1), ["model"], steps[:3]),
        "monotonicity_correlation": ("faithfulness", True, (-1, 1), ["model"], ["step", "samples", "output"]),
        "infidelity": (
            "faithfulness",
            False,
            (0, None),
            ["model"],
            ["samples", "window", "noise", "baseline", "contributions", "scale", "output", "absolute"],
        ),
        "sufficiency": ("faithfulness", True, (0, 1), ["cohort", "model"], ["radius", "distance", "absolute"]),
        "focus": ("localization", True, (0, 1), ["cohort", "explain", "model"], ["samples", "absolute"]),
        "pointing_game": (*share, ["tolerance", "ties", "empty", "absolute", *cells]),
        "iou": (*share, [*kept, *cells]),
        "dice": (*share, [*kept, *cells]),
        "relevance_mass_accuracy": (*share, ["absolute", *cells]),
        "relevance_rank_accuracy": (*share, ["absolute", *cells]),
        "top_k_intersection": (*share, ["k", "absolute", *cells]),
        "roi_auc": (*share, ["absolute", *cells]),
        "attribution_localization": (
            "localization",
            True,
            (0, None),
            ["roi"],
            ["weighted", "absolute", *cells],
        ),
        "complexity": ("complexity", False, (0, None), [], ["normalized"]),
        "effective_complexity": ("complexity", False, (0, None), [], ["tolerance"]),
        "local_lipschitz": ("robustness", False, (0, None), asks, [*draws[:3], "same_prediction"]),
        "continuity": ("robustness", False, (0, None), asks, ["steps", "baseline"]),
        "consistency": ("robustness", True, (0, 1), ["cohort", "model"], ["grid", "k", "absolute"]),
        "relative_input_stability": ("robustness", False, (0, None), asks, draws[:3]),
        "relative_output_stability": ("robustness", False, (0, None), asks, draws[:3]),
        "relative_representation_stability": ("robustness", False, (0, None), asks, [*draws[:3], "layer"]),
        "model_parameter_randomization": ("randomization", False, (-1, 1), asks, ["order", "similarity"]),
        "smooth_mprt": ("randomization", False, (-1, 1), asks, ["order", "similarity", "samples", "noise"]),
        "efficient_mprt": ("randomization", True, (-1, None), asks, ["bins"]),
        "random_logit": ("randomization", False, (-1, 1), asks, []),
        "completeness": ("axiomatic", False, (0, None), ["model"], ["baseline", "output"]),
        "non_sensitivity": ("axiomatic", False, (0, 1), ["model"], ["step", "tolerance", "baseline", "output"]),
        "input_invariance": ("axiomatic", False, (0, None), asks, ["shift"]),
        "avg_sensitivity": ("robustness", False, (0, None), ["explain", "model"], draws),
        "max_sensitivity": ("robustness", False, (0, None), ["explain", "model"], draws),
    }
    assert METRICS.aliases == {"pixel_flipping": "deletion", "energy_pointing_game": "relevance_mass_accuracy"}
    assert {name: METRICS[name].of_curve for name in CURVES} == {
        "deletion": "area",
        "insertion": "area",
        "lerf": "area",
        "srg": "area",
        "selectivity": "area",
        "road": "mean",
        "region_perturbation": "mean",
        "sensitivity_n": "mean",
    }


def test_the_published_defaults():
    numbers = {
        name: {
            option: value for option, value in entry.options.items() if isinstance(value, int) and value is not False
        }
        for name, entry in METRICS.items()
    }
    assert numbers["faithfulness_correlation"] == numbers["sensitivity_n"] == {"runs": 100}
    assert numbers["irof"] == {"segments": 100}
    assert METRICS["irof"].options["baseline"] == "mean"
    assert METRICS["road"].options["baseline"] == "inpaint"
    assert numbers["top_k_intersection"] == {"k": 1000}
    assert numbers["iou"] == numbers["dice"] == {"top": 20}
    assert METRICS["faithfulness_estimate"].options["baseline"] == METRICS["deletion"].options["baseline"] == "black"
    assert METRICS["faithfulness_correlation"].options["baseline"] == "black"
    assert METRICS["insertion"].options["baseline"] == "blur"
