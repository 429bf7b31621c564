from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lavit.training.engine import (
    OptimizerConfig,
    TrainConfig,
    build_engine,
    complete_checkpoints,
    digest,
    latest_checkpoint,
    learning_rate_factor,
    matching,
    parameter_groups,
)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"port": nn.Linear(3, 4), "body": nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))})


# ------------------------------------------------------------------------------------------------------ learning rate


def test_learning_rate_factor_at_analytic_points():
    config = OptimizerConfig(warmup=10, final=0.2)
    assert [learning_rate_factor(step, 110, config) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert learning_rate_factor(10, 110, config) == pytest.approx(1.0)
    assert learning_rate_factor(60, 110, config) == pytest.approx(0.6), "half of the cosine: the mean of 1 and final"
    assert learning_rate_factor(35, 110, config) == pytest.approx(0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2)
    assert learning_rate_factor(110, 110, config) == pytest.approx(0.2)


def test_learning_rate_factor_without_warmup_and_with_nothing_else():
    assert learning_rate_factor(0, 10, OptimizerConfig(warmup=0)) == 1.0
    assert [learning_rate_factor(step, 2, OptimizerConfig(warmup=2)) for step in (0, 1)] == [0.5, 1.0]


# ------------------------------------------------------------------------------------------------------------ groups


def test_groups_by_factor_and_decay():
    made = model()
    config = OptimizerConfig(lr=0.1, weight_decay=0.3, scale={"port*": 5.0}, frozen=["body.0.*"])
    groups = parameter_groups(made, config)
    found = {id(p): (group["lr"], group["base_lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found == {
        id(made["port"].weight): (0.5, 0.5, 0.3),
        id(made["port"].bias): (0.5, 0.5, 0.0),
        id(made["body"][1].weight): (0.1, 0.1, 0.0),
        id(made["body"][1].bias): (0.1, 0.1, 0.0),
    }
    assert [name for name, p in made.named_parameters() if not p.requires_grad] == ["body.0.weight", "body.0.bias"]


@pytest.mark.parametrize("changes", [{"scale": {"prt*": 2.0}}, {"frozen": ["prt*"]}])
def test_a_glob_that_matches_nothing(changes):
    key = next(iter(changes))
    with pytest.raises(ValueError, match=rf"optimizer.{key}: 'prt\*' matches no parameter; there are port.weight"):
        parameter_groups(model(), OptimizerConfig(**changes))


def test_matching():
    assert matching(["a.b", "a.c", "d"], "a.*", "key") == ["a.b", "a.c"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch": 6, "accumulate": 2}, "batch 6 is not a multiple of 2 ranks × 2 accumulation steps"),
        ({"precision": "fp16"}, "precision 'fp16' is unknown; choose fp32 or bf16"),
        ({"zero_stage": 4}, "zero_stage 4 is unknown"),
    ],
)
def test_settings_that_make_no_engine(changes, said):
    with pytest.raises(ValueError, match=said):
        build_engine(model(), TrainConfig(**{"batch": 8, **changes}), world=2)


# ------------------------------------------------------------------------------------------------------------ digest


def test_digest_changes_with_any_value_name_or_shape_and_with_nothing_else():
    first = model()
    same = digest(first)
    assert same == digest(model()) == digest(first.train(False)) and len(same) == 64
    with torch.no_grad():
        first["body"][1].bias[2] += 1e-6
    assert digest(first) != same
    first.register_buffer("extra", torch.zeros(()))
    with_buffer = digest(first)
    first.extra += 1
    assert digest(first) != with_buffer
    renamed, reshaped = nn.Module(), nn.Module()
    renamed.register_buffer("a", torch.zeros(2, 3))
    reshaped.register_buffer("a", torch.zeros(3, 2))
    assert digest(renamed) != digest(reshaped)


def test_digest_reads_every_type():
    made = nn.Module()
    values = (torch.tensor(3), torch.tensor([True, False]), torch.ones(2).bfloat16(), torch.zeros(0))
    for i, value in enumerate(values):
        made.register_buffer(f"b{i}", value)
    before = digest(made)
    made.b1[1] = True
    assert digest(made) != before


# -------------------------------------------------------------------------------------------------------- checkpoints


def test_checkpoints_without_their_mark_do_not_count(tmp_path):
    assert latest_checkpoint(tmp_path) is None and complete_checkpoints(tmp_path / "none") == []
    for step, complete in ((9, True), (10, True), (100, False)):
        (tmp_path / f"step{step}").mkdir()
        if complete:
            (tmp_path / f"step{step}" / "complete").touch()
    assert latest_checkpoint(tmp_path) == tmp_path / "step10"
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step9", "step10"]
