"""What SLURM and Open MPI say about a process that they started: its rank, and which GPUs of its node belong to it.

`jax.distributed.initialize` gives each process one GPU under these two: the one whose index is the local rank. This is
wrong for one process per node, and where the launcher has already hidden the GPUs of the other processes.
"""

import glob
import importlib.util
import itertools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from flaxformer_lab.errors import ConfigError

GPU_FILES = "/dev/nvidia[0-9]*"  # one for each GPU, where no variable restricts them
GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
GPU_NAME = re.compile(r"\s*(\d+|(GPU|MIG)-\S+)\s*")


class Task(NamedTuple):
    """A process among those that one launcher started on one node."""

    launcher: str
    local_rank: int
    local_size: int
    node_gpus: int | None  # the GPUs of all these processes together, where the launcher says so


def local_device_ids(environment: Mapping[str, str]) -> list[int] | None:
    """The indices, among the GPUs that this process sees, of those that it uses; [] means all.

    One process per node uses all. Several divide them equally, in the order of their local ranks, unless the launcher
    has done so already. None where `JAX_LOCAL_DEVICE_IDS` is set: JAX reads it.

    Raises:
        ConfigError: several processes on this node cannot divide its GPUs equally.
    """
    if environment.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    task = local_task(environment)
    if task is None or task.local_size == 1:
        return []
    gpus = visible_gpus(environment)
    if not gpus:  # where JAX finds some all the same, each process takes one, as it does by default
        return [task.local_rank]
    if _already_divided(task, gpus, environment):
        return []
    share, rest = divmod(gpus, task.local_size)
    if not share or rest:
        possible = ", ".join(str(size) for size in range(1, gpus + 1) if gpus % size == 0)
        raise ConfigError(
            f"{task.launcher} started {task.local_size} processes on this node, which do not divide its {gpus} visible "
            f"GPUs equally; start one of {possible} a node, or set JAX_LOCAL_DEVICE_IDS in each process"
        )
    return list(range(task.local_rank * share, (task.local_rank + 1) * share))


def open_mpi_arguments(environment: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize` that JAX does not find by itself under Open MPI 5; {} elsewhere.

    Raises:
        ConfigError: nothing says where process 0 runs.
    """
    if "OMPI_COMM_WORLD_RANK" not in environment:
        return {}
    if environment.get("JAX_COORDINATOR_ADDRESS"):
        variables = {"num_processes": "OMPI_COMM_WORLD_SIZE", "process_id": "OMPI_COMM_WORLD_RANK"}
        return {name: int(environment[variable]) for name, variable in variables.items()}
    if "OMPI_MCA_orte_hnp_uri" in environment:  # set before version 5; JAX reads it
        return {}
    if importlib.util.find_spec("mpi4py"):
        return {"cluster_detection_method": "mpi4py"}
    raise ConfigError(
        "Open MPI does not say where process 0 runs; give mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT with the first "
        "of its hosts, or install mpi4py"
    )


def local_task(environment: Mapping[str, str]) -> Task | None:
    """This process as Open MPI or SLURM describes it; None where neither of them started it."""
    if "OMPI_COMM_WORLD_LOCAL_RANK" in environment:  # first: mpirun may itself run inside SLURM
        rank, size = (int(environment[f"OMPI_COMM_WORLD_LOCAL_{name}"]) for name in ("RANK", "SIZE"))
        return Task("Open MPI", rank, size, None)
    if {"SLURM_STEP_NODELIST", "SLURM_LOCALID"} <= environment.keys():  # the first only under srun
        gpus = environment.get("SLURM_GPUS_ON_NODE")
        return Task(
            "SLURM", int(environment["SLURM_LOCALID"]), _slurm_local_size(environment), int(gpus) if gpus else None
        )
    return None


def visible_gpus(environment: Mapping[str, str]) -> int:
    """How many GPUs JAX would find here without further restriction; 0 where none is known."""
    platforms = environment.get("JAX_PLATFORMS")
    if platforms and not {"cuda", "rocm", "gpu"} & set(platforms.split(",")):
        return 0
    for variable in GPU_VARIABLES:
        if variable in environment:  # an entry that names no GPU (-1, NoDevFiles) hides all that follow
            return len(list(itertools.takewhile(GPU_NAME.fullmatch, environment[variable].split(","))))
    return len(glob.glob(GPU_FILES))


def _already_divided(task: Task, gpus: int, environment: Mapping[str, str]) -> bool:
    """Whether each process sees its own GPUs alone, as under --gpus-per-task; a single visible one is its own."""
    if task.node_gpus:
        return gpus * task.local_size <= task.node_gpus
    return gpus == 1 and any(variable in environment for variable in GPU_VARIABLES)


def _slurm_local_size(environment: Mapping[str, str]) -> int:
    """The number of tasks on this node, from a list by node such as 8(x3),4."""
    for variable in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):
        if variable in environment:
            runs = re.findall(r"(\d+)(?:\(x(\d+)\))?", environment[variable])
            sizes = [int(size) for size, nodes in runs for _ in range(int(nodes or 1))]
            return sizes[int(environment.get("SLURM_NODEID", 0))]
    return -(-int(environment["SLURM_NTASKS"]) // int(environment.get("SLURM_STEP_NUM_NODES", 1)))
