"""One run folder and its report, built once for all tests that only look at them."""

from pathlib import Path

import pytest

from heatproof.report import build_report
from heatproof.study.store import Run
from support.runs import RunFolder


@pytest.fixture(scope="session")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return RunFolder(tmp_path_factory.mktemp("study") / "run").write()


@pytest.fixture(scope="session")
def run(run_path: Path) -> Run:
    return Run(run_path)


@pytest.fixture(scope="session")
def report(run_path: Path) -> Path:
    """The folder of the report."""
    return build_report(run_path).parent
