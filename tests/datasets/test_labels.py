"""Multi-label tables in both forms, what uncertain and blank cells count as, and every fault of theirs."""

import numpy as np
import pandas as pd
import pytest

from heatproof.datasets.table import load_table
from heatproof.errors import InputError

NAN = np.nan
CHEXPERT = (
    "Path,Sex,Edema,Mass,No Finding\n"
    "a.png,F,1.0,,0.0\nb.png,M,-1.0,0.0,\nc.png,F,0.0,-1.0,\nd.png,M,,1.0,\ne.png,F,-1,1,1\n"
)
COLUMNS = {"image": "Path"}


def load(tmp_path, text, **options):
    (tmp_path / "samples.csv").write_text(text)
    return load_table(tmp_path / "samples.csv", **options)


def test_one_column_a_class(tmp_path):
    data = load(tmp_path, CHEXPERT, columns=COLUMNS, label_columns=["Edema", "Mass"])
    assert (data.task, data.classes) == ("multilabel", ("Edema", "Mass"))
    expected = np.array([[1, NAN], [NAN, 0], [0, NAN], [NAN, 1], [NAN, 1]], dtype=np.float32)
    np.testing.assert_array_equal(data.targets(), expected)
    assert data.targets().dtype == np.float32
    assert data.samples["labels"].tolist() == ["Edema", "", "", "Mass", "Mass"]
    np.testing.assert_array_equal(data.samples["label_Edema"], expected[:, 0])
    np.testing.assert_array_equal(data.samples["label_Mass"], expected[:, 1])
    columns = "sample_id image labels label_Edema label_Mass patient_id split Sex".split()
    assert data.samples.columns.tolist() == [*columns, "No Finding"]
    assert data.notes == (
        "No patient_id: every image counts as a patient of its own.",
        "Uncertain cells of the label columns: Edema 2 unknown, Mass 1 unknown.",
        "Blank cells of the label columns: Edema 1 unknown, Mass 1 unknown.",
    )
    train = data.with_splits(pd.Series(["train", "test", "train", "test", "test"])).subset("train")
    np.testing.assert_array_equal(train.targets(), expected[[0, 2]])


@pytest.mark.parametrize(
    ("uncertain", "blank", "edema", "mass", "notes"),
    [
        ("zero", "zero", [1, 0, 0, 0, 0], [0, 0, 0, 1, 1],
         ("Edema 2 counted as 0, Mass 1 counted as 0", "Edema 1 counted as 0, Mass 1 counted as 0")),
        ("one", "ignore", [1, 1, 0, NAN, 1], [NAN, 0, 1, 1, 1],
         ("Edema 2 counted as 1, Mass 1 counted as 1", "Edema 1 unknown, Mass 1 unknown")),
        ("ignore", "zero", [1, NAN, 0, 0, NAN], [0, 0, NAN, 1, 1],
         ("Edema 2 unknown, Mass 1 unknown", "Edema 1 counted as 0, Mass 1 counted as 0")),
        ({"Mass": "one"}, {"Edema": "zero"}, [1, NAN, 0, 0, NAN], [NAN, 0, 1, 1, 1],
         ("Edema 2 unknown, Mass 1 counted as 1", "Edema 1 counted as 0, Mass 1 unknown")),
        ({"Mass": "zero", "Edema": "one"}, None, [1, 1, 0, NAN, 1], [NAN, 0, 0, 1, 1],
         ("Edema 2 counted as 1, Mass 1 counted as 0", "Edema 1 unknown, Mass 1 unknown")),
    ],
)  # fmt: skip
def test_what_uncertain_and_blank_cells_count_as(tmp_path, uncertain, blank, edema, mass, notes):
    data = load(tmp_path, CHEXPERT, columns=COLUMNS, label_columns=["Edema", "Mass"], uncertain=uncertain, blank=blank)
    np.testing.assert_array_equal(data.targets(), np.array([edema, mass], dtype=np.float32).T)
    assert data.samples["labels"].tolist() == [
        "|".join(np.array(["Edema", "Mass"])[[e == 1, m == 1]]) for e, m in zip(edema, mass, strict=True)
    ]
    assert data.notes[1:] == tuple(
        f"{what} cells of the label columns: {said}." for what, said in zip(("Uncertain", "Blank"), notes, strict=True)
    )


def test_classes_mapped_to_columns_ordered_and_chosen(tmp_path):
    mapped = {"oedema": "Edema", "mass": "Mass", "healthy": "No Finding"}
    data = load(tmp_path, CHEXPERT, columns=COLUMNS, label_columns=mapped, classes=["mass", "oedema"], blank="zero")
    assert data.classes == ("mass", "oedema")
    np.testing.assert_array_equal(data.targets()[:, 1], [1, NAN, 0, 0, NAN])
    assert "Edema" not in data.samples
    np.testing.assert_array_equal(data.samples["No Finding"], [0, NAN, NAN, NAN, 1])  # not chosen: travels along


def test_label_columns_of_a_parquet_file_may_hold_numbers_or_truth_values(tmp_path):
    frame = pd.DataFrame({"image": ["a.png", "b.png", "c.png"], "x": [1.0, np.nan, -1.0], "y": [True, False, True]})
    frame.to_parquet(tmp_path / "samples.parquet")
    data = load_table(tmp_path / "samples.parquet", label_columns=["x", "y"])
    np.testing.assert_array_equal(data.targets(), np.array([[1, 1], [NAN, 0], [NAN, 1]], dtype=np.float32))


def test_columns_that_bear_our_names_are_kept_apart(tmp_path):
    text = "image,label,labels,label_x,x\na.png,p,q,7,1\nb.png,p,q,8,0\n"
    data = load(tmp_path, text, label_columns=["x"])
    np.testing.assert_array_equal(data.targets(), [[1], [0]])
    assert data.samples["label"].tolist() == ["p", "p"]  # the source has it: kept for single-label models
    assert data.samples["labels"].tolist() == ["x", ""]
    assert data.samples["labels_in_table"].tolist() == ["q", "q"]
    assert data.samples["label_x_in_table"].tolist() == [7, 8]


NIH = (
    "Image Index,Finding Labels,Patient ID\n"
    "a.png,Cardiomegaly|Effusion,1\nb.png,No Finding,1\nc.png,Effusion,2\nd.png,,3\n"
)
NIH_COLUMNS = {"image": "Image Index", "labels": "Finding Labels", "patient_id": "Patient ID"}


def test_a_text_of_labels(tmp_path):
    data = load(tmp_path, NIH, columns=NIH_COLUMNS, no_finding="No Finding")
    assert (data.task, data.classes) == ("multilabel", ("Cardiomegaly", "Effusion"))
    expected = [[1, 1], [0, 0], [0, 1], [NAN, NAN]]
    np.testing.assert_array_equal(data.targets(), np.array(expected, dtype=np.float32))
    assert data.samples["labels"].tolist() == ["Cardiomegaly|Effusion", "", "Effusion", ""]
    assert data.notes == ("Empty cells of the labels: 1 images, every label unknown.",)
    zero = load(tmp_path, NIH, columns=NIH_COLUMNS, no_finding="No Finding", blank="zero")
    np.testing.assert_array_equal(zero.targets()[3], [0, 0])
    assert zero.notes == ("Empty cells of the labels: 1 images, every label counted as 0.",)
    class_of_its_own = load(tmp_path, NIH, columns=NIH_COLUMNS)
    assert class_of_its_own.classes == ("Cardiomegaly", "Effusion", "No Finding")
    np.testing.assert_array_equal(class_of_its_own.targets(), [[1, 1, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]])
    assert class_of_its_own.notes == ()


def test_other_separators_and_spaces(tmp_path):
    text = 'image,labels\na.png,"x, y"\nb.png," y,"\nc.png,\n'
    data = load(tmp_path, text, label_separator=",", classes=["y", "x"])
    assert data.classes == ("y", "x")
    np.testing.assert_array_equal(data.targets(), [[1, 1], [1, 0], [0, 0]])
    assert data.samples["labels"].tolist() == ["y|x", "y", ""]


def test_our_own_text_comes_back_as_it_was(tmp_path):
    first = load(tmp_path, CHEXPERT, columns=COLUMNS, label_columns=["Edema", "Mass"], uncertain="one", blank="zero")
    first.samples[["sample_id", "image", "labels"]].to_csv(tmp_path / "again.csv", index=False)
    again = load_table(tmp_path / "again.csv")
    assert again.task == "multilabel"
    np.testing.assert_array_equal(again.targets(), first.targets())


def test_one_label_an_image_is_one_hot(tmp_path):
    data = load(tmp_path, "image,label\na.png,x\nb.png,z\nc.png,x\n", classes=["z", "y", "x"])
    assert data.task == "multiclass"
    assert data.targets().dtype == np.float32
    np.testing.assert_array_equal(data.targets(), [[0, 0, 1], [1, 0, 0], [0, 0, 1]])
    assert data.notes[1:] == ("Classes that no image has: y.",)


def test_a_label_that_is_no_class_has_no_target(tmp_path):
    data = load(tmp_path, "image,label\na.png,x\nb.png,y\n")
    odd = data.samples.assign(label=["x", "Y"])
    with pytest.raises(InputError, match=r"not in classes \['x', 'y'\]: b \(Y\)"):
        type(data)("odd", odd, data.regions, data.classes, data.root).targets()


def test_classes_that_nobody_has_are_noted(tmp_path):
    data = load(tmp_path, "image,x,y,z\na.png,1,0,-1\nb.png,0,,\n", label_columns=["x", "y", "z"])
    assert data.notes[-1] == "Classes that no image has: y, z."
    text = load(tmp_path, "image,labels\na.png,x\n", classes=["x", "w"])
    assert text.notes[-1] == "Classes that no image has: w."


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("image,x\na.png,1\nb.png,2\nc.png,0.5\n", {"label_columns": ["x"]},
         r"label column 'x' holds '2', '0.5' in row 2, 3 \(counted from 1.*Allowed are 1 \(applies\), 0 \(does not\), -1"),
        ("image,x\na.png,yes\n", {"label_columns": ["x"]}, "holds 'yes' in row 1"),
        ("image,x\na.png,inf\n", {"label_columns": ["x"]}, "holds 'inf' in row 1"),
        ("image,Edema\na.png,1\n", {"label_columns": ["Edma"]}, r"'Edma' \(label_columns names it\). Did you mean"),
        ("image,x\na.png,1\n", {"label_columns": []}, "must be a list of columns or a mapping"),
        ("image,x\na.png,1\n", {"label_columns": "x"}, "must be a list of columns or a mapping"),
        ("image,x\na.png,1\n", {"label_columns": ["x", "x"]}, "label_columns must be a list of distinct names"),
        ("image,x\na.png,1\n", {"label_columns": {"p": "x", "q": "x"}}, "distinct names"),
        ("image,x\na.png,1\n", {"label_columns": {"p|q": "x"}}, r"class 'p\|q' holds '\|', which separates"),
        ("image,x\na.png,1\n", {"label_columns": ["x"], "classes": ["y"]}, "'y' is none of label_columns. Known: x"),
        ("image,x\na.png,-1\n", {"label_columns": ["x"], "uncertain": "ones"}, "uncertain must be 'zero' or 'one' or"),
        ("image,x\na.png,\n", {"label_columns": ["x"], "blank": "one"}, "blank must be 'zero' or 'ignore', got 'one'"),
        ("image,x\na.png,\n", {"label_columns": ["x"], "blank": {"w": "zero"}}, "blank: 'w' is not a class. Known: x"),
        ("image,x\na.png,1\n", {"label_columns": ["x"], "label_separator": ","}, "label_separator belongs to a text"),
        ("image,x\na.png,1\n", {"label_columns": ["x"], "no_finding": "none"}, "no_finding belongs to a text"),
        ("image,x,labels\na.png,1,x\n", {"label_columns": ["x"], "columns": {"labels": "labels"}},
         "Labels are given twice: columns maps 'labels', and there are label_columns"),
        ("image,label,labels\na.png,x,x\n", {}, r"one label an image \('label'\) and several \('labels'\). Map the one"),
        ("image,label,labels\na.png,x,x\n", {"columns": {"label": "label", "labels": "labels"}}, "not both"),
        ("image,labels\na.png,x|y\nb.png,x|w\n", {"classes": ["x", "y", "wide"]},
         r"not in classes \['x', 'y', 'wide'\]: b \(w\)"),
        ("image,labels\na.png,x|none\nb.png,none\n", {"no_finding": "none"}, "'none' stands beside other labels in row 1"),
        ("image,labels\na.png,none\n", {"no_finding": "none"}, "No image has any label"),
        ("image,labels\na.png,x\n", {"label_separator": " "}, "label_separator must be a character"),
        ("image,labels\na.png,x|y\n", {"label_separator": ","}, "which separates labels"),
        ("image,labels\na.png,x\n", {"uncertain": "zero"}, "uncertain belongs to label_columns"),
        ("image,labels\na.png,x\n", {"blank": "zero"}, "Give no_finding too, or leave blank out"),
        ("image,labels\na.png,x\n", {"blank": "one", "no_finding": "n"}, "blank must be 'zero' or 'ignore'"),
        ("image,label\na.png,x\n", {"uncertain": "zero"}, "uncertain belongs to multi-label tables"),
        ("image,label\na.png,x\n", {"no_finding": "n"}, "no_finding belongs to multi-label tables"),
    ],
)  # fmt: skip
def test_faults(tmp_path, text, options, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path, text, **options)


def test_an_explicit_mapping_decides_between_label_and_labels(tmp_path):
    text = "image,label,labels\na.png,x,p|q\nb.png,y,q\n"
    single = load(tmp_path, text, columns={"label": "label"})
    assert (single.task, single.classes) == ("multiclass", ("x", "y"))
    assert single.samples["labels_in_table"].tolist() == ["p|q", "q"]
    several = load(tmp_path, text, columns={"labels": "labels"})
    assert (several.task, several.classes) == ("multilabel", ("p", "q"))
    assert several.samples["label"].tolist() == ["x", "y"]


# --- rows of one image, and what is not a number ---


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("sample_id,image,label\n1,a.png,x\n2,b.png,x\n3,a.png,y\n", {},
         r"Several rows have the same image and different labels: .*a\.png \(x, y\)\. Correct"),
        ("sample_id,image,label\n1,a.png,x\n2,b.png,x\n3,./a.png,x\n", {},
         r"Several rows have the same image: .*a\.png\. Keep one row an image; what lies where in it belongs into a reg"),
        ("sample_id,image,label\n1,a.png,x\n1,b.png,y\n", {}, r"same sample_id and different labels: 1 \(x, y\)"),
        ("sample_id,image,label\n1,a.png,x\n1,b.png,x\n", {}, r"Several rows have the same sample_id: 1\. It is by"),
        ("image,x,y\na.png,1,0\nb.png,1,0\na.png,1,-1\n", {"label_columns": ["x", "y"]},
         r"same image and different labels: .*a\.png \(x, x\|y\?\)"),
        ("image,x,y\na.png,0,0\na.png,1,1\n", {"label_columns": ["x", "y"]}, r"a\.png \(no label, x\|y\)"),
        ("image,x,y\na.png,0,-1\na.png,0,-1\n", {"label_columns": ["x", "y"]}, r"Several rows have the same image: "),
        ("image,labels\na.png,x|y\na.png,y|x\n", {}, r"Several rows have the same image: "),
    ],
)  # fmt: skip
def test_several_rows_of_one_image(tmp_path, text, options, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path, text, **options)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("label", "The column 'label' is empty in row 2"),
        ("image", "The column 'image' is empty in row 2"),
        ("sample_id", "The column 'sample_id' is empty in row 2"),
        ("patient_id", None),
        ("split", None),
    ],
)
def test_nan_in_a_manifest(tmp_path, suffix, column, message):
    frame = pd.DataFrame(
        {"sample_id": [1, 2], "image": ["a.png", "b.png"], "label": [0, 1], "patient_id": [5, 6], "split": "test"}
    ).astype({column: object})
    frame.loc[1, column] = np.nan
    if suffix == "csv":
        frame.to_csv(tmp_path / "samples.csv", index=False, na_rep="NaN")
    else:
        frame.to_parquet(tmp_path / "samples.parquet")
    path = tmp_path / f"samples.{suffix}"
    if message:
        with pytest.raises(InputError, match=message):
            load_table(path)
        return
    data = load_table(path)
    assert data.samples["label"].tolist() == ["0", "1"]
    if column == "patient_id":
        assert data.samples["patient_id"].tolist() == ["5", "2"]
        assert data.notes == ("1 images without patient_id count as patients of their own.",)
    else:
        assert data.samples["split"].isna().tolist() == [False, True]


def test_rows_with_more_cells_than_the_header(tmp_path):
    (tmp_path / "samples.csv").write_text("image,label\na.png,x,1\nb.png,y,2\n")
    with pytest.raises(InputError, match="the rows have more cells than the header. Put cells that hold commas in qu"):
        load_table(tmp_path / "samples.csv")
