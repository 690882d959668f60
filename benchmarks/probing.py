"""What probing costs: `make bench-probing`, or `python benchmarks/probing.py` where timm, Quantus and lime are.

Sections, each of which `--only` can choose:

* `throughput`: a probe against a bare loop of forward passes over as many images at the loop's own best batch size.
* `metrics`: five metrics against Quantus; `suite`: eight of one study at once against Quantus, metric by metric.
* `lime`: against the `lime` package; `drop`: the deletion curve by tokens left out against black pixels.
* `memory`: its peak as the number of masks grows.

All weights are random. Both sides of a comparison have the same model, images and maps, and as many changed images; a hook
on the model counts the images that go through it. Where a curve begins at the image itself, ours sees that image, too. Each
round times every row of a model once; a row's figure is the median over rounds of the ratio within a round, with the least
and the largest. Metrics are called as a user calls them, so that the search for the micro-batch is in the time.

Each section's table is kept in `benchmarks/results/probing/`; `benchmarks/results/probing.md` and the part of
`docs/benchmarks.md` are made of the latest of each. `--quick` runs everything once with tiny models and writes nothing.
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import (
    RESULTS,
    Work,
    declare_torchvision,
    interleaved,
    machine_in_words,
    peak_memory,
    seconds,
    write_between,
)
from torch import Tensor, nn

import heatproof as hp
from heatproof.probing import Precision, RankMasks, SampleRandom, bf16_supported, bind, measure_batch_size
from heatproof.probing.segments import make_segments

MARKS = ("<!-- probing: begin -->\n", "<!-- probing: end -->\n")
KEPT = RESULTS / "probing"
CLASSES = 10
PLAIN = {"abs": False, "normalise": False, "disable_warnings": True, "display_progressbar": False}

LOOPS = {"ViT-B/16": 16, "DenseNet-121": 32, "ViT-Ti/16": 64}  # images in one loop; on a GPU 16 times as many
# images, and changed versions of each where a metric leaves their number open
SIZES = {"LeNet": (8, 112), "small CNN": (4, 112), "ViT-Ti/16": (4, 28), "ViT-B/16": (2, 14), "DenseNet-121": (2, 28)}
SINGLY = ("faithfulness_estimate", "faithfulness_correlation", "pixel_flipping", "max_sensitivity", "road")

Row = list[str]


@dataclass(frozen=True)
class Setting:
    """Where it runs, how often, and how large."""

    device: str
    rounds: int
    quick: bool

    def side_of(self, name: str) -> int:
        """Pixels along a side of this model's images."""
        return 28 if name == "LeNet" else 32 if self.quick else 224

    def of_size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def build(self, name: str, channels: int = 1) -> nn.Module:
        """A model in evaluation mode, with random weights that ask for no gradient."""
        declare_torchvision()
        import timm

        torch.manual_seed(0)
        given: dict[str, Any] = {"in_chans": channels, "num_classes": CLASSES}
        if name == "LeNet":
            from quantus.helpers.model.models import LeNet

            model = LeNet()
        elif name == "small CNN":
            model = small_cnn(channels)
        elif name == "DenseNet-121":
            small = {"growth_rate": 8, "block_config": (2, 2)} if self.quick else {}
            model = timm.models.DenseNet(**given, **small)
        elif self.quick:
            model = timm.models.VisionTransformer(
                img_size=self.side_of(name), patch_size=8, embed_dim=32, depth=2, num_heads=2, **given
            )
        else:
            model = timm.create_model(
                {"ViT-Ti/16": "vit_tiny_patch16_224", "ViT-B/16": "vit_base_patch16_224"}[name], **given
            )
        return model.eval().requires_grad_(False).to(self.device)

    def images(self, name: str, count: int, channels: int = 1) -> Tensor:
        """Smooth and grainy at once, `[count, channels, side, side]`."""
        generator = torch.Generator().manual_seed(1)
        coarse = torch.randn(count, channels, 7, 7, generator=generator)
        smooth = nn.functional.interpolate(coarse, self.side_of(name), mode="bilinear")
        return (smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).to(self.device)


def small_cnn(channels: int) -> nn.Module:
    """Four convolutions that halve the image, mean pooling and a dense layer."""
    widths = [channels, 16, 32, 64, 64]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


def known(model: nn.Module, **more: Any) -> hp.Classifier:
    """The model with names for its classes, so that nothing has to be run to count them."""
    return hp.Classifier(model, [str(k) for k in range(CLASSES)], **more)


class Passes:
    """Counts the images that go through a module."""

    def __init__(self, module: nn.Module) -> None:
        self.seen = 0
        module.register_forward_pre_hook(self._see)

    def _see(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.seen += len(given[0])


@dataclass(frozen=True)
class Measured:
    """What one work gave, the images that went through the model for it, and its seconds in each round."""

    result: Any
    passes: int
    seconds: list[float]

    def times_as_fast_as(self, other: "Measured") -> list[float]:
        return [theirs / mine for mine, theirs in zip(self.seconds, other.seconds, strict=True)]


def measure(setting: Setting, passes: Passes, works: Mapping[str, Work]) -> dict[str, Measured]:
    """Each work once, which counts its passes and sets up what is set up once; then the rounds."""
    first = {}
    for key, work in works.items():
        before = passes.seen
        first[key] = (work(), passes.seen - before)
    taken = interleaved(setting.device, works, setting.rounds)
    return {key: Measured(*first[key], taken[key]) for key in works}


def gradient(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The derivative of the target's logit, summed over channels, `[B, H, W]`: the maps, and how they are made."""
    leaf = images.detach().requires_grad_()
    return torch.autograd.grad(model(leaf).gather(1, targets[:, None]).sum(), leaf)[0].sum(1)


@dataclass(frozen=True)
class Bench:
    """One model with images, targets and maps, seen by both sides."""

    model: nn.Module
    images: Tensor
    targets: Tensor
    maps: Tensor
    roi: Tensor

    @classmethod
    def of(cls, setting: Setting, name: str, count: int) -> "Bench":
        model, images = setting.build(name), setting.images(name, count)
        with torch.no_grad():
            targets = model(images).argmax(1)
        roi = torch.zeros(images[:, 0].shape, dtype=torch.bool, device=setting.device)
        roi[:, 5:15, 5:15] = True
        return cls(model, images, targets, gradient(model, images, targets), roi)

    def ours(self, metrics: Mapping[str, Mapping[str, Any]], precision: Precision = "fp32") -> dict[str, Tensor]:
        return hp.score_many(
            known(self.model), self.images, self.maps, metrics=list(metrics.items()), targets=self.targets, roi=self.roi,
            explain=partial(gradient, self.model), precision=precision,
        )  # fmt: skip

    def quantus(self, metric: Callable[..., Any]) -> object:
        def explain(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> Any:
            given = torch.as_tensor(inputs, dtype=torch.float32, device=self.images.device)
            return gradient(model, given, torch.as_tensor(targets, device=given.device))[:, None].cpu().numpy()

        return metric(
            model=self.model, x_batch=self.images.cpu().numpy(), y_batch=self.targets.cpu().numpy(),
            a_batch=self.maps[:, None].cpu().numpy(), s_batch=self.roi[:, None].cpu().numpy(), channel_first=True,
            explain_func=explain, softmax=True, device=str(self.images.device), batch_size=len(self.images),
        )  # fmt: skip


Compared = dict[str, tuple[dict[str, Any], Callable[..., Any]]]


def compared(pixels: int, steps: int, samples: int) -> Compared:
    """Our options and Quantus's metric, such that both change each image in the same way and equally often."""
    import quantus

    step = pixels // steps
    chunks = {"features_in_step": step, "perturb_baseline": "black", **PLAIN}
    noise = {"nr_samples": samples, "lower_bound": 0.2, **PLAIN}
    same_noise = {"samples": samples, "radius": 0.2, "units": "normalized"}
    return {
        "faithfulness_estimate": ({"step": step, "baseline": "min"}, quantus.FaithfulnessEstimate(**chunks)),
        "faithfulness_correlation": (
            {"runs": steps, "baseline": "min"},
            quantus.FaithfulnessCorrelation(nr_runs=steps, subset_size=224, perturb_baseline="black", **PLAIN),
        ),
        "pixel_flipping": ({"step": step, "baseline": "min"}, quantus.PixelFlipping(**chunks)),
        "max_sensitivity": (same_noise, quantus.MaxSensitivity(**noise)),
        "road": ({}, quantus.ROAD(percentages=list(range(10, 100, 10)), **PLAIN)),
        "avg_sensitivity": (same_noise, quantus.AvgSensitivity(**noise)),
        "relevance_mass_accuracy": ({}, quantus.RelevanceMassAccuracy(**PLAIN)),
        "sparseness": ({}, quantus.Sparseness(**(PLAIN | {"abs": True}))),
    }


# Sections: each gives the head of its table and then its rows.


def throughput(setting: Setting) -> Iterator[Row]:
    yield ["model", "passes, bare and probe", "bare loop, its best batch", "images/s", "probe, its batch", "× bare loop",
           "least to largest", "aim", "× bare loop, with the search"]  # fmt: skip
    for name, count in LOOPS.items():
        yield throughput_of(setting, name, setting.of_size(count * (16 if setting.device == "cuda" else 1), 4))


def throughput_of(setting: Setting, name: str, count: int) -> Row:
    model, images, ready = setting.build(name), setting.images(name, 1), setting.images(name, count)
    pixels = images[0, 0].numel()
    ranks = torch.arange(pixels, device=images.device).view(1, *images.shape[2:])
    masks = RankMasks.leading(ranks, [(k + 1) * pixels // count for k in range(count)])

    def loop(batch: int) -> None:
        with torch.no_grad():
            for part in ready.split(batch):
                model(part)

    def probed(batch: int | None) -> None:
        score = partial(torch.select, dim=1, index=0)
        probe = bind(known(model), images, score, random=SampleRandom(0, ["0"]), batch_size=batch)
        probe(masks, baseline=0.0)

    loop(1)  # what is set up once
    sizes = [2**power for power in range(11) if 2**power <= count]
    best = min(sizes, key=lambda batch: seconds(setting.device, partial(loop, batch)))
    batch = measure_batch_size(model, images)
    works = {"loop": partial(loop, best), "probe": partial(probed, batch), "search": partial(probed, None)}
    bare, probe, search = measure(setting, Passes(model), works).values()
    ratios = probe.times_as_fast_as(bare)
    return [name, f"{bare.passes}, {probe.passes}", str(best), f"{count / statistics.median(bare.seconds):.3g}",
            str(batch), median(ratios), spread(ratios), "0.93", median(search.times_as_fast_as(bare))]  # fmt: skip


def metrics(setting: Setting) -> Iterator[Row]:
    yield ["model", "metric", "precision", "images", "passes, ours and theirs", "Quantus, s", "ours, s", "× as fast",
           "least to largest", "aim", "a pass, × as fast", "largest deviation from fp32"]  # fmt: skip
    aims = {
        ("LeNet", "fp32"): 5.0,
        ("small CNN", "fp32"): 5.0,
        ("ViT-Ti/16", "fp32"): 2.0,
        ("ViT-B/16", "fp32"): 1.1,
        ("ViT-B/16", "bf16"): 2.5,
    }
    for name, on_a_cpu in SIZES.items():
        count, steps = on_a_cpu if setting.device == "cpu" else (16, 112)
        bench = Bench.of(setting, name, setting.of_size(count, 2))
        passes = Passes(bench.model)
        asked = compared(bench.maps[0].numel(), setting.of_size(steps, 4), 10)
        for metric in SINGLY:
            options, peer = asked[metric]
            works: dict[str, Work] = {"Quantus": partial(bench.quantus, peer)}
            # gradients stay in float32, so bfloat16 has nothing to offer where every pass is for one
            precisions: list[Precision] = ["fp32"]
            if bf16_supported(setting.device) and name not in ("LeNet", "small CNN") and metric != "max_sensitivity":
                precisions.append("bf16")
            works |= {precision: partial(bench.ours, {metric: options}, precision) for precision in precisions}
            found = measure(setting, passes, works)
            theirs, exact = found["Quantus"], found["fp32"].result[metric]
            for precision in precisions:
                ours = found[precision]
                ratios = ours.times_as_fast_as(theirs)
                apart = (ours.result[metric] - exact).abs().max()
                aim = 10.0 if setting.device == "cuda" else aims.get((name, precision))
                yield [name, f"`{metric}`", precision, str(len(bench.images)), f"{ours.passes}, {theirs.passes}",
                       median(theirs.seconds), median(ours.seconds), median(ratios), spread(ratios),
                       "" if aim is None else f"{aim:g}", f"{statistics.median(ratios) * ours.passes / theirs.passes:.3g}",
                       "" if precision == "fp32" else f"{apart:.2g}"]  # fmt: skip


def suite(setting: Setting) -> Iterator[Row]:
    yield ["ViT-Ti/16, eight metrics", "images", "passes", "time, s", "Quantus, × as fast", "least to largest", "aim"]
    bench = Bench.of(setting, "ViT-Ti/16", setting.of_size(4, 2))
    passes = Passes(bench.model)
    asked = compared(bench.maps[0].numel(), setting.of_size(28, 4), setting.of_size(10, 2))
    options = {metric: given for metric, (given, _) in asked.items()}
    works: dict[str, Work] = {
        "Quantus, metric by metric": lambda: [bench.quantus(peer) for _, peer in asked.values()],
        "ours, metric by metric": lambda: [bench.ours({metric: given}) for metric, given in options.items()],
        "ours, at once": lambda: bench.ours(options),
    }
    found = measure(setting, passes, works)
    for key, of in found.items():
        ratios = of.times_as_fast_as(found["Quantus, metric by metric"])
        yield [key, str(len(bench.images)), str(of.passes), median(of.seconds), median(ratios), spread(ratios),
               "3" if key == "ours, at once" else ""]  # fmt: skip


def lime(setting: Setting) -> Iterator[Row]:
    yield ["ViT-B/16, one image", "versions", "passes", "time, s", "× as fast as `lime`", "aim"]
    from lime.lime_image import LimeImageExplainer

    model, image = setting.build("ViT-B/16", channels=3), setting.images("ViT-B/16", 1, channels=3)
    with torch.no_grad():
        target = int(model(image).argmax())
    passes, versions = Passes(model), setting.of_size(1000, 20)
    segments = setting.of_size(50, 4)

    def classify(batch: Any) -> Any:
        with torch.no_grad():
            given = torch.from_numpy(batch).permute(0, 3, 1, 2).float().to(image.device)
            return model(given).softmax(1).double().cpu().numpy()

    def theirs(samples: int) -> None:
        array = image[0].permute(1, 2, 0).double().cpu().numpy()
        with redirect_stderr(io.StringIO()):  # its progress bar
            LimeImageExplainer(random_state=0).explain_instance(
                array, classify, labels=(target,), top_labels=None, num_samples=samples,
                segmentation_fn=lambda _: np.asarray(make_segments("slic", image, segments)[0].cpu()), random_seed=0,
            )  # fmt: skip

    def ours(samples: int, precision: Precision = "fp32", **options: Any) -> None:
        hp.explain(
            known(model),
            image,
            [target],
            method="lime",
            samples=samples,
            segments=segments,
            precision=precision,
            **options,
        )

    drop = {"baseline": "drop", "segmentation": "grid"}
    works = {"`lime`": theirs, "ours": ours}
    if bf16_supported(setting.device):
        works["ours, bf16"] = partial(ours, precision="bf16")
    works["ours, segments of tokens dropped"] = partial(ours, **drop)
    aims = {"ours": "1", "ours, bf16": "2.3", "ours, segments of tokens dropped": "1.5"}
    found: dict[str, Measured] = {}
    for key, work in works.items():
        work(20)  # what is set up once
        before = passes.seen
        taken = seconds(setting.device, partial(work, versions))  # one round: it is long
        found[key] = Measured(None, passes.seen - before, [taken])
        (times,) = found[key].times_as_fast_as(found["`lime`"])
        yield [key, str(versions), str(found[key].passes), f"{taken:.3g}", f"{times:.2f}", aims.get(key, "")]


def drop(setting: Setting) -> Iterator[Row]:
    yield ["ViT-B/16, deletion curve", "images", "points", "passes", "time, s", "× as fast", "least to largest", "aim"]
    model, images = setting.build("ViT-B/16"), setting.images("ViT-B/16", 2)
    classifier = known(model, channels=1, mean=[0.5], std=[0.25])
    row = setting.of_size(14, 4)  # tokens in a row
    with torch.no_grad():
        targets = model(images).argmax(1)
    maps, passes = gradient(model, images, targets), Passes(model)

    def curve(baseline: str, step: int) -> Tensor:
        return hp.curve(classifier, images, maps, metric="deletion", targets=targets, baseline=baseline, step=step)[1]

    works = {
        "black pixels": partial(curve, "black", maps[0].numel() // row),
        "tokens dropped": partial(curve, "drop", row),
    }
    found = measure(setting, passes, works)
    for key, of in found.items():
        ratios = of.times_as_fast_as(found["black pixels"])
        yield [key, str(len(images)), str(of.result.shape[1]), str(of.passes), median(of.seconds), median(ratios),
               spread(ratios), "1.7" if key == "tokens dropped" else ""]  # fmt: skip


def memory(setting: Setting) -> Iterator[Row]:
    device = setting.device
    yield ["small CNN, one image of 100 × 100", "masks", "tensors, MB", *["resident memory, MB"] * (device == "cpu")]
    for name in MASKED:
        for count in (10, 100) if setting.quick else (100, 1000, 10_000):
            command = [sys.executable, __file__, "--memory-of", name, str(count), "--device", device]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            used = json.loads(done.stdout.splitlines()[-1])
            yield [f"`{name}`", str(count), *(f"{bytes_ / 1e6:.1f}" for bytes_ in used.values())]


MASKED: dict[str, Callable[[int], dict[str, Any]]] = {
    "faithfulness_correlation": lambda count: {"runs": count},
    "deletion": lambda count: {"step": 10_000 // count},
    "lime": lambda count: {"samples": count},
}


def memory_of(name: str, count: int, device: str) -> dict[str, int]:
    """Bytes above model and images that one image under `count` masks takes, in this very process."""
    torch.manual_seed(0)
    model = small_cnn(1).eval().requires_grad_(False).to(device)
    images, maps = torch.randn(1, 1, 100, 100, device=device), torch.randn(1, 100, 100, device=device)

    def work(count: int) -> Tensor:
        options = {"baseline": 0.0, "batch_size": 64, **MASKED[name](count)}
        if name == "lime":
            return hp.explain(known(model), images, [0], method=name, **options)
        return hp.score(known(model), images, maps, metric=name, targets=[0], **options)

    work(10)  # what is set up once
    return peak_memory(device, partial(work, count), [*model.parameters(), images, maps])


SECTIONS: dict[str, tuple[str, Callable[[Setting], Iterator[Row]]]] = {
    "throughput": ("Throughput", throughput),
    "metrics": ("Five metrics against Quantus", metrics),
    "suite": ("A study's metrics at once", suite),
    "lime": ("LIME", lime),
    "drop": ("Tokens dropped", drop),
    "memory": ("Memory", memory),
}


# The tables.


def median(values: list[float]) -> str:
    return f"{statistics.median(values):.3g}"


def spread(values: list[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}"


def table(rows: list[Row]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:], ""])


def run(name: str, setting: Setting) -> dict[str, Any]:
    """One section, printed as it goes: where, when and its rows."""
    title, section = SECTIONS[name]
    where = machine_in_words(setting.device)
    print(f"### {title}\n\n{where}\n", flush=True)
    rows = []
    for row in section(setting):
        rows.append(row)
        print(f"| {' | '.join(row)} |", flush=True)
    print()
    return {"machine": where, "rounds": setting.rounds, "rows": rows}


def page(kept: Path) -> str:
    """All tables, of the latest run of each section on each kind of device."""
    parts = []
    for name, (title, _) in SECTIONS.items():
        parts.append(f"### {title}\n")
        for device in ("cpu", "cuda"):
            found = kept / f"{name}.{device}.json"
            if found.exists():
                of = json.loads(found.read_text())
                rounds = "One round" if name == "lime" else f"Median of {of['rounds']} rounds"
                parts.append(f"{rounds}. {of['machine']}.\n\n{table(of['rows'])}")
            else:
                parts.append(f"Not run on {'a GPU: there was none' if device == 'cuda' else 'a CPU yet'}.\n")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=[*SECTIONS])
    parser.add_argument("--quick", action="store_true", help="a smoke test: tiny models, one round, nothing written")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)  # what is measured in this process
    chosen = parser.parse_args()
    if chosen.memory_of:
        name, count = chosen.memory_of
        print(json.dumps(memory_of(name, int(count), chosen.device)))
        return
    setting = Setting(chosen.device, 1 if chosen.quick else chosen.rounds, chosen.quick)
    for name in chosen.only:
        found = run(name, setting)
        if not chosen.quick:
            KEPT.mkdir(parents=True, exist_ok=True)
            (KEPT / f"{name}.{chosen.device}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    if not chosen.quick:
        text = page(KEPT)
        (RESULTS / "probing.md").write_text(
            f"# What probing costs\n\nMade by `make bench-probing`; what is measured stands there.\n\n{text}"
        )
        write_between(MARKS, text)


if __name__ == "__main__":
    main()
