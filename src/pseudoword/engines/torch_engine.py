"""The torch engine: one optimizer step over rows only, on Accelerate's devices and processes."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any, TypeVar, cast

import numpy as np
import psutil
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast_object_list, parse_flag_from_env, reduce
from jaxtyping import Float

from pseudoword import objectives
from pseudoword.batch import Batch, Draw
from pseudoword.contracts import Family, Method, NonFiniteLoss
from pseudoword.errors import RecipeError, RunError, TrainingStopped
from pseudoword.families import memory
from pseudoword.recipe import EngineRecipe

log = logging.getLogger(__name__)

T = TypeVar("T")
Params = dict[str, torch.Tensor]
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchEngine:
    """Devices and processes from Accelerate, parameters of each concept, and the step that updates them."""

    def __init__(self, options: EngineRecipe, gradient_clip: float | None = None) -> None:
        # Only devices and processes: Accelerate's precision is one for all, and two engines may differ in theirs.
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or (launched > 1 and not torch.accelerator.is_available())
        self.place = PartialState(cpu=on_cpu)
        if self.place.distributed_type == DistributedType.XLA:
            raise RecipeError("The torch engine does not run on TPUs (a JAX engine will); use a GPU or CPU.")
        self.device = torch.device(self.place.device or "cpu")
        self.dtype = DTYPES[options.mixed_precision]
        self.is_main: bool = self.place.is_main_process
        self.processes: int = self.place.num_processes
        if launched != self.processes:
            raise RecipeError(
                f"A launcher started {launched} processes, but Accelerate runs {self.processes}; "
                "start them with `accelerate launch`, with --cpu if they have no accelerator each."
            )
        self.options, self.gradient_clip = options, gradient_clip
        self.tokens: list[str] = []
        self.params: list[Params] = []
        self.state: list[Params] = []
        self.step_number = 0
        self.loss_scale = 2.0**16 if options.mixed_precision == "fp16" else 1.0
        self.good_steps = 0
        self.largest = sys.maxsize
        """Pictures that fit into memory at once, as far as is known."""
        if options.xformers:
            _check_xformers(self.device)

    def prepare(self, family: Family) -> None:
        """Put the frozen base on the device in this engine's precision."""
        family.to(self.device, self.dtype)
        if self.options.xformers:
            family.use_xformers()
        if self.options.gradient_checkpointing:
            family.checkpoint_gradients()

    def start(
        self,
        family: Family,
        method: Method,
        rows: Mapping[str, Mapping[str, np.ndarray]],
        state: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    ) -> None:
        """Take up concepts with their starting rows `[vectors, width]` by token and text encoder."""
        self.family, self.method, self.tokens = family, method, list(rows)
        params = [method.params(blocks) for blocks in rows.values()]
        earlier = state or {}
        self.state = [
            self._tensors({**method.state(p), **earlier.get(token, {})}) for token, p in zip(rows, params, strict=True)
        ]
        self.params = [self._tensors(p) for p in params]

    # Processes

    def shares(self, batch_size: int, gradient_accumulation_steps: int, at_once: int) -> list[list[int]]:
        """Return this process' micro-batches of a step: indices into the concept's global batch."""
        first = self.place.process_index * batch_size
        stride = self.processes * batch_size
        own = [
            micro * stride + first + picture
            for micro in range(gradient_accumulation_steps)
            for picture in range(batch_size)
        ]
        together = max(1, at_once // batch_size) * batch_size
        return [own[i : i + together] for i in range(0, len(own), together)]

    def free_memory(self) -> int:
        """Return the bytes that are free on the device."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        return psutil.virtual_memory().available // self.processes

    def on_main(self, action: Callable[[], T]) -> T:
        """Let the main process act and return its result on every process; its error is raised on all of them."""
        outcome: list[Any] = [None]
        if self.is_main:
            try:
                outcome = [action()]
            except Exception as error:
                if self.processes == 1:
                    raise
                outcome = [error]
        if self.processes > 1:
            broadcast_object_list(outcome)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; the same answer on all."""
        if self.processes == 1:
            return flag
        count = cast(torch.Tensor, reduce(torch.tensor(float(flag), device=self.device), "sum"))
        return count.item() > 0

    # The step

    def step(self, micro_batches: Sequence[tuple[Batch, Draw]], lr: float) -> dict[str, float]:
        """Carry out one optimizer step and return each concept's mean loss over its global batch.

        Raises NonFiniteLoss, with parameters and state as before the step, if a loss or gradient is not finite.
        """
        while True:
            with _tf32(self.options.allow_tf32):
                losses, grads = self._gradients(micro_batches)
            finite = all(g.isfinite().all().item() for block in grads for g in block.values())
            if not torch.isfinite(losses).all():
                raise NonFiniteLoss(f"the loss of step {self.step_number + 1} is {losses.tolist()}")
            if finite:
                break
            if self.loss_scale <= 1.0:
                raise NonFiniteLoss(f"the gradient of step {self.step_number + 1} is not finite")
            self.loss_scale, self.good_steps = self.loss_scale / 2, 0  # fp16 overflow: the same draws again
        updated = [
            self.method.update(torch, params, self._clipped(own), state, lr, self.step_number)  # pyright: ignore[reportArgumentType]
            for params, own, state in zip(self.params, grads, self.state, strict=True)
        ]
        if not all(value.isfinite().all() for both in updated for block in both for value in block.values()):
            raise NonFiniteLoss(f"the update of step {self.step_number + 1} is not finite")
        self.params, self.state = ([both[i] for both in updated] for i in range(2))
        self.step_number += 1
        self._raise_loss_scale()
        return dict(zip(self.tokens, losses.tolist(), strict=True))

    def _gradients(self, micro_batches: Sequence[tuple[Batch, Draw]]) -> tuple[torch.Tensor, list[Params]]:
        """Return losses and unscaled gradients by concept, averaged over micro-batches and processes."""
        leaves = [{name: p.detach().requires_grad_() for name, p in own.items()} for own in self.params]
        flat = [p for own in leaves for p in own.values()]
        losses = torch.zeros(len(self.tokens), device=self.device)
        grads = [torch.zeros_like(p) for p in flat]

        def differentiated(batch: Batch, draw: Draw, share: float) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            loss = self._loss(leaves, batch, draw) * share
            return loss.detach(), torch.autograd.grad(loss.sum() * self.loss_scale, flat)

        for loss, found in self._as_fits(micro_batches, differentiated):
            for total, grad in zip(grads, found, strict=True):
                total += grad
            losses += loss
        share = 1.0 / self.processes
        everyone = torch.cat([losses * share, *(g.flatten() * (share / self.loss_scale) for g in grads)])
        if self.processes > 1:
            everyone = cast(torch.Tensor, reduce(everyone, "sum"))
        losses, *parts = torch.split(everyone, [len(losses), *(p.numel() for p in flat)])  # pyright: ignore[reportArgumentType, reportAssignmentType]
        shaped = iter([part.view_as(p) for part, p in zip(parts, flat, strict=True)])
        return losses, [{name: next(shaped) for name in own} for own in leaves]

    def _as_fits(self, pairs: Sequence[tuple[Batch, Draw]], work: Callable[[Batch, Draw, float], T]) -> Iterator[T]:
        """Yield what `work` makes of as many pictures at once as fit into memory, given their share of them all."""
        waiting = [part for pair in pairs for part in _parts(pair, self.largest)]
        pictures = sum(len(batch.concept) for batch, _ in waiting)
        while waiting:
            batch, draw = waiting[0]
            try:
                made = work(batch, draw, len(batch.concept) / pictures)
            except RuntimeError as error:
                if not memory.is_full(error):
                    raise
                self._halve(len(batch.concept))
                waiting = [part for pair in waiting for part in _parts(pair, self.largest)]
                continue
            waiting.pop(0)
            yield made

    def _halve(self, size: int) -> None:
        """Take half as many pictures at once from now on; the step's mean stays over all of them."""
        if size == 1:
            raise TrainingStopped(
                "The device has not enough memory for one picture. Try gradient_checkpointing, mixed_precision, "
                "or a smaller resolution."
            )
        self.largest = size // 2
        log.warning("Out of memory with %d pictures at once; going on with %d, the same step.", size, self.largest)
        memory.empty_cache()

    def _loss(self, params: Sequence[Params], batch: Batch, draw: Draw) -> Float[torch.Tensor, " concepts"]:
        """Return each concept's mean squared error over its pictures in this micro-batch (Gal et al. 2022, eq. 2).

        Where places are weighted, a picture's error is their weighted mean, so it does not depend on a mask's area.
        """
        family = self.family
        rows = self._rows(params)
        ids = {encoder: self._put(block) for encoder, block in batch.ids.items()}
        noise, timestep = self._put(draw.noise), self._put(draw.timestep)
        latents = family.latents(self._put(batch.mean), self._put(batch.std), self._put(draw.posterior))
        alpha, sigma = family.noise_levels(timestep)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            condition = family.condition(ids, rows, self._put(batch.placement))
        prediction = family.denoise(objectives.noised(latents, noise, alpha, sigma), timestep, condition)
        squares = (prediction - family.target(latents, noise, alpha, sigma)).square()
        if batch.weight is None:
            error = squares.flatten(1).mean(1)
        else:
            weight = self._put(batch.weight).flatten(1)
            error = (squares.mean(1).flatten(1) * weight).sum(1) / weight.sum(1)
        concept = self._put(batch.concept)
        return torch.stack([error[concept == i].mean() for i in range(len(self.tokens))])

    def _rows(self, params: Sequence[Params]) -> dict[str, torch.Tensor]:
        """Return all concepts' rows under each other, per text encoder."""
        blocks = [self.method.rows(torch, own) for own in params]  # pyright: ignore[reportArgumentType]
        return {encoder: torch.cat([own[encoder] for own in blocks]) for encoder in blocks[0]}

    def _clipped(self, grads: Params) -> Params:
        if self.gradient_clip is None:
            return grads
        norm = math.sqrt(sum(g.square().sum().item() for g in grads.values()))
        return {name: g * min(1.0, self.gradient_clip / max(norm, 1e-12)) for name, g in grads.items()}

    def _raise_loss_scale(self) -> None:
        """Double the loss scale after 2,000 steps without overflow, as torch's GradScaler."""
        self.good_steps += 1
        if self.options.mixed_precision == "fp16" and self.good_steps % 2000 == 0:
            self.loss_scale *= 2

    @torch.no_grad()
    def fixed_loss(self, batches: Sequence[tuple[Batch, Draw]]) -> dict[str, float]:
        """Return each concept's mean loss over given draws without training: comparable between steps and runs."""

        def loss(batch: Batch, draw: Draw, share: float) -> torch.Tensor:
            return self._loss(self.params, batch, draw) * share

        with _tf32(self.options.allow_tf32):
            losses = list(self._as_fits(batches, loss))
        return dict(zip(self.tokens, torch.stack(losses).sum(0).tolist(), strict=True))

    # State

    def rows(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the learned rows by token and text encoder."""
        blocks = [self.method.rows(torch, own) for own in self.params]  # pyright: ignore[reportArgumentType]
        return {
            t: {e: b.detach().cpu().numpy() for e, b in own.items()} for t, own in zip(self.tokens, blocks, strict=True)
        }

    def snapshot(self) -> dict[str, np.ndarray]:
        """Return everything a later step depends on, as named arrays."""
        arrays = {"loss_scale": np.asarray([self.loss_scale, self.good_steps], dtype=np.float64)}
        for i in range(len(self.tokens)):
            arrays |= {f"params.{i}.{name}": p.detach().cpu().numpy() for name, p in self.params[i].items()}
            arrays |= {f"state.{i}.{name}": s.detach().cpu().numpy() for name, s in self.state[i].items()}
        return arrays

    def restore(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Go back to a snapshot taken after `step` steps; RunError if it is not one of these concepts and method."""
        wanted = {name: array.shape for name, array in self.snapshot().items()}
        given = {name: array.shape for name, array in arrays.items()}
        if wanted != given:
            differing = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
            raise RunError(f"The checkpoint of step {step} is damaged or of another run: see {', '.join(differing)}.")
        self.step_number = step
        self.loss_scale, self.good_steps = float(arrays["loss_scale"][0]), int(arrays["loss_scale"][1])
        for i in range(len(self.tokens)):
            self.params[i] = self._tensors({name: arrays[f"params.{i}.{name}"] for name in self.params[i]})
            self.state[i] = self._tensors({name: arrays[f"state.{i}.{name}"] for name in self.state[i]})

    def arithmetic(self) -> dict[str, str]:
        """Return what the last bits of the result depend on besides the recipe."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        libraries = ("torch", "diffusers", "transformers", "numpy")
        return {
            **{name: metadata.version(name) for name in libraries},
            "device": device,
            "threads": str(torch.get_num_threads()),
            "processes": str(self.processes),
            "mixed_precision": self.options.mixed_precision,
            "allow_tf32": str(self.options.allow_tf32),
            "xformers": str(self.options.xformers),
            "gradient_checkpointing": str(self.options.gradient_checkpointing),
        }

    def _tensors(self, arrays: Mapping[str, np.ndarray]) -> Params:
        return {name: self._put(array).float() for name, array in arrays.items()}

    def _put(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array)).to(self.device)


def _parts(pair: tuple[Batch, Draw], largest: int) -> list[tuple[Batch, Draw]]:
    """Return a micro-batch in parts of at most `largest` pictures."""
    batch, draw = pair
    cuts = [slice(i, i + largest) for i in range(0, len(batch.concept), min(largest, len(batch.concept)))]
    return [pair] if len(cuts) == 1 else [(batch.part(cut), draw.part(cut)) for cut in cuts]


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Allow TF32 for the block, or not; the switch is one for the whole process."""
    switch = torch.backends.cuda.matmul
    before = switch.allow_tf32
    switch.allow_tf32 = allowed
    try:
        yield
    finally:
        switch.allow_tf32 = before


def _check_xformers(device: torch.device) -> None:
    """Refuse xformers where it cannot run."""
    try:
        import xformers  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise RecipeError("xformers is not installed: pip install xformers, or leave the option out.") from error
    if device.type != "cuda":
        raise RecipeError(f"xformers needs a CUDA device, but this is {device.type!r}; leave the option out.")


ENGINE = TorchEngine
