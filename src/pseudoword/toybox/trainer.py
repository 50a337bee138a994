"""What the toybox's training scripts share: one optimizer step, averaged weights, a schedule, and exact checkpoints."""

from __future__ import annotations

import dataclasses
import io
import logging
import math
import pickle
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pseudoword import disk
from pseudoword.errors import RecipeError, TrainingStopped, first_line
from pseudoword.progress import Progress
from pseudoword.settings import at_least, check_seed
from pseudoword.toybox.muon import Muon

log = logging.getLogger(__name__)

EVERY_SECONDS = 240
"""Time between checkpoints."""
EVERY_STEPS = 250
"""Steps between lines in the log, each with the mean loss since the last."""


@dataclass(frozen=True)
class Rate:
    """A learning rate that warms up, stays, and falls to zero at the end; the end may be moved while it stays."""

    peak: float
    warmup: int
    steps: int
    decay: int

    def __call__(self, step: int) -> float:
        """Return the rate of a step, counted from 0."""
        left = (self.steps - step) / max(self.decay, 1)
        return (
            self.peak * min(1.0, (step + 1) / self.warmup) * (0.5 - 0.5 * math.cos(math.pi * min(1.0, max(0.0, left))))
        )


def made_before(path: Path, command: str) -> Path:
    """Return the path of what an earlier stage has made, or say which one to run."""
    if not path.exists():
        raise RecipeError(f"There is no {str(path)!r} yet: pseudoword toybox {command} makes it.")
    return path


@contextmanager
def reading(path: Path, command: str) -> Iterator[None]:
    """Read an earlier stage's result in this block; RecipeError if it cannot be."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, AttributeError, SafetensorError) as error:
        raise RecipeError(
            f"{str(path)!r} cannot be read ({first_line(error)}); delete it and run pseudoword toybox {command} again."
        ) from error


def check(options: Any) -> None:
    """Raise RecipeError naming the first of a stage's options that no run can have."""
    given = {f"--{name.replace('_', '-')}": value for name, value in vars(options).items()}
    counts = ("--steps", "--batch-size", "--pictures", "--pairs", "--sheet-every", "--whole", "--latent-channels")
    at_least(1, **{flag: given[flag] for flag in counts if flag in given})
    at_least(0, **{flag: given[flag] for flag in ("--decay", "--learning-rate") if flag in given})
    check_seed(**{"--seed": options.seed})
    with disk.writing(options.folder):
        options.folder.mkdir(parents=True, exist_ok=True)


def draws(seed: int, step: int, purpose: int) -> np.random.Generator:
    """Return the random numbers of one step, from (seed, step, purpose) alone, so that resuming needs no state."""
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, 0, step, 0]))


def device() -> torch.device:
    """Return the accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(where: torch.device) -> torch.dtype:
    """Return bfloat16 where the hardware computes in it; on other processors it is a hundred times slower."""
    if where.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16
    return torch.float32


def _by_kind(modules: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Part the inner weights, which Muon is for, from biases, norms, embeddings, and first and last layers."""
    ends = ("conv_in", "conv_out", "quant_conv", "embedding", "head")
    inner = {n: p for n, p in modules.named_parameters() if p.ndim >= 2 and not any(end in n for end in ends)}
    return list(inner.values()), [p for n, p in modules.named_parameters() if n not in inner]


class Trainer:
    """Modules trained together, inner weights by Muon and the rest by AdamW, and an average of their weights."""

    def __init__(self, modules: dict[str, nn.Module], rate: Rate, *, weight_decay: float = 0.01) -> None:
        self.modules = nn.ModuleDict(modules)
        self.parameters = list(self.modules.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.rate = rate
        inner, rest = _by_kind(self.modules)
        self.optimizers = [
            Muon(inner, weight_decay=weight_decay),
            torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
        ]
        self.step = self.began_at = 0
        self.seconds = 0.0
        self._losses: deque[float] = deque(maxlen=EVERY_STEPS)
        self._began = time.perf_counter()
        self._saved = time.monotonic()

    def update(self, loss: Tensor) -> None:
        """Follow a loss by one step; the average reaches over a tenth of the run so far, at most 2000 steps."""
        rate = self.rate(self.step)
        self.modules.zero_grad()
        loss.backward()
        if not torch.nn.utils.clip_grad_norm_(self.parameters, 1.0).isfinite():
            raise TrainingStopped(
                f"Training stopped at step {self.step + 1}: its gradient is not finite. "
                "The last checkpoint is from before it; go on from there with a lower --learning-rate."
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self.step += 1
        share = max(1 / 2000, 10 / (self.step + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], share)

    def follow(
        self, checkpoint: Path, loss: Callable[[int], Tensor], after: Callable[[int], None] | None = None
    ) -> Generator[Progress]:
        """Go on from a checkpoint to the end, step by step; closed before that, it keeps one of the last whole step.

        `loss` is a function of the step from 0; `after` is told how many are done.
        """
        self.resume(checkpoint)
        self.began_at = self.step
        self._began = time.perf_counter()
        try:
            while self.step < self.rate.steps:
                made = loss(self.step)
                self.update(made)
                progress = self._progress(made)
                if after:
                    after(self.step)
                yield dataclasses.replace(progress, saved=self._save_sometimes(checkpoint))
        except GeneratorExit:
            self.save(checkpoint)
            raise

    def _progress(self, loss: Tensor) -> Progress:
        """Return the report of the step just done."""
        began, self._began = self._began, time.perf_counter()
        self.seconds += self._began - began
        rate = self.rate(self.step - 1)
        self._losses.append(loss.item())
        if self.step % EVERY_STEPS == 0:
            mean = sum(self._losses) / len(self._losses)
            log.info("step %d: mean loss %.4f, after %.2f hours", self.step, mean, self.seconds / 3600)
        return Progress(self.step, self.rate.steps, {"toybox": self._losses[-1]}, rate, self._began - began)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averaged weights into the modules for a while, ready for use."""
        own = [p.detach().clone() for p in self.parameters]
        self._put(self.average)
        self.modules.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._put(own)
            self.modules.train()

    def _put(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)

    def save(self, path: Path) -> Path:
        """Keep everything that the next step depends on; the file is whole or not there."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "modules": self.modules.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        content = io.BytesIO()
        torch.save(state, content)
        disk.write(path, content.getvalue())
        self._saved = time.monotonic()
        return path

    def _save_sometimes(self, path: Path) -> tuple[Path, ...]:
        """Save at the end of the run, and now and then before."""
        due = self.step == self.rate.steps or time.monotonic() - self._saved > EVERY_SECONDS
        return (self.save(path),) if due else ()

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint, if there is one."""
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.average[0].device, weights_only=True)
            step = int(state["step"])
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise RecipeError(
                f"The checkpoint {str(path)!r} cannot be read ({first_line(error)}); delete it to begin anew."
            ) from error
        if step > self.rate.steps:
            raise RecipeError(f"{str(path)!r} is at step {step}; --steps must be at least that.")
        try:
            self.modules.load_state_dict(state["modules"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except (RuntimeError, ValueError, KeyError) as error:
            raise RecipeError(
                f"The checkpoint {str(path)!r} is of other sizes; ask for the same ones, or take another --folder."
            ) from error
        self.average = state["average"]
        self.step, self.seconds = step, state["seconds"]
        log.info("Going on from step %d of %s", self.step, path)
