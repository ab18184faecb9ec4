from mim_jax.interop.report import Report, group_names


def test_names_that_differ_by_a_layer_number_are_joined():
    names = [f"blocks.{i}.norm1.bias" for i in (0, 1, 2, 5)] + ["norm.bias", "blocks.3.mlp.fc1.bias"]
    assert group_names(names) == ["blocks.{0-2,5}.norm1.bias", "norm.bias", "blocks.3.mlp.fc1.bias"]


def test_a_digit_inside_a_word_is_no_layer_number():
    assert group_names(["a.norm1.bias", "a.norm2.bias"]) == ["a.norm1.bias", "a.norm2.bias"]


def test_a_report_reads_well():
    report = Report("weights.pth", "facebookresearch/mae")
    report.loaded["params/encoder"] = (17, 12345)
    report.resized.append("pos_embed from 14x14 to 28x28")
    report.random["params/decoder"] = 6789
    report.unused["this objective has no head"] = ["head.weight", "head.bias"]
    report.ignored.append("optimizer")
    text = str(report)
    for line in (
        "Weights from weights.pth, layout facebookresearch/mae: 17 arrays, 12,345 numbers.",
        "  loaded params/encoder: 12,345 numbers in 17 arrays",
        "  resized pos_embed from 14x14 to 28x28",
        "  left random params/decoder: 6,789 numbers",
        "  not used (this objective has no head): head.weight, head.bias",
        "  ignored optimizer",
    ):
        assert line in text.splitlines()
    assert len(report.warnings()) == 2
