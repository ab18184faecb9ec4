"""Strict JAX for every test: eight simulated devices, no implicit dtype or rank promotion, no legacy keys."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")
# The networks here are tiny: compiling them costs far more than running them, and twice as much with optimisations on.
jax.config.update("jax_disable_most_optimizations", True)
# A run keeps what it compiles in its work directory; tests should neither fill theirs nor find each other's.
jax.config.update("jax_enable_compilation_cache", False)
