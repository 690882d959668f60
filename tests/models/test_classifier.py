"""The classifier's own arithmetic and checks."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from heatproof.errors import ImageError, InputError
from heatproof.images.read import read_image
from heatproof.models import Classifier, Preprocessing, as_classifier
from support.nets import TinyCNN

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.4]


def _classifier(**options):
    return Classifier(TinyCNN().eval(), **{"image_size": 8, "mean": MEAN, "std": STD, **options})


def test_a_grey_image_is_repeated_and_a_colour_image_becomes_luminance(tmp_path):
    random = np.random.default_rng(0)
    grey, colour = random.integers(0, 256, (8, 8)), random.integers(0, 256, (8, 8, 3))
    for name, pixels in (("grey.png", grey), ("colour.png", colour)):
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name)
    three = _classifier().read([tmp_path / "grey.png", tmp_path / "colour.png"]).double().numpy()
    one = _classifier(channels=1, mean=[0.4], std=[0.2]).read([tmp_path / "grey.png", tmp_path / "colour.png"]).numpy()
    for channel in range(3):
        for image, pixels in zip(three, (grey, colour[..., channel]), strict=True):
            np.testing.assert_allclose(image[channel], (pixels / 255 - MEAN[channel]) / STD[channel], atol=1e-6)
    luminance = (0.299 * colour[..., 0] + 0.587 * colour[..., 1] + 0.114 * colour[..., 2]) / 255  # ITU-R BT.601
    np.testing.assert_allclose(one[0, 0], (grey / 255 - 0.4) / 0.2, atol=1e-6)
    np.testing.assert_allclose(one[1, 0], (luminance - 0.4) / 0.2, atol=1e-6)


def test_the_geometry_comes_with_the_input(tmp_path):
    Image.fromarray(np.zeros((10, 20), dtype=np.uint8)).save(tmp_path / "a.png")
    prep = Preprocessing((8, 8), mean=(0.5,), std=(0.5,), channels=1, fit="crop", short_side=8)
    image, geometry = prep(read_image(tmp_path / "a.png"))
    assert image.shape == (1, 8, 8)
    assert geometry.points([[10, 5]]).tolist() == [[4, 4]]  # the centre of the stored image is that of the input


def test_normalisation_and_its_inverse():
    prep = _classifier().preprocessing
    intensities = torch.rand(2, 3, 4, 5)
    images = prep.normalize(intensities)
    for channel in range(3):
        torch.testing.assert_close(images[:, channel], (intensities[:, channel] - MEAN[channel]) / STD[channel])
    torch.testing.assert_close(prep.denormalize(images), intensities)
    black, white = _classifier().intensity_range
    torch.testing.assert_close(black.flatten(), torch.tensor([-2.0, -2.0, -1.5]))
    torch.testing.assert_close(white.flatten(), torch.tensor([3.0, 2.0, 1.0]))


def test_outputs_by_task():
    logits = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    exponents = np.exp(logits.numpy())
    softmax = _classifier().output("probability")(logits)
    sigmoid = _classifier(task="multilabel").output("probability")(logits)
    np.testing.assert_allclose(softmax, exponents / exponents.sum())
    np.testing.assert_allclose(sigmoid, exponents / (1 + exponents))
    assert torch.equal(_classifier().output("logit")(logits), logits)
    with pytest.raises(InputError, match="'probability' or 'logit'"):
        _classifier().output("odds")


def test_logits_of_a_tensor_or_an_object_with_logits():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = TinyCNN()

        def forward(self, x):
            return type("Output", (), {"logits": self.net(x)})()

    wrapped = Wrapped().eval()
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(Classifier(wrapped)(images), wrapped.net(images))
    assert Classifier(wrapped).predict(images).tolist() == wrapped.net(images).argmax(1).tolist()


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Flatten(0), r"shape \[B, K\], got \(384,\)"),
        (nn.Flatten(), "192 outputs and 3 classes"),
        (nn.Identity(), r"got \(2, 3, 8, 8\)"),
    ],
)
def test_outputs_that_are_no_logits(net, message):
    with pytest.raises(InputError, match=message):
        Classifier(net.eval(), classes=["a", "b", "c"])(torch.zeros(2, 3, 8, 8))


def test_training_mode_is_an_error():
    with pytest.raises(InputError, match="training mode"):
        Classifier(TinyCNN().train())(torch.zeros(1, 3, 8, 8))


def test_a_part_may_be_in_training_mode_if_it_does_not_look():
    """Some libraries' layers come back from a copy in training mode, whatever they were in before."""

    class Noisy(nn.Module):
        def forward(self, x):
            return self.noise()(x)

        def noise(self):
            return lambda x: x + self.training

    images = torch.rand(2, 3, 8, 8)
    for part, minds in ((nn.Flatten(), False), (nn.ReLU(), False), (Noisy(), True), (nn.Dropout(), True),
                        (nn.BatchNorm2d(3), True), (nn.MultiheadAttention(4, 2), True)):  # fmt: skip
        model = nn.Sequential(TinyCNN()).eval()
        model.add_module("part", part.train())
        if minds:
            with pytest.raises(InputError, match=rf"module 'part' \({type(part).__name__}\) is in training mode"):
                Classifier(model)._check_evaluating()
        else:
            Classifier(model)._check_evaluating()
    plain = nn.Sequential(TinyCNN(), nn.Flatten()).eval()
    plain[1].train()
    assert torch.equal(Classifier(plain)(images), plain(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": "abc"}, "list of distinct names"),
        ({"classes": ["a", "a", "b"]}, "distinct"),
        ({"task": "binary"}, "'multiclass' or 'multilabel'"),
        ({"channels": 4}, "1 or 3"),
        ({"channels": 1}, "mean needs one value"),
        ({"std": None}, "belong together"),
        ({"std": [0.2, 0, 0.2]}, "positive"),
        ({"fit": "stretch"}, "'stretch'"),
        ({"short_side": 9}, "belongs to fit='crop'"),
        ({"image_size": 0}, "image_size"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(InputError, match=message):
        _classifier(**options)


def test_without_normalisation_raw_intensities_are_refused():
    clf = as_classifier(TinyCNN().eval())
    assert clf.classes is None
    with pytest.raises(InputError, match=r"baseline=0\.0"):
        clf.intensity_range  # noqa: B018
    known = Classifier(TinyCNN())
    assert as_classifier(known) is known
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        Classifier(lambda x: x)


def test_with_preprocessing_shares_the_module():
    clf = _classifier(classes=["a", "b", "c"], task="multilabel", source={"library": "mine"})
    other = clf.with_preprocessing(image_size=(16, 8), mean=(0.1, 0.1, 0.1))
    assert other.module is clf.module
    assert (other.classes, other.task, other.source) == (clf.classes, "multilabel", {"library": "mine"})
    assert (other.preprocessing.image_size, other.preprocessing.std) == ((16, 8), tuple(STD))
    assert clf.preprocessing.image_size == (8, 8)


def test_read_names_the_bad_file_and_wants_a_list(tmp_path):
    clf = _classifier()
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        clf.read([tmp_path / "nowhere.png"])
    for paths, message in (("a.png", "put it in a list"), ([], "at least one")):
        with pytest.raises(InputError, match=message):
            clf.read(paths)
