"""Vision transformers of the transformers library: from the hub, from a folder, or with random weights."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from heatproof.errors import InputError
from heatproof.models.adapt import fold_channels, patch_grid, resize_positions
from heatproof.models.classifier import Classifier, Fit, Preprocessing, Task
from heatproof.models.request import Request, as_size, check_options, half_range, seeded

_RANDOM_OPTIONS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps", "qkv_bias",
    "attn_implementation",
)  # fmt: skip
_PRETRAINED_OPTIONS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attn_implementation")

_ATTENTION = ("sdpa", "eager")
_POSITIONS = "vit.embeddings.position_embeddings"
_PROJECTION = "vit.embeddings.patch_embeddings.projection"
_HEAD = "classifier."
# Parts of other tasks' checkpoints that a classifier on the class token has no use for.
_UNUSED_PARTS = ("pooler", "mask_token")


def load_hf(name: str, request: Request, *, seed: int, trust_pickle: bool, options: Mapping[str, Any]) -> Classifier:
    """The classifier `hf:<name>`, see `load_classifier`."""
    if name == "vit":
        return _random(request, seed, options)
    return _pretrained(
        str(Path(name).expanduser()) if name.startswith("~") else name, request, seed, trust_pickle, options
    )


def build_hf(source: Mapping[str, Any]) -> nn.Module:
    """The network that a checkpoint's `source` describes, with random weights."""
    from transformers import AutoConfig

    return _network(AutoConfig.for_model(**source["config"]), source["attn_implementation"])


def _random(request: Request, seed: int, options: Mapping[str, Any]) -> Classifier:
    from transformers import ViTConfig

    check_options("hf:vit", options, _RANDOM_OPTIONS)
    classes = request.needed_classes("hf:vit")
    preprocessing = request.filled(half_range((224, 224), request.channels or 3))
    size = preprocessing.image_size
    values = {key: value for key, value in options.items() if key != "attn_implementation"}
    _check_values("hf:vit", values)
    config = ViTConfig(**values, image_size=_plain(size), num_channels=preprocessing.channels)
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"hf:vit: hidden_size {config.hidden_size} must be a multiple of num_attention_heads "
            f"{config.num_attention_heads}."
        )
    patch_grid(size, as_size(config.patch_size))
    _name_classes(config, classes)
    with seeded(seed):
        module = _network(config, options.get("attn_implementation"))
    source = _source(module, origin="hf:vit", seed=seed)
    return Classifier(module.eval(), classes, task=request.task or "multiclass", source=source, **asdict(preprocessing))


def _pretrained(name: str, request: Request, seed: int, trust_pickle: bool, options: Mapping[str, Any]) -> Classifier:
    check_options(f"hf:{name}", options, _PRETRAINED_OPTIONS)
    _check_values(f"hf:{name}", {key: value for key, value in options.items() if key != "attn_implementation"})
    _check_name(name)
    with _quiet(), _explained(name, trust_pickle):
        old, missing, unused = _load(name, trust_pickle, options)
        processor = _read_processor(name)
    classes, new_head = _classes(name, old.config, request.classes, headless=bool(missing))
    state, preprocessing = _adapted(name, old, request, processor)
    config = type(old.config).from_dict(
        {
            **old.config.to_dict(),
            "image_size": _plain(preprocessing.image_size),
            "num_channels": preprocessing.channels,
        }
    )
    _name_classes(config, classes)
    with seeded(seed):
        module = _network(config, options.get("attn_implementation"))
    fresh = {key: value for key, value in module.state_dict().items() if new_head and key.startswith(_HEAD)}
    module.load_state_dict({**state, **fresh})
    task: Task = "multilabel" if config.problem_type == "multi_label_classification" else "multiclass"
    source = _source(module, origin=f"hf:{Path(name).name if _is_path(name) else name}", seed=seed)
    source |= {"new_weights": sorted(fresh), "unused_weights": unused}
    return Classifier(module.eval(), classes, task=request.task or task, source=source, **asdict(preprocessing))


def _check_values(source: str, values: Mapping[str, Any]) -> None:
    """Raise `InputError` for a keyword of another kind than transformers' default, or a size below 1."""
    from transformers import ViTConfig

    defaults = ViTConfig()
    for key, value in values.items():
        default = getattr(defaults, key)
        kinds = (int, float) if type(default) is float else (type(default),)
        if type(value) not in kinds:
            raise InputError(f"{source}: {key} must be like {default!r}, got {value!r}.")
        if type(default) is int and value < 1:
            raise InputError(f"{source}: {key} must be at least 1, got {value}.")


def _network(config: Any, attention: str | None) -> nn.Module:
    """A float32 network with random weights."""
    from transformers import AutoModelForImageClassification

    if attention not in (None, *_ATTENTION):  # transformers would fetch code for other names
        raise InputError(f"attn_implementation must be one of {', '.join(_ATTENTION)}, got {attention!r}.")
    chosen = {} if attention is None else {"attn_implementation": attention}
    try:
        module: nn.Module = AutoModelForImageClassification.from_config(config, trust_remote_code=False, **chosen)
    except (ValueError, KeyError, ImportError) as error:
        raise InputError(f"transformers cannot build this network: {_first_lines(error)}") from error
    return module.float()


def _source(module: Any, *, origin: str, seed: int) -> dict[str, Any]:
    """What rebuilds the network: plain values for a checkpoint's JSON."""
    config = module.config.to_dict()
    for key in ("_name_or_path", "architectures", "transformers_version"):
        config.pop(key, None)
    return {
        "library": "transformers",
        "origin": origin,
        "seed": seed,
        "config": config,
        "attn_implementation": module.config._attn_implementation,
    }


def _name_classes(config: Any, classes: tuple[str, ...]) -> None:
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: index for index, name in enumerate(classes)}


# --- pretrained weights


def _load(name: str, trust_pickle: bool, options: Mapping[str, Any]) -> tuple[Any, list[str], list[str]]:
    """The checkpoint's own network in float32, the head's keys that it lacks, and its keys that were not used."""
    from transformers import AutoConfig, AutoModelForImageClassification

    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if config.model_type != "vit":
        raise InputError(
            f"hf:{name} is of type {config.model_type!r}; Heatproof loads 'vit' so far. Build the model yourself and "
            "wrap it: Classifier(module, classes=..., mean=..., std=...)."
        )
    for key in _PRETRAINED_OPTIONS[:2]:
        setattr(config, key, options.get(key, getattr(config, key)))
    model, info = AutoModelForImageClassification.from_pretrained(
        name, config=config, use_safetensors=None if trust_pickle else True, output_loading_info=True
    )
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    wrong = [f"missing {key}" for key in missing if not key.startswith(_HEAD)]
    wrong += [f"unexpected {key}" for key in unexpected if not set(_UNUSED_PARTS) & set(key.split("."))]
    wrong += [f"mismatched {key}" for key in map(str, info["mismatched_keys"])]
    if wrong:
        raise InputError(
            f"hf:{name}: the weights do not fit a ViT classifier ({len(wrong)} keys: {'; '.join(wrong[:8])}). Only the "
            "classification head may be new. Check that this is a ViT checkpoint and complete."
        )
    return model.float(), missing, unexpected


def _classes(name: str, config: Any, asked: tuple[str, ...] | None, *, headless: bool) -> tuple[tuple[str, ...], bool]:
    """The class names, and whether the head must be new."""
    labels = [str(config.id2label[index]) for index in sorted(config.id2label, key=int)]
    repeated = {label for label, count in Counter(labels).items() if count > 1}
    own = tuple(f"{label} ({index})" if label in repeated else label for index, label in enumerate(labels))
    if asked is None:
        if headless:
            raise InputError(f"hf:{name} has no classification head, so it knows no classes: give classes=[...].")
        return own, False
    if not asked:
        raise InputError("classes is empty: name the classes, or leave it out to keep those of the checkpoint.")
    if not headless and asked != own and set(asked) == set(own):
        raise InputError(
            f"hf:{name} has the classes in the order {list(own)}, got {list(asked)}: its head answers in its own "
            "order. Give them in that order, or leave classes out."
        )
    return asked, headless or len(asked) != len(own)


def _adapted(
    name: str, old: Any, request: Request, processor: Mapping[str, Any] | None
) -> tuple[dict[str, Tensor], Preprocessing]:
    """The checkpoint's weights for the size and channels asked for, and the preprocessing that belongs to them."""
    own_size, own_channels = as_size(old.config.image_size), old.config.num_channels
    channels = request.channels or own_channels
    if channels != own_channels and (own_channels, channels) != (3, 1):
        raise InputError(f"hf:{name} takes {own_channels} channels, got channels={channels}: leave channels out.")
    own = _own_preprocessing(name, own_size, own_channels, processor, request)
    state = dict(old.state_dict())
    if channels != own_channels:
        weight, bias, mean, std = fold_channels(
            state[f"{_PROJECTION}.weight"], state[f"{_PROJECTION}.bias"], own.mean or (), own.std or ()
        )
        state |= {f"{_PROJECTION}.weight": weight, f"{_PROJECTION}.bias": bias}
        own = replace(own, channels=1, mean=(mean,), std=(std,))
    preprocessing = request.filled(own)
    patch = as_size(old.config.patch_size)
    new_grid = patch_grid(preprocessing.image_size, patch)
    state[_POSITIONS] = resize_positions(state[_POSITIONS], patch_grid(own_size, patch), new_grid)
    if own.short_side and not request.short_side and preprocessing.fit == "crop":
        # the crop keeps the same part of the image at another input size
        ratio = min(preprocessing.image_size) / min(own.image_size)
        preprocessing = replace(preprocessing, short_side=round(own.short_side * ratio))
    return state, preprocessing


def _own_preprocessing(
    name: str, size: tuple[int, int], channels: int, processor: Mapping[str, Any] | None, request: Request
) -> Preprocessing:
    """The checkpoint's preprocessing; a mean and std that the caller gave stand in for its own in every channel."""
    if request.mean is not None and request.std is not None:
        mean, std = request.mean, request.std
        mean, std = (values * channels if len(values) == 1 else values for values in (mean, std))
    elif processor is None:
        raise InputError(
            f"hf:{name} has no preprocessor_config.json, so its normalisation is unknown: give mean= and std=."
        )
    else:
        mean, std = _normalisation(processor, channels)
    fit, short_side = _geometry(processor or {})
    return Preprocessing(size, mean=mean, std=std, channels=channels, fit=fit, short_side=short_side)


def _normalisation(processor: Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std for intensities in [0, 1], whatever range the processor scales its bytes to."""
    scale = 255 * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255.0
    if not processor.get("do_normalize", True):
        return (0.0,) * channels, (1 / scale,) * channels
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if mean is None or std is None:
        raise InputError("preprocessor_config.json names no image_mean and image_std: give mean= and std=.")
    return tuple(float(v) / scale for v in mean), tuple(float(v) / scale for v in std)


def _geometry(processor: Mapping[str, Any]) -> tuple[Fit, int | None]:
    """The fit, and the short side in the processor's own numbers (its resampling filter is not followed)."""
    size = processor.get("size")
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else size
    if processor.get("do_center_crop"):
        return "crop", edge
    # a short side without a crop would leave inputs of any shape; a ViT takes one
    return ("crop", None) if isinstance(size, Mapping) and edge else ("resize", None)


def _read_processor(name: str) -> dict[str, Any] | None:
    from transformers import ImageProcessingMixin

    try:
        values, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:
        return None
    return dict(values)


def _check_name(name: str) -> None:
    if _is_path(name):
        if not Path(name).is_dir():
            raise InputError(f"hf:{name}: there is no such folder. Give a folder made by save_pretrained, or a hub id.")
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise InputError(f"hf:{name}: neither a folder nor a hub id such as 'google/vit-base-patch16-224'.")


def _is_path(name: str) -> bool:
    return name.startswith((".", "/")) or Path(name).is_dir()


@contextmanager
def _explained(name: str, trust_pickle: bool) -> Iterator[None]:
    """Turn what transformers raises for files that it cannot get or read into `InputError`."""
    from safetensors import SafetensorError

    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        advice = "Check the folder." if _is_path(name) else (
            "Check the id and the network; or fetch it elsewhere (`hf download`) and give the folder as 'hf:<folder>'; "
            "or start from random weights with 'hf:vit'."
        )  # fmt: skip
        if not trust_pickle:
            advice += " Only safetensors are read: pickled weights can run code. trust_pickle=True allows them."
        raise InputError(f"hf:{name} cannot be loaded: {_first_lines(error)} {advice}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No load report on the terminal: what it says is checked here."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _plain(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def _first_lines(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
