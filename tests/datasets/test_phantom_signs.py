"""Labels, letters and devices of the phantom: as frequent, as correlated and as placed as they are said to be."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage, stats

from heatproof.datasets.check import check_dataset
from heatproof.datasets.phantom import Phantom, Scanners, Shortcut, dataset, make_phantom
from heatproof.datasets.phantom.film import LETTERS, SCANNERS, Scanner, burnt_in, glyphs, scanned
from heatproof.datasets.phantom.labels import COMORBIDITY, PERSISTENCE, draw_count, draw_labels, draw_scanner
from heatproof.datasets.phantom.options import CLASSES
from heatproof.datasets.phantom.radiograph import draw_radiograph
from heatproof.datasets.phantom.randomness import generator
from heatproof.errors import InputError
from heatproof.images.read import read_image

FINDINGS = list(CLASSES["multilabel"])
NONE = dict.fromkeys(FINDINGS, 0.0)


def near(found, expected, count):
    """Within four standard errors of a proportion of `count` independent draws."""
    return abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / count) + 1e-12


def jointly(rates, correlation):
    """P(both) of two findings whose normal numbers have this correlation."""
    upper = stats.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]])
    return upper.cdf(stats.norm.ppf(rates))


# --- labels -----------------------------------------------------------------------------------------------------------


def test_findings_are_as_frequent_and_as_correlated_as_documented():
    rates, patients = {"nodule": 0.4, "effusion": 0.3}, 2500
    drawn = [[draw_labels(rates, 0, patient, number) for number in (0, 3)] for patient in range(patients)]
    shown = {
        (name, i): np.array([name in labels[i] for labels in drawn]) for name in ("nodule", "effusion") for i in (0, 1)
    }
    for (name, _), images in shown.items():
        assert near(images.mean(), rates[name], patients)
    same = (shown["nodule", 0] & shown["nodule", 1]).mean()
    assert near(same, jointly([0.4, 0.4], COMORBIDITY + PERSISTENCE), patients)
    for i in (0, 1):  # of one image, and of two images of a patient
        both = (shown["nodule", 0] & shown["effusion", i]).mean()
        assert near(both, jointly([0.4, 0.3], COMORBIDITY), patients)
        assert both > 0.4 * 0.3 + 0.015
    assert same > 0.4 * 0.4 + 0.08


def test_a_finding_is_drawn_whatever_the_other_classes():
    for patient in range(30):
        few, all_of_them = (draw_labels(dict.fromkeys(names, 0.5), 3, patient, 1) for names in (["nodule"], FINDINGS))
        assert ("nodule" in few) == ("nodule" in all_of_them)


def test_prevalence_0_and_1():
    assert draw_labels(NONE | {"opacity": 1.0}, 0, 0, 0) == ["opacity"]


def test_the_number_of_images_varies_about_its_mean():
    counts = np.array([draw_count(3, 0, patient) for patient in range(3000)])
    assert counts.min() == 1
    assert abs(counts.mean() - 3) < 4 * np.sqrt(6 / 3000)  # a geometric number of mean m has variance m (m - 1)
    assert near((counts == 1).mean(), 1 / 3, 3000)


def test_several_labels_in_the_tables(tmp_path):
    options = {"patients": 40, "images_per_patient": 3, "varied": True, "size": 48, "task": "multilabel"}
    data = make_phantom(tmp_path / "x", **options, prevalence={"nodule": 0.6})
    samples = data.samples
    assert (data.task, data.classes, data.notes) == ("multilabel", tuple(FINDINGS), ())
    counts = samples["patient_id"].value_counts()
    assert counts.to_dict() == {f"p{i:05d}": draw_count(3, 0, i) for i in range(40)}
    assert counts.nunique() > 3
    np.testing.assert_array_equal(data.targets(), samples[[f"label_{name}" for name in FINDINGS]])
    for row in samples.itertuples():
        for name in FINDINGS:
            lesion = data.region(row.sample_id, "lesion", (48, 48), label=name)
            assert lesion is not None  # also where the finding is absent: known to be empty
            assert lesion.any() == (name in row.labels.split("|"))
        assert data.region(row.sample_id, "lung", (48, 48), label="nodule").any()
    union = data.region(samples["sample_id"][0], "lesion", (48, 48))
    each = [data.region(samples["sample_id"][0], "lesion", (48, 48), label=name) for name in FINDINGS]
    np.testing.assert_array_equal(union, np.logical_or.reduce(each))
    assert (samples.groupby("patient_id")["split"].nunique() == 1).all()
    assert set(samples["split"]) == {"train", "val", "test"}
    assert near((samples["label_nodule"] == 1).mean(), 0.6, len(samples) / 3)
    assert check_dataset(data).ok
    written = pd.read_csv(tmp_path / "x" / "samples.csv")
    assert set(np.unique(written[FINDINGS])) == {0, 1}


def test_uncertain_cells_hide_the_label_and_nothing_else(tmp_path):
    options = {"patients": 60, "size": 32, "task": "multilabel"}
    sure = make_phantom(tmp_path / "sure", **options)
    unsure = make_phantom(tmp_path / "unsure", **options, uncertain=0.3)
    before, after = (pd.read_csv(tmp_path / name / "samples.csv")[FINDINGS] for name in ("sure", "unsure"))
    hidden = (after == -1).to_numpy()
    assert near(hidden.mean(), 0.3, hidden.size)
    assert len(np.unique(hidden.sum(axis=1))) > 2  # each cell for itself
    np.testing.assert_array_equal(after.to_numpy()[~hidden], before.to_numpy()[~hidden])
    assert before.to_numpy()[hidden].mean() > 0.1  # both kinds are hidden
    np.testing.assert_array_equal(np.isnan(unsure.targets()), hidden)
    images = (data.samples["image"].map(lambda path: read_image(path).pixels.sum()).sum() for data in (sure, unsure))
    assert next(images) == next(images)


def test_any_finding_can_be_a_single_label(tmp_path):
    data = make_phantom(
        tmp_path / "x", patients=8, size=48, classes=["effusion", "cardiomegaly", "pneumothorax", "normal"]
    )
    shown = [data.region(sample, "lesion", (48, 48)).any() for sample in data.samples["sample_id"]]
    assert shown == [label != "normal" for label in data.samples["label"]]


def test_without_a_finding_the_film_is_the_same_but_for_it(tmp_path):
    options = {"patients": 6, "size": 64, "task": "multilabel", "classes": ["nodule"]}
    ill, well = (make_phantom(tmp_path / str(rate), **options, prevalence={"nodule": rate}) for rate in (1, 0))
    for i, sample in enumerate(ill.samples["sample_id"]):
        change = np.abs(read_image(ill.samples["image"][i]).pixels - read_image(well.samples["image"][i]).pixels)
        around = ndimage.binary_dilation(ill.region(sample, "lesion", (64, 64), label="nodule"), iterations=5)
        assert change[around].max() > 0.1
        assert change[~around].max() < 0.5 / 255 + 0.005


def test_splits_have_their_share_of_a_finding(tmp_path):
    options = {"patients": 100, "size": 16, "task": "multilabel", "classes": ["nodule"], "prevalence": {"nodule": 0.1}}
    samples = make_phantom(tmp_path / "x", **options).samples
    ill = samples["label_nodule"] == 1
    assert ill.sum() >= 5
    for split, part in (("train", 0.7), ("test", 0.2)):
        assert abs((ill & (samples["split"] == split)).sum() - part * ill.sum()) < 1


# --- letters ----------------------------------------------------------------------------------------------------------


def test_letters_are_all_different_and_fill_their_boxes():
    pictures = {glyphs(letter).tobytes() for letter in LETTERS}
    assert len(pictures) == len(LETTERS)
    for letter in LETTERS:
        assert glyphs(letter).shape == (7, 5)
        assert glyphs(letter)[0].any() or glyphs(letter)[:, 0].all()  # L hangs on its upright
        assert glyphs(letter)[-1].any()
    np.testing.assert_array_equal(glyphs("LT")[:, :5], glyphs("L"))
    np.testing.assert_array_equal(glyphs("LT")[:, 6:], glyphs("T"))
    assert not glyphs("LT")[:, 5].any()


@pytest.mark.parametrize(("size", "pixel"), [(64, 1), (112, 1), (224, 2), (512, 4)])
def test_the_box_lies_close_about_the_letters(size, pixel):
    for seed in range(10):
        film, (x0, y0, x1, y1) = burnt_in(np.zeros((size, size)), "APE", np.random.default_rng(seed))
        rows, columns = np.flatnonzero(film.any(axis=1)), np.flatnonzero(film.any(axis=0))
        assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == (x0, y0, x1, y1)
        assert (x1 - x0, y1 - y0) == (17 * pixel, 7 * pixel)
        assert y1 < size / 4
        assert film.max() >= 0.85


def test_the_region_is_where_the_letters_change_the_picture(tmp_path):
    bare, marked = (
        make_phantom(tmp_path / str(rate), patients=12, size=64, shortcut=Shortcut("opacity", 0.0, rate))
        for rate in (0.0, 1.0)
    )
    sides = set()
    for i, sample in enumerate(bare.samples["sample_id"]):
        before, after = (read_image(data.samples["image"][i]).pixels for data in (bare, marked))
        box = marked.region(sample, "marker", (64, 64))
        assert not bare.region(sample, "marker", (64, 64)).any()
        np.testing.assert_array_equal(before[~box], after[~box])
        assert (after - before)[box].max() > 0.2
        sides.add(bool(np.argwhere(box)[:, 1].mean() > 32))
    assert sides == {False, True}
    assert (set(bare.samples["marker"]), set(marked.samples["marker"])) == ({0}, {1})


def test_letters_stand_alone_and_are_drawn_for_each_image(tmp_path, monkeypatch):
    films = []

    def watched(*arguments, **options):
        films.append(options["side_marker"])
        return draw_radiograph(*arguments, **options)

    monkeypatch.setattr(dataset, "draw_radiograph", watched)
    several = {"patients": 8, "images_per_patient": 4, "size": 32}
    samples = make_phantom(tmp_path / "x", **several, shortcut=Shortcut("opacity", 0.0, text="L")).samples
    assert samples.groupby("patient_id")["marker"].nunique().max() == 2
    make_phantom(tmp_path / "y", patients=1, size=32)
    assert films == [False] * 32 + [True]


@pytest.mark.parametrize(("strength", "with_it", "without"), [(0.0, 0.4, 0.4), (0.5, 0.7, 0.2), (1.0, 1.0, 0.0)])
def test_letters_come_with_the_label_as_often_as_said(tmp_path, strength, with_it, without):
    """P(letters | label) = rate + strength (1 - rate), P(letters | not label) = rate (1 - strength)."""
    options = {"patients": 400, "size": 16, "task": "multilabel", "prevalence": {"nodule": 0.4}, "classes": ["nodule"]}
    samples = make_phantom(tmp_path / "x", **options, shortcut=Shortcut("nodule", strength, 0.4, "L")).samples
    ill = samples["label_nodule"] == 1
    assert near(samples["marker"][ill].mean(), with_it, ill.sum())
    assert near(samples["marker"][~ill].mean(), without, (~ill).sum())
    # where the letters are as frequent as the label, strength is their correlation
    assert abs(np.corrcoef(ill, samples["marker"])[0, 1] - strength) < 4 / np.sqrt(400)


def test_a_shortcut_shows_in_its_corner_alone(tmp_path):
    """A linear model of the upper corners knows the label where the letters give it away, and nothing otherwise."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    def auroc(strength):
        data = make_phantom(
            tmp_path / str(strength), patients=250, size=64, classes=["normal", "effusion"],
            shortcut=Shortcut("effusion", strength),
        )  # fmt: skip
        strip = np.stack([read_image(path).pixels[:12] for path in data.samples["image"]])
        bright = (strip - ndimage.gaussian_filter(strip, (0, 2, 2))).reshape(len(strip), 2, 6, 8, 8).max(axis=(2, 4))
        ill = data.samples["label"] == "effusion"
        train, test = (data.samples["split"] == split for split in ("train", "test"))
        model = LogisticRegression(max_iter=1000).fit(bright.reshape(len(strip), -1)[train], ill[train])
        return roc_auc_score(ill[test], model.decision_function(bright.reshape(len(strip), -1)[test]))

    assert auroc(1.0) > 0.95
    assert abs(auroc(0.0) - 0.5) < 0.33  # 50 test images: four standard errors


# --- devices ----------------------------------------------------------------------------------------------------------


def test_tone_follows_contrast_then_gamma():
    film = np.linspace(0, 1, 64 * 64).reshape(64, 64)
    shown, field = scanned(film, Scanner("X", contrast=0.8, gamma=1.5), np.random.default_rng(0))
    np.testing.assert_allclose(shown, (0.8 * film + 0.1) ** 1.5, atol=1e-12)
    assert field.all()
    np.testing.assert_allclose(scanned(film, SCANNERS[0], np.random.default_rng(0))[0], film, atol=1e-12)


def test_blur_and_noise_are_as_wide_as_said():
    point = np.zeros((65, 65))
    point[32, 32] = 1
    spread, _ = scanned(point, Scanner("X", blur=0.08), np.random.default_rng(0))
    x = np.arange(65) - 32
    assert np.sqrt((spread * x**2).sum() / spread.sum()) == pytest.approx(0.08 * 65 / 2, rel=0.02)
    noisy, _ = scanned(np.full((256, 256), 0.5), Scanner("X", noise=0.02), np.random.default_rng(0))
    assert noisy.std() == pytest.approx(0.02, rel=0.05)


def test_beyond_the_border_the_picture_is_black_and_nothing_is_annotated(tmp_path):
    film, field = scanned(np.full((100, 100), 0.7), Scanner("X", border=0.2), np.random.default_rng(0))
    np.testing.assert_array_equal(film > 0, field)
    inside = np.argwhere(field)
    assert (inside.max(axis=0) - inside.min(axis=0) + 1).prod() == field.sum()  # a rectangle
    edges = [*inside.min(axis=0), *(99 - inside.max(axis=0))]
    assert all(2 <= edge <= 10 for edge in edges)
    assert len(set(edges)) > 1
    data = make_phantom(tmp_path / "x", patients=60, size=48, scanners=Scanners(2))
    for row in data.samples[data.samples["scanner"] == "B"].itertuples():
        lung = data.region(row.sample_id, "lung", (48, 48))
        assert read_image(row.image).pixels[lung].min() > 0  # the border is exactly black


@pytest.mark.parametrize(
    ("scanners", "with_it", "without"),
    [
        (Scanners(2), (0.5, 0.5), (0.5, 0.5)),
        (Scanners(4, "nodule", 0.2), (0.2, 0.2, 0.2, 0.4), (4 / 15, 4 / 15, 4 / 15, 0.2)),
        (Scanners(2, "nodule", 1.0), (0.0, 1.0), (1.0, 0.0)),
    ],
)
def test_devices_come_with_the_label_as_often_as_said(scanners, with_it, without):
    random = np.random.default_rng(0)
    for labels, expected in ((["nodule"], with_it), (["opacity"], without)):
        drawn = np.bincount([draw_scanner(scanners, labels, random) for _ in range(3000)], minlength=scanners.count)
        assert all(near(found, rate, 3000) for found, rate in zip(drawn / 3000, expected, strict=True))


def test_devices_differ_and_are_named(tmp_path):
    data = make_phantom(tmp_path / "x", patients=48, size=64, scanners=Scanners(4, "nodule", 0.5))
    assert set(data.samples["scanner"]) == {"A", "B", "C", "D"}
    pixels = np.stack([read_image(path).pixels[20:40, 16:48] for path in data.samples["image"]])
    sharpness = np.abs(np.diff(pixels, axis=2)).mean(axis=(1, 2))
    spread = pd.Series(sharpness).groupby(data.samples["scanner"]).median()
    assert spread["D"] < spread["A"] < spread["C"]


# --- random numbers ---------------------------------------------------------------------------------------------------


def test_no_two_things_share_their_random_numbers():
    keys = [(0, 5), (0, 5, 0), (0, 5, 1), (5, 0), (0, 0, 5)]
    streams = [generator(purpose, *key) for purpose in ("film", "nodule", "lasting nodule") for key in keys]
    streams += [np.random.default_rng([0, 5])]  # of the anatomy
    first = [stream.random() for stream in streams]
    assert len(set(first)) == len(first)


# --- all together -----------------------------------------------------------------------------------------------------

EVERYTHING = {
    "size": 48, "task": "multilabel", "uncertain": 0.1, "conspicuity": 0.7,
    "shortcut": Shortcut("nodule", 0.5, text="AP"), "scanners": Scanners(3, "opacity", 0.5), "seed": 7,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["png", "dicom"])
def test_an_image_does_not_depend_on_how_many_are_made(tmp_path, kind):
    for name, patients, images in (("few", 2, 2), ("many", 6, 4)):
        make_phantom(tmp_path / name, **EVERYTHING, patients=patients, images_per_patient=images, format=kind)
    pictures = [path.relative_to(tmp_path / "few") for path in (tmp_path / "few").glob("*/*")]
    assert len(pictures) > 8
    for picture in pictures:
        assert (tmp_path / "few" / picture).read_bytes() == (tmp_path / "many" / picture).read_bytes()
    few, many = (pd.read_csv(tmp_path / name / "samples.csv").set_index("sample_id") for name in ("few", "many"))
    pd.testing.assert_frame_equal(few.drop(columns="split"), many.drop(columns="split").loc[few.index])


def test_each_option_changes_the_pictures_or_the_tables(tmp_path):
    def digest(name, **options):
        make_phantom(tmp_path / name, **{"patients": 8, "size": 48, "task": "multilabel"} | options)
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        return {path.relative_to(tmp_path / name): path.read_bytes() for path in files}

    changes = {
        "varied": {"images_per_patient": 2, "varied": True}, "fixed": {"images_per_patient": 2},
        "prevalence": {"prevalence": {"nodule": 0.9}}, "uncertain": {"uncertain": 0.5},
        "conspicuity": {"conspicuity": 0.5}, "classes": {"classes": FINDINGS[::-1]}, "bits": {"bits": 16},
        "format": {"format": "dicom"}, "deep": {"format": "dicom", "bits": 16}, "seed": {"seed": 1},
        "scanners": {"scanners": Scanners()}, "biased": {"scanners": Scanners(2, "nodule", 0.9)},
        "letters": {"shortcut": Shortcut("nodule")}, "other": {"shortcut": Shortcut("effusion")},
        "text": {"shortcut": Shortcut("nodule", text="AP")}, "rate": {"shortcut": Shortcut("nodule", 0.0, 0.9)},
        "weak": {"shortcut": Shortcut("nodule", 0.5)}, "plain": {},
    }  # fmt: skip
    made = {name: digest(name, **options) for name, options in changes.items()}
    same = [(a, b) for a, b in combinations(made, 2) if made[a] == made[b]]
    assert same == []


def test_a_patient_keeps_the_anatomy(tmp_path):
    """Two films of one patient share more of their lungs than films of two patients."""
    data = make_phantom(tmp_path / "x", patients=30, images_per_patient=2, size=64, classes=["normal"])
    lungs = np.stack([data.region(i, "lung", (64, 64)) for i in data.samples["sample_id"]])
    asymmetry = np.log(lungs[:, :, 32:].sum(axis=(1, 2)) / lungs[:, :, :32].sum(axis=(1, 2)))  # whatever the pose
    assert np.corrcoef(asymmetry.reshape(30, 2).T)[0, 1] > 0.4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "several"}, "task must be 'multiclass' or 'multilabel', got 'several'"),
        ({"format": "tiff"}, "format must be 'png' or 'dicom', got 'tiff'"),
        ({"format": "dicom", "bits": 8}, "bits of a dicom file must be 12 or 16, got 8"),
        ({"varied": True}, "varied needs a mean of at least 2 images_per_patient"),
        ({"seed": -1}, "seed must be a number, at least 0"),
        ({"conspicuity": -1}, "conspicuity must be a number, from 0 to 10"),
        ({"uncertain": 0.1}, "belong to task 'multilabel'"),
        ({"prevalence": {"nodule": 0.1}}, "belong to task 'multilabel'"),
        ({"task": "multilabel", "uncertain": 2}, "uncertain must be a number, from 0 to 1, got 2"),
        ({"task": "multilabel", "prevalence": {"nodul": 0.1}}, "'nodul' is not one of the classes. Did you mean 'nodule'"),
        ({"task": "multilabel", "prevalence": {"nodule": 1.1}}, "prevalence of nodule must be a number, from 0 to 1"),
        ({"task": "multilabel", "classes": ["normal"]}, "Unknown class 'normal' for task 'multilabel'"),
        ({"classes": ["normal"], "shortcut": Shortcut("opacity")}, "shortcut: 'opacity' is not one of the classes"),
        ({"scanners": Scanners(2, "effusion", 0.5)}, "scanners: 'effusion' is not one of the classes"),
        ({"size": 40, "shortcut": Shortcut("opacity", text="PORT")}, "'PORT' fills more than half of 40 pixels"),
    ],
)  # fmt: skip
def test_refused(options, message):
    with pytest.raises(InputError) as caught:
        Phantom(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shortcut("x", 1.5), "shortcut: strength must be a number, from 0 to 1, got 1.5"),
        (lambda: Shortcut("x", rate=-1), "shortcut: rate must be a number, from 0 to 1"),
        (lambda: Shortcut("x", text="SUPINE"), "is written with the letters A B E L O P R T, got 'SUPINE'"),
        (lambda: Shortcut("x", text=""), "is written with the letters"),
        (lambda: Scanners(1), "Leave scanners out for one device"),
        (lambda: Scanners(5), "scanners: count must be a whole number, from 1 to 4, got 5"),
        (lambda: Scanners(2, strength=0.5), "needs the label that it is about"),
        (lambda: Scanners(2, "x", 2), "scanners: strength must be a number, from 0 to 1"),
    ],
)
def test_signs_refused(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert message in str(caught.value)
