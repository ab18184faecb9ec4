import json

import jax
import numpy as np
import pytest

import mim_jax
from mim_jax.training.program import Program
from mim_jax.training.sharding import make_mesh
from tests.tiny import clock, tiny_config
from tools import benchmark, benchmark_input, benchmark_peers

torch = pytest.importorskip("torch")


def num_parameters(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_peer_has_the_same_parameters_to_train():
    config = tiny_config("mae", {"mesh.data": 8})
    state = Program(config, make_mesh(config.mesh), 64).abstract_state
    ours = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state.variables["params"]))
    theirs = sum(p.numel() for p in benchmark_peers.build(config).parameters() if p.requires_grad)
    assert ours == theirs


def test_the_peer_of_a_swin_transformer_has_the_same_parameters():
    config = mim_jax.load_config("configs/simmim_swin_fashion_mnist.py")
    objective = mim_jax.create(config)
    shapes = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())
    assert num_parameters(benchmark_peers.build(config)) == sum(leaf.size for leaf in jax.tree.leaves(shapes))


SPARK = {
    "resnet": dict(model=dict(backbone="resnet", depths=(1, 1, 1, 1), widths=(4, 6, 8, 10), stem_width=4)),
    "convnext": dict(
        model=dict(backbone="convnext", depths=(1, 1, 1, 1), widths=(8, 12, 16, 32)), densify_norm="layer_norm"
    ),
}


def spark_config(backbone):
    return mim_jax.resolve(dict(method="spark", image_size=96, batch_size=4, decoder=dict(width=32), **SPARK[backbone]))


@pytest.mark.parametrize("backbone", SPARK)
def test_the_peer_of_spark_has_the_same_parameters_and_sees_as_much(backbone):
    config = spark_config(backbone)
    objective = mim_jax.create(config)
    variables = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec())
    ours = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert num_parameters(benchmark_peers.build(config)) == ours
    batch = {"image": jax.ShapeDtypeStruct((4, 96, 96, 3), "float32")}
    masks = jax.eval_shape(objective.masks, variables, batch, jax.random.key(0), clock())
    visible = benchmark_peers.inputs(config, "cpu")["active"].flatten(1).sum(dim=1)
    assert visible.tolist() == [masks.num_keep] * 4


@pytest.mark.parametrize("method", ["simmim", "spark"])
def test_peers_take_steps(method):
    config = tiny_config("simmim") if method == "simmim" else spark_config("resnet")
    work = benchmark.peer("torch eager", config)
    assert work.first_step_seconds > 0 and work.details["parameters"] > 1000
    work.actions["step"](2)


def test_rows_hold_what_was_measured():
    config = tiny_config("mae", {"mesh.data": 8})
    rows = benchmark.measure(config, "tiny", ["eager"], windows=2, seconds=0.05)
    assert [row["name"] for row in rows] == ["mim_jax", "torch eager"]
    first, second = rows
    for row in rows:
        rate = row["images_per_second"]
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
        assert row["first_step_seconds"] > 0
    ratio = first["images_per_second"]["median"] / second["images_per_second"]["median"]
    assert second["ours_over_this"] == pytest.approx(ratio)
    assert 0 < first["compile_seconds"] < first["first_step_seconds"]
    assert first["masking_share"] > 0
    assert "mae" not in benchmark.table(rows).splitlines()[0] and "torch eager" in benchmark.table(rows)
    assert json.dumps(rows)


def test_the_breakdown_is_relative_to_the_first_config():
    def row(config, flops, rate):
        rates = {"median": rate, "min": rate, "max": rate, "windows": 1}
        return {
            "config": config,
            "batch_size": 8,
            "name": "mim_jax",
            "flops_per_step": flops,
            "images_per_second": rates,
            "masking_share": 0.001,
        }

    lines = benchmark.breakdown(
        [row("mae", 8e10, 10.0), row("mae", 8e10, 12.0) | {"name": "torch eager"}, row("hpm", 16e10, 4.0)]
    )
    assert lines.splitlines()[2:] == [
        "| mae | 8 | 10.0 | 1.00 | 1.00 | 1.00 | 0.10% |",
        "| hpm | 8 | 20.0 | 2.00 | 2.50 | 1.25 | 0.10% |",
    ]


def test_unrolled_flops_are_those_of_xla_but_for_elementwise_work():
    changes = {"mesh.data": 8, "compute.scan": False, "model.width": 64, "decoder.width": 64}
    changes |= {"model.depth": 1, "decoder.depth": 1}
    row = benchmark.ours(tiny_config("mae", changes)).details
    assert row["flops"] <= row["xla_flops"] <= 1.25 * row["flops"]


class InThisProcess(benchmark.Contestant):
    """A contestant that shares what this process has imported and compiled."""

    def __init__(self, name, config):
        self.name = name
        self._work = benchmark.ours(config)
        self.first_step_seconds, self.details = self._work.first_step_seconds, self._work.details

    def ask(self, action, number=1):
        return 0.01, self._work.actions[action](min(number, 64))  # no product as large as the peak needs

    def close(self):
        return 1


def test_methods_without_a_peer_are_measured_alone_and_their_teachers_weights_not_looked_for(monkeypatch):
    monkeypatch.setattr(benchmark, "Contestant", InThisProcess)
    config = tiny_config("dmae", {"mesh.data": 8, "teacher.weights": "nowhere.safetensors"})
    rows = benchmark.measure(config, "tiny", ["eager"], windows=1, seconds=0.01)
    assert [row["name"] for row in rows] == ["mim_jax"]


def test_both_input_pipelines_deliver_normalised_crops(tmp_path):
    pytest.importorskip("sklearn")
    torch.manual_seed(0)  # of their crop
    paths = benchmark_input.write_photographs(tmp_path, 4)
    theirs = benchmark_input.Photographs(paths)[3].numpy()
    assert theirs.shape == (3, 224, 224)
    config = mim_jax.default_config(method="mae")
    config.batch_size = 4
    config.data.update(source=f"folder:{tmp_path}", crop_scale=benchmark_input.SCALE)
    ours = next(iter(mim_jax.data.train_batches(config)))["image"]
    assert ours.shape == (4, 224, 224, 3)
    assert abs(ours.mean() - theirs.mean()) < 1.0 and abs(ours.std() - theirs.std()) < 0.5
