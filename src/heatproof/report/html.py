"""From a run folder to `report/index.html`: a page with everything it needs beside it, which opens from disk."""

import datetime
import os
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from heatproof.images import display
from heatproof.report import citations, figures, gallery, summary, tables, text, views
from heatproof.report.cases import is_multilabel, performance_of, predictions_of
from heatproof.report.figures import Picture
from heatproof.report.layout import write_sheets
from heatproof.study.store import Run

_UNFINISHED = ".unfinished-report"


@dataclass(frozen=True)
class Saved:
    """A figure beside the page: `<path>.light.svg` and `<path>.dark.svg`, and its size in CSS pixels."""

    path: str
    width: int
    height: int


def build_report(run_path: str | Path) -> Path:
    """Write the report of a run, finished or not, and return the path of its page.

    The folder `<run>/report` holds `index.html`, `references.bib`, `assets/` (style, scripts, figures, pictures of the
    cases) and `tables/` (CSV and LaTeX). It appears whole or not at all; an earlier report is replaced.

    Raises:
        InputError: `run_path` is not the folder of a study, or nothing of it is there yet.
    """
    run = Run(run_path)
    final, folder = run.path / "report", run.path / _UNFINISHED
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        (folder / "index.html").write_text(_page(run, folder), encoding="utf-8")
        if final.exists():
            shutil.rmtree(final)
        os.replace(folder, final)  # noqa: PTH105
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # gone already, unless something failed
    return final / "index.html"


def _page(run: Run, folder: Path) -> str:
    _copy_assets(folder)
    scores, comparisons, pairs = tables.score_table(run), tables.comparisons(run), tables.pair_table(run)
    performance, reductions = tables.performance_table(run), run.reductions()
    findings = summary.findings(run, scores, comparisons, pairs)
    sheets = {
        "data": views.data_sheet(run, tables.data_table(run)),
        "performance": views.overview_sheet(run, performance),
        "classes": views.class_sheet(run, performance),
        "confusion": views.confusion_sheet(run),
        "scores": views.score_sheet(run, scores, findings),
        "lift": views.lift_sheet(run, scores, comparisons),
        "controls": views.control_sheet(comparisons),
        "pairs": views.pair_sheet(run, pairs, scores),
        "ranks": views.rank_sheet(run, tables.rank_table(run, scores)),
        "gaps": views.gap_sheet(tables.gap_table(scores)),
        "failures": views.failure_sheet(tables.failure_table(run)),
        "options": views.reduction_sheet(reductions),
    }
    write_sheets(folder / "tables", filter(None, sheets.values()))
    references = citations.bibtex(citations.used_keys(run, scores, pairs))
    (folder / "references.bib").write_text(references, encoding="utf-8")
    return render(
        "report.html.j2",
        run=run,
        sheets=sheets,
        paragraph=summary.run_paragraph(run),
        provenance=summary.provenance(run, datetime.datetime.now(tz=datetime.UTC).date().isoformat()),
        model_sentences=summary.model_sentences(run),
        findings=findings,
        finding_parts=summary.PARTS,
        comparison_note=summary.comparison_note(run, comparisons),
        caveats=summary.caveats(run, scores, reductions),
        performance_notes=list(views.performance_notes(run, performance)),
        metrics=views.metric_entries(run),
        methods=views.method_entries(run),
        curves=_curves(run, folder),
        reliability=_reliability(run, folder),
        boxes=_boxes(run, folder),
        class_colours=[(name, colour, figures.DARK.get(colour, colour)) for name, colour in _class_colours(run)],
        methods_paragraph=citations.methods_paragraph(run, scores, pairs),
        references=references,
        picture_side=gallery.picture_side(run),
        cases=gallery.write_gallery(run, folder),
        scales={"positive": gradient(signed=False), "signed": gradient(signed=True)},
        opacity=display.OPACITY,
        percentile=f"{display.PERCENTILE:g}",
    )


def _class_colours(run: Run) -> list[tuple[str, str]]:
    return list(zip(run.classes, figures.class_colours(len(run.classes)), strict=True))


def _copy_assets(folder: Path) -> None:
    (folder / "assets").mkdir()
    for name in ("report.css", "theme.js", "report.js", "gallery.js"):
        content = resources.files("heatproof.report").joinpath("assets", name).read_bytes()
        (folder / "assets" / name).write_bytes(content)


def render(template: str, **content: Any) -> str:
    """The page that a template of this package makes of `content`; whatever comes from data is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("heatproof.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({"breakable": _breakable, "counted": text.counted})
    return environment.get_template(template).render(**content)


def _breakable(name: str) -> Any:
    """The name, escaped, with a possible line break after each underscore."""
    from markupsafe import Markup, escape

    return escape(name).replace("_", Markup("_<wbr>"))


def _curves(run: Run, folder: Path) -> dict[str, Saved]:
    """By model, its training curves, where it was trained."""
    histories = {model: run.history(model) for model in run.models}
    return {
        model: _save(figures.training_curves(history), folder, f"training-{model}")
        for model, history in histories.items()
        if len(history)
    }


def _reliability(run: Run, folder: Path) -> dict[str, Saved]:
    """By model, its reliability plot, where its performance has the bins."""
    bins = {model: (performance_of(run, model) or {}).get("reliability") for model in run.models}
    return {
        model: _save(figures.reliability(found), folder, f"reliability-{model}")
        for model, found in bins.items()
        if found
    }


def _boxes(run: Run, folder: Path) -> dict[str, dict[str, Saved]]:
    """By metric and model, its box plots; those of a metric share their axis."""
    classes = [_grouped(run, model) for model in run.models]
    scores = pd.concat(classes, ignore_index=True)
    return {metric: _boxes_of(run, scores[scores["metric"] == metric], folder, metric) for metric in run.metrics}


def _grouped(run: Run, model: str) -> pd.DataFrame:
    """The model's scores with the class whose box they stand in: the true one; of several labels the explained one."""
    scores, predictions = run.scores[run.scores["model"] == model], predictions_of(run, model)
    if is_multilabel(predictions):
        return scores.assign(label=scores["target"])
    return scores.assign(label=scores["sample_id"].map(predictions.set_index("sample_id")["label"]))


def _boxes_of(run: Run, scores: pd.DataFrame, folder: Path, metric: str) -> dict[str, Saved]:
    limits = figures.shared_limits(scores["value"])
    files = {}
    for model in run.models:
        rows = scores[scores["model"] == model]
        if limits and rows["value"].notna().any():
            picture = figures.box_plots(rows, run.methods, run.classes, limits=limits)
            files[model] = _save(picture, folder, f"scores-{metric}-{model}")
    return files


def _save(picture: Picture, folder: Path, name: str) -> Saved:
    (folder / "assets" / "figures").mkdir(exist_ok=True)
    for scheme, content in (("light", picture.light), ("dark", picture.dark)):
        (folder / "assets" / "figures" / f"{name}.{scheme}.svg").write_text(content, encoding="utf-8")
    return Saved(f"assets/figures/{name}", picture.width, picture.height)


def gradient(*, signed: bool) -> str:
    """The colour bar as a CSS gradient."""
    stops = display.colours(signed)[:255:10].tolist()
    return f"linear-gradient(to right, {', '.join(f'rgb({r} {g} {b})' for r, g, b in stops)})"
