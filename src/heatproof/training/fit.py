"""Train a classifier on the training images of a data set."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

from heatproof.datasets.splits import check_splits
from heatproof.datasets.table import Dataset
from heatproof.errors import InputError
from heatproof.models.checkpoint import DESCRIPTION, load_weights, read_description, replace_file, save_checkpoint
from heatproof.models.classifier import Classifier
from heatproof.probing.progress import bar
from heatproof.training.data import ImageTable, targets_for
from heatproof.training.layers import frozen, parameter_groups
from heatproof.training.loss import class_weights as weights_of
from heatproof.training.options import Optimizer, Options, Schedule, TrainingPrecision
from heatproof.training.state import Progress, StateFile, check_identity

HISTORY_COLUMNS = ["epoch", "train_loss", "val_loss", "val_auroc", "lr", "seconds"]


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """What came out of `fit`.

    `history`: a row an epoch (from 1): epoch, train_loss, val_loss (in nats, see `classification_loss`; the validation
    loss knows no label smoothing), val_auroc (mean over the classes, NaN where undefined), lr (the rate of the epoch's
    last step, that of the head), seconds. `best_epoch`: the one whose weights the model has. `failures`: images left
    out: sample_id, stage, error, message. `record`: options and results as JSON values.
    """

    history: pd.DataFrame
    best_epoch: int
    failures: pd.DataFrame
    record: Mapping[str, Any]


def fit(
    clf: Classifier,
    dataset: Dataset,
    *,
    epochs: int = 10,
    batch_size: int = 32,
    optimizer: Optimizer = "adamw",
    momentum: float | None = None,
    lr: float = 1e-4,
    weight_decay: float = 0.01,
    schedule: Schedule = "constant",
    warmup: float = 0.0,
    layer_decay: float = 1.0,
    freeze: Literal["backbone"] | Sequence[str] | None = None,
    patience: int | None = 3,
    augment: bool | Mapping[str, float] = True,
    class_weights: Literal["balanced"] | Mapping[str, float] | None = None,
    label_smoothing: float = 0.0,
    grad_clip: float | None = None,
    precision: TrainingPrecision = "fp32",
    seed: int = 0,
    device: str | torch.device = "auto",
    workers: int = 0,
    memory_gib: float = 4.0,
    progress: bool = False,
    folder: str | Path | None = None,
    resume: bool = False,
) -> TrainingResult:
    """Train `clf.module` in place on the split `train`, and keep the weights of the epoch with the lowest loss on `val`.

    A multi-class classifier learns by cross-entropy; a multi-label one by the binary cross-entropy of every label that
    is known, also where the data set has one label an image (`classification_loss`). On the CPU the same seed, data and
    number of threads give the same weights; the global random state is left alone. The module ends in evaluation mode,
    on the device where it was, also after an error (then with the best weights yet). An image that cannot be read is
    left out and named in `failures`.

    Args:
        clf: a classifier whose classes hold all labels of `train` and `val`.
        dataset: with the splits `train` and `val`; others are not touched.
        epochs: at most.
        batch_size: images a step.
        optimizer: `adamw` (`loshchilov2019decoupled`), `adam` (`kingma2015adam`) or `sgd`.
        momentum: of `sgd`, 0.9 where not given.
        lr: learning rate.
        weight_decay: of the weights of layers; norms, biases, tokens and position embeddings are not decayed. `adamw`
            shrinks the weights by it, `adam` and `sgd` add it to the gradient.
        schedule: `constant`, or `cosine`: half a cosine down to 0 over all steps (`rate`).
        warmup: epochs, or parts of one, in which the rate rises linearly.
        layer_decay: factor on the learning rate for every depth further from the head (`depths`, `bao2022beit`).
        freeze: names of parameters or of modules around them that are not trained, with `*` for any text, or
            `backbone`: all but the head. Frozen batch norms keep their statistics. Afterwards `requires_grad` is as it
            was before.
        patience: stop after so many epochs without a lower validation loss; None never does.
        augment: change training images at random, see `Augmentation`; a mapping changes its strengths.
        class_weights: `balanced`, or the weight of each class (1 where not named), see the function `class_weights`.
        label_smoothing: share of the target that goes to all classes alike.
        grad_clip: largest norm of the gradient, over all parameters.
        precision: `bf16` and `fp16` run the network so where that is safe, `fp16` on CUDA only, with a gradient scaler;
            the weights stay float32.
        seed: of the order of images, augmentation and dropout.
        device: `auto`, `cpu` or `cuda:N`.
        workers: threads that read images; 0 reads them one by one.
        memory_gib: images are kept in memory up to this much (GiB), the others are read again in every epoch.
        progress: show bars.
        folder: also save the trained model there (`save_checkpoint`, with the record as `extra["training"]`) and the
            history as `history.csv`. Nothing is written elsewhere.
        resume: write the state of the training into `folder` after every epoch, and go on from the one that lies there.
            A training that was killed at any moment then ends with the weights that it would have had (on the CPU to the
            bit). The state is removed when training ends; a folder where it has ended is read and returned.
            With False a state that lies there is removed, and training starts over.

    Raises:
        InputError: an option out of range or without effect beside the others, an unknown normalisation, a multi-class
            classifier where images have several labels, a patient in two splits, an empty split, a class without
            (readable) training images, a label that is no class, outputs that differ from the classes, nothing to
            train, a loss that is not finite, `resume` without folder or with the state of another training.
    """
    options = Options.of(
        epochs=epochs, batch_size=batch_size, optimizer=optimizer, momentum=momentum, lr=lr, weight_decay=weight_decay,
        schedule=schedule, warmup=warmup, layer_decay=layer_decay, freeze=freeze, patience=patience, augment=augment,
        class_weights=class_weights, label_smoothing=label_smoothing, grad_clip=grad_clip, precision=precision,
        seed=seed, device=device, workers=workers, memory_gib=memory_gib,
    )  # fmt: skip
    if resume and folder is None:
        raise InputError("resume=True needs the folder in which the state of the training is kept: folder=...")
    check_trainable(clf, options)
    _check_data(clf, dataset)
    train, val = _read(clf, dataset, options, progress)
    identity = _identity(clf, options, train, val)
    state = None if folder is None else StateFile(Path(folder), identity)
    failures = pd.concat([train.failures, val.failures], ignore_index=True)
    if resume and state is not None and (record := _finished(clf, state)) is not None:
        return TrainingResult(_history(record["history"]), record["best_epoch"], failures, record)
    if not resume and state is not None:
        state.remove()

    from heatproof.training.loop import run, steps_per_epoch

    with bar("Training", epochs * steps_per_epoch(len(train), batch_size), progress) as step_done:
        learnt = run(clf, train, val, options, step_done, state if resume else None)
    images = {"train": len(train), "val": len(val)}
    record = {**_record(options, learnt, images, len(failures)), "identity": identity}
    history = _history(learnt.rows)
    if state is not None:
        state.folder.mkdir(parents=True, exist_ok=True)
        replace_file(state.folder / "history.csv", lambda path: history.to_csv(path, index=False))
        save_checkpoint(clf, state.folder, extra={"training": record})
        state.remove()
    return TrainingResult(history, learnt.best_epoch, failures, record)


def check_trainable(clf: Classifier, options: Options) -> None:
    """Raise `InputError` for a classifier that cannot be trained so; one forward pass checks its outputs."""
    if clf.classes is None:
        raise InputError("fit trains classifiers with known classes: Classifier(module, classes=[...]).")
    size = (1, clf.preprocessing.channels, *clf.preprocessing.image_size)
    blank = clf.preprocessing.normalize(torch.zeros(size, device=clf.device))
    clf.module.eval()
    with torch.no_grad():
        clf(blank)
    with frozen(clf.module, options.freeze, len(clf.classes)):
        parameter_groups(clf.module, options)
    weights_of(options.class_weights, torch.eye(len(clf.classes)), clf.task, clf.classes)


def _check_data(clf: Classifier, dataset: Dataset) -> None:
    """Raise `InputError` for samples that this classifier cannot learn from."""
    classes = clf.classes or ()
    targets_for(dataset, classes, clf.task)
    samples = dataset.samples
    if clf.task == "multiclass":  # of a table that has one label an image beside several, this one counts
        samples = samples.drop(columns="labels", errors="ignore")
    check_splits(samples, classes=classes, required=("train", "val"))


def _read(clf: Classifier, dataset: Dataset, options: Options, progress: bool) -> tuple[ImageTable, ImageTable]:
    """The training and the validation images, within the memory that they may have together."""
    classes = clf.classes or ()
    memory = int(options.memory_gib * 2**30)
    tables = []
    for split in ("train", "val"):
        part = dataset.subset(split)
        table = ImageTable(
            part, clf.preprocessing, classes, clf.task, memory=memory, workers=options.workers, progress=progress
        )
        memory -= table.kept_bytes
        if not len(table):
            raise InputError(
                f"None of the {len(part)} images of the split {split!r} can be read: "
                f"{table.failures['message'].iloc[0]}"
            )
        tables.append(table)
    _check_readable(tables[0], tables[1], clf)
    return tables[0], tables[1]


def _check_readable(train: ImageTable, val: ImageTable, clf: Classifier) -> None:
    classes = clf.classes or ()
    for value, what in ((1, "a readable training image"), (0, "a readable training image that does not show them")):
        lost = [
            name for name, found in zip(classes, (train.targets == value).any(0).tolist(), strict=True) if not found
        ]
        if lost:
            raise InputError(f"Classes without {what}: {', '.join(lost)}. Repair the files.")
    if val.targets.isnan().all():
        raise InputError("No label of the split 'val' is known, so no epoch can be chosen: give it images with labels.")


def _identity(clf: Classifier, options: Options, train: ImageTable, val: ImageTable) -> dict[str, Any]:
    """What must agree for a training to go on, as JSON values."""
    digest = hashlib.sha256()
    for table in (train, val):
        digest.update(json.dumps(table.sample_ids).encode())
        digest.update(table.targets.numpy().tobytes())
    model = {"network": type(clf.module).__name__, "task": clf.task, "classes": clf.classes}
    shown = {"preprocessing": repr(clf.preprocessing), "data": digest.hexdigest()}
    return dict(json.loads(json.dumps({**model, **shown, **options.identity})))


def _finished(clf: Classifier, state: StateFile) -> dict[str, Any] | None:
    """The record of this training where it has ended in the folder, its weights now in `clf`; None where it has not."""
    if state.path.is_file() or not (state.folder / DESCRIPTION).is_file():
        return None
    record = read_description(state.folder)["extra"].get("training", {})
    check_identity(state.folder / DESCRIPTION, record.get("identity", {}), state.identity)
    load_weights(clf.module, state.folder)
    return dict(record)


def _history(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=HISTORY_COLUMNS).astype({**dict.fromkeys(HISTORY_COLUMNS, float), "epoch": int})


def _record(options: Options, learnt: Progress, images: Mapping[str, int], left_out: int) -> dict[str, Any]:
    history = _history(learnt.rows)
    rows = history.astype(object).where(history.notna(), None).to_dict("records")
    values = {"options": options.record, "images": dict(images), "left_out": left_out}
    return {**values, "best_epoch": learnt.best_epoch, "history": rows}
