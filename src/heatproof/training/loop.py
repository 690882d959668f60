"""The training loop proper. Imported only when training begins, because Lightning is slow to import."""

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler

from heatproof.errors import InputError
from heatproof.models.classifier import Classifier
from heatproof.training.augment import augment
from heatproof.training.data import ImageTable
from heatproof.training.options import Options
from heatproof.training.performance import performance

Batch = tuple[Tensor, Tensor]


@dataclass
class Progress:
    """What the loop has learnt so far: a row an epoch, and the weights of the best one."""

    rows: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0

    def add(self, row: dict[str, float], module: torch.nn.Module) -> None:
        """Note an epoch; keep a copy of the weights if its validation loss is the lowest yet."""
        lowest = min((r["val_loss"] for r in self.rows), default=math.inf)
        self.rows.append(row)
        if row["val_loss"] < lowest:
            self.best_epoch = int(row["epoch"])
            self.best = state_copy(module)


class TrainingTask(lightning.LightningModule):  # type: ignore[misc]  # lightning is not followed
    """Cross-entropy on augmented batches, validated after every epoch."""

    def __init__(
        self, clf: Classifier, options: Options, augment_seed: int, step_done: Callable[[float], None]
    ) -> None:
        super().__init__()
        self.module = clf.module
        self.clf = clf
        self.options = options
        self.progress = Progress()
        self.draws = torch.Generator().manual_seed(augment_seed)
        self.step_done = step_done
        self.started = 0.0
        self.train_losses: list[tuple[float, int]] = []
        self.validated: list[Batch] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW (`loshchilov2019decoupled`) over everything that may be trained."""
        trained = [p for p in self.module.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=self.options.lr, weight_decay=self.options.weight_decay)

    def on_train_epoch_start(self) -> None:
        """Start the clock."""
        self.started = time.perf_counter()
        self.train_losses.clear()

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """The loss of one batch of intensities `[B, C, H, W]` and classes `[B]`."""
        images, labels = batch[0].float(), batch[1]
        if self.options.augment:
            images = augment(images, self.draws)
        loss = F.cross_entropy(self._logits(images), labels)
        self.train_losses.append((self._finite(loss, "training"), len(labels)))
        self.step_done(self.global_step + 1)
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """Collect logits."""
        self.validated.append((self._logits(batch[0].float()).cpu(), batch[1].cpu()))

    def on_validation_epoch_end(self) -> None:
        """Add the epoch to the history; stop where validation has not improved for `patience` epochs."""
        logits, labels = (torch.cat(parts) for parts in zip(*self.validated, strict=True))
        self.validated.clear()
        val_loss = self._finite(F.cross_entropy(logits, labels), "validation")
        probabilities = self.clf.probabilities(logits.double())
        losses, counts = np.array(self.train_losses).T
        row = {
            "epoch": self.current_epoch + 1,
            "train_loss": float(np.average(losses, weights=counts)),
            "val_loss": val_loss,
            "val_auroc": performance(labels, probabilities, self.clf.classes or ()).auroc_macro,
            "seconds": time.perf_counter() - self.started,
        }
        self.progress.add(row, self.module)
        patience = self.options.patience
        if patience is not None and row["epoch"] - self.progress.best_epoch >= patience:
            self.trainer.should_stop = True

    def _logits(self, intensities: Tensor) -> Tensor:
        images = self.clf.preprocessing.normalize(intensities)
        return self.clf.logits_of(self.module(images)).float()

    def _finite(self, loss: Tensor, what: str) -> float:
        value = float(loss.detach())
        if not math.isfinite(value):
            advice = " and precision='fp32'" if self.options.precision != "fp32" else ""
            raise InputError(
                f"The {what} loss became {value} in epoch {self.current_epoch + 1}. The model has its best weights of "
                f"before. Try a learning rate below {self.options.lr:g}{advice}."
            )
        return value


def run(
    clf: Classifier, train: ImageTable, val: ImageTable, options: Options, step_done: Callable[[float], None]
) -> Progress:
    """Train `clf.module` in place; whatever happens it ends in evaluation mode with the best weights yet, where it was.

    Raises:
        InputError: a loss that is not finite.
    """
    order_seed, augment_seed, dropout_seed = np.random.SeedSequence(options.seed).generate_state(3).tolist()
    task = TrainingTask(clf, options, augment_seed, step_done)
    task.progress.best = state_copy(clf.module)
    place = clf.device
    try:
        clf.module.train()  # Lightning leaves a module in the mode in which it finds it
        with _quiet(), _interruptible(), _random_state(options.device, dropout_seed):
            _trainer(options).fit(task, _loader(train, options, order_seed), _loader(val, options, None))
    finally:
        clf.to(place)
        clf.module.load_state_dict(task.progress.best)
        clf.module.eval()
    return task.progress


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Batches an epoch; a last batch of a single image is left out, because batch norm cannot be trained on it."""
    return max(1, images // batch_size + (images % batch_size > 1))


def state_copy(module: torch.nn.Module) -> dict[str, Tensor]:
    """The module's weights and buffers, copied to the CPU."""
    return {key: value.detach().to("cpu", copy=True) for key, value in module.state_dict().items()}


def _trainer(options: Options) -> lightning.Trainer:
    gpu = options.device.type == "cuda"
    return lightning.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=[options.device.index or 0] if gpu else 1,
        max_epochs=options.epochs,
        precision="bf16-mixed" if options.precision == "bf16" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        inference_mode=False,
    )


def _loader(table: ImageTable, options: Options, order_seed: int | None) -> DataLoader[Batch]:
    train = order_seed is not None
    # the sampler has a generator of its own: the loader draws from its own whenever somebody asks for its iterator
    order = RandomSampler(table, generator=torch.Generator().manual_seed(order_seed or 0)) if train else None
    return DataLoader(
        table,  # type: ignore[arg-type]  # the default collation makes a Batch of its items
        batch_size=options.batch_size,
        sampler=order,
        drop_last=train and len(table) > options.batch_size and len(table) % options.batch_size == 1,
        generator=torch.Generator(),
    )


@contextmanager
def _random_state(device: torch.device, seed: int) -> Iterator[None]:
    """Seed dropout, and give torch's random state back afterwards."""
    gpus = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        if gpus:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
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
