import json
import logging

import pytest

from mim_jax.training.writers import ConsoleWriter, JsonLinesWriter, TensorBoardWriter


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_json_and_appended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonLinesWriter(path, first_step=0)
    writer.write(1, {"loss": 0.5})
    writer.close()
    writer = JsonLinesWriter(path, first_step=1)
    writer.write(2, {"loss": float("nan")})
    writer.close()
    assert rows(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": "nan"}]


def test_a_resumed_run_repeats_no_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.9}\n{"step": 3, "lo')
    JsonLinesWriter(path, first_step=1).close()
    assert [row["step"] for row in rows(path)] == [1]


def test_tensorboard_reads_what_is_written(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    writer = TensorBoardWriter(tmp_path / "tensorboard")
    writer.write(7, {"loss": 0.25, "lr": 1e-3})
    writer.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    events = [event for event in loader.LegacyEventFileLoader(str(file)).Load() if event.step]
    assert {value.tag: round(value.simple_value, 6) for value in events[0].summary.value} == {"loss": 0.25, "lr": 0.001}
    assert events[0].step == 7


def test_without_a_terminal_there_are_plain_lines(caplog):
    writer = ConsoleWriter(10, first_step=0, bar=False)
    with caplog.at_level(logging.INFO):
        writer.write(2, {"loss": 0.125, "lr": 1e-3, "images_per_second": 1234.5, "grad_norm": 1.0})
    assert caplog.messages == ["step 2/10  loss 0.125  lr 0.001  images_per_second 1234"]


def test_the_bar_shows_rate_and_loss(capsys):
    writer = ConsoleWriter(10, first_step=4, bar=True)
    writer.advance(5)
    writer.write(5, {"loss": 0.125, "lr": 1e-3, "images_per_second": 1000.0})
    writer.close()
    shown = capsys.readouterr().err
    assert "5/10" in shown and "loss 0.1250" in shown and "1000 img/s" in shown
