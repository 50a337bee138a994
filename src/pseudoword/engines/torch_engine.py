"""The torch engine: one optimizer step over rows only, on Accelerate's devices and processes."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, TypeVar, cast

import numpy as np
import psutil
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast_object_list, parse_flag_from_env, reduce
from jaxtyping import Float

from pseudoword import families, objectives
from pseudoword.batch import Batch, Draw, Pair, parts
from pseudoword.contracts import Engine, Family, Method, NonFiniteLoss
from pseudoword.engines import compiling, steps, switches, updates
from pseudoword.engines.updates import Params
from pseudoword.errors import RecipeError, first_line
from pseudoword.recipe import BaseModel, EngineRecipe
from pseudoword.schedules import Shape
from pseudoword.weightings import Weighting

log = logging.getLogger(__name__)

T = TypeVar("T")
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchEngine:
    """Devices and processes from Accelerate, parameters of each concept, and the step that updates them."""

    devices = 1

    def __init__(
        self, options: EngineRecipe, gradient_clip: float | None = None, weighting: Weighting | None = None
    ) -> None:
        # Only devices and processes: Accelerate's precision is one for all, and two engines may differ in theirs.
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or (launched > 1 and not torch.accelerator.is_available())
        self.place = PartialState(cpu=on_cpu)
        if self.place.distributed_type == DistributedType.XLA:
            raise RecipeError("The torch engine does not run on TPUs (the JAX engine does); use a GPU or CPU.")
        self.device = torch.device(self.place.device or "cpu")
        self.dtype = DTYPES[options.precision]
        self.is_main: bool = self.place.is_main_process
        self.processes: int = self.place.num_processes
        if launched != self.processes:
            raise RecipeError(
                f"A launcher started {launched} processes, but Accelerate runs {self.processes}; "
                "start them with `accelerate launch`, with --cpu if they have no accelerator each."
            )
        self.options, self.gradient_clip, self.weighting = options, gradient_clip, weighting
        self.tokens: list[str] = []
        self.params: list[Params] = []
        self.state: list[Params] = []
        self.step_number = 0
        self.loss_scale = 2.0**16 if options.precision == "fp16" else 1.0
        self.good_steps = 0
        self.largest = sys.maxsize
        """Pictures that fit into memory at once, as far as is known."""
        self.compiled = False
        switches.check(options, self.device)

    def prepare(self, family: Family) -> None:
        """Put what encodes pictures on the device; the rest of the base follows when training starts."""
        family.bring_vae(self.device)

    def start(
        self,
        family: Family,
        method: Method,
        rows: Mapping[str, Mapping[str, np.ndarray]],
        state: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    ) -> None:
        """Take up concepts with their starting rows `[vectors, width]` by token and text encoder."""
        self.family, self.method, self.tokens = family, method, list(rows)
        params, states = steps.begun(method, rows, state)
        self.params, self.state = ([self._tensors(own) for own in several] for several in (params, states))
        self._bring(family)

    def _bring(self, family: Family) -> None:
        """Put the frozen base on the device in this engine's precision; what is idle by now is no longer there."""
        on_gpu, half = self.device.type == "cuda", self.dtype != torch.float32
        family.bring(self.device, self.dtype, eight_bits=self.options.memory == "lowest", channels_last=on_gpu and half)
        if self.options.xformers:
            family.use_xformers()
        if self.options.recomputes:
            family.checkpoint_gradients()

    def compile(self, first: Callable[[], Sequence[Pair]], steps: int, known: bool | None) -> bool:
        """Compile the denoiser if that is wanted, or pays over so many steps; see `contracts.Engine`."""
        with switches.thrown(self.options):  # the compiler looks at them
            return self._compile(first, steps, {"on": True, "off": False, "auto": known}[self.options.compile])

    def _compile(self, first: Callable[[], Sequence[Pair]], steps: int, wanted: bool | None) -> bool:
        if wanted is None:
            pays, device, layers = compiling.pays, self.device.type, self.family.layers
            wanted = self.on_main(lambda: pays(device, layers, steps, lambda: self._seconds(first())))
        if wanted:
            pairs = first()
            one_shape = len({batch.mean.shape for batch, _ in pairs}) == 1
            # Graphs are replayed on CUDA: the host then launches one for a pass instead of thousands of kernels.
            replayed = self.device.type == "cuda" and one_shape
            self.family.compile("reduce-overhead" if replayed else "default", dynamic=False if one_shape else None)
            self.compiled = True
            log.info("Compiling the denoiser, which takes a minute or two")
            list(self._as_fits(pairs, self._differentiation(self._leaves(), self._counts(pairs))))
        return self.compiled

    def _seconds(self, pairs: Sequence[Pair]) -> float:
        """Return what the passes of a step take, after one that warms up."""
        took = 0.0
        for _ in range(2):
            began = time.perf_counter()
            for loss, _grads in self._as_fits(pairs, self._differentiation(self._leaves(), self._counts(pairs))):
                loss.tolist()
            took = time.perf_counter() - began
        return took

    def _without_compiling(self, error: Exception) -> bool:
        """Go on without a compiler that has failed; whether there was one."""
        if not self.compiled:
            return False
        log.warning("torch.compile failed (%s); going on without it, which is slower.", first_line(error))
        self.family.compile(None)
        self.compiled = False
        return True

    # Processes

    def share(self, batch_size: int, gradient_accumulation_steps: int) -> list[int]:
        """Return this process' pictures of a step: indices into each concept's own global batch."""
        return steps.share(self.place.process_index, self.processes, batch_size, gradient_accumulation_steps)

    def free_memory(self) -> int:
        """Return the bytes that are free on the device."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        return psutil.virtual_memory().available // self.processes

    def kept_for_gradient(self, base: BaseModel, shape: Shape, pictures: int) -> int:
        """Return the bytes that a forward pass over so many pictures keeps for the gradient; see `contracts.Engine`."""
        _, height, width = shape
        factor, options = self.family.latent_factor, self.options
        size, half = (width * factor, height * factor), options.precision != "no"
        costs = families.part(base.family, "costs")
        return costs.kept_for_gradient(base, size, pictures, half=half, recomputed=options.recomputes)

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

    def step(self, micro_batches: Sequence[Pair], lr: float) -> dict[str, float]:
        """Carry out one optimizer step and return each concept's mean loss over its global batch.

        Raises NonFiniteLoss, with parameters and state as before the step, if a loss or gradient is not finite.
        """
        own = [i for i, count in enumerate(self._counts(micro_batches)) if count]
        scaled = self.loss_scale, self.good_steps
        while True:
            with switches.thrown(self.options):
                losses, grads = self._gradients(micro_batches)
            updated = self._updated({i: grads[i] for i in own}, lr)
            finite = [
                torch.stack([losses[i].isfinite(), *(updates.finite(torch, part) for part in (grads[i], *updated[i]))])
                for i in own
            ]
            # The one time in a step that the host waits for the device.
            told = torch.cat(
                [torch.stack([losses[i] for i in own]), torch.stack(finite).to(losses.dtype).flatten()]
            ).tolist()
            flags = [told[len(own) + 4 * i :][:4] for i in range(len(own))]
            reasons = {
                self.tokens[i]: steps.reason(flag, self.step_number + 1)
                for i, flag in zip(own, flags, strict=True)
                if not all(flag)
            }
            if not any(loss and not grad for loss, grad, *_ in flags) or self.loss_scale <= 1.0:
                break
            self.loss_scale, self.good_steps = self.loss_scale / 2, 0  # fp16 overflow: the same draws again
        if reasons:
            self.loss_scale, self.good_steps = scaled
            raise NonFiniteLoss(reasons)
        for i, (params, state) in updated.items():
            self.params[i], self.state[i] = params, state
        self.step_number += 1
        self._raise_loss_scale()
        return {self.tokens[i]: loss for i, loss in zip(own, told, strict=False)}

    def _counts(self, micro_batches: Sequence[Pair]) -> list[int]:
        """Return how many pictures of each concept these are."""
        return steps.counts(micro_batches, len(self.tokens))

    def _gradients(self, micro_batches: Sequence[Pair]) -> tuple[torch.Tensor, list[Params]]:
        """Return losses and unscaled gradients by concept, averaged over its pictures and processes."""
        leaves = self._leaves()
        flat = [p for own in leaves for p in own.values()]
        losses = torch.zeros(len(self.tokens), device=self.device)
        grads = [torch.zeros_like(p) for p in flat]
        for loss, found in self._as_fits(micro_batches, self._differentiation(leaves, self._counts(micro_batches))):
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

    def _leaves(self) -> list[Params]:
        return [{name: p.detach().requires_grad_() for name, p in own.items()} for own in self.params]

    def _differentiation(
        self, leaves: Sequence[Params], counts: Sequence[int]
    ) -> Callable[[Batch, Draw], tuple[torch.Tensor, Sequence[torch.Tensor]]]:
        """Return what gives the losses of some pictures, and their scaled gradients."""
        flat = [p for own in leaves for p in own.values()]

        def differentiated(batch: Batch, draw: Draw) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
            loss = self._loss(leaves, batch, draw, counts, weighted=True)
            return loss.detach(), torch.autograd.grad(loss.sum() * self.loss_scale, flat)

        return differentiated

    def _as_fits(self, pairs: Sequence[Pair], work: Callable[[Batch, Draw], T]) -> Iterator[T]:
        """Yield what `work` makes of as many pictures at once as fit into memory."""
        waiting = [part for pair in pairs for part in parts(pair, self.largest)]
        while waiting:
            batch, draw = waiting[0]
            try:
                made = work(batch, draw)
            except RuntimeError as error:
                if not self.family.is_full(error):
                    if self._without_compiling(error):
                        continue
                    raise
                self.largest = steps.halved(len(batch.concept), "memory 'low' or 'lowest'")
                waiting = [part for pair in waiting for part in parts(pair, self.largest)]
                continue
            waiting.pop(0)
            yield made

    def _loss(
        self, params: Sequence[Params], batch: Batch, draw: Draw, counts: Sequence[int], *, weighted: bool = False
    ) -> Float[torch.Tensor, " concepts"]:
        """Return the squared error of each concept's pictures here over how many it has in all (Gal et al., eq. 2).

        Summed over a step, that is each concept's mean. Where places are weighted, a picture's error is their weighted
        mean, so it does not depend on a mask's area.
        """
        family = self.family
        noise, timestep = self._put(draw.noise), self._put(draw.timestep)
        latents = family.latents(self._put(batch.mean), self._put(batch.std), self._put(draw.posterior))
        alpha, sigma = family.noise_levels(timestep)
        prediction = family.denoise(
            objectives.noised(latents, noise, alpha, sigma), timestep, self._told(params, batch)
        )
        squares = (prediction - family.target(latents, noise, alpha, sigma)).square()
        if batch.weight is None:
            error = squares.flatten(1).mean(1)
        else:
            weight = self._put(batch.weight).flatten(1)
            error = (squares.mean(1).flatten(1) * weight).sum(1) / weight.sum(1)
        if weighted and self.weighting:
            error = error * self.weighting(torch, alpha, sigma, family.prediction_type).flatten()
        # Chosen, not multiplied by zeros: one concept's NaN is none of the others'.
        own = batch.concept == np.arange(len(self.tokens))[:, None]
        share = self._put(1 / np.asarray(counts, dtype=np.float32)[batch.concept])
        return torch.where(self._put(own), error * share, 0.0).sum(1)

    def _told(self, params: Sequence[Params], batch: Batch) -> Any:
        """Return what the denoiser is told of pictures; what several of them have as a prompt is encoded once."""
        widths = [block.shape[1] for block in batch.ids.values()]
        several = np.concatenate(list(batch.ids.values()), axis=1)
        prompts, prompt = np.unique(several, axis=0, return_inverse=True)
        blocks = np.split(prompts, np.cumsum(widths)[:-1], axis=1)
        ids = {encoder: self._put(block) for encoder, block in zip(batch.ids, blocks, strict=True)}
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.family.condition(
                ids, self._rows(params), self._put(batch.placement), self._put(prompt.reshape(-1))
            )

    def _rows(self, params: Sequence[Params]) -> dict[str, torch.Tensor]:
        """Return all concepts' rows under each other, per text encoder."""
        blocks = [self.method.rows(torch, own) for own in params]  # pyright: ignore[reportArgumentType]
        return {encoder: torch.cat([own[encoder] for own in blocks]) for encoder in blocks[0]}

    def _updated(self, grads: Mapping[int, Params], lr: float) -> dict[int, tuple[Params, Params]]:
        """Return new parameters and state of the concepts that have gradients."""
        own = {
            i: (self.params[i], updates.clipped(torch, g, self.gradient_clip), self.state[i]) for i, g in grads.items()
        }
        return updates.updated(torch, torch.vmap, self.method, own, lr, self.step_number)

    def _raise_loss_scale(self) -> None:
        """Double the loss scale after 2,000 steps without overflow, as torch's GradScaler."""
        self.good_steps += 1
        if self.options.precision == "fp16" and self.good_steps % 2000 == 0:
            self.loss_scale *= 2

    @torch.no_grad()
    def fixed_loss(self, batches: Sequence[Pair]) -> dict[str, float]:
        """Return each concept's mean loss over given draws without training: comparable between steps and runs."""
        counts = self._counts(batches)

        def loss(batch: Batch, draw: Draw) -> torch.Tensor:
            return self._loss(self.params, batch, draw, counts)

        with switches.thrown(self.options):
            losses = torch.stack(list(self._as_fits(batches, loss))).sum(0).tolist()
        return {token: loss for token, loss, count in zip(self.tokens, losses, counts, strict=True) if count}

    # State

    def rows(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the learned rows by token and text encoder."""
        blocks = [self.method.rows(torch, own) for own in self.params]  # pyright: ignore[reportArgumentType]
        return {
            t: {e: b.detach().cpu().numpy() for e, b in own.items()} for t, own in zip(self.tokens, blocks, strict=True)
        }

    def snapshot(self, tokens: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Return everything a later step of these concepts, or of all, depends on, as named arrays."""
        members = [self.tokens.index(token) for token in (self.tokens if tokens is None else tokens)]
        params, state = (
            [{name: block.detach().cpu().numpy() for name, block in blocks[i].items()} for i in members]
            for blocks in (self.params, self.state)
        )
        scale = np.asarray([self.loss_scale, self.good_steps], dtype=np.float64)
        return {"loss_scale": scale, **steps.snapshot(params, state)}

    def restore(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Go back to a snapshot taken after `step` steps; RunError if it is not one of these concepts and method."""
        steps.check_snapshot(step, self.snapshot(), arrays)
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
            "mixed_precision": self.options.precision,
            "allow_tf32": str(self.options.allow_tf32),
            "xformers": str(self.options.xformers),
            "gradient_checkpointing": str(self.options.recomputes),
            "eight_bits": str(self.options.memory == "lowest"),
            "deterministic": str(self.options.deterministic),
        }

    def _tensors(self, arrays: Mapping[str, np.ndarray]) -> Params:
        return {name: self._put(array).float() for name, array in arrays.items()}

    def _put(self, array: np.ndarray) -> torch.Tensor:
        """Copy to the device; to an accelerator from pinned memory, so that the host does not wait for it."""
        tensor, on_cuda = torch.from_numpy(np.array(array)), self.device.type == "cuda"
        return (tensor.pin_memory() if on_cuda else tensor).to(self.device, non_blocking=on_cuda)


ENGINE: type[Engine] = TorchEngine
