"""Where the JAX engine computes: this process' devices, the other processes of a launcher, and what is compiled."""

from __future__ import annotations

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


class Place:
    """This process' devices, over which pictures are divided, and how it talks to the other processes.

    Processes only exchange numbers on the host, at a step's end: each may have pictures of other shapes than the rest.
    """

    def __init__(self) -> None:
        _join()
        self.process, self.processes = jax.process_index(), jax.process_count()
        devices = jax.local_devices()
        self.count = len(devices)
        mesh = Mesh(np.asarray(devices), ("pictures",))
        self.one = SingleDeviceSharding(devices[0])
        """The first device."""
        self.everywhere = NamedSharding(mesh, PartitionSpec())
        """A copy on every device."""
        self._divided = NamedSharding(mesh, PartitionSpec("pictures"))
        self.kind: str = devices[0].device_kind

    def divide(self, arrays: Any, pictures: int) -> Any:
        """Put arrays of so many pictures on the devices: as many on each, or where that is impossible all on each."""
        return jax.device_put(arrays, self.everywhere if pictures % self.count else self._divided)

    def free_memory(self) -> int:
        """Return the bytes that are free on the fullest device; of a CPU those of its machine, shared fairly."""
        told = [device.memory_stats() for device in jax.local_devices()]
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
