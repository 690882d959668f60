"""A classifier on disk: the weights as safetensors, everything else as JSON beside them.

    folder/model.safetensors    the weights
    folder/model.json           schema and Heatproof version, source of the network, classes, task, preprocessing, extra

No pickle is written or read.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import heatproof
from heatproof.errors import InputError
from heatproof.models.architectures import build_architecture
from heatproof.models.classifier import Classifier

SCHEMA = 1
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


def save_checkpoint(clf: Classifier, folder: str | Path, *, extra: Mapping[str, Any] | None = None) -> Path:
    """Save `clf` in `folder` (made where it does not exist); returns the folder.

    Both files are written under temporary names and renamed, the description last; it holds the weights' checksum, so a
    save that was interrupted is recognised and never read as whole.

    Args:
        clf: any classifier. One without `source` (made by `Classifier(module, ...)`) can be loaded again only with
            `load_checkpoint(folder, module=...)`.
        folder: where to.
        extra: a record to keep with it (how it was trained), of JSON values.

    Raises:
        InputError: `extra` or the source holds what JSON cannot, or the parameters are of several floating types.
    """
    from safetensors.torch import save_model

    folder = Path(folder)
    description = _description(clf, extra)
    folder.mkdir(parents=True, exist_ok=True)
    weights = replace_file(folder / WEIGHTS, lambda path: save_model(clf.module, str(path)))
    description["weights"] = {"file": WEIGHTS, "sha256": _checksum(weights)}
    text = json.dumps(description, indent=2) + "\n"
    replace_file(folder / DESCRIPTION, lambda path: path.write_text(text, encoding="utf-8"))
    return folder


def load_checkpoint(folder: str | Path, *, module: nn.Module | None = None) -> Classifier:
    """The classifier saved in `folder`, on the CPU, in evaluation mode; its logits equal the saved ones bit for bit.

    Args:
        folder: made by `save_checkpoint`.
        module: the network to load the weights into, in place; needed for one that Heatproof cannot build itself.

    Raises:
        InputError: not a checkpoint, an incomplete or damaged one, another schema version, a pickle, or weights that do
            not fit the network.
    """
    description = read_description(folder)
    path = Path(folder) / WEIGHTS
    if module is None:
        module = _build(description["source"], path)
    module.to(_dtype(description["dtype"], path))
    load_weights(module, folder)
    return _classifier(module.cpu().eval(), description, path)


def load_weights(module: nn.Module, folder: str | Path) -> None:
    """Load the weights saved in `folder` into `module`, where it is.

    Raises:
        InputError: they do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    path = Path(folder) / WEIGHTS
    try:
        load_model(module, str(path))
    except (RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{path} does not fit {type(module).__name__}: {' '.join(str(error).split())[:400]}"
        ) from error


def read_description(folder: str | Path) -> dict[str, Any]:
    """What `model.json` of a checkpoint says, `extra` included, after checking that the checkpoint is whole.

    Raises:
        InputError: as `load_checkpoint`.
    """
    folder = Path(folder)
    _refuse_pickles(folder)
    path = folder / DESCRIPTION
    if not path.is_file():
        raise InputError(
            f"{folder} is no Heatproof checkpoint, or its saving was interrupted: it has no {DESCRIPTION}."
        )
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}). Save the checkpoint again.") from error
    schema = description.get("schema") if isinstance(description, dict) else None
    if schema != SCHEMA:
        raise InputError(
            f"{path} has schema {schema!r}; Heatproof {heatproof.__version__} reads schema {SCHEMA}. "
            f"Load it with the version that wrote it, or save it again."
        )
    missing = {"heatproof", "source", "classes", "task", "dtype", "preprocessing", "weights", "extra"} - set(
        description
    )
    if missing:
        raise InputError(f"{path} is damaged: it lacks {', '.join(sorted(missing))}. Save the checkpoint again.")
    weights = description["weights"]
    _check_weights(folder / WEIGHTS, weights.get("sha256") if isinstance(weights, dict) else None)
    return dict(description)


def replace_file(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file, then rename it to `path`: at any moment the old or the new file is whole.

    Raises:
        OSError: the disk takes nothing more, also where safetensors has an error of its own for that.
    """
    from safetensors import SafetensorError

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def remove_temporaries(folder: Path) -> None:
    """Remove what `replace_file` left in `folder` where its process was killed."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name):
            path.unlink()


def _description(clf: Classifier, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in clf.module.parameters() if p.is_floating_point()})
    if len(dtypes) > 1:
        raise InputError(
            f"The parameters are of several floating types ({', '.join(dtypes)}): bring them to one first."
        )
    description = {
        "schema": SCHEMA,
        "heatproof": heatproof.__version__,
        "network": type(clf.module).__name__,
        "source": clf.source,
        "classes": None if clf.classes is None else list(clf.classes),
        "task": clf.task,
        "dtype": dtypes[0] if dtypes else "float32",
        "preprocessing": asdict(clf.preprocessing),
        "extra": dict(extra or {}),
    }
    try:
        return dict(json.loads(json.dumps(description, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"A checkpoint's source and extra must be JSON values ({error}); write NaN as None."
        ) from error


def _build(source: Mapping[str, Any] | None, path: Path) -> nn.Module:
    if source is None:
        raise InputError(
            f"{path.parent} holds a network that Heatproof cannot build itself (it was wrapped by hand). Build it and "
            "give it: load_checkpoint(folder, module=...)."
        )
    try:
        return build_architecture(source)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path.parent}: its network cannot be built from {DESCRIPTION} ({error!r}).") from error


def _classifier(module: nn.Module, description: Mapping[str, Any], path: Path) -> Classifier:
    known = {key: description[key] for key in ("classes", "task", "source")}
    try:
        return Classifier(module, **known, **description["preprocessing"])
    except TypeError as error:
        raise InputError(f"{path.parent}: {DESCRIPTION} is damaged in its preprocessing ({error}).") from error


def _dtype(name: str, path: Path) -> torch.dtype:
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"{path.parent}: {DESCRIPTION} names an unknown floating type {name!r}.")
    return dtype


def _check_weights(path: Path, checksum: str | None) -> None:
    if not path.is_file():
        raise InputError(f"{path.parent} is incomplete: it has no {path.name}. Save the checkpoint again.")
    if _checksum(path) != checksum:
        raise InputError(
            f"{path} is not the file that {DESCRIPTION} describes: damaged, or its saving was interrupted. "
            "Save the checkpoint again."
        )


def _refuse_pickles(folder: Path) -> None:
    """Raise for a pickle, whatever it is called: `folder` itself, the weights in it, or any file where it describes none."""
    found = [folder] if folder.is_file() else []
    if folder.is_dir():
        described = (folder / DESCRIPTION).exists()
        found = [folder / WEIGHTS] if described else sorted(file for file in folder.iterdir() if file.is_file())
    for file in found:
        if file.suffix in _PICKLES or _is_pickled(file):
            raise InputError(
                f"{file} is a pickle, which can run code when it is read. Convert it where you trust it:\n"
                f"  module.load_state_dict(torch.load({file.name!r}, weights_only=True))\n"
                "  save_checkpoint(Classifier(module, classes=[...], ...), 'folder')"
            )


def _is_pickled(path: Path) -> bool:
    """Whether a file begins as `torch.save` (a ZIP archive, formerly a bare pickle) or `pickle` of protocol 2 to 5 does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(4)
    return start == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
