"""Coding rates of runs become a picture, and runs without any are named."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from tools.plot_layers import PANELS, layers_of, main, read_layers


def row(step: int, task: str = "coding_rate") -> dict:
    metrics = {f"{name}_{layer:02d}": layer + step for name in PANELS for layer in (1, 2, 10)}
    details = {f"{name}_std": [0.1, 0.2, 0.3] for name in PANELS}
    return {"task": task, "step": step, "random_init": False, "metrics": metrics, "details": details}


@pytest.fixture
def run(tmp_path: pathlib.Path) -> pathlib.Path:
    rows = [row(4), row(8), {"task": "knn", "step": 9, "metrics": {"top1_k20": 70.0}}]
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def test_the_newest_row_is_read_layer_by_layer(run: pathlib.Path):
    assert layers_of(read_layers(run), "rate") == ([9, 10, 18], [0.1, 0.2, 0.3])


def test_draws_a_curve_for_every_run(run: pathlib.Path, capsys: pytest.CaptureFixture):
    main([str(run), str(run)])
    assert capsys.readouterr().out.strip() == str(run / "layers.png")
    pixels = np.asarray(Image.open(run / "layers.png").convert("RGB")).astype(int)
    orange = (pixels[..., 0] - pixels[..., 2]) > 150  # the second run's
    for panel in np.array_split(orange, 3, axis=1):
        assert panel.sum() > 200


def test_a_run_without_coding_rates_is_named(tmp_path: pathlib.Path):
    with pytest.raises(SystemExit, match="has no coding rates; run python -m mim_jax.evaluate"):
        main([str(tmp_path)])


@pytest.mark.parametrize("line", ['{"task": "cod', "[1, 2]", '{"step": 3}'])
def test_another_file_is_refused(run: pathlib.Path, line: str):
    with (run / "evaluations.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(SystemExit, match=r"evaluations\.jsonl is no file of evaluations"):
        main([str(run)])
