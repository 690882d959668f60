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


@explainer("smoothgrad", family="gradient", signed=True, paper="smilkov2017smoothgrad", linear=True)
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

    It takes away what changes with every small change of the image. It cannot tell more than the base method does, and what
    it shows belongs to images that are noisier than the one that was asked about.

    Formula:
        1/n Σ_k M(x + ε_k), M the maps of the base method, ε_k normal

    Cost:
        samples forward passes, samples · T ways back. With another base, `samples` times what that costs.

    Models:
        CNN, ConvNeXt, ViT, Swin. With another base, those that it serves.

    Args:
        model: any model that the base method can explain.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        explain: maps by another explainer.
        random: the samples' random streams.
        batch_size: noisy copies that are explained at a time.
        base: M, the name of a method.
        samples: n, the copies of each image.
        noise: deviation of ε_k, a share of the image's range.
        options: of the base method.

    Returns:
        Maps `[B, T, h, w]` on the grid of the base method.

    Checked:
        captum `NoiseTunnel`, to 1e-4: tests/peers/test_gradient_family.py. Given the same noise.
        a replica that explains each copy alone, to 1e-4: tests/explainers/test_gradient_noise.py.

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

    It tells where a map is large, for the class or against it, and not which.

    Formula:
        1/n Σ_k M(x + ε_k)², M the maps of the base method, ε_k normal

    Cost:
        samples forward passes, samples · T ways back. With another base, `samples` times what that costs.

    Models:
        CNN, ConvNeXt, ViT, Swin. With another base, those that it serves.

    Args:
        model: any model that the base method can explain.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        explain: maps by another explainer.
        random: the samples' random streams.
        batch_size: noisy copies that are explained at a time.
        base: M, the name of a method.
        samples: n, the copies of each image.
        noise: deviation of ε_k, a share of the image's range.
        options: of the base method.

    Returns:
        Maps `[B, T, h, w]` on the grid of the base method, the squares of its maps.

    Checked:
        captum `NoiseTunnel`, to 1e-4: tests/peers/test_gradient_family.py. Given the same noise, on images of one channel:
            captum squares each channel, here it is the map that is squared.
        a replica that explains each copy alone, to 1e-4: tests/explainers/test_gradient_noise.py.
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

    It tells where a map is unstable. The base method's own map has no part in it, only how it changes close to the image: of
    a linear model it is zero everywhere.

    Formula:
        1/n Σ_k (M(x + ε_k) − mean)², M the maps of the base method, ε_k normal, the mean over the n copies

    Cost:
        samples forward passes, samples · T ways back. With another base, `samples` times what that costs.

    Models:
        CNN, ConvNeXt, ViT, Swin. With another base, those that it serves.

    Args:
        model: any model that the base method can explain.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        explain: maps by another explainer.
        random: the samples' random streams.
        batch_size: noisy copies that are explained at a time.
        base: M, the name of a method.
        samples: n, the copies of each image; one has no variance, and its map is zero.
        noise: deviation of ε_k, a share of the image's range.
        options: of the base method.

    Returns:
        Maps `[B, T, h, w]` on the grid of the base method, in squares of its units.

    Checked:
        captum `NoiseTunnel`, to 1e-4: tests/peers/test_gradient_family.py. Given the same noise, on images of one channel:
            captum takes the variance of each.
        a replica that explains each copy alone, to 1e-4: tests/explainers/test_gradient_noise.py.
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
