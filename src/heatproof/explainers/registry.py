"""The explainers by name.

An explainer is a function `(model, images, targets, *, options...) -> maps`: a `Classifier`, images `[B, C, H, W]`,
`Targets` `[B, T]`, and maps `[B, T, h, w]` on the method's own grid (the front door upsamples them). It may ask for these
by keyword, which the front door fills in:

* `random`: a `SampleRandom`, one stream of random numbers a sample;
* `probe`: `probe(masks, baseline=..., output=...) -> [B, K, T]`, the model on masked versions of the images;
* `explain`: an `Explain`, the maps of other images by another explainer;
* `batch_size`: how many images may go through the model at a time and back;
* `strict`: whether an operation without a relevance rule is an error.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from heatproof.models import Targets
from heatproof.probing import SampleRandom
from heatproof.registry import Entry, Registry, entry_fields

INJECTED = frozenset({"random", "probe", "explain", "batch_size", "strict"})
Upsampling = Literal["bilinear", "nearest"]
Sum = Literal["f(x) − f(baseline)", "f(x) − f(blurred x)", "f(x)", "1"]


class Explain(Protocol):
    """`(images, targets, method, options, random) -> maps` `[B, T, h, w]` of the same model, on the method's own grid.

    `random` are the streams of these images, by default those of the images to be explained.
    """

    def __call__(
        self, images: Tensor, targets: Targets, method: str, options: Mapping[str, Any], random: SampleRandom = ...
    ) -> Tensor:
        """The maps."""
        ...


@dataclass(frozen=True)
class Explainer(Entry):
    """An explainer and its metadata, of its default options where they make a difference.

    `signed`: maps can speak against the target; those of other methods are never negative, unless a contrast is explained.
    `upsampling` takes its own grid to the input's resolution.
    `class_agnostic`: the map is the same for every target.
    `linear`: the map of a contrast is the difference of the maps of its two classes, `Φ(a − b) = Φ(a) − Φ(b)`.
    `complete`: what the pixels of a map sum to, None where that is not known. f is the explained score (a logit, or the
    difference of two), and the baseline the method's own option. `f(x)` and `1` hold where nothing but the image adds to
    the score: in a network of linear layers, ReLU and max pooling without biases or tokens of its own.
    """

    family: str
    signed: bool
    upsampling: Upsampling
    class_agnostic: bool
    linear: bool
    complete: Sum | None


EXPLAINERS: Registry[Explainer] = Registry("explainer")


def explainer(
    name: str,
    *,
    family: str,
    signed: bool,
    paper: str,
    needs: Collection[str] = (),
    upsampling: Upsampling = "bilinear",
    class_agnostic: bool = False,
    linear: bool = False,
    complete: Sum | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as the explainer `name`; the arguments are fields of `Explainer`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        fields = entry_fields(name, function, paper, needs, INJECTED)
        EXPLAINERS.add(
            Explainer(
                **fields,
                family=family,
                signed=signed,
                upsampling=upsampling,
                class_agnostic=class_agnostic,
                linear=linear,
                complete=complete,
            )
        )
        return function

    return register
