"""Images in memory, augmentation and predictions."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from heatproof.errors import InputError
from heatproof.models import Classifier, Preprocessing
from heatproof.training.augment import Augmentation, augment, move
from heatproof.training.data import ImageTable, targets_for
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
            image, target = table[i]
            assert np.abs(image.double().numpy() - want).max() <= 2**-12
            assert target.tolist() == [float(name == train.samples["label"][i]) for name in CLASSES]


def test_files_are_read_once(dataset):
    table = ImageTable(dataset, Preprocessing((16, 16), channels=1), CLASSES, memory=10**6)
    before = [table[i][0].clone() for i in range(len(table))]
    for path in dataset.samples["image"]:
        Path(path).unlink()
    assert all(torch.equal(table[i][0], before[i]) for i in range(len(table)))


def _several(dataset):
    """The same images with several labels each; one is unknown."""
    bright = (dataset.samples["label"] == "left").astype(float)
    samples = dataset.samples.drop(columns="label").assign(label_left=bright, label_right=1 - bright, label_odd=0.0)
    samples.loc[1::2, "label_odd"] = 1.0
    samples.loc[0, "label_right"] = np.nan
    columns = ["label_left", "label_right", "label_odd"]
    names = [[c[6:] for c in columns if row[c] == 1] for _, row in samples.iterrows()]
    samples = samples.assign(labels=["|".join(row) for row in names])
    return replace(dataset, samples=samples, classes=("left", "right", "odd"), task="multilabel")


def test_targets_are_in_the_models_order(dataset):
    back = targets_for(dataset, ("right", "left"), "multiclass")
    assert back.tolist() == [[float(label == "right"), float(label == "left")] for label in dataset.samples["label"]]
    np.testing.assert_array_equal(back, targets_for(dataset, ("right", "left"), "multilabel"))
    several = _several(dataset)
    turned = targets_for(several, ("odd", "right", "left"), "multilabel")
    np.testing.assert_array_equal(turned[:4], [[0, np.nan, 1], [1, 1, 0], [0, 0, 1], [1, 1, 0]])


def test_one_label_an_image_beside_several_serves_a_multiclass_model(dataset):
    both = _several(dataset)
    both = replace(both, samples=both.samples.assign(label=dataset.samples["label"]))
    np.testing.assert_array_equal(targets_for(both, CLASSES, "multiclass"), targets_for(dataset, CLASSES, "multiclass"))


def test_targets_that_are_not_the_models(dataset):
    several = _several(dataset)
    for data, classes, task, message in [
        (dataset, ("left", "above"), "multiclass", "no classes of the model: right"),
        (dataset, ("left",), "multilabel", "no classes of the model: right"),
        (dataset, ("left", "right", "above"), "multilabel", "says nothing about: above"),
        (several, CLASSES, "multiclass", "task='multilabel', or the table a column `label`"),
    ]:
        with pytest.raises(InputError, match=message):
            targets_for(data, classes, task)


def test_move_against_scipy():
    images = torch.rand(4, 2, 12, 20)
    shift = torch.tensor([[0.1, -0.05], [0.0, 0.0], [-0.2, 0.3], [0.05, 0.1]])
    scale, degrees = torch.tensor([1.2, 0.8, 1.0, 1.1]), torch.tensor([0.0, 0.0, 30.0, -7.0])
    got = move(images, shift, scale, degrees).numpy()
    rows, columns = np.meshgrid(np.arange(12) + 0.5, np.arange(20) + 0.5, indexing="ij")
    for b in range(4):
        # undo the shift, then the turn and the scaling about the centre (y, x) = (6, 10); y points down
        y = rows - 6 - 12 * float(shift[b, 1])
        x = columns - 10 - 20 * float(shift[b, 0])
        angle, size = np.deg2rad(float(degrees[b])), float(scale[b])
        x, y = (np.cos(angle) * x - np.sin(angle) * y) / size + 10, (np.sin(angle) * x + np.cos(angle) * y) / size + 6
        for c in range(2):
            padded = np.pad(images[b, c].numpy(), 30)  # black outside, for scipy too
            want = ndimage.map_coordinates(padded, [y - 0.5 + 30, x - 0.5 + 30], order=1)
            np.testing.assert_allclose(got[b, c], want, atol=1e-5)


def test_a_quarter_turn_goes_counter_clockwise():
    image = torch.arange(9.0).view(1, 1, 3, 3)
    turned = move(image, torch.zeros(1, 2), torch.ones(1), torch.tensor([90.0]))
    np.testing.assert_allclose(turned[0, 0], np.rot90(image[0, 0]), atol=1e-5)


NOTHING = Augmentation(**dict.fromkeys(("shift", "scale", "rotate", "contrast", "brightness", "gamma"), 0.0))


def test_augmentation_is_small_seeded_and_of_each_image():
    images, strengths = torch.rand(4, 1, 16, 16), Augmentation(flip=0.5)
    one, same = (augment(images, strengths, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, same)
    assert not torch.equal(one, augment(images, strengths, torch.Generator().manual_seed(4)))
    uniform = torch.rand(4, 8, generator=torch.Generator().manual_seed(3))
    assert 0 < (uniform[:, 7] < 0.5).sum() < 4, "the case must have both"
    t = uniform * 2 - 1
    moved = move(images, 0.04 * t[:, :2], 1 + 0.05 * t[:, 2], 3 * t[:, 3])
    for i in range(4):
        bright = (moved[i] * (1 + 0.1 * t[i, 4]) + 0.05 * t[i, 5]).clamp(0, 1)
        want = bright ** math.exp(0.1 * t[i, 6])
        torch.testing.assert_close(one[i], want.flip(-1) if uniform[i, 7] < 0.5 else want)
    torch.testing.assert_close(augment(images, NOTHING, torch.Generator()), images)


@pytest.mark.parametrize("name", ["shift", "scale", "rotate", "contrast", "brightness", "gamma", "noise", "flip"])
def test_every_kind_of_augmentation_changes_the_images(name):
    images = torch.rand(8, 3, 16, 16) * 0.6 + 0.2
    changed = augment(images, replace(NOTHING, **{name: 0.5}), torch.Generator().manual_seed(0))
    assert not torch.allclose(changed, images, atol=1e-3)
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_noise_has_its_strength_and_keeps_grey_images_grey():
    images = torch.full((8, 3, 64, 64), 0.5)
    noise = augment(images, replace(NOTHING, noise=0.02), torch.Generator().manual_seed(0)) - images
    assert torch.equal(noise[:, 0], noise[:, 1])
    assert float(noise.std()) == pytest.approx(0.02, rel=0.05)  # 32,768 draws: 0.4 % is one standard error
    assert abs(float(noise.mean())) < 0.001


def test_strengths_as_a_user_gives_them():
    assert Augmentation.of(True) == Augmentation()
    assert Augmentation.of(False) is None
    assert Augmentation.of({"flip": 0.5}) == Augmentation(flip=0.5)
    for value, message in [
        ({"rotat": 3}, "Did you mean 'rotate'"),
        ({"flip": 1.5}, r"augment\['flip'\] must be a number, from 0 to 1"),
        ("strong", "True, False or a mapping"),
    ]:
        with pytest.raises(InputError, match=message):
            Augmentation.of(value)


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


def test_predictions_of_several_labels(dataset):
    several = _several(dataset)
    torch.manual_seed(5)
    net = TinyCNN(classes=3, channels=1).eval()
    clf = Classifier(net, ("odd", "right", "left"), task="multilabel", image_size=16, channels=1, mean=[0.3], std=[0.2])
    with torch.no_grad():
        logits = clf(clf.read(several.samples["image"].tolist()))
        net.head.bias -= logits.median(dim=0).values  # so that each class is said of some images
        logits = clf(clf.read(several.samples["image"].tolist()))
    table = predict(clf, several, batch_size=5, device="cpu").table
    assert list(table) == [
        "sample_id", "patient_id", "split", "labels", "predicted", "label_odd", "label_right", "label_left",
        "logit_odd", "logit_right", "logit_left", "p_odd", "p_right", "p_left",
    ]  # fmt: skip
    assert table["labels"].tolist()[:3] == ["left", "odd|right", "left"]
    assert math.isnan(table["label_right"][0])
    assert table["label_odd"].tolist() == several.samples["label_odd"].tolist()
    np.testing.assert_allclose(table["p_right"], 1 / (1 + np.exp(-logits[:, 1].double().numpy())), rtol=1e-5)
    said = ["|".join(n for n, z in zip(clf.classes, row, strict=True) if z >= 0) for row in logits.tolist()]
    assert table["predicted"].tolist() == said
    assert len(set(said)) > 2


def test_predict_needs_classes_and_evaluation_mode(dataset):
    with pytest.raises(InputError, match="knows none"):
        predict(Classifier(TinyCNN().eval(), image_size=16), dataset)
    clf = _classifier()
    clf.module.train()
    with pytest.raises(InputError, match="training mode"):
        predict(clf, dataset, device="cpu")
