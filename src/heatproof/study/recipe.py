"""A study as data: which images, models, methods and metrics, with every option.

A recipe is a YAML file. Keys that do not exist are errors, and so are unknown methods, metrics and options. Relative
paths count from the recipe's folder; `${NAME}` in a path is the environment variable NAME, `${NAME:-value}` falls back
to `value` where it is not set.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from heatproof.errors import InputError, near_names

if TYPE_CHECKING:
    from heatproof.datasets.phantom import Phantom

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # becomes a folder's name
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")

_LABELS = ("label_columns", "label_separator", "no_finding", "uncertain", "blank")  # arguments of `load_table`
_OF_TABLES = ("regions", "root", "columns", "region_columns", *_LABELS)


SCHEMA: Literal[1] = 1  # of recipes and run folders; another number where an old one would be misread


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ShortcutSpec(Section):
    """Letters that give a label away, see `heatproof.datasets.phantom.Shortcut`."""

    label: str
    strength: float = Field(default=1.0, ge=0, le=1)
    rate: float = Field(default=0.5, ge=0, le=1)
    text: str = "PORT"


class ScannersSpec(Section):
    """Devices that may go along with a label, see `heatproof.datasets.phantom.Scanners`."""

    count: int = Field(default=2, ge=2)
    label: str | None = None
    strength: float = Field(default=0.0, ge=0, le=1)


class PhantomSpec(Section):
    """Synthetic radiographs; what each key means is said at `heatproof.datasets.phantom.Phantom`."""

    patients: int = Field(default=400, ge=1)
    images_per_patient: int = Field(default=1, ge=1)
    varied: bool = False
    size: int = Field(default=128, ge=16)
    task: Literal["multiclass", "multilabel"] = "multiclass"
    classes: list[str] = []
    prevalence: dict[str, float] = {}
    uncertain: float = Field(default=0.0, ge=0, le=1)
    conspicuity: float = Field(default=1.0, ge=0)
    shortcut: ShortcutSpec | None = None
    scanners: ScannersSpec | None = None
    format: Literal["png", "dicom"] = "png"
    bits: Literal[8, 12, 16] | None = None
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _drawable(self) -> "PhantomSpec":
        self.phantom()
        return self

    def phantom(self) -> "Phantom":
        """What is to be drawn.

        Raises:
            InputError: options that do not go together, an unknown class.
        """
        from heatproof.datasets.phantom import Phantom, Scanners, Shortcut

        signs: dict[str, Any] = {
            "shortcut": self.shortcut and Shortcut(**self.shortcut.model_dump()),
            "scanners": self.scanners and Scanners(**self.scanners.model_dump()),
        }
        return Phantom(**{**self.model_dump(), **signs})


class RegionColumn(Section):
    """A column of the sample table that holds a region, as `load_table` reads it; perhaps of one label or reader."""

    region: str
    kind: Literal["mask", "box", "polygon", "rle"]
    column: str
    label: str | None = None
    reader: str | None = None


class SplitSpec(Section):
    """The part of the images that each split gets, by patient; or, as the word `column`, the table's own split column."""

    train: float = Field(default=0, ge=0, le=1)
    val: float = Field(default=0, ge=0, le=1)
    test: float = Field(default=0, ge=0, le=1)
    column: bool = False

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        return {"column": True} if value == "column" else value

    @property
    def fractions(self) -> dict[str, float]:
        """As `split_by_patient` takes them."""
        return {"train": self.train, "val": self.val, "test": self.test}


class DataSpec(Section):
    """Where the images come from, how they are split, and which of them are explained.

    One of `samples` (a CSV or Parquet table), `folder` (class folders) and `phantom`; how the labels of a table are read
    (`label_columns`, `label_separator`, `no_finding`, `uncertain`, `blank`) is said at `heatproof.datasets.table`.
    `splits` are fractions by patient or `column`; by default the table's own column where it is filled, else 70/10/20 %.
    `region` is what localization metrics compare with, `readers` what counts where several readers marked it.

    `test_limit` explains at most so many test images, in equal shares of the labels: again and again the label that the
    fewest of the chosen images have, the first in the alphabet on a tie, gets one more of its images; those whose
    region is annotated for it come first, in seeded order. An image counts for each of its labels, and those without
    any are one more group. Every test image is predicted all the same.
    """

    samples: str | None = None
    regions: str | None = None
    folder: str | None = None
    phantom: PhantomSpec | None = None
    root: str | None = None
    columns: dict[str, str] = {}
    region_columns: list[RegionColumn] = []
    classes: list[str] | None = None
    label_columns: list[str] | dict[str, str] | None = None
    label_separator: str | None = None
    no_finding: str | None = None
    uncertain: str | dict[str, str] | None = None
    blank: str | dict[str, str] | None = None
    splits: SplitSpec | None = None
    region: str | None = None
    readers: Literal["union", "intersection", "majority"] = "union"
    test_limit: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_source(self) -> "DataSpec":
        given = [name for name in ("samples", "folder", "phantom") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of samples, folder and phantom, got {given or 'none of them'}")
        table_only = [name for name in _OF_TABLES if getattr(self, name) not in (None, {}, [])]
        if self.samples is None and table_only:
            raise ValueError(f"only a sample table (samples:) has {', '.join(table_only)}, not {given[0]}:")
        if self.samples is None and self.classes is not None:
            raise ValueError(f"classes belong to a sample table (samples:); those of {given[0]}: are its own")
        if self.region is None and self.readers != "union":
            raise ValueError("readers says how the readers of a region count; give region too, or leave it out")
        return self


class TrainingSpec(Section):
    """How a model is trained: the options of `heatproof.training.fit.fit`, which says what each means.

    `patience: null` never stops early; `freeze` is `backbone` or a list of names; `augment` is true, false or a mapping
    of strengths; `class_weights` is `balanced` or a mapping from class to weight. Seed and device are the recipe's.
    """

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=32, ge=1)
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    momentum: float | None = Field(default=None, ge=0, lt=1)
    lr: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: float = Field(default=0.0, ge=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    freeze: Literal["backbone"] | list[str] | None = None
    patience: int | None = Field(default=3, ge=1)
    augment: bool | dict[str, float] = True
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    grad_clip: float | None = Field(default=None, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    workers: int = Field(default=0, ge=0)
    memory_gib: float = Field(default=4.0, ge=0)


class ModelSpec(Section):
    """One model: a source of `load_classifier`, its preprocessing, its configuration and its training.

    What is left out is the source's own. `task` is `multiclass` (one class an image, softmax) or `multilabel` (any
    number, sigmoid); left out it is that of the data set. Without `training` the model is used as it comes.
    `batch_size` is how many images go through it at once while it is explained and scored; it is measured once where
    not given, and then kept.
    """

    name: str
    source: str
    task: Literal["multiclass", "multilabel"] | None = None
    image_size: int | tuple[int, int] | None = None
    channels: Literal[1, 3] | None = None
    mean: float | list[float] | None = None
    std: float | list[float] | None = None
    fit: Literal["resize", "crop", "letterbox"] | None = None
    short_side: int | None = Field(default=None, ge=1)
    config: dict[str, Any] = {}
    training: TrainingSpec | None = None
    batch_size: int | None = Field(default=None, ge=1)

    @field_validator("name")
    @classmethod
    def _fit_for_a_folder(cls, name: str) -> str:
        return _folder_name(name)


class PartSpec(Section):
    """A method or a metric with its options: a bare name, or `{method: lime, samples: 200, as: lime_200}`.

    `as_` (in YAML `as`) names its column; by default the method's own name. Every other key is an option; an option
    that is itself called `method`, `metric` or `as` goes into `options: {...}`.
    """

    name: str
    as_: str
    options: dict[str, Any] = {}

    @property
    def label(self) -> str:
        """The name of its column."""
        return self.as_

    @classmethod
    def _parsed(cls, value: Any, kind: str) -> Any:
        if isinstance(value, str):
            return {"name": value, "as_": _folder_name(value)}
        if not isinstance(value, Mapping):
            raise ValueError(f"must be a name or a mapping with the key {kind!r}, got {value!r}")
        rest = {str(key): item for key, item in value.items()}
        if kind not in rest:
            raise ValueError(f"the key {kind!r} is missing; got the keys {', '.join(rest) or 'none'}")
        name, label, options = str(rest.pop(kind)), rest.pop("as", None), rest.pop("options", {})
        if not isinstance(options, Mapping) or set(options) & set(rest):
            raise ValueError(f"options must be a mapping without the keys beside it, got {options!r}")
        return {"name": name, "as_": _folder_name(str(label or name)), "options": {**rest, **options}}

    def _dumped(self, kind: str) -> dict[str, Any]:
        reserved = {"method", "metric", "as", "options"}
        plain = {key: value for key, value in self.options.items() if key not in reserved}
        other = {key: value for key, value in self.options.items() if key in reserved}
        return {kind: self.name, "as": self.as_, **plain, **({"options": other} if other else {})}


class MethodSpec(PartSpec):
    """An explainer with its options."""

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        return cls._parsed(value, "method")

    @model_serializer(mode="wrap")
    def _dump(self, _: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return self._dumped("method")


class MetricSpec(PartSpec):
    """A metric with its options."""

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        return cls._parsed(value, "metric")

    @model_serializer(mode="wrap")
    def _dump(self, _: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return self._dumped("metric")


P = TypeVar("P", ModelSpec, MethodSpec, MetricSpec)


class Recipe(Section):
    """A whole study.

    `target` is what is explained: the `predicted` class (of several labels the one with the largest logit), the image's
    own `label` (each of several), a class by name, or a list of classes. `precision` is that of the forward passes over
    changed images, for perturbation methods and metrics: `fp32`, or `bf16` where the device has it, two to three times as
    fast; methods that need gradients run in fp32 in either case. `chunk_size` is the number of test images that
    are finished together, `threads` those of torch: fixed when the study starts.
    """

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    name: str
    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    threads: int | None = Field(default=None, ge=1)
    chunk_size: int = Field(default=8, ge=1)
    data: DataSpec
    models: list[ModelSpec] = Field(min_length=1)
    methods: list[MethodSpec] = Field(min_length=1)
    metrics: list[MetricSpec] = Field(min_length=1)
    target: str | list[str] = "predicted"
    precision: Literal["fp32", "bf16"] = "fp32"

    _folder: Path = PrivateAttr(default_factory=Path)

    @field_validator("name")
    @classmethod
    def _fit_for_a_folder(cls, name: str) -> str:
        return _folder_name(name)

    @model_validator(mode="after")
    def _distinct_names(self) -> "Recipe":
        labels = {
            "models": [model.name for model in self.models],
            "methods": [method.label for method in self.methods],
            "metrics": [metric.label for metric in self.metrics],
        }
        for part, names in labels.items():
            doubled = sorted({name for name in names if names.count(name) > 1})
            if doubled:
                how = "rename one" if part == "models" else "tell them apart with as:"
                raise ValueError(f"{part} of the same name ({', '.join(doubled)}); {how}")
        return self

    @property
    def folder(self) -> Path:
        """The folder that relative paths count from."""
        return self._folder

    def model(self, name: str) -> ModelSpec:
        """The model called `name`; `InputError` with the near names where there is none."""
        return _named(self.models, name, "model", lambda spec: spec.name)

    def method(self, label: str) -> MethodSpec:
        """The method whose column is `label`."""
        return _named(self.methods, label, "method", lambda spec: spec.label)

    def metric(self, label: str) -> MetricSpec:
        """The metric whose column is `label`."""
        return _named(self.metrics, label, "metric", lambda spec: spec.label)

    def path(self, text: str) -> Path:
        """A path of the recipe as one that can be opened: variables expanded, relative to the recipe's folder."""
        return self._folder / Path(expand_variables(text)).expanduser()

    def in_folder(self, folder: Path) -> "Recipe":
        """The same recipe with relative paths counting from `folder`."""
        other = self.model_copy()
        other._folder = folder
        return other

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML, every default spelled out; `Recipe.model_validate` reads them back."""
        return self.model_dump(mode="json", by_alias=True)


def _named(items: Sequence[P], name: str, kind: str, name_of: Any) -> P:
    for item in items:
        if name_of(item) == name:
            return item
    raise InputError(f"The study has no {kind} {name!r}. {near_names(name, [name_of(item) for item in items])}")


def _folder_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} names a folder: only letters, digits, '.', '_', '-', the first a letter or digit")
    return name


def expand_variables(text: str) -> str:
    """Replace `${NAME}` and `${NAME:-value}`.

    Raises:
        InputError: a variable without value and without fallback.

    >>> expand_variables("${HEATPROOF_NOWHERE:-../../shared}/data")
    '../../shared/data'
    """

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1]) or match[2]
        if found is None:
            raise InputError(f"{text}: {match[1]} is not set in the environment; set it or write ${{{match[1]}:-...}}.")
        return found

    return _VARIABLE.sub(value, text)
