"""How the study was done, in a paragraph for a paper, and the BibTeX entries of everything that it used."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

import pandas as pd

from heatproof.report.cases import performance_of
from heatproof.report.tables import LEVEL, is_control
from heatproof.report.text import counted, listed
from heatproof.report.views import Entry, method_entries, metric_entries
from heatproof.study.store import Run

# By what a model's source names; a network without an entry here is cited by nobody but the reader.
_NETWORKS = {"hf:vit": "dosovitskiy2021image", "monai:densenet121": "huang2017densely"}
_OPTIMIZERS = {"adamw": "loshchilov2019decoupled"}
_PERFORMANCE = {"auroc": "hanley1982meaning", "auprc": "davis2006relationship", "ece": "guo2017calibration"}
_TESTS = ("holm1979simple", "phipson2010permutation")
_INTERVALS = {"bca": "efron1987better", "wilson": "wilson1927probable"}
_ENTRY = re.compile(r"^@\w+\{([^,\s]+),.*?^\}", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", re.MULTILINE)
_ACCENTS = {"'": "\u0301", "`": "\u0300", '"': "\u0308", "^": "\u0302", "~": "\u0303", "c": "\u0327", "v": "\u030c"}
_ACCENT = re.compile(r"""\{?\\(['`"^~cv])\s*\{?(\w)\}?\}?""")


def bibliography() -> dict[str, str]:
    """Citation key -> its BibTeX entry, of every source that the package cites."""
    text = resources.files("heatproof.report").joinpath("assets", "references.bib").read_text(encoding="utf-8")
    return {match[1]: match[0] for match in _ENTRY.finditer(text)}


def short_name(entry: str) -> str:
    r"""Author and year of a BibTeX entry, as a text cites it.

    >>> short_name('@book{k,\n  author = {M{\\"u}ller, A. and Roe, B. and Poe, C.},\n  year = {2020},\n}')
    'Müller et al. 2020'
    """
    fields = dict(_FIELD.findall(entry))
    families = [_plain(author.split(",")[0].strip()) for author in fields["author"].split(" and ")]
    names = (
        families[0] if len(families) == 1 else " and ".join(families) if len(families) == 2 else f"{families[0]} et al."
    )
    return f"{names} {fields['year']}"


def _plain(text: str) -> str:
    """LaTeX's accents as letters, without braces."""
    composed = _ACCENT.sub(lambda match: unicodedata.normalize("NFC", match[2] + _ACCENTS[match[1]]), text)
    return composed.replace("{", "").replace("}", "")


def used_keys(run: Run, scores: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """The citation keys of the models, training, methods, metrics and statistics of the run, each once."""
    models = [_NETWORKS[spec.source] for spec in run.recipe.models if spec.source in _NETWORKS]
    training = [_OPTIMIZERS[name] for name in _optimizers(run) if name in _OPTIMIZERS]
    performance = {key for model in run.models if (found := performance_of(run, model)) for key in _measured(found)}
    parts = [entry.paper for entry in (*method_entries(run), *metric_entries(run))]
    intervals = [key for name, key in _INTERVALS.items() if (scores["interval"] == name).any()]
    tests = _TESTS if len(pairs) else ()
    return [*dict.fromkeys([*models, *training, *sorted(performance), *parts, *intervals, *tests])]


def _measured(found: Mapping[str, Any]) -> list[str]:
    return [key for measure, key in _PERFORMANCE.items() if measure in found]


def _optimizers(run: Run) -> list[str]:
    trained = [spec.training.model_dump() for spec in run.recipe.models if spec.training is not None]
    return [*dict.fromkeys(str(options.get("optimizer", "adamw")) for options in trained)]


def bibtex(keys: Iterable[str]) -> str:
    """The entries of `keys` as the text of a `.bib` file, sorted; a key that the package does not know is a comment."""
    entries = bibliography()
    return "\n\n".join(entries.get(key, f"% {key}: no entry here, add your own") for key in sorted(keys)) + "\n"


def methods_paragraph(run: Run, scores: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """What was done, as the methods section of a paper says it, every source by author and year."""
    environment, entries = run.environment, bibliography()
    cited = {key: short_name(entries[key]) if key in entries else key for key in used_keys(run, scores, pairs)}

    def parts(found: Iterable[Entry]) -> str:
        return listed([f"{e.label} ({'; '.join(filter(None, (e.options, cited[e.paper])))})" for e in found])

    controls = [entry for entry in method_entries(run) if is_control(run, entry.label)]
    explainers = [entry for entry in method_entries(run) if entry not in controls]
    metrics = metric_entries(run)
    beside = f", beside the controls {parts(controls)}, which know nothing of the model" if controls else ""
    images = sum(len(run.cases(model)) for model in run.models[:1])
    sentences = [
        f"The decisions of {_models(run, cited)} on {counted(images, 'test image')} were explained by "
        f"{parts(explainers or controls)}{beside if explainers else ''}.",
        f"The maps were scored by {parts(metrics)}.",
        f"Means are over images; their {100 * LEVEL:g} % intervals are bootstrapped over patients"
        f"{_intervals(scores, cited)}.",
    ]
    if len(pairs):
        tests = ", ".join(cited[key] for key in _TESTS)
        sentences.append(
            "Pairs of methods were compared on the same images by two-sided sign flips of patients, with Holm's correction "
            f"over all pairs of a model and metric ({tests})."
        )
    sentences.append(
        f"Heatproof {environment['heatproof']}, PyTorch {environment['torch']['version']}, seed {run.recipe.seed}."
    )
    return " ".join(sentences)


def _models(run: Run, cited: Mapping[str, str]) -> str:
    names = []
    for spec in run.recipe.models:
        sources = [spec.source, *([cited[_NETWORKS[spec.source]]] if spec.source in _NETWORKS else [])]
        if spec.training is not None:
            sources.append(f"trained for up to {counted(spec.training.epochs, 'epoch')}")
        names.append(f"{spec.name} ({'; '.join(sources)})")
    return listed(names)


def _intervals(scores: pd.DataFrame, cited: Mapping[str, str]) -> str:
    names = {"bca": "bias-corrected and accelerated", "wilson": "Wilson's where all scores are 0 or all are 1"}
    used = [f"{names[name]}, {cited[key]}" for name, key in _INTERVALS.items() if (scores["interval"] == name).any()]
    return f" ({'; '.join(used)})" if used else ""
