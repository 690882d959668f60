"""What each explainer costs: `make bench-explainers`, or `python benchmarks/explainers.py` where timm and the peers are.

Time in units of one forward pass of the same model with the same batch, without gradients, and beside it that of captum or
pytorch-grad-cam for the same method. All weights are random and ask for gradients, as those of a loaded model do (and as
pytorch-grad-cam needs it, which then computes them), images have 224 pixels. Each round times every row of a group once,
after each has run once that does not count, the forward pass first; a row's figure is the median over rounds of its time
over that of the forward pass in the same round, with the least and the largest. Methods are called as a user calls them:
ours through `explain` with `batch_size` as large as the batch, peers through their own classes, all for one target an image.
Peers that resize their maps do so here, too; so do ours.

Two further rows say what could not be undercut: *forward and backward* to the image, and *to the CAM layer*, one forward
pass and the way back to the layer that the CAM family reads. Aims are multiples of what was measured in these rows: 1.1 of
the way to the CAM layer for what needs no other, 1.15 of a forward pass for attention that knows no class, and for
integrated gradients 1.1 of as many ways forward and back as it has steps.

What repeats passes does so fewer times than by default, on both sides, as the table says. Perturbation methods cost forward
passes and nothing else: see `bench-probing`; the two of the CAM family stand here with one image and one round.

Writes the table to `benchmarks/results/explainers.md` and into `docs/benchmarks.md`. `--quick` runs everything once with
tiny models and writes nothing.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from timing import RESULTS, declare_torchvision, interleaved, machine_in_words, write_between
from torch import Tensor, nn

import heatproof as hp
from heatproof.errors import UnsupportedModelError

MARKS = ("<!-- explainers: begin -->\n", "<!-- explainers: end -->\n")
TARGET, STEPS, DRAWS = 1, 10, 4
VIT, CNN = "ViT-B/16", "DenseNet-121"
BATCH = {CNN: 4, VIT: 2}
FORWARD, BOTH_WAYS, TO_LAYER = "forward", "forward and backward", "to the CAM layer"

Work = Callable[["Bench"], object]


@dataclass(frozen=True)
class Bench:
    """One model and a batch of images; `layer` is the one that the CAM family reads by default."""

    name: str
    model: nn.Module
    images: Tensor
    layer: str

    @property
    def classifier(self) -> hp.Classifier:
        return hp.Classifier(self.model, [str(k) for k in range(10)], mean=[0.5] * 3, std=[0.25] * 3)

    @property
    def targets(self) -> list[int]:
        return [TARGET] * len(self.images)


@dataclass(frozen=True)
class Row:
    """One method: how ours is asked for, and the peer's. `aim` is `(multiple, of which row)`."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    peer: tuple[str, Work] | None = None
    aim: tuple[float, str] | None = None


# What could not be undercut.


def forward(bench: Bench) -> None:
    with torch.no_grad():
        bench.model(bench.images)


def both_ways(bench: Bench) -> None:
    leaf = bench.images.clone().requires_grad_()
    torch.autograd.grad(bench.model(leaf)[:, TARGET].sum(), leaf)


def to_the_layer(bench: Bench) -> None:
    found: list[Tensor] = []

    def see(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        found.append(output.detach().requires_grad_())
        return found[0].clone()  # which the model may write into

    hook = bench.model.get_submodule(bench.layer).register_forward_hook(see)
    try:
        score = bench.model(bench.images)[:, TARGET].sum()
    finally:
        hook.remove()
    torch.autograd.grad(score, found[0])


# Ours and the peers'.


def ours(row: Row, bench: Bench) -> Tensor:
    # methods of many passes find the size of a batch themselves, as they do where none is given
    probes = row.method in [alone.method for alone in ALONE]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of maps that are zero everywhere: the weights are random
        maps: Tensor = hp.explain(
            bench.classifier,
            bench.images,
            bench.targets,
            method=row.method,
            batch_size=None if probes else len(bench.images),
            **row.options,
        )
    return maps


def captum(name: str, **options: Any) -> tuple[str, Work]:
    """`captum.attr.<name>`, called with these options; `wraps` a NoiseTunnel around it."""
    noisy = options.pop("wraps", None)

    def work(bench: Bench) -> object:
        from captum import attr

        made = getattr(attr, name)(bench.model)
        if noisy is not None:
            made, given = attr.NoiseTunnel(made), {"nt_type": noisy, **options}
            return made.attribute(bench.images, target=TARGET, **given)
        given = {key: value(bench) if callable(value) else value for key, value in options.items()}
        return made.attribute(bench.images, target=TARGET, **given)

    return "captum", work


def captum_guided_gradcam() -> tuple[str, Work]:
    def work(bench: Bench) -> object:
        from captum.attr import GuidedGradCam

        layer = bench.model.get_submodule(bench.layer)
        return GuidedGradCam(bench.model, layer).attribute(bench.images, target=TARGET)

    return "captum", work


def grad_cam(name: str, **options: Any) -> tuple[str, Work]:
    """The class of that name in pytorch-grad-cam, with the reshaping that it asks its users for."""

    def work(bench: Bench) -> object:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        given: dict[str, Any] = dict(options)
        if bench.name == VIT:
            given["reshape_transform"] = _to_grid
        with getattr(pytorch_grad_cam, name)(bench.model, [bench.model.get_submodule(bench.layer)], **given) as cam:
            if hasattr(cam, "batch_size"):
                cam.batch_size = 16
            return cam(bench.images, [ClassifierOutputTarget(TARGET)] * len(bench.images))

    return "grad-cam", work


def _to_grid(tokens: Tensor) -> Tensor:
    side = int((tokens.shape[1] - 1) ** 0.5)
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))


def _black(bench: Bench) -> Tensor:
    return torch.full_like(bench.images, -2.0)


# Models and rows.


def build(name: str, quick: bool, batch: int) -> Bench:
    """Random weights, ten classes, evaluation mode."""
    declare_torchvision()
    import timm
    from torchvision import models

    torch.manual_seed(0)
    side = 64 if quick else 224
    if name == VIT:
        size = {"img_size": 64} if quick else {}
        model = timm.create_model(f"vit_{'tiny' if quick else 'base'}_patch16_224", num_classes=10, **size)
        layer = f"blocks.{len(model.blocks) - 1}.norm1"
    else:
        model = models.DenseNet(8, (2, 2), 16, num_classes=10) if quick else models.densenet121(num_classes=10)
        layer = "features"
    images = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))
    return Bench(name, model.eval(), images, layer)


CAMS = {
    "gradcam": "GradCAM",
    "gradcam_plus_plus": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "eigencam": "EigenCAM",
    "eigen_gradcam": "EigenGradCAM",
}
_REPEATED = {"samples": DRAWS}


def rows() -> list[Row]:
    """All methods but those that only run the model forward."""
    layer = {"layer": None}  # filled in by what the model's is
    noisy = {"nt_samples": DRAWS, "nt_samples_batch_size": 1, "stdevs": 0.15}
    found = [
        Row("attention", aim=(1.15, FORWARD)),
        Row("attention_rollout", aim=(1.15, FORWARD)),
        *map(Row, ("generic_attention", "attention_gradcam", "attcat", "legrad", "transformer_lrp")),
        Row("transition_attention", {"steps": STEPS}),
        Row("bidirectional_transformer", {"steps": STEPS}),
        *(Row(name, layer, grad_cam(peer), (1.1, TO_LAYER)) for name, peer in CAMS.items()),
        Row("finercam", layer, grad_cam("FinerCAM")),
        Row("gradcam_smoothed", layer),
        Row("lrp_gradcam", layer),
        Row("fullgrad", {}, grad_cam("FullGrad")),
        Row("saliency", {}, captum("Saliency"), (1.1, BOTH_WAYS)),
        Row("gradient", {}, captum("Saliency", abs=False), (1.1, BOTH_WAYS)),
        Row("input_x_gradient", {}, captum("InputXGradient"), (1.1, BOTH_WAYS)),
        Row("guided_backprop", {}, captum("GuidedBackprop")),
        Row("deconvnet", {}, captum("Deconvolution")),
        Row("guided_gradcam", layer, captum_guided_gradcam()),
        Row("deep_lift", {}, captum("DeepLift", baselines=_black)),
        Row(
            "integrated_gradients",
            {"steps": STEPS},
            captum("IntegratedGradients", baselines=_black, n_steps=STEPS, internal_batch_size=4),
            (1.1 * STEPS, BOTH_WAYS),
        ),
        Row("blur_integrated_gradients", {"steps": STEPS}),
        Row("expected_gradients", _REPEATED),
        Row(
            "gradient_shap",
            _REPEATED,
            captum("GradientShap", baselines=_black, n_samples=DRAWS, stdevs=0.1),
        ),
        Row("smoothgrad", _REPEATED, captum("Saliency", wraps="smoothgrad", **noisy)),
        Row("smoothgrad_squared", _REPEATED, captum("Saliency", wraps="smoothgrad_sq", **noisy)),
        Row("vargrad", _REPEATED, captum("Saliency", wraps="vargrad", **noisy)),
        *map(Row, ("lrp_z", "lrp_epsilon", "lrp_gamma", "lrp_zplus", "lrp_alpha_beta", "excitation_backprop")),
        *map(Row, ("deep_taylor", "lrp_composite", "attn_lrp", "cp_lrp", "chefer")),
    ]
    return [row for row in found if row.method in hp.methods()]


ALONE = (
    Row("scorecam", {"layer": None}, grad_cam("ScoreCAM")),
    Row("ablationcam", {"layer": None}, grad_cam("AblationCAM")),
)


def with_layer(row: Row, bench: Bench) -> Row:
    given = {key: bench.layer if key == "layer" else value for key, value in row.options.items()}
    return Row(row.method, given, row.peer, row.aim)


# Measuring.


def measured(bench: Bench, chosen: list[Row], rounds: int) -> Iterator[list[str]]:
    """The rows of the table for this model; those that it cannot serve say so."""
    works: dict[tuple[str, str], Callable[[], object]] = {
        (FORWARD, ""): partial(forward, bench),
        (BOTH_WAYS, ""): partial(both_ways, bench),
        (TO_LAYER, ""): partial(to_the_layer, bench),
    }
    refused: dict[str, str] = {}
    for row in chosen:
        try:
            ours(row, bench)
        except UnsupportedModelError as error:
            refused[row.method] = str(error).partition(":")[0].partition(".")[0]
            continue
        works[row.method, ""] = partial(ours, row, bench)
        if row.peer is not None:
            name, work = row.peer
            problem = _problem(partial(work, bench))
            if problem is None:
                works[row.method, name] = partial(work, bench)
            else:
                refused[f"{row.method} {name}"] = problem
    taken = interleaved("cpu", works, rounds)
    unit = taken[FORWARD, ""]
    in_units = {key: [mine / one for mine, one in zip(of, unit, strict=True)] for key, of in taken.items()}
    batch = str(len(bench.images))
    yield [bench.name, batch, FORWARD, "1", f"{statistics.median(unit):.2f} s", "", "", ""]
    for floor in (BOTH_WAYS, TO_LAYER):
        yield [bench.name, batch, floor, *_median_and_spread(in_units[floor, ""]), "", "", ""]
    for row in chosen:
        name = f"`{row.method}`" + "".join(f", {key} {value}" for key, value in row.options.items() if key != "layer")
        if row.method in refused:
            yield [bench.name, batch, name, "refused", "", "", refused[row.method], ""]
            continue
        mine = in_units[row.method, ""]
        aim = "" if row.aim is None else f"{row.aim[0] * statistics.median(in_units[row.aim[1], '']):.2f}"
        peer, faster = "", ""
        if row.peer is not None:
            theirs = in_units.get((row.method, row.peer[0]))
            if theirs is None:
                peer = f"{row.peer[0]} fails: {refused[f'{row.method} {row.peer[0]}']}"
            else:
                peer = f"{row.peer[0]} {statistics.median(theirs):.2f}"
                faster = f"{statistics.median(t / m for t, m in zip(theirs, mine, strict=True)):.2f}"
        yield [bench.name, batch, name, *_median_and_spread(mine), aim, peer, faster]


def _problem(work: Callable[[], object]) -> str | None:
    """Why a peer cannot do it: whatever it raises is its own affair, and stands in the table."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 the peer's, of any kind
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}" if str(error) else type(error).__name__
    return None


def _median_and_spread(values: list[float]) -> tuple[str, str]:
    return f"{statistics.median(values):.2f}", f"{min(values):.2f} to {max(values):.2f}"


def table(quick: bool, rounds: int) -> Iterator[str]:
    heads = ["model", "batch", "method", "time, × forward", "least to largest", "aim", "peer, × forward", "× as fast"]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for name in (CNN, VIT):
        bench = build(name, quick, 2 if quick else BATCH[name])
        for cells in measured(bench, [with_layer(row, bench) for row in rows()], rounds):
            yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
    bench = build(CNN, quick, 1)
    alone = [with_layer(row, bench) for row in ALONE if row.method in hp.methods()]
    for cells in list(measured(bench, alone, 1))[3:]:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test: tiny models, one round, nothing written")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    lines = [f"Median of {chosen.rounds} rounds, float32. {machine_in_words('cpu')}.", ""]
    print(*lines, sep="\n")
    for line in table(chosen.quick, 1 if chosen.quick else chosen.rounds):
        print(line, flush=True)
        lines.append(line)
    if chosen.quick:
        return
    text = "\n".join([*lines, ""])
    (RESULTS / "explainers.md").write_text(
        f"# What explainers cost\n\nMade by `make bench-explainers`; what is measured stands there.\n\n{text}"
    )
    write_between(MARKS, text)


if __name__ == "__main__":
    main()
