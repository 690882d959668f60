"""Kill a study again and again: a program of its own, which imports once and forks the processes that it kills.

    python killing.py FOLDER SEED KILLS

Writes are slow there (every fsync and rename sleeps), so that many kills fall inside one. Prints JSON: what each kill
met, and whether a finished file was ever touched again.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from heatproof.study.files import TEMPORARY
from heatproof.study.loading import parse_recipe
from heatproof.study.recipe import Recipe
from heatproof.study.runner import run_study
from support.studies import recipe as tiny
from support.studies import write_data

SLOW = 0.005  # seconds a write sleeps before each of its steps
LASTING = ("inputs", "maps", "scores", "models", "predictions")


def slowed(function):
    def slow(*args):
        time.sleep(SLOW)
        return function(*args)

    return slow


def start(recipe: Recipe, out: Path) -> int:
    """A process that runs the study; its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        os.fsync, os.replace = slowed(os.fsync), slowed(os.replace)
        run_study(recipe, out, progress=False)
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def finish(child: int) -> int:
    """Wait for a process; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def lasting(run: Path) -> dict[str, tuple[int, int]]:
    """Every finished file with its inode and time."""
    found = [path for kind in LASTING for path in (run / kind).rglob("*") if path.is_file()]
    whole = [path for path in found if not any(part.startswith(TEMPORARY) for part in path.parts)]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in whole}


def kill_once(recipe: Recipe, out: Path, after: float, in_write: bool) -> dict[str, object] | None:
    """Start or resume the study and kill it after a time, or in the next write then; None where it was finished before."""
    child = start(recipe, out)
    time.sleep(after)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, f"the study ended with {os.waitstatus_to_exitcode(status)}"
            return None
        if not in_write or any(out.rglob(f"{TEMPORARY}*")):
            break
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    code = finish(child)
    if code == 0:  # it ended between the last look and the signal
        return None
    assert code == -signal.SIGKILL, f"the study ended with {code}"
    return {
        "begun": (out / "study.yaml").is_file(),
        "trained": (out / "models" / "vit").is_dir(),
        "in_write": any(out.rglob(f"{TEMPORARY}*")),
        "finished": len(lasting(out)),
    }


def untouched(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> bool:
    return all(after.get(path) == state for path, state in before.items())


def main(folder: Path, seed: int, kills: int) -> dict[str, object]:
    """Run once undisturbed, then with kills until there were enough; each killed folder is run to its end."""
    # what a study imports on the way, so that every process begins with it
    import lightning  # noqa: F401
    import monai.networks.nets  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    from transformers import ViTForImageClassification  # noqa: F401

    write_data(folder, (16, 4, 8))
    methods = ["attention", {"method": "lime", "samples": 12, "segmentation": "grid"}, "control_random"]
    metrics = ["sparseness", {"metric": "max_sensitivity", "samples": 1}, {"metric": "consistency", "grid": [2, 2]}]
    recipe = parse_recipe(tiny(folder, methods=methods, metrics=metrics))
    started = time.monotonic()
    assert finish(start(recipe, folder / "undisturbed")) == 0
    duration = time.monotonic() - started
    draw = random.Random(seed)
    met: list[dict[str, object]] = []
    kept, number = True, 0
    while len(met) < kills:
        out = folder / f"killed{number}"
        before: dict[str, tuple[int, int]] = {}
        while len(met) < kills:
            after = draw.uniform(0, 0.4) * duration if met else 0.02
            found = kill_once(recipe, out, after, in_write=len(met) % 4 == 3)
            kept &= untouched(before, lasting(out))
            if found is None:
                break
            before = lasting(out)
            met.append(found)
        assert finish(start(recipe, out)) == 0
        kept &= untouched(before, lasting(out))
        number += 1
    return {"duration": duration, "kills": met, "kept": kept, "folders": number}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))  # noqa: T201
