"""Each method and metric of a recipe tried once, cheaply, so that a wrong option is found before the work and not in it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from heatproof.errors import InputError, UnsupportedModelError
from heatproof.explanation import explain, methods
from heatproof.models import Classifier
from heatproof.registry import Entry
from heatproof.scoring import metrics, score_many
from heatproof.study.recipe import Recipe

_FEW = 2  # draws and steps are cut to this many: their number is the cost, not the question
_COSTLY = ("samples", "steps", "runs")


def try_methods(recipe: Recipe, clf: Classifier) -> set[str]:
    """Explain one image of noise by every method; the labels of those that cannot serve this model, which is no error.

    Raises:
        InputError: an option has a value that is not allowed; the message says which method.
    """
    image = _noise(clf)
    unsupported = set()
    for index, method in enumerate(recipe.methods):
        entry = methods()[method.name]
        options = _cheap(method.options, entry)
        if "references" in entry.needs:
            if drawn := sorted({"references", "labels"} & method.options.keys()):
                raise InputError(
                    f"methods[{index}]: {method.label}: {' and '.join(drawn)} are drawn from the study's training split: "
                    "leave them out."
                )
            options |= {"references": image, "labels": [0]}  # which are not drawn yet
        try:
            explain(clf, image, [0], method=method.name, keys=["trial"], batch_size=1, **options)
        except UnsupportedModelError:
            unsupported.add(method.label)
        except InputError as error:
            raise InputError(f"methods[{index}]: {method.label}: {error}") from None
    return unsupported


def try_metrics(recipe: Recipe, clf: Classifier) -> None:
    """Score one map of noise by every metric, under a model that costs next to nothing.

    Raises:
        InputError: an option has a value that is not allowed; the message says which metric.
    """
    image = _noise(clf)
    maps = image.mean(1)
    stand_in = _with_network(clf, _Mean(len(clf.classes or ())))
    for index, metric in enumerate(recipe.metrics):
        wanted = {**_cheap(metric.options, metrics()[metric.name]), "metric": metric.name, "as": metric.label}
        try:
            score_many(
                stand_in, image, maps, metrics=[wanted], explain=lambda images, _, **__: images.mean(1), targets=[0],
                roi=maps > maps.median(), keys=["trial"],
            )  # fmt: skip
        except UnsupportedModelError:
            pass  # the stand-in has no tokens to take out, which says nothing about the model of the study
        except InputError as error:
            raise InputError(f"metrics[{index}]: {metric.label}: {error}") from None


class _Mean(nn.Module):
    """Logits that are multiples of the mean intensity."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.arange(float(classes)))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3))[:, None] * self.scale


def _with_network(clf: Classifier, network: nn.Module) -> Classifier:
    other = Classifier(network.to(clf.device).eval(), clf.classes)
    other.preprocessing = clf.preprocessing
    return other


def _noise(clf: Classifier) -> Tensor:
    size = (1, clf.preprocessing.channels, *clf.preprocessing.image_size)
    return clf.preprocessing.normalize(torch.rand(size, generator=torch.Generator().manual_seed(0))).to(clf.device)


def _cheap(options: Mapping[str, Any], entry: Entry) -> dict[str, Any]:
    """The options with few draws, also where their number is the default."""
    draws = {name: value for name, value in {**entry.options, **options}.items() if name in _COSTLY}
    few = {name: _FEW for name, value in draws.items() if isinstance(value, int) and value > _FEW}
    return {**options, **few}
