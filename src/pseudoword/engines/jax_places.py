"""Where the JAX engine computes: this process' devices, the other processes of a launcher, and what is compiled."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import psutil
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Float

from pseudoword.errors import RecipeError

T = TypeVar("T")
CACHE = "jax_compilation_cache_dir"
CPU_DEVICES = "jax_num_cpu_devices"


class Place:
    """This process' devices, over which pictures are divided, and how it talks to the other processes.

    A CPU is as many devices as it has cores, since XLA computes pictures beside each other better than it divides what
    is computed of one. Processes only exchange numbers on the host, at a step's end: each may have pictures of other
    shapes than the rest.
    """

    def __init__(self) -> None:
        _open_cores()
        _join()
        self.process, self.processes = jax.process_index(), jax.process_count()
        self.devices = jax.local_devices()
        self.one = SingleDeviceSharding(self.devices[0])
        """The first device."""
        self.kind: str = self.devices[0].device_kind

    def spread(self, size: int) -> None:
        """Use as many devices as have room for a base of so many bytes each: of a CPU's memory, an eighth in all."""
        if self.devices[0].platform == "cpu":
            room = psutil.virtual_memory().total // (8 * self.processes)
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
        """Return how many devices so many pictures are divided over: the most of which each gets as many."""
        return next(count for count in range(min(pictures, self.count), 0, -1) if pictures % count == 0)

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

    def free_memory(self) -> int:
        """Return the bytes that are free on the fullest device; of a CPU those of its machine, shared fairly."""
        told = [device.memory_stats() for device in self.devices]
        free = [stats["bytes_limit"] - stats["bytes_in_use"] for stats in told if stats and "bytes_limit" in stats]
        return min(free) if free else psutil.virtual_memory().available // self.processes

    # Processes

    def mean(self, numbers: Float[np.ndarray, " count"]) -> Float[np.ndarray, " count"]:
        """Return the mean over processes, the same on each of them."""
        if self.processes == 1:
            return numbers
        every: Any = multihost_utils.process_allgather(numbers)
        return np.asarray(every).sum(axis=0) / np.float32(self.processes)

    def on_main(self, action: Callable[[], T]) -> T:
        """Let the main process act; see `contracts.Engine`."""
        if self.processes == 1:
            return action()
        outcome: Any = (None, None)
        if self.process == 0:
            try:
                outcome = (action(), None)
            except Exception as error:
                outcome = (None, error)
        result, error = self._from_main(outcome)
        if error is not None:
            raise error
        return result

    def _from_main(self, value: T) -> T:
        """Return the main process' value on every process."""
        packed = np.frombuffer(pickle.dumps(value), np.uint8) if self.process == 0 else np.zeros(0, np.uint8)
        length = int(multihost_utils.broadcast_one_to_all(np.int32(len(packed))))
        sent = packed if self.process == 0 else np.zeros(length, np.uint8)
        return pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes())

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; the same answer on all."""
        return self.mean(np.asarray([flag], np.float32)).item() > 0


def _open_cores() -> None:
    """Make devices of a CPU's cores, unless the user has said how many there are, or JAX is in use already."""
    flags = os.environ.get("XLA_FLAGS", "")
    if jax.config.values[CPU_DEVICES] < 0 and "xla_force_host_platform_device_count" not in flags:
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with contextlib.suppress(RuntimeError):
            jax.config.update(CPU_DEVICES, max(1, cores // beside))


def _join() -> None:
    """Connect with the processes that a launcher started, by the variables that torchrun and others set."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched == 1 or jax.distributed.is_initialized():
        return
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not (address and port):
        raise RecipeError(
            f"A launcher started {launched} processes, but MASTER_ADDR and MASTER_PORT do not say where the first is."
        )
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1  # others on this machine: a device for each
    own = [int(os.environ.get("LOCAL_RANK", "0"))] if beside else None
    jax.distributed.initialize(f"{address}:{port}", launched, int(os.environ["RANK"]), own)


def keep_compiled() -> None:
    """Have later processes find what is compiled here: in JAX_COMPILATION_CACHE_DIR, or the user's cache folder."""
    if not jax.config.values[CACHE]:
        jax.config.update(CACHE, str(_caches() / "pseudoword" / "jax"))


def _caches() -> Path:
    """Return the folder in which this system keeps what programs can make again."""
    usual = {"darwin": "~/Library/Caches", "win32": os.environ.get("LOCALAPPDATA", "~/AppData/Local")}
    return Path(os.environ.get("XDG_CACHE_HOME") or usual.get(sys.platform, "~/.cache")).expanduser()
