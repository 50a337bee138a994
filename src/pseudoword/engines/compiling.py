"""Whether compiling the denoiser pays over a run: seconds that it takes against those that it saves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from pseudoword.progress import clock

log = logging.getLogger(__name__)


class Cost(NamedTuple):
    """What compiling costs and brings on a kind of device."""

    seconds: float
    """To compile a layer (a convolution or a linear map), forward and backward."""
    saved: float
    """Share of a step's time."""


# On two CPU cores, PyTorch 2.13: 76 to 91 s for the toybox's 119 layers, a UNet 12% faster with 4 pictures and 22%
# slower with 32, so it is done on request alone. On CUDA nothing was measured yet: the share is a cautious reading
# of what PyTorch and diffusers report for UNets in bf16 (a fifth to a third), the seconds those of Stable Diffusion's.
COSTS = {"cuda": Cost(seconds=0.4, saved=0.2)}


def pays(device: str, layers: int, steps: int, seconds: Callable[[], float]) -> bool:
    """Whether it saves more seconds over so many steps than it takes; `seconds` times a step, where that is needed."""
    if device not in COSTS:
        return False
    cost = COSTS[device]
    took, a_step = cost.seconds * layers, seconds()
    saved = cost.saved * a_step * steps
    log.info(
        "Compiling the denoiser takes about %s and saves about %s of %d steps: %s",
        clock(took),
        clock(saved),
        steps,
        "compiled" if saved > took else "left as it is",
    )
    return saved > took
