"""LeGrad: how the tokens of every block, read as if they were the last, answer to their own attention."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from heatproof.errors import UnsupportedModelError
from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.relevance import ForwardPass, presets, run
from heatproof.relevance.mode import RelevanceMode
from heatproof.relevance.tokens import attention_matrices, per_head, token_grid
from heatproof.tracing import Operation


@explainer("legrad", family="attention", signed=False, needs={"attention"}, paper="bousselham2025legrad")
def legrad(model: Classifier, images: Tensor, targets: Targets) -> Tensor:
    """LeGrad: the positive gradient of each block's own score by its attention, summed over the blocks.

    It shows which tokens could raise the score if they were heeded more, whether they are or not. Early blocks are read by a
    head that was trained for the last one.

    Formula:
        Σ_b mean over heads and rows of (∂s_b/∂A_b)⁺
        s_b: the score that the rest of the model, its last norm and its head, gives to the tokens that leave block b

    Cost:
        2 forward passes, L · T ways back. The second pass is for the first image of a batch alone, to find the blocks. The
        norm and the head run for all blocks at once; a way back goes through one block.

    Models:
        ViT. The blocks must be modules of their own, each of which takes what the one before returns.

    Returns:
        Maps `[B, T, h, w]` on the token grid.

    Checked:
        the authors' formula in float64, to 1e-5: tests/explainers/test_attention_gradients.py.
        hooks on the modules of timm's models, to 1e-3: tests/peers/test_attention_family.py.

    Raises:
        UnsupportedModelError: the blocks are not modules of their own, each of which takes what the one before returns.
    """
    passed = _read_after_every_block(model, images)
    matrices = attention_matrices(passed)
    grid, prefix = token_grid(passed.capture, matrices[-1].shape[-1])
    maps = []
    for turn in zip(*(targets.in_turn(logits) for logits in passed.logits.chunk(len(matrices))), strict=True):
        total = images.new_zeros(len(images), matrices[-1].shape[-1])
        for attention, (score, last) in zip(matrices, turn, strict=True):
            freeing = last and attention is matrices[-1]
            (gradient,) = passed.per_unit(score, [attention], phase="gradient", last=freeing)
            total = total + per_head(gradient, len(images)).clamp(min=0).mean((1, 2))
        maps.append(total[:, prefix:].unflatten(1, grid))
    return torch.stack(maps, 1)


class _Locating(RelevanceMode):
    """Notes the path of the module that runs each attention."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.paths: list[str] = []

    def operation(self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation."""
        count = len(self.capture.attention)
        result = super().operation(operation, args, kwargs)
        if len(self.capture.attention) > count:
            self.paths.append(self.module_path())
        return result


@dataclass(frozen=True)
class _Rows:
    """A classifier that may return other rows of logits than one an image."""

    classifier: Classifier

    @property
    def module(self) -> nn.Module:
        return self.classifier.module

    def __call__(self, images: Tensor) -> Tensor:
        return self.classifier.logits_of(self.module(images))


def _read_after_every_block(model: Classifier, images: Tensor) -> ForwardPass:
    """A pass whose logits are `[L * B, K]`: of the tokens after the first of L blocks, after the second, and so on."""
    look = run(model, images[:1], presets.NOTHING, gradients=False, engine=_Locating)
    attention_matrices(look)
    blocks = _blocks(model.module, cast(_Locating, look.mode).paths)
    with _every_output_from_the_last(blocks):
        passed = run(_Rows(model), images, presets.NOTHING)
    if len(passed.logits) != max(1, len(blocks)) * len(images):
        raise UnsupportedModelError(
            f"LeGrad reads the tokens of all {len(blocks)} blocks at once, as if they were more images, and the model gives "
            f"{len(passed.logits)} rows of logits for {len(images)} images. Use generic_attention or transformer_lrp."
        )
    return passed


def _blocks(module: nn.Module, paths: Sequence[str]) -> list[nn.Module]:
    """The largest module around each attention in which no other runs; none where there is one attention only."""
    if len(paths) == 1:
        return []
    found = []
    for n, path in enumerate(paths):
        parts = path.split(".")
        around = (".".join(parts[: depth + 1]) for depth in range(len(parts)))
        others = [f"{other}." for m, other in enumerate(paths) if m != n]
        block = next((name for name in around if not any(other.startswith(f"{name}.") for other in others)), None)
        if block is None:
            raise _without_blocks(f"{path} runs more than one attention")
        found.append(module.get_submodule(block))
    return found


@contextmanager
def _every_output_from_the_last(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """While open, the last block returns what each block returned, one after the other along the batch."""
    outputs: list[Tensor] = []
    left: list[Tensor] = []  # by the block before, as it is handed on
    thread = threading.get_ident()

    def collect(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        if threading.get_ident() != thread:  # somebody else runs the same model
            return output
        tokens = output[0] if isinstance(output, tuple) else output
        if left and next(iter((*args, *kwargs.values())), None) is not left[-1]:
            raise _without_blocks("a block does not take what the one before returns")
        left[:] = [tokens]
        outputs.append(tokens.clone())  # the model may go on to write into them
        if len(outputs) < len(blocks):
            return output
        together = torch.cat(outputs)
        return (together, *output[1:]) if isinstance(output, tuple) else together

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_hook(collect, with_kwargs=True).remove)
        yield


def _without_blocks(why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        "LeGrad reads the tokens after every block, which must be a module that takes what the one before returns; in this "
        f"model {why}. Use generic_attention or transformer_lrp."
    )
