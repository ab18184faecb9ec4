import jax
import numpy as np
import pytest

import mim_jax
from mim_jax import data
from mim_jax.errors import ConfigError
from mim_jax.evaluation import Evaluator
from tests.evaluation.meshes import mesh_of


@pytest.fixture(scope="module")
def classifier():
    config = mim_jax.resolve(
        dict(
            task="classification",
            image_size=16,
            channels=1,
            num_classes=10,
            data=dict(source="synthetic:50"),
            model=dict(patch_size=8, width=16, depth=1, heads=2),
            evaluation=dict(tasks=("accuracy",), batch_size=16),
        )
    )
    objective = mim_jax.create(config)
    variables = jax.jit(lambda: objective.init(jax.random.key(0), objective.batch_spec()))()
    # The head starts next to zero; this one has opinions.
    variables["params"]["head"]["kernel"] = jax.random.normal(jax.random.key(1), (16, 10))
    return config, objective, variables


def test_it_counts_every_evaluation_image_once(classifier, tmp_path):
    config, objective, variables = classifier
    result = Evaluator(objective, config, mesh_of(8)).evaluate(variables, ("accuracy",), step=0, out_dir=tmp_path)
    (batch,) = data.eval_batches(config, None, batch_size=50)
    best = np.argsort(-np.asarray(objective.predict(variables, batch["image"])), axis=1)
    hits = best == batch["label"][:, None]
    expected = {"top1": 100 * hits[:, :1].any(axis=1).mean(), "top5": 100 * hits[:, :5].any(axis=1).mean()}
    assert result["accuracy"].metrics == pytest.approx(expected)
    assert 0 < expected["top1"] < expected["top5"]
    assert result["accuracy"].details == {"eval_examples": 50}


def test_an_objective_that_does_not_classify_is_refused(mae):
    with pytest.raises(ConfigError, match="MAE does not; use 'knn' or 'linear'"):
        mae.evaluator(evaluation__tasks=("accuracy",))
