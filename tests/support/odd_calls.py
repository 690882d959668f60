"""Models made of another one and a function, and one call for any method that sees a model's operations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import heatproof as hp
from heatproof.relevance import presets
from support.nets import TinyViT

FAMILIES = ("relevance", "attention", "gradient", "cam")  # those that see the model's operations
METHODS = [  # that serve transformers, too
    name for name, entry in hp.methods().items() if entry.family in FAMILIES and not entry.needs & {"relu", "pointwise"}
]
GOING_BACK = [  # others only look at feature maps
    name for name in METHODS if name not in ("eigencam", "scorecam", "ablationcam")
]
SOME = ["lrp_zplus", "attn_lrp", "transformer_lrp", "generic_attention", "gradcam", "integrated_gradients"]
QUICK: dict[str, dict[str, Any]] = {
    **{
        key: {"steps": 2}
        for key in (
            "integrated_gradients",
            "blur_integrated_gradients",
            "transition_attention",
            "bidirectional_transformer",
        )
    },
    **{
        key: {"samples": 2}
        for key in ("expected_gradients", "gradient_shap", "smoothgrad", "smoothgrad_squared", "vargrad")
    },
}
OPTIONS: dict[str, dict[str, Any]] = {**QUICK, "lrp": {"preset": presets.lrp_z()}}


class Whole(nn.Module):
    """A model made of another one and a function: `function(inner, images)`."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.inner = function, TinyViT(depth=1) if inner is None else inner

    def forward(self, x: Tensor) -> Any:
        return self.function(self.inner, x)


def explain(model: Any, images: Tensor | None = None, *, method: str, **options: Any) -> Tensor:
    images = torch.rand(1, 3, 32, 32) if images is None else images
    if isinstance(model, nn.Module):
        model = hp.Classifier(model, image_size=32, mean=[0.5] * 3, std=[0.5] * 3)
    return hp.explain(model, images, [0] * len(images), method=method, **OPTIONS.get(method, {}), **options)
