"""The JAX engine: one optimizer step over rows only, compiled, on a process' devices and those of others."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from pseudoword import objectives
from pseudoword.batch import Batch, Draw, Pair, parts
from pseudoword.contracts import Engine, Method, NonFiniteLoss
from pseudoword.engines import steps, updates
from pseudoword.engines.jax_places import Place
from pseudoword.engines.updates import Params
from pseudoword.errors import RecipeError, TrainingStopped
from pseudoword.recipe import BaseModel, EngineRecipe
from pseudoword.schedules import Shape
from pseudoword.weightings import Weighting

log = logging.getLogger(__name__)

T = TypeVar("T")
Given = Mapping[str, Any]
"""What a loss reads for some pictures, as arrays; see `Batch` and `Draw`."""
LATENTS = "mean", "std", "posterior", "noise"
FRACTIONS = (*LATENTS, "share")
"""What a loss reads that is not whole numbers."""
Totals = tuple[Float[jax.Array, " concepts"], list[Params]]
"""Losses of all concepts, and their gradients."""


class JaxEngine:
    """Parameters of each concept, and the compiled step that updates them; `Place` has devices and processes."""

    def __init__(
        self, options: EngineRecipe, gradient_clip: float | None = None, weighting: Weighting | None = None
    ) -> None:
        _refuse(options)
        self.place = Place()
        self.is_main: bool = self.place.process == 0
        self.processes: int = self.place.processes
        self.options, self.gradient_clip, self.weighting = options, gradient_clip, weighting
        self.dtype = jnp.bfloat16 if options.precision == "bf16" else jnp.float32
        self.tokens: list[str] = []
        self.params: list[Params] = []
        self.state: list[Params] = []
        self.step_number = 0
        self.largest = 2**31
        """Pictures that fit into memory at once, as far as is known."""

    @property
    def devices(self) -> int:
        """How many this process divides pictures over that are taken at once."""
        return self.place.count

    def prepare(self, family: Any) -> None:
        """Put what encodes pictures on the first device; the rest of the base follows when training starts."""
        family.bring_vae(self.place.one)

    def start(
        self,
        family: Any,
        method: Method,
        rows: Mapping[str, Mapping[str, np.ndarray]],
        state: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    ) -> None:
        """Take up concepts with their starting rows `[vectors, width]` by token and text encoder."""
        self.family, self.method, self.tokens = family, method, list(rows)
        params, states = steps.begun(method, rows, state)
        size = sum(array.nbytes for array in jax.tree.leaves(family.weights()))
        self.place.spread(size, spare=self.options.memory != "auto")
        family.bring(self.place.everywhere, self.dtype, recomputes=self.options.recomputes)
        self.params, self.state = ([self._put(own) for own in several] for several in (params, states))
        self.weights = {self.place.count: family.weights()}
        # What a step adds up is handed over to it. Rows and state are not: a step that fails must leave them.
        told: Any = {"compiler_options": self.place.compiler_options(deterministic=self.options.deterministic)}
        self._add = jax.jit(self._added, donate_argnums=0, **told)
        self._end = jax.jit(self._ended, static_argnums=0, **told)
        self._losses = jax.jit(self._loss, **told)

    def compile(self, first: Callable[[], Sequence[Pair]], steps: int, known: bool | None) -> bool:
        """Say that the first step will take a while: all are compiled, and there is nothing to choose."""
        del first, steps, known
        log.info("Compiling the step: the first one takes a while, unless an earlier run has left it")
        return False

    # Processes

    def share(self, batch_size: int, gradient_accumulation_steps: int) -> list[int]:
        """Return this process' pictures of a step: indices into each concept's own global batch."""
        return steps.share(self.place.process, self.processes, batch_size, gradient_accumulation_steps)

    def free_memory(self) -> int:
        """Return the bytes that are free on the devices."""
        return self.place.free_memory()

    def kept_for_gradient(self, base: BaseModel, shape: Shape, pictures: int) -> int:
        """Return the bytes that a forward pass over so many pictures keeps for the gradient; see `contracts.Engine`."""
        del base  # the loss itself is counted
        numbers = {"concept": (), "share": (), "timestep": (), "placement": (6,), **dict.fromkeys(LATENTS, shape)}
        given: dict[str, Any] = {
            name: np.broadcast_to(np.zeros((), np.float32 if name in FRACTIONS else np.int32), (pictures, *rest))
            for name, rest in numbers.items()
        }
        lengths = {encoder: words.model_max_length for encoder, words in self.family.vocabularies.items()}
        given["ids"] = {encoder: np.zeros((pictures, length), np.int32) for encoder, length in lengths.items()}

        def kept(params: Sequence[Params], weights: Any, given: Given) -> list[jax.Array]:
            _, pullback = jax.vjp(lambda params: self._loss(params, weights, given), params)
            held = {id(weight) for weight in jax.tree.leaves(weights)}
            return [array for array in jax.tree.leaves(pullback) if id(array) not in held]

        return sum(array.size * array.dtype.itemsize for array in jax.eval_shape(kept, *self._read(1), given))

    def on_main(self, action: Callable[[], T]) -> T:
        """Let the main process act and return its result on every process; its error is raised on all of them."""
        return self.place.on_main(action)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; the same answer on all."""
        return self.place.any(flag)

    # The step

    def step(self, micro_batches: Sequence[Pair], lr: float) -> dict[str, float]:
        """Carry out one optimizer step and return each concept's mean loss over its global batch.

        Raises NonFiniteLoss, with parameters and state as before the step, if a loss or gradient is not finite.
        """
        counts = steps.counts(micro_batches, len(self.tokens))
        own = tuple(i for i, count in enumerate(counts) if count)

        def work(pairs: Sequence[Pair]) -> list[Totals]:
            totals: dict[int, Totals] = {}  # by the number of devices that they are on
            for batch, draw in pairs:
                devices = self.place.devices_for(len(batch.concept))
                before = totals.pop(devices) if devices in totals else self._nothing(devices)
                totals[devices] = self._add(before, *self._read(devices), self._given(batch, draw, counts))
            return jax.block_until_ready(list(totals.values()))

        everyones = self._everyones(lambda: self._as_fits(micro_batches, work))
        answer, params, state = self._end(own, everyones, self.params, self.state, lr, self.step_number)
        told = np.asarray(answer)
        flags = told[len(own) :].reshape(len(own), 4)
        reasons = {
            self.tokens[i]: steps.reason(flag, self.step_number + 1)
            for i, flag in zip(own, flags.tolist(), strict=True)
            if not all(flag)
        }
        if reasons:
            raise NonFiniteLoss(reasons)
        self.params, self.state = params, state
        self.step_number += 1
        return {self.tokens[i]: loss for i, loss in zip(own, told.tolist(), strict=False)}

    def _as_fits(self, pairs: Sequence[Pair], work: Callable[[Sequence[Pair]], T]) -> T:
        """Return what `work` makes of pictures, as many at once as fit into memory; it starts over with fewer."""
        while True:
            fitting = [part for pair in pairs for part in parts(pair, self.largest)]
            try:
                return work(fitting)
            except RuntimeError as error:
                if not self.family.is_full(error):
                    raise
                self.largest = steps.halved(max(len(batch.concept) for batch, _ in fitting), "memory 'low'")

    def _given(self, batch: Batch, draw: Draw, counts: Sequence[int]) -> Given:
        """Return what the loss reads, on the devices."""
        share = 1 / np.asarray(counts, np.float32)[batch.concept]
        given = {name: getattr(batch, name) for name in ("ids", "mean", "std", "concept", "placement", "weight")}
        given |= {name: getattr(draw, name) for name in ("timestep", "posterior", "noise")}
        given = {name: value for name, value in {**given, "share": share}.items() if value is not None}
        pictures = len(batch.concept)
        devices = self.place.devices_for(pictures)
        if more := -pictures % devices:  # as many on each: copies of the last, which are no concept's
            given = jax.tree.map(lambda own: np.concatenate([own, np.repeat(own[-1:], more, axis=0)]), given)
            given["concept"][-more:] = -1
        return self.place.divide(given, devices)

    def _read(self, devices: int) -> tuple[list[Params], Any]:
        """Return parameters and weights on the first devices."""
        if devices not in self.weights:
            self.weights[devices] = self.place.first(self.weights[self.place.count], devices)
        return self.place.first(self.params, devices), self.weights[devices]

    def _nothing(self, devices: int) -> Totals:
        """Return sums of no losses and gradients, on the first devices."""
        losses = np.zeros(len(self.tokens), np.float32)
        grads = [{name: np.zeros(p.shape, np.float32) for name, p in own.items()} for own in self.params]
        return self.place.first(self._put((losses, grads)), devices)

    def _everyones(self, work: Callable[[], list[Totals]]) -> Totals:
        """Return the sum of what `work` finds, as the mean over processes, on every device.

        If it raises on one process, all raise, so that none waits for another that has ended.
        """
        if self.processes == 1:
            return self._sum(work())
        failed = None
        try:
            totals = self._sum(work())
        except Exception as error:
            failed, totals = error, self._nothing(self.place.count)
        leaves, tree = jax.tree.flatten(totals)
        flat = np.concatenate(
            [np.asarray([failed is not None], np.float32), *(np.asarray(leaf).ravel() for leaf in leaves)]
        )
        someone, *found = np.split(self.place.mean(flat), 1 + np.cumsum([0, *(leaf.size for leaf in leaves[:-1])]))
        if someone.item() > 0:
            reasons = self.place.everyones("" if failed is None else str(failed) or repr(failed))
            if failed is not None:
                raise failed
            process, reason = next((number, reason) for number, reason in enumerate(reasons) if reason)
            raise TrainingStopped(f"Process {process} had to stop, and so do all: {reason}")
        shaped = [part.reshape(leaf.shape) for part, leaf in zip(found, leaves, strict=True)]
        return self._put(jax.tree.unflatten(tree, shaped))

    def _sum(self, several: Sequence[Totals]) -> Totals:
        totals, *others = (jax.device_put(totals, self.place.everywhere) for totals in several)
        for more in others:
            totals = jax.tree.map(jnp.add, totals, more)
        return totals

    # What is compiled

    def _loss(
        self, params: Sequence[Params], weights: Any, given: Given, *, weighted: bool = False
    ) -> Float[jax.Array, " concepts"]:
        """Return the squared error of each concept's pictures here over how many it has in all (Gal et al., eq. 2).

        Summed over a step, that is each concept's mean. Where places are weighted, a picture's error is their weighted
        mean, so it does not depend on a mask's area. Every picture's prompt is encoded, even if several have the same:
        a number of prompts that varied would be compiled anew.
        """
        family, noise, timestep = self.family.bound(weights), given["noise"], given["timestep"]
        exact = "default" if self.options.allow_tf32 else "highest"  # of fp32; by default GPUs and TPUs round it
        with jax.default_matmul_precision(exact):
            latents = family.latents(given["mean"], given["std"], given["posterior"])
            alpha, sigma = family.noise_levels(timestep)
            told = family.condition(given["ids"], self._rows(params), given["placement"])
            prediction = family.denoise(objectives.noised(latents, noise, alpha, sigma), timestep, told)
            squares = jnp.square(prediction - family.target(latents, noise, alpha, sigma))
        if "weight" not in given:
            error = squares.reshape(len(squares), -1).mean(1)
        else:
            weight = given["weight"].reshape(len(squares), -1)
            error = (squares.mean(1).reshape(weight.shape) * weight).sum(1) / weight.sum(1)
        if weighted and self.weighting:
            error = error * self.weighting(jnp, alpha, sigma, family.prediction_type).reshape(-1)
        # Chosen, not multiplied by zeros: one concept's NaN is none of the others'.
        own = given["concept"] == jnp.arange(len(self.tokens))[:, None]
        return jnp.where(own, error * given["share"], 0.0).sum(1)

    def _rows(self, params: Sequence[Params]) -> dict[str, jax.Array]:
        """Return all concepts' rows under each other, per text encoder."""
        blocks = [self.method.rows(jnp, own) for own in params]
        return {encoder: jnp.concatenate([own[encoder] for own in blocks]) for encoder in blocks[0]}

    def _added(self, totals: Totals, params: list[Params], weights: Any, given: Given) -> Totals:
        """Return sums of losses and gradients with those of some more pictures."""

        def loss(params: list[Params]) -> tuple[jax.Array, jax.Array]:
            each = self._loss(params, weights, given, weighted=True)
            return each.sum(), each

        grads, losses = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(jnp.add, totals, (losses, grads))

    def _ended(
        self, own: tuple[int, ...], totals: Totals, params: list[Params], state: list[Params], lr: float, step: int
    ) -> tuple[jax.Array, list[Params], list[Params]]:
        """Return the losses of the concepts that have pictures, whether all of theirs is finite, and what they become.

        The host reads no more than the first: four numbers after each loss, for it, gradient, parameters and state.
        """
        losses, grads = totals
        several = {i: (params[i], updates.clipped(jnp, grads[i], self.gradient_clip), state[i]) for i in own}
        updated = updates.updated(jnp, jax.vmap, self.method, several, lr, step)
        flags = [
            flag
            for i in own
            for flag in (jnp.isfinite(losses[i]), *(updates.finite(jnp, part) for part in (grads[i], *updated[i])))
        ]
        told = jnp.concatenate([losses[jnp.asarray(own)], jnp.stack(flags).astype(losses.dtype)])
        after = [updated.get(i, (params[i], state[i])) for i in range(len(params))]
        return told, [own for own, _ in after], [own for _, own in after]

    def fixed_loss(self, batches: Sequence[Pair]) -> dict[str, float]:
        """Return each concept's mean loss over given draws without training: comparable between steps and runs."""
        counts = steps.counts(batches, len(self.tokens))

        def work(pairs: Sequence[Pair]) -> np.ndarray:
            found = [
                self._losses(*self._read(self.place.devices_for(len(batch.concept))), self._given(batch, draw, counts))
                for batch, draw in pairs
            ]
            return np.sum([np.asarray(losses) for losses in found], axis=0)

        losses = self._as_fits(batches, work).tolist()
        return {token: loss for token, loss, count in zip(self.tokens, losses, counts, strict=True) if count}

    # State

    def rows(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the learned rows by token and text encoder."""
        blocks = [self.method.rows(jnp, own) for own in self.params]
        return {token: _on_host(own) for token, own in zip(self.tokens, blocks, strict=True)}

    def snapshot(self, tokens: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Return everything a later step of these concepts, or of all, depends on, as named arrays."""
        members = [self.tokens.index(token) for token in (self.tokens if tokens is None else tokens)]
        params, state = ([_on_host(blocks[i]) for i in members] for blocks in (self.params, self.state))
        # The torch engine's scale of losses, so that it can go on from here; 1 is none.
        return {"loss_scale": np.asarray([1, self.step_number], np.float64), **steps.snapshot(params, state)}

    def restore(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Go back to a snapshot taken after `step` steps; RunError if it is not one of these concepts and method."""
        steps.check_snapshot(step, self.snapshot(), arrays)
        self.step_number = step
        for i in range(len(self.tokens)):
            self.params[i] = self._put({name: arrays[f"params.{i}.{name}"] for name in self.params[i]})
            self.state[i] = self._put({name: arrays[f"state.{i}.{name}"] for name in self.state[i]})

    def arithmetic(self) -> dict[str, str]:
        """Return what the last bits of the result depend on besides the recipe."""
        return {
            **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")},
            "device": f"{self.place.kind} × {self.place.opened}",
            "threads": str(os.cpu_count()),
            "processes": str(self.processes),
            "mixed_precision": self.options.precision,
            "allow_tf32": str(self.options.allow_tf32),
            "gradient_checkpointing": str(self.options.recomputes),
            "deterministic": str(self.options.deterministic),
        }

    def _put(self, arrays: Any) -> Any:
        """Copy arrays to every device, in fp32."""
        return jax.device_put(jax.tree.map(lambda array: np.array(array, np.float32), arrays), self.place.everywhere)


def _on_host(blocks: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    return {name: np.array(block) for name, block in blocks.items()}


def _refuse(options: EngineRecipe) -> None:
    """Refuse what only the torch engine has."""
    if options.mixed_precision == "fp16":
        raise RecipeError("The JAX engine does not compute in fp16; take mixed_precision 'bf16', or the torch engine.")
    if options.memory == "lowest":
        raise RecipeError("The JAX engine does not hold weights in 8 bits; take memory 'low', or the torch engine.")
    if options.xformers:
        raise RecipeError("xformers is PyTorch's attention, which the JAX engine cannot use; leave the option out.")
    if options.compile != "auto":
        raise RecipeError(f"compile is {options.compile!r}, but the JAX engine always compiles; leave the option out.")


ENGINE: type[Engine] = JaxEngine
