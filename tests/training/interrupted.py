"""Kill a training again and again: a program of its own, which imports once and forks the processes that it kills.

    python interrupted.py FOLDER

Prints JSON: what each kill met.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from heatproof.models import Classifier
from heatproof.training import loop
from heatproof.training.fit import fit
from heatproof.training.state import FILE, StateFile
from support.bright_side import write_bright_side

EPOCHS, STEPS = 6, 3  # 16 images in batches of 5; the last one alone is left out
OPTIONS = {
    "epochs": EPOCHS, "batch_size": 5, "lr": 3e-3, "schedule": "cosine", "warmup": 1.0, "patience": None,
    "weight_decay": 0.05, "grad_clip": 1.0, "augment": {"noise": 0.02, "flip": 0.5}, "device": "cpu",
}  # fmt: skip


class Net(nn.Module):
    """Everything that has a state of its own: batch norm, dropout and two layers that share a weight."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.dropout = nn.Conv2d(1, 6, 3, 2), nn.BatchNorm2d(6), nn.Dropout(0.3)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6 * 49, 2)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().flatten(2).transpose(1, 2)
        return self.head(self.dropout(self.second(self.first(x).relu())).flatten(1))


def classifier():
    torch.manual_seed(3)
    return Classifier(Net().eval(), ["left", "right"], image_size=16, channels=1, mean=[0.5], std=[0.5])


def start(dataset, out, stop=None):
    """A process that trains and stands still at a moment, so that it is killed there and not by luck; its number.

    `("step", n)`: in its n-th batch; `("write", 1)`: before the first state that it writes is on the disk.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        if stop is not None:
            place, name = (loop, "augment") if stop[0] == "step" else (os, "fsync")
            setattr(place, name, standing_still(getattr(place, name), stop[1], out))
        fit(classifier(), dataset, **OPTIONS, folder=out, resume=True)
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def standing_still(function, number, out):
    """`function`, which stands still in its `number`-th call, and says so by a file beside the folder."""
    calls = iter(range(1, 1000))

    def patched(*args):
        if next(calls) == number:
            reached(out).touch()
            time.sleep(60)
        return function(*args)

    return patched


def reached(out):
    return out.with_name("reached")


def finish(child):
    """Wait for a process; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_once(dataset, out, stop, sign):
    """Start or resume the training, and kill it where it stands still."""
    child = start(dataset, out, stop)
    while not reached(out).exists():
        done, status = os.waitpid(child, os.WNOHANG)
        assert not done, f"training ended with {os.waitstatus_to_exitcode(status)} before it was killed"
        time.sleep(0.005)
    reached(out).unlink()
    os.kill(child, sign)
    code = finish(child)
    in_write = any(out.glob(f".{FILE}.*.tmp"))
    return {"code": code, "in_write": in_write, "epochs": epochs_of(StateFile(out, {}))}


def epochs_of(state):
    """The seconds of the finished epochs, which tell an epoch that was kept from one that was trained again."""
    from safetensors import safe_open

    if not state.path.is_file():
        return []
    with safe_open(str(state.path), framework="pt") as file:
        return [row["seconds"] for row in json.loads(file.metadata()["state"])["rows"]]


def main(folder):
    dataset = write_bright_side(folder / "data", counts=(16, 8, 2))
    assert finish(start(dataset, folder / "undisturbed")) == 0
    plan = [
        (("step", 2), signal.SIGTERM), (("step", STEPS + 2), signal.SIGKILL), (("write", 1), signal.SIGKILL),
        (("step", STEPS + 1), signal.SIGTERM), (("write", 1), signal.SIGTERM), (("step", STEPS + STEPS), signal.SIGTERM),
    ]  # fmt: skip
    met = [kill_once(dataset, folder / "killed", stop, sign) for stop, sign in plan]
    assert finish(start(dataset, folder / "killed")) == 0
    return met


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))  # noqa: T201
