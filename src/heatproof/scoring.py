"""Front doors `score` and `curve`: maps in, numbers out."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from heatproof import explanation
from heatproof.errors import InputError
from heatproof.explainers import EXPLAINERS
from heatproof.metrics import METRICS, Case, Curve, Metric
from heatproof.models import Classifier, as_classifier
from heatproof.probing import MicroBatch, Precision, SampleRandom, bind, options_of_rows
from heatproof.probing.progress import Meter, bar

Explain: TypeAlias = str | tuple[str, Mapping[str, Any]] | Callable[..., Tensor]
Request: TypeAlias = str | tuple[str, Mapping[str, Any]] | Mapping[str, Any]

R = TypeVar("R")

_IMAGES_AT_ONCE = 8  # flat in memory; the micro-batch of forward passes is chosen apart from it


def metrics() -> Mapping[str, Metric]:
    """Every metric by name, with its metadata: category, direction, bounds, needs, options and source.

    >>> metrics()["faithfulness_estimate"].bounds
    (-1, 1)
    """
    return METRICS


def score(
    model: Classifier | nn.Module,
    images: Tensor,
    maps: Tensor,
    *,
    metric: str,
    explain: Explain | None = None,
    targets: Tensor | Sequence[int] | None = None,
    roi: Tensor | None = None,
    keys: Sequence[str] | None = None,
    batch_size: int | None = None,
    precision: Precision = "fp32",
    progress: bool = False,
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """How good the maps of some images are, by one metric.

    What a random map would have scored against the same region is `heatproof.chance`; the score less that is the lift.

    Args:
        model: a `Classifier`, or any module that maps images to logits `[B, K]`; in evaluation mode.
        images: preprocessed, float `[B, C, H, W]`.
        maps: as `heatproof.explain` gives them, `[B, H, W]`, or `[B, T, H, W]` for T targets of each image. For metrics
            under `tokens=True` also on their own grid, `[B, h, w]` or `[B, T, h, w]`.
        metric: a name of `metrics()`.
        explain: how the maps were made, for metrics that explain changed images: a method's name, `(name, options)`, or a
            callable `(images [n, C, H, W], targets [n]) -> maps [n, H, W]`, which for metrics that change the model takes
            `model`, a `Classifier`, as well. A method is run under the `seed` and the keys given here, so what it draws
            for a sample is the same for every version of it: give those of the maps.
        targets: the explained classes, `[B]` or `[B, T]`; by default the model's own prediction.
        roi: the expert's regions, `[B, H, W]` or `[B, T, H, W]` as the maps are; counted where > 0.
        keys: the samples' ids, from which random draws come; by default a hash of each image.
        batch_size: images in one forward pass; by default measured. It changes no score beyond rounding.
        precision: `bf16` runs the forward passes over changed images in bfloat16; a method of `explain` that needs
            gradients stays in fp32.
        progress: show a progress bar on standard error.
        seed: of the random draws.
        **options: of the metric, see `metrics()[metric].options`.

    Returns:
        float32 `[B]` (`[B, T]`) on the images' device. NaN where the score is undefined: a constant map or one with NaN, an
        empty region, or what the metric says.

    Raises:
        InputError: an argument is not what it must be.
        UnsupportedModelError: the method of `explain` cannot serve this model.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False)).eval()
        >>> images = torch.rand(3, 1, 4, 4)
        >>> maps = images[:, 0] * net[1].weight[1].view(4, 4)  # what each pixel adds to the logit
        >>> score(net, images, maps, metric="faithfulness_estimate", targets=[1, 1, 1], baseline=0.0, output="logit")
        tensor([1., 1., 1.])
    """
    found = score_many(
        model,
        images,
        maps,
        metrics=[(metric, options)],
        explain=explain,
        targets=targets,
        roi=roi,
        keys=keys,
        batch_size=batch_size,
        precision=precision,
        progress=progress,
        seed=seed,
    )
    return found[metric]


def score_many(
    model: Classifier | nn.Module,
    images: Tensor,
    maps: Tensor,
    *,
    metrics: Sequence[Request],
    explain: Explain | None = None,
    targets: Tensor | Sequence[int] | None = None,
    roi: Tensor | None = None,
    keys: Sequence[str] | None = None,
    batch_size: int | None = None,
    precision: Precision = "fp32",
    progress: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Several metrics of the same maps; they share the forward passes and the explanations that they have in common.

    Args:
        model: as in `score`, like all that follows but `metrics`.
        images: `[B, C, H, W]`.
        maps: `[B, H, W]` or `[B, T, H, W]`.
        metrics: names, `(name, options)`, or `{"metric": name, "as": label, **options}`.
        explain: how the maps were made.
        targets: `[B]` or `[B, T]`.
        roi: `[B, H, W]` or `[B, T, H, W]`.
        keys: the samples' ids.
        batch_size: images in one forward pass.
        precision: `fp32` or `bf16`.
        progress: show a progress bar.
        seed: of the random draws.

    Returns:
        label -> float32 `[B]` (`[B, T]`), in the order of `metrics`; the label is the name unless `as` gives another.

    Raises:
        InputError: an argument is not what it must be, or two metrics have the same label.

    Example:
        >>> maps, regions = torch.rand(2, 8, 8), torch.ones(2, 8, 8, dtype=torch.bool)
        >>> wanted = ["pointing_game", {"metric": "iou", "top": 100, "as": "iou_of_all"}]
        >>> score_many(nn.Identity().eval(), torch.rand(2, 1, 8, 8), maps, metrics=wanted, roi=regions)
        {'pointing_game': tensor([1., 1.]), 'iou_of_all': tensor([1., 1.])}
    """
    requests = _parse(metrics)
    _check_needs(requests, explain, roi)
    context = _context(model, explain, batch_size, precision, seed)
    calls = {request.label: request.call for request in requests}
    cohorts = {request.label for request in requests if "cohort" in request.entry.needs}
    with torch.inference_mode(False), torch.no_grad():  # the caller's mode is no obstacle
        samples = _check_samples(context.classifier, images, maps, requests, targets, roi, keys)
        found = _collect(context, samples, {k: call for k, call in calls.items() if k not in cohorts}, progress)
        found |= _collect_cohorts(context, samples, {k: call for k, call in calls.items() if k in cohorts}, progress)
    shape = maps.shape[:-2]
    return {label: torch.cat(found[label]).float().view(shape) for label in calls}


def curve(
    model: Classifier | nn.Module,
    images: Tensor,
    maps: Tensor,
    *,
    metric: str = "deletion",
    targets: Tensor | Sequence[int] | None = None,
    keys: Sequence[str] | None = None,
    batch_size: int | None = None,
    precision: Precision = "fp32",
    progress: bool = False,
    seed: int = 0,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """The curve whose area or mean a metric is: such as the model's output as the image changes in the order of the map.

    Args:
        model: as in `score`, like all that follows.
        images: `[B, C, H, W]`.
        maps: `[B, H, W]` or `[B, T, H, W]`.
        metric: `deletion`, `insertion` or another metric that is the area under a curve, or its mean.
        targets: `[B]` or `[B, T]`.
        keys: the samples' ids.
        batch_size: images in one forward pass.
        precision: `fp32` or `bf16`.
        progress: show a progress bar.
        seed: of the random draws.
        **options: of the metric, see `metrics()[metric].options`.

    Returns:
        float32 x `[P]`, the changed share of the pixels (or tokens, or windows), and y `[B, P]` (`[B, T, P]`), the output
        there, or what the metric says; NaN for an undefined map.

    Raises:
        InputError: an argument is not what it must be, or the metric has no curve.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).eval()
        >>> _ = nn.init.ones_(net[1].weight)  # the logit is the sum of the pixels
        >>> maps = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
        >>> curve(net, maps[:, None], maps, targets=[0], step=1, baseline=0.0, output="logit")
        (tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000]), tensor([[10.,  6.,  3.,  1.,  0.]]))
    """
    request = _parse_one((metric, options))
    if request.entry.curve is None:
        areas, means = (
            ", ".join(sorted(name for name, entry in METRICS.items() if entry.of_curve == kind))
            for kind in ("area", "mean")
        )
        raise InputError(f"{metric} is not the area under a curve. Those that are: {areas}; the mean of one: {means}.")
    context = _context(model, None, batch_size, precision, seed)
    with torch.inference_mode(False), torch.no_grad():
        samples = _check_samples(context.classifier, images, maps, [request], targets, None, keys)
        calls = {metric: partial(request.entry.curve, **request.options)}
        curves: list[Curve] = _collect(context, samples, calls, progress)[metric]
    return curves[0].x.float(), torch.cat([found.y for found in curves]).float().view(*maps.shape[:-2], -1)


def _context(
    model: Classifier | nn.Module, explain: Explain | None, batch_size: int | None, precision: Precision, seed: int
) -> "_Context":
    size = explanation.check_batch_size(batch_size)
    return _Context(as_classifier(model), explain, size, precision, seed, MicroBatch(size))


def _collect(
    context: "_Context", samples: "_Samples", calls: "Mapping[str, partial[R]]", progress: bool
) -> dict[str, list[R]]:
    """What each of `calls` makes of the samples, a few images at a time; they share what a `Case` keeps."""
    found: dict[str, list[R]] = {label: [] for label in calls}
    if not calls:
        return found
    with bar("scoring", len(samples.images) * len(calls), progress) as show:
        meter = Meter(show)
        for start in range(0, len(samples.images), _IMAGES_AT_ONCE):
            part = samples.rows(start, start + _IMAGES_AT_ONCE)
            case, rows = context.case(part, meter), slice(start, start + _IMAGES_AT_ONCE)
            for label, call in calls.items():
                options = options_of_rows(call.keywords, len(samples.images), rows, part.maps.shape[1])
                with meter.covering(len(part.images)):
                    found[label].append(call.func(case, **options))
    return found


def _collect_cohorts(
    context: "_Context", samples: "_Samples", calls: "Mapping[str, partial[Tensor]]", progress: bool
) -> dict[str, list[Tensor]]:
    """As `_collect`, of calls that need all samples at once: the maps of each column of targets are a cohort."""
    if not calls:
        return {}
    found: dict[str, list[Tensor]] = {label: [] for label in calls}
    columns = samples.targets.shape[1]
    with bar("scoring", len(samples.images) * columns * len(calls), progress) as show:
        meter = Meter(show)
        for column in range(columns):
            case = context.case(samples.column(column), meter)
            for label, call in calls.items():
                with meter.covering(len(samples.images)):
                    found[label].append(call(case))
    return {label: [torch.stack(values, 1)] for label, values in found.items()}


@dataclass(frozen=True)
class _Request:
    """One metric as asked for."""

    label: str
    entry: Metric
    options: Mapping[str, Any]

    @property
    def call(self) -> "partial[Tensor]":
        """The metric under these options."""
        return partial(self.entry.function, **self.options)


def _parse(metrics: Sequence[Request]) -> list[_Request]:
    if isinstance(metrics, str | Mapping) or not metrics:
        raise InputError(f"metrics must be a list with at least one metric, got {metrics!r}.")
    requests = [_parse_one(item) for item in metrics]
    labels = [request.label for request in requests]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(
                f'Two metrics are labelled {label!r}: name them apart with {{"metric": ..., "as": label}}.'
            )
    return requests


def _parse_one(item: Request) -> _Request:
    if isinstance(item, str):
        item = {"metric": item}
    elif isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Mapping):
        item = {**item[1], "metric": item[0]}
    if not isinstance(item, Mapping) or "metric" not in item:
        raise InputError(f'A metric is a name, (name, options) or {{"metric": name, "as": label, ...}}, got {item!r}.')
    options = dict(item)
    name = options.pop("metric")
    label = options.pop("as", name)
    entry = METRICS[name]
    entry.check_options(options)
    return _Request(label, entry, options)


def _check_needs(requests: Sequence[_Request], explain: Explain | None, roi: Tensor | None) -> None:
    for request in requests:
        if "explain" in request.entry.needs and explain is None:
            raise InputError(
                f"{request.label} explains changed images: pass explain= (a method name, (name, options) or a callable)."
            )
        if "roi" in request.entry.needs and roi is None:
            raise InputError(f"{request.label} compares the map with a region: pass roi= (bool, shaped like the maps).")
    if isinstance(explain, str):
        explain = (explain, {})
    if isinstance(explain, tuple) and len(explain) == 2:
        EXPLAINERS[explain[0]].check_options(explain[1])
    elif explain is not None and not callable(explain):
        raise InputError(f"explain must be a method name, (name, options) or a callable, got {explain!r}.")


@dataclass(frozen=True)
class _Samples:
    """B images with T maps each: targets `[B, T]`, maps `[B, T, H, W]` or on a grid of their own, roi `[B, T, H, W]`."""

    images: Tensor
    targets: Tensor
    maps: Tensor
    roi: Tensor | None
    keys: list[str]

    def rows(self, start: int, stop: int) -> "_Samples":
        roi = None if self.roi is None else self.roi[start:stop]
        rows = slice(start, stop)
        return _Samples(self.images[rows], self.targets[rows], self.maps[rows], roi, self.keys[rows])

    def column(self, number: int) -> "_Samples":
        """All images with one of their maps each."""
        one = slice(number, number + 1)
        roi = None if self.roi is None else self.roi[:, one]
        return _Samples(self.images, self.targets[:, one], self.maps[:, one], roi, self.keys)


def _check_samples(
    classifier: Classifier,
    images: Tensor,
    maps: Tensor,
    requests: Sequence[_Request],
    targets: Tensor | Sequence[int] | None,
    roi: Tensor | None,
    keys: Sequence[str] | None,
) -> _Samples:
    explanation.check_images(images)
    images = images.detach()
    if not isinstance(maps, Tensor) or not maps.is_floating_point() or maps.ndim not in (3, 4):
        got = f"{maps.dtype} {list(maps.shape)}" if isinstance(maps, Tensor) else type(maps).__name__
        raise InputError(f"maps must be a float tensor [B, H, W] or [B, T, H, W], got {got}.")
    size = images.shape[-2:]
    own_grid = all(request.options.get("tokens", False) is not False for request in requests)
    if len(maps) != len(images) or (maps.shape[-2:] != size and not own_grid) or 0 in maps.shape:
        raise InputError(
            f"maps {list(maps.shape)} do not fit images {list(images.shape)}: both have B samples of H × W pixels. Maps on "
            "a grid of their own are for metrics under tokens=True."
        )
    wanted = (*maps.shape[:-2], *size)
    if roi is not None and roi.shape != wanted:
        raise InputError(
            f"roi must have the shape {list(wanted)}, one region of H × W pixels a map, got {list(roi.shape)}."
        )
    needs_model = any("model" in request.entry.needs for request in requests)
    index = _resolve_index(classifier, images, maps, targets, needs_model)
    table = maps if maps.ndim == 4 else maps[:, None]
    regions = None if roi is None else (roi > 0).view(*table.shape[:2], *size).to(images.device)
    return _Samples(
        images, index, table.detach().to(images.device, torch.float32), regions, explanation.check_keys(keys, images)
    )


def _resolve_index(
    classifier: Classifier, images: Tensor, maps: Tensor, targets: Tensor | Sequence[int] | None, needs_model: bool
) -> Tensor:
    """The targets `[B, T]`; -1 where none were given and no metric needs the model, which then does not run."""
    shape = maps.shape[:-2] if maps.ndim == 4 else (len(images), 1)
    if targets is None and not needs_model:
        return torch.full(shape, -1, device=images.device)
    index = explanation.resolve_targets(classifier, images, targets).index
    if index.shape != shape or (targets is not None and torch.as_tensor(targets).ndim != maps.ndim - 2):
        raise InputError(
            f"maps {list(maps.shape)} are of targets {list(maps.shape[:-2])}, got targets "
            f"{'None, one for each image' if targets is None else list(torch.as_tensor(targets).shape)}."
        )
    return index


@dataclass(frozen=True)
class _Context:
    """What is the same for all chunks of images."""

    classifier: Classifier
    explain: Explain | None
    batch_size: int | None
    precision: Precision
    seed: int
    micro: MicroBatch

    def case(self, part: _Samples, progress: Callable[[float], None]) -> Case:
        """The samples of a chunk, an image with T targets as T samples of the same random stream."""
        count = part.maps.shape[1]
        images, targets = part.images.repeat_interleave(count, 0), part.targets.flatten()
        keys = [key for key in part.keys for _ in range(count)]
        random = SampleRandom(self.seed, keys)
        probe = bind(
            self.classifier,
            images,
            lambda outputs: outputs.gather(1, targets[:, None])[:, 0],
            random=random,
            batch_size=self.micro,
            precision=self.precision,
            progress=progress,
        )
        return Case(
            model=self.classifier,
            images=images,
            targets=targets,
            maps=part.maps.flatten(0, 1),
            random=random,
            probe=probe,
            roi=None if part.roi is None else part.roi.flatten(0, 1),
            explainer=self._explainer(keys),
        )

    def _explainer(self, keys: list[str]) -> Callable[[Tensor, Tensor, Classifier | None], Tensor] | None:
        if self.explain is None:
            return None
        if not isinstance(self.explain, str | tuple):
            return _in_groups(self.explain, self.batch_size or _IMAGES_AT_ONCE)
        method, options = (self.explain, {}) if isinstance(self.explain, str) else self.explain

        def explain(images: Tensor, targets: Tensor, model: Classifier | None) -> Tensor:
            with torch.enable_grad():
                return explanation.explain(
                    model or self.classifier,
                    images,
                    targets,
                    method=method,
                    keys=keys * (len(images) // len(keys)),
                    batch_size=self.batch_size,
                    precision=explanation.probing_precision(method, self.precision),
                    seed=self.seed,
                    **options,
                )

        return explain


def _in_groups(function: Callable[..., Tensor], size: int) -> Callable[[Tensor, Tensor, Classifier | None], Tensor]:
    """The user's callable on a few images at a time, free to use gradients."""

    def explain(images: Tensor, targets: Tensor, model: Classifier | None) -> Tensor:
        if model is not None and not _takes_model(function):
            raise InputError(
                "This metric explains a changed copy of the model, and the callable explains its own: give explain= as a "
                "method's name or (name, options), or a callable (images, targets, *, model)."
            )
        given = {} if model is None else {"model": model}

        def maps_of(rows: Tensor) -> Tensor:
            maps = function(images[rows], targets[rows], **given)
            if not isinstance(maps, Tensor):
                raise InputError(f"explain= must give a tensor of maps [n, H, W], got {type(maps).__name__}.")
            return maps.detach()

        with torch.enable_grad():
            return MicroBatch(size).run(maps_of, torch.arange(len(images), device=images.device))

    return explain


def _takes_model(function: Callable[..., Tensor]) -> bool:
    parameters = inspect.signature(function).parameters
    return "model" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
