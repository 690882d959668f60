"""Maps from gradients along ways that lead from a baseline to the image."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from heatproof.checks import check_choice, check_count, check_number
from heatproof.errors import InputError
from heatproof.explainers.gradient import gradients, of_rows
from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.probing import Baseline, MicroBatch, SampleRandom, make_baseline
from heatproof.probing.baselines import blur

Rule = Literal["midpoint", "left", "right", "trapezoid", "gauss_legendre"]
Steps = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # see along


@explainer(
    "integrated_gradients",
    family="gradient",
    signed=True,
    paper="sundararajan2017axiomatic",
    linear=True,
    complete="f(x) − f(baseline)",
)
def integrated_gradients(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    random: SampleRandom,
    batch_size: int,
    baseline: Baseline = "black",
    steps: int = 50,
    rule: Rule = "midpoint",
) -> Tensor:
    """The gradient averaged on the straight way from a baseline to the image, times the difference of the two.

    The sum of a map is the change of the score from baseline to image, up to the error of the rule of integration. It tells
    what makes the difference to this baseline and to no other: pixels that are like it get nothing, in a radiograph those
    that are black.

    Formula:
        (x − x′) ⊙ Σ_k w_k ∇f(x′ + a_k (x − x′)), the places a_k and weights w_k of a rule for integrals from 0 to 1

    Cost:
        steps forward passes, steps · T ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Args:
        model: any model.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        random: the samples' random streams, for the baseline `noise`.
        batch_size: points of the way that go through the model at a time.
        baseline: x′, where the way begins, see `make_baseline`.
        steps: n, the points on the way.
        rule: `midpoint` (a_k = (k − ½)/n), `left` ((k − 1)/n) or `right` (k/n) with weights 1/n; `trapezoid`
            ((k − 1)/(n − 1), the ends weighing half), which needs 2 steps; `gauss_legendre`, exact where the gradient is a
            polynomial of degree up to 2n − 1 on the way.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.

    Checked:
        captum `IntegratedGradients` by its middle rule, to 1e-5: tests/peers/test_captum.py.
        captum `IntegratedGradients` by every rule, to 1e-4: tests/peers/test_gradient_family.py. Captum's trapezoid has
            weights that sum to (n − 1)/n, by which its maps are smaller.
        the closed form of a sum of squares, to rounding: tests/explainers/test_gradient.py.
    """
    places, weights = quadrature(rule, check_count("steps", steps))
    start = make_baseline(baseline, images, black=lambda: model.intensity_range[0], random=random)
    way = images - start

    def points(image: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        place, weight = (values[step.cpu()].to(images).view(-1, 1, 1, 1) for values in (places, weights))
        return start[image] + place * way[image], weight * way[image]

    return along(model, images, targets, batch_size, steps, points)


@explainer("expected_gradients", family="gradient", signed=True, paper="erion2021improving", linear=True)
def expected_gradients(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    random: SampleRandom,
    batch_size: int,
    baselines: Baseline = "noise",
    samples: int = 50,
) -> Tensor:
    """Integrated gradients averaged over many baselines, by drawing a baseline and a place on its way for each sample.

    The sum of a map is the score less its mean over the references, up to the error of so many draws. It tells what makes
    this image different from the references, and is only as good as they are: by default they are noise, which no patient
    looks like.

    Formula:
        1/n Σ_k (x − x′_k) ⊙ ∇f(x′_k + a_k (x − x′_k)), x′_k drawn from the references, a_k uniform on [0, 1]

    Cost:
        samples forward passes, samples · T ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Args:
        model: any model.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        random: the samples' random streams.
        batch_size: points of the ways that go through the model at a time.
        baselines: a tensor `[R, C, H, W]` of reference images, such as some of the training set (which the authors take);
            or a number or name of `make_baseline`, made anew for each draw: `noise` is uniform between each channel's
            extremes.
        samples: n, the draws an image.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.

    Checked:
        captum `GradientShap` without noise, to 1e-4: tests/peers/test_gradient_family.py. Given the same draws and one
            reference, since captum draws for all images at once.
        a float64 replica over the same draws, to 1e-4: tests/explainers/test_gradient_paths.py.
    """
    return _expected(model, images, targets, random, batch_size, baselines, samples, noise=0.0)


@explainer("gradient_shap", family="gradient", signed=True, paper="lundberg2017unified", linear=True)
def gradient_shap(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    random: SampleRandom,
    batch_size: int,
    baselines: Baseline = "noise",
    samples: int = 50,
    noise: float = 0.1,
) -> Tensor:
    """Expected gradients of noisy copies of the image, an estimate of its Shapley values.

    They are Shapley values where the model is linear and pixels are independent, else an approximation of them whose error
    nobody knows. The noise also smooths the map.

    Formula:
        that of expected_gradients with x + ε_k in the place of x, ε_k normal

    Cost:
        samples forward passes, samples · T ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Args:
        model: any model.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        random: the samples' random streams.
        batch_size: points of the ways that go through the model at a time.
        baselines: the reference images, as in `expected_gradients`.
        samples: n, the draws an image.
        noise: deviation of ε_k, a share of the image's range.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.

    Checked:
        captum `GradientShap`, to 1e-4: tests/peers/test_gradient_family.py. Given the same draws and one reference, since
            captum draws for all images at once.
        a float64 replica over the same draws, to 1e-4: tests/explainers/test_gradient_paths.py.
    """
    return _expected(model, images, targets, random, batch_size, baselines, samples, noise=check_number("noise", noise))


@explainer(
    "blur_integrated_gradients",
    family="gradient",
    signed=True,
    paper="xu2020attribution",
    linear=True,
    complete="f(x) − f(blurred x)",
)
def blur_integrated_gradients(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    batch_size: int,
    sigma: float | None = None,
    steps: int = 50,
) -> Tensor:
    """Integrated gradients on the way from a blurred image to the image, through all lesser blurs.

    The sum of a map is the change of the score from the blurred image to the image, up to the error of the midpoint rule. No
    baseline has to be chosen; what is told is which details matter, and nothing of what survives the blur, such as a large
    opacity.

    Formula:
        −∫ ∇f(L_s) ⊙ ∂L_s/∂s ds from s = 0 to σ, L_s the image blurred by a Gaussian of deviation s; as n pieces of equal
        length in s, each straight and looked at in its middle: Σ_k ∇f((L_k + L_{k−1})/2) ⊙ (L_{k−1} − L_k)

    Cost:
        steps forward passes, steps · T ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Args:
        model: any model.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        batch_size: points of the way that go through the model at a time.
        sigma: σ in pixels, the largest blur; a quarter of the shorter side by default. The border is repeated outwards.
        steps: n, the pieces of the way.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.

    Checked:
        the integral with scipy's blur and many more steps, to 0.02: tests/explainers/test_gradient_paths.py. Scipy cuts its
            Gaussian at 5σ, this one is cut at 3σ.
        the change of the score, to 1e-4: tests/explainers/test_gradient_paths.py.
    """
    check_count("steps", steps)
    largest = min(images.shape[-2:]) / 4 if sigma is None else check_number("sigma", sigma, low=0.1)

    def blurred(image: Tensor, step: Tensor) -> Tensor:
        """Each of the images by the blur of its step."""
        pairs = zip(images[image].split(1), step.tolist(), strict=True)
        return torch.cat([blur(one, k / steps * largest) if k else one for one, k in pairs])

    def points(image: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        sharper, softer = blurred(image, step), blurred(image, step + 1)
        return (sharper + softer) / 2, sharper - softer

    return along(model, images, targets, batch_size, steps, points)


def along(model: Classifier, images: Tensor, targets: Targets, batch_size: int, count: int, points: Steps) -> Tensor:
    """`Σ ∇f(place) · change` over `count` steps of each image, maps `[B, T, H, W]` summed over channels.

    `points(image, step)`, indices `[n]` both, gives the places and the changes of these steps, `[n, C, H, W]` each.
    """
    maps = images.new_zeros(len(images), targets.count, *images.shape[2:])

    def add(numbers: Tensor) -> Tensor:
        image = numbers // count
        places, changes = points(image, numbers % count)
        slopes = gradients(model, places, of_rows(targets, image))
        maps.index_add_(0, image, (changes[:, None] * slopes).sum(2))
        return numbers

    MicroBatch(batch_size).run(add, torch.arange(len(images) * count, device=images.device))
    return maps


def quadrature(rule: Rule, steps: int) -> tuple[Tensor, Tensor]:
    """The places and weights by which `rule` integrates from 0 to 1, float64 `[steps]` each.

    >>> quadrature("trapezoid", 3)
    (tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64), tensor([0.2500, 0.5000, 0.2500], dtype=torch.float64))
    """
    check_choice("rule", rule, get_args(Rule))
    if rule == "gauss_legendre":
        return _gauss_legendre(steps)
    numbers = torch.arange(steps, dtype=torch.float64)
    if rule == "trapezoid":
        if steps < 2:
            raise InputError("rule='trapezoid' looks at both ends and needs steps=2 or more, got steps=1.")
        weights = torch.full_like(numbers, 1 / (steps - 1))
        weights[[0, -1]] /= 2
        return numbers / (steps - 1), weights
    offset = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[rule]
    return (numbers + offset) / steps, torch.full_like(numbers, 1 / steps)


def _gauss_legendre(steps: int) -> tuple[Tensor, Tensor]:
    """By Golub and Welsch: the eigenvalues of the Legendre polynomials' recurrence, and its eigenvectors' first entries."""
    k = torch.arange(1, steps, dtype=torch.float64)
    beside = k / (4 * k.square() - 1).sqrt()
    places, vectors = torch.linalg.eigh(torch.diag(beside, -1))  # which reads the lower half
    return (places + 1) / 2, vectors[0].square()


def _expected(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    random: SampleRandom,
    batch_size: int,
    baselines: Baseline,
    samples: int,
    *,
    noise: float,
) -> Tensor:
    check_count("samples", samples)
    deviation = noise * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))

    def points(image: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
        streams, ends = random.draws(image.tolist(), draw.tolist()), images[image]
        if noise:
            ends = ends + deviation[image] * streams.normal(*images.shape[1:], purpose="noise").to(images)
        start = _drawn(baselines, ends, model, streams)
        place = streams.uniform(1, 1, 1, purpose="place on the way").to(images)
        return start + place * (ends - start), (ends - start) / samples

    return along(model, images, targets, batch_size, samples, points)


def _drawn(baselines: Baseline, images: Tensor, model: Classifier, random: SampleRandom) -> Tensor:
    """One reference for each of the images."""
    if not isinstance(baselines, Tensor):
        return make_baseline(baselines, images, black=lambda: model.intensity_range[0], random=random)
    if baselines.ndim != 4 or not len(baselines) or baselines.shape[1:] != images.shape[1:]:
        raise InputError(
            f"baselines must be reference images [R, {', '.join(map(str, images.shape[1:]))}], got a tensor "
            f"{list(baselines.shape)}: preprocess them as the images, or give a number or name of a baseline."
        )
    which = (random.uniform(1, purpose="reference")[:, 0] * len(baselines)).long()
    return baselines[which.to(baselines.device)].to(images)
