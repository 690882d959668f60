"""Explainers as the functions that evaluation libraries call."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from heatproof.errors import InputError
from heatproof.explanation import explain
from heatproof.models import Classifier, as_classifier


def quantus_explain_func(
    model: nn.Module,
    inputs: ArrayLike,
    targets: ArrayLike,
    *,
    method: str = "transformer_lrp",
    classifier: Classifier | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> NDArray[Any]:
    """Any explainer of Heatproof as the `explain_func` of Quantus (`hedstrom2023quantus`), which needs no patch.

    Quantus calls it with the model it evaluates (a copy with random weights, in its randomisation tests), with gradients
    switched off. It gives what `heatproof.explain` gives: raw maps, signed where the method is signed; `normalise=` and
    `abs=` of Quantus's metrics say what becomes of them. The same function makes the `a_batch` of a metric.

    Args:
        model: the module that Quantus hands over, in evaluation mode.
        inputs: preprocessed images, `[B, C, H, W]`.
        targets: the class to explain of each, `[B]`.
        method: a name of `heatproof.methods()`.
        classifier: what the module does not say of itself (normalisation, classes, task), for methods that need raw
            intensities; its own weights are not looked at.
        device: where the maps are computed, as in Quantus; the model must be there. By default where it is.
        **options: of the method, and `seed`, `keys`, `batch_size`, `strict` or `against` of `heatproof.explain`.

    Returns:
        float32 `[B, 1, H, W]`: one value a pixel, whatever the number of channels.

    Raises:
        InputError: an argument is not what it must be, an option of `heatproof.explain` that changes the maps' shape
            among them.
        UnsupportedModelError: the method cannot serve this model.

    Example:
        With Quantus: `metric(model=net, x_batch=x, y_batch=y, a_batch=None, explain_func=quantus_explain_func,
        explain_func_kwargs={"method": "gradcam"})`. By itself:

        >>> import numpy as np
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> images = np.random.default_rng(0).random((3, 1, 8, 8))
        >>> quantus_explain_func(net.eval(), images, [0, 1, 1], method="gradcam").shape
        (3, 1, 8, 8)
    """
    if options.get("resolution", "input") != "input":
        raise InputError("Quantus needs maps of the images' size: leave resolution out, or set it to 'input'.")
    subject = _with_module(classifier, model)
    weight = next(subject.module.parameters(), torch.empty(0))
    with torch.inference_mode(False):  # tensors made in the caller's inference mode could not take part in gradients
        images = torch.as_tensor(inputs, dtype=weight.dtype, device=device or weight.device)
        chosen = torch.as_tensor(targets, device=images.device)
    if chosen.ndim != 1:
        raise InputError(f"targets must be one class an image, [B], got shape {list(chosen.shape)}.")
    return explain(subject, images, chosen, method=method, **options)[:, None].cpu().numpy()


def captum_explanation_func(
    model: nn.Module | Classifier, *, method: str = "transformer_lrp", **options: Any
) -> Callable[..., Any]:
    """Any explainer of Heatproof as an explanation function of captum (`kokhlikyan2020captum`).

    Args:
        model: what is explained, in evaluation mode.
        method: a name of `heatproof.methods()`.
        **options: of the method, and of `heatproof.explain`.

    Returns:
        A function `(inputs, target=None)` from images `[B, C, H, W]` to maps `[B, 1, H, W]`; a tuple of one tensor, which
        captum's metrics use, gives a tuple.

    Raises:
        InputError: when called, if an argument is not what it must be.
        UnsupportedModelError: when called, if the method cannot serve this model.

    Example:
        With captum: `sensitivity_max(captum_explanation_func(net, method="gradcam"), images, target=classes)`. By itself:

        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> function = captum_explanation_func(net.eval(), method="gradcam")
        >>> function(torch.rand(3, 1, 8, 8), target=torch.tensor([0, 1, 1])).shape
        torch.Size([3, 1, 8, 8])
    """

    def explanation(inputs: Tensor | tuple[Tensor, ...], target: Tensor | int | None = None) -> Any:
        if isinstance(inputs, tuple):
            if len(inputs) != 1:
                raise InputError(f"An image classifier has one input, got a tuple of {len(inputs)}.")
            return (explanation(inputs[0], target),)
        wanted = None if target is None else torch.as_tensor(target).expand(len(inputs))
        return explain(model, inputs, wanted, method=method, **options)[:, None]

    return explanation


def _with_module(classifier: Classifier | None, module: nn.Module) -> Classifier:
    """`classifier` with another module in place of its own."""
    if classifier is None:
        return as_classifier(module)
    return Classifier(module, classifier.classes, task=classifier.task, **asdict(classifier.preprocessing))
