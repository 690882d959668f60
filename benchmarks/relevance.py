"""What relevance costs: `make bench-relevance`, or `python benchmarks/relevance.py` where timm, torchvision and zennit are.

Time and peak memory as multiples of `plain`, one forward pass and one backward pass to the input of the same model with the
same batch. All weights are random and ask for no gradient, images have 224 pixels. Each round times every row of a model
once, plain first; a row's figure is the median over rounds of its time over plain's in the same round, with the least and
the largest. Peers are timed in the same rounds.

Memory is measured in a process of its own for each row, in two ways: the most bytes of tensors alive at once beside model
and images, and the growth of the process's resident memory from just before the call to its peak, both after the model has
run once. On a GPU: CUDA events, and the allocator's own peak, for batches of 64 in float32 and bfloat16.

Writes the table to `benchmarks/results/relevance.md` and into `docs/benchmarks.md`. `--quick` runs everything once with
tiny models and writes nothing.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import torch
from timing import RESULTS, declare_torchvision, interleaved, machine_in_words, peak_memory, write_between
from torch import Tensor, nn

import heatproof as hp
from heatproof.relevance import Preset, presets, run

MARKS = ("<!-- relevance: begin -->\n", "<!-- relevance: end -->\n")
TARGET = 1

Work = Callable[[nn.Module, Tensor], object]


@dataclass(frozen=True)
class Row:
    """One method on one model. `limit` is the largest multiple of plain's time that it should take."""

    model: str
    method: str
    work: Work
    limit: float | None = None
    batch: int = 8
    memory_limit: int | None = None  # bytes


# Methods: each takes a model and images `[B, C, H, W]` all the way to relevance or gradient.


def plain(model: nn.Module, images: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_()
    return torch.autograd.grad(model(leaf)[:, TARGET].sum(), leaf)[0]


def lrp(preset: Preset) -> Work:
    def work(model: nn.Module, images: Tensor) -> Tensor:
        passed = run(model, images, preset)
        return passed.relevance(passed.logits[:, TARGET], last=True)

    return work


def transformer_lrp(model: nn.Module, images: Tensor) -> Tensor:
    targets, classifier = [TARGET] * len(images), hp.Classifier(model, [str(k) for k in range(model.num_classes)])
    return hp.explain(
        classifier, images, targets, method="transformer_lrp", batch_size=len(images), resolution="native"
    )


def zennit(rules: str) -> Work:
    """Zennit's own composite of that name, with its canonizer for ResNets; it has none for DenseNets."""

    def work(model: nn.Module, images: Tensor) -> Tensor:
        from zennit.composites import EpsilonAlpha2Beta1, EpsilonPlus, LayerMapComposite
        from zennit.rules import Epsilon, Pass
        from zennit.torchvision import ResNetCanonizer
        from zennit.types import Activation, Convolution, Linear

        canonizers = [ResNetCanonizer()] if type(model).__name__ == "ResNet" else []
        everywhere = [(Activation, Pass()), (Convolution, Epsilon()), (Linear, Epsilon())]
        composite = {
            "Epsilon": lambda: LayerMapComposite(everywhere, canonizers=canonizers),
            "EpsilonPlus": lambda: EpsilonPlus(canonizers=canonizers),
            "EpsilonAlpha2Beta1": lambda: EpsilonAlpha2Beta1(canonizers=canonizers),
        }[rules]()
        leaf = images.clone().requires_grad_()
        with composite.context(model) as changed:
            logits = changed(leaf)
            start = torch.zeros_like(logits)
            start[:, TARGET] = logits[:, TARGET].detach()
            return torch.autograd.grad(logits, leaf, start)[0]

    return work


def lxt(model: nn.Module, images: Tensor) -> Tensor:
    """CP-LRP of LXT, without γ; it changes classes of torch, which are put back here."""
    with _lxt_rules():
        return plain(model, images) * images


@contextmanager
def _lxt_rules() -> Iterator[None]:
    import lxt

    for name in ("lxt.efficient", "lxt.efficient.models"):  # its own imports need an older transformers
        if name not in sys.modules:
            sys.modules[name] = package = ModuleType(name)
            package.__path__ = [lxt.__path__[0] + name.removeprefix("lxt").replace(".", "/")]
    from lxt.efficient.models.vit_torch import cp_LRP

    before = {target: target.forward for target in cp_LRP}
    try:
        for target, patch in cp_LRP.items():
            patch(target)
        yield
    finally:
        for target, forward in before.items():
            target.forward = forward


def _has(package: str) -> bool:
    try:
        __import__(package)
    except ImportError:
        print(f"{package}: not installed, left out")
        return False
    return True


# Models and rows.


def build(name: str, quick: bool) -> nn.Module:
    """A model in evaluation mode with random weights, from timm or torchvision."""
    declare_torchvision()
    import timm
    from torchvision import models

    torch.manual_seed(0)
    size = {"image_size": 64, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64} if quick else {}
    model: nn.Module = {
        "DenseNet-121": lambda: models.DenseNet(8, (2, 2), 16) if quick else models.densenet121(),
        "ResNet-50": lambda: models.resnet18() if quick else models.resnet50(),
        "ViT-B/16": lambda: timm.create_model(
            "vit_tiny_patch16_224" if quick else "vit_base_patch16_224", **({"img_size": 64} if quick else {})
        ),
        "ViT-B/16 (torchvision)": lambda: models.VisionTransformer(
            **({"image_size": 224, "num_layers": 12, "num_heads": 12, "hidden_dim": 768, "mlp_dim": 3072} | size),
            patch_size=16,
        ),
    }[name]()
    return model.eval().requires_grad_(False)


def rows() -> list[Row]:
    """What is measured, the table's rows."""
    found = []
    for model in ("DenseNet-121", "ResNet-50", "ViT-B/16"):
        found += [
            Row(model, "plain", plain),
            Row(model, "lrp_z", lrp(presets.lrp_z()), 1.15),
            Row(model, "lrp_epsilon", lrp(presets.lrp_epsilon()), 1.15),
            Row(model, "zennit Epsilon", zennit("Epsilon")),
        ]
        if model == "ViT-B/16":
            continue
        resnet = model == "ResNet-50"
        found += [
            Row(model, "lrp_zplus", lrp(presets.lrp_zplus()), 1.5 if resnet else 1.8),
            Row(model, "zennit EpsilonPlus", zennit("EpsilonPlus")),
            Row(model, "lrp_alpha_beta (2, 1)", lrp(presets.lrp_alpha_beta(2, 1)), 2.4 if resnet else 2.8),
            Row(model, "zennit EpsilonAlpha2Beta1", zennit("EpsilonAlpha2Beta1")),
        ]
    found += [
        Row("ViT-B/16", "attn_lrp without γ", lrp(presets.attn_lrp(0, 0)), 1.3),
        Row("ViT-B/16", "attn_lrp", lrp(presets.attn_lrp())),
        Row("ViT-B/16", "transformer_lrp", transformer_lrp, 2.7),
        Row("ViT-B/16", "plain", plain, batch=1),
        Row("ViT-B/16", "transformer_lrp", transformer_lrp, 2.7, batch=1, memory_limit=10**9),
    ]
    if _has("lxt"):
        model = "ViT-B/16 (torchvision)"
        found += [
            Row(model, "plain", plain),
            Row(model, "cp_lrp without γ", lrp(presets.cp_lrp(0, 0))),
            Row(model, "LXT CP-LRP without γ", lxt),
        ]
    return found


# Measuring.


@dataclass(frozen=True)
class Machine:
    """Where it runs, and how large."""

    device: str
    dtype: torch.dtype
    quick: bool

    def model_and_images(self, row: Row) -> tuple[nn.Module, Tensor]:
        batch = 2 if self.quick and row.batch > 1 else 64 if self.device == "cuda" and row.batch > 1 else row.batch
        model = build(row.model, self.quick).to(self.device, self.dtype)
        side = 64 if self.quick else 224
        generator = torch.Generator().manual_seed(1)
        return model, torch.randn(batch, 3, side, side, generator=generator).to(self.device, self.dtype)


def times(machine: Machine, of_model: list[Row], rounds: int) -> dict[Row, list[float]]:
    """Seconds of each row in each round, after one round that does not count."""
    model, images = machine.model_and_images(of_model[0])
    works = {row: partial(row.work, model, images) for row in of_model}
    if not machine.quick:
        interleaved(machine.device, works, 1)
    return interleaved(machine.device, works, rounds)


def memory(machine: Machine, row: Row) -> dict[str, int]:
    """Bytes above the loaded model and its images: of `tensors`, and of `resident` memory; in this very process."""
    model, images = machine.model_and_images(row)
    with torch.no_grad():
        model(images)
    known = [*model.parameters(), *model.buffers(), images]
    return peak_memory(machine.device, partial(row.work, model, images), known)


def in_a_process_of_its_own(machine: Machine, index: int) -> dict[str, int]:
    command = [sys.executable, __file__, "--memory-of", str(index), "--device", machine.device]
    command += ["--dtype", str(machine.dtype).removeprefix("torch."), *["--quick"] * machine.quick]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


# The table.


def table(machine: Machine, rounds: int) -> Iterator[str]:
    """The table's lines as they are known."""
    kind = "resident memory" if machine.device == "cpu" else None
    heads = [
        "model",
        "batch",
        "method",
        "time, × plain",
        "least to largest",
        "at most",
        "tensors, MB an image",
        "× plain",
    ]
    yield f"| {' | '.join([*heads, *([kind + ', MB'] if kind else [])])} |"
    yield f"|{'---|' * (len(heads) + bool(kind))}"
    every = rows()
    for model, batch in dict.fromkeys((row.model, row.batch) for row in every):
        group = [row for row in every if (row.model, row.batch) == (model, batch)]
        found = times(machine, group, rounds)
        of_plain = found[group[0]]
        plain_bytes = None
        for row in group:
            used = in_a_process_of_its_own(machine, every.index(row))
            plain_bytes = plain_bytes or used["tensors"]
            ratios = [mine / theirs for mine, theirs in zip(found[row], of_plain, strict=True)]
            count = len(machine.model_and_images(row)[1])
            cells = [
                model, str(count), f"`{row.method}`" if row.method in hp.methods() else row.method,
                f"{statistics.median(ratios):.2f}" if row.method != "plain" else f"1 ({statistics.median(of_plain):.2f} s)",
                f"{min(ratios):.2f} to {max(ratios):.2f}" if row.method != "plain" else _seconds(of_plain),
                "" if row.limit is None else f"{row.limit}",
                f"{used['tensors'] / count / 1e6:.0f}", f"{used['tensors'] / plain_bytes:.2f}",
            ]  # fmt: skip
            if kind:
                limit = "" if row.memory_limit is None else f" (at most {row.memory_limit / 1e6:.0f})"
                cells.append(f"{used['resident'] / 1e6:.0f}{limit}")
            yield f"| {' | '.join(cells)} |"


def _seconds(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f} s"


def report(machine: Machine, rounds: int) -> str:
    batch = 64 if machine.device == "cuda" else 8
    name = str(machine.dtype).removeprefix("torch.")
    lines = [f"Batch {batch}, {name}, median of {rounds} rounds. {machine_in_words(machine.device)}.", ""]
    print(*lines, sep="\n")
    for line in table(machine, rounds):
        print(line, flush=True)
        lines.append(line)
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test: tiny models, one round, nothing written")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)  # the row measured in this process
    chosen = parser.parse_args()
    if chosen.memory_of is not None:
        machine = Machine(chosen.device, getattr(torch, chosen.dtype), chosen.quick)
        print(json.dumps(memory(machine, rows()[chosen.memory_of])))
        return
    dtypes = [torch.float32, torch.bfloat16] if chosen.device == "cuda" else [torch.float32]
    parts = [
        report(Machine(chosen.device, dtype, chosen.quick), 1 if chosen.quick else chosen.rounds) for dtype in dtypes
    ]
    if chosen.device == "cpu":
        parts.append("The same on a GPU (batch 64, float32 and bfloat16) was not run: there was none.\n")
        print(parts[-1])
    if chosen.quick:
        return
    text = "\n".join(parts)
    (RESULTS / "relevance.md").write_text(
        f"# What relevance costs\n\nMade by `make bench-relevance`; what is measured stands there.\n\n{text}"
    )
    write_between(MARKS, text)


if __name__ == "__main__":
    main()
