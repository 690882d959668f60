"""The package's front: every public name is there, and asking for it costs only what it needs."""

import heatproof as hp
from support.isolation import run_python


def test_every_public_name_can_be_had() -> None:
    for name in hp.__all__:
        assert getattr(hp, name) is not None, name
        assert name in dir(hp)


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = run_python(
        "import heatproof, sys; print(sorted({'torch', 'numpy', 'pandas', 'transformers', 'monai'} & set(sys.modules)))"
    )
    assert heavy.strip() == "[]"


def test_the_metrics_are_there_before_and_after_the_package_of_that_name_is_imported() -> None:
    printed = run_python(
        "import heatproof as hp\n"
        "first = hp.metrics()\n"
        "import heatproof.metrics\n"
        "print(len(first) > 0, hp.metrics() is first, 'iou' in heatproof.metrics())"
    )
    assert printed.split() == ["True", "True", "True"]


def test_low_floors_do_not_know_what_stands_on_them() -> None:
    """Importing a floor brings in no floor above it."""
    above = {
        "heatproof.tracing": ["relevance", "probing", "images", "models"],
        "heatproof.relevance": ["probing", "images", "models", "explainers"],
        "heatproof.probing": ["relevance", "images", "models", "explainers", "metrics"],
        "heatproof.images.read": ["relevance", "probing", "models"],
        "heatproof.explainers": ["metrics", "explanation", "scoring", "training"],
        "heatproof.metrics": ["explainers", "explanation", "scoring", "training"],
        "heatproof.scoring": ["study", "report", "cli"],
        "heatproof.study.runner": ["report", "cli"],
    }
    for floor, forbidden in above.items():
        loaded = run_python(
            f"import {floor}, sys; print(*[name for name in sys.modules if name.startswith('heatproof')])"
        )
        found = [name for name in loaded.split() if name.split(".")[1:2] and name.split(".")[1] in forbidden]
        assert not found, f"{floor} imports {found}"
