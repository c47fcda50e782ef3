"""Which GPUs a process gets, in environments as SLURM 24.11 and Open MPI 4 and 5 made them."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax._src import clusters, distributed, xla_bridge

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.training import hosts, launcher

REPOSITORY = Path(__file__).parents[2]
EIGHT = "0,1,2,3,4,5,6,7"


def slurm(local_rank: int, tasks_per_node: str = "8(x2)", node: int = 0, **more: str) -> dict[str, str]:
    """What srun gives a task on one of two nodes; the tasks of a node before it are those of node 0."""
    return {
        "SLURM_JOB_ID": "37",
        "SLURM_STEP_NODELIST": "n[0-1]",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_TASKS_PER_NODE": tasks_per_node,
        "SLURM_NODEID": str(node),
        "SLURM_NTASKS": "16",
        "SLURM_PROCID": str(8 * node + local_rank),
        "SLURM_LOCALID": str(local_rank),
        **more,
    }


def open_mpi(local_rank: int, local_size: int, **more: str) -> dict[str, str]:
    """What mpirun gives a process on the second of two hosts; before version 5 unless `more` takes it back."""
    return {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
        "OMPI_COMM_WORLD_RANK": str(local_size + local_rank),
        "OMPI_COMM_WORLD_SIZE": str(2 * local_size),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(local_rank),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(local_size),
        **more,
    }


def without_uri(environment: dict[str, str]) -> dict[str, str]:
    """The same under Open MPI 5."""
    return {name: value for name, value in environment.items() if name != "OMPI_MCA_orte_hnp_uri"}


def describe(cluster: type[clusters.ClusterEnv], monkeypatch) -> None:
    """Makes JAX detect this cluster, with this as the last of four processes."""
    answers = {
        "is_env_present": True,
        "get_coordinator_address": "host-0:1",
        "get_process_count": 4,
        "get_process_id": 3,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(cluster, name, lambda answer=answer, **_: answer)


@pytest.fixture
def join(monkeypatch):
    """The function that joins in an environment, by all of JAX but the connection; returns what JAX made of it."""
    before = {name: jax.config._read(name) for name in ("jax_cuda_visible_devices", "jax_rocm_visible_devices")}
    preemption = jax.config.jax_enable_preemption_service

    class Connection:
        def __init__(self, *_, **__):
            pass

        connect = shutdown = __init__

    def start(environment, *arguments):
        for name in os.environ:
            if name.startswith(("SLURM_", "OMPI_", "CUDA_", "KUBERNETES_", "JAX_C", "JAX_P", "JAX_LOCAL")):
                monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for name in before:
            jax.config.update(name, "all")
        state = distributed.State()
        monkeypatch.setattr(distributed, "global_state", state)
        monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: False)
        monkeypatch.setattr(distributed._jax, "get_distributed_runtime_client", Connection)
        monkeypatch.setattr(distributed._jax, "get_distributed_runtime_service", Connection)
        hosts.join(*arguments)
        visible = {jax.config._read(name) for name in before}
        assert len(visible) == 1
        return state.coordinator_address, state.num_processes, state.process_id, visible.pop()

    yield start
    for name, value in {**before, "jax_enable_preemption_service": preemption}.items():
        jax.config.update(name, value)


@pytest.mark.parametrize(
    ("environment", "visible"),
    [
        (slurm(0, "1(x2)", SLURM_GPUS_ON_NODE="8", CUDA_VISIBLE_DEVICES=EIGHT), "all"),  # one task a node
        (slurm(0, "1(x2)", node=1, SLURM_GPUS_ON_NODE="8", CUDA_VISIBLE_DEVICES=EIGHT), "all"),
        (slurm(5, SLURM_GPUS_ON_NODE="8", CUDA_VISIBLE_DEVICES=EIGHT), "5"),  # one task a GPU
        (slurm(5, SLURM_GPUS_ON_NODE="8", CUDA_VISIBLE_DEVICES="5"), "all"),  # --gpus-per-task=1
        (slurm(5, SLURM_GPUS_ON_NODE="8", CUDA_VISIBLE_DEVICES="0"), "all"),  # the same, renumbered in a cgroup
        (slurm(5, CUDA_VISIBLE_DEVICES="0"), "all"),  # hidden by a script
        (slurm(1, "2(x2)", SLURM_GPUS_ON_NODE="4", CUDA_VISIBLE_DEVICES="2,3"), "all"),  # --gpus-per-task=2
        (slurm(1, "2(x2)", SLURM_GPUS_ON_NODE="4", CUDA_VISIBLE_DEVICES="0,1,2,3"), "2,3"),  # with --gpu-bind=none
        (slurm(3, "4(x2)", SLURM_GPUS_ON_NODE="8", ROCR_VISIBLE_DEVICES=EIGHT), "6,7"),
        (slurm(0, "2,1", node=1, SLURM_GPUS_ON_NODE="8", CUDA_VISIBLE_DEVICES=EIGHT), "all"),  # the last node has one
        (slurm(1, "2,1", SLURM_GPUS_ON_NODE="8", CUDA_VISIBLE_DEVICES=EIGHT), "4,5,6,7"),
        (slurm(0, "2,1", SLURM_NTASKS_PER_NODE="1", CUDA_VISIBLE_DEVICES=EIGHT), "0,1,2,3"),  # sbatch's, not srun's
        (slurm(5, CUDA_VISIBLE_DEVICES=EIGHT, JAX_LOCAL_DEVICE_IDS="1,2"), "1,2"),
        (slurm(5, CUDA_VISIBLE_DEVICES="GPU-1a,MIG-2b,MIG-3c,4,5,6,7,8,-1,9"), "5"),
    ],
)
def test_the_gpus_of_a_task_under_slurm(environment, visible, join):
    """Driven through JAX's own detection, which finds the rank and the first node."""
    rank = 8 * int(environment["SLURM_NODEID"]) + int(environment["SLURM_LOCALID"])
    assert join(environment) == (f"n0:{65535 - 2**12 + 1 + 37}", 16, rank, visible)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(
    ("local_rank", "local_size", "devices", "visible"),
    [
        (0, 1, EIGHT, "all"),
        (5, 8, EIGHT, "5"),
        (5, 8, "5", "all"),
        (1, 2, EIGHT, "4,5,6,7"),
    ],
)
def test_the_gpus_of_a_process_under_open_mpi(version, local_rank, local_size, devices, visible, join):
    environment = open_mpi(local_rank, local_size, CUDA_VISIBLE_DEVICES=devices)
    environment |= {
        "SLURM_STEP_NODELIST": "n1",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_TASKS_PER_NODE": "1",
    }  # of srun orted
    coordinator = "10.96.0.1:61440"
    if version == 5:
        environment = without_uri(environment) | {"JAX_COORDINATOR_ADDRESS": (coordinator := "10.0.0.1:1234")}
    host = coordinator.split(":")[0]
    address, *others = join(environment)
    assert address.split(":")[0] == host
    assert others == [2 * local_size, local_size + local_rank, visible]


def test_open_mpi_5_asks_for_the_coordinator_or_for_mpi4py(join, monkeypatch):
    environment = without_uri(open_mpi(0, 1))
    monkeypatch.setattr(launcher.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="-x JAX_COORDINATOR_ADDRESS=HOST:PORT"):
        join(environment)
    monkeypatch.setattr(launcher.importlib.util, "find_spec", lambda name: name == "mpi4py" or None)
    describe(clusters.Mpi4pyCluster, monkeypatch)
    assert join(environment) == ("host-0:1", 4, 3, "all")


@pytest.mark.parametrize("environment", [slurm(1, "3(x2)"), open_mpi(1, 3), open_mpi(1, 16)])
def test_gpus_that_cannot_be_divided_are_refused(environment, join):
    with pytest.raises(
        ConfigError, match=r"started (3|16) processes .* its 8 visible GPUs equally; start one of 1, 2, 4, 8"
    ):
        join(environment | {"CUDA_VISIBLE_DEVICES": EIGHT})


def test_one_gpu_is_not_for_several_processes(join, tmp_path, monkeypatch):
    """Whether SLURM says so, or nothing has hidden others."""
    with pytest.raises(ConfigError, match="SLURM started 2 processes on this node, which do not divide its 1 visible"):
        join(slurm(1, "2(x2)", SLURM_GPUS_ON_NODE="1", CUDA_VISIBLE_DEVICES="0"))
    monkeypatch.setattr(launcher, "GPU_FILES", str(tmp_path / "nvidia[0-9]*"))
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    with pytest.raises(
        ConfigError, match="Open MPI started 2 processes on this node, which do not divide its 1 visible"
    ):
        launcher.local_device_ids(open_mpi(1, 2))
    (tmp_path / "nvidia1").touch()
    assert launcher.local_device_ids(open_mpi(1, 2)) == [1]


@pytest.mark.parametrize("hidden", [{"JAX_PLATFORMS": "cpu"}, {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}])
def test_without_gpus_any_number_of_processes_trains(hidden, join):
    environment = open_mpi(5, 6, CUDA_VISIBLE_DEVICES=EIGHT, JAX_COORDINATOR_ADDRESS="a:1")
    assert join(without_uri(environment) | hidden) == ("a:1", 12, 11, "5")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"},
        {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"},
        {"SLURM_JOB_ID": "37", "SLURM_LOCALID": "0", "SLURM_NTASKS": "16"},  # the batch script, outside srun
    ],
)
def test_elsewhere_a_process_has_all_devices_and_flags_are_enough(environment, join):
    """JAX is not made to ask a cluster for what the flags say."""
    assert join(environment, "10.0.0.1:1234", 2, 1) == ("10.0.0.1:1234", 2, 1, "all")


@pytest.mark.parametrize("cluster", [clusters.K8sCluster, clusters.GkeTpuCluster, clusters.GceTpuCluster])
def test_kubernetes_and_tpus_are_left_to_jax(cluster, join, monkeypatch):
    describe(cluster, monkeypatch)
    assert join({}) == ("host-0:1", 4, 3, "all")


def test_flags_choose_the_rank_and_the_launcher_the_gpus(join):
    environment = without_uri(open_mpi(1, 2, CUDA_VISIBLE_DEVICES=EIGHT))
    assert join(environment, "10.0.0.1:1234", 3, 2) == ("10.0.0.1:1234", 3, 2, "4,5,6,7")


def test_a_process_that_has_joined_still_ends_on_sigterm():
    """A job of one task, found by JAX and connected for real; its service for preemptions would swallow the signal."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | slurm(0, "1") | {"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "1"}
    program = (
        "import os, signal, jax; from flaxformer_lab.training import hosts; hosts.join()\n"
        "print(jax.config._read('jax_cuda_visible_devices'), jax.process_count(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM); signal.sigtimedwait([signal.SIGUSR1], 5)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env=environment | {"JAX_COORDINATOR_PORT": port},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (-signal.SIGTERM, "all 1\n"), ended.stderr
