"""Maps of noisy copies of the image: their mean, their mean square, their variance."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from heatproof.checks import check_count, check_number
from heatproof.explainers.gradient import of_rows
from heatproof.explainers.registry import Explain, explainer
from heatproof.models import Classifier, Targets
from heatproof.probing import MicroBatch, SampleRandom

Options = Mapping[str, Any] | None


@explainer("smoothgrad", family="gradient", signed=True, paper="smilkov2017smoothgrad")
def smoothgrad(
    model: Classifier,  # noqa: ARG001 explain knows it
    images: Tensor,
    targets: Targets,
    *,
    explain: Explain,
    random: SampleRandom,
    batch_size: int,
    base: str = "gradient",
    samples: int = 25,
    noise: float = 0.15,
    options: Options = None,
) -> Tensor:
    """SmoothGrad: the mean map of noisy copies of the image, by the gradient or any other method.

    `1/n Σ_k M(x + ε_k)` with ε_k normal. It takes away what changes with every small change of the image, and cannot tell
    more than M does. `samples` times the cost of M.

    Args:
        model: any model that the base method can explain.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        explain: maps by another explainer.
        random: the samples' random streams.
        batch_size: noisy copies that are explained at a time.
        base: M, the name of a method.
        samples: n, the copies of each image.
        noise: deviation of the noise, a share of the image's range.
        options: of the base method.

    Returns:
        Maps `[B, T, h, w]` on the grid of the base method.

    Example:
        >>> import heatproof as hp
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> hp.explain(net.eval(), torch.rand(1, 3, 4, 4), method="smoothgrad", base="lrp_z", samples=3).shape
        torch.Size([1, 4, 4])
    """
    return _mean_and_variance(images, targets, explain, random, batch_size, base, samples, noise, options)[0]


@explainer("smoothgrad_squared", family="gradient", signed=False, paper="hooker2019benchmark")
def smoothgrad_squared(
    model: Classifier,  # noqa: ARG001 explain knows it
    images: Tensor,
    targets: Targets,
    *,
    explain: Explain,
    random: SampleRandom,
    batch_size: int,
    base: str = "gradient",
    samples: int = 25,
    noise: float = 0.15,
    options: Options = None,
) -> Tensor:
    """SmoothGrad with squares: the mean square of the maps of noisy copies of the image.

    `1/n Σ_k M(x + ε_k)²`. It tells where a map is large, for or against the class, and not which. `samples` times the cost
    of M.

    Args:
        model: any model that the base method can explain.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        explain: maps by another explainer.
        random: the samples' random streams.
        batch_size: noisy copies that are explained at a time.
        base: M, the name of a method.
        samples: n, the copies of each image.
        noise: deviation of the noise, a share of the image's range.
        options: of the base method.

    Returns:
        Maps `[B, T, h, w]` on the grid of the base method, the squares of its maps.
    """
    mean, variance = _mean_and_variance(images, targets, explain, random, batch_size, base, samples, noise, options)
    return mean.square() + variance


@explainer("vargrad", family="gradient", signed=False, paper="adebayo2018local")
def vargrad(
    model: Classifier,  # noqa: ARG001 explain knows it
    images: Tensor,
    targets: Targets,
    *,
    explain: Explain,
    random: SampleRandom,
    batch_size: int,
    base: str = "gradient",
    samples: int = 25,
    noise: float = 0.15,
    options: Options = None,
) -> Tensor:
    """VarGrad: the variance of the maps of noisy copies of the image.

    `1/n Σ_k (M(x + ε_k) − mean)²`. It tells where a map is unstable: the gradient itself has no part in it, only its change
    close to the image. `samples` times the cost of M; one sample has no variance, and its map is zero.

    Args:
        model: any model that the base method can explain.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        explain: maps by another explainer.
        random: the samples' random streams.
        batch_size: noisy copies that are explained at a time.
        base: M, the name of a method.
        samples: n, the copies of each image.
        noise: deviation of the noise, a share of the image's range.
        options: of the base method.

    Returns:
        Maps `[B, T, h, w]` on the grid of the base method, in squares of its units.
    """
    return _mean_and_variance(images, targets, explain, random, batch_size, base, samples, noise, options)[1]


def _mean_and_variance(
    images: Tensor,
    targets: Targets,
    explain: Explain,
    random: SampleRandom,
    batch_size: int,
    base: str,
    samples: int,
    noise: float,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """Of the maps of `samples` noisy copies of each image, `[B, T, h, w]` both, by Welford's update."""
    check_count("samples", samples)
    spread = images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True)
    deviation = check_number("noise", noise) * spread
    moments: list[Tensor] = []  # mean and sum of squares about it, once the size of a map is known

    def add(numbers: Tensor) -> Tensor:
        image, copy = numbers // samples, numbers % samples
        streams = random.draws(image.tolist(), copy.tolist())
        drawn = streams.normal(*images.shape[1:], purpose="smoothing noise").to(images)
        noisy = images[image] + deviation[image] * drawn
        maps = explain(noisy, of_rows(targets, image), base, options or {}, streams)
        if not moments:
            moments.extend(maps.new_zeros(2, len(images), *maps.shape[1:]))
        mean, squares = moments
        for row, before, found in zip(image.tolist(), copy.tolist(), maps, strict=True):
            change = found - mean[row]
            mean[row] += change / (before + 1)
            squares[row] += change * (found - mean[row])
        return numbers

    MicroBatch(batch_size).run(add, torch.arange(len(images) * samples, device=images.device))
    mean, squares = moments
    return mean, squares / samples
