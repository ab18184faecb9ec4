import jax
import numpy as np
import pytest

import mim_jax
from mim_jax import data
from mim_jax.errors import ConfigError
from mim_jax.evaluation import default_config, task_names
from mim_jax.evaluation.bench import Bench, Snapshot
from mim_jax.evaluation.placement import Placement
from mim_jax.evaluation.task import task_class
from tests.evaluation.conftest import make_subject
from tests.evaluation.meshes import mesh_of


def test_run_names_numbers_after_their_task(mae, tmp_path):
    numbers = mae.evaluator().run(mae.variables, ("knn", "statistics"), step=3, out_dir=tmp_path)
    assert set(numbers) == {
        "knn/top1_k20",
        "statistics/feature_std",
        "statistics/effective_rank",
        "statistics/mean_cosine",
    }
    assert all(isinstance(value, float) for value in numbers.values())


def test_later_snapshots_compile_nothing(mae, tmp_path, caplog):
    evaluator = mae.evaluator()
    tasks = ("knn", "linear", "reconstruct", "statistics")
    variables = Placement(mesh_of(8)).replicate(jax.tree.map(np.asarray, mae.variables))
    with jax.log_compiles():
        evaluator.run(variables, tasks, step=0, out_dir=tmp_path)
        assert "Compiling" in caplog.text
        caplog.clear()
        with jax.transfer_guard("disallow"):  # and every transfer is explicit
            evaluator.run(variables, tasks, step=1, out_dir=tmp_path)
    assert "Compiling" not in caplog.text


def test_tasks_share_features(mae, tmp_path, monkeypatch):
    passes = []
    real = data.eval_batches

    def counted(config, split=None, **options):
        passes.append(split)
        return real(config, split, **options)

    monkeypatch.setattr(data, "eval_batches", counted)
    mae.evaluator().run(mae.variables, ("knn", "linear"), step=0, out_dir=tmp_path)
    assert sorted(passes, key=str) == [None, "train"]


def test_a_part_of_features_already_known_is_cut_from_them(mae, tmp_path):
    bench = Bench(mae.objective, mae.config, mesh_of(8))
    part = np.array([3, 50, 99])
    alone = Snapshot(bench, mae.variables, 0, tmp_path).features("train", "pooled", part)
    snapshot = Snapshot(bench, mae.variables, 0, tmp_path)
    assert len(snapshot.features("train", "pooled")) == 100
    cut = snapshot.features("train", "pooled", part)
    np.testing.assert_allclose(cut.features, alone.features, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(cut.indices, part)
    np.testing.assert_array_equal(alone.labels, part % 10)


def test_every_task_has_a_section_of_its_own():
    config = default_config()
    assert {"accuracy", "knn", "linear", "reconstruct", "statistics"} <= set(task_names())
    for name in task_names():
        assert config[name].to_dict() == task_class(name).default_config().to_dict()
    assert config.every is None
    assert config.at_start is True
    assert config.tasks == ("knn",)


def test_an_unknown_task_is_refused_and_the_known_ones_named(mae):
    with pytest.raises(ConfigError, match="no evaluation task 'kn'; known: accuracy, coding_rate, knn, linear"):
        mae.evaluator(evaluation__tasks=("kn",))


def test_unlabelled_data_is_refused_by_tasks_that_need_labels_and_no_others(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (20, 16, 16, 1), dtype=np.uint8)
    np.savez(tmp_path / "plain.npz", train_image=images, test_image=images)
    subject = make_subject("mae", **{"data.source": f"npz:{tmp_path}/plain.npz", "data.eval_split": "auto"})
    for task in ("knn", "linear"):
        with pytest.raises(ConfigError, match=f"'{task}' needs labels.*choose a labelled"):
            subject.evaluator(evaluation__tasks=(task,))
    numbers = subject.evaluator().run(subject.variables, ("statistics", "reconstruct"), step=0, out_dir=tmp_path)
    assert numbers["statistics/feature_std"] > 0.0


def test_data_without_an_evaluation_split_is_refused_by_tasks_that_need_one(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (20, 16, 16, 1), dtype=np.uint8)
    np.savez(tmp_path / "one.npz", image=images, label=np.arange(20))
    subject = make_subject("mae", **{"data.source": f"npz:{tmp_path}/one.npz", "data.eval_split": "auto"})
    with pytest.raises(ConfigError, match="needs an evaluation split"):
        subject.evaluator(evaluation__tasks=("knn",))


def test_batch_sizes_are_rounded_up_to_fill_the_devices(mae):
    config = mim_jax.resolve(mae.config)
    config.evaluation.batch_size = 13
    assert Bench(mae.objective, config, mesh_of(8)).batch_size == 16
    config.evaluation.batch_size = 0
    with pytest.raises(ConfigError, match="batch_size is 0"):
        Bench(mae.objective, config, mesh_of(8))
