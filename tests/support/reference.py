"""The small ViT whose maps by the authors' own code are known."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from support.nets import TinyViT


def reference(shared: Path) -> dict[str, Tensor]:
    """Everything in the reference file: inputs `x`, targets `t`, `logits`, the maps, and the weights under `w/`."""
    with np.load(shared / "reference" / "transformer_lrp.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def weights(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights in timm's naming."""
    return {name[2:]: value for name, value in stored.items() if name.startswith("w/")}


def tiny_vit(stored: dict[str, Tensor]) -> TinyViT:
    model = TinyViT(image=32, patch=8, width=48, depth=4, heads=3, ratio=2.0, classes=5)
    model.load_state_dict(weights(stored))
    return model.eval()


def worst_share(found: Tensor, expected: Tensor) -> float:
    """Largest deviation of any map, as a share of that map's maximum."""
    return float(((found - expected).abs().flatten(1).amax(1) / expected.flatten(1).amax(1)).max())
