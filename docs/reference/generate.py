"""Write `docs/reference/metrics.md` from what the metrics say of themselves: `make reference`."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from heatproof.metrics import METRICS, Metric
from heatproof.metrics.registry import THE_IMAGE
from heatproof.report.citations import bibliography, short_name
from heatproof.study.plan import explanations

PAGE = Path(__file__).with_name("metrics.md")
SIDE = 224  # pixels
CATEGORIES = {
    "faithfulness": "Does the model's output change where the map says that it should?",
    "robustness": "Does the map stay where the image hardly changes?",
    "localization": "Does the map point at the region that an expert marked?",
    "randomization": "Does the map depend on what the model has learned, and on the class?",
    "complexity": "How much of the image does the map need?",
    "axiomatic": "Does the map keep what it must by definition?",
}
NO_PEER = "–"
NEEDS = {"model": "the model", "explain": "the method (`explain=`)", "roi": "a region", "cohort": "a cohort"}
HEAD = f"""# The metrics

<!-- Written by docs/reference/generate.py (make reference) from what the metrics say of themselves: change it there. -->

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


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## At a glance"]
    for category, question in CATEGORIES.items():
        parts += [f"**{category.capitalize()}.** {question}", "\n".join(_glance(_of(category)))]
    for category, question in CATEGORIES.items():
        parts += [f"## {category.capitalize()}", question]
        parts += [part for metric in _of(category) for part in _described(metric)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _of(category: str) -> list[Metric]:
    return sorted(
        (metric for metric in METRICS.values() if metric.category == category), key=lambda metric: metric.name
    )


def _glance(metrics: Iterable[Metric]) -> Iterator[str]:
    yield from ("| metric | better | values | needs | cost | Quantus |", "|---|---|---|---|---|---|")
    for metric in metrics:
        better = "higher" if metric.higher_is_better else "lower"
        needs = ", ".join(_needs(metric)).replace(" (`explain=`)", "")
        cells = (f"[`{metric.name}`](#{metric.name})", better, _values(metric), needs, _cost(metric), _peer(metric))
        yield f"| {' | '.join(cells)} |"


def _described(metric: Metric) -> Iterator[str]:
    yield f"### {metric.name}"
    also = [alias for alias, name in METRICS.aliases.items() if name == metric.name]
    yield metric.summary + "".join(f" Also called `{alias}`." for alias in also)
    yield f"```text\n{metric.formula}\n```"
    yield metric.sections[""]
    better = "Higher" if metric.higher_is_better else "Lower"
    facts = [
        f"{better} is better; {_values(metric)}.",
        f"Needs {' and '.join(_needs(metric))}; {_cost(metric)}.",
        f"Returns: {' '.join(metric.sections['Returns'].split())}",
        f"Source: {_source(metric.paper)}.",
        metric.quantus if _peer(metric) == NO_PEER else f"Quantus: {metric.quantus}",
    ]
    yield "\n".join(f"* {fact}" for fact in facts)
    if metric.options:
        rows = [f"| `{name}` | `{value}` | {_cell(metric.meanings[name])} |" for name, value in metric.options.items()]
        yield "\n".join(["| option | default | meaning |", "|---|---|---|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _values(metric: Metric) -> str:
    low, high = ("" if bound is None else str(bound).replace("-", "−") for bound in metric.bounds)
    if high:
        return f"{low} to {high}"
    return f"{low} or more" if low else "any value"


def _needs(metric: Metric) -> list[str]:
    return [words for need, words in NEEDS.items() if need in metric.needs] or ["the map alone"]


def _cost(metric: Metric) -> str:
    """Forward passes and explanations, as the plan of a study counts them."""
    probed = {} if metric.passes is None else metric.passes(metric.options, SIDE**2)
    passes = sum({THE_IMAGE: 1, **probed}.values()) if probed else 0
    parts = []
    if "explain" in metric.needs:
        fixed, both = (explanations(metric.options, layers) for layers in (0, 1))
        parts.append(_times(fixed, both - fixed))
    if passes:
        parts.append(f"{passes:,} pass{'es' * (passes > 1)}")
    return ", ".join(parts) or "no pass"


def _times(fixed: int, a_layer: int) -> str:
    """`fixed + a_layer L` maps."""
    if not a_layer:
        return f"{fixed} map{'s' * (fixed > 1)}"
    layers = "L" if a_layer == 1 else f"{a_layer} L"
    return f"{layers} + {fixed} maps" if fixed else f"{layers} maps"


def _peer(metric: Metric) -> str:
    """What `Metric.quantus` comes to."""
    follows, differs = metric.quantus.startswith("Follows"), "iffers" in metric.quantus
    return ("follows in part" if differs else "follows") if follows else "differs" if differs else NO_PEER


def _source(key: str) -> str:
    entry = bibliography()[key]
    found = {name: re.search(rf"^\s*{name}\s*=\s*\{{(.*)\}}", entry, re.MULTILINE) for name in ("doi", "eprint")}
    places = {"doi": "https://doi.org/", "eprint": "https://arxiv.org/abs/"}
    link = next((places[name] + match[1] for name, match in found.items() if match), None)
    name = short_name(entry)
    return f"{f'[{name}]({link})' if link else name}, `{key}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
