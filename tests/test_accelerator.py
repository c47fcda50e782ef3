"""A CPU's arrays are read as an accelerator's in all tests (`accelerator.py`)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

READS = {
    "int": int,
    "float": float,
    "bool": bool,
    "index": range,
    "item": lambda x: x.item(),
    "tolist": lambda x: x.tolist(),
    "asarray": np.asarray,
    "array": np.array,
    "NumPy's functions": np.isfinite,
    "stack": lambda x: np.stack([x, x]),
    "format": lambda x: f"{x}",
    "repr": repr,
    "sum of the elements": lambda x: math.fsum(x[None]),
    "asynchronous copy": lambda x: x.copy_to_host_async(),
    "shard": lambda x: np.asarray(x.addressable_shards[0].data),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_hidden_read_of_a_device_array_fails_in_a_guarded_region(read):
    x = jnp.ones((), jnp.int32) + 2
    with jax.transfer_guard("disallow"), pytest.raises(jax.errors.JaxRuntimeError, match=r"Disallowed .* transfer"):
        read(x)
    read(x)


def test_an_array_that_is_spread_over_devices_is_no_exception():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("devices",))
    x = jax.device_put(np.arange(8), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices")))
    with jax.transfer_guard("disallow"), pytest.raises(jax.errors.JaxRuntimeError, match="device-to-host"):
        np.asarray(x)
    assert np.asarray(x).tolist() == list(range(8))


def test_an_explicit_read_is_allowed_and_what_was_read_is_on_the_host():
    x = jnp.arange(3) + 1
    with jax.transfer_guard("disallow"):
        assert jax.device_get(x).tolist() == [1, 2, 3]
        assert np.asarray(x).tolist() == [1, 2, 3]
    with jax.transfer_guard("disallow_explicit"), pytest.raises(jax.errors.JaxRuntimeError, match="device-to-host"):
        jax.device_get(x + x)


def test_what_was_read_is_a_copy_so_the_buffer_can_be_donated():
    x = jnp.arange(1024.0)
    seen = np.asarray(x)
    jax.jit(lambda x: x + 1, donate_argnums=0)(x)
    assert x.is_deleted() and seen[-1] == 1023
    with pytest.raises(RuntimeError, match="deleted"):
        np.asarray(x)
