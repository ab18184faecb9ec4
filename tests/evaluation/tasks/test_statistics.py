import numpy as np
import pytest

from mim_jax import data
from mim_jax.errors import ConfigError
from mim_jax.evaluation.statistics import representation_statistics


def test_statistics_of_the_evaluation_split(mae, tmp_path):
    (batch,) = data.eval_batches(mae.config, None, batch_size=100)
    features = np.asarray(mae.objective.encode(mae.variables, batch["image"])["pooled"])
    result = mae.evaluator().evaluate(mae.variables, ("statistics",), step=0, out_dir=tmp_path)["statistics"]
    assert result.metrics == pytest.approx(representation_statistics(features), rel=1e-3, abs=1e-4)
    assert result.complete


def test_a_part_of_the_split_is_said_so(mae, tmp_path):
    evaluator = mae.evaluator(evaluation__statistics__max_examples=20)
    result = evaluator.evaluate(mae.variables, ("statistics",), step=0, out_dir=tmp_path)["statistics"]
    assert not result.complete
    assert result.details == {"examples": 20}


def test_one_image_is_refused(mae):
    with pytest.raises(ConfigError, match="max_examples is 1"):
        mae.evaluator(evaluation__tasks=("statistics",), evaluation__statistics__max_examples=1)
