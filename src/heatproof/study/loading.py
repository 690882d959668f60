"""From a YAML file and `key=value` overrides to a checked `Recipe`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

import heatproof
from heatproof.errors import InputError, near_names
from heatproof.study.recipe import SCHEMA, Recipe

_TYPE = re.compile(
    r"(int|float|str|bool|(list|tuple|dict|literal)\[.*)$"
)  # how pydantic marks the alternatives of a union
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-4` is a number, as everybody writes it (YAML 1.1 wants `1.0e-4`)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str) -> Any:
    """The plain values of a YAML text; `yaml.YAMLError` where it is none."""
    return yaml.load(text, _Loader)  # noqa: S506 - a safe loader


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file.

    Args:
        path: the YAML file; relative paths in it count from its folder.
        overrides: `key.path=value`, the value parsed as YAML, list items by index:
            `models[0].training.epochs=3` or `models.0.training.epochs=3`.

    Raises:
        InputError: no such file, not YAML, an unknown key (with the near names) or a value that is not allowed; every
            finding with the full path of its key.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no such recipe file.")
    try:
        content = parse_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML file: {error}") from None
    for override in overrides:
        content = _overridden(content, override)
    return parse_recipe(content, folder=file.absolute().parent, name=str(path))


def parse_recipe(content: Any, *, folder: Path | None = None, name: str = "recipe") -> Recipe:
    """The recipe of plain values (as read from YAML); errors as in `load_recipe`."""
    if not isinstance(content, Mapping):
        raise InputError(
            f"{name}: a recipe is a mapping with name, data, models, methods and metrics, got {content!r}."
        )
    if content.get("schema", SCHEMA) != SCHEMA:
        raise InputError(
            f"{name}: its schema is {content['schema']!r}, and Heatproof {heatproof.__version__} reads {SCHEMA}. Use the "
            "version that wrote it, or start a new run from a recipe of this one."
        )
    try:
        recipe = Recipe.model_validate(dict(content))
    except ValidationError as error:
        findings = dict.fromkeys(_finding(item) for item in error.errors(include_url=False))
        raise InputError(f"{name}: " + "\n  ".join(findings)) from None
    return recipe.in_folder(folder or Path())


def _finding(item: Mapping[str, Any]) -> str:
    location = [step for step in item["loc"] if not _TYPE.match(str(step))]
    where, kind = key_path(location), item["type"]
    if kind == "extra_forbidden":
        return f"{where}: unknown key. {near_names(str(location[-1]), _keys(_section(location[:-1])))}"
    if kind == "missing":
        return f"{where}: missing."
    message = str(item["msg"]).removeprefix("Value error, ")
    got = "" if kind == "value_error" else f", got {item['input']!r}"
    return f"{where}{': ' if where else ''}{message}{got}".removesuffix(".") + "."


def key_path(location: Sequence[str | int]) -> str:
    """`("models", 0, "name")` -> `models[0].name`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return text.removeprefix(".")


def _section(location: Sequence[str | int]) -> type[BaseModel]:
    """The part of the recipe that `location` leads to."""
    found: type[BaseModel] = Recipe
    for step in location:
        by_key = {field.alias or name: field.annotation for name, field in found.model_fields.items()}
        found = _model_in(by_key[step]) or found if step in by_key else found
    return found


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)


def _keys(section: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in section.model_fields.items()]


def _overridden(content: Any, override: str) -> Any:
    key, equals, text = override.partition("=")
    steps = [int(index) if index else name for name, index in _STEP.findall(key)]
    if not equals or not steps:
        raise InputError(f"--set {override}: write it as key.path=value, for instance models[0].training.epochs=3.")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override}: the value is not YAML: {error}") from None
    return _replaced(content, steps, value, override)


def _replaced(content: Any, steps: Sequence[str | int], value: Any, override: str) -> Any:
    """A copy of `content` with the item at `steps` replaced; missing mappings on the way are made."""
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    if isinstance(content, list):
        index = int(step) if str(step).isdecimal() else -1
        if not 0 <= index < len(content):
            allowed = f"0 to {len(content) - 1}" if content else "none, it is empty"
            raise InputError(f"--set {override}: {step!r} is not an index of this list; allowed: {allowed}.")
        return [_replaced(item, rest, value, override) if i == index else item for i, item in enumerate(content)]
    if content is not None and not isinstance(content, Mapping):
        raise InputError(f"--set {override}: {step!r} lies inside {content!r}, which holds no keys.")
    kept = dict(content or {})
    return {**kept, step: _replaced(kept.get(step), rest, value, override)}
