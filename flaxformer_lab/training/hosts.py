"""Several processes that train as one, on one machine or on many: how they join and agree, and which of them writes."""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.training import launcher

TIMEOUT_S = 30  # a process that has sent no heartbeat for so long is lost, and the others end with an error


def join(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Makes this process one of several; without arguments as SLURM, Open MPI, Kubernetes or a TPU pod describe them.

    coordinator_address: HOST:PORT of process 0; process_id: from 0. Under SLURM and Open MPI the GPUs of a node are
    divided among its processes, see `launcher.local_device_ids`. To be called before JAX looks for devices.

    Raises:
        ConfigError: the environment describes no such job, other processes do not join, or this node's GPUs cannot be
            divided equally.
    """
    given = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    if any(value is not None for value in given.values()) and None in given.values():
        missing = ", ".join(f"--{name}" for name, value in given.items() if value is None)
        raise ConfigError(f"{missing} is missing; give all of --{', --'.join(given)}, or --distributed alone")
    arguments = given if coordinator_address else launcher.open_mpi_arguments(os.environ)
    local_device_ids = launcher.local_device_ids(os.environ)
    # JAX's service for preemptions takes SIGTERM and ignores it; until training handles it, it ends the process.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **arguments,
            local_device_ids=local_device_ids,
            heartbeat_timeout_seconds=TIMEOUT_S,
            shutdown_timeout_seconds=TIMEOUT_S,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        way_out = "start all processes" if coordinator_address else "give --coordinator_address and the others"
        raise ConfigError(f"this process could not join the others: {reason}; {way_out}") from error


def is_primary() -> bool:
    """Whether this is the process that writes files and prints."""
    return jax.process_index() == 0


def wait_for_all(where: str) -> None:
    """Returns when every process has called it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def all_reduce_any(flag: bool) -> bool:
    """Whether the flag is true in at least one process; every process must call it."""
    return flag if jax.process_count() == 1 else bool(_all_gather(np.array([flag], np.uint32)).any())


def all_reduce_sum(value: int) -> int:
    """The sum modulo 2^64 over the processes; every process must call it."""
    value %= 2**64
    if jax.process_count() == 1:
        return value
    halves = _all_gather(np.array([value >> 32, value & 0xFFFFFFFF], np.uint32)).astype(object)
    return int((halves[:, 0].sum() << 32) + halves[:, 1].sum()) % 2**64


def _all_gather(values: np.ndarray) -> np.ndarray:
    with jax.transfer_guard("allow"):
        return np.asarray(multihost_utils.process_allgather(values)).reshape(jax.process_count(), -1)
