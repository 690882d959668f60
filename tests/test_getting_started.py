"""The first page that a new user follows, run as it is written (all but the installation)."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "getting-started.md"


def test_getting_started_works_as_written(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8").partition("## Your images")[2]
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, re.S)
    assert {kind for kind, _ in blocks} == {"console", "yaml", "python"}
    commands = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for kind, body in blocks:
        if kind == "yaml":
            (tmp_path / "first.yaml").write_text(body, encoding="utf-8")
        elif kind == "console":
            for line in body.splitlines():
                done = run(["bash", "-c", line.removeprefix("$ ")], tmp_path, environment)
                assert done.returncode == 0, f"{line}\n{done.stderr}"
        else:
            done = run([sys.executable, "-c", body], tmp_path, environment)
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines() == re.findall(r"^# (torch.*)$", body, re.M)
    assert (tmp_path / "runs" / "first" / "report" / "index.html").is_file()
    assert len(list((tmp_path / "maps").glob("*.png"))) == 60


def run(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
