"""The guide to an explainer of your own, followed: its function in a package of its own, and under the battery."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from heatproof.errors import InputError
from heatproof.registry import load_plugins
from heatproof.study.defaults import check_registries
from heatproof.study.recipe import Recipe
from support.studies import recipe

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "how-to" / "write-an-explainer.md"
PARTS_OF_THE_BATTERY = 14  # tests of each method in tests/explainers/test_conformance.py, at least
METHODS = [{"method": "gradient_norm", "power": 1.0}]


def check_recipe() -> None:
    """That a recipe may ask for the guide's method."""
    check_registries(Recipe.model_validate(recipe(Path("nowhere"), methods=METHODS)))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder as pip leaves it after the guide's package was installed: its module, and what it says of itself."""
    text = GUIDE.read_text(encoding="utf-8")
    module = re.findall(r"```python\n(.*?)```", text, re.S)[0].partition("\n\nnet = ")[0]
    (tmp_path / "my_explainers.py").write_text(f"{module}\n", encoding="utf-8")
    group, entry = re.findall(r'\[project.entry-points."(.*?)"\]\n(.*?)\n', text)[0]
    about = tmp_path / "my_explainers-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-explainers\nVersion: 0.1\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(f"[{group}]\n{entry.replace(chr(34), '')}\n", encoding="utf-8")
    return tmp_path


def run(package: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_command_line_and_recipes_know_it_once_its_package_is_installed(package: Path) -> None:
    code = """
import runpy, sys
sys.path.insert(0, "tests")
runpy.run_path("tests/docs/test_own_explainer.py")["check_recipe"]()
sys.argv = ["heatproof", "methods", "--json"]
from heatproof.cli import main
main()
"""
    done = run(package, "-c", code)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["gradient_norm"]
    assert found["options"] == {"power": 2.0}
    assert found["meanings"] == {"power": "of the norm, 1 or more."}


def test_without_the_package_a_recipe_is_refused() -> None:
    with pytest.raises(InputError, match=r"methods\[0\]: Unknown explainer 'gradient_norm'"):
        check_recipe()


def test_a_package_that_cannot_be_imported_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "my_explainers.py").write_text("import no_such_module\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(package))
    expected = (
        "package my-explainers adds to heatproof.explainers.*module my_explainers cannot be.*'no_such_module'.*Repair"
    )
    with pytest.raises(InputError, match=expected):
        load_plugins("heatproof.explainers")


def test_the_battery_takes_it_up_without_a_list(package: Path) -> None:
    """One function, and nothing else: every test that runs for each method runs for this one."""
    battery = str(ROOT / "tests" / "explainers" / "test_conformance.py")
    done = run(package, "-m", "pytest", battery, "-q", "-k", "gradient_norm", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout
    passed = int(re.findall(r"(\d+) passed", done.stdout)[-1])
    assert passed >= PARTS_OF_THE_BATTERY, done.stdout
