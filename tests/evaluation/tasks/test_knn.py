import numpy as np
import pytest

from mim_jax import data
from mim_jax.errors import ConfigError
from tests.evaluation.test_knn import reference


def test_it_classifies_the_evaluation_images_by_the_training_images(mae, tmp_path):
    evaluator = mae.evaluator(evaluation__knn__k=(1, 5))
    result = evaluator.evaluate(mae.variables, ("knn",), step=0, out_dir=tmp_path)["knn"]
    (train,), (test,) = (
        list(data.eval_batches(mae.config, split, batch_size=100)) for split in (mae.config.data.train_split, None)
    )
    bank, queries = (
        np.asarray(mae.objective.encode(mae.variables, batch["image"])["pooled"]) for batch in (train, test)
    )
    for k in (1, 5):
        right = reference(bank, train["label"], queries, k, 0.07, 10) == test["label"]
        assert result.metrics[f"top1_k{k}"] == pytest.approx(100 * right.mean(), abs=1.01)
    assert result.complete
    assert result.details == {"train_examples": 100, "eval_examples": 100}


def test_a_part_of_the_training_images_is_the_same_part_each_time_and_said_so(mae, tmp_path):
    evaluator = mae.evaluator(evaluation__knn__max_train_examples=30)
    first, again = (evaluator.evaluate(mae.variables, ("knn",), step=0, out_dir=tmp_path)["knn"] for _ in range(2))
    assert first == again
    assert not first.complete
    assert first.details["train_examples"] == 30


def test_one_device_and_eight_give_the_same(mae, tmp_path):
    numbers = [
        mae.evaluator(devices, evaluation__batch_size=24).run(mae.variables, ("knn",), step=0, out_dir=tmp_path)
        for devices in (1, 8)
    ]
    assert numbers[0] == pytest.approx(numbers[1], abs=1.01)  # rounding may turn one of the 100 images


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("k", (0,), "knn.k is .0,.; every k"),
        ("k", (101,), "between 1 and the 100 training images"),
        ("k", (), "knn.k"),
        ("temperature", 0.0, "temperature is 0.0"),
        ("feature", "class", "no feature 'class'"),
        ("max_train_examples", 10, "the 10 training images"),
    ],
)
def test_impossible_settings_are_refused_before_anything_runs(mae, key, value, message):
    with pytest.raises(ConfigError, match=message):
        mae.evaluator(evaluation__tasks=("knn",), **{f"evaluation__knn__{key}": value})
