"""Regions of several annotations, readers and labels; not annotated is never the same as annotated and empty."""

import numpy as np
import pytest
from PIL import Image

from heatproof.datasets.table import load_table
from heatproof.errors import ImageError, InputError

SIZE = (2, 4)


def cells(*columns):
    """A 2 x 4 region that covers these columns."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[:, list(columns)] = True
    return mask


def box(*columns):
    return ";".join(f"{x} 0 {x + 1} 2" for x in columns)


@pytest.fixture
def load(tmp_path):
    """A data set of four images with this region table."""

    def made(rows, header="sample_id,region,label,reader,kind,data", **options):
        (tmp_path / "samples.csv").write_text(
            "sample_id,image,Edema,Mass\na,a.png,1,0\nb,b.png,0,1\nc,c.png,1,1\nd,d.png,0,0\n"
        )
        (tmp_path / "regions.csv").write_text("\n".join([header, *rows]) + "\n")
        return load_table(
            tmp_path / "samples.csv", tmp_path / "regions.csv", label_columns=["Edema", "Mass"], **options
        )

    return made


def test_every_kind_in_one_table_is_united_for_one_reader(load, tmp_path):
    for name, column in (("m0", 0), ("m1", 1)):
        Image.fromarray(cells(column).astype(np.uint8) * 255).save(tmp_path / f"{name}.png")
    data = load(
        [
            "a,lesion,,r1,mask,m0.png",
            f"a,lesion,,r1,box,{box(1)}",
            "a,lesion,,r1,polygon,2 0 3 0 3 2 2 2",
            'b,lesion,,r1,rle,"{""size"": [2, 4], ""counts"": [6, 2]}"',
            'b,lesion,,r1,rle,"[2, 2, 4]"',
            'b,lesion,,r1,polygon,"[[0, 0, 1, 0, 1, 2, 0, 2]]"',
            "c,lesion,,r1,mask,m0.png; m1.png;",
        ]
    )
    assert data.regions["kind"].tolist() == ["mask", "box", "polygon", "rle", "rle", "polygon", "mask", "mask"]
    assert data.regions["data"].tolist()[-2:] == [str(tmp_path / "m0.png"), str(tmp_path / "m1.png")]
    np.testing.assert_array_equal(data.region("a", "lesion", SIZE), cells(0, 1, 2))
    np.testing.assert_array_equal(data.region("b", "lesion", SIZE), cells(0, 1, 3))
    np.testing.assert_array_equal(data.region("c", "lesion", SIZE), cells(0, 1))
    assert data.region("d", "lesion", SIZE) is None


@pytest.mark.parametrize(
    ("marks", "union", "intersection", "majority"),
    [
        ([("r1", (0, 1)), ("r2", (1, 2))], (0, 1, 2), (1,), (1,)),  # half is not a majority
        ([("r1", (0, 1)), ("r2", (1, 2)), ("r3", (1, 0))], (0, 1, 2), (1,), (0, 1)),
        ([("r1", (0,)), ("r2", ()), ("r3", (0,))], (0,), (), (0,)),  # an empty annotation is a vote against
        ([("r1", (0,)), ("r2", ())], (0,), (), ()),
        ([("r1", (0,)), ("r1", (1,)), ("r2", (1, 2))], (0, 1, 2), (1,), (1,)),  # rows of one reader are united first
        ([("", (0, 1)), ("", (2,)), ("r2", (1, 2))], (0, 1, 2), (1, 2), (1, 2)),  # without a name: one more reader
        ([("r1", (3,))], (3,), (3,), (3,)),
    ],
)
def test_readers(load, marks, union, intersection, majority):
    data = load([f"a,lesion,,{reader},box,{box(*columns)}" for reader, columns in marks])
    np.testing.assert_array_equal(data.region("a", "lesion", SIZE), cells(*union))
    for readers, columns in {"union": union, "intersection": intersection, "majority": majority}.items():
        np.testing.assert_array_equal(data.region("a", "lesion", SIZE, readers=readers), cells(*columns))
    assert data.region("b", "lesion", SIZE, readers="majority") is None


def test_an_unknown_word_for_readers(load):
    data = load([f"a,lesion,,,box,{box(0)}"])
    with pytest.raises(InputError, match="readers must be 'union' or 'intersection' or 'majority', got 'mean'"):
        data.region("a", "lesion", SIZE, readers="mean")


def test_a_region_a_label(load):
    data = load(
        [
            f"a,lesion,Edema,r1,box,{box(0)}",
            f"a,lesion,Mass,r1,box,{box(1)}",
            f"a,lesion,,r1,box,{box(3)}",  # holds for every label
            f"b,lesion,Mass,r1,box,{box(2)}",
            "c,lesion,Edema,r1,box,",
            f"d,lesion,,r1,box,{box(1)}",
        ]
    )
    expected = {
        ("a", None): (0, 1, 3), ("a", "Edema"): (0, 3), ("a", "Mass"): (1, 3),
        ("b", None): (2,), ("b", "Edema"): None, ("b", "Mass"): (2,),
        ("c", None): (), ("c", "Edema"): (), ("c", "Mass"): None,
        ("d", None): (1,), ("d", "Edema"): (1,), ("d", "Mass"): (1,),
    }  # fmt: skip
    for (sample, label), columns in expected.items():
        found = data.region(sample, "lesion", SIZE, label=label)
        assert data.has_region(sample, "lesion", label=label) == (columns is not None)
        if columns is None:
            assert found is None
        else:
            np.testing.assert_array_equal(found, cells(*columns))
    assert data.region("a", "lung", SIZE, label="Edema") is None


def test_readers_are_counted_among_those_who_annotated_the_label(load):
    rows = [f"a,lesion,Edema,r1,box,{box(0)}", f"a,lesion,Mass,r2,box,{box(1)}", f"a,lesion,Mass,r3,box,{box(1, 2)}"]
    data = load(rows)
    np.testing.assert_array_equal(data.region("a", "lesion", SIZE, label="Mass", readers="intersection"), cells(1))
    np.testing.assert_array_equal(data.region("a", "lesion", SIZE, label="Edema", readers="majority"), cells(0))


def test_empty_data_means_annotated_and_empty(load):
    for kind in ("box", "polygon", "rle"):
        data = load([f"a,lesion,,r1,{kind},"])
        np.testing.assert_array_equal(data.region("a", "lesion", SIZE), cells())
        assert data.has_region("a", "lesion")
        assert not data.has_region("b", "lesion")


def test_regions_in_columns_of_one_label_and_reader(tmp_path):
    Image.fromarray(cells(3).astype(np.uint8) * 255).save(tmp_path / "m.png")
    (tmp_path / "samples.csv").write_text(
        "image,Edema,Mass,edema_1,edema_2,mass,runs\n"
        'a.png,1,1,0 0 2 2,1 0 3 2,m.png,"[0, 2, 6]"\nb.png,0,1,,,m.png;m.png,\nc.png,0,0,NA,,,\n'
    )
    columns = [
        {"region": "lesion", "kind": "box", "column": "edema_1", "label": "Edema", "reader": "r1"},
        {"region": "lesion", "kind": "box", "column": "edema_2", "label": "Edema", "reader": "r2"},
        {"region": "lesion", "kind": "mask", "column": "mass", "label": "Mass", "reader": None},
        {"region": "runs", "kind": "rle", "column": "runs"},
    ]
    data = load_table(tmp_path / "samples.csv", region_columns=columns, label_columns=["Edema", "Mass"])
    np.testing.assert_array_equal(data.region("a", "lesion", SIZE, label="Edema", readers="intersection"), cells(1))
    np.testing.assert_array_equal(data.region("a", "lesion", SIZE, label="Mass"), cells(3))
    np.testing.assert_array_equal(data.region("b", "lesion", SIZE, label="Mass"), cells(3))
    np.testing.assert_array_equal(data.region("a", "runs", SIZE), cells(0))
    assert data.region("b", "lesion", SIZE, label="Edema") is None
    assert data.region("c", "lesion", SIZE) is None
    assert not {"edema_1", "mass", "runs"} & set(data.samples)


def test_labels_that_are_no_class_are_noted(load):
    rows = [f"a,lesion,Oedema,,box,{box(0)}", f"b,lesion,Oedema,,box,{box(0)}", f"b,lesion,Mass,,box,{box(1)}"]
    assert load(rows).notes[-1] == "Regions whose label is no class belong to none of them: Oedema (2)."


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,lesion,,,polygon,1 1 2 2", "at least three corners"),
        ('a,lesion,,,rle,"[4, 4, 4]"', "add up to 12 pixels, the image has 2 x 4 = 8"),
        ("a,lesion,,,box,5 0 6 2", "The box 5 0 6 2 lies outside its image of 2 x 4 pixels"),
        ("a,lesion,,,polygon,5 0 6 0 6 2", "covers nothing of its image of 2 x 4 pixels"),
        ("a,lesion,,,mask,; ;", "cannot be opened|no such file"),
        ("a,lesion,,,mask,nowhere.png", "nowhere.png: no such file"),
    ],
)
def test_a_bad_annotation_is_an_error_where_it_is_read(load, row, message):
    with pytest.raises(ImageError, match=message):
        load([f"a,lesion,,,box,{box(0)}", row]).region("a", "lesion", SIZE)


def test_a_region_column_needs_its_keys(tmp_path):
    (tmp_path / "samples.csv").write_text("image,label,m\na.png,x,m.png\n")
    for entry, message in (
        ({"region": "r", "kind": "mask", "column": "m", "raeder": "1"}, "Did you mean 'reader'"),
        ({"region": None, "kind": "mask", "column": "m"}, "needs the key 'region'"),
    ):
        with pytest.raises(InputError, match=message):
            load_table(tmp_path / "samples.csv", region_columns=[entry])
