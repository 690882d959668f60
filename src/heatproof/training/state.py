"""A training that was interrupted: everything that its next epoch depends on, in one file that is whole or absent.

The order of the images, augmentation and dropout are functions of the seed and the epoch's number, and the learning
rate one of the step's, so the state needs none of them.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from heatproof.errors import InputError
from heatproof.models.checkpoint import remove_temporaries, replace_file

SCHEMA = 1
FILE = "training_state.safetensors"


@dataclass
class Progress:
    """What training has learnt so far: a row an epoch, the weights of the best one, and what the optimiser remembers."""

    rows: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    scaler: dict[str, float] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """How many are finished."""
        return len(self.rows)

    def add(self, row: dict[str, float], weights: dict[str, Tensor]) -> None:
        """Note an epoch and the weights after it; the best are those of the lowest validation loss."""
        lowest = min((r["val_loss"] for r in self.rows), default=math.inf)
        self.rows.append(row)
        self.weights = weights
        if row["val_loss"] < lowest:
            self.best_epoch, self.best = int(row["epoch"]), weights

    def over(self, epochs: int, patience: int | None) -> bool:
        """Whether all `epochs` are finished, or `patience` of them brought no lower validation loss."""
        waited = self.epochs - self.best_epoch
        return self.epochs >= epochs or (patience is not None and self.epochs > 0 and waited >= patience)


@dataclass(frozen=True)
class StateFile:
    """Where the state of a training lies, and the `identity` (JSON values) that it must have to be this training's."""

    folder: Path
    identity: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """The file itself."""
        return self.folder / FILE

    def write(self, progress: Progress) -> None:
        """Replace the file by the state after the last finished epoch."""
        from safetensors.torch import save_file

        tensors = {f"weights/{key}": value for key, value in progress.weights.items()}
        if progress.best is not progress.weights:
            tensors |= {f"best/{key}": value for key, value in progress.best.items()}
        for number, values in progress.optimizer.items():
            tensors |= {f"optimizer/{number}/{key}": value for key, value in values.items()}
        rows = [{key: None if math.isnan(value) else value for key, value in row.items()} for row in progress.rows]
        rest = {"schema": SCHEMA, "identity": dict(self.identity), "rows": rows, "best_epoch": progress.best_epoch}
        text = json.dumps({**rest, "scaler": progress.scaler}, allow_nan=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, lambda path: save_file(tensors, str(path), metadata={"state": text}))

    def read(self) -> Progress | None:
        """The state that an interrupted training left; None where there is none.

        Raises:
            InputError: the file is damaged, of another schema version, or the state of another training.
        """
        from safetensors import SafetensorError, safe_open

        remove_temporaries(self.folder)
        if not self.path.is_file():
            return None
        try:
            with safe_open(str(self.path), framework="pt") as file:
                rest = json.loads((file.metadata() or {})["state"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
        except (SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"{self.path} is damaged ({error}). Remove it, and training starts over.") from error
        if rest.get("schema") != SCHEMA:
            raise InputError(
                f"{self.path} has schema {rest.get('schema')!r}, this version reads {SCHEMA}. "
                "Go on with the version that wrote it, or remove the file to start over."
            )
        check_identity(self.path, rest["identity"], self.identity)
        return _progress(rest, tensors)

    def remove(self) -> None:
        """Training is finished, or starts over."""
        remove_temporaries(self.folder)
        self.path.unlink(missing_ok=True)


def check_identity(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise `InputError` with every difference between the training that `path` is of and the wanted one."""
    found = [
        f"{key}: there {stored.get(key)!r}, here {wanted.get(key)!r}"
        for key in {**stored, **wanted}
        if stored.get(key) != wanted.get(key)
    ]
    if found:
        raise InputError(
            f"{path} is of another training:\n  " + "\n  ".join(found) + "\nChoose another folder, go back to those "
            "options and data, or start over with resume=False."
        )


def _progress(rest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Progress:
    rows = [{key: math.nan if value is None else value for key, value in row.items()} for row in rest["rows"]]
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "best": {}, "optimizer": {}}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = value
    optimizer: dict[int, dict[str, Tensor]] = {}
    for key, value in parts["optimizer"].items():
        number, _, name = key.partition("/")
        optimizer.setdefault(int(number), {})[name] = value
    best = parts["best"] or parts["weights"]
    return Progress(rows, best, rest["best_epoch"], parts["weights"], optimizer, rest["scaler"])


def tensors_of(state: Mapping[Any, Any]) -> dict[Any, Tensor]:
    """The tensors of a state, copied to the CPU, each with memory of its own; what is unset (None) stays away."""
    tensors = {key: value for key, value in state.items() if value is not None}
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
