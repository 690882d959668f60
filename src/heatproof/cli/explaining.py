"""`explain`, `gallery` and `score`: single images, without a study."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heatproof.cli.common import PARTLY, Device, Options, Seed, key_values, say
from heatproof.errors import HeatproofError, InputError, UnsupportedModelError, near_names

if TYPE_CHECKING:
    from heatproof.models import Classifier

Model = Annotated[str, typer.Option("--model", help="A checkpoint folder, or another source such as hf:<hub id>.")]


def explain(
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG or DICOM files, or folders of them.")],
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for <image>.png and <image>.npz.")],
    method: Annotated[str, typer.Option(help="See `heatproof methods`.")] = "transformer_lrp",
    option: Options = None,
    target: Annotated[str, typer.Option(help="predicted, or a class by name.")] = "predicted",
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Explain what a model sees in images: an overlay (PNG) and the raw map (.npz) of each.

    A file that cannot be explained is named, and the others are done.
    """
    from rich.progress import track

    from heatproof.explanation import methods

    options = key_values(option, "--option")
    methods()[method].check_options(options)
    clf = _load(model, device)
    wanted = None if target == "predicted" else _class(clf, target)
    named = named_files(images)
    out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name, path in track(list(named.items()), "Explaining", disable=not _is_terminal()):
        try:
            _explain_one(clf, path, name, out, method=method, options=options, target=wanted, seed=seed)
        except UnsupportedModelError:
            raise
        except HeatproofError as error:
            failed += 1
            say(f"{path}: {error}")
    _finish(failed, len(named), f"maps in {out}")


def _explain_one(
    clf: "Classifier",
    path: Path,
    name: str,
    out: Path,
    *,
    method: str,
    options: Mapping[str, Any],
    target: int | None,
    seed: int,
) -> None:
    import numpy as np
    import torch
    from PIL import Image

    from heatproof.explanation import explain, methods
    from heatproof.images.display import overlay
    from heatproof.images.read import read_image
    from heatproof.study.files import write_whole
    from heatproof.study.writing import write_arrays

    raw = read_image(path)
    image, geometry = clf.preprocessing(raw)
    batch = image[None].to(clf.device)
    with torch.no_grad():
        logits = clf(batch)
    chosen = int(logits.argmax()) if target is None else target
    found = explain(clf, batch, [chosen], method=method, keys=[name], seed=seed, **options)[0].cpu().numpy()
    label = str(chosen) if clf.classes is None else clf.classes[chosen]
    grey = raw.pixels if raw.pixels.ndim == 2 else raw.pixels.mean(-1)
    shown = overlay(grey, geometry.inverse_map(found), signed=methods()[method].signed)
    facts = {
        "target": chosen, "target_class": label, "sample_id": name, "image": path.name,
        "method": method, "options": json.dumps(dict(options)), "seed": seed,
    }  # fmt: skip
    write_whole(out / f"{name}.png", lambda file: Image.fromarray(shown).save(file, format="png"))
    write_arrays(out / f"{name}.npz", map=found, **{key: np.array(value) for key, value in facts.items()})
    typer.echo(f"{name}: {label} {float(clf.probabilities(logits)[0, chosen]):.3f}")


def gallery(
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG or DICOM files, or folders of them.")],
    model: Annotated[
        list[str],
        typer.Option("--model", help="A checkpoint folder, or another source such as hf:<hub id>; repeatable."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for gallery.png, gallery.html and gallery.json.")],
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "--methods",
            "-m",
            help="Methods, perhaps with options: lime:samples=200,gradcam; repeatable. By default all.",
        ),
    ] = None,
    family: Annotated[
        list[str] | None, typer.Option("--family", help="All methods of a family, such as cam; repeatable.")
    ] = None,
    target: Annotated[str, typer.Option(help="predicted, or a class by name.")] = "predicted",
    against: Annotated[str | None, typer.Option(help="Explain why the target rather than this class.")] = None,
    regions: Annotated[
        Path | None,
        typer.Option(help="A region table, to be outlined: sample_id (the image's name), region, kind, data."),
    ] = None,
    region: Annotated[str | None, typer.Option(help="Which of its regions, where it holds several.")] = None,
    resolution: Annotated[str, typer.Option(help="input, or native: the grid that each method computes.")] = "input",
    quick: Annotated[bool, typer.Option("--quick", help="At most 100 samples and 10 steps, for a first look.")] = False,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="Call the images image 1, image 2 ... in what is written.")
    ] = False,
    side: Annotated[int, typer.Option(help="Longest side of a picture, in pixels.", min=1)] = 128,
    batch_size: Annotated[int | None, typer.Option(help="Images at a time.", min=1)] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Draw the maps of images by every method on one sheet, as a picture and as a page.

    A method that a model cannot serve keeps its place and says why. What could not be read or failed is named.
    """
    from heatproof.report.sheet import gallery as draw

    requests = _method_requests(method or ()) + _of_families(family or ())
    named = named_files(images)
    sheet = draw(
        {name: _load(source, device) for name, source in _model_names(model).items()},
        named,
        out,
        methods=requests or None,
        target=None if target == "predicted" else target,
        against=against,
        regions=regions,
        region=region,
        resolution=resolution,  # type: ignore[arg-type] # checked there
        quick=quick,
        anonymous=anonymous,
        side=side,
        batch_size=batch_size,
        seed=seed,
        progress=_is_terminal(),
    )
    for failure in sheet.failures:
        say(": ".join(part for part in (failure.model, failure.method, failure.image, failure.message) if part))
    maps = sum(cell.map is not None for row in sheet.cells for cell in row)
    say(f"{maps} maps by {len(sheet.methods)} methods: {out / 'gallery.html'}")
    if sheet.failures:
        raise typer.Exit(PARTLY)


def _method_requests(texts: Sequence[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """`["lime:samples=200,segments=30,gradcam"]` as pairs of a name and its options, checked."""
    from heatproof.explanation import methods

    requests: list[tuple[str, list[str]]] = []
    for part in (part.strip() for text in texts for part in text.split(",")):
        name, colon, option = part.partition(":")
        if "=" not in name:
            requests.append((name, [option] if colon else []))
        elif requests:  # another option of the method before it
            requests[-1][1].append(part)
        else:
            raise InputError(f"--method {part}: an option stands after its method, as in lime:samples=200.")
    found: list[tuple[str, Mapping[str, Any]]] = []
    for name, options in requests:
        found.append((name, key_values(options, "--method")))
        methods()[name].check_options(found[-1][1])
    return found


def _of_families(families: Sequence[str]) -> list[tuple[str, Mapping[str, Any]]]:
    from heatproof.explanation import methods

    known = {entry.family for entry in methods().values()}
    for family in families:
        if family not in known:
            raise InputError(f"--family: unknown {family!r}. {near_names(family, known)}")
    return [(name, {}) for name, entry in methods().items() if entry.family in families]


def _model_names(sources: Sequence[str]) -> dict[str, str]:
    """A distinct name for each source: the last part of its path, or all of it."""
    if len(set(sources)) < len(sources):
        raise InputError("--model: the same model is given twice.")
    last = [Path(source.partition(":")[2] or source).name for source in sources]
    names = [name if last.count(name) == 1 else source for name, source in zip(last, sources, strict=True)]
    return dict(zip(names, sources, strict=True))


def score(
    maps: Annotated[list[Path], typer.Argument(help="The .npz files of `heatproof explain`, or folders of them.")],
    model: Model,
    images: Annotated[Path, typer.Option(help="The folder of the explained images.")],
    metric: Annotated[
        list[str], typer.Option("--metric", "-m", help="A metric, perhaps with options: iou:top=20,shape=rectangle.")
    ],
    out: Annotated[Path, typer.Option(help="The CSV file to write.")],
    masks: Annotated[
        Path | None, typer.Option(help="A folder of masks, named as the images; for localization metrics.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a forward pass; measured by default.", min=1)] = None,
    device: Device = "auto",
) -> None:
    """Score maps against their images, and against masks where there are some: one CSV row a map and metric.

    A score that is undefined, or that lacks its mask, is an empty cell. A map that cannot be scored is named.
    """
    import pandas as pd
    from rich.progress import track

    from heatproof.study.writing import write_csv

    requests = [_request(text) for text in metric]
    clf = _load(model, device)
    files = named_files(maps, suffix=".npz")
    rows: list[dict[str, Any]] = []
    failed = 0
    for path in track(list(files.values()), "Scoring", disable=not _is_terminal()):
        try:
            rows += _score_one(clf, path, requests, images, masks, batch_size)
        except HeatproofError as error:
            failed += 1
            say(f"{path}: {error}")
    write_csv(out, pd.DataFrame(rows, columns=["sample_id", "method", "metric", "target", "value"]))
    _finish(failed, len(files), f"scores in {out}")


def _score_one(
    clf: "Classifier",
    path: Path,
    requests: Sequence[Mapping[str, Any]],
    images: Path,
    masks: Path | None,
    batch_size: int | None,
) -> Iterator[dict[str, Any]]:
    import torch

    from heatproof.images.read import read_image, read_mask
    from heatproof.scoring import metrics, score_many

    stored = _read_map(path)
    raw = read_image(images / str(stored["image"]))
    image, geometry = clf.preprocessing(raw)
    name, mask = str(stored["sample_id"]), None if masks is None else _mask_of(masks, str(stored["image"]))
    roi = None if mask is None else torch.from_numpy(geometry.mask(read_mask(mask, raw.size)))[None].to(clf.device)
    usable = [r for r in requests if roi is not None or "roi" not in metrics()[r["metric"]].needs]
    values = (
        {}
        if not usable
        else score_many(
            clf,
            image[None].to(clf.device),
            torch.from_numpy(stored["map"])[None].to(clf.device),
            metrics=usable,
            explain=(str(stored["method"]), json.loads(str(stored["options"]))),
            targets=[int(stored["target"])],
            roi=roi,
            keys=[name],
            batch_size=batch_size,
            seed=int(stored["seed"]),
        )
    )
    for request in requests:
        value = values[request["as"]].item() if request["as"] in values else None
        target = str(stored["target_class"])
        yield {
            "sample_id": name,
            "method": str(stored["method"]),
            "metric": request["as"],
            "target": target,
            "value": value,
        }


def _read_map(path: Path) -> dict[str, Any]:
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            stored = dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot be read as maps: {error}") from None
    missing = {"map", "target", "target_class", "sample_id", "image", "method", "options", "seed"} - set(stored)
    if missing:
        raise InputError(
            f"holds no {', '.join(sorted(missing))}: score takes the files that `heatproof explain` writes."
        )
    return stored


def _mask_of(masks: Path, image: str) -> Path | None:
    """The mask with the image's name, whatever its suffix."""
    return next((path for path in sorted(masks.glob("*")) if path.stem == Path(image).stem), None)


def _request(text: str) -> dict[str, Any]:
    """`iou:top=20,shape=rectangle` as `score_many` takes it, checked; the text itself is the label."""
    from heatproof.scoring import metrics

    name, _, rest = text.partition(":")
    options = key_values([part for part in rest.split(",") if part], "--metric")
    entry = metrics()[name]
    entry.check_options(options)
    return {**options, "metric": name, "as": text}


def named_files(paths: Sequence[Path], suffix: str = "") -> dict[str, Path]:
    """A distinct name for each file: its stem, or the parts of its path that tell it from others of that stem."""
    files = [file for path in paths for file in (_within(path, suffix) if path.is_dir() else [path])]
    files = list(dict.fromkeys(files))
    if not files:
        raise InputError(f"{', '.join(map(str, paths))}: no files in there.")
    stems = [file.stem for file in files]
    names = ["_".join(f.with_suffix("").parts).lstrip("/_") if stems.count(f.stem) > 1 else f.stem for f in files]
    if len(set(names)) < len(names):
        raise InputError("Several files differ in their suffix only; give them in separate calls.")
    return dict(zip(names, files, strict=True))


def _within(folder: Path, suffix: str) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".") and path.suffix.endswith(suffix)
    )  # fmt: skip


def _load(model: str, device: str) -> "Classifier":
    from heatproof.models.device import resolve_device
    from heatproof.models.sources import load_classifier

    place = resolve_device(device)
    return load_classifier(model).to(place)


def _class(clf: "Classifier", name: str) -> int:
    from heatproof.models.targets import class_index

    return class_index(clf.classes, name, "--target", others=["predicted"])


def _is_terminal() -> bool:
    import sys

    return sys.stderr.isatty()


def _finish(failed: int, total: int, where: str) -> None:
    say(f"{total - failed} of {total} done: {where}")
    if failed:
        raise typer.Exit(PARTLY)
