import jax
import numpy as np
import pytest

from mim_jax.errors import ConfigError

SHORT = {
    "evaluation__linear__optimizer": "adamw",
    "evaluation__linear__lrs": (1e-3, 0.1),
    "evaluation__linear__lr_reference_batch": None,
    "evaluation__linear__epochs": 6,
    "evaluation__linear__warmup_epochs": 1.0,
    "evaluation__linear__batch_size": 16,
}


def run(evaluator, mae, tmp_path):
    return evaluator.evaluate(mae.variables, ("linear",), step=0, out_dir=tmp_path)["linear"]


@pytest.fixture(scope="module")
def evaluator(mae):
    return mae.evaluator(**SHORT)


def test_the_held_out_images_choose_the_rate(evaluator, mae, tmp_path):
    result = run(evaluator, mae, tmp_path)
    assert result.metrics["lr"] in SHORT["evaluation__linear__lrs"]
    assert result.metrics["top1"] == result.metrics[f"top1_lr{result.metrics['lr']:g}"]
    assert set(result.metrics) == {"top1", "lr", "holdout_top1", "top1_lr0.001", "top1_lr0.1"}
    assert result.details == {"train_examples": 90, "holdout_examples": 10, "eval_examples": 100}
    assert result.complete
    assert result.metrics["top1_lr0.1"] > 30.0  # ten classes
    assert run(evaluator, mae, tmp_path) == result


def test_the_number_of_devices_changes_nothing_but_rounding(evaluator, mae, tmp_path):
    one, eight = run(mae.evaluator(1, **SHORT), mae, tmp_path), run(evaluator, mae, tmp_path)
    for name in ("top1_lr0.001", "top1_lr0.1"):
        assert one.metrics[name] == pytest.approx(eight.metrics[name], abs=2.01)


def test_crops_train_a_classifier_and_leave_the_encoder_as_it_is(mae, tmp_path):
    before = jax.tree.map(np.array, mae.variables)
    longer = {**SHORT, "evaluation__linear__epochs": 30, "evaluation__linear__crop_scale": (0.5, 1.0)}
    result = run(mae.evaluator(**longer, evaluation__linear__augment=True), mae, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, before, mae.variables)
    assert result.metrics["top1_lr0.1"] > 20.0
    assert result.details["holdout_examples"] == 10


def test_one_rate_needs_no_held_out_images(mae, tmp_path):
    evaluator = mae.evaluator(**{**SHORT, "evaluation__linear__lrs": (0.1,)}, evaluation__linear__holdout=0.0)
    result = run(evaluator, mae, tmp_path)
    assert set(result.metrics) == {"top1", "lr", "top1_lr0.1"}
    assert result.details["train_examples"] == 100


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("holdout", 0.0, "holdout is 0.0"),
        ("holdout", 1.0, "holdout is 1.0"),
        ("lrs", (), "lrs is"),
        ("lrs", (0.1, -1.0), "positive learning rates"),
        ("epochs", 0, "epochs is 0"),
        ("optimizer", "adam", "choose one of lars, adamw"),
        ("batch_size", 1, "batch_size"),
    ],
)
def test_impossible_settings_are_refused_before_anything_runs(mae, key, value, message):
    with pytest.raises(ConfigError, match=message):
        mae.evaluator(evaluation__tasks=("linear",), **{f"evaluation__linear__{key}": value})


def test_augmented_batches_must_split_over_the_devices(mae):
    with pytest.raises(ConfigError, match="multiple of the 8 devices"):
        mae.evaluator(
            evaluation__tasks=("linear",), evaluation__linear__augment=True, evaluation__linear__batch_size=12
        )
