import jax
import pytest

import mim_jax
from mim_jax import list as listing
from mim_jax.config import objective_names
from mim_jax.errors import ConfigError
from mim_jax.models.backbone import BACKBONES, NEEDS

KINDS = {name: kind for kind in ("method", "task") for name in objective_names(kind)}
OBJECTIVES = listing.objectives()
PAIRS = [(name, backbone) for name in OBJECTIVES for backbone in BACKBONES]
WORKING = [(name, backbone) for name, backbone in PAIRS if backbone in listing.supported(OBJECTIVES[name])]


@pytest.fixture(autouse=True)
def loggers_as_they_are(monkeypatch):
    monkeypatch.setattr(listing, "show_own_logs_only", lambda: None)


def test_the_matrix_says_what_works_together():
    lines = listing.matrix().splitlines()
    assert lines[0].split() == list(BACKBONES)
    cells = {line.split()[0]: line.split()[1:] for line in lines[1 : len(OBJECTIVES) + 1]}
    marked = [(name, backbone) for name, backbone in PAIRS if cells[name][list(BACKBONES).index(backbone)] == "x"]
    assert marked == WORKING
    assert ("spark", "resnet") in marked and ("mae", "resnet") not in marked
    assert all(len(line) <= 80 for line in lines)


def test_every_need_has_a_backbone_that_offers_it():
    assert all(any(need in offers for offers in BACKBONES.values()) for need in NEEDS)
    assert all(offers <= NEEDS.keys() for offers in BACKBONES.values())
    assert {objective.encoder_needs for objective in OBJECTIVES.values()} <= {*NEEDS, None}


@pytest.mark.parametrize(("name", "backbone"), [pytest.param(*pair, id="-".join(pair)) for pair in WORKING])
def test_what_works_together_can_be_built(name, backbone):
    config = mim_jax.default_config(**{KINDS[name]: name}, backbone=backbone)
    objective = mim_jax.create(config)
    variables = jax.eval_shape(objective.init, jax.random.key(0), objective.batch_spec(2))
    assert jax.tree.leaves(variables["params"])


@pytest.mark.parametrize(
    ("name", "backbone"), [pytest.param(*pair, id="-".join(pair)) for pair in PAIRS if pair not in WORKING]
)
def test_what_does_not_is_refused_with_the_reason(name, backbone):
    objective = OBJECTIVES[name]
    why = "has an encoder of its own" if objective.encoder_needs is None else NEEDS[objective.encoder_needs]
    with pytest.raises(ConfigError, match=f"{name} {why}.* model.backbone '{backbone}'"):
        mim_jax.default_config(**{KINDS[name]: name}, backbone=backbone)


def test_the_summary_names_every_method_and_task(capsys):
    assert listing.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if not line.startswith(" ")} == OBJECTIVES.keys()
    assert all(len(line) <= 80 for line in lines)


def test_unknown_flags_are_answered_by_the_usage(capsys):
    assert listing.main(["list", "--matrx"]) != 0
    assert "--matrix" in capsys.readouterr().err
