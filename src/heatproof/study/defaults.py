"""What a recipe asks for, held against the registries: unknown names are refused, reduced numbers are listed."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from heatproof.errors import InputError
from heatproof.registry import Entry
from heatproof.study.recipe import DataSpec, PartSpec, PhantomSpec, Recipe, TrainingSpec

Row = tuple[str, str, str, str]  # part, option, value, default


def check_registries(recipe: Recipe) -> None:
    """Raise `InputError` for a method, metric or option that does not exist, and for a metric without its region."""
    from heatproof.explanation import methods
    from heatproof.scoring import metrics

    for part, specs, registry in (("methods", recipe.methods, methods()), ("metrics", recipe.metrics, metrics())):
        for index, spec in enumerate(specs):
            entry = _entry(f"{part}[{index}]", spec, registry)
            if "roi" in entry.needs and recipe.data.region is None:
                raise InputError(f"{part}[{index}]: {spec.name} compares with a region: name it in data.region.")


def _entry(where: str, spec: PartSpec, registry: Mapping[str, Entry]) -> Entry:
    try:
        entry = registry[spec.name]
        entry.check_options(spec.options)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return entry


def reductions(recipe: Recipe) -> list[Row]:
    """Every option of the recipe that is not the default, as text."""
    return [*_data(recipe.data), *_models(recipe), *_parts(recipe)]


def _data(data: DataSpec) -> Iterator[Row]:
    if data.test_limit is not None:
        yield "data", "test_limit", str(data.test_limit), "all test images"
    if data.phantom is not None:
        yield from _differences("phantom", data.phantom.model_dump(), PhantomSpec().model_dump())


def _models(recipe: Recipe) -> Iterator[Row]:
    for model in recipe.models:
        part = f"model {model.name}"
        yield from _differences(part, model.config, _network_defaults(model.source))
        if model.image_size is not None:
            yield from _differences(part, {"image_size": model.image_size}, {"image_size": 224})
        if model.training is not None:
            yield from _differences(part, model.training.model_dump(), TrainingSpec().model_dump())


def _network_defaults(source: str) -> Mapping[str, Any]:
    if source == "hf:vit":
        from transformers import ViTConfig

        return dict(ViTConfig().to_dict())
    if source == "monai:densenet121":
        from monai.networks.nets import DenseNet, DenseNet121

        parameters = {**inspect.signature(DenseNet).parameters, **inspect.signature(DenseNet121).parameters}
        return {name: parameter.default for name, parameter in parameters.items()}
    return {}


def _parts(recipe: Recipe) -> Iterator[Row]:
    from heatproof.explanation import methods
    from heatproof.scoring import metrics

    for method in recipe.methods:
        yield from _differences(method.label, method.options, methods()[method.name].options)
    for metric in recipe.metrics:
        yield from _differences(metric.label, metric.options, metrics()[metric.name].options)


def _differences(part: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[Row]:
    for option, value in values.items():
        default = defaults.get(option)
        if value != default:
            yield part, option, str(value), "automatic" if default is None else str(default)
