"""Number formats of a forward pass: float32, or bfloat16 where the device has it."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from heatproof.checks import check_choice
from heatproof.errors import InputError

Precision = Literal["fp32", "bf16"]


def bf16_supported(device: torch.device | str = "cpu") -> bool:
    """Whether `device` computes in bfloat16, rather than emulating it slowly."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def check_precision(precision: str, device: torch.device) -> None:
    """Raise `InputError` for a precision that does not exist or that `device` does not have."""
    check_choice("precision", precision, ("fp32", "bf16"))
    if precision == "bf16" and not bf16_supported(device):
        raise InputError(
            f"precision='bf16' needs bfloat16 arithmetic, which this {device.type} does not have. Use 'fp32'."
        )


def forward_pass(model: Callable[[Tensor], Tensor], images: Tensor, precision: Precision) -> Tensor:
    """Outputs of `model`, at least float32.

    In bfloat16, dense layers on one vector an image (the head) stay in float32: they cost nothing, and a logit rounded to
    8 bits hides the effect of a small mask. Images lie channels last, where convolutions are faster (DenseNet-121 1.4 times
    on a CPU), unless the model's own `view` of them cannot be had then.
    """
    if precision == "fp32":
        outputs = model(images)
    else:
        with torch.autocast(images.device.type, torch.bfloat16), _HeadInFloat32():
            try:
                outputs = model(images.contiguous(memory_format=torch.channels_last))
            except RuntimeError as error:
                if "view size is not compatible" not in str(error):
                    raise
                outputs = model(images.contiguous())
    return outputs.float() if outputs.element_size() < 4 else outputs


class _HeadInFloat32(TorchFunctionMode):
    """While it is entered, dense layers of `[n, features]` run in float32."""

    def __torch_function__(
        self, function: Callable[..., Any], _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is F.linear and args[0].ndim == 2:
            with torch.autocast(args[0].device.type, enabled=False):
                return function(args[0].float(), *args[1:], **(kwargs or {}))
        return function(*args, **(kwargs or {}))
