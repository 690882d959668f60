"""Maps that know nothing of the model, or nothing of the image: what an explanation has to beat."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from heatproof.checks import check_count
from heatproof.errors import InputError
from heatproof.explainers.registry import Explain, explainer
from heatproof.models import Classifier, Targets
from heatproof.probing import MicroBatch, SampleRandom, content_keys

_CELL = 16  # pixels; the token grid of a ViT-B/16
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@explainer("control_random", family="control", signed=False, paper="samek2017evaluating", class_agnostic=True)
def control_random(model: Classifier, images: Tensor, targets: Targets, *, random: SampleRandom) -> Tensor:  # noqa: ARG001
    """Uniform noise on a grid of 16-pixel cells, drawn for each sample, the same for every target.

    It knows neither image nor model: what it scores is what a method scores by chance. Its grid is that of a ViT-B/16, so
    that it is as coarse as the maps that it is compared with.

    Formula:
        u of each cell, uniform on [0, 1)

    Cost:
        no forward passes, no ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin. The model is not asked.

    Returns:
        Maps `[B, T, h, w]` on a grid of 16-pixel cells, at least 2 × 2.

    Checked:
        the variance of the uniform distribution, to 0.005: tests/explainers/test_controls.py.
    """
    height, width = (max(2, round(side / _CELL)) for side in images.shape[-2:])
    noise = random.uniform(height, width, purpose="control_random").to(images.device)
    return noise[:, None].expand(-1, targets.count, -1, -1)


@explainer("control_center", family="control", signed=False, paper="zhang2018topdown", class_agnostic=True)
def control_center(model: Classifier, images: Tensor, targets: Targets) -> Tensor:  # noqa: ARG001
    """A Gaussian blob in the centre, σ a quarter of each side, the same for every image.

    What a method must beat where findings lie in the middle of the image, as most do.

    Formula:
        exp(−(Δy² / (H/4)² + Δx² / (W/4)²) / 2), Δ the distances from the centre

    Cost:
        no forward passes, no ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin. The model is not asked.

    Returns:
        Maps `[B, T, H, W]`, close to 1 in the centre.

    Checked:
        the closed form, to 1e-5: tests/explainers/test_controls.py.

    Example:
        >>> import heatproof as hp
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2)).eval()
        >>> hp.explain(net, torch.rand(1, 1, 3, 3), method="control_center")[0, 1].round(decimals=2)
        tensor([0.4100, 1.0000, 0.4100])
    """
    height, width = (_bell(side, images.device) for side in images.shape[-2:])
    return (height[:, None] * width).expand(len(images), targets.count, -1, -1)


@explainer("control_edges", family="control", signed=False, paper="adebayo2018sanity", class_agnostic=True)
def control_edges(model: Classifier, images: Tensor, targets: Targets) -> Tensor:  # noqa: ARG001
    """The image's own edges: the size of its slope by Sobel's filter, the same for every target.

    What a method shows that redraws the image without a look at the model. A map that looks like it has shown nothing yet.

    Formula:
        sqrt(Sx² + Sy²), S the channels' mean under Sobel's filters over 8

    Cost:
        no forward passes, no ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin. The model is not asked.

    Returns:
        Maps `[B, T, H, W]`: change of the channels' mean by pixel, in model-input units; the border is repeated outwards.

    Checked:
        scipy `ndimage.sobel`, to 1e-5: tests/explainers/test_controls.py.
    """
    grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    smooth, slope = images.new_tensor([1.0, 2.0, 1.0]) / 4, images.new_tensor([-1.0, 0.0, 1.0]) / 2
    across = F.conv2d(grey, (smooth[:, None] * slope)[None, None])
    down = F.conv2d(grey, (slope[:, None] * smooth)[None, None])
    return torch.hypot(across, down).expand(-1, targets.count, -1, -1)


@explainer("control_input", family="control", signed=False, paper="adebayo2018sanity", class_agnostic=True)
def control_input(model: Classifier, images: Tensor, targets: Targets) -> Tensor:  # noqa: ARG001
    """The image itself: each pixel's distance from its channel's mean, the same for every target.

    What `input_x_gradient` and its kin owe to the input alone.

    Formula:
        mean over channels of |x − mean of the channel|

    Cost:
        no forward passes, no ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin. The model is not asked.

    Returns:
        Maps `[B, T, H, W]`: the mean over channels of the distances, in model-input units.

    Checked:
        numbers by hand, exactly: tests/explainers/test_controls.py.
    """
    distance = (images - images.mean((2, 3), keepdim=True)).abs()
    return distance.mean(1, keepdim=True).expand(-1, targets.count, -1, -1)


@explainer("control_average", family="control", signed=False, needs={"references"}, paper="adebayo2018sanity")
def control_average(
    model: Classifier,  # noqa: ARG001 explain knows it
    images: Tensor,
    targets: Targets,
    *,
    explain: Explain,
    random: SampleRandom,
    batch_size: int,
    references: Tensor | None = None,
    labels: Tensor | Sequence[int] | None = None,
    base: str = "gradcam",
    samples: int = 16,
    options: Mapping[str, Any] | None = None,
) -> Tensor:
    """The mean map of the class over training images, the same for every image.

    What a method knows of a class before it has seen the image: where its findings mostly lie. A method that scores no
    better than its own average tells nothing of this image. It is as good as the base method and the training images
    are.

    Formula:
        1/n Σ_k M(x_k), x_k training images of the class, M the base method's maps of them for the class

    Cost:
        samples · T forward passes, samples · T ways back. Once for images that are explained together, for each of their
        classes; with another base, `samples` times what that costs.

    Models:
        CNN, ConvNeXt, ViT, Swin. With another base, those that it serves.

    Args:
        model: any model that the base method can explain.
        images: `[B, C, H, W]`.
        targets: `[B, T]`; with a contrast class, the maps of the target's training images against it.
        explain: maps by another explainer.
        random: the samples' random streams, of which the seed counts.
        batch_size: training images that are explained at a time.
        references: training images `[N, C, H, W]`, preprocessed as the images. A study takes them from its training split.
        labels: their classes, int `[N]`; an image of several classes comes once for each.
        base: M, the name of a method.
        samples: n, the training images of a class that count, its first ones, or all if there are fewer.
        options: of the base method.

    Returns:
        Maps `[B, T, h, w]` on the grid of the base method.

    Checked:
        the mean of maps that were made one by one, to 1e-6: tests/explainers/test_control_average.py.

    Raises:
        InputError: there are no references, they do not fit the images or their labels, or none is of a class that is
            explained.

    Example:
        >>> import heatproof as hp
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> given = {"references": torch.rand(6, 1, 4, 4), "labels": [0, 1, 0, 1, 0, 1]}
        >>> hp.explain(net.eval(), torch.rand(2, 1, 4, 4), [0, 1], method="control_average", base="lrp_z", **given).shape
        torch.Size([2, 4, 4])
    """
    check_count("samples", samples)
    known, classes = _references_of(references, labels, images)
    averages: dict[tuple[int, ...], Tensor] = {}

    def average(pair: tuple[int, ...]) -> Tensor:
        rows = (classes == pair[0]).nonzero()[:samples, 0]
        if not len(rows):
            raise InputError(
                f"control_average: none of the {len(known)} references is of class {pair[0]}, which is explained (labels: "
                f"{sorted(set(classes.tolist()))}). Give training images of it."
            )

        def maps_of(rows: Tensor) -> Tensor:
            part = known[rows].to(images)
            of_pair = [torch.full((len(rows), 1), index, device=images.device) for index in pair]
            streams = SampleRandom(random.seed, content_keys(part))
            return explain(part, Targets(*of_pair), base, options or {}, streams)[:, 0]

        return MicroBatch(batch_size).run(maps_of, rows).mean(0)

    both = [targets.index] if targets.against is None else [targets.index, targets.against]
    pairs = [tuple(pair) for pair in torch.stack(both, -1).flatten(0, 1).tolist()]
    for pair in pairs:
        if pair not in averages:
            averages[pair] = average(pair)
    maps = torch.stack([averages[pair] for pair in pairs])
    return maps.view(*targets.index.shape, *maps.shape[1:])


def _references_of(
    references: Tensor | None, labels: Tensor | Sequence[int] | None, images: Tensor
) -> tuple[Tensor, Tensor]:
    """The references and their labels, int64 `[N]`, as they must be."""
    if references is None or labels is None:
        raise InputError(
            "control_average is made of training images: give references=[N, C, H, W] and labels=[N]. In a study they come "
            "from the training split."
        )
    shape = images.shape[1:]
    if not isinstance(references, Tensor) or references.shape[1:] != shape or not references.numel():
        got = f"a tensor {list(references.shape)}" if isinstance(references, Tensor) else type(references).__name__
        raise InputError(
            f"references must be images [N, {', '.join(map(str, shape))}], got {got}: preprocess them as the images."
        )
    try:
        classes = torch.as_tensor(labels, device=references.device)
    except (TypeError, ValueError, RuntimeError):  # names, say
        classes = references.new_empty(0)
    if classes.shape != references.shape[:1] or classes.dtype not in _INTEGERS:
        raise InputError(
            f"labels must be the class of each of the {len(references)} references, integers [N], got {str(labels)[:80]}."
        )
    return references, classes.long()


def _bell(side: int, device: torch.device) -> Tensor:
    offsets = torch.arange(side, device=device, dtype=torch.float32) - (side - 1) / 2
    return torch.exp(-0.5 * (offsets / (side / 4)) ** 2)
