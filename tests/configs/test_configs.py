"""Every recipe under configs/ can be built, and the paper recipes are the papers'."""

from __future__ import annotations

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mim_jax
from mim_jax.data.config import check_config
from mim_jax.training.duration import RunLength
from mim_jax.training.optimizer import Rates, make_optimizer
from mim_jax.training.schedules import learning_rate_schedule, peak_learning_rate, weight_decay_schedule

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(path for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "common"))
IMAGENET = 1_281_167

# Trainable parameters counted by instantiating the official classes; fixed position tables are in none of them.
PARAMETERS = {
    "mae_vit_b16_in1k": {"encoder": 85_647_360, "decoder": 26_008_320},
    "mae_vit_l16_in1k": {"encoder": 303_099_904, "decoder": 26_139_392},
    "mae_vit_h14_in1k": {"encoder": 630_435_840, "decoder": 26_178_124},
    "simmim_vit_b16_in1k": {"encoder": 85_666_128, "head": 590_592},
    "ijepa_vit_b16_in1k": {"encoder": 85_646_592, "predictor": 11_238_912},
    "ijepa_vit_l16_in1k": {"encoder": 303_098_880, "predictor": 22_082_560},
    "ijepa_vit_h14_in1k": {"encoder": 630_434_560, "predictor": 22_279_424},
}


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm mixes bfloat16 and float32
        yield


def load(name: str):
    return mim_jax.load_config(str(FOLDER / f"{name}.py"))


def shapes_of(objective: mim_jax.Objective):
    return jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec(2))


def rates_of(config) -> Rates:
    length = RunLength(IMAGENET, config.batch_size)
    total = length.steps(config.duration, "duration")
    return Rates(learning_rate_schedule(config, total, length), weight_decay_schedule(config, total))


def test_there_are_recipes_for_all_three_methods():
    assert {path.stem.split("_")[0] for path in FILES} >= {"mae", "simmim", "ijepa", "demo"}
    assert PARAMETERS.keys() <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_builds_abstractly(path: pathlib.Path):
    objective = mim_jax.create(mim_jax.load_config(str(path)))
    variables, batch = shapes_of(objective), objective.batch_spec(8)
    clock = mim_jax.Clock.at(0, total_steps=10, steps_per_epoch=5.0)

    def loss(variables, batch, rng):
        return objective.loss(variables, batch, objective.masks(variables, batch, rng, clock), rng, clock)

    value, aux = jax.eval_shape(loss, variables, batch, jax.random.key(0))
    assert (value.shape, value.dtype) == ((), jnp.float32)
    assert aux["terms"]
    pooled = jax.eval_shape(objective.encode, variables, batch.get("image", batch.get("video")))["pooled"]
    assert pooled.shape == (8, objective.encoder.width)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_data_optimizer_and_durations_fit(path: pathlib.Path):
    config = mim_jax.load_config(str(path))
    check_config(config)
    assert config.batch_size % (8 * config.accumulation_steps) == 0
    objective = mim_jax.create(config)
    params = shapes_of(objective)["params"]
    encoder = getattr(objective, "encoder", None)
    optimizer = make_optimizer(config, params, rates_of(config), encoder)  # refuses patterns that match no parameter
    assert jax.tree.leaves(jax.eval_shape(optimizer.init, params))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_docstring_has_the_command_for_this_very_file(path: pathlib.Path):
    commands = re.findall(r"--config=(\S+) --workdir=runs/(\w+)", path.read_text().split('"""')[1])
    assert [file for file, _ in commands] == [f"configs/{path.name}"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_survives_json(path: pathlib.Path, tmp_path: pathlib.Path):
    config = mim_jax.load_config(str(path))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.to_dict()))
    assert mim_jax.load_config(str(file)).to_dict() == config.to_dict()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_official_ones(name: str):
    params = shapes_of(mim_jax.create(load(name)))["params"]
    counts = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in params.items()}
    assert counts == PARAMETERS[name]


def test_peak_learning_rates_are_the_papers():
    peaks = {name: peak_learning_rate(load(name)) for name in PARAMETERS}
    published = {"mae": 2.4e-3, "simmim": 4e-4, "ijepa": 1e-3}
    np.testing.assert_allclose(list(peaks.values()), [published[name.split("_")[0]] for name in peaks], rtol=1e-12)


def test_simmim_drops_its_rate_tenfold_at_epoch_700():
    rate = rates_of(load("simmim_vit_b16_in1k")).learning_rate
    steps_per_epoch = IMAGENET / 2048
    at = [float(rate(jnp.asarray(int(steps_per_epoch * epoch), jnp.int32))) for epoch in (0, 10.1, 699.9, 700.1, 799)]
    np.testing.assert_allclose(at, [2e-6, 4e-4, 4e-4, 4e-5, 4e-5], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "start"),
    [("simmim_vit_b16_in1k", 2e-6), ("simmim_swin_b_in1k", 4e-6), ("simmim_swin_b_in1k_finetune", 1e-6)],
)
def test_simmim_moves_its_schedule_after_the_optimizer(name, start):
    rate = rates_of(load(name)).learning_rate
    first, second, third = (float(rate(jnp.asarray(step, jnp.int32))) for step in range(3))
    assert first == second == pytest.approx(start, rel=1e-5) and third > second


def test_ijepa_advances_its_schedules_before_it_reads_them():
    config = load("ijepa_vit_h14_in1k")
    rates = rates_of(config)
    warmup = RunLength(IMAGENET, config.batch_size).steps("40 epochs", "schedule.warmup")
    first = jnp.zeros((), jnp.int32)
    np.testing.assert_allclose(float(rates.learning_rate(first)), 2e-4 + 8e-4 / warmup, rtol=1e-6)
    last = jnp.asarray(RunLength(IMAGENET, config.batch_size).steps(config.duration, "duration") - 1, jnp.int32)
    np.testing.assert_allclose(float(rates.learning_rate(last)), 1e-6, rtol=1e-5)
    np.testing.assert_allclose(float(rates.weight_decay(last)), 0.4, rtol=1e-6)
