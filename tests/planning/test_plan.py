"""The arithmetic of a plan, on round numbers."""

import json

import pytest

from mim_jax.planning.collectives import Collective
from mim_jax.planning.compilation import Usage
from mim_jax.planning.devices import Device
from mim_jax.planning.plan import Plan
from mim_jax.planning.report import report

DEVICE = Device(
    peak_flops=100.0, memory_bytes=60.0, memory_bandwidth=10.0, link_bandwidth=5.0, domain=4, outer_bandwidth=1.0
)
USAGE = Usage(
    parameters=7,
    params_bytes=28,
    optimizer_bytes=56,
    state_bytes=84,
    state_bytes_per_device=20,
    batch_bytes_per_device=5,
    temporary_bytes=30,
    flops=800.0,
    flops_per_device=100.0,
    product_bytes=10.0,
    collectives=(
        Collective("all-gather", 20.0, (0, 1), 2, "inside a node"),
        Collective("all-gather", 10.0, (2, 3), 1, "inside a node"),
        Collective("all-reduce", 4.0, (0, 4), 1, "between nodes"),
    ),
    compile_seconds=1.0,
)
PLAN = Plan(
    device_name="abacus",
    mesh={"data": 2, "fsdp": 4, "tensor": 1},
    batch_size=16,
    total_steps=3600,
    attainable=0.25,
    usage=USAGE,
    device=DEVICE,
)


def test_a_step_takes_as_long_as_the_slowest_resource():
    assert PLAN.compute_seconds == 100 / 25
    assert PLAN.memory_seconds == (10 + 2 * 20) / 10
    # Two gathers send half of 2 x 20 and of 10 bytes at 5 a second; the reduction twice half of 4 at 1 a second.
    assert PLAN.network_seconds == (20 + 5) / 5 + 4 / 1
    assert (PLAN.step_seconds, PLAN.bottleneck) == (9.0, "network")
    assert PLAN.unhidden_seconds == 4 + 5 + 9


def test_a_run_takes_as_long_as_its_steps():
    assert PLAN.images_per_second == 16 / 9
    assert PLAN.run_hours == 9.0
    assert PLAN.device_hours == 9.0 * 8


@pytest.mark.parametrize(("memory", "fits"), [(55.0, True), (54.0, False)])
def test_it_fits_if_state_batch_and_temporaries_do(memory, fits):
    device = Device(100.0, memory, 10.0, 5.0, 4, 1.0)
    plan = Plan("abacus", PLAN.mesh, 16, 3600, 0.25, USAGE, device)
    assert (plan.bytes_per_device, plan.fits) == (55, fits)
    assert ("DOES NOT FIT" in report(plan, "x")) != fits


def test_exchanges_are_grouped_by_kind_and_size():
    assert PLAN.exchanges() == [
        {"kind": "all-gather", "devices": 2, "count": 3, "bytes": 50.0, "sent_bytes": 25.0},
        {"kind": "all-reduce", "devices": 2, "count": 1, "bytes": 4.0, "sent_bytes": 4.0},
    ]


def test_the_report_is_eighty_columns_wide_and_says_what_it_is():
    lines = report(PLAN, "configs/some.py, 3600 steps").splitlines()
    assert max(len(line) for line in lines) == 80
    assert "Planned, not measured." in lines[1]
    assert any(line.split() == ["device-hours", "72"] for line in lines)
    assert any(line.startswith("step: the largest (network)") and line.endswith("9.000 s") for line in lines)


def test_json_holds_every_number():
    figures = json.loads(json.dumps(PLAN.as_dict()))
    assert figures["step_seconds"] == 9.0 and figures["flops"] == 800.0 and figures["fits"] is True
    assert figures["collectives"] == PLAN.exchanges()
    assert figures["device"]["memory_bytes"] == 60.0
