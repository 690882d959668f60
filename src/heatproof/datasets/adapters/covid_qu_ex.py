"""COVID-QU-Ex: chest radiographs with COVID-19, other infections or neither, all with lung masks, some with infections.

Layout: https://www.kaggle.com/datasets/anasmohammedtahir/covidqu (version 7), which unpacks to

    Lung Segmentation Data/Lung Segmentation Data/{Train,Val,Test}/{COVID-19,Non-COVID,Normal}/{images,lung masks}/*.png
    Infection Segmentation Data/Infection Segmentation Data/.../{images,lung masks,infection masks}/*.png

as public code that reads it shows too, for instance
https://github.com/constantinpape/torch-em/blob/main/torch_em/data/datasets/medical/covid_qu_ex.py. The doubled
folders may be single. An image and its masks bear the same name. The infection set has splits of its own; that its
images are those of the lung set with the same class and name is how the two are joined here, and is not documented.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from heatproof.checks import check_choice
from heatproof.datasets.adapters.listing import count_notes, pictures, stem, unexpected, unpaired
from heatproof.datasets.adapters.official import region_rows
from heatproof.datasets.adapters.registry import Found, Problem, adapter
from heatproof.datasets.cells import some
from heatproof.datasets.labels import LabelForm

_LUNG, _INFECTION = "Lung Segmentation Data", "Infection Segmentation Data"
_SPLITS = {"Train": "train", "Val": "val", "Test": "test"}
_CLASSES = ("COVID-19", "Non-COVID", "Normal")
_PUBLISHED = {"COVID-19": 11_956, "Non-COVID": 11_263, "Normal": 10_701}
_PLACE = ["folder", "label", "name"]  # what an image and its masks have in common within one of the two sets
_NO_PATIENTS = "The data set names no patients: images of one may stand in several of its splits."


@adapter(
    "covid_qu_ex",
    title="COVID-QU-Ex (version 7)",
    licence="As its page at Kaggle says; it collects images of several sources with terms of their own.",
    home="https://www.kaggle.com/datasets/anasmohammedtahir/covidqu",
    paper="tahir2021covid",
)
def covid_qu_ex(folder: Path, *, part: str = "all") -> Found:
    """Three classes, official splits; regions `lung`, and `lesion` of the class COVID-19.

    The infection masks of images without COVID-19 are black: annotated, nothing there.

    Args:
        folder: the one that holds `Lung Segmentation Data` and `Infection Segmentation Data`.
        part: `all` (the images of the lung set with its splits, and the infection masks of those that the infection set
            has too), `lung` (the lung set alone) or `infection` (the infection set with its splits and all its masks).

    Raises:
        InputError: another word for `part`.
    """
    check_choice("part", part, ("all", "lung", "infection"))
    contents = {_LUNG: ["lung masks"], _INFECTION: ["lung masks", "infection masks"]}
    needed = {"all": [_LUNG, _INFECTION], "lung": [_LUNG], "infection": [_INFECTION]}[part]
    files: dict[str, pd.DataFrame] = {}
    problems: list[Problem] = []
    for name in needed:
        files[name], found = _listed(folder, name, ["images", *contents[name]])
        problems += found
    main = files[needed[0]]
    images = _of(main, "images")
    regions = [_region(_of(main, "lung masks"), "lung")]
    if _INFECTION in needed:
        infected, found = _infections(files[_INFECTION], images, shared=part == "all")
        regions.append(infected)
        problems += found
    samples = pd.DataFrame(
        {
            "sample_id": images["sample_id"],
            "image": images["path"],
            "label": images["label"],
            "split": images["folder"].map(_SPLITS),
        }
    )
    counted = count_notes(images["label"], _PUBLISHED) if part != "infection" else []
    kept = pd.concat(regions, ignore_index=True)
    return Found(
        samples=samples,
        form=LabelForm(classes=_CLASSES),
        regions=kept[kept["sample_id"].isin(samples["sample_id"])],
        notes=(_NO_PATIENTS, *counted),
        problems=problems,
    )


def _listed(root: Path, name: str, contents: Sequence[str]) -> tuple[pd.DataFrame, list[Problem]]:
    """The files of one of the two sets, and what is wrong with its folders and with the pairs of image and mask."""
    tops = [top for top in (f"{name}/{name}", name) if any((root / top / split).is_dir() for split in _SPLITS)]
    rows: list[tuple[str, str, str, str, str]] = []
    if not tops:
        problem = Problem(f"No folder {name!r} with {', '.join(_SPLITS)} in it. Give the folder that holds it.")
        return _table(rows), [problem]
    place = tops[0]
    problems = unexpected(root, place, _SPLITS)
    for split in _SPLITS:
        problems += unexpected(root, f"{place}/{split}", _CLASSES)
        for label in _CLASSES:
            problems += unexpected(root, f"{place}/{split}/{label}", contents)
            for content in contents:
                within = f"{place}/{split}/{label}/{content}"
                names = pictures(root / within)
                rows += [(split, label, stem(file), content, f"{within}/{file}") for file in names]
                if not names:
                    problems.append(Problem(f"{within} is missing or holds no pictures."))
    files = _table(rows)
    for content in contents[1:]:
        problems += unpaired(_of(files, "images"), _of(files, content), _PLACE, content.removesuffix("s"))
    return files, problems


def _table(rows: Sequence[tuple[str, str, str, str, str]]) -> pd.DataFrame:
    files = pd.DataFrame(list(rows), columns=[*_PLACE, "content", "path"], dtype=object)
    return files.assign(sample_id=files["folder"] + "/" + files["label"] + "/" + files["name"])


def _of(files: pd.DataFrame, content: str) -> pd.DataFrame:
    return files[files["content"] == content].reset_index(drop=True)


def _region(masks: pd.DataFrame, region: str, label: str | None = None) -> pd.DataFrame:
    return region_rows(masks["sample_id"], label, "mask", masks["path"], region=region)


def _infections(files: pd.DataFrame, images: pd.DataFrame, *, shared: bool) -> tuple[pd.DataFrame, list[Problem]]:
    """The infection masks of `images`; where these are `shared`, they are those of the other set."""
    masks = _of(files, "infection masks")
    if not shared:
        return _region(masks, "lesion", "COVID-19"), []
    keys = ["label", "name"]
    joined = masks.drop(columns="sample_id").merge(images[[*keys, "sample_id"]], on=keys, how="left")
    problems = []
    absent = masks[~masks["path"].isin(joined["path"][joined["sample_id"].notna()])]
    if len(absent):
        text = f"{len(absent):,} infection masks are of images that {_LUNG!r} does not have: "
        problems.append(Problem(f"{text}{some(absent['path'], len(absent))}.", frozenset(absent["sample_id"])))
    double = joined[joined["path"].duplicated(keep=False)]
    if len(double):
        text = f"Images of {_LUNG!r} with one name in several splits, so that an infection mask cannot be told theirs: "
        problems.append(Problem(f"{text}{some(double['sample_id'], len(double))}.", frozenset(double["sample_id"])))
    return _region(joined[joined["sample_id"].notna()], "lesion", "COVID-19"), problems
