"""Small classifiers and pictures for galleries, and what a written gallery holds."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

import heatproof as hp
from support.nets import TinyCNN, TinyViT
from support.pages import Element, parse

CLASSES = ["normal", "opacity", "nodule"]
FEW = ["gradcam", "lrp_z", "control_random"]


def classifier(net: nn.Module | None = None, **changes: Any) -> hp.Classifier:
    given = {"classes": CLASSES, "image_size": 32, "channels": 1, "mean": [0.5], "std": [0.25], **changes}
    return hp.Classifier((TinyCNN(3, 1) if net is None else net).eval(), **given)


def vit(**changes: Any) -> hp.Classifier:
    return classifier(TinyViT(image=32, classes=3, channels=1, depth=2), **changes)


def stored(out: Path) -> dict[str, Any]:
    return json.loads((out / "gallery.json").read_text(encoding="ascii"))


def page_of(out: Path) -> Element:
    return parse((out / "gallery.html").read_text(encoding="utf-8"))


def shown_levels(out: Path) -> list[np.ndarray]:
    """The colour level of every pixel of every map of the page, in its order."""
    found = []
    for image in page_of(out).all("img", class_="heat"):
        png = base64.b64decode(image.attributes["src"].removeprefix("data:image/png;base64,"))
        found.append(np.asarray(Image.open(io.BytesIO(png))))
    return found


def write_images(folder: Path) -> list[Path]:
    """Three pictures, one of them not square and one in colour."""
    random = np.random.default_rng(0)
    paths = []
    for name, shape in (("first", (32, 32)), ("second", (48, 40)), ("third", (64, 64, 3))):
        paths.append(folder / "images" / f"{name}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(paths[-1])
    return paths
