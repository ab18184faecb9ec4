"""A run's metrics become a picture, and what cannot be read is named."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from mim_jax.errors import DataError
from tools.plot_run import main, plot_loss, read_metrics, series


@pytest.fixture
def run(tmp_path: pathlib.Path) -> pathlib.Path:
    rows = [{"step": 0, "knn/top1_k20": 70.0}]
    rows += [{"step": step, "loss": 1 / step, "lr": 1e-3} for step in (1, 2, 4)]
    rows += [{"step": 8, "loss": "nan", "lr": 1e-3}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_series_are_the_rows_that_have_the_metric(run: pathlib.Path):
    rows = read_metrics(run)
    assert series(rows, "knn/top1_k20") == ([0.0], [70.0])
    steps, losses = series(rows, "loss")
    assert steps == [1.0, 2.0, 4.0, 8.0]
    np.testing.assert_array_equal(losses, [1.0, 0.5, 0.25, np.nan])


def test_draws_a_picture_that_shows_something(run: pathlib.Path):
    plot_loss([run], run / "loss.png")
    pixels = np.asarray(Image.open(run / "loss.png").convert("RGB"))
    assert min(pixels.shape[:2]) > 400
    blue = (pixels[..., 2].astype(int) - pixels[..., 0]) > 80
    assert blue.sum() > 500  # both curves


def test_the_command_line_writes_into_the_first_run(run: pathlib.Path, capsys: pytest.CaptureFixture):
    main([str(run), str(run)])
    assert capsys.readouterr().out.strip() == str(run / "loss.png")
    assert (run / "loss.png").is_file()


def test_a_directory_without_metrics_is_named(tmp_path: pathlib.Path):
    with pytest.raises(SystemExit, match=r"There is no .*metrics\.jsonl"):
        main([str(tmp_path)])


@pytest.mark.parametrize("line", ['{"step": 1, "los', "[1, 2]", '{"step": "one"}'])
def test_a_line_that_is_no_row_is_named(run: pathlib.Path, line: str):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 6"):
        read_metrics(run)


def test_a_run_without_a_loss_is_named(tmp_path: pathlib.Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "knn/top1_k20": 70.0}\n')
    with pytest.raises(DataError, match="has no loss"):
        plot_loss([tmp_path], tmp_path / "loss.png")
