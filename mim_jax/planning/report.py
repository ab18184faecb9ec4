"""A plan as a table of 80 columns."""

from __future__ import annotations

from mim_jax.planning.plan import Plan

_WIDTH = 80


def report(plan: Plan, title: str) -> str:
    """The whole report; ends without a newline."""
    return "\n".join((*_head(plan, title), *_size(plan), *_memory(plan), *_network(plan), *_time(plan)))


def _head(plan: Plan, title: str) -> list[str]:
    axes = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    return [
        title,
        f"on {plan.devices} x {plan.device_name} ({axes}), batches of {plan.batch_size}. Planned, not measured.",
    ]


def _size(plan: Plan) -> list[str]:
    usage = plan.usage
    return [
        *_section("model", f"compiled in {usage.compile_seconds:.0f} s"),
        _row("parameters", f"{usage.parameters / 1e6:,.1f} M"),
        _row("parameters, bytes of all devices", _bytes(usage.params_bytes)),
        _row("optimiser state", _bytes(usage.optimizer_bytes)),
        _row("whole training state", _bytes(usage.state_bytes)),
        _row("FLOPs of a step (matrix products)", f"{usage.flops:.3e}"),
        _row("  of one device, as partitioned", f"{usage.flops_per_device:.3e}"),
    ]


def _memory(plan: Plan) -> list[str]:
    usage = plan.usage
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    return [
        *_section("memory of one device", f"{verdict} {_bytes(plan.device.memory_bytes)}"),
        _row("training state", _bytes(usage.state_bytes_per_device)),
        _row("batch", _bytes(usage.batch_bytes_per_device)),
        _row("activations and temporaries (XLA:CPU)", _bytes(usage.temporary_bytes)),
        _row("together", _bytes(plan.bytes_per_device)),
    ]


def _network(plan: Plan) -> list[str]:
    lines = _section("collectives of one step", "count     payload        sent")
    for row in plan.exchanges():
        label = f"{row['kind']} over {row['devices']}"
        numbers = f"{row['count']:>5d} {_bytes(row['bytes']):>11} {_bytes(row['sent_bytes']):>11}"
        lines.append(_row(label, numbers))
    return lines


def _time(plan: Plan) -> list[str]:
    share = f"{100 * plan.attainable:.0f} % of peak"
    return [
        *_section("time of one step", "roofline"),
        _row(f"compute at {share}", _seconds(plan.compute_seconds)),
        _row("memory traffic", _seconds(plan.memory_seconds)),
        _row("network", _seconds(plan.network_seconds)),
        _row(f"step: the largest ({plan.bottleneck})", _seconds(plan.step_seconds)),
        _row("step if nothing overlapped", _seconds(plan.unhidden_seconds)),
        _row("images/s", f"{plan.images_per_second:,.0f}"),
        *_section("run", f"{plan.total_steps:,} steps"),
        _row("hours", f"{plan.run_hours:,.1f}"),
        _row("device-hours", f"{plan.device_hours:,.0f}"),
    ]


def _section(name: str, right: str) -> list[str]:
    return ["", f"{name}{right:>{_WIDTH - len(name)}}", "-" * _WIDTH]


def _row(label: str, value: str) -> str:
    return f"{label}{value:>{_WIDTH - len(label)}}"


def _bytes(size: float) -> str:
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= factor:
            return f"{size / factor:,.2f} {unit}"
    return f"{size:.0f} B"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms"
