"""Files that are either whole or absent, and the lock of a run folder."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from heatproof.errors import InputError, StorageError

_NOTHING_MORE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
TEMPORARY = ".unfinished-"  # prefix of what is being written; never read, removed at the next start


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Let `write` fill a file that appears under `path` only when it is complete and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(TEMPORARY + path.name)
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - the tests of interrupted writes stand on this name
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk every byte counts
        raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which appears under `path` only when the block ends without exception."""
    temporary = path.with_name(TEMPORARY + path.name)
    temporary.mkdir(parents=True)
    yield temporary
    for file in sorted(temporary.rglob("*")):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    _sync_folder(temporary)
    os.replace(temporary, path)  # noqa: PTH105
    _sync_folder(path.parent)


@contextlib.contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Say what to do where the disk under `folder` takes nothing more.

    Raises:
        StorageError: in place of an `OSError` that says so.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NOTHING_MORE:
            raise
        raise StorageError(
            f"{folder}: cannot be written ({os.strerror(error.errno)}). Everything finished before is kept: make room, "
            "then the same command goes on where it stopped."
        ) from error


def remove_unfinished(folder: Path) -> None:
    """Remove what an interrupted run left half written."""
    for path in sorted(folder.rglob(TEMPORARY + "*"), reverse=True):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process.

    The lock is the kernel's, so that of a dead process is free; the file names the process that holds it.

    Raises:
        InputError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with path.open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"{folder}: process {file.read().strip() or 'unknown'} is working on this run. "
                "Wait for it, end it, or choose another folder with --out."
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
