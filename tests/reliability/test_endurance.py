"""Five thousand steps leave memory, open files and threads as they are."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from tests.processes import run

STEPS = 5000
MAX_GROWTH_MB = 20.0  # of resident memory in as many steps as the run has


@pytest.mark.slow
def test_a_long_run_does_not_grow(tmp_path):
    code, output = run([sys.executable, "-m", "tests.reliability.endurance", str(tmp_path), str(STEPS)])
    assert code == 0, output
    samples = json.loads((tmp_path / "samples.json").read_text())
    assert len(samples) >= STEPS // 250
    late = [row for row in samples if row["step"] >= STEPS // 5]  # until then, caches fill
    steps = np.array([row["step"] for row in late], float)
    growth = {
        name: float(np.polyfit(steps, [row[name] for row in late], 1)[0]) * STEPS
        for name in ("resident_mb", "files", "threads")
    }
    assert growth["resident_mb"] < MAX_GROWTH_MB, (growth, samples)
    # A checkpoint may be under way at a sample, but a leak of one at each would be ten.
    assert growth["files"] < 3.0 and growth["threads"] < 3.0, (growth, samples)
