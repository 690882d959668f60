"""The learning rate as a function of the step, so that a training can go on anywhere."""

import math

from heatproof.training.options import Options


def rate(step: int, options: Options, steps_per_epoch: int) -> float:
    """The learning rate of a step, as a share of `options.lr`.

    The rate rises linearly over the W steps of the warm-up, from 1/W to 1. Then it stays (`constant`), or falls along
    half a cosine, `(1 + cos(π t / T)) / 2` in the t-th of the T steps left (`cosine`, `loshchilov2017sgdr` without
    restarts), as if none of the epochs were spared by early stopping.

    Args:
        step: from 0, over all epochs.
        options: `schedule`, `warmup` and `epochs` matter.
        steps_per_epoch: batches an epoch.
    """
    warmup = math.ceil(options.warmup * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if options.schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * (step - warmup) / (options.epochs * steps_per_epoch - warmup))) / 2
