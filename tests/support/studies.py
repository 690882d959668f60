"""A study that takes seconds: tiny images whose brighter half is the class, tiny models, masks of the brighter half."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from support.bright_side import write_bright_side

SIZE, SEED = 32, 3
VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "patch_size": 8,
}
DENSENET = {"init_features": 8, "growth_rate": 4, "block_config": [2, 2]}


def write_data(folder: Path, counts: tuple[int, int, int] = (24, 8, 10)) -> pd.DataFrame:
    """`folder/samples.csv` with images, splits and a mask for each image but the first test image; returns the table."""
    write_bright_side(folder, counts, size=SIZE)
    table = pd.read_csv(folder / "samples.csv")
    (folder / "masks").mkdir()
    table["mask"] = [f"masks/{sample}.png" for sample in table["sample_id"]]
    for label, name in zip(table["label"], table["mask"], strict=True):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[:, slice(0, SIZE // 2) if label == "left" else slice(SIZE // 2, SIZE)] = 255
        Image.fromarray(mask).save(folder / name)
    table.loc[table["sample_id"] == "test000", "mask"] = None
    table.to_csv(folder / "samples.csv", index=False)
    return table


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """The recipe of a study on the data in `folder`, as plain values."""
    model = {"image_size": SIZE, "channels": 1, "batch_size": 16}
    plain: dict[str, Any] = {
        "name": "tiny",
        "seed": SEED,
        "device": "cpu",
        "threads": 1,
        "chunk_size": 4,
        "data": {
            "samples": str(folder / "samples.csv"),
            "region_columns": [{"region": "bright", "kind": "mask", "column": "mask"}],
            "region": "bright",
        },
        "models": [
            {"name": "vit", "source": "hf:vit", **model, "config": VIT, "training": {"epochs": 2, "lr": 3e-3}},
            {"name": "densenet", "source": "monai:densenet121", **model, "config": DENSENET},
        ],
        "methods": [
            "attention",
            "lrp_epsilon",
            {"method": "lime", "samples": 12, "segmentation": "grid", "segments": 16},
            "control_random",
        ],
        "metrics": [
            {"metric": "faithfulness_estimate", "step": 128},
            {"metric": "max_sensitivity", "samples": 2},
            "pointing_game",
            {"metric": "iou", "top": 50, "as": "iou_50"},
            "sparseness",
        ],
    }
    return {**plain, **changes}
