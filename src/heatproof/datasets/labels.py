"""What each image shows: one label of several classes, or for every label whether it applies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from heatproof.checks import check_choice
from heatproof.datasets.cells import as_text, is_missing, refuse_empty, require, rows_of, some
from heatproof.errors import InputError, near_names

Task = Literal["multiclass", "multilabel"]
SEPARATOR = "|"  # of `samples["labels"]`, whatever the source uses
VALUE_OF: Mapping[str, float] = {"zero": 0.0, "one": 1.0, "ignore": float("nan")}
COUNTED_AS: Mapping[str, str] = {"zero": "counted as 0", "one": "counted as 1", "ignore": "unknown"}


@dataclass(frozen=True)
class LabelForm:
    """How a table says what an image shows; see `load_table`, whose arguments these are. None: not given."""

    classes: Sequence[str] | None = None
    label_columns: Sequence[str] | Mapping[str, str] | None = None
    label_separator: str | None = None
    no_finding: str | None = None
    uncertain: str | Mapping[str, str] | None = None
    blank: str | Mapping[str, str] | None = None


@dataclass(frozen=True, eq=False)
class Labels:
    """The label columns of a sample table, the classes, and what a report must say of them.

    `columns` are those of the source that became label columns.
    """

    frame: pd.DataFrame
    classes: tuple[str, ...]
    task: Task
    notes: tuple[str, ...] = ()
    columns: frozenset[str] = frozenset()


def label_column(name: str) -> str:
    """The column of a multi-label sample table that holds 1, 0 or NaN for one class."""
    return f"label_{name}"


def targets_of(samples: pd.DataFrame, classes: Sequence[str], task: Task) -> NDArray[np.float32]:
    """`[N, K]`: 1 the label applies, 0 it does not, NaN unknown; one-hot where there is one label an image.

    Raises:
        InputError: a label that is none of the classes.
    """
    if task == "multilabel":
        return samples[[label_column(name) for name in classes]].to_numpy(dtype=np.float32)
    places = pd.Index(classes).get_indexer(pd.Index(samples["label"]))
    if (places < 0).any():
        _refuse_unknown(samples["sample_id"], samples["label"], classes)
    return np.eye(len(classes), dtype=np.float32)[places]


def read_labels(table: pd.DataFrame, columns: Mapping[str, str], ids: "pd.Series[Any]", form: LabelForm) -> Labels:
    """The labels of a table in whichever of the three forms it has: see `load_table`.

    Args:
        table: as read.
        columns: our names (`label`, `labels`) -> the table's, as far as they are mapped or stand in it.
        ids: the sample of each row, for messages.
        form: how the table is to be read.

    Raises:
        InputError: see `load_table`.
    """
    if form.label_columns is not None:
        _refuse_given(form, ("label_separator", "no_finding"), "a text column with several labels (columns: labels)")
        found = _of_columns(table, form)
    elif "labels" in columns:
        _refuse_given(form, ("uncertain",), "label_columns")
        found = _of_text(as_text(table[columns["labels"]]), ids, form)
    else:
        require(table, columns.get("label", "label"), "name yours with columns={'label': ...}")
        _refuse_given(form, ("label_separator", "no_finding", "uncertain", "blank"), "multi-label tables")
        return _single(as_text(table[columns["label"]]), ids, form.classes)
    if "label" in columns:
        found.frame.insert(0, "label", as_text(table[columns["label"]]))
    return found


def _refuse_given(form: LabelForm, options: Sequence[str], belongs_to: str) -> None:
    for option in options:
        if getattr(form, option) is not None:
            raise InputError(f"{option} belongs to {belongs_to}, which this table is not read as. Leave it out.")


def _single(labels: "pd.Series[Any]", ids: "pd.Series[Any]", classes: Sequence[str] | None) -> Labels:
    frame = pd.DataFrame({"label": labels})
    refuse_empty(frame, "label")
    names = tuple(sorted(set(labels))) if classes is None else _distinct(classes, "classes")
    if not labels.isin(names).all():
        _refuse_unknown(ids, labels, names)
    return Labels(frame, names, "multiclass", _nobody_has([name for name in names if not (labels == name).any()]))


def _of_columns(table: pd.DataFrame, form: LabelForm) -> Labels:
    given = form.label_columns
    if given is None or isinstance(given, str) or not given:
        raise InputError(f"label_columns must be a list of columns or a mapping class -> column, got {given!r}.")
    columns = dict(given) if isinstance(given, Mapping) else {name: name for name in _distinct(given, "label_columns")}
    _distinct(list(columns.values()), "label_columns")
    names = tuple(columns) if form.classes is None else _distinct(form.classes, "classes")
    for name in names:
        if name not in columns:
            raise InputError(f"classes: {name!r} is none of label_columns. {near_names(name, columns)}")
    _refuse_separator(names)
    cells = pd.DataFrame({name: _cells(table, columns[name]) for name in names})
    values, notes = cells, []
    for option, allowed, where in (
        ("uncertain", ("zero", "one", "ignore"), cells == -1),
        ("blank", ("zero", "ignore"), cells.isna()),
    ):
        policies = _policies(getattr(form, option), option, allowed, names)
        values = values.mask(where, pd.Series({name: VALUE_OF[policies[name]] for name in names}), axis=1)
        counted = [f"{name} {n} {COUNTED_AS[policies[name]]}" for name in names if (n := int(where[name].sum()))]
        if counted:
            notes.append(f"{option.capitalize()} cells of the label columns: {', '.join(counted)}.")
    return replace(_multilabel(values, notes), columns=frozenset(columns[name] for name in names))


def _cells(table: pd.DataFrame, column: str) -> "pd.Series[float]":
    """One label's cells as 1, 0, -1 (uncertain) or NaN (blank)."""
    require(table, column, "label_columns names it")
    blank = is_missing(table[column])
    values = pd.to_numeric(table[column].mask(blank), errors="coerce").astype(np.float64)
    wrong = ~blank & ~values.isin([1, 0, -1])
    if wrong.any():
        odd = table[column][wrong].unique()
        raise InputError(
            f"The label column {column!r} holds {some(map(repr, odd), len(odd))} in row {rows_of(wrong)} (counted from "
            "1, without the header). Allowed are 1 (applies), 0 (does not), -1 (uncertain) and an empty cell."
        )
    return values


def _policies(
    given: str | Mapping[str, str] | None, option: str, allowed: Sequence[str], names: Sequence[str]
) -> dict[str, str]:
    """By class what its cells count as; `ignore` where nothing is said."""
    chosen = given if isinstance(given, Mapping) else dict.fromkeys(names, "ignore" if given is None else given)
    for name, policy in chosen.items():
        if name not in names:
            raise InputError(f"{option}: {name!r} is not a class. {near_names(name, names)}")
        check_choice(option, policy, allowed)
    return {name: chosen.get(name, "ignore") for name in names}


def _of_text(cells: "pd.Series[Any]", ids: "pd.Series[Any]", form: LabelForm) -> Labels:
    separator = SEPARATOR if form.label_separator is None else form.label_separator
    if not separator.strip():
        raise InputError(f"label_separator must be a character that no label holds, got {separator!r}.")
    if form.blank is not None:
        check_choice("blank", form.blank, ("zero", "ignore"))
        if form.no_finding is None:
            raise InputError(
                "blank: an empty cell of the labels means that none applies, unless no_finding names the text that "
                "does. Give no_finding too, or leave blank out."
            )
    said = cells.fillna("").map(lambda text: {part.strip() for part in text.split(separator)} - {""})
    none = said.map(lambda labels: form.no_finding in labels)
    both = none & said.map(lambda labels: len(labels) > 1)
    if both.any():
        raise InputError(
            f"{form.no_finding!r} stands beside other labels in row {rows_of(both)} (counted from 1, without the header)."
        )
    said = said.map(lambda labels: labels - {form.no_finding})
    names = tuple(sorted(set().union(*said))) if form.classes is None else _distinct(form.classes, "classes")
    unknown = said.map(lambda labels: sorted(labels - set(names)))
    if unknown.map(bool).any():
        _refuse_unknown(ids, unknown.map(", ".join), names)
    if not names:
        raise InputError("No image has any label, so there are no classes. Name them with classes.")
    _refuse_separator(names)
    values = pd.DataFrame({name: said.map(lambda labels, name=name: float(name in labels)) for name in names})
    empty, notes = cells.isna() if form.no_finding is not None else cells.isna() & False, []
    if empty.any():
        policy = str(form.blank or "ignore")
        values = values.mask(empty, VALUE_OF[policy])
        notes = [f"Empty cells of the labels: {int(empty.sum())} images, every label {COUNTED_AS[policy]}."]
    return _multilabel(values, notes)


def _multilabel(values: pd.DataFrame, notes: Sequence[str]) -> Labels:
    names = tuple(map(str, values.columns))
    positive = values.to_numpy() == 1
    frame = values.rename(columns=label_column)
    frame.insert(0, "labels", [SEPARATOR.join(np.array(names, dtype=object)[row]) for row in positive])
    lacking = [name for name, found in zip(names, positive.any(axis=0), strict=True) if not found]
    return Labels(frame, names, "multilabel", (*notes, *_nobody_has(lacking)))


def describe_labels(labels: Labels) -> "pd.Series[Any]":
    """What each row says, in words: its label, or its labels with a question mark where unknown."""
    if labels.task == "multiclass":
        return labels.frame["label"]
    marks = {1.0: "", 0.0: None}
    columns = [label_column(name) for name in labels.classes]

    def one(row: tuple[float, ...]) -> str:
        said = [(name, marks.get(value, "?")) for name, value in zip(labels.classes, row, strict=True)]
        return SEPARATOR.join(name + mark for name, mark in said if mark is not None) or "no label"

    return pd.Series([one(row) for row in labels.frame[columns].itertuples(index=False)], index=labels.frame.index)


def _nobody_has(lacking: Sequence[str]) -> tuple[str, ...]:
    return (f"Classes that no image has: {', '.join(lacking)}.",) if lacking else ()


def _distinct(names: Sequence[str], what: str) -> tuple[str, ...]:
    found = tuple(map(str, names))
    if isinstance(names, str) or len(set(found)) != len(found):
        raise InputError(f"{what} must be a list of distinct names, got {names!r}.")
    return found


def _refuse_separator(names: Sequence[str]) -> None:
    for name in names:
        if SEPARATOR in name:
            raise InputError(f"The class {name!r} holds {SEPARATOR!r}, which separates labels. Rename it.")


def _refuse_unknown(ids: "pd.Series[Any]", labels: "pd.Series[Any]", classes: Sequence[str]) -> None:
    unknown = labels.ne("") & ~labels.isin(list(classes))
    rows = [f"{sample} ({label})" for sample, label in zip(ids[unknown], labels[unknown], strict=True)]
    near = near_names(str(labels[unknown].iloc[0]), classes).partition("Known:")[0]
    raise InputError(
        f"Labels that are not in classes {list(classes)}: {some(rows, len(rows))}. {near}Add or correct them."
    )
