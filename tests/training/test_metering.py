"""What the meter reads and what a profile holds."""

import gzip
import json
import time

import jax
import jax.numpy as jnp
import pytest

from mim_jax.errors import ConfigError
from mim_jax.training.metering import Meter, Profiler
from tests.processes import command, run


class Stream:
    wait_seconds = 0.0


def test_the_first_reading_is_left_out_since_it_compiles():
    assert Meter(16, Stream()).read(1, 1e9, "float32") == {}


def test_speed_leaves_pauses_out_and_counts_waiting():
    stream = Stream()
    meter = Meter(16, stream)
    meter.read(1, None, "float32")
    time.sleep(0.2)
    with meter.paused():
        time.sleep(0.5)
    stream.wait_seconds += 0.1
    reading = meter.read(3, 1e9, "float32")
    assert 0.1 <= reading["step_seconds"] < 0.3  # with the pause it would be 0.35
    assert reading["images_per_second"] == pytest.approx(16 / reading["step_seconds"])
    assert reading["flops_per_second"] == pytest.approx(1e9 / reading["step_seconds"])
    assert 0.1 / 0.6 < reading["data_wait_share"] <= 0.5


@pytest.mark.parametrize("steps", ["10", "10-15", "15:10", "3:3", "-1:2", "a:b", "1:2:3"])
def test_a_range_that_cannot_be_read_is_refused(steps, tmp_path):
    with pytest.raises(ConfigError, match=r"profile\.steps is .*; write 'first:last'"):
        Profiler(steps, tmp_path)


def test_a_profile_holds_the_steps_asked_for(tmp_path):
    code, output = run(
        command(tmp_path, {"profile.steps": "3:5", "duration": "6 steps", "checkpoint.every": "4 steps"})
    )
    assert code == 0, output
    (folder,) = (tmp_path / "profile" / "plugins" / "profile").iterdir()
    (xplane,) = folder.glob("*.xplane.pb")  # what XProf opens
    assert xplane.stat().st_size > 10_000
    (trace,) = folder.glob("*.trace.json.gz")  # what Perfetto opens
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = [event for event in events if event.get("name") == "train"]
    assert [int(event["args"]["step_num"]) for event in steps] == [3, 4]
    assert all(event["dur"] > 0 for event in steps)
    waits = [event for event in events if event.get("name") == "wait for data"]
    assert len(waits) == 2
    for wait, step in zip(waits, steps, strict=True):
        assert step["ts"] <= wait["ts"] and wait["ts"] + wait["dur"] <= step["ts"] + step["dur"]
    (save,) = [event for event in events if event.get("name") == "evaluate or save"]  # checkpoint.every is 4 steps
    assert steps[0]["ts"] < save["ts"] < steps[1]["ts"]
    computed = [event for event in events if "hlo_op" in event.get("args", {})]
    assert "jit_train_step" in {event["args"]["hlo_module"] for event in computed}


def test_a_trace_that_still_runs_at_the_end_is_written(tmp_path):
    profiler = Profiler("1:50", tmp_path)
    for step in range(3):
        profiler.at(step, jnp.ones(4))
    assert not list(tmp_path.iterdir())
    profiler.stop()
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))


def test_processes_of_one_host_do_not_overwrite_one_anothers_traces(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    profiler = Profiler("0:1", tmp_path)
    profiler.at(0, jnp.ones(4))
    profiler.at(1, jnp.ones(4))
    assert list(tmp_path.glob("process1/plugins/profile/*/*.xplane.pb"))
