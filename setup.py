"""Packaging. `pip install -e .` is enough to train on a CPU; the extras add accelerators, tests and benchmarks."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent


def read_version() -> str:
    """`__version__` of the package, read from its text: importing it would need the dependencies being installed."""
    text = (ROOT / "mim_jax" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError("mim_jax/__init__.py defines no __version__.")
    return match[1]


# Wheels of tensorflow-cpu exist for x86-64 Linux; elsewhere the package of the plain name is the CPU build.
# The package imports TensorFlow only to decode JPEGs and to read TFDS, so synthetic runs do without it.
ON_X86_LINUX = "sys_platform == 'linux' and platform_machine == 'x86_64'"
ELSEWHERE = "sys_platform != 'linux' or platform_machine != 'x86_64'"

INSTALL_REQUIRES = [
    "absl-py>=2.1",
    "array_record>=0.8",
    "etils[epath]>=1.12",
    "flax>=0.12",
    "importlib_resources>=6",  # tensorflow-datasets imports it without saying so
    "jax>=0.10",
    "matplotlib>=3.9",
    "ml_collections>=1.1",
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.12",
    "pillow>=11",
    "safetensors>=0.5",
    "scipy>=1.13",  # jax needs it too
    "tensorboard>=2.19",
    f"tensorflow-cpu>=2.20; {ON_X86_LINUX}",
    f"tensorflow>=2.20; {ELSEWHERE}",
    "tensorflow-datasets>=4.9.9",
    "tqdm>=4.66",
]

# The peers whose numbers the models must reproduce and whose speed they are compared with. Any CPU build of this torch
# does: where the default wheel is a CUDA build, install a CPU one first and it is kept.
PEERS = ["torch==2.13.0", "transformers>=5.0"]

PHOTOGRAPHS = "scikit-learn>=1.5"  # two of them come with it

EXTRAS_REQUIRE = {
    "test": ["hypothesis>=6.100", "pytest>=8.3", "pytest-xdist>=3.6", "ruff>=0.15", PHOTOGRAPHS, *PEERS],
    "bench": [PHOTOGRAPHS, *PEERS],
    "tpu": ["jax[tpu]>=0.10"],
    "cuda": ["jax[cuda12]>=0.10"],
}

setup(
    name="mim-jax",
    version=read_version(),
    description="Masked image modelling in JAX: published pre-training methods behind one contract",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["mim_jax", "mim_jax.*"]),
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
