"""What is planned is what the compiled step uses, at a size that runs here; and the command line."""

from __future__ import annotations

import collections
import functools
import json
import pathlib
import subprocess
import sys

import jax
import pytest

from mim_jax.planning.collectives import collectives
from mim_jax.planning.compilation import abstract_batch
from mim_jax.planning.hlo import Module
from mim_jax.planning.plan import Plan
from mim_jax.training.sharding import make_mesh
from tests.tiny import ROOT, tiny_config
from tests.training.runs import NUM_EXAMPLES, TinyRun
from tools import plan as tool

MESH = {"mesh.data": 4, "mesh.fsdp": 2, "mesh.tensor": 1}


def config(**overrides):
    sizes = {"model.width": 64, "model.heads": 4, "decoder.width": 64, "decoder.heads": 4, "decoder.depth": 1}
    return tiny_config("mae", {"compute.scan": False, **sizes, **MESH, **overrides})


@functools.cache
def planned(scan: bool = False) -> Plan:
    return tool.plan(config(**{"compute.scan": scan}), "tpu-v5e", NUM_EXAMPLES)


@pytest.fixture(scope="module")
def run():
    return TinyRun(config(), make_mesh(config().mesh))


@pytest.fixture(scope="module")
def compiled(run):
    return run.jitted_step().lower(run.abstract_state, abstract_batch(run)).compile()


def on_first_device(tree):
    first = jax.devices()[0]
    return sum(s.data.nbytes for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == first)


def test_state_and_batch_have_the_planned_sizes(run):
    state, batch, usage = run.fresh_state(), run.batch(), planned().usage
    assert usage.parameters == sum(x.size for x in jax.tree.leaves(state.variables["params"]))
    assert usage.params_bytes == sum(x.nbytes for x in jax.tree.leaves(state.variables["params"]))
    assert usage.optimizer_bytes == sum(x.nbytes for x in jax.tree.leaves(state.opt_state))
    assert usage.state_bytes == sum(x.nbytes for x in jax.tree.leaves(state))
    assert usage.state_bytes_per_device == on_first_device(state) < usage.state_bytes
    assert usage.batch_bytes_per_device == on_first_device(batch)


def test_memory_is_what_the_executable_asks_for(compiled):
    usage, memory = planned().usage, compiled.memory_analysis()
    assert usage.temporary_bytes == memory.temp_size_in_bytes
    assert usage.state_bytes_per_device + usage.batch_bytes_per_device == memory.argument_size_in_bytes


def test_collectives_are_those_that_run(compiled):
    def moved(found):
        total = collections.defaultdict(float)
        for c in found:
            kind = c.kind
            # XLA:CPU reduces all where other compilers scatter, and combines small reductions.
            kind = "all-reduce" if kind == "reduce-scatter" else kind
            total[kind, len(c.group)] += c.times * c.num_bytes
        return dict(total)

    real = moved(collectives(Module(compiled.as_text()), jax.device_count()))
    expected = moved(planned().usage.collectives)
    assert {key for key in expected if "gather" in key[0]} == {("all-gather", 2)}
    assert real[("all-gather", 2)] == pytest.approx(expected[("all-gather", 2)])
    assert sum(real.values()) == pytest.approx(sum(expected.values()), rel=0.02)


def test_flops_are_those_of_the_executable_less_its_elementwise_work(compiled):
    usage = planned().usage
    assert usage.flops == 8 * usage.flops_per_device
    counted = compiled.cost_analysis()["flops"]
    assert usage.flops_per_device < counted < 1.3 * usage.flops_per_device


def test_scanning_changes_no_number_that_is_reported():
    looped, scanned = planned().usage, planned(scan=True).usage
    assert scanned.flops == looped.flops and scanned.flops_per_device == looped.flops_per_device
    assert scanned.state_bytes_per_device == looped.state_bytes_per_device
    for kind in ("all-gather", "reduce-scatter", "all-reduce"):
        sent = [sum(c.sent_bytes for c in usage.collectives if c.kind == kind) for usage in (looped, scanned)]
        assert sent[0] == pytest.approx(sent[1], rel=0.02) and sent[0] > 0


def test_the_command_line_prints_a_table_and_writes_json(tmp_path: pathlib.Path):
    out = tmp_path / "plan.json"
    command = [sys.executable, "tools/plan.py", "--config=configs/mae_fashion_mnist.py", "--mesh=data=2,fsdp=2"]
    command += ["--device=h100", f"--json={out}", "--examples=60000", "--config.duration=2 epochs"]
    command += ["--config.model.depth=1", "--config.decoder.depth=1", "--config.batch_size=64"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "on 4 x h100 (data 2, fsdp 2, tensor 1), batches of 64. Planned, not measured." in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    figures = json.loads(out.read_text())
    assert figures["total_steps"] == 2 * 60000 // 64
    assert figures["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    assert figures["run_hours"] == pytest.approx(figures["total_steps"] * figures["step_seconds"] / 3600)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mesh", "data=8", "--device", "abacus"], "'abacus'; choose one of tpu-v5e"),
        (["--mesh", "data=8,pipeline=2", "--device", "h100"], "'pipeline=2'"),
        (["--mesh", "data=0", "--device", "h100"], "'data=0'"),
        (["--mesh", "data=8", "--device", "h100", "--attainable", "40"], "--attainable is 40"),
        (["--mesh", "data=8", "--device", "h100", "--config.batch_size=12"], "batch_size 12"),
        (["--mesh", "data=8", "--device", "h100", "--config.model.dpeth=1"], "model.depth"),
        (["--mesh", "data=8", "--device", "h100", "--examples", "0"], "--examples is 0"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message, monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", "")
    with pytest.raises(SystemExit) as error:
        tool.main(["--config=configs/mae_vit_h14_in1k.py", *arguments])
    assert error.value.code == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ") and message in stderr and stderr.count("\n") == 1


def test_published_data_need_not_be_here():
    huge = tiny_config("mae", {"data.source": "tfds:imagenet2012", "data.train_split": "train"})
    assert tool.num_examples(huge, None) == 1_281_167
    assert tool.num_examples(huge, 5) == 5
    assert tool.num_examples(config(), None) == 64
