from __future__ import annotations

import pytest
import torch
from torch import nn

from lavit.training.engine import (
    TrainConfig,
    build_engine,
    complete_checkpoints,
    digest,
    latest_checkpoint,
    load_unfrozen,
)
from lavit.training.optimizer import MuonConfig, OptimizerConfig

MUON = OptimizerConfig(muon=MuonConfig(["body*"]))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"port": nn.Linear(3, 4), "body": nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch": 6, "accumulate": 2}, "batch 6 is not a multiple of 2 ranks × 2 accumulation steps"),
        ({"precision": "fp16"}, "precision 'fp16' is unknown; choose fp32 or bf16"),
        ({"zero_stage": 4}, "zero_stage 4 is unknown"),
        ({"zero_stage": 2, "optimizer": MUON}, "optimizer.muon needs zero_stage 0, not 2"),
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


def test_a_checkpoint_without_what_is_frozen_is_loaded_and_one_of_another_model_is_not():
    held, other = model(), model()
    held["body"].requires_grad_(False)
    with torch.no_grad():
        held["port"].weight.zero_()
    state = {name: value for name, value in other.state_dict().items() if name.startswith("port")}
    load_unfrozen(state, held)
    assert digest(held) == digest(other)
    with pytest.raises(ValueError, match="not the model's parameters: port.bias and 0 more names differ"):
        load_unfrozen({"port.weight": state["port.weight"]}, held)
    with pytest.raises(ValueError, match="not the model's parameters: port.gain and 0 more names differ"):
        load_unfrozen({**state, "port.gain": state["port.bias"]}, held)
