"""Write the reference pages from what methods and metrics say of themselves: `make reference`."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from heatproof.explainers import EXPLAINERS, Explainer
from heatproof.metrics import METRICS, Metric
from heatproof.metrics.registry import THE_IMAGE
from heatproof.registry import Entry, Registry
from heatproof.report.citations import bibliography, short_name
from heatproof.study.plan import explanations

HERE = Path(__file__).parent
SIDE = 224  # pixels
WRITTEN = (
    "<!-- Written by docs/reference/generate.py (make reference) from what the {} say of themselves: "
    "change it there. -->"
)
CATEGORIES = {
    "faithfulness": "Does the model's output change where the map says that it should?",
    "robustness": "Does the map stay where the image hardly changes?",
    "localization": "Does the map point at the region that an expert marked?",
    "randomization": "Does the map depend on what the model has learned, and on the class?",
    "complexity": "How much of the image does the map need?",
    "axiomatic": "Does the map keep what it must by definition?",
}
FAMILIES = {
    "attention": "Where do the tokens of a vision transformer look, and which of it counts for the target?",
    "cam": "Where are the features that the target wants?",
    "gradient": "How does the score change with the pixels?",
    "relevance": "How is the score shared out among the pixels, layer by layer?",
    "perturbation": "What does the model say when parts of the image are replaced?",
    "control": "What does a map score that has not looked at this decision? What a method has to beat.",
}
E = TypeVar("E", bound=Entry)
TITLES = {"cam": "CAM"}
MODELS = ("CNN", "ConvNeXt", "ViT", "Swin")
LINKS = {"doi": "https://doi.org/", "eprint": "https://arxiv.org/abs/", "url": ""}
NO_PEER = "–"
NEEDS = {"model": "the model", "explain": "the method (`explain=`)", "roi": "a region", "cohort": "a cohort"}
GRIDS = {
    "[B, T, H, W]": "pixels",
    "on the token grid": "tokens",
    "on the grid of the features": "features",
    "on the grid of the base method": "base method's",
    "on a grid of 16-pixel cells": "16 pixels",
}
METRICS_HEAD = f"""# The metrics

{WRITTEN.format("metrics")}

`heatproof.score(clf, images, maps, metric="deletion")` gives a number for each sample; in a recipe a metric is a line
under `metrics:`. How to add one: [write a metric](../how-to/write-a-metric.md).

**Notation.** `f` is the model's output for the target (`output="probability"` or `"logit"`), `x` the image, `a` or `Φ(x)`
the map, `a⁺` its positive part, `P` its number of pixels, `S` a set of pixels, `x∖S` the image with S replaced by a
baseline, `top-q` the share q of the pixels with the highest values, `ROI` the region, `#` a count, `△` what is in one of
two sets and not in the other. `[N]` is a tensor of a number for each of N samples.

**Undefined scores are NaN**, and a study counts them: for a constant map, one with a NaN, an empty region, a correlation
with a constant. Nothing of that is taken for a hit or a zero.

**Cost** is that of one map of {SIDE} × {SIDE} pixels under the default options: forward passes (*passes*), and *maps* made
anew, of which each costs what the method costs. L is the number of layers. Metrics that are asked together share what they
have in common.

**A cohort** is all samples of a call of `score`, each with one map. In a study it is the whole explained test set of a
model and method: together, where each image's own label or prediction is explained, and else one class after another.
Scores of one cohort depend on each other, so an interval over patients is only approximate for them.

**Quantus** is the reference implementation, version 0.6. *Follows* means: equal on images of one channel, given the same
draws, to 1e-5 unless a larger rounding is named; the tests in `tests/peers` show it, and each difference. What is called
`black` there is the image's minimum, `min` here. Beside what is said of each metric, its `normalise` divides by the
largest value of a whole batch, so that a score depends on the other samples, and of images with several channels it
replaces single channel values instead of pixels, under which IROF and ROAD fail.
"""
METHODS_HEAD = f"""# The methods

{WRITTEN.format("methods")}

`heatproof.explain(clf, images, method="gradcam")` gives a map of each image; in a recipe a method is a line under
`methods:`. How to add one: [write your own explainer](../how-to/write-an-explainer.md). What each was checked against, and
how closely it agrees: [agreement](agreement.md).

**Notation.** `x` is the image, `f` the score that is explained: the target's logit, or its difference to that of a contrast
class, or under `output="probability"` the probability; `∇f` its gradient by the pixels. `x′` is a baseline, `x∖S` the image
with the pixels S replaced, `(·)⁺` the positive part, `⊙` the product entry by entry, `1[·]` 1 where it holds and else 0. In
a network, `z_j = Σ_i x_i w_ji + b_j` is what a neuron j makes of its inputs, and `R_j` its relevance. `A_k` is channel k of
the features and `G_k = ∂f/∂A_k`. In a transformer, `A_b` is the attention of block b, a matrix of tokens × tokens for each
head, and `G_b = ∂f/∂A_b`; `I` is the identity; `[cls]` takes the row of the class token, or the mean of the rows of the
tokens that the head of a model without one reads.

**Maps come raw**, on a grid of the method's own: that of the *pixels*, of the *tokens* of a transformer, or of the
*features* of a layer. They are upsampled to the image unless `resolution="native"` asks for that grid. A *signed* map says
what speaks against the target, too; a *positive* one does not. A map of a *class*-agnostic method is the same for every
target: it cannot tell why this class and not another.

**Cost** is that of one image under the default options, in forward passes through the model, and in ways back, of which a
plain backward pass is one; many end early, where it is said. T is the number of targets, L of blocks, D of channels of the
features, N of image tokens, W of windows, K of masks. The numbers are those that a test counts.

**Models.** *CNN* stands for convolutions, batch norms and ReLUs (ResNet, DenseNet, VGG), *ConvNeXt* for CNNs with layer
norms and GELU, *ViT* for transformers with attention over the whole image in every block (DeiT, BEiT, DINO, MAE), *Swin* for
those with attention in windows; *any* is all four. A method refuses what it does not list with an error that says why; a
test tries one of each.

**Sums.** Where it is said what the pixels of a map sum to, a test shows it; `f(x)` and `1` hold for networks of linear
layers, ReLU and max pooling without biases or tokens of their own.
"""
AGREEMENT_HEAD = f"""# Agreement

{WRITTEN.format("methods")}

What each method of the [reference](methods.md) was checked against: another library, the authors' own maps, or their formula
written out once more, slowly and independently. *To* is the largest difference that the test lets pass, as a share of the
value or of the largest value of the map; *rounding* is what torch takes for equal in single precision, 1.3e-6 of a value
and 1e-5. Libraries are those of the environment that `make test-peers` builds.
"""


class Check(NamedTuple):
    """One thing that a method was checked against: how closely the test wants it, which file it is in, what differs."""

    oracle: str
    tolerance: str
    test: str
    remark: str


def metrics_page() -> str:
    """The whole page of the metrics."""
    return _page(METRICS_HEAD, METRICS, "category", CATEGORIES, _metrics_glance, _metric)


def methods_page() -> str:
    """The whole page of the methods."""
    return _page(METHODS_HEAD, EXPLAINERS, "family", FAMILIES, _methods_glance, _method)


def agreement_page() -> str:
    """The whole page of what the methods were checked against."""
    parts = [AGREEMENT_HEAD]
    for family in FAMILIES:
        parts += [f"## {_title(family)}", "\n".join(_agreement(_of(EXPLAINERS, "family", family)))]
    return _joined(parts)


def checks(method: Explainer) -> list[Check]:
    """What the docstring of `method` says under `Checked`, an entry for each line that is not indented."""
    return [_check(method.name, entry) for entry in re.split(r"\n(?=\S)", method.sections["Checked"])]


def _check(name: str, entry: str) -> Check:
    found = re.fullmatch(r"(.+?), (?:to )?(\S[^,:]*): (tests/\S+\.py)\.(?: (.+))?", " ".join(entry.split()))
    if found is None:
        raise ValueError(f"{name}: {entry!r} must read as `captum `Saliency`, to 1e-4: tests/peers/test_captum.py.`")
    return Check(*(text or "" for text in found.groups()))


def cost(method: Explainer) -> tuple[str, str]:
    """Forward passes and ways back of an image, as the docstring of `method` has them, in the symbols of the page's head.

    Numbers and names of options, joined by `+` and `·`; `no` is 0.
    """
    found = re.match(r"(.+?) forward pass(?:es)?, (.+?) ways? back\.", " ".join(method.sections["Cost"].split()))
    if found is None:
        raise ValueError(f"{method.name}: Cost must begin as `1 forward pass, T ways back.`")
    forward, back = ("0" if count == "no" else count for count in found.groups())
    return forward, back


def served(method: Explainer) -> list[str]:
    """The kinds of models that `method` serves, as its docstring lists them."""
    return method.sections["Models"].partition(".")[0].split(", ")


def grid(method: Explainer) -> str:
    """Which grid the maps of `method` come on."""
    found = [name for words, name in GRIDS.items() if words in method.sections["Returns"]]
    if not found:
        raise ValueError(f"{method.name}: Returns must say one of {list(GRIDS)}")
    return found[0]


def _page(
    head: str,
    registry: Registry[E],
    attribute: str,
    groups: Mapping[str, str],
    glance: Callable[[Iterable[E]], Iterator[str]],
    described: Callable[[E], Iterator[str]],
) -> str:
    """A head, tables at a glance and all entries, in the groups that an attribute makes of them."""
    parts = [head, "## At a glance"]
    for group, question in groups.items():
        parts += [f"**{_title(group)}.** {question}", "\n".join(glance(_of(registry, attribute, group)))]
    for group, question in groups.items():
        parts += [f"## {_title(group)}", question]
        parts += [part for entry in _of(registry, attribute, group) for part in described(entry)]
    return _joined(parts)


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _title(group: str) -> str:
    return f"The {TITLES.get(group, group)} family" if group in FAMILIES else group.capitalize()


def _of(registry: Registry[E], attribute: str, group: str) -> list[E]:
    found = (entry for entry in registry.values() if getattr(entry, attribute) == group)
    return sorted(found, key=lambda entry: entry.name)


def _named(entry: Entry, registry: Registry[E]) -> Iterator[str]:
    """Heading and summary."""
    yield f"### {entry.name}"
    also = [alias for alias, name in registry.aliases.items() if name == entry.name]
    yield entry.summary + "".join(f" Also called `{alias}`." for alias in also)


def _options(entry: Entry) -> Iterator[str]:
    if entry.options:
        rows = [f"| `{name}` | `{value}` | {_cell(entry.meanings[name])} |" for name, value in entry.options.items()]
        yield "\n".join(["| option | default | meaning |", "|---|---|---|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _source(key: str) -> str:
    return f"{_reference(key)}, `{key}`"


def _cited(text: str) -> str:
    """The text with its citation keys, `[adebayo2018sanity]`, as references."""
    return re.sub(r"\[([a-z]+\d{4}[a-z]+)\]", lambda key: f"({_reference(key[1])})", text)


def _reference(key: str) -> str:
    """Author and year, linked where it is known to what."""
    entry = bibliography()[key]
    found = {name: re.search(rf"^\s*{name}\s*=\s*\{{(.*)\}}", entry, re.MULTILINE) for name in LINKS}
    link = next((LINKS[name] + match[1] for name, match in found.items() if match), None)
    name = short_name(entry)
    return f"[{name}]({link})" if link else name


def _metrics_glance(metrics: Iterable[Metric]) -> Iterator[str]:
    yield from ("| metric | better | values | needs | cost | Quantus |", "|---|---|---|---|---|---|")
    for metric in metrics:
        better = "higher" if metric.higher_is_better else "lower"
        needs = ", ".join(_needs(metric)).replace(" (`explain=`)", "")
        yield _row(f"[`{metric.name}`](#{metric.name})", better, _values(metric), needs, _probes(metric), _peer(metric))


def _metric(metric: Metric) -> Iterator[str]:
    yield from _named(metric, METRICS)
    yield f"```text\n{metric.formula}\n```"
    yield metric.sections[""]
    better = "Higher" if metric.higher_is_better else "Lower"
    facts = [
        f"{better} is better; {_values(metric)}.",
        f"Needs {' and '.join(_needs(metric))}; {_probes(metric)}.",
        f"Returns: {' '.join(metric.sections['Returns'].split())}",
        f"Source: {_source(metric.paper)}.",
        metric.quantus if _peer(metric) == NO_PEER else f"Quantus: {metric.quantus}",
    ]
    yield "\n".join(f"* {fact}" for fact in facts)
    yield from _options(metric)


def _values(metric: Metric) -> str:
    low, high = ("" if bound is None else str(bound).replace("-", "−") for bound in metric.bounds)
    if high:
        return f"{low} to {high}"
    return f"{low} or more" if low else "any value"


def _needs(metric: Metric) -> list[str]:
    return [words for need, words in NEEDS.items() if need in metric.needs] or ["the map alone"]


def _probes(metric: Metric) -> str:
    """Forward passes and explanations, as the plan of a study counts them."""
    probed = {} if metric.passes is None else metric.passes(metric.options, SIDE**2)
    passes = sum({THE_IMAGE: 1, **probed}.values()) if probed else 0
    parts = []
    if "explain" in metric.needs:
        fixed, both = (explanations(metric.options, layers) for layers in (0, 1))
        maps = _linear(fixed, both - fixed, "L")
        parts.append(f"{maps} map{'s' * (maps != '1')}")
    if passes:
        parts.append(f"{passes:,} pass{'es' * (passes > 1)}")
    return ", ".join(parts) or "no pass"


def _peer(metric: Metric) -> str:
    """What `Metric.quantus` comes to."""
    follows, differs = metric.quantus.startswith("Follows"), "iffers" in metric.quantus
    return ("follows in part" if differs else "follows") if follows else "differs" if differs else NO_PEER


def _methods_glance(methods: Iterable[Explainer]) -> Iterator[str]:
    yield from ("| method | sign | class | grid | forward | back | models |", "|---|---|---|---|---|---|---|")
    for method in methods:
        sign = "signed" if method.signed else "positive"
        knows = "all alike" if method.class_agnostic else "its own"
        passes = (_counted(count, method.options) for count in cost(method))
        models = "any" if served(method) == list(MODELS) else ", ".join(served(method))
        yield _row(f"[`{method.name}`](#{method.name})", sign, knows, grid(method), *passes, models)


def _method(method: Explainer) -> Iterator[str]:
    yield from _named(method, EXPLAINERS)
    yield f"```text\n{method.sections['Formula']}\n```"
    yield _cited(method.sections[""])
    said = {heading: " ".join(text.split()) for heading, text in method.sections.items()}
    against = [f"{check.oracle} ({check.tolerance})" for check in checks(method)]
    facts = [
        _character(method),
        f"Cost: {said['Cost']}",
        f"Models: {said['Models']}",
        f"Returns: {said['Returns']}",
        f"Source: {_source(method.paper)}.",
        f"[Checked](agreement.md) against {'; '.join(against)}.",
    ]
    yield "\n".join(f"* {fact}" for fact in facts)
    yield from _options(method)


def _character(method: Explainer) -> str:
    """What the metadata say of its maps, in a line."""
    said = ["Signed" if method.signed else "Positive"]
    if method.class_agnostic:
        said.append("the same map for every target")
    if method.linear:
        said.append("the map of a contrast is the difference of two maps")
    if method.complete:
        said.append(f"the pixels sum to `{method.complete}`")
    return "; ".join(said) + "."


def _counted(count: str, options: Mapping[str, Any]) -> str:
    """What a count comes to under `options`, where that does not depend on the model."""
    try:
        fixed, both = (evaluated(count, {**options, "T": targets}) for targets in (0, 1))
    except NameError:
        return count
    return _linear(fixed, both - fixed, "T")


def evaluated(count: str, values: Mapping[str, Any]) -> int:
    """The number that a count such as `1 + steps · T` is, given what its symbols stand for."""
    return int(eval(count.replace("·", "*"), {"__builtins__": {}}, dict(values)))  # noqa: S307 our own docstrings


def _linear(fixed: int, each: int, symbol: str) -> str:
    """`fixed + each symbol`."""
    if not each:
        return f"{fixed:,}"
    several = symbol if each == 1 else f"{each:,} {symbol}"
    return f"{several} + {fixed:,}" if fixed else several


def _agreement(methods: Iterable[Explainer]) -> Iterator[str]:
    yield from ("| method | checked against | to | test | what differs |", "|---|---|---|---|---|")
    for method in methods:
        for check in checks(method):
            link = f"[{Path(check.test).stem}](../../{check.test})"
            name = f"[`{method.name}`](methods.md#{method.name})"
            yield _row(name, _cell(check.oracle), check.tolerance, link, _cell(check.remark))


PAGES = {"metrics.md": metrics_page, "methods.md": methods_page, "agreement.md": agreement_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
