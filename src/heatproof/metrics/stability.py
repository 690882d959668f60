"""Does the explanation change more than what it explains: the image, the model's answer, its inner representation?"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from heatproof.errors import InputError, UnsupportedModelError, near_names
from heatproof.metrics.registry import Case, metric
from heatproof.metrics.robustness import Draws, Units, check_above_zero, decision_passes, norms, relative_norms
from heatproof.models import Classifier
from heatproof.probing import MicroBatch
from heatproof.tracing import Operation, Tracer

_LEAST = 1e-6  # below which a change of what is explained counts as this much
_WEIGHTED = ("linear", "addmm", "matmul", "einsum", "conv")


@metric("relative_input_stability", category="robustness", higher_is_better=False, bounds=(0, None),
        needs={"model", "explain"}, paper="agarwal2022rethinking", passes=decision_passes)  # fmt: skip
def relative_input_stability(case: Case, *, samples: int = 10, radius: float = 0.02, units: Units = "raw") -> Tensor:
    """Largest relative change of the explanation over the relative change of the image.

    The x′ are the draws of `avg_sensitivity`, which shares their explanations, that leave the prediction as it is. Divisions
    are value by value, where a value of 0 is taken for 1e-6.

    Formula:
        max_{x′} ‖(Φ(x) − Φ(x′)) / Φ(x)‖ / max(‖(x − x′) / x‖, 1e-6)

    Args:
        case: N samples.
        samples: number of draws.
        radius: largest change of a value, above 0.
        units: of the radius: `raw` intensity or `normalized` model-input units; x itself is in model-input units.

    Returns:
        `[N]`; NaN for an undefined map, or if every draw changes the prediction.

    Quantus:
        Follows `RelativeInputStability` under `units="normalized"`, to 0.5 %, since it subtracts in float32. Differs where
        a draw changes the prediction: the maximum there is NaN.
    """
    draws = Draws(case, samples, check_above_zero("radius", radius), units)
    return _stability(draws, draws.changes.relative_image)


def _passes(options: Mapping[str, Any], pixels: int) -> dict[Hashable, int]:
    """Those of the decisions, and as many for the logits or the representation, which know no other precision."""
    own = ("exactly", options["samples"], options["radius"], options["units"], options.get("layer", "logits"))
    return {**decision_passes(options, pixels), own: options["samples"] + 1}


@metric("relative_output_stability", category="robustness", higher_is_better=False, bounds=(0, None),
        needs={"model", "explain"}, paper="agarwal2022rethinking", passes=_passes)  # fmt: skip
def relative_output_stability(case: Case, *, samples: int = 10, radius: float = 0.02, units: Units = "raw") -> Tensor:
    """Largest relative change of the explanation over the change of the model's logits.

    Arguments and undefined cases are those of `relative_input_stability`; h are all logits. Their differences are small, so
    they are computed in float32 whatever the precision of the other forward passes.

    Formula:
        max_{x′} ‖(Φ(x) − Φ(x′)) / Φ(x)‖ / max(‖h(x) − h(x′)‖, 1e-6)

    Returns:
        `[N]`; NaN for an undefined map, or if every draw changes the prediction.

    Quantus:
        Follows `RelativeOutputStability`, and differs, as `relative_input_stability` does.
    """
    draws = Draws(case, samples, check_above_zero("radius", radius), units)
    exact = replace(case.probe, precision="fp32")
    before = exact.logits(case.images)
    after = [exact.logits(images) for group in draws.groups() for images in group]
    return _stability(draws, torch.stack([norms(found.double() - before) for found in after], 1))


@metric("relative_representation_stability", category="robustness", higher_is_better=False, bounds=(0, None),
        needs={"model", "explain"}, paper="agarwal2022rethinking", passes=_passes)  # fmt: skip
def relative_representation_stability(
    case: Case, *, samples: int = 10, radius: float = 0.02, units: Units = "raw", layer: str | None = None
) -> Tensor:
    """Largest relative change of the explanation over the relative change of the model's representation of the image.

    As `relative_input_stability`, with L(x) by default the penultimate features: what the last dense layer, convolution or
    matrix product of the model is given.

    Formula:
        max_{x′} ‖(Φ(x) − Φ(x′)) / Φ(x)‖ / max(‖(L(x) − L(x′)) / L(x)‖, 1e-6)

    Args:
        case: N samples.
        samples: number of draws.
        radius: largest change of a value, above 0.
        units: of the radius.
        layer: name of the module whose output L(x) is, as in `module.named_modules()`.

    Returns:
        `[N]`; NaN for an undefined map, or if every draw changes the prediction.

    Quantus:
        Follows `RelativeRepresentationStability` for one layer, and differs, as `relative_input_stability` does.
    """
    draws = Draws(case, samples, check_above_zero("radius", radius), units)
    micro, features = MicroBatch(len(case.images)), partial(representation, case.model, layer=layer)
    before = micro.run(features, case.images)
    after = [micro.run(features, images) for group in draws.groups() for images in group]
    return _stability(draws, torch.stack([relative_norms(found, before) for found in after], 1))


def _stability(draws: Draws, change: Tensor) -> Tensor:
    """The largest relative change of the map over `change` `[N, samples]`."""
    return draws.largest(draws.changes.relative_map / change.clamp(min=_LEAST), same_prediction=True)


def representation(model: Classifier, images: Tensor, layer: str | None = None) -> Tensor:
    """What a model makes of images `[B, C, H, W]` before its last weighted operation, or in `layer`: `[B, ...]`.

    The operations are seen as they run; no hook is set.

    Raises:
        InputError: no module has that name, or it does not run.
        UnsupportedModelError: the model has no weighted operation.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> representation(Classifier(net.eval()), torch.rand(5, 1, 2, 2)).shape
    torch.Size([5, 3])
    """
    if layer is not None and layer not in (names := [name for name, _ in model.module.named_modules() if name]):
        raise InputError(f"The model has no module named {layer!r}. {near_names(layer, names)[:600]}")
    watch = _Watch(model.module, len(images), layer)
    with torch.no_grad(), watch:
        model(images)
    if watch.found is None and layer is not None:
        raise InputError(f"The module {layer!r} computes nothing when the model is called: choose another layer.")
    if watch.found is None:
        raise UnsupportedModelError(
            "The model runs no dense layer, convolution or matrix product, so it has no penultimate features. Name a "
            "module with layer=...."
        )
    return watch.found


class _Watch(Tracer):
    """Keeps the last result of `layer`, or what the last weighted operation is given."""

    def __init__(self, module: nn.Module, batch: int, layer: str | None) -> None:
        super().__init__(module)
        self.found: Tensor | None = None
        self._batch = batch
        self._layer = layer

    def operation(self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation as it is, and keep what is looked for."""
        result = super().operation(operation, args, kwargs)
        if self._layer is not None:
            if isinstance(result, Tensor) and f"{self.module_path()}.".startswith(f"{self._layer}."):
                self.found = result
        elif operation.name in _WEIGHTED:
            self.found = next(self._batched(args), self.found)
        return result

    def _batched(self, args: tuple[Any, ...]) -> Iterator[Tensor]:
        """The operands with a row for each image; of several, weights come after what they weigh."""
        return (arg for arg in args if isinstance(arg, Tensor) and arg.ndim > 1 and len(arg) == self._batch)
