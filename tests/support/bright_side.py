"""A tiny data set with a known answer: the brighter half of the image is the class."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from heatproof.datasets.table import Dataset, load_table


def write_bright_side(folder: Path, counts=(24, 12, 12), size=16, noise=60, seed=0) -> Dataset:
    """PNG files and a table with `counts` images in train, val and test, half of them brighter on the left."""
    random = np.random.default_rng(seed)
    rows = []
    (folder / "images").mkdir(parents=True)
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        for i in range(count):
            label = ("left", "right")[i % 2]
            pixels = random.integers(0, noise + 1, (size, size))
            half = slice(0, size // 2) if label == "left" else slice(size // 2, size)
            pixels[:, half] += 120
            name = f"images/{split}{i:03d}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
            rows.append({"sample_id": f"{split}{i:03d}", "image": name, "label": label, "split": split})
            rows[-1]["patient_id"] = f"{split}-p{i // 2}"
    pd.DataFrame(rows).to_csv(folder / "samples.csv", index=False)
    return load_table(folder / "samples.csv")
