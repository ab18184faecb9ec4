import importlib

import jax
import jax.numpy as jnp
import pytest

from mim_jax.layers.block import BlockStack
from mim_jax.models.cross_attention_decoder import CrossBlockStack as CrossAttentionStack
from mim_jax.models.cross_decoder import CrossBlockStack
from mim_jax.training.flops import count_flops


@pytest.fixture(scope="module")
def tools(request):
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(request.config.rootpath / "tools"))
    yield {name: importlib.import_module(name) for name in ("reproduce", "suite_report", "step_cost")}
    patch.undo()


def counted(module, *shapes):
    inputs = [jnp.zeros((1, *shape)) for shape in shapes]
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return count_flops(module.apply, variables, *inputs)


def test_blocks_are_predicted_as_they_are_counted(tools):
    Blocks = tools["suite_report"].Blocks
    plain = counted(BlockStack(2, 2, 64), (6, 16))
    assert Blocks(depth=2, width=16, tokens=6, trained=False).flops() == plain
    assert Blocks(depth=2, width=16, tokens=6, times=2.0).flops() == 6 * plain
    few = counted(BlockStack(2, 2, 64, num_keys=2), (6, 16))
    assert Blocks(depth=2, width=16, tokens=6, keys=2, trained=False).flops() == few
    both = counted(CrossBlockStack(2, 2, 32), (6, 16), (5, 16))
    assert Blocks(depth=2, width=16, tokens=6, memory=(5, 16), mlp=32, trained=False).flops() == both
    cross = counted(CrossAttentionStack(2, 2, 64), (6, 16), (5, 24))
    blocks = Blocks(depth=2, width=16, tokens=6, memory=(5, 24), self_attention=False, trained=False)
    assert blocks.flops() == cross


def test_recipes_exist_and_are_predicted(tools):
    for file in tools["reproduce"].SUITES.glob("*.toml"):
        for row in tools["reproduce"].read_suite(file.stem)[1]:
            assert bool(row.recipe) == bool(row.stacks), row.name
            assert not row.recipe or (tools["reproduce"].ROOT / "configs" / f"{row.recipe}.py").is_file()


def test_the_report_compares_with_the_prediction(tools):
    Row, Blocks = tools["suite_report"].Row, tools["suite_report"].Blocks
    one, two = Blocks(depth=1, width=8, tokens=4), Blocks(depth=1, width=8, tokens=4, times=2.0)
    rows = [
        Row("mae", "x", "", "unsaid", recipe="r", stacks=(one,)),
        Row("hpm", "x", "", "unsaid", recipe="r", stacks=(two,)),
        Row("lut", "x", "", "unsaid", recipe="r", stacks=(one,)),
    ]
    measured = {
        name: {"flops_per_step": flops, "images_per_second": {"median": rate}, "masking_share": 0.001}
        for name, flops, rate in (("mae", 10.0, 8.0), ("hpm", 21.0, 3.2))
    }
    lines = tools["step_cost"].report("T", "mae", rows, measured, "command", 8).splitlines()
    assert "| mae | 1x8 on 4 | 1.00 | 1.00 | 1.00 | 1.00 | 0.10% |" in lines
    assert "| hpm | 2 x 1x8 on 4 | 2.00 | 2.10 | 2.50 | 1.25 | 0.10% |" in lines
    assert not any(line.startswith("| lut") for line in lines)
    assert "More than 10% above the prediction: hpm." in lines


def test_work_outside_of_blocks_is_predicted_too(tools):
    block = tools["suite_report"].Blocks(depth=1, width=8, tokens=4)
    row = tools["suite_report"].Row("cae", "x", "", "unsaid", stacks=(block,), elsewhere=2.5)
    assert row.predicted_flops() == block.flops() + 2.5e9
    assert row.describe_work() == "1x8 on 4, 2.5 GFLOP elsewhere"


def test_a_recipe_is_measured_at_one_batch_without_accumulation(tools):
    Row = tools["suite_report"].Row
    row = Row("lut", "x", "", "unsaid", recipe="lut_vit_b16_in1k")
    config = tools["step_cost"].recipe_config(row, 8, {"compute.scan": "False", "bc_weight": "0.5"})
    assert (config.batch_size, config.accumulation_steps, config.bc_weight) == (8, 1, 0.5)
    assert config.compute.scan is False
