"""Files that are whole or absent, and the lock."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from heatproof.errors import InputError
from heatproof.study.files import locked, remove_unfinished, whole_folder, write_whole


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file"
    write_whole(path, lambda file: file.write(b"old"))

    def broken(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, broken)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_the_content_is_on_the_disk_before_the_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda old, new: (events.append("replace"), replace(old, new)))
    write_whole(tmp_path / "file", lambda file: file.write(b"x"))
    assert events == ["fsync", "replace", "fsync"]  # content, name, folder


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def broken() -> None:
        with whole_folder(tmp_path / "model") as folder:
            (folder / "weights").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert not (tmp_path / "model").exists()
    remove_unfinished(tmp_path)
    with whole_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("whole")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model" / "weights").read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_one_process_a_run_and_the_lock_of_a_dead_one_is_free(tmp_path: Path) -> None:
    code = "import sys, time\nfrom heatproof.study.files import locked\nfrom pathlib import Path\n"
    code += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=f"process {other.pid} is working on this run"), locked(tmp_path):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
    with locked(tmp_path):
        pass
