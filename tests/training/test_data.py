"""Images in memory, augmentation and predictions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from heatproof.errors import InputError
from heatproof.models import Classifier, Preprocessing
from heatproof.training import augment as module
from heatproof.training.augment import augment, shift_and_scale
from heatproof.training.data import ImageTable, label_indices
from heatproof.training.predict import predict
from support.bright_side import write_bright_side
from support.nets import TinyCNN

CLASSES = ("left", "right")


@pytest.fixture
def dataset(tmp_path):
    return write_bright_side(tmp_path / "data", counts=(4, 2, 6))


def test_intensities_are_the_files_and_the_memory_is_kept_to(dataset):
    """Half precision is exact to 2^-12 below 1; a grey image takes one channel whatever the model takes."""
    prep = Preprocessing((16, 16), channels=3, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[..., 1] = np.arange(256).reshape(16, 16)
    Image.fromarray(pixels).save(dataset.samples["image"][2])
    train, grey = dataset.subset("train"), 16 * 16 * 2
    everything = ImageTable(train, prep, CLASSES, memory=10**6)
    some = ImageTable(train, prep, CLASSES, memory=2 * grey + 1, workers=2)
    assert (everything.kept_bytes, everything.all_kept) == (3 * grey + 3 * grey, True)
    assert (some.kept_bytes, some.all_kept) == (2 * grey, False)
    for i, path in enumerate(train.samples["image"]):
        want = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1) / 255
        for table in (everything, some):
            image, label = table[i]
            assert np.abs(image.double().numpy() - want).max() <= 2**-12
            assert CLASSES[label] == train.samples["label"][i]


def test_files_are_read_once(dataset):
    table = ImageTable(dataset, Preprocessing((16, 16), channels=1), CLASSES, memory=10**6)
    before = [table[i][0].clone() for i in range(len(table))]
    for path in dataset.samples["image"]:
        Path(path).unlink()
    assert all(torch.equal(table[i][0], before[i]) for i in range(len(table)))


def test_label_indices():
    labels = ["right", "left", "right"]
    assert label_indices(labels, CLASSES) == [1, 0, 1]
    with pytest.raises(InputError, match="no classes of the model: above, below"):
        label_indices(["left", "below", "above"], CLASSES)


def test_shift_and_scale_against_scipy():
    images = torch.rand(3, 2, 12, 20)
    shift, scale = torch.tensor([[0.1, -0.05], [0.0, 0.0], [-0.2, 0.3]]), torch.tensor([1.2, 0.8, 1.0])
    got = shift_and_scale(images, shift, scale).numpy()
    rows, columns = np.meshgrid(np.arange(12) + 0.5, np.arange(20) + 0.5, indexing="ij")
    for b in range(3):
        # undo the shift, then the scaling about the centre (y, x) = (6, 10)
        y = (rows - 6 - 12 * float(shift[b, 1])) / float(scale[b]) + 6
        x = (columns - 10 - 20 * float(shift[b, 0])) / float(scale[b]) + 10
        for c in range(2):
            padded = np.pad(images[b, c].numpy(), 30)  # black outside, for scipy too
            want = ndimage.map_coordinates(padded, [y - 0.5 + 30, x - 0.5 + 30], order=1)
            np.testing.assert_allclose(got[b, c], want, atol=1e-5)


def test_augmentation_is_small_seeded_and_of_each_image(monkeypatch):
    images = torch.rand(4, 1, 16, 16)
    one, same = (augment(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, same)
    assert not torch.equal(one, augment(images, torch.Generator().manual_seed(4)))
    uniform = torch.rand(4, 5, generator=torch.Generator().manual_seed(3)) * 2 - 1
    moved = shift_and_scale(images, 0.04 * uniform[:, :2], 1 + 0.05 * uniform[:, 2])
    for i in range(4):
        want = (moved[i] * (1 + 0.1 * uniform[i, 3]) + 0.05 * uniform[i, 4]).clamp(0, 1)
        torch.testing.assert_close(one[i], want)
    for name in ("SHIFT", "SCALE", "CONTRAST", "BRIGHTNESS"):
        monkeypatch.setattr(module, name, 0.0)
    torch.testing.assert_close(augment(images, torch.Generator()), images)


def _classifier():
    net = TinyCNN(classes=2, channels=1).eval()
    return Classifier(net, CLASSES, image_size=16, channels=1, mean=[0.3], std=[0.2])


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_predictions_are_the_classifiers_own(dataset, batch_size):
    clf, test = _classifier(), dataset.subset("test")
    result = predict(clf, test, batch_size=batch_size, device="cpu", workers=batch_size % 2)
    with torch.no_grad():
        logits = clf(clf.read(test.samples["image"].tolist()))
    table = result.table
    assert list(table) == [
        "sample_id", "patient_id", "split", "label", "predicted", "logit_left", "logit_right", "p_left", "p_right",
    ]  # fmt: skip
    assert table["sample_id"].tolist() == test.samples["sample_id"].tolist()
    np.testing.assert_allclose(table[["logit_left", "logit_right"]], logits, rtol=1e-5, atol=1e-6)
    odds = np.exp(table["logit_right"].astype(float) - table["logit_left"].astype(float))
    np.testing.assert_allclose(table["p_right"], odds / (1 + odds), rtol=1e-6)
    assert table["predicted"].tolist() == [CLASSES[k] for k in logits.argmax(1)]
    assert result.failures.empty


def test_predictions_name_the_unreadable_and_keep_the_rest(dataset):
    Path(dataset.samples["image"][7]).write_bytes(b"\x89PNG\r\n\x1a\n")
    clf = _classifier()
    whole = predict(clf, dataset.subset("test"), batch_size=3, device="cpu")
    assert whole.failures["sample_id"].tolist() == ["test001"]
    assert whole.table["sample_id"].tolist() == [f"test00{i}" for i in (0, 2, 3, 4, 5)]
    nothing = predict(clf, replace(dataset, samples=dataset.samples.iloc[7:8]), device="cpu")
    assert list(nothing.table) == list(whole.table)
    assert len(nothing.table) == 0


def test_predict_needs_classes_and_evaluation_mode(dataset):
    with pytest.raises(InputError, match="knows none"):
        predict(Classifier(TinyCNN().eval(), image_size=16), dataset)
    clf = _classifier()
    clf.module.train()
    with pytest.raises(InputError, match="training mode"):
        predict(clf, dataset, device="cpu")
