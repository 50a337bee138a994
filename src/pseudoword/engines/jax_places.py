"""Where the JAX engine computes: this process' devices, the other processes of a launcher, and how they agree."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
import psutil
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Float

from pseudoword.errors import RecipeError, RunError, first_line

T = TypeVar("T")
CPU_DEVICES = "jax_num_cpu_devices"
FOR_COPIES = 1 / 8
"""Of a machine's memory, what copies of a base may take when a CPU's cores are devices."""
LENGTH = 500
"""Bytes of what one process tells the others of why it stops."""
SHUTDOWN = 10
"""Seconds after which a process that is done no longer waits for others to end; they may have failed."""


class Place:
    """This process' devices, over which pictures are divided, and how it talks to the other processes.

    A CPU is as many devices as it has cores, since XLA computes pictures beside each other better than it divides what
    is computed of one. Processes only exchange numbers on the host, at a step's end: each may have pictures of other
    shapes than the rest.
    """

    def __init__(self) -> None:
        _open_cores()
        _join()
        self.devices = _devices()
        self.process, self.processes = jax.process_index(), jax.process_count()
        self.one = SingleDeviceSharding(self.devices[0])
        """The first device."""
        self.opened = len(self.devices)
        """Devices of this process, of which `spread` may use fewer."""
        self.kind: str = self.devices[0].device_kind

    def spread(self, size: int, *, spare: bool) -> None:
        """Use as many devices of a CPU as have room for a base of so many bytes each, or to spare memory one."""
        if self.devices[0].platform == "cpu":
            room = 0 if spare else int(psutil.virtual_memory().total * FOR_COPIES)
            del self.devices[max(1, room // size) :]

    @property
    def count(self) -> int:
        """How many devices are used."""
        return len(self.devices)

    @property
    def everywhere(self) -> NamedSharding:
        """A copy on every device."""
        return self._sharding(self.count)

    def devices_for(self, pictures: int) -> int:
        """Return how many devices so many pictures are divided over."""
        return min(pictures, self.count)

    def divide(self, arrays: Any, devices: int) -> Any:
        """Divide arrays of pictures over the first devices."""
        return jax.device_put(arrays, self._sharding(devices, "pictures"))

    def first(self, arrays: Any, devices: int) -> Any:
        """Return arrays that are everywhere as arrays of the first devices alone; nothing is copied."""
        if devices == self.count:
            return arrays
        sharding = self._sharding(devices)

        def fewer(array: jax.Array) -> jax.Array:
            copies = {copy.device: copy.data for copy in array.addressable_shards}
            own = [copies[device] for device in self.devices[:devices]]
            return jax.make_array_from_single_device_arrays(array.shape, sharding, own)

        return jax.tree.map(fewer, arrays)

    def _sharding(self, devices: int, *axes: str) -> NamedSharding:
        return NamedSharding(Mesh(np.asarray(self.devices[:devices]), ("pictures",)), PartitionSpec(*axes))

    def compiler_options(self, *, deterministic: bool) -> dict[str, Any]:
        """Return what XLA is told besides its flags, if it knows of it."""
        if self.devices[0].platform != "cpu":
            return {"xla_gpu_deterministic_ops": True} if deterministic else {}
        # By default what a step of Stable Diffusion 1.5 has in memory at once is 11.4 GB, with this order 4.1.
        options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
        try:
            jax.jit(lambda: 0, compiler_options=options).lower().compile()
        except RuntimeError:  # an XLA from before it had a choice
            return {}
        return options

    def free_memory(self) -> int:
        """Return the bytes that are free on all devices together; of a CPU those of its machine, shared fairly."""
        told = [device.memory_stats() for device in self.devices]
        free = [stats["bytes_limit"] - stats["bytes_in_use"] for stats in told if stats and "bytes_limit" in stats]
        return min(free) * self.count if free else psutil.virtual_memory().available // self.processes

    # Processes

    def mean(self, numbers: Float[np.ndarray, " count"]) -> Float[np.ndarray, " count"]:
        """Return the mean over processes, the same on each of them."""
        if self.processes == 1:
            return numbers
        every: Any = _with_others(multihost_utils.process_allgather, numbers)
        return np.asarray(every).sum(axis=0) / np.float32(self.processes)

    def everyones(self, text: str) -> list[str]:
        """Return what each process says, cut to a few lines."""
        own = np.zeros(LENGTH, np.uint8)
        said = np.frombuffer(text.encode()[:LENGTH], np.uint8)
        own[: len(said)] = said
        every: Any = _with_others(multihost_utils.process_allgather, own)
        return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in np.asarray(every)]

    def on_main(self, action: Callable[[], T]) -> T:
        """Let the main process act; see `contracts.Engine`."""
        if self.processes == 1:
            return action()
        packed = self._from_main(_packed(action) if self.process == 0 else b"")
        result, error = pickle.loads(packed)
        if error is not None:
            raise error
        return result

    def _from_main(self, packed: bytes) -> bytes:
        """Return the main process' bytes on every process."""
        length = int(_with_others(multihost_utils.broadcast_one_to_all, np.int32(len(packed))))
        sent = np.frombuffer(packed, np.uint8) if self.process == 0 else np.zeros(length, np.uint8)
        return np.asarray(_with_others(multihost_utils.broadcast_one_to_all, sent)).tobytes()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; the same answer on all."""
        return self.mean(np.asarray([flag], np.float32)).item() > 0


def _with_others(exchange: Callable[[Any], Any], own: Any) -> Any:
    """Return what an exchange with the other processes gives; RunError if one of them is gone."""
    try:
        return exchange(own)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"Another process has ended or cannot be reached ({first_line(error)}); "
            "on all of them, --resume latest goes on from the last checkpoint."
        ) from error


def _packed(action: Callable[[], Any]) -> bytes:
    """Carry out an action and return its result and its error as bytes; an error that cannot be sent, as its text."""
    outcome: tuple[Any, Exception | None]
    try:
        outcome = action(), None
    except Exception as error:
        outcome = None, error
    try:
        packed = pickle.dumps(outcome)
        pickle.loads(packed)  # an error with arguments of its own may be written and not read
    except Exception as unsent:
        return pickle.dumps((None, RunError(str(outcome[1] or unsent))))
    return packed


def _devices() -> list[Any]:
    """Return this process' devices, or raise RecipeError."""
    try:
        return jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the latter without a plugin for what JAX_PLATFORMS names
        raise RecipeError(
            f"JAX finds no device to compute on ({first_line(error)}); see JAX_PLATFORMS and JAX_NUM_CPU_DEVICES, and "
            "whether JAX is installed for this machine's accelerator."
        ) from error


def _open_cores() -> None:
    """Make devices of a CPU's cores, unless the user has said how many, JAX is in use, or there are more processes.

    Those have to have as many each, which cores need not be.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    told = jax.config.values[CPU_DEVICES] >= 0 or "xla_force_host_platform_device_count" in flags
    if _number("WORLD_SIZE", 1) == 1 and not told:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with contextlib.suppress(RuntimeError):
            jax.config.update(CPU_DEVICES, cores or 1)


def _join() -> None:
    """Connect with the processes that a launcher started, by the variables that torchrun and others set."""
    launched = _number("WORLD_SIZE", 1)
    if launched == 1 or jax.distributed.is_initialized():
        return
    address, rank, port = os.environ.get("MASTER_ADDR"), _number("RANK", launched), _number("MASTER_PORT", 0)
    if not (address and port and rank < launched):
        raise RecipeError(
            f"A launcher started {launched} processes, but RANK, MASTER_ADDR and MASTER_PORT do not say which of them "
            "this is, and where the first one listens."
        )
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        port += 1  # torchrun itself listens at the port that it names
    beside = _number("LOCAL_WORLD_SIZE", 1) > 1  # others on this machine: a device for each
    own = [_number("LOCAL_RANK", 0)] if beside else None
    # This service would take SIGTERM, at which a run keeps a checkpoint.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(f"{address}:{port}", launched, rank, own, shutdown_timeout_seconds=SHUTDOWN)
    except (RuntimeError, ValueError) as error:
        raise RecipeError(
            f"Process {rank} cannot join the {launched} at {address}:{port} ({first_line(error)})."
        ) from error


def _number(name: str, default: int) -> int:
    told = os.environ.get(name, str(default))
    if not told.isdecimal():
        raise RecipeError(f"{name} is set by what launches processes, to a number; here it is {told!r}.")
    return int(told)
