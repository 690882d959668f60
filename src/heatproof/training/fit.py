"""Train a classifier on the training images of a data set."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from heatproof.checks import check_number
from heatproof.datasets.splits import check_splits
from heatproof.datasets.table import Dataset
from heatproof.errors import InputError
from heatproof.models.checkpoint import replace_file, save_checkpoint
from heatproof.models.classifier import Classifier
from heatproof.probing.precision import Precision
from heatproof.probing.progress import bar
from heatproof.training.data import ImageTable
from heatproof.training.options import Options

HISTORY_COLUMNS = ["epoch", "train_loss", "val_loss", "val_auroc", "seconds"]


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """What came out of `fit`.

    `history`: a row an epoch (from 1): epoch, train_loss, val_loss (mean cross-entropy an image, in nats), val_auroc
    (mean over the classes, NaN where undefined), seconds. `best_epoch`: the one whose weights the model has. `failures`:
    images left out: sample_id, stage, error, message. `record`: options and results as JSON values.
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
    lr: float = 1e-4,
    weight_decay: float = 0.01,
    patience: int | None = 3,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: Precision = "fp32",
    augment: bool = True,
    workers: int = 0,
    memory_gib: float = 4.0,
    progress: bool = False,
    folder: str | Path | None = None,
) -> TrainingResult:
    """Train `clf.module` in place on the split `train`, and keep the weights of the epoch with the lowest loss on `val`.

    Cross-entropy, AdamW (`loshchilov2019decoupled`), a constant learning rate. On the CPU the same seed, data and
    number of threads give the same weights; the global random state is left alone. The module ends in evaluation mode,
    on the device where it was, also after an error (then with the best weights yet). An image that cannot be read is
    left out and named in `failures`.

    Args:
        clf: a multi-class classifier whose classes hold all labels of `train` and `val`.
        dataset: with the splits `train` and `val`; others are not touched.
        epochs: at most.
        batch_size: images a step.
        lr: learning rate.
        weight_decay: of AdamW.
        patience: stop after so many epochs without a lower validation loss; None never does.
        seed: of the order of images, augmentation and dropout.
        device: `auto`, `cpu` or `cuda:N`.
        precision: `bf16` runs the network in bfloat16 where that is safe; the weights stay float32.
        augment: change shift (4 %), scale (5 %), contrast (10 %) and brightness (5 %) of training images at random;
            nothing is flipped, because the heart has a side.
        workers: threads that read images; 0 reads them one by one.
        memory_gib: images are kept in memory up to this much (GiB), the others are read again in every epoch.
        progress: show bars.
        folder: also save the trained model there (`save_checkpoint`, with the record as `extra["training"]`) and the
            history as `history.csv`. Nothing is written elsewhere.

    Raises:
        InputError: an option out of range, a multi-label classifier, an unknown normalisation, a patient in two splits,
            an empty split, a class without (readable) training images, a label that is no class, outputs that differ
            from the classes, nothing to train, a loss that is not finite.
    """
    options = Options.of(
        epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay, patience=patience, seed=seed,
        device=device, precision=precision, augment=augment, workers=workers,
    )  # fmt: skip
    _check_model(clf)
    check_splits(dataset.samples, classes=clf.classes, required=("train", "val"))
    train, val = _read(clf, dataset, options, int(check_number("memory_gib", memory_gib) * 2**30), progress)

    from heatproof.training.loop import run, steps_per_epoch

    with bar("Training", epochs * steps_per_epoch(len(train), batch_size), progress) as step_done:
        learnt = run(clf, train, val, options, step_done)
    history = pd.DataFrame(learnt.rows, columns=HISTORY_COLUMNS).astype({"epoch": int})
    failures = pd.concat([train.failures, val.failures], ignore_index=True)
    record = _record(options, history, learnt.best_epoch, {"train": len(train), "val": len(val)}, len(failures))
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        replace_file(Path(folder) / "history.csv", lambda path: history.to_csv(path, index=False))
        save_checkpoint(clf, folder, extra={"training": record})
    return TrainingResult(history, learnt.best_epoch, failures, record)


def _check_model(clf: Classifier) -> None:
    """Raise `InputError` for a classifier that cannot be trained; one forward pass checks its outputs."""
    if clf.task != "multiclass" or clf.classes is None:
        raise InputError("fit trains multi-class classifiers with known classes: Classifier(module, classes=[...]).")
    if not any(p.requires_grad for p in clf.module.parameters()):
        raise InputError("No parameter of the model may be trained: set requires_grad on those that shall be.")
    size = (1, clf.preprocessing.channels, *clf.preprocessing.image_size)
    blank = clf.preprocessing.normalize(torch.zeros(size, device=clf.device))
    clf.module.eval()
    with torch.no_grad():
        clf(blank)


def _read(
    clf: Classifier, dataset: Dataset, options: Options, memory: int, progress: bool
) -> tuple[ImageTable, ImageTable]:
    """The training and the validation images, within `memory` bytes together."""
    classes = clf.classes or ()
    tables = []
    for split in ("train", "val"):
        part = dataset.subset(split)
        table = ImageTable(part, clf.preprocessing, classes, memory=memory, workers=options.workers, progress=progress)
        memory -= table.kept_bytes
        if not len(table):
            raise InputError(
                f"None of the {len(part)} images of the split {split!r} can be read: "
                f"{table.failures['message'].iloc[0]}"
            )
        tables.append(table)
    lost = [name for k, name in enumerate(classes) if k not in tables[0].labels]
    if lost:
        raise InputError(f"Classes without a readable training image: {', '.join(lost)}. Repair the files.")
    return tables[0], tables[1]


def _record(
    options: Options, history: pd.DataFrame, best_epoch: int, images: Mapping[str, int], left_out: int
) -> dict[str, Any]:
    values = {**asdict(options), "device": str(options.device)}
    rows = history.astype(object).where(history.notna(), None).to_dict("records")
    return {"options": values, "images": dict(images), "left_out": left_out, "best_epoch": best_epoch, "history": rows}
