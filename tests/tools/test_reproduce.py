import importlib
import json

import pytest

import mim_jax
from mim_jax.errors import ConfigError


@pytest.fixture(scope="module")
def tools(request):
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(request.config.rootpath / "tools"))
    yield {name: importlib.import_module(name) for name in ("reproduce", "suite_report")}
    patch.undo()


def result(method, seed, linear, **changes):
    return {
        "method": method,
        "seed": seed,
        "steps": 4,
        "batch_size": 8,
        "linear_pretrained": linear,
        "linear_random_init": 60.0,
        "knn_pretrained": 50.0,
        "knn_random_init": 40.0,
        "loss_first": 1.0,
        "loss_last": 0.5,
        "skipped": 0.0,
        "effective_rank": 10.0,
        "feature_std": 0.5,
        "images_per_second": 100.0,
        "wall_seconds": 60.0,
        **changes,
    }


@pytest.mark.parametrize(
    ("expect", "values", "baseline", "expected"),
    [
        ("above", [80.0, 81.0, 82.0], [70.0, 71.0, 72.0], "agrees"),
        ("below", [80.0, 81.0, 82.0], [70.0, 71.0, 72.0], "does not agree"),
        ("above", [70.0, 71.0, 72.0], [80.0, 81.0, 82.0], "does not agree"),
        ("above", [70.0, 71.0, 72.0], [68.0, 69.0, 70.0], "cannot be told"),  # 2.0 where seeds make 2.3
        ("above", [70.5, 71.5, 72.5], [68.0, 69.0, 70.0], "agrees"),
        ("above", [60.0, 71.5, 83.0], [57.5, 69.0, 80.5], "cannot be told"),  # these two deviate by more than others
        ("above", [90.0], [70.0], "cannot be told"),
        ("unsaid", [80.0, 81.0, 82.0], [70.0, 71.0, 72.0], "cannot be told"),
    ],
)
def test_a_verdict_needs_more_than_seeds_would_make(tools, expect, values, baseline, expected):
    noise = tools["suite_report"].SeedNoise(deviation=1.0, freedom=4)
    assert tools["suite_report"].verdict(expect, values, baseline, noise) == expected


def test_noise_is_pooled_over_methods(tools):
    noise = tools["suite_report"].SeedNoise.of([[1.0, 3.0], [10.0, 11.0, 12.0], [7.0], []])
    assert noise.freedom == 3
    assert noise.deviation == pytest.approx(((2.0 + 2.0) / 3) ** 0.5)
    # Student's t for 3 degrees of freedom and 95 %: 3.182
    assert noise.margin(2, 2) == pytest.approx(3.182 * noise.deviation, rel=1e-3)


def test_with_one_seed_nothing_can_be_told(tools):
    noise = tools["suite_report"].SeedNoise.of([[1.0], [3.0]])
    assert noise.freedom == 0
    assert tools["suite_report"].verdict("above", [3.0], [1.0], noise) == "cannot be told"


def test_the_report_says_what_was_found(tools):
    Row = tools["suite_report"].Row
    rows = [
        Row("mae", "mae_x", "The baseline.", "unsaid"),
        Row("hpm", "hpm_x", "Better.", "above"),
        Row("lut", "x", "", "above"),
    ]
    results = [result("mae", 0, 70.0), result("mae", 1, 71.0)]
    results += [
        result("hpm", 0, 59.0, images_per_second=50.0, skipped=2.0),
        result("hpm", 1, 60.0, images_per_second=50.0),
    ]
    suite = {"title": "T", "baseline": "mae", "remarks": "\nStd is a deviation.\n"}
    text = tools["suite_report"].write_report(suite, rows, results, "command", {})
    lines = text.splitlines()
    assert "Std is a deviation." in lines
    assert (
        "| mae | 2 | 70.5 ± 0.7 | 60.0 ± 0.0 | 50.0 ± 0.0 | 40.0 ± 0.0 | 1.000 to 0.500 | 100 | 1.00 | 10.0 | 0.500 |"
        in lines
    )
    assert (
        "| hpm | 2 | 59.5 ± 0.7 | 60.0 ± 0.0 | 50.0 ± 0.0 | 40.0 ± 0.0 | 1.000 to 0.500 | 50 | 0.50 | 10.0 | 0.500 |"
        in lines
    )
    assert "| hpm | Better. | does not agree | mae | -11.0 |" in lines
    assert not any(line.startswith("| lut") for line in lines)  # it has not been run
    assert "4 runs in 4 minutes" in text
    assert "do not beat random initialisation: hpm" in text
    assert "skipped updates: hpm" in text


def test_speeds_measured_apart_replace_those_of_the_runs(tools):
    Row = tools["suite_report"].Row
    rows = [Row("mae", "mae_x", "The baseline.", "unsaid"), Row("hpm", "hpm_x", "Better.", "above")]
    results = [result("mae", 0, 70.0), result("hpm", 0, 59.0)]
    write, suite = tools["suite_report"].write_report, {"title": "T", "baseline": "mae"}
    assert "| 400 | 1.00 | 10.0" in write(suite, rows, results, "command", {"mae": 400.0, "hpm": 100.0})
    assert "| 100 | 0.25 | 10.0" in write(suite, rows, results, "command", {"mae": 400.0, "hpm": 100.0})
    assert "| 100 | 1.00 | 10.0" in write(suite, rows, results, "command", {"mae": 400.0})  # one alone says nothing


def test_suites_name_existing_configs(tools):
    reproduce = tools["reproduce"]
    for file in reproduce.SUITES.glob("*.toml"):
        suite, rows = reproduce.read_suite(file.stem)
        names = [row.name for row in rows]
        assert len(set(names)) == len(names)
        assert {suite["baseline"], *(row.baseline for row in rows if row.baseline)} <= set(names)
        for row in rows:
            assert (reproduce.ROOT / "configs" / f"{row.config}.py").is_file(), row.config


def test_rows_learn_from_rows_above_them(tools, tmp_path, monkeypatch):
    reproduce, Row = tools["reproduce"], tools["suite_report"].Row
    monkeypatch.setattr(reproduce, "SUITES", tmp_path)
    table = """
    title = "T"
    baseline = "a"
    [[rows]]
    name = "a"
    config = "mae_fashion_mnist"
    claim = ""
    expect = "unsaid"
    runs = {init_from = "b"}
    """
    (tmp_path / "s.toml").write_text(table)
    with pytest.raises(ConfigError, match="a learns from 'b', which is no row above it"):
        reproduce.read_suite("s")
    teacher = Row("t", "mae_fashion_mnist", "", "unsaid", once=True)
    row = Row("a", "mae_fashion_mnist", "", "unsaid", runs={"init_from": "t"}, changes={"mask_ratio": 0.5})
    settings = {"steps": 4, "batch_size": 8}
    source = reproduce.run_directory(tmp_path, teacher, 2, settings)
    assert source == tmp_path / "t-4x8-seed0"
    config = reproduce.run_config(row, 2, settings, {"mask_ratio": 0.6}, {"init_from": source})
    assert (config.init_from, config.mask_ratio) == (str(source), 0.5)
    text = tools["suite_report"].write_report(
        {"title": "T", "baseline": "a"}, [teacher, row], [result("t", 0, 90.0), result("a", 0, 70.0)], "command", {}
    )
    assert "- a: `mask_ratio=0.5`, `init_from` is the run of t" in text
    assert "| t |" not in text.partition("the paper's claim")[2]


def test_an_unknown_suite_is_refused(tools):
    with pytest.raises(ConfigError, match=r"There is no suite 'family_z'; choose one of .*family_a"):
        tools["reproduce"].read_suite("family_z")


def test_results_of_other_lengths_are_not_mixed(tools, tmp_path):
    file = tmp_path / "suite.json"
    earlier = tools["reproduce"].earlier_results
    assert earlier(file, {"steps": 4, "batch_size": 8}) == []
    file.write_text(json.dumps([result("mae", 0, 70.0)]))
    assert len(earlier(file, {"steps": 4, "batch_size": 8})) == 1
    with pytest.raises(ConfigError, match="holds runs of 4 steps of 8 images"):
        earlier(file, {"steps": 5, "batch_size": 8})


@pytest.mark.parametrize("family", ["family_a", "family_b"])
def test_the_suite_changes_the_configs(tools, family):
    reproduce = tools["reproduce"]
    suite, rows = reproduce.read_suite(family)
    for row in rows:
        config = reproduce.run_config(row, 7, {"steps": 40, "batch_size": 8}, suite["overrides"], {})
        assert (config.seed, config.schedule.warmup, config.batch_size) == (7, "4 steps", 8)
        if not row.once:
            assert (config.duration, config.model.width, config.model.depth) == ("40 steps", 64, 2)
        mim_jax.create(config)


def test_a_run_is_trained_and_evaluated(tools, tmp_path):
    overrides = {
        "data.source": "synthetic:64",
        "model.width": 16,
        "model.heads": 2,
        "model.depth": 1,
        "decoder.width": 16,
        "evaluation.knn.k": (2,),
        "evaluation.batch_size": 16,
        "evaluation.linear.batch_size": 16,
        "evaluation.linear.epochs": 1,
        "evaluation.linear.warmup_epochs": 0,
        "log.every": "1 steps",
    }
    settings = {"steps": 3, "batch_size": 8}
    row = tools["suite_report"].Row("mae", "mae_fashion_mnist", "", "unsaid")
    config = tools["reproduce"].run_config(row, 3, settings, overrides, {})
    found = tools["reproduce"].measure(row, 3, settings, config, tmp_path, "train")
    assert set(found) == set(result("mae", 0, 0.0))
    assert (found["seed"], found["steps"]) == (3, 3)
    assert 0 <= found["linear_pretrained"] <= 100 and found["loss_last"] > 0
    assert (tmp_path / "mae-3x8-seed3" / "checkpoints").is_dir()
