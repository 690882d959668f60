"""How much work a study is: forward passes counted before anything starts, and the time of one that was measured."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from heatproof.datasets.table import Dataset
from heatproof.explanation import methods
from heatproof.metrics import Metric
from heatproof.metrics.randomization import weighted_layers
from heatproof.metrics.registry import THE_IMAGE
from heatproof.models import Classifier
from heatproof.probing.precision import Precision, forward_pass
from heatproof.registry import Entry
from heatproof.scoring import metrics
from heatproof.study.chunks import metrics_of
from heatproof.study.models import blank_images
from heatproof.study.recipe import MetricSpec, ModelSpec, Recipe

# Forward passes that one map costs in time, where no `samples` option says so: a backward pass counts as two, and the
# relevance rules run several products for one.
_MAP_PASSES = {"control": 0, "attention": 4, "cam": 3, "relevance": 5}
_TRAINING_PASSES = 3  # forward and backward


@dataclass(frozen=True)
class ModelPlan:
    """The forward passes (of one image) that a model's part of the study takes, and the seconds of one."""

    training: int
    prediction: int
    explaining: Mapping[str, int]  # method -> passes a map and its scores
    comparing: Mapping[str, int]  # method -> passes a map for the metrics that compare all samples
    cases: int
    seconds: float

    @property
    def passes(self) -> int:
        """All of them."""
        a_case = sum(self.explaining.values()) + sum(self.comparing.values())
        return self.training + self.prediction + self.cases * a_case

    @property
    def time(self) -> float:
        """Predicted seconds."""
        return self.passes * self.seconds


def plan_model(
    recipe: Recipe,
    spec: ModelSpec,
    clf: Classifier,
    dataset: Dataset,
    *,
    cases: int,
    seconds: float,
    unsupported: Collection[str],
) -> ModelPlan:
    """The work of one model.

    `cases` maps are made by each method, `seconds` is the time of one forward pass an image; `unsupported` methods cost
    nothing.
    """
    counts = dataset.samples["split"].value_counts()
    train, val, test = (int(counts.get(name, 0)) for name in ("train", "val", "test"))
    epochs = spec.training.epochs if spec.training else 0
    height, width = clf.preprocessing.image_size
    explaining, comparing = {}, {}
    for method in recipe.methods:
        one_map = map_passes(methods()[method.name], method.options)
        alone, together = (
            score_passes(
                metrics_of(recipe, cohort=cohort), one_map, height * width, layers=len(weighted_layers(clf.module))
            )
            for cohort in (False, True)
        )
        supported = method.label not in unsupported
        explaining[method.label], comparing[method.label] = supported * (one_map + alone), supported * together
    return ModelPlan(epochs * (_TRAINING_PASSES * train + val), val + test, explaining, comparing, cases, seconds)


def score_passes(specs: Sequence[MetricSpec], one_map: int, pixels: int, *, layers: int) -> int:
    """Forward passes for all scores of one map, which itself takes `one_map`; metrics that share their probes count once.

    `layers` of the model are randomised one after another by the metrics that do so.
    """
    shared: dict[Any, int] = {}
    for spec in specs:
        entry = metrics()[spec.name]
        shared |= _score_passes(entry, {**entry.options, **spec.options}, one_map, pixels, layers)
    return sum(shared.values())


def map_passes(entry: Entry, options: Mapping[str, Any]) -> int:
    """Forward passes for the map of one image."""
    given, family = {**entry.options, **options}, str(getattr(entry, "family", ""))
    if "base" in given:  # the maps of another method, of so many images or beside its own
        of_base = map_passes(methods()[given["base"]], given["options"] or {})
        return int(given["samples"]) * of_base if "samples" in given else of_base + _MAP_PASSES[family]
    if given.get("samples"):
        return int(given["samples"]) * (_TRAINING_PASSES if family == "gradient" else 1)
    if given.get("steps"):
        return _TRAINING_PASSES * int(given["steps"])
    return _MAP_PASSES.get(family, _TRAINING_PASSES)


def _score_passes(entry: Metric, options: Mapping[str, Any], one_map: int, pixels: int, layers: int) -> dict[Any, int]:
    """Forward passes for the score of one map, by what they look at: two metrics with the same key share it."""
    found: dict[Any, int] = {}
    if "explain" in entry.needs:
        used = sorted((name, str(value)) for name, value in options.items() if name not in _AFTERWARDS)
        found["explanations", str(used)] = explanations(options, layers) * one_map
    probed = {} if entry.passes is None else entry.passes(options, pixels)
    return {**found, THE_IMAGE: 1, **probed} if probed else found


# options that say what is made of the changed images, not which they are
_AFTERWARDS = {"denominator", "same_prediction", "similarity", "layer"}


def explanations(options: Mapping[str, Any], layers: int) -> int:
    """How often a metric explains changed images, or a changed model, by its options."""
    versions = int(options.get("samples") or options.get("steps") or 1)
    if "order" not in options:
        return versions
    return versions * (layers + ("samples" in options))  # the trained model too, where its maps are made anew


def seconds_a_pass(clf: Classifier, batch_size: int, precision: Precision = "fp32") -> float:
    """The time of one forward pass for one image, in a batch of `batch_size`: the best of three."""
    images = blank_images(clf, batch_size)
    best = float("inf")
    with torch.no_grad():
        forward_pass(clf, images, precision)
        for _ in range(3):
            started = time.perf_counter()
            forward_pass(clf, images, precision).sum().item()  # .item() waits for the device
            best = min(best, time.perf_counter() - started)
    return best / batch_size


def in_words(seconds: float) -> str:
    """A time that a person can use.

    >>> in_words(0.2), in_words(5), in_words(250), in_words(8000)
    ('under 1 s', '5 s', '4 min', '2.2 h')
    """
    if seconds < 1:
        return "under 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def total(plans: Sequence[ModelPlan]) -> tuple[int, float]:
    """(forward passes, seconds) of all models."""
    return sum(plan.passes for plan in plans), sum(plan.time for plan in plans)
