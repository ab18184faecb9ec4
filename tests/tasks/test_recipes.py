"""The downstream recipes of evaluation.md, algorithms A and B, as the committed configs give them."""

import pathlib

import jax
import numpy as np
import pytest

import mim_jax
from mim_jax.training.duration import RunLength
from mim_jax.training.optimizer import Rates, layer_scales, make_optimizer
from mim_jax.training.paths import LAYERED, leaf_names, matches
from mim_jax.training.schedules import learning_rate_schedule, weight_decay_schedule

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
IMAGENET = 1_281_167


def _load(name, arg=None):
    # In bfloat16 Flax's LayerNorm mixes dtypes, which tests refuse; shapes are the same.
    path = str(CONFIGS / f"{name}.py") + (f":{arg}" if arg else "")
    config = mim_jax.load_config(path, {"compute.dtype": "float32"})
    objective = mim_jax.create(config)
    params = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())["params"]
    length = RunLength(IMAGENET, config.batch_size)
    steps = length.steps(config.duration, "duration")
    rates = Rates(learning_rate_schedule(config, steps, length), weight_decay_schedule(config, steps))
    make_optimizer(config, params, rates, objective.encoder)  # refuses patterns that match no parameter
    return config, params, rates.learning_rate, steps


@pytest.mark.parametrize(
    ("name", "parameters", "epochs", "peak", "decay", "drop_path"),
    [
        ("mae_vit_b16_in1k_finetune", 86_567_656, 100, 2e-3, 0.65, 0.1),
        ("mae_vit_l16_in1k_finetune", 304_326_632, 50, 4e-3, 0.75, 0.2),
        ("mae_vit_h14_in1k_finetune", 632_045_800, 50, 4e-3, 0.75, 0.3),
        ("convmae_conv_vit_b_in1k_finetune", 85_374_824, 100, 2e-3, 0.65, 0.1),
    ],
)
def test_fine_tuning_on_imagenet(name, parameters, epochs, peak, decay, drop_path):
    config, params, learning_rate, steps = _load(name)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters
    assert config.model.drop_path == drop_path
    assert steps == int(epochs * IMAGENET / 1024)
    warmup = int(5 * IMAGENET / 1024)
    assert float(learning_rate(0)) == 0.0
    assert float(learning_rate(warmup)) == pytest.approx(peak, rel=1e-5)
    assert float(learning_rate(steps)) == pytest.approx(1e-6, rel=1e-4)
    middle = (steps + warmup) // 2
    assert float(learning_rate(middle)) == pytest.approx((peak + 1e-6) / 2, rel=1e-3)

    scales = layer_scales(params, config.optimizer.layer_decay)
    depth = config.model.depth
    blocks = np.asarray(scales["encoder"]["stack"]["blocks"]["norm1"]["scale"]).ravel()
    np.testing.assert_allclose(blocks, decay ** np.arange(depth, 0, -1), rtol=1e-5)
    for embedding in set(scales["encoder"]) - {"stack"}:
        for scale in jax.tree.leaves(scales["encoder"][embedding]):
            assert float(scale) == pytest.approx(decay ** (depth + 1), rel=1e-4)
    assert {float(scale) for part in ("norm", "head") for scale in jax.tree.leaves(scales[part])} == {1.0}


@pytest.mark.parametrize(
    # Batch, epochs, warm-up, base learning rate, layer decay, weight decay, mixup, repeats, drop path, parameters of
    # the encoder, layers of the official layer decay (stem and head included).
    ("name", "arg", "row"),
    [
        ("spark_resnet50", "50", (2048, 300, 5, 2e-3, 0.7, 0.02, 0.1, 1, 0.05, 23_508_032, 8)),
        ("spark_resnet50", "101", (2048, 300, 5, 1e-3, 0.8, 0.02, 0.1, 1, 0.2, 42_500_160, 14)),
        ("spark_convnext_b", "B", (4096, 400, 20, 1e-4, 0.7, 0.01, 0.8, 3, 0.4, 87_564_416, 14)),
        ("spark_convnext_b", "L", (4096, 200, 10, 1e-4, 0.7, 0.02, 0.8, 3, 0.5, 196_227_264, 14)),
    ],
)
def test_fine_tuning_of_spark(name, arg, row):
    batch, epochs, warmup, base, decay, weight_decay, mixup, repeats, drop_path, parameters, layers = row
    config, params, learning_rate, steps = _load(f"{name}_in1k_finetune", arg)
    objective = mim_jax.create(config)
    assert sum(leaf.size for leaf in jax.tree.leaves(params["encoder"])) == parameters
    assert config.batch_size == batch and config.data.repeats == repeats and config.model.drop_path == drop_path
    assert steps == int(epochs * IMAGENET / batch)
    peak, warm = base * batch / 256, int(warmup * IMAGENET / batch)
    rates = [float(learning_rate(step)) / peak for step in (0, warm, steps - 1)]
    assert rates == pytest.approx([0.005, 1.0, 0.001], rel=1e-4)
    assert config.optimizer.weight_decay == weight_decay and config.optimizer.weight_decay_end is None
    assert (config.mixing.mixup_alpha, config.mixing.cutmix_alpha, config.mixing.probability) == (mixup, 1.0, 1.0)
    assert config.ema_decay == 0.9999
    scales = layer_scales(params, config.optimizer.layer_decay, objective.encoder)
    exponents = {round(float(x) / np.log(decay)) for leaf in jax.tree.leaves(scales) for x in np.log(leaf).ravel()}
    assert exponents == set(range(layers))
    resnet = name == "spark_resnet50"
    assert config.optimizer.name == ("lamb" if resnet else "adamw")
    assert config.loss == ("binary_cross_entropy" if resnet else "cross_entropy")
    exempt = matches(params, config.optimizer.no_decay, "optimizer.no_decay")
    for path, leaf, free in zip(leaf_names(params), jax.tree.leaves(params), jax.tree.leaves(exempt), strict=True):
        assert free == (leaf.ndim - (LAYERED in path) < 2), path


def test_linear_probe_on_imagenet():
    config, params, learning_rate, steps = _load("mae_vit_b16_in1k_linear")
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 769_000
    assert steps == int(90 * IMAGENET / 16384)
    assert float(learning_rate(int(10 * IMAGENET / 16384))) == pytest.approx(6.4, rel=1e-5)
    assert float(learning_rate(steps)) == pytest.approx(0.0, abs=1e-6)
    assert config.model.pool == "class"


def test_fashion_mnist_continues_the_pre_training_config():
    config, _, _, _ = _load("mae_fashion_mnist_finetune")
    before = mim_jax.load_config(str(CONFIGS / "mae_fashion_mnist.py"))
    for key in ("patch_size", "width", "depth", "heads", "mlp_ratio", "class_token"):
        assert config.model[key] == before.model[key], key
    assert config.data.source == before.data.source and config.image_size == before.image_size
