"""What each option does to the weights: optimisers and schedule written out in float64, freezing, several labels."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from heatproof.errors import InputError
from heatproof.models import Classifier
from heatproof.study.recipe import TrainingSpec
from heatproof.training.data import ImageTable
from heatproof.training.fit import fit
from heatproof.training.loop import epoch_seeds
from heatproof.training.options import Options
from heatproof.training.schedule import rate
from support.bright_side import write_bright_side
from support.nets import TinyCNN, TinyViT

OPTIONS = {"epochs": 2, "batch_size": 8, "lr": 1e-2, "device": "cpu", "augment": False, "patience": None}
KNOWN = {"image_size": 16, "channels": 1, "mean": [0.5], "std": [0.5]}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_bright_side(tmp_path_factory.mktemp("bright"), counts=(16, 8, 4))


def _linear(task="multiclass", classes=("left", "right")):
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(256, len(classes))).eval(), classes, task=task, **KNOWN)


def _several(dataset):
    """`left` and `right` of the same images, of which some are unknown."""
    samples = dataset.samples.drop(columns="label")
    for name in dataset.classes:
        samples[f"label_{name}"] = (dataset.samples["label"] == name).astype(float)
    samples.loc[::5, "label_left"] = math.nan
    samples["labels"] = [
        "|".join(name for name in dataset.classes if row[f"label_{name}"] == 1) for _, row in samples.iterrows()
    ]
    return replace(dataset, samples=samples, task="multilabel")


def _options(**changes):
    return Options.of(**{**TrainingSpec().model_dump(), "seed": 0, "device": "cpu", **changes})


def _written_out(clf, dataset, *, update, epochs=2, size=8, rates=None, task="multiclass"):
    """The weights of a linear model after training, from formulas in float64; `update(weight, gradient, state, rate)`."""
    table = ImageTable(dataset.subset("train"), clf.preprocessing, clf.classes, task, memory=2**20)
    x = torch.stack([table[i][0] for i in range(len(table))]).double().flatten(1) * 2 - 1
    y = table.targets.double()
    weights = [p.detach().double().clone() for p in clf.module.parameters()]
    states, step = [{}, {}], 0
    for epoch in range(epochs):
        order_seed = epoch_seeds(_options(), epoch)[0]
        for rows in torch.randperm(len(x), generator=torch.Generator().manual_seed(order_seed)).split(size):
            logits = x[rows] @ weights[0].T + weights[1]
            known = ~y[rows].isnan()
            said = logits.softmax(1) if task == "multiclass" else logits.sigmoid()
            error = torch.where(known, said - y[rows].nan_to_num(), 0)
            error = error / (len(rows) if task == "multiclass" else known.sum())
            for k, gradient in enumerate((error.T @ x[rows], error.sum(0))):
                weights[k] = update(weights[k], gradient, states[k], rates[step] if rates else 1e-2, k == 0)
            step += 1
    return weights


def _sgd(momentum, decay):
    def update(weight, gradient, state, lr, decayed):
        gradient = gradient + (decay if decayed else 0) * weight
        state["v"] = momentum * state["v"] + gradient if state else gradient
        return weight - lr * state["v"]

    return update


def _adam(decay):
    def update(weight, gradient, state, lr, decayed):
        gradient = gradient + (decay if decayed else 0) * weight
        t = state["t"] = state.get("t", 0) + 1
        state["m"] = 0.9 * state.get("m", 0) + 0.1 * gradient
        state["v"] = 0.999 * state.get("v", 0) + 0.001 * gradient**2
        return weight - lr * state["m"] / (1 - 0.9**t) / ((state["v"] / (1 - 0.999**t)).sqrt() + 1e-8)

    return update


def _assert_weights(clf, weights):
    for got, want in zip(clf.module.parameters(), weights, strict=True):
        torch.testing.assert_close(got.detach().double(), want, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
    ("options", "update"),
    [
        ({"optimizer": "sgd", "momentum": 0.5, "weight_decay": 0.1}, _sgd(0.5, 0.1)),
        ({"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}, _sgd(0.0, 0.0)),
        ({"optimizer": "adam", "weight_decay": 0.1}, _adam(0.1)),
    ],
)
def test_optimisers(dataset, options, update):
    clf = _linear()
    want = _written_out(clf, dataset, update=update)
    result = fit(clf, dataset, **OPTIONS, **options)
    assert result.best_epoch == 2, "the weights compared are those of the last epoch"
    _assert_weights(clf, want)


def test_warm_up_and_cosine_reach_the_weights(dataset):
    """W = 3 steps of warm-up, then half a cosine over the 3 that are left, at each of the 6 steps."""
    rates = [
        1e-2 * r for r in (1 / 3, 2 / 3, 1, 1, (1 + math.cos(math.pi / 3)) / 2, (1 + math.cos(2 * math.pi / 3)) / 2)
    ]
    clf = _linear()
    want = _written_out(clf, dataset, update=_sgd(0.9, 0.0), epochs=3, rates=rates)
    options = {**OPTIONS, "epochs": 3, "schedule": "cosine", "warmup": 1.5}
    result = fit(clf, dataset, **options, optimizer="sgd", weight_decay=0.0)
    assert result.best_epoch == 3
    _assert_weights(clf, want)
    assert result.history["lr"].tolist() == pytest.approx([rates[1], rates[3], rates[5]], rel=1e-12)


def test_the_schedule_is_that_of_torch():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 6, total_iters=5)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=34)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], milestones=[6])
    options = _options(epochs=4, schedule="cosine", warmup=0.55)  # 5.5 of 10 steps: 6
    for step in range(40):
        assert rate(step, options, 10) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12), step
        optimizer.step()
        both.step()
    constant = _options(epochs=4, warmup=0.2)
    assert [rate(step, constant, 10) for step in (0, 1, 2, 39)] == [0.5, 1, 1, 1]


def test_a_multilabel_model_learns_from_what_is_known(dataset):
    several = _several(dataset)
    clf = _linear("multilabel")
    want = _written_out(clf, several, update=_sgd(0.9, 0.0), task="multilabel")
    result = fit(clf, several, **OPTIONS, optimizer="sgd", weight_decay=0.0)
    assert result.best_epoch == 2
    _assert_weights(clf, want)
    assert result.history["val_auroc"].iloc[-1] == 1


def test_one_label_an_image_serves_both_kinds_of_model(dataset):
    """The multi-label model of one-hot targets is the written-out BCE; its weights are not those of cross-entropy."""
    single, several = _linear(), _linear("multilabel")
    want = _written_out(several, dataset, update=_sgd(0.9, 0.0), task="multilabel")
    for clf in (single, several):
        fit(clf, dataset, **OPTIONS, optimizer="sgd", weight_decay=0.0)
    _assert_weights(several, want)
    assert not torch.allclose(single.module[1].weight, several.module[1].weight, atol=1e-3)


def test_a_multiclass_model_needs_one_label_an_image(dataset):
    several = _several(dataset)
    with pytest.raises(InputError, match="'samples' has several: give the model task='multilabel'"):
        fit(_linear(), several, **OPTIONS)
    with_one = replace(several, samples=several.samples.assign(label=dataset.samples["label"]))
    one, same = _linear(), _linear()
    fit(one, with_one, **OPTIONS)
    fit(same, dataset, **OPTIONS)
    assert torch.equal(one.module[1].weight, same.module[1].weight)


@pytest.mark.parametrize("value", [1.0, 0.0])
def test_a_label_of_which_training_sees_one_side_only_is_refused(dataset, value):
    several = _several(dataset)
    samples = several.samples.assign(label_right=value)
    with pytest.raises(InputError, match="right"):
        fit(_linear("multilabel"), replace(several, samples=samples), **OPTIONS)


def test_a_validation_split_of_which_nothing_is_known_is_refused(dataset):
    samples = _several(dataset).samples
    samples.loc[samples["split"] == "val", ["label_left", "label_right"]] = math.nan
    unknown = replace(dataset, samples=samples, task="multilabel")
    with pytest.raises(InputError, match="No label of the split 'val' is known"):
        fit(_linear("multilabel"), unknown, **OPTIONS)


def _trained(dataset, net=None, **options):
    torch.manual_seed(0)
    module = net or nn.Sequential(nn.Flatten(), nn.Linear(256, 3), nn.ReLU(), nn.Linear(3, 2))
    clf = Classifier(module.eval(), ["left", "right"], **KNOWN)
    history = fit(clf, dataset, **{**OPTIONS, "lr": 1e-3, **options}).history
    return clf.module.state_dict(), history


@pytest.fixture(scope="module")
def plain(dataset):
    return _trained(dataset)[0]


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adam"},
        {"optimizer": "sgd"},
        {"lr": 2e-3},
        {"weight_decay": 0.5},
        {"schedule": "cosine"},
        {"warmup": 1.0},
        {"layer_decay": 0.5},
        {"freeze": ["1"]},
        {"augment": True},
        {"augment": {"rotate": 20}},
        {"class_weights": {"left": 3.0}},
        {"label_smoothing": 0.2},
        {"grad_clip": 0.01},
        {"batch_size": 4},
        {"seed": 1},
    ],
)
def test_every_option_changes_the_weights(dataset, plain, options):
    state, _ = _trained(dataset, **options)
    assert not all(torch.equal(value, plain[name]) for name, value in state.items())


def test_every_strength_of_augmentation_reaches_the_loop(dataset):
    default, _ = _trained(dataset, augment=True)
    other, _ = _trained(dataset, augment={"shift": 0.2})
    assert not torch.equal(default["3.weight"], other["3.weight"])


def test_balanced_weights_are_those_of_the_training_images(dataset):
    rows = dataset.samples[(dataset.samples["split"] != "train") | (dataset.samples.index % 4 != 1)]
    uneven = replace(dataset, samples=rows.reset_index(drop=True))
    counts = rows[rows["split"] == "train"]["label"].value_counts()
    assert (counts["left"], counts["right"]) == (8, 4)
    balanced, _ = _trained(uneven, class_weights="balanced")
    named, _ = _trained(uneven, class_weights={"left": 12 / 16, "right": 12 / 8})
    assert all(torch.equal(value, named[name]) for name, value in balanced.items())


def test_clipping_bounds_the_norm_of_the_gradient(dataset):
    """One step of plain gradient descent moves by at most lr · grad_clip; without clipping it moves further."""
    moved = {}
    for clip in (None, 1e-3):
        clf = _linear()
        before = [p.detach().clone() for p in clf.module.parameters()]
        fit(clf, dataset, **{**OPTIONS, "epochs": 1, "batch_size": 16}, optimizer="sgd", momentum=0.0, weight_decay=0.0,
            grad_clip=clip)  # fmt: skip
        steps = [p.detach() - b for p, b in zip(clf.module.parameters(), before, strict=True)]
        moved[clip] = float(torch.cat([s.flatten() for s in steps]).norm())
    assert moved[1e-3] == pytest.approx(1e-2 * 1e-3, rel=1e-3)
    assert moved[None] > 100 * moved[1e-3]


def test_layer_decay_slows_what_is_deep(dataset):
    """Adam's first step moves every weight by its learning rate."""
    torch.manual_seed(0)
    net = TinyViT(image=16, classes=2, channels=1, width=12, depth=2, heads=2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    after, _ = _trained(
        dataset, net, epochs=1, batch_size=16, optimizer="adam", weight_decay=0.0, layer_decay=0.5, label_smoothing=0.1
    )
    for name, share in (
        ("head.weight", 1), ("norm.weight", 1), ("blocks.1.mlp.fc2.weight", 0.5), ("blocks.0.mlp.fc2.weight", 0.25),
        ("patch_embed.proj.weight", 0.125),
    ):  # fmt: skip
        step = (after[name] - before[name]).abs().median()
        assert float(step) == pytest.approx(1e-3 * share, rel=0.02), name


def test_a_frozen_backbone_stays_to_the_bit_with_its_running_statistics(dataset):
    torch.manual_seed(0)
    net = TinyCNN(classes=2, channels=1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    after, _ = _trained(dataset, net, freeze="backbone", lr=0.1)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}
    assert all(p.requires_grad for p in net.parameters())


def test_a_frozen_batch_norm_stays_beside_one_that_learns(dataset):
    torch.manual_seed(0)
    net = TinyCNN(classes=2, channels=1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    after, _ = _trained(dataset, net, freeze=["bn1"])
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("bn1") for name in changed)
    assert {"bn2.running_mean", "bn2.running_var", "bn2.num_batches_tracked", "conv1.weight"} <= changed


def test_weights_of_the_loss_reach_history(dataset):
    """Train and validation loss of a model that does not learn are the weighted cross-entropy of its logits."""
    clf = _linear()
    with torch.no_grad():
        for parameter in clf.module.parameters():
            parameter.zero_()
        clf.module[1].bias += torch.tensor([1.0, 0.0])
    weights = {"left": 3.0, "right": 1.0}
    history = fit(clf, dataset, **{**OPTIONS, "lr": 1e-12, "epochs": 1}, class_weights=weights).history
    p = math.e / (1 + math.e)
    want = -(3 * math.log(p) + math.log(1 - p)) / 4  # as many left as right
    assert history["val_loss"][0] == pytest.approx(want, rel=1e-5)
    assert history["train_loss"][0] == pytest.approx(want, rel=1e-5)


def test_smoothing_is_of_training_only(dataset):
    """Twice as many left as right in both splits; with as many it could not be seen."""
    uneven = replace(dataset, samples=dataset.samples[dataset.samples.index % 4 != 1].reset_index(drop=True))
    clf = _linear()
    with torch.no_grad():
        for parameter in clf.module.parameters():
            parameter.zero_()
        clf.module[1].bias += torch.tensor([1.0, 0.0])
    history = fit(clf, uneven, **{**OPTIONS, "lr": 1e-12, "epochs": 1}, label_smoothing=0.5).history
    p = math.e / (1 + math.e)
    left, right = -math.log(p), -math.log(1 - p)
    assert history["val_loss"][0] == pytest.approx((2 * left + right) / 3, rel=1e-5)
    smooth = 2 * (0.75 * left + 0.25 * right) + 0.75 * right + 0.25 * left
    assert history["train_loss"][0] == pytest.approx(smooth / 3, rel=1e-5)
