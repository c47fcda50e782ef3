"""Several processes that train as one, on one machine or on many: how they join, agree, and who of them writes."""

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxformer_lab.errors import ConfigError

PATIENCE = 30  # seconds: a process that has not been heard of for so long is lost, and the others end with an error


def join(coordinator: str | None = None, number: int | None = None, process: int | None = None) -> None:
    """Makes this process one of several; without arguments as SLURM, Open MPI, Kubernetes or a TPU pod describe them.

    coordinator: HOST:PORT of the first process; number: how many there are; process: which of them this is, from 0. To
    be called before JAX looks for devices.

    Raises:
        ConfigError: the environment describes no such job, or the others did not come.
    """
    given = {"coordinator_address": coordinator, "num_processes": number, "process_id": process}
    if any(value is not None for value in given.values()) and None in given.values():
        missing = ", ".join(f"--{name}" for name, value in given.items() if value is None)
        raise ConfigError(f"{missing} is missing; give all of --{', --'.join(given)}, or --distributed alone")
    try:
        patience = {"heartbeat_timeout_seconds": PATIENCE, "shutdown_timeout_seconds": PATIENCE}
        jax.distributed.initialize(**given, **patience)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        way_out = "start all processes" if coordinator else "give --coordinator_address and the others"
        raise ConfigError(f"this process could not join the others: {reason}; {way_out}") from error


def is_primary() -> bool:
    """Whether this is the process that writes what all of them know."""
    return jax.process_index() == 0


def wait_for_all(where: str) -> None:
    """Returns when every process has come to this place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def any_of_all(flag: bool) -> bool:
    """Whether the flag is true in one process at least; every process has to ask."""
    return flag if jax.process_count() == 1 else bool(_of_all(np.array([flag], np.uint32)).any())


def sum_of_all(value: int) -> int:
    """The sum modulo 2^64 of what the processes have; every process has to ask."""
    value %= 2**64
    if jax.process_count() == 1:
        return value
    halves = _of_all(np.array([value >> 32, value & 0xFFFFFFFF], np.uint32)).astype(object)
    return int((halves[:, 0].sum() << 32) + halves[:, 1].sum()) % 2**64


def _of_all(values: np.ndarray) -> np.ndarray:
    with jax.transfer_guard("allow"):
        return np.asarray(multihost_utils.process_allgather(values)).reshape(jax.process_count(), -1)
