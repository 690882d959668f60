"""The phantom: what the masks say is what was drawn, the same every time, and hard only for linear models."""

import hashlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from heatproof.datasets.check import check_dataset
from heatproof.datasets.phantom import make_phantom
from heatproof.datasets.phantom.anatomy import draw_anatomy
from heatproof.datasets.phantom.findings import DRAWN
from heatproof.datasets.phantom.radiograph import draw_radiograph
from heatproof.errors import InputError
from heatproof.images.read import read_image


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def drawn(findings, seed, size=64, **options):
    """A film; each finding has random numbers of its own, so that the same film without it can be drawn."""
    own = {name: np.random.default_rng([seed, 2 + list(DRAWN).index(name)]) for name in findings}
    anatomy = draw_anatomy(np.random.default_rng(seed))
    return draw_radiograph(anatomy, own, size, np.random.default_rng([seed, 1]), **options)


@pytest.mark.parametrize(
    ("options", "digest"),
    [
        ({"patients": 3, "images_per_patient": 2, "size": 64}, "46bc77d838df460aeec5f47ec4ca9290"),
        (
            {"patients": 3, "size": 96, "bits": 16, "seed": 5, "classes": ["nodule", "opacity", "normal"]},
            "56f8faad43f5a4506975d5263a170535",
        ),
    ],
)
def test_the_pictures_that_demonstrations_rely_on_stay_as_they_are(tmp_path, options, digest):
    make_phantom(tmp_path / "x", **options)
    found = hashlib.sha256()
    for path in sorted((tmp_path / "x").rglob("*.png")):
        found.update(path.name.encode())
        with Image.open(path) as picture:
            found.update(np.asarray(picture).astype("<u2").tobytes())
    assert found.hexdigest()[:32] == digest


@pytest.mark.parametrize(
    ("finding", "least", "beyond"), [("nodule", 0.2, 0.004), ("opacity", 0.1, 0.004), ("effusion", 0.15, 0.1)]
)
def test_the_lesion_is_where_the_picture_changes(finding, least, beyond):
    """The same film without its finding differs inside the outline, and nowhere `beyond` its soft edge.

    Fluid also fills the recess where less than a quarter of lung shines through the heart's soft border.
    """
    for seed in range(20):
        film, without = drawn([finding], seed, 128), drawn([], seed, 128)
        lesion, change = film.lesions[finding], np.abs(film.pixels - without.pixels)
        assert lesion.any()
        assert change[lesion].mean() > least
        assert (change[lesion] > 0.02).mean() > 0.7
        assert change[~ndimage.binary_dilation(lesion, iterations=8)].max() < beyond
        assert change[~lesion].mean() < 0.04 * change[lesion].mean()


def test_a_pneumothorax_is_darker_than_lung_and_ends_at_a_bright_line():
    for seed in range(20):
        film, without = drawn(["pneumothorax"], seed, 128), drawn([], seed, 128)
        lesion, change = film.lesions["pneumothorax"], film.pixels - without.pixels
        inner = ndimage.binary_erosion(lesion, iterations=2)
        assert inner.sum() > 50
        assert change[inner].mean() < -0.05
        assert (change[inner] < 0).mean() > 0.85
        assert np.abs(change[~ndimage.binary_dilation(lesion, iterations=6)]).max() < 0.02
        edge = ndimage.binary_dilation(lesion, iterations=2) & ~lesion & film.lungs
        assert change[edge].max() > 0.03
        columns = np.flatnonzero(lesion.any(axis=0))
        assert (columns < 64).all() or (columns >= 64 - 8).all() or (columns < 64 + 8).all()  # of one lung


def test_a_large_heart_is_outlined_and_wider_than_half_the_chest():
    for seed in range(20):
        film, without = drawn(["cardiomegaly"], seed, 128), drawn([], seed, 128)
        silhouette, change = film.lesions["cardiomegaly"], np.abs(film.pixels - without.pixels)
        widths = [np.ptp(np.flatnonzero(mask.any(axis=0))) for mask in (silhouette, without.lungs)]
        assert widths[0] / widths[1] > 0.52
        grown = without.lungs & ~film.lungs
        assert (silhouette | ~grown)[
            ndimage.binary_erosion(grown, iterations=2)
        ].all()  # where there was lung there is heart
        assert change[grown].mean() > 0.1
        assert change[~ndimage.binary_dilation(silhouette, iterations=10)].max() < 0.02


def test_findings_lie_where_they_do_in_people():
    for seed in range(20):
        film = drawn(DRAWN, seed)
        lungs, lesions = film.lungs, film.lesions
        for name in ("opacity", "pneumothorax"):
            assert not (lesions[name] & ~lungs).any()
        fluid = drawn(["effusion"], seed)
        for axis in (0, 1):  # of one lung's base, perhaps where the heart's border shines through
            span = [np.flatnonzero(mask.any(axis=axis)) for mask in (fluid.lesions["effusion"], fluid.lungs)]
            assert span[1][0] - 2 <= span[0][0]
            assert span[0][-1] <= span[1][-1] + 2
        lesion = fluid.lesions["effusion"]
        assert (lesion & fluid.lungs).sum() > 0.5 * lesion.sum()
        columns = np.flatnonzero(lesion.any(axis=0))
        surface = lesion.argmax(axis=0)[columns[np.argsort(np.abs(columns - 31.5))]]  # from the midline outwards
        assert (
            surface[-4:-1].mean() < surface[len(surface) // 3 : len(surface) // 2].mean() - 1
        )  # climbs the chest wall
        parts, count = ndimage.label(lesions["nodule"])
        assert all((lungs & (parts == part)).any() for part in range(1, count + 1))
        rows = np.flatnonzero(lungs.any(axis=1))
        heights = {name: np.argwhere(mask)[:, 0].mean() for name, mask in lesions.items()}
        assert heights["pneumothorax"] < rows.mean() < heights["effusion"]
        assert heights["cardiomegaly"] > rows.mean()
        assert not drawn([], seed).lesions


def test_findings_do_not_disturb_each_other():
    """A finding's outline is the same beside others, and all changes of density add up."""
    for seed in range(5):
        together = drawn(["nodule", "effusion"], seed)
        for name in ("nodule", "effusion"):
            np.testing.assert_array_equal(together.lesions[name], drawn([name], seed).lesions[name])
        nothing, alone = drawn([], seed).pixels, drawn(["effusion"], seed).pixels
        apart = ndimage.binary_dilation(together.lesions["nodule"], iterations=6)
        np.testing.assert_allclose(together.pixels[~apart], alone[~apart], atol=0.004)
        assert np.abs(alone - nothing).max() > 0.1


def test_conspicuity_scales_what_a_finding_adds():
    plain, subtle, none = (drawn(["nodule"], 3, conspicuity=factor) for factor in (1.0, 0.2, 0.0))
    np.testing.assert_array_equal(none.pixels, drawn([], 3).pixels)
    lesion = plain.lesions["nodule"]
    np.testing.assert_array_equal(lesion, none.lesions["nodule"])
    added = [(film.pixels - none.pixels)[lesion].mean() for film in (plain, subtle)]
    assert 0.15 < added[1] / added[0] < 0.4  # a fifth, more where the full one is burnt out


def test_lungs_are_dark_and_the_spine_is_bright():
    for seed in range(10):
        film = drawn([], seed)
        spine = film.pixels[10:40, 31:33].mean()
        assert film.pixels[film.lungs].mean() < spine - 0.2
        assert 0.15 < film.lungs.mean() < 0.45
        assert film.pixels[:4, :4].mean() < spine - 0.3  # air in the corner, or a marker at most at one side


def test_the_same_seed_gives_the_same_files(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_phantom(tmp_path / name, patients=4, images_per_patient=2, size=32, seed=seed)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a")["images/p00000_0.png"] != files(tmp_path / "c")["images/p00000_0.png"]


def test_an_image_does_not_depend_on_how_many_are_made(tmp_path):
    make_phantom(tmp_path / "few", patients=3, images_per_patient=1, size=32)
    make_phantom(tmp_path / "many", patients=7, images_per_patient=3, size=32)
    few, many = files(tmp_path / "few"), files(tmp_path / "many")
    pictures = [name for name in few if name.endswith(".png")]
    assert len(pictures) > 6
    assert all(few[name] == many[name] for name in pictures)


def test_tables(tmp_path):
    data = make_phantom(tmp_path / "x", patients=30, images_per_patient=2, size=32, classes=["nodule", "normal"])
    samples = data.samples
    assert (len(data), data.classes, data.name, data.notes) == (60, ("nodule", "normal"), "phantom", ())
    assert samples["patient_id"].value_counts().eq(2).all()
    first = samples[samples["sample_id"].str.endswith("_0")]
    assert first["label"].tolist() == ["nodule", "normal"] * 15
    assert 1 <= (samples["label"] != samples["patient_id"].map(first.set_index("patient_id")["label"])).sum() <= 12
    assert (samples.groupby("patient_id")["split"].nunique() == 1).all()
    assert samples["split"].value_counts().to_dict() == {"train": 42, "test": 12, "val": 6}
    for row in samples.itertuples():
        lesion = data.region(row.sample_id, "lesion", (32, 32))
        assert lesion is not None  # of a normal image too, where it is known to be empty
        assert lesion.any() == (row.label == "nodule")
        assert data.region(row.sample_id, "lung", (32, 32)).any()
    check = check_dataset(data)
    assert check.ok
    assert check.regions.loc["lesion", "empty"] == (samples["label"] == "normal").sum()
    table = pd.read_csv(tmp_path / "x" / "samples.csv")
    assert table["image"].str.startswith("images/").all()  # the folder can be moved


def test_16_bits_are_the_same_picture_in_finer_steps(tmp_path):
    fine = make_phantom(tmp_path / "16", patients=2, size=48, bits=16)
    coarse = make_phantom(tmp_path / "8", patients=2, size=48, bits=8)
    for a, b in zip(fine.samples["image"], coarse.samples["image"], strict=True):
        np.testing.assert_allclose(read_image(a).pixels, read_image(b).pixels, atol=0.5 / 255 + 1e-4)
        assert (read_image(a).bits, read_image(b).bits) == (16, 8)
        with Image.open(a) as picture:
            assert len(np.unique(picture)) > 400


def test_hard_for_pixels_and_easy_for_texture_and_brightness(tmp_path):
    """A linear model of 16 x 16 pixels stays below 0.8; two local features of the lungs nearly solve it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = make_phantom(tmp_path / "x", patients=250, images_per_patient=2, size=64)
    pixels = np.stack([read_image(path).pixels for path in data.samples["image"]])
    lungs = np.stack([data.region(i, "lung", (64, 64)) for i in data.samples["sample_id"]])
    coarse = pixels.reshape(-1, 16, 4, 16, 4).mean(axis=(2, 4)).reshape(len(pixels), -1)
    grain = pixels - ndimage.gaussian_filter(pixels, (0, 1, 1))
    smooth = ndimage.gaussian_filter(pixels, (0, 1.5, 1.5))
    local = [
        (np.log(g[m].std()), np.percentile(s[m], 98) - np.median(s[m]))
        for g, s, m in zip(grain, smooth, lungs, strict=True)
    ]
    train, test = (data.samples["split"] == split for split in ("train", "test"))

    def auroc(features):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        found = model.fit(features[train], data.samples["label"][train]).predict_proba(features[test])
        return roc_auc_score(data.samples["label"][test], found, multi_class="ovr")

    assert auroc(coarse) < 0.8
    assert auroc(np.array(local)) > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patients": 0}, "patients must be a whole number, at least 1"),
        ({"images_per_patient": 0}, "images_per_patient must be a whole number, at least 1"),
        ({"size": 8}, "size must be at least 16"),
        ({"bits": 12}, "bits of a png file must be 8 or 16, got 12"),
        ({"classes": ["normal", "opacty"]}, "Did you mean 'opacity'"),
        ({"classes": "normal"}, "distinct names"),
        ({"classes": ["normal", "normal"]}, "distinct names"),
    ],
)
def test_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        make_phantom(tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="not an empty folder"):
        make_phantom(tmp_path, patients=1, size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
