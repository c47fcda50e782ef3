"""What all tests share: four CPU devices, strict broadcasting, a cache of compiled programs, and small networks."""

import os

import jax

from flaxformer_lab.cache import cache_folder

COMPILED = str(cache_folder("test-compiled"))
# For the commands that the tests start; JAX has read its environment already here.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", COMPILED)
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
