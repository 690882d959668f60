"""The training loop proper. Imported only when training begins, because Lightning is slow to import."""

import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from heatproof.errors import InputError
from heatproof.models.classifier import Classifier
from heatproof.training.augment import augment
from heatproof.training.data import ImageTable
from heatproof.training.layers import frozen, frozen_batch_norms, parameter_groups
from heatproof.training.loss import Loss, class_weights, classification_loss
from heatproof.training.options import Options
from heatproof.training.performance import performance
from heatproof.training.schedule import rate
from heatproof.training.state import Progress, StateFile, tensors_of

Batch = tuple[Tensor, Tensor]


class TrainingTask(lightning.LightningModule):  # type: ignore[misc]  # lightning is not followed
    """Augmented batches, validated after every epoch; what is learnt goes into `progress`, and from there on the disk."""

    def __init__(
        self,
        clf: Classifier,
        options: Options,
        progress: Progress,
        *,
        weights: Tensor | None,
        steps: int,
        state: StateFile | None,
        step_done: Callable[[float], None],
    ) -> None:
        super().__init__()
        self.module = clf.module
        self.clf = clf
        self.options = options
        self.progress = progress
        self.class_weights = weights
        self.steps = steps
        self.state = state
        self.step_done = step_done
        self.draws = torch.Generator()
        self.started = 0.0
        self.batch_norms = frozen_batch_norms(clf.module, options.freeze, len(clf.classes or ()))
        self.scaler = torch.amp.GradScaler(options.device.type) if options.precision == "fp16" else None
        self.terminated = signal.getsignal(signal.SIGTERM)
        self.train_losses: list[Loss] = []
        self.validated: list[Batch] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser over everything that may be trained, as the interrupted training left it."""
        groups, options = parameter_groups(self.module, self.options), self.options
        makers: dict[str, Callable[[], torch.optim.Optimizer]] = {
            "adamw": lambda: torch.optim.AdamW(groups),
            "adam": lambda: torch.optim.Adam(groups),
            "sgd": lambda: torch.optim.SGD(groups, momentum=options.momentum or 0.0),
        }
        optimizer = makers[options.optimizer]()
        if self.progress.epochs:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": self.progress.optimizer})
        if self.scaler is not None and self.progress.scaler:
            self.scaler.load_state_dict(self.progress.scaler)
        return optimizer

    def on_train_start(self) -> None:
        """Let SIGTERM do what it did before: Lightning would finish the batch first, and what is whole lies on the disk."""
        if threading.current_thread() is threading.main_thread() and self.terminated is not None:
            signal.signal(signal.SIGTERM, self.terminated)

    def on_train_epoch_start(self) -> None:
        """Start the clock and the draws of this epoch; frozen batch norms keep their statistics."""
        self.started = time.perf_counter()
        self.train_losses.clear()
        _, draws, dropout = epoch_seeds(self.options, self.progress.epochs)
        self.draws.manual_seed(draws)
        torch.default_generator.manual_seed(dropout)
        if self.options.device.type == "cuda":
            with torch.cuda.device(self.options.device):
                torch.cuda.manual_seed(dropout)
        for layer in self.batch_norms:
            layer.eval()

    def on_train_batch_start(self, _: Batch, number: int) -> None:
        """Set the learning rates of the step."""
        factor = rate(self.progress.epochs * self.steps + number, self.options, self.steps)
        for group in self.optimizers().param_groups:
            group["lr"] = group["top_lr"] * factor

    def training_step(self, batch: Batch, number: int) -> Tensor:
        """The loss of one batch of intensities `[B, C, H, W]` and targets `[B, K]`."""
        images, targets = batch[0].float(), batch[1]
        if self.options.augment is not None:
            images = augment(images, self.options.augment, self.draws)
        loss = self._loss(self._logits(images), targets, self.options.label_smoothing)
        self._check_finite(loss.mean, f"training loss became {{}} in step {number + 1} of epoch {{}}")
        self.train_losses.append(Loss(loss.total.detach(), loss.weight))
        self.step_done(self.progress.epochs * self.steps + number + 1)
        return loss.mean

    def validation_step(self, batch: Batch, _: int) -> None:
        """Collect logits."""
        self.validated.append((self._logits(batch[0].float()).cpu(), batch[1].cpu()))

    def on_validation_epoch_end(self) -> None:
        """Add the epoch to what is learnt; stop where validation has not improved for `patience` epochs."""
        logits, targets = (torch.cat(parts) for parts in zip(*self.validated, strict=True))
        self.validated.clear()
        val_loss = self._loss(logits, targets, 0.0).mean
        self._check_finite(val_loss, "validation loss became {} in epoch {}")
        totals, counts = np.array([[float(part) for part in loss] for loss in self.train_losses]).sum(axis=0)
        truth = targets.argmax(1) if self.clf.task == "multiclass" else targets
        found = performance(
            truth, self.clf.probabilities(logits.double()), self.clf.classes or (), task=self.clf.task, draws=0
        )
        row = {
            "epoch": self.progress.epochs + 1,
            "train_loss": totals / max(counts, 1e-12),
            "val_loss": float(val_loss),
            "val_auroc": found.auroc_macro,
            "lr": self.options.lr * rate((self.progress.epochs + 1) * self.steps - 1, self.options, self.steps),
            "seconds": time.perf_counter() - self.started,
        }
        self._keep(row)
        if self.progress.over(self.options.epochs, self.options.patience):
            self.trainer.should_stop = True

    def _keep(self, row: dict[str, float]) -> None:
        self.progress.add(row, tensors_of(self.module.state_dict()))
        if self.state is not None:
            optimizer = self.optimizers().optimizer
            self.progress.optimizer = {
                number: tensors_of(values) for number, values in optimizer.state_dict()["state"].items()
            }
            self.progress.scaler = self.scaler.state_dict() if self.scaler is not None else {}
            self.state.write(self.progress)

    def _logits(self, intensities: Tensor) -> Tensor:
        images = self.clf.preprocessing.normalize(intensities)
        return self.clf.logits_of(self.module(images)).float()

    def _loss(self, logits: Tensor, targets: Tensor, smoothing: float) -> Loss:
        weights = None if self.class_weights is None else self.class_weights.to(logits)
        return classification_loss(logits, targets, self.clf.task, weights=weights, smoothing=smoothing)

    def _check_finite(self, loss: Tensor, message: str) -> None:
        value = float(loss.detach())
        if not math.isfinite(value):
            ways = [f"a learning rate below lr={self.options.lr:g}"]
            ways += ["grad_clip=1.0"] if self.options.grad_clip is None else []
            ways += ["precision='fp32'"] if self.options.precision != "fp32" else []
            raise InputError(
                f"The {message.format(value, self.progress.epochs + 1)}. The model has its best weights of before. "
                f"Try {' or '.join(ways)}."
            )


def run(
    clf: Classifier,
    train: ImageTable,
    val: ImageTable,
    options: Options,
    step_done: Callable[[float], None],
    state: StateFile | None = None,
) -> Progress:
    """Train `clf.module` in place; whatever happens it ends in evaluation mode with the best weights yet, where it was.

    Args:
        clf: what is trained.
        train: images to learn from.
        val: images to choose the epoch by.
        options: see `fit`.
        step_done: is told the number of finished steps.
        state: goes on from there, and is replaced after every epoch.

    Raises:
        InputError: a loss that is not finite, or a state that is not this training's.
    """
    classes = clf.classes or ()
    progress = (state.read() if state is not None else None) or Progress(best=tensors_of(clf.module.state_dict()))
    place = clf.device
    with frozen(clf.module, options.freeze, len(classes)):
        task = TrainingTask(
            clf, options, progress, steps=steps_per_epoch(len(train), options.batch_size), state=state,
            weights=class_weights(options.class_weights, train.targets, clf.task, classes), step_done=step_done,
        )  # fmt: skip
        try:
            if progress.epochs:
                clf.module.load_state_dict(progress.weights)
            if not progress.over(options.epochs, options.patience):
                clf.module.train()  # Lightning leaves a module in the mode in which it finds it
                with _quiet(), _interruptible(), _random_state(options.device):
                    _trainer(options, task.scaler, progress).fit(
                        task, _loader(train, options, progress), _loader(val, options, None)
                    )
        finally:
            clf.to(place)
            clf.module.load_state_dict(progress.best)
            clf.module.eval()
    return progress


def epoch_seeds(options: Options, epoch: int) -> tuple[int, int, int]:
    """Seeds of the order of the images, of augmentation and of dropout in an epoch, counted from 0."""
    order, draws, dropout = np.random.SeedSequence([options.seed, epoch]).generate_state(3).tolist()
    return order, draws, dropout


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Batches an epoch; a last batch of a single image is left out, because batch norm cannot be trained on it."""
    return max(1, images // batch_size + (images % batch_size > 1))


def _trainer(options: Options, scaler: torch.amp.GradScaler | None, progress: Progress) -> lightning.Trainer:
    gpu = options.device.type == "cuda"
    precision: dict[str, Any] = {"precision": "bf16-mixed" if options.precision == "bf16" else "32-true"}
    if scaler is not None:
        precision = {"plugins": [MixedPrecision("16-mixed", options.device.type, scaler)]}
    return lightning.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=[options.device.index or 0] if gpu else 1,
        max_epochs=options.epochs - progress.epochs,
        gradient_clip_val=options.grad_clip,
        **precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        inference_mode=False,
    )


class _EpochOrder(Sampler[int]):
    """Every image once, in an order of the epoch's own."""

    def __init__(self, table: ImageTable, options: Options, progress: Progress) -> None:
        self.table, self.options, self.progress = table, options, progress

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[int]:
        seed, _, _ = epoch_seeds(self.options, self.progress.epochs)
        yield from torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()


def _loader(table: ImageTable, options: Options, progress: Progress | None) -> DataLoader[Batch]:
    """Batches in the order of the table, or for training (`progress`) in that of the epoch."""
    train = progress is not None
    return DataLoader(
        table,
        batch_size=options.batch_size,
        sampler=_EpochOrder(table, options, progress) if progress is not None else None,
        drop_last=train and len(table) > options.batch_size and len(table) % options.batch_size == 1,
        generator=torch.Generator(),  # the loader draws from one whenever somebody asks for its iterator
    )


@contextmanager
def _random_state(device: torch.device) -> Iterator[None]:
    """Give torch's random state back afterwards."""
    with torch.random.fork_rng(devices=[device.index or 0] if device.type == "cuda" else []):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's tips and notes off the terminal."""
    with ExitStack() as stack:
        for name in ("lightning.pytorch", "lightning.fabric"):
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", PossibleUserWarning)
        warnings.filterwarnings("ignore", module=r"lightning\.")  # its own use of what torch deprecates
        yield


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C stays a `KeyboardInterrupt`: Lightning would end the process."""
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
