"""Training: the known answer is reached, the best weights come back, and nothing else is touched."""

import contextlib
import logging
import math
import os
import random
import signal
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from heatproof.errors import InputError
from heatproof.models import Classifier
from heatproof.models.checkpoint import load_checkpoint, read_description
from heatproof.training import loop
from heatproof.training.data import ImageTable
from heatproof.training.fit import HISTORY_COLUMNS, fit
from heatproof.training.predict import predict
from support.bright_side import write_bright_side
from support.nets import TinyCNN, TinyViT

OPTIONS = {"epochs": 4, "batch_size": 8, "lr": 1e-2, "device": "cpu"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_bright_side(tmp_path_factory.mktemp("bright"))


def _linear(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(256, 2))
    return Classifier(net.eval(), ["left", "right"], image_size=16, channels=1, mean=[0.5], std=[0.5])


def _tiny(seed=0):
    torch.manual_seed(seed)
    net = TinyCNN(classes=2, channels=3)
    return Classifier(net.eval(), ["left", "right"], image_size=16, mean=[0.5] * 3, std=[0.5] * 3)


def _intensities(dataset, split, clf):
    table = ImageTable(dataset.subset(split), clf.preprocessing, clf.classes, memory=2**20)
    images = torch.stack([table[i][0] for i in range(len(table))]).float()
    return images, table.targets.argmax(1)


def test_reaches_the_known_answer(dataset):
    torch.manual_seed(0)
    net = TinyViT(image=16, classes=2, channels=1, width=24, depth=2)
    clf = Classifier(net, ["left", "right"], image_size=16, channels=1, mean=[0.5], std=[0.5])
    result = fit(clf, dataset, **{**OPTIONS, "lr": 3e-3, "epochs": 12, "patience": None})
    assert list(result.history) == HISTORY_COLUMNS
    assert list(result.history["epoch"]) == list(range(1, 13))
    assert result.history["val_auroc"].iloc[-1] == 1
    table = predict(clf, dataset.subset("test"), device="cpu").table
    assert (table["predicted"] == table["label"]).all()


def test_one_epoch_equals_adamw_written_out(dataset):
    """The first epoch of a linear model against its formulas in float64 (`loshchilov2019decoupled`)."""
    clf = _linear()
    lr, decay, size = 1e-3, 0.1, 7
    images, labels = (t.double() if t.is_floating_point() else t for t in _intensities(dataset, "train", clf))
    weights = [p.detach().double().clone() for p in clf.module.parameters()]
    first, second = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w) for w in weights]
    order_seed = int(np.random.SeedSequence([5, 0]).generate_state(3)[0])
    draws = torch.Generator().manual_seed(order_seed)
    order = torch.randperm(24, generator=draws).split(size)
    losses = []
    x = (images.flatten(1) - 0.5) / 0.5
    for step, rows in enumerate(order, start=1):
        probabilities = (x[rows] @ weights[0].T + weights[1]).softmax(1)
        onehot = F.one_hot(labels[rows], 2).double()
        losses += (-(onehot * probabilities.log()).sum(1)).tolist()
        error = (probabilities - onehot) / len(rows)
        for k, gradient in enumerate((error.T @ x[rows], error.sum(0))):
            first[k] = 0.9 * first[k] + 0.1 * gradient
            second[k] = 0.999 * second[k] + 0.001 * gradient**2
            unbiased = first[k] / (1 - 0.9**step), second[k] / (1 - 0.999**step)
            kept = 1 - lr * decay if k == 0 else 1  # the bias is not decayed
            weights[k] = weights[k] * kept - lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    result = fit(
        clf, dataset, epochs=1, batch_size=size, lr=lr, weight_decay=decay, seed=5, augment=False, device="cpu"
    )
    for got, want in zip(clf.module.parameters(), weights, strict=True):
        torch.testing.assert_close(got.detach().double(), want, rtol=1e-4, atol=1e-6)
    assert result.history["train_loss"][0] == pytest.approx(np.mean(losses), rel=1e-5)
    images, labels = _intensities(dataset, "val", clf)
    logits = ((images.double().flatten(1) - 0.5) / 0.5) @ weights[0].T + weights[1]
    assert result.history["val_loss"][0] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-4)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(dataset):
    def train(seed, noise):
        torch.manual_seed(noise)  # the global state must not matter
        clf = _linear(dropout=0.5)
        history = fit(clf, dataset, **OPTIONS, seed=seed).history.drop(columns="seconds")
        return history, clf.module[2].weight.detach()

    history, weight = train(1, 10)
    again, same = train(1, 11)
    _, other = train(2, 10)
    assert history.equals(again)
    assert torch.equal(weight, same)
    assert not torch.equal(weight, other)


def test_images_read_again_give_the_same_weights_as_images_kept(dataset):
    models = [_tiny() for _ in range(4)]
    ways = [{}, {"workers": 2}, {"memory_gib": 3e-6}, {"memory_gib": 0, "workers": 2}]
    for clf, way in zip(models, ways, strict=True):
        fit(clf, dataset, **OPTIONS, **way)
    for first, *others in zip(*(clf.module.parameters() for clf in models), strict=True):
        assert all(torch.equal(first, other) for other in others)


def test_early_stopping_restores_the_best_epoch(dataset):
    """An absurd learning rate spoils the model after some epochs; what remains is the epoch of the lowest loss."""
    clf = _tiny()
    result = fit(clf, dataset, **{**OPTIONS, "lr": 0.3, "epochs": 30}, patience=2, seed=3)
    losses = result.history["val_loss"].to_numpy()
    best = int(losses.argmin())
    assert 0 < best < len(losses) - 1, "the case must have its best epoch in the middle"
    assert result.best_epoch == best + 1
    assert len(losses) == best + 1 + 2
    images, labels = _intensities(dataset, "val", clf)
    with torch.no_grad():
        loss = F.cross_entropy(clf(clf.preprocessing.normalize(images)), labels)
    assert float(loss) == pytest.approx(losses[best], rel=1e-5)
    shorter = _tiny()
    fit(shorter, dataset, **{**OPTIONS, "lr": 0.3, "epochs": best + 1}, patience=2, seed=3)
    state = shorter.module.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in clf.module.state_dict().items())


def test_batch_norm_never_sees_a_batch_of_one(dataset):
    class OnePixel(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(3), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.norm(x.mean((2, 3))))

    clf = Classifier(OnePixel(), ["left", "right"], image_size=16, mean=[0.5] * 3, std=[0.5] * 3)
    part = replace(dataset, samples=dataset.samples.drop(index=range(17, 24)).reset_index(drop=True))
    assert (part.samples["split"] == "train").sum() == 17
    fit(clf, part, **OPTIONS)
    assert int(clf.module.norm.num_batches_tracked) == 2 * OPTIONS["epochs"]  # in the weights of the last epoch
    assert [loop.steps_per_epoch(n, 8) for n in (1, 2, 8, 9, 10, 16, 17)] == [1, 1, 1, 1, 2, 2, 2]


def test_nothing_leaks(dataset, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    clf = _tiny()
    clf.module.bn1.weight.requires_grad_(False)
    frozen = clf.module.bn1.weight.clone()
    torch.manual_seed(4)
    before = torch.get_rng_state(), random.getstate(), signal.getsignal(signal.SIGINT)
    levels = [logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(clf, dataset, **OPTIONS)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert signal.getsignal(signal.SIGINT) == before[2]
    assert levels == [logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")]
    assert not clf.module.training
    assert torch.equal(clf.module.bn1.weight, frozen)
    assert [p.requires_grad for p in clf.module.parameters()].count(False) == 1
    assert all(p.grad is None for p in clf.module.parameters())
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in caught] == []


def test_the_folder_holds_model_history_and_record_and_nothing_else(dataset, tmp_path):
    clf = _tiny()
    result = fit(clf, dataset, **OPTIONS, folder=tmp_path / "out")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["history.csv", "model.json", "model.safetensors", "out"]
    back = load_checkpoint(tmp_path / "out", module=TinyCNN(classes=2))
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(back(images), clf(images))
    record = read_description(tmp_path / "out")["extra"]["training"]
    assert record == result.record
    assert (record["best_epoch"], record["options"]["lr"], record["images"]) == (
        result.best_epoch, 1e-2, {"train": 24, "val": 12},
    )  # fmt: skip


def test_progress_is_shown_on_request(dataset, capfd):
    fit(_linear(), dataset, **{**OPTIONS, "epochs": 1}, progress=True)
    shown = capfd.readouterr()
    assert "Training" in shown.err
    assert "100%" in shown.err
    assert shown.out == ""


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16")
def test_bf16_runs_the_network_in_bfloat16(dataset):
    seen = set()
    fp32, bf16 = _linear(), _linear()
    handle = bf16.module[2].register_forward_hook(lambda *args: seen.add(args[2].dtype))
    exact = fit(fp32, dataset, **OPTIONS).history["val_loss"]
    close = fit(bf16, dataset, **OPTIONS, precision="bf16").history["val_loss"]
    handle.remove()
    assert torch.bfloat16 in seen
    assert bf16.module[2].weight.dtype == torch.float32
    assert close.to_numpy() == pytest.approx(exact.to_numpy(), rel=0.05)
    assert not exact.equals(close)


def test_unreadable_images_are_named_and_skipped(tmp_path):
    data = write_bright_side(tmp_path / "data")
    (tmp_path / "data/images/train003.png").write_bytes(b"rubbish")
    (tmp_path / "data/images/val000.png").unlink()
    result = fit(_linear(), data, **OPTIONS)
    assert result.failures[["sample_id", "stage", "error"]].to_numpy().tolist() == [
        ["train003", "image", "ImageError"],
        ["val000", "image", "ImageError"],
    ]
    assert "images/train003.png" in result.failures["message"][0]
    assert str(tmp_path) not in "".join(result.failures["message"])
    assert result.record["images"] == {"train": 23, "val": 11}
    assert result.record["left_out"] == 2


def _without(dataset, keep):
    samples = dataset.samples[keep(dataset.samples)].reset_index(drop=True)
    return replace(dataset, samples=samples)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: _without(d, lambda s: s["split"] != "val"), "split 'val' is empty"),
        (
            lambda d: _without(d, lambda s: (s["split"] != "train") | (s["label"] == "left")),
            "without training images: right",
        ),
        (lambda d: replace(d, samples=d.samples.replace({"label": {"right": "above"}})), "right"),
        (lambda d: replace(d, samples=d.samples.assign(patient_id="one")), "more than one split"),
    ],
)
def test_bad_data(dataset, change, message):
    with pytest.raises(InputError, match=message):
        fit(_linear(), change(dataset), **OPTIONS)


def test_labels_that_are_no_classes_are_named(dataset):
    samples = dataset.samples.copy()
    samples.loc[samples["sample_id"] == "val003", "label"] = "above"
    with pytest.raises(InputError, match="no classes of the model: above"):
        fit(_linear(), replace(dataset, samples=samples), **OPTIONS)


def test_a_class_or_a_split_lost_to_unreadable_files(tmp_path):
    data = write_bright_side(tmp_path / "data", counts=(4, 4, 2))
    for i in (1, 3):
        (tmp_path / f"data/images/train00{i}.png").unlink()
    with pytest.raises(InputError, match="without a readable training image: right"):
        fit(_linear(), data, **OPTIONS)
    for i in range(4):
        (tmp_path / f"data/images/val00{i}.png").unlink()
    with pytest.raises(InputError, match=r"None of the 4 images of the split 'val' can be read: images/val000\.png"):
        fit(_linear(), data, **OPTIONS)


def test_bad_models(dataset):
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    shape = {"image_size": 16, "channels": 1}
    known = {"mean": [0.5], "std": [0.5]}
    frozen = nn.Sequential(nn.Flatten(), nn.Linear(256, 2)).requires_grad_(False)
    for clf, message in [
        (Classifier(net, ["left", "right"], **shape, **known), "3 outputs and 2 classes"),
        (Classifier(net, ["left", "right"], **shape), "normalisation of this model is unknown"),
        (Classifier(net, **shape, **known), "known classes"),
        (Classifier(net, ["left", "right", "c"], task="multilabel", **shape, **known), "says nothing about: c"),
        (Classifier(frozen, ["left", "right"], **shape, **known), "No parameter"),
    ]:
        with pytest.raises(InputError, match=message):
            fit(clf, dataset, **OPTIONS)


class Breaks(nn.Module):
    """A linear model that fails from its n-th training step on."""

    def __init__(self, steps, fail):
        super().__init__()
        self.net, self.steps, self.fail = nn.Linear(256, 2), steps, fail

    def forward(self, x):
        if self.training:
            self.steps -= 1
            if self.steps < 0:
                return self.fail(self.net(x.flatten(1)))
        return self.net(x.flatten(1))


def _interrupt(_):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)  # until the signal arrives


@pytest.mark.parametrize(
    ("fail", "error", "message"),
    [
        (
            lambda logits: logits * math.nan,
            InputError,
            r"became nan in step 1 of epoch 3.*below lr=0\.01 or grad_clip",
        ),
        (_interrupt, KeyboardInterrupt, None),
    ],
)
def test_after_an_error_the_model_has_its_best_weights_yet(dataset, fail, error, message):
    def train(steps, fail, epochs):
        torch.manual_seed(0)
        net = Breaks(steps, fail)
        clf = Classifier(net, ["left", "right"], image_size=16, channels=1, mean=[0.5], std=[0.5])
        with pytest.raises(error, match=message) if epochs > 2 else contextlib.nullcontext():
            fit(clf, dataset, **{**OPTIONS, "epochs": epochs})
        return clf.module

    handler = signal.getsignal(signal.SIGINT)
    broken, whole = train(6, fail, 4), train(99, fail, 2)  # three steps an epoch: the third epoch breaks
    assert torch.equal(broken.net.weight, whole.net.weight)
    assert not broken.training
    assert all(p.grad is None for p in broken.parameters())
    assert signal.getsignal(signal.SIGINT) == handler
