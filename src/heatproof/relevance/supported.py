"""Which models can be followed operation by operation, said before they run."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from heatproof.errors import UnsupportedModelError

RECOMPUTES = (
    "The model computes activations again on the way back (torch.utils.checkpoint, saved_tensors_hooks), which would not "
    "be what was seen. Switch that off, e.g. model.set_grad_checkpointing(False) in timm or "
    "model.gradient_checkpointing_disable() in transformers; outside the model, leave save_on_cpu and the like."
)

_DROPPING = frozenset(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout native_dropout".split()
)


def drops_at_random(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether this call of the operation `name` is a dropout that is switched on.

    >>> drops_at_random("dropout", (torch.ones(2), 0.1), {}), drops_at_random("dropout", (torch.ones(2), 0.1, False), {})
    (True, False)
    """
    if name not in _DROPPING:
        return False
    given = {**dict(zip(("input", "p", "training"), args, strict=False)), **kwargs}
    return bool(given.get("p", 0.5)) and bool(given.get("training", given.get("train", True)))


def check_supported(module: nn.Module) -> None:
    """Raise `UnsupportedModelError` for a module with a part whose operations cannot be seen or have no gradient."""
    for path, part in module.named_modules():
        if (obstacle := _obstacle(part)) is not None:
            which = f"The module {path!r} ({type(part).__name__})" if path else f"The model ({type(part).__name__})"
            raise UnsupportedModelError(f"{which} {obstacle}")


def _obstacle(part: nn.Module) -> str | None:
    """Why `part` cannot be followed, and what to do; None where it can."""
    obstacles = (
        (
            isinstance(part, torch.jit.ScriptModule),
            "runs in TorchScript, which hides its operations. Use the Python module that it was made from, or lime.",
        ),
        (
            "_orig_mod" in part._modules,
            "is compiled, which hides its operations. Use the module that it was made from: its attribute _orig_mod.",
        ),
        (
            part._compiled_call_impl is not None,
            "is compiled in place, which hides its operations. Use copy.deepcopy(model), which is not compiled.",
        ),
        (
            "quantized" in type(part).__module__.split("."),
            "is quantized, and no gradient passes through it. Use the model that it was made from, or lime.",
        ),
        (
            isinstance(part, nn.parallel.DistributedDataParallel),
            "is a wrapper for training on several processes. Use the model inside: its attribute module.",
        ),
        (
            isinstance(part, nn.DataParallel) and len(part.device_ids) > 1,
            "runs on several devices at once, out of sight. Use the model inside: its attribute module.",
        ),
        (
            any(t is not None and t.is_inference() for t in (*part._parameters.values(), *part._buffers.values())),
            "was made in inference mode, so no gradient passes by its weights. Use copy.deepcopy(model), made outside it.",
        ),
    )
    return next((obstacle for found, obstacle in obstacles if found), None)
