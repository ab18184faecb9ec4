import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mim_jax
from mim_jax.errors import ConfigError
from mim_jax.layers.position import resize_position_table
from mim_jax.layers.relative_resize import resize_relative_table
from mim_jax.training.initialize import check_same_config, graft


@pytest.fixture
def config():
    return mim_jax.default_config(method="mae")


def refused(config, changed, allow=False):
    with pytest.raises(ConfigError) as error:
        check_same_config(config.to_dict(), changed, allow)
    return str(error.value)


def test_the_same_config_passes(config):
    check_same_config(config.to_dict(), mim_jax.default_config(method="mae"), False)


def test_what_only_watches_or_places_may_change(config):
    changed = mim_jax.default_config(method="mae")
    changed.log.every = "7 steps"
    changed.mesh.fsdp = 4
    changed.compute.scan = True
    check_same_config(config.to_dict(), changed, False)


def test_the_schedule_may_change_when_asked(config):
    changed = mim_jax.default_config(method="mae")
    changed.optimizer.lr = 1.0
    message = refused(config, changed)
    assert "optimizer.lr 0.00015 -> 1.0" in message and "--allow_config_change" in message
    check_same_config(config.to_dict(), changed, True)


def test_the_model_may_never_change(config):
    changed = mim_jax.default_config(method="mae")
    changed.model.depth = 3
    assert "model.depth 12 -> 3" in refused(config, changed, allow=True)
    assert "another workdir" in refused(config, changed, allow=True)


def leaf(*shape, value=0.0):
    return jnp.full(shape, value)


def test_graft_takes_namesakes_and_reports_the_rest():
    source = {"params": {"encoder": {"a": leaf(2, value=1.0), "b": leaf(3, value=1.0)}, "decoder": {"c": leaf(1)}}}
    fresh = {"params": {"encoder": {"a": leaf(2), "b": leaf(4)}, "head": {"d": leaf(2)}}}
    variables, lines = graft(fresh, source, None)
    np.testing.assert_array_equal(variables["params"]["encoder"]["a"], [1.0, 1.0])
    np.testing.assert_array_equal(variables["params"]["encoder"]["b"], np.zeros(4))
    assert lines[0].startswith("  loaded: 1 arrays (params/encoder)")
    assert lines[2].startswith("  left as initialised: 2 arrays (params/encoder, params/head)")


@pytest.mark.parametrize(("method", "value"), [("mae", 1.0), ("ijepa", 2.0)])
def test_a_task_takes_the_encoder_its_source_encodes_with(method, value):
    small = dict(image_size=8, model=dict(width=8, depth=1, heads=2, patch_size=4))
    probe = mim_jax.create(dict(task="linear_probe", num_classes=3, **small))
    pretrained = mim_jax.create(dict(method=method, **small))
    source = {"params": {"encoder": {"a": leaf(2, value=1.0)}}, "teacher": {"encoder": {"a": leaf(2, value=2.0)}}}
    variables, _ = graft({"teacher": {"encoder": {"a": leaf(2)}}}, source, None, pretrained, probe)
    np.testing.assert_array_equal(variables["teacher"]["encoder"]["a"], [value, value])


def test_graft_can_be_limited_to_parts():
    source = {"params": {"encoder": {"a": leaf(2, value=1.0)}, "head": {"d": leaf(2, value=1.0)}}}
    fresh = jax.tree.map(jnp.zeros_like, source)
    variables, _ = graft(fresh, source, ("encoder",))
    np.testing.assert_array_equal(variables["params"]["head"]["d"], np.zeros(2))


def test_averaged_statistics_start_as_those_of_the_source_also_when_limited_to_the_encoder():
    task = types.SimpleNamespace(config=types.SimpleNamespace(task="classification"))
    source = {"params": {"encoder": {"a": leaf(2, value=1.0)}}, "state": {"encoder": {"mean": leaf(3, value=1.0)}}}
    fresh = {
        "params": {"encoder": {"a": leaf(2)}, "head": {"b": leaf(2)}},
        "state": {"encoder": {"mean": leaf(3)}, "averaged": {"encoder": {"mean": leaf(3)}}},
    }
    state = graft(fresh, source, ("encoder",), None, task)[0]["state"]
    np.testing.assert_array_equal(state["encoder"]["mean"], [1.0] * 3)
    np.testing.assert_array_equal(state["averaged"]["encoder"]["mean"], [1.0] * 3)


def test_graft_resizes_position_tables():
    tiny = dict(
        task="classification", num_classes=3, model=dict(width=8, depth=1, heads=2, patch_size=4, position="learned")
    )
    small = mim_jax.create({**tiny, "image_size": 8})
    large = mim_jax.create({**tiny, "image_size": 16})
    table = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    path = {"encoder": {"position": {"table": jnp.asarray(table)}, "class_token": leaf(8)}}
    fresh = {"encoder": {"position": {"table": leaf(17, 8)}, "class_token": leaf(8)}}
    variables, lines = graft({"params": fresh}, {"params": path}, None, small, large)
    resized = variables["params"]["encoder"]["position"]["table"]
    np.testing.assert_array_equal(resized[0], table[0])
    np.testing.assert_allclose(resized[1:], resize_position_table(table[1:], (2, 2), (4, 4)), rtol=1e-6)
    assert "resized: 1 arrays" in lines[1]


def test_graft_resizes_tables_of_windows_layer_by_layer():
    tables = np.random.default_rng(0).normal(size=(2, 25, 3)).astype(np.float32)

    def path(table):
        return {"params": {"encoder": {"relative_bias": {"table": table}, "norm": leaf(8)}}}

    variables, lines = graft(path(leaf(2, 49, 3)), path(jnp.asarray(tables)), None)
    resized = variables["params"]["encoder"]["relative_bias"]["table"]
    np.testing.assert_array_equal(resized[1], resize_relative_table(tables[1], (5, 5), (7, 7)))
    assert "resized: 1 arrays" in lines[1]
    with pytest.raises(ConfigError, match=r"shape \(2, 25, 3\) cannot become ones of shape \(2, 49, 4\)"):
        graft(path(leaf(2, 49, 4)), path(jnp.asarray(tables)), None)


def test_nothing_in_common_is_an_error():
    with pytest.raises(ConfigError, match="init_from"):
        graft({"params": {"a": leaf(2)}}, {"params": {"b": leaf(2)}}, None)


def test_an_encoder_with_registers_is_not_taken_over_without_them():
    small = dict(image_size=8, model=dict(width=8, depth=1, heads=2, patch_size=4))
    probe = mim_jax.create(dict(task="linear_probe", num_classes=3, **small))
    pretrained = mim_jax.create(dict(method="mae", **small))
    encoder = {"class_token": leaf(2), "registers": leaf(1, 2, value=1.0)}
    source, without = {"params": {"encoder": encoder}}, {"class_token": leaf(2)}
    with pytest.raises(ConfigError, match=r"set model\.num_registers=1"):
        graft({"teacher": {"encoder": without}}, source, None, pretrained, probe)
    fresh = {"teacher": {"encoder": jax.tree.map(jnp.zeros_like, encoder)}}
    variables, _ = graft(fresh, source, None, pretrained, probe)
    np.testing.assert_array_equal(variables["teacher"]["encoder"]["registers"], [[1.0, 1.0]])
