import dataclasses

import jax
import pytest

from mim_jax import data
from mim_jax.errors import ConfigError
from mim_jax.evaluation.coding_rate import layer_statistics, layer_tokens
from tests.evaluation.conftest import make_subject


@pytest.fixture(scope="module")
def crate():
    return make_subject("crate_mae", **{"model.depth": 2})


def measure(subject, tmp_path, devices=8, **settings):
    evaluator = subject.evaluator(devices, **{f"evaluation__coding_rate__{key}": v for key, v in settings.items()})
    return evaluator.evaluate(subject.variables, ("coding_rate",), step=0, out_dir=tmp_path)["coding_rate"]


def test_every_layer_is_averaged_over_the_evaluation_split(crate, tmp_path):
    (batch,) = data.eval_batches(crate.config, None, batch_size=100)
    layers = jax.jit(lambda params: layer_tokens(crate.objective.encoder, params, batch["image"]))
    expected = layer_statistics(jax.device_get(layers(crate.variables["params"]["encoder"])))
    result = measure(crate, tmp_path)
    assert result.complete and result.details["images"] == 100
    for name, values in expected.items():
        assert [result.metrics[f"{name}_{layer:02d}"] for layer in (1, 2)] == pytest.approx(
            values.mean(axis=1), rel=1e-4
        )
        assert result.details[f"{name}_std"] == pytest.approx(values.std(axis=1), rel=1e-2, abs=1e-5)


def test_devices_and_a_part_of_the_split(crate, tmp_path):
    one, eight = (measure(crate, tmp_path, devices, num_images=21) for devices in (1, 8))
    assert not one.complete and one.details["images"] == 21
    assert one.metrics == pytest.approx(eight.metrics, rel=1e-4)


def test_a_vit_is_measured_for_comparison(mae, tmp_path):
    metrics = measure(mae, tmp_path, num_images=5).metrics
    assert set(metrics) == {"compression_01", "rate_01", "nonzero_01"}
    assert metrics["nonzero_01"] == 1.0


def test_impossible_settings_are_refused(crate):
    for key, value in (("num_images", 0), ("epsilon", 0.0)):
        with pytest.raises(ConfigError, match=f"evaluation.coding_rate.{key} is {value}"):
            crate.evaluator(**{"evaluation__tasks": ("coding_rate",), f"evaluation__coding_rate__{key}": value})


def test_encoders_without_such_blocks_are_refused():
    subject = make_subject("convmae")
    with pytest.raises(ConfigError, match="which ConvMAE with model.backbone 'conv_vit' does not have"):
        dataclasses.replace(subject).evaluator(evaluation__tasks=("coding_rate",))
