"""One call that scores by any registered metric, with options that fit small images."""

import torch
from torch import nn

from heatproof import score
from heatproof.metrics import METRICS
from heatproof.models import Classifier
from support.cases import Wavy

SIZE, COUNT = 8, 11  # more images than are scored at once
FITTING = {"subset_size": 9, "k": 10, "runs": 12, "window": 2, "segments": 16}  # for 8 × 8 pixels
FITTING_ONE = {
    "sufficiency": {"radius": 1.4},  # maps of noise have little in common
    "consistency": {"grid": (2, 1), "k": 1},
    "non_sensitivity": {"tolerance": 0.02},
    "smooth_mprt": {"samples": 4},
}
LAYERED = {"relative_representation_stability", "model_parameter_randomization", "smooth_mprt", "input_invariance"}


class Small(nn.Module):
    """A model on a device that has memory for `most` images at a time; `refused` counts how often that was not enough."""

    def __init__(self, net, most):
        super().__init__()
        self.net, self.most, self.refused = net, most, 0

    def forward(self, images):
        if len(images) > self.most:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.net(images)


class Layered(nn.Sequential):
    """A net of layers, the first one with a bias; always the same weights."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(SIZE**2, 6), nn.Tanh(), nn.Linear(6, 3))
        generator = torch.Generator().manual_seed(5)
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0, 0.2, generator)


def model(name=""):
    net = Layered() if name in LAYERED else Wavy()
    return Classifier(net.eval(), channels=1, mean=[0.4], std=[0.3])


def inputs():
    generator = torch.Generator().manual_seed(11)
    images = torch.randn(COUNT, 1, SIZE, SIZE, generator=generator)
    maps = torch.randn(COUNT, SIZE, SIZE, generator=generator)
    roi = torch.rand(COUNT, SIZE, SIZE, generator=generator) > 0.8
    return images, maps, roi


def explained(images, targets, model=None):
    """A deterministic explanation that depends on image and target, and on a changed model."""
    phase = targets if model is None else targets + model(images).sum(1)
    return torch.sin(3 * images.sum(1) + phase[:, None, None])


def run(name, images, maps, roi=None, **options):
    entry = METRICS[name]
    given = {"explain": explained} if "explain" in entry.needs else {}
    if "roi" in entry.needs:
        given["roi"] = roi
    fitting = {option: value for option, value in FITTING.items() if option in entry.options}
    fitting |= FITTING_ONE.get(name, {})
    if options.get("noise") is not None:
        fitting.pop("window", None)  # of squares
    options = {"targets": torch.arange(len(images)) % 3, "batch_size": 16} | fitting | options
    return score(options.pop("model", None) or model(name), images, maps, metric=name, **(given | options))


def score_rows(name, rows, **options):
    """The scores of the samples at `rows`, under their keys; where samples are compared, all of them are scored."""
    order = torch.as_tensor(rows)
    if "cohort" in METRICS[name].needs:
        order = torch.cat([order, torch.tensor([row for row in range(COUNT) if row not in rows], dtype=torch.long)])
    given = {"targets": order % 3, "keys": [f"id{row}" for row in order.tolist()], **options}
    return run(name, *(values[order] for values in inputs()), **given)[: len(rows)]


def score_rows_by_all(rows):
    """`score_rows` by every metric, for a process of its own."""
    return {name: score_rows(name, rows).tolist() for name in METRICS}


def same(found, expected):
    return torch.allclose(found, expected, rtol=1e-4, atol=2e-5, equal_nan=True)
