"""The linear baseline on data whose answer is known."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from heatproof.datasets.table import load_table
from heatproof.study.baseline import linear_baseline
from support.bright_side import write_bright_side


def test_what_a_linear_model_can_see_scores_1_and_turned_around_0(tmp_path: Path) -> None:
    assert linear_baseline(write_bright_side(tmp_path / "a", (24, 2, 12), size=32)) == 1.0
    write_bright_side(tmp_path / "b", (24, 2, 12), size=32)
    table = pd.read_csv(tmp_path / "b" / "samples.csv")
    other = {"left": "right", "right": "left"}
    turned = [
        other[label] if split == "test" else label for label, split in zip(table["label"], table["split"], strict=True)
    ]
    table.assign(label=turned).to_csv(tmp_path / "b" / "samples.csv", index=False)
    assert linear_baseline(load_table(tmp_path / "b" / "samples.csv")) == 0.0


def test_detail_below_16_pixels_a_side_is_out_of_its_sight(tmp_path: Path) -> None:
    """The classes differ in the direction of one-pixel stripes, which average out in 2 × 2 blocks."""
    dataset = write_bright_side(tmp_path, (24, 2, 12), size=32)
    rows, columns = np.mgrid[:32, :32]
    for sample in dataset.samples.itertuples():
        stripes = (rows if sample.label == "left" else columns) % 2
        Image.fromarray((stripes * 200).astype(np.uint8)).save(sample.image)
    found = linear_baseline(dataset)
    assert found is not None
    assert abs(found - 0.5) < 0.01


def test_a_bad_file_is_left_out_and_one_class_is_undefined(tmp_path: Path) -> None:
    dataset = write_bright_side(tmp_path / "a", (24, 2, 12))
    Path(dataset.samples["image"].iloc[-1]).write_text("nothing")
    assert linear_baseline(dataset) == 1.0
    table = dataset.samples[(dataset.samples["split"] != "test") | (dataset.samples["label"] == "left")]
    table.to_csv(tmp_path / "one.csv", index=False)
    assert linear_baseline(load_table(tmp_path / "one.csv")) is None


def test_each_of_several_labels_counts_and_what_is_unknown_does_not(tmp_path: Path) -> None:
    table = write_bright_side(tmp_path, (24, 2, 12), size=32).samples
    left = (table["label"] == "left").astype(float)
    noise = np.random.default_rng(0).integers(0, 2, len(table)).astype(float)
    unknown = left.mask(table.index % 3 == 0)  # a third is not known
    columns = {"left": unknown.fillna(-1), "right": 1 - left, "noise": noise}
    table.drop(columns="label").assign(**columns).to_csv(tmp_path / "several.csv", index=False)
    both = load_table(tmp_path / "several.csv", label_columns=["left", "right"])
    assert linear_baseline(both) == 1.0
    three = linear_baseline(load_table(tmp_path / "several.csv", label_columns=["left", "right", "noise"]))
    assert three is not None
    assert 2 / 3 <= three < 0.95
