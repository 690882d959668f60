"""DenseNet-121 of MONAI (`huang2017densely`), with random weights or those of ImageNet."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from heatproof.errors import InputError, near_names
from heatproof.models.adapt import fold_channels
from heatproof.models.classifier import Classifier, Preprocessing
from heatproof.models.request import Request, check_options, half_range, seeded

_NETWORKS = ("densenet121",)
_OPTIONS = ("init_features", "growth_rate", "block_config", "bn_size", "dropout_prob")
_HEAD = "class_layers.out."
_IMAGENET = Preprocessing((224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def load_monai(name: str, request: Request, *, seed: int, trust_pickle: bool, options: Mapping[str, Any]) -> Classifier:
    """The classifier `monai:<name>`, see `load_classifier`."""
    if name not in _NETWORKS:
        raise InputError(f"Unknown MONAI network {name!r}. {near_names(name, _NETWORKS)}")
    check_options(f"monai:{name}", options, (*_OPTIONS, "pretrained"))
    classes = request.needed_classes(f"monai:{name}")
    pretrained = bool(options.get("pretrained", False))
    network = {key: value for key, value in options.items() if key != "pretrained"}
    source = {"library": "monai", "origin": f"monai:{name}", "seed": seed, "pretrained": pretrained, "network": name}
    source |= {"options": {**network, "in_channels": request.channels or 3, "out_channels": len(classes)}}
    if pretrained:
        module, own = _with_imagenet_weights(source, request, trust_pickle)
    else:
        module, own = _seeded_network(source), half_range((224, 224), request.channels or 3)
    preprocessing = request.filled(own)
    return Classifier(module.eval(), classes, task=request.task or "multiclass", source=source, **asdict(preprocessing))


def build_monai(source: Mapping[str, Any]) -> nn.Module:
    """The network that a checkpoint's `source` describes, with random weights."""
    from monai.networks.nets import DenseNet121

    try:
        module: nn.Module = DenseNet121(spatial_dims=2, **source["options"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{source['origin']} cannot be configured so: {error}") from error
    return module


def _seeded_network(source: Mapping[str, Any], **changes: Any) -> nn.Module:
    with seeded(source["seed"]):
        return build_monai({**source, "options": {**source["options"], **changes}})


def _with_imagenet_weights(
    source: dict[str, Any], request: Request, trust_pickle: bool
) -> tuple[nn.Module, Preprocessing]:
    if not trust_pickle:
        raise InputError(
            f"{source['origin']}: the ImageNet weights that MONAI offers are a pickle, which is loaded only where you "
            "say so: trust_pickle=True. (It is fetched from download.pytorch.org.)"
        )
    try:
        module = _seeded_network(source, in_channels=3, pretrained=True)
    except OSError as error:
        raise InputError(
            f"{source['origin']}: the ImageNet weights cannot be fetched ({error}). Check the network, put the file "
            f"into {torch.hub.get_dir()}/checkpoints yourself, or train from random weights with pretrained=False."
        ) from error
    _check_all_replaced(source, module)
    own = _IMAGENET
    if request.channels == 1:
        module, own = _for_grey(source, module)
    return module, own


def _check_all_replaced(source: Mapping[str, Any], module: nn.Module) -> None:
    """MONAI drops weights that do not fit without a word: what still is as the seed made it was not loaded."""
    random = _seeded_network(source, in_channels=3).state_dict()
    kept = [
        key
        for key, value in module.state_dict().items()
        if value.is_floating_point() and not key.startswith(_HEAD) and torch.equal(value, random[key])
    ]
    if kept:
        raise InputError(
            f"{source['origin']}: {len(kept)} weights did not come from the pretrained file ({', '.join(kept[:4])}, "
            f"...). With pretrained=True leave out {', '.join(_OPTIONS[:-1])}."
        )


def _for_grey(source: Mapping[str, Any], module: nn.Module) -> tuple[nn.Module, Preprocessing]:
    state = module.state_dict()
    mean, std = _IMAGENET.mean or (), _IMAGENET.std or ()
    state["features.conv0.weight"], _, m, s = fold_channels(state["features.conv0.weight"], None, mean, std)
    grey = build_monai(source)
    grey.load_state_dict(state)
    return grey, Preprocessing(_IMAGENET.image_size, mean=(m,), std=(s,), channels=1)
