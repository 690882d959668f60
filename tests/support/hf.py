"""Tiny vision transformers, saved as the transformers library saves them."""

import json
from pathlib import Path

import torch

CONFIG = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48, "patch_size": 8,
}  # fmt: skip
PROCESSOR = {
    "do_resize": True, "size": {"height": 32, "width": 32}, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.4],
}  # fmt: skip


def save_vit(folder: Path, labels=("a", "b", "c"), *, headless=False, processor=PROCESSOR, dtype=None, **config):
    """Save a ViT with random weights, not tiny biases and positions; returns the model (eval mode)."""
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    values = {"image_size": 32, "id2label": dict(enumerate(labels)), **CONFIG, **config}
    torch.manual_seed(1)
    model = (ViTModel if headless else ViTForImageClassification)(ViTConfig(**values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    if dtype is not None:
        model.to(dtype)
    model.save_pretrained(folder)
    if processor is not None:
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(processor))
    return model
