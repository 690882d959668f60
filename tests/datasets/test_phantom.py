"""The phantom: what the masks say is what was drawn, the same every time, and hard only for linear models."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from heatproof.datasets import radiograph
from heatproof.datasets.check import check_dataset
from heatproof.datasets.phantom import make_phantom
from heatproof.datasets.radiograph import draw_anatomy, draw_radiograph
from heatproof.errors import InputError
from heatproof.images.read import read_image


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def drawn(finding, seed, size=64):
    return draw_radiograph(draw_anatomy(np.random.default_rng(seed)), finding, size, np.random.default_rng([seed, 1]))


@pytest.mark.parametrize("finding", ["nodule", "opacity"])
def test_the_lesion_is_where_the_picture_changes(monkeypatch, finding):
    """The same film without its finding differs inside the outline, and nowhere beyond its soft edge."""
    real = radiograph._finding

    def invisible(*arguments):
        added, lesion = real(*arguments)
        return np.zeros_like(added), lesion

    for seed in range(20):
        monkeypatch.setattr(radiograph, "_finding", real)
        with_it = drawn(finding, seed, 128)
        monkeypatch.setattr(radiograph, "_finding", invisible)
        change = np.abs(with_it.pixels - drawn(finding, seed, 128).pixels)
        assert with_it.lesion.any()
        assert change[with_it.lesion].mean() > 0.08
        assert (change[with_it.lesion] > 0.02).mean() > 0.7
        assert change[~ndimage.binary_dilation(with_it.lesion, iterations=6)].max() < 0.004
        assert change[~with_it.lesion].mean() < 0.03 * change[with_it.lesion].mean()


def test_an_opacity_lies_in_the_lungs_and_a_nodule_begins_there():
    for seed in range(20):
        opacity, nodule = drawn("opacity", seed), drawn("nodule", seed)
        assert not (opacity.lesion & ~opacity.lungs).any()
        parts, count = ndimage.label(nodule.lesion)
        assert all((nodule.lungs & (parts == part)).any() for part in range(1, count + 1))
        assert not drawn("normal", seed).lesion.any()


def test_lungs_are_dark_and_the_spine_is_bright():
    for seed in range(10):
        film = drawn("normal", seed)
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
        ({"patients": 0}, "patients must be at least 1"),
        ({"images_per_patient": 0}, "images_per_patient must be at least 1"),
        ({"size": 8}, "size must be at least 16"),
        ({"bits": 12}, "bits must be 8 or 16"),
        ({"classes": ["normal", "opacty"]}, "Did you mean 'opacity'"),
        ({"classes": []}, "distinct names"),
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
