"""Does the explanation depend on what the model has learned, and on the class that is explained?"""

import threading
from collections.abc import Callable, Iterator
from copy import copy, deepcopy
from typing import Literal

import torch
from torch import Tensor, nn

from heatproof.checks import check_choice, check_count, check_number
from heatproof.errors import InputError, UnsupportedModelError
from heatproof.metrics.registry import Case, metric, one_pass
from heatproof.metrics.similarity import histogram_entropy, spearman, ssim
from heatproof.models import Classifier
from heatproof.probing import SampleRandom

Order = Literal["top_down", "bottom_up"]
Similarity = Literal["spearman", "ssim"]
Maker = Callable[[Classifier | None], Tensor]
"""A model, or None for the case's own, to its maps `[N, H, W]`."""

_SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"spearman": spearman, "ssim": ssim}
_DRAWING = threading.Lock()  # a layer draws its own weights from torch's random state, which all threads share
_SPREAD = 0.02  # of the weights drawn for a parameter that is zero: as tokens are initialised


@metric("model_parameter_randomization", category="randomization", higher_is_better=False, bounds=(-1, 1),
        needs={"model", "explain"}, paper="adebayo2018sanity")  # fmt: skip
def model_parameter_randomization(
    case: Case, *, order: Order = "top_down", similarity: Similarity = "spearman"
) -> Tensor:
    """How alike the map stays as the model's layers are randomised one after another.

    Φ_l is the map of the model whose layers 1..l are randomised, see `randomized`. A method that looks at what the model
    has learned scores near 0, one that does not scores 1.

    Formula:
        mean_{l ≥ 1} similarity(Φ(x), Φ_l(x))

    Args:
        case: N samples.
        order: from the output down (`top_down`) or from the image up (`bottom_up`).
        similarity: `spearman`, the rank correlation, or `ssim`, structural similarity in the plane.

    Returns:
        `[N]`; NaN for an undefined map, and where the similarity with one of the maps is undefined (a constant map has no
        rank correlation).

    Quantus:
        Follows `MPRT` after each layer, for the same weights. Differs in the mean, where Quantus has the similarity of
        the map with itself, and in parameters of no layer, such as tokens, which it leaves as they are.
    """

    def explained(model: Classifier | None) -> Tensor:
        return case.maps if model is None else case.explain(case.images, model=model)

    return _similarity(case, "maps", explained, order, similarity)


@metric("smooth_mprt", category="randomization", higher_is_better=False, bounds=(-1, 1), needs={"model", "explain"},
        paper="hedstrom2024fresh")  # fmt: skip
def smooth_mprt(
    case: Case,
    *,
    order: Order = "top_down",
    similarity: Similarity = "spearman",
    samples: int = 50,
    noise: float = 0.1,
) -> Tensor:
    """Model parameter randomization of maps that are averaged over noisy images first.

    As `model_parameter_randomization`, where each map, that of the trained model too, is the mean over images with Gaussian
    noise added: so the noise of the gradients, which is not alike between models, does not count.

    Formula:
        mean_{l ≥ 1} similarity(mean_ε Φ(x+ε), mean_ε Φ_l(x+ε))

    Args:
        case: N samples; the maps themselves are made anew.
        order: as in `model_parameter_randomization`.
        similarity: as in `model_parameter_randomization`.
        samples: noisy images, the same ones for every model.
        noise: standard deviation of the noise, as a share of the range of the image's values.

    Returns:
        `[N]`; NaN as in `model_parameter_randomization`.

    Quantus:
        Follows `SmoothMPRT` after each layer, for the same weights and noise. Differs in that the last of its noisy
        images has no noise, and as `model_parameter_randomization` does.
    """
    check_count("samples", samples)
    span = case.images.amax((1, 2, 3), keepdim=True) - case.images.amin((1, 2, 3), keepdim=True)
    spread = check_number("noise", noise) * span

    def averaged(model: Classifier | None) -> Tensor:
        total = torch.zeros_like(case.maps, dtype=torch.float64)
        for numbers in case.groups(samples):
            draws = [case.random.normal(*case.images.shape[1:], purpose=f"smoothing {number}") for number in numbers]
            noisy = case.images + spread * torch.stack(draws).to(case.images)
            maps = case.explain(noisy.flatten(0, 1), model=model).unflatten(0, noisy.shape[:2])
            total += maps.sum(0, dtype=torch.float64)
        return total / samples

    return _similarity(case, ("averaged", samples, noise), averaged, order, similarity)


@metric("efficient_mprt", category="randomization", higher_is_better=True, bounds=(-1, None), needs={"model", "explain"},
        paper="hedstrom2024fresh")  # fmt: skip
def efficient_mprt(case: Case, *, bins: int = 100) -> Tensor:
    """How much more complex the map becomes when the whole model is randomised, as a share.

    H is the entropy of the histogram of the map's values between its extremes, Φ′ the map of the model with all layers
    randomised, see `randomized`.

    Formula:
        (H(Φ′) − H(Φ)) / H(Φ)

    Args:
        case: N samples.
        bins: of the histograms.

    Returns:
        `[N]`; NaN for an undefined map.

    Quantus:
        Follows `EfficientMPRT`, for the same weights.
    """
    check_count("bins", bins)
    *_, model = randomized(case.model, "top_down", case.random.seed)
    before, after = (histogram_entropy(maps, bins) for maps in (case.maps, case.explain(case.images, model=model)))
    return ((after - before) / before).masked_fill(case.undefined, torch.nan)


@metric("random_logit", category="randomization", higher_is_better=False, bounds=(-1, 1), needs={"model", "explain"},
        paper="sixt2020when", passes=one_pass)  # fmt: skip
def random_logit(case: Case) -> Tensor:
    """How alike the maps of the target and of another class are.

    The structural similarity in the plane of both maps; the other class is drawn uniformly from all others. A method that
    gives every class the same map scores 1.

    Formula:
        SSIM(Φ_t(x), Φ_c(x)),  c ≠ t drawn

    Returns:
        `[N]`; NaN for an undefined map.

    Quantus:
        Differs: `RandomLogit` takes the similarity of rows of pixels, which knows nothing of up and down, and draws the
        other class of 1000 by default.
    """
    classes = case.probe.unmasked_logits.shape[1]
    if classes < 2:
        raise InputError("random_logit compares the target with another class, and this model has only one.")
    draws = case.random.uniform(1, purpose="other class")[:, 0].to(case.targets.device)
    others = (draws * (classes - 1)).long()
    maps = case.explain(case.images, targets=others + (others >= case.targets))
    return ssim(case.maps, maps).masked_fill(case.undefined, torch.nan)


def randomized(model: Classifier, order: Order, seed: int) -> Iterator[Classifier]:
    """The model with its first layer randomised, then with its first two, and so on to all.

    A layer is a module with parameters of its own, in the order in which they are registered; that of the tokens of a
    transformer, the module that holds its layers, comes first, next to the image. A layer's own `reset_parameters` draws its
    weights (those of a norm go back to 1 and 0); parameters that it leaves alone, and those of layers without one, are drawn
    from a normal distribution around 0 of their own root mean square. The draws depend on (seed, layer) only: samples and
    batches all see the same weights.

    What comes is one copy, changed further each time; the model itself is not touched.

    Raises:
        UnsupportedModelError: the model has no parameters.
    """
    check_choice("order", order, ("top_down", "bottom_up"))
    twin = with_module(model, deepcopy(model.module))
    layers = weighted_layers(twin.module)
    if not layers:
        raise UnsupportedModelError("The model has no parameters, so there is nothing to randomise.")
    for path, layer in layers if order == "bottom_up" else reversed(layers):
        twin.to("cpu")  # where draws are the same for every device
        _randomize(layer, SampleRandom(seed, [path]).generator(0, "random weights"))
        yield twin.to(model.device)


def weighted_layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """(path, module) of all modules with parameters of their own, in the order in which they are registered.

    >>> [path for path, _ in weighted_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))]
    ['0', '2']
    """
    return [(path, layer) for path, layer in module.named_modules() if list(layer.parameters(recurse=False))]


def with_module(model: Classifier, module: nn.Module) -> Classifier:
    """The same classifier around another module."""
    twin = copy(model)
    twin.module = module
    return twin


def _randomize(layer: nn.Module, generator: torch.Generator) -> None:
    versions = {parameter: parameter._version for parameter in layer.parameters(recurse=False)}
    reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
    if reset is not None:
        with _DRAWING, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(generator.initial_seed())
            reset()
    with torch.no_grad():
        for parameter in [parameter for parameter, before in versions.items() if parameter._version == before]:
            spread = float(parameter.double().square().mean().sqrt()) or _SPREAD
            parameter.normal_(0, spread, generator=generator)


def _similarity(case: Case, kind: object, maps: Maker, order: Order, similarity: Similarity) -> Tensor:
    check_choice("similarity", similarity, tuple(_SIMILARITIES))
    found = case.shared(("randomized", kind, order), lambda: _mean_similarities(case, maps, order))
    return found[similarity].masked_fill(case.undefined, torch.nan)


def _mean_similarities(case: Case, maps: Maker, order: Order) -> dict[str, Tensor]:
    """By every measure, which cost little beside the explanations, the mean similarity `[N]` over the randomised models."""
    original, rows = maps(None), []
    for model in randomized(case.model, order, case.random.seed):
        changed = maps(model)
        rows.append([measure(original, changed) for measure in _SIMILARITIES.values()])
    means = (torch.stack(values).mean(0) for values in zip(*rows, strict=True))
    return dict(zip(_SIMILARITIES, means, strict=True))
