"""What every method says of itself: the pages that are written from it, and whether it is so."""

import math
import re
import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from heatproof.errors import UnsupportedModelError
from heatproof.explainers import Explainer
from heatproof.explainers.registry import EXPLAINERS
from heatproof.registry import entry_fields
from heatproof.relevance import ForwardPass
from support import matrix
from support.explainer_battery import QUICK, blotches
from support.explainer_battery import explain as quickly
from support.nets import TinyCNN

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
SECTIONS = ("", "Formula", "Cost", "Models", "Returns", "Checked")
METHODS = hp.methods()
MODELS: dict[str, Callable[[], nn.Module]] = {
    "CNN": partial(TinyCNN, matrix.CLASSES),
    "ConvNeXt": matrix.MODELS["hf-convnext"].build,
    "ViT": matrix.MODELS["hf-vit-sdpa"].build,
    "Swin": matrix.MODELS["hf-swin-sdpa"].build,
}
BLOCKS, TOKENS = 2, 16  # of the ViT
KEPT_APART = {"vit_cx": {"threshold": 0.0}}  # so that there are as many masks as channels


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return runpy.run_path(str(REFERENCE / "generate.py"))


@pytest.fixture(scope="module")
def models() -> dict[str, hp.Classifier]:
    torch.manual_seed(0)
    known = {"image_size": 32, "mean": [0.5] * 3, "std": [0.25] * 3, "classes": list("abcde")}
    return {name: hp.Classifier(matrix.as_if_trained(build()), **known) for name, build in MODELS.items()}


@pytest.mark.parametrize("page", ["methods.md", "agreement.md"])
def test_a_page_is_what_the_methods_say(generator: dict[str, Any], page: str) -> None:
    stored = (REFERENCE / page).read_text(encoding="utf-8")
    assert stored == generator["PAGES"][page](), "the page is out of date: run make reference"


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_a_method_says_what_it_is(method: Explainer, generator: dict[str, Any]) -> None:
    missing = [section for section in SECTIONS if not method.sections.get(section)]
    assert not missing, f"the docstring needs sections {missing}"
    assert method.summary[-1] in ".:"
    assert list(method.meanings) == list(method.options), "every option needs its meaning under Args"
    assert all(method.meanings.values())
    assert method.family in generator["FAMILIES"]
    assert set(generator["served"](method)) <= set(generator["MODELS"])


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_what_a_method_was_checked_against_is_there(method: Explainer, generator: dict[str, Any]) -> None:
    """The file exists, speaks of the method or of the peer's name for it, and has the tolerance."""
    for check in generator["checks"](method):
        text = (ROOT / check.test).read_text(encoding="utf-8")
        names = [method.name, *re.findall(r"`([^`]+)`", check.oracle)]
        assert any(name.rpartition(".")[2] in text for name in names), f"{check.test} knows none of {names}"
        if number := re.match(r"[\d.]+(e-\d+)?", check.tolerance):
            assert re.search(rf"(?<![\d.]){re.escape(number[0])}(?![\d.])", text), check
        assert check.remark == "" or check.remark[-1] == "."


def test_the_page_names_every_method_once_in_the_table_and_once_in_a_heading(generator: dict[str, Any]) -> None:
    page, agreement = generator["methods_page"](), generator["agreement_page"]()
    for name, method in METHODS.items():
        assert page.count(f"\n| [`{name}`](#{name}) |") == page.count(f"\n### {name}\n") == 1
        assert agreement.count(f"\n| [`{name}`](methods.md#{name}) |") == len(generator["checks"](method)) > 0
        section = page.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
        assert method.sections["Formula"] in section
        assert f"`{method.paper}`" in section
        aliases = [alias for alias, of in EXPLAINERS.aliases.items() if of == name]
        assert re.findall(r"Also called `(\w+)`", section) == aliases
        for option, default in method.options.items():
            assert f"\n| `{option}` | `{default}` | " in section


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("saliency", ["positive", "its own", "pixels", "1", "T", "any"]),
        ("integrated_gradients", ["signed", "its own", "pixels", "50", "50 T", "any"]),
        ("eigencam", ["positive", "all alike", "features", "1", "0", "any"]),
        ("transition_attention", ["positive", "its own", "tokens", "21", "20 T + 1", "ViT"]),
        ("legrad", ["positive", "its own", "tokens", "2", "L · T", "ViT"]),
        ("chefer", ["signed", "its own", "pixels", "1", "T", "ViT, Swin"]),
        ("rise", ["positive", "its own", "pixels", "4,000", "0", "any"]),
        ("control_random", ["positive", "all alike", "16 pixels", "0", "0", "any"]),
        ("vargrad", ["positive", "its own", "base method's", "25", "25 T", "any"]),
    ],
)
def test_the_table_by_hand(generator: dict[str, Any], name: str, cells: list[str]) -> None:
    assert f"| [`{name}`](#{name}) | {' | '.join(cells)} |\n" in generator["methods_page"]()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("saliency", "* Positive."),
        ("eigencam", "* Positive; the same map for every target."),
        ("gradient", "* Signed; the map of a contrast is the difference of two maps."),
        ("lrp_zplus", "* Signed; the pixels sum to `1`."),
        (
            "integrated_gradients",
            "* Signed; the map of a contrast is the difference of two maps; the pixels sum to `f(x) − f(baseline)`.",
        ),
        ("transformer_lrp", "* Cost: 1 forward pass, 2 · T ways back. All of them end at the first attention."),
        ("chefer", "* Models: ViT, Swin."),
        ("xgradcam", "| `layer` | `None` | name of the module whose output is used, as in `module.named_modules()`: "),
        ("rise", "* Source: [Petsiuk et al. 2018](https://arxiv.org/abs/1806.07421), `petsiuk2018rise`."),
        ("lrp_z", "* Source: [Bach et al. 2015](https://doi.org/10.1371/journal.pone.0130140), `bach2015pixelwise`."),
        (
            "transition_attention",
            "* Source: [Yuan et al. 2021](https://openreview.net/forum?id=TT-cf6QSDaQ), `yuan2021",
        ),
        ("guided_backprop", "([Adebayo et al. 2018](https://arxiv.org/abs/1810.03292))"),
        ("rise", "* [Checked](agreement.md) against the formula mask by mask (1e-4)."),
    ],
)
def test_what_is_said_of_a_method_by_hand(generator: dict[str, Any], name: str, line: str) -> None:
    assert line in generator["methods_page"]().partition(f"\n### {name}\n")[2].partition("\n### ")[0]


def test_agreement_by_hand(generator: dict[str, Any]) -> None:
    link = "[test_captum](../../tests/peers/test_captum.py)"
    assert (
        f"| [`saliency`](methods.md#saliency) | captum `Saliency` | 1e-4 | {link} |  |\n"
        in generator["agreement_page"]()
    )


@pytest.mark.parametrize("page", ["methods.md", "agreement.md"])
def test_tables_have_as_many_cells_as_columns(generator: dict[str, Any], page: str) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", generator["PAGES"][page](), re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(columns) == 1, table


def explain(model: hp.Classifier, method: str, targets: list[list[int]]) -> Tensor:
    """Of one image, nothing of which goes through the model together."""
    options = {"method": method, "resolution": "native", "batch_size": 1, **KEPT_APART.get(method, {})}
    return quickly(model, blotches(1), targets, **options)


@pytest.mark.filterwarnings("ignore::heatproof.errors.EmptyMapWarning")
@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_a_method_serves_the_models_that_it_names_on_the_grid_that_it_names(
    method: Explainer, generator: dict[str, Any], models: dict[str, hp.Classifier]
) -> None:
    served = []
    for name, model in models.items():
        try:
            maps = explain(model, method.name, [[1]])
        except UnsupportedModelError:
            continue
        served.append(name)
        assert maps.isfinite().all()
        if generator["grid"](method) != "base method's":
            assert (maps.shape == (1, 1, 32, 32)) == (generator["grid"](method) == "pixels")
    assert served == generator["served"](method)


@pytest.mark.filterwarnings("ignore::heatproof.errors.EmptyMapWarning")
@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_a_cost_is_what_is_counted(
    method: Explainer,
    targets: int,
    generator: dict[str, Any],
    models: dict[str, hp.Classifier],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Images that go through the model, and images whose way back is taken, of a call for one image."""
    name = "ViT" if "ViT" in generator["served"](method) else "CNN"
    passed, returned = [], []
    way_back = ForwardPass._way_back

    def counted(self: ForwardPass, *given: Any) -> Any:
        returned.append(len(self.images))
        return way_back(self, *given)

    monkeypatch.setattr(ForwardPass, "_way_back", counted)
    handle = models[name].module.register_forward_pre_hook(lambda _, args: passed.append(len(args[0])))
    try:
        explain(models[name], method.name, [list(range(targets))])
    finally:
        handle.remove()
    width = 24 if name == "ViT" else 8
    options = {**method.options, **QUICK.get(method.name, {})}
    symbols = {"T": targets, "L": BLOCKS, "N": TOKENS, "W": windows(**options), "D": width, "K": width}
    forward, back = (generator["evaluated"](count, {**options, **symbols}) for count in generator["cost"](method))
    assert (sum(passed), sum(returned)) == (forward, back)


def windows(window: int = 1, stride: int | None = None, **_: Any) -> int:
    """How many windows it takes to cover 32 × 32 pixels."""
    return math.ceil((32 - window) / (stride or window // 2 or 1) + 1) ** 2


def described(text: str) -> Explainer:
    def method(model: Any, images: Tensor, targets: Any, *, steps: int = 2) -> Tensor: ...

    method.__doc__ = text
    metadata = {"family": "gradient", "signed": True, "upsampling": "bilinear"}
    known = {"class_agnostic": False, "linear": False, "complete": None}
    return Explainer(**entry_fields("one", method, "x", ()), **metadata, **known)


def test_what_is_read_from_a_docstring(generator: dict[str, Any]) -> None:
    method = described("""It.

    Cost:
        1 + steps forward passes, (1 + steps) · T ways back. Some
        more.

    Models:
        CNN, ViT. Others not.

    Returns:
        Maps `[B, T, h, w]` on the token grid.

    Checked:
        captum `It`, with an option, to 1e-4 of all: tests/peers/test_it.py. Where it can,
            as it were.
        numbers, exactly: tests/test_it.py.
    """)
    assert generator["cost"](method) == ("1 + steps", "(1 + steps) · T")
    assert generator["_counted"]("(1 + steps) · T", {"steps": 4}) == "5 T"
    assert generator["_counted"]("1 + D", {}) == "1 + D"
    assert generator["served"](method) == ["CNN", "ViT"]
    assert generator["grid"](method) == "tokens"
    assert generator["checks"](method) == [
        ("captum `It`, with an option", "1e-4 of all", "tests/peers/test_it.py", "Where it can, as it were."),
        ("numbers", "exactly", "tests/test_it.py", ""),
    ]


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        ("cost", "It.\n\nCost:\n    Two passes.\n", "one: Cost must begin as"),
        ("checks", "It.\n\nChecked:\n    captum, closely.\n", "one: 'captum, closely.' must read as"),
        ("grid", "It.\n\nReturns:\n    Maps.\n", "one: Returns must say one of"),
    ],
)
def test_what_cannot_be_read_is_an_error(generator: dict[str, Any], read: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generator[read](described(text))
