"""Where classifiers come from: the front door `load_classifier`."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from heatproof.errors import InputError, near_names
from heatproof.models.checkpoint import load_checkpoint
from heatproof.models.classifier import Classifier, Fit, Task
from heatproof.models.huggingface import load_hf
from heatproof.models.monai_networks import load_monai
from heatproof.models.request import Request


class Loader(Protocol):
    """What stands behind a prefix."""

    def __call__(
        self, name: str, request: Request, *, seed: int, trust_pickle: bool, options: Mapping[str, Any]
    ) -> Classifier:
        """The classifier `<prefix>:<name>`; `options` are the source's own keywords."""


_LOADERS: dict[str, Loader] = {"hf": load_hf, "monai": load_monai}


def load_classifier(
    source: str | Path,
    *,
    classes: Sequence[str] | None = None,
    task: Task | None = None,
    image_size: int | Sequence[int] | None = None,
    channels: int | None = None,
    fit: Fit | None = None,
    short_side: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    seed: int = 0,
    trust_pickle: bool = False,
    **config: Any,
) -> Classifier:
    """A classifier on the CPU, in evaluation mode, with its preprocessing.

    Sources:
        `hf:<hub id>`, `hf:<folder>`: a ViT of transformers with its own preprocessing. `classes` of another number
            than the checkpoint's get a new head, drawn from `seed`; every other weight must be there. Another
            `image_size` interpolates the position embeddings bicubically. Keywords: `hidden_dropout_prob`,
            `attention_probs_dropout_prob`, `attn_implementation`.
        `hf:vit`: a ViT with random weights (`dosovitskiy2021image`). Keywords: `hidden_size, num_hidden_layers,
            num_attention_heads, intermediate_size, patch_size, hidden_act, hidden_dropout_prob,
            attention_probs_dropout_prob, initializer_range, layer_norm_eps, qkv_bias, attn_implementation`, with
            transformers' defaults (ViT-B/16).
        `monai:densenet121`: DenseNet-121 (`huang2017densely`) with random weights, or ImageNet's with `pretrained=True`
            (a pickle: needs `trust_pickle=True`). Keywords: `init_features, growth_rate, block_config, bn_size,
            dropout_prob, pretrained`.
        a folder made by `save_checkpoint`: brings everything along; what is given must agree with it.

    One-channel images and weights for three channels: with `channels=3` (the default there) the weights stay and a
    grey image is repeated; with `channels=1` the first convolution is summed over its channels so that the output is
    the same. (For `monai:densenet121`, whose first convolution has no bias, the same as under the average of the three
    means.)

    Args:
        source: see above.
        classes: names of the outputs; the checkpoint's own where left out.
        task: `multiclass` (default) or `multilabel`.
        image_size: one number or (height, width), in pixels; the checkpoint's own, or 224.
        channels: 1 or 3; the checkpoint's own, or 3.
        fit: geometry of the input, see `Preprocessing`; the checkpoint's own, or `resize`.
        short_side: for `fit="crop"`, pixels.
        mean: one value, or one a channel, for intensities in [0, 1]; the checkpoint's own, or 0.5 for random weights.
        std: likewise.
        seed: of random weights; the global random state is left alone.
        trust_pickle: allow weights stored as pickles, which can run code.
        config: further keywords of the source.

    Raises:
        InputError: an unknown source or keyword, files that cannot be had or do not fit, contradicting options.

    Example:
        >>> small = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
        >>> clf = load_classifier("hf:vit", classes=["normal", "lesion"], image_size=32, channels=1, **small)
        >>> clf.preprocessing.image_size, clf.preprocessing.mean, clf.preprocessing.std
        ((32, 32), (0.5,), (0.5,))
    """
    request = Request.of(classes, image_size, mean, std, channels, task=task, fit=fit, short_side=short_side)
    prefix, colon, name = str(source).partition(":")
    if colon and prefix in _LOADERS:
        return _LOADERS[prefix](name, request, seed=seed, trust_pickle=trust_pickle, options=config)
    folder = Path(source).expanduser()
    if not folder.exists():
        raise InputError(
            f"Unknown model source {str(source)!r}: neither a checkpoint folder nor one of the prefixes. "
            f"{near_names(prefix, [f'{known}:' for known in _LOADERS])}"
        )
    return _checkpoint(folder, request, config)


def _checkpoint(folder: Path, request: Request, config: Mapping[str, Any]) -> Classifier:
    if config:
        raise InputError(f"{folder} is a checkpoint, which takes no configuration keywords; got {', '.join(config)}.")
    clf = load_checkpoint(folder)
    own = {"classes": clf.classes, "task": clf.task}
    for field in fields(Request):
        asked = getattr(request, field.name)
        stored = own.get(field.name, getattr(clf.preprocessing, field.name, None))
        if asked is not None and asked != stored:
            raise InputError(
                f"{folder} was saved with {field.name}={stored!r}, got {asked!r}. Leave it out; preprocessing can be "
                "changed afterwards with clf.with_preprocessing(...)."
            )
    return clf
