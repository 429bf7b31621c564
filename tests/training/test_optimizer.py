from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from lavit.config import matching
from lavit.training.optimizer import (
    MuonConfig,
    OptimizerConfig,
    learning_rate_factor,
    optimizer_for,
    parameter_groups,
)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"port": nn.Linear(3, 4), "body": nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))})


# ------------------------------------------------------------------------------------------------------ what is trained


def test_what_is_trained_may_be_named():
    whole = model()
    groups = parameter_groups(whole, OptimizerConfig(trained=["port.*", "body.1.*"], frozen=["*.bias"]))
    moved = {id(parameter) for group in groups for parameter in group["params"]}
    assert {name for name, p in whole.named_parameters() if id(p) in moved} == {"port.weight", "body.1.weight"}
    assert {name for name, p in whole.named_parameters() if p.requires_grad} == {"port.weight", "body.1.weight"}


def test_nothing_to_train_is_said():
    with pytest.raises(ValueError, match="leave nothing to train"):
        parameter_groups(model(), OptimizerConfig(trained=["port.*"], frozen=["port.*"]))


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


# -------------------------------------------------------------------------------------------------------------- muon


def with_muon(**changes) -> OptimizerConfig:
    return OptimizerConfig(lr=0.01, weight_decay=0.0, muon=MuonConfig(["body*"], lr=0.1), **changes)


def with_gradients(made: nn.Module, seed: int = 1) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return made


def test_muon_takes_the_matrices_that_are_named_and_adamw_the_rest():
    made = model()
    groups = parameter_groups(made, with_muon(scale={"body*": 0.5}))
    found = {id(p): (group["muon"], group["base_lr"]) for group in groups for p in group["params"]}
    assert found == {
        id(made["port"].weight): (False, 0.01),
        id(made["port"].bias): (False, 0.01),
        id(made["body"][0].weight): (True, 0.05),
        id(made["body"][0].bias): (False, 0.005),
        id(made["body"][1].weight): (False, 0.005),
        id(made["body"][1].bias): (False, 0.005),
    }
    with pytest.raises(ValueError, match=r"optimizer.muon.names: 'bdy\*' matches no parameter"):
        parameter_groups(model(), OptimizerConfig(muon=MuonConfig(["bdy*"])))


def test_a_step_of_muon_moves_a_matrix_along_the_orthogonal_part_of_its_gradient():
    made = with_gradients(model())
    weight, before = made["body"][0].weight, made["body"][0].weight.detach().clone()
    u, _, v = torch.linalg.svd(weight.grad)
    optimizer_for(made, with_muon()).step()
    moved = u.T @ (before - weight.detach()) @ v.T / 0.1
    # Newton-Schulz stops early on purpose: singular values end between about 0.5 and 1.3 instead of at 1.
    assert torch.allclose(moved, moved.diag().diag(), atol=0.05)
    assert (moved.diag() > 0.4).all() and (moved.diag() < 1.4).all()


def test_the_rest_moves_as_by_adamw():
    made, plain = with_gradients(model()), with_gradients(model())
    optimizer_for(made, with_muon()).step()
    optimizer_for(plain, OptimizerConfig(lr=0.01, weight_decay=0.0)).step()
    for name, value in plain.named_parameters():
        assert torch.equal(dict(made.named_parameters())[name], value) == (name != "body.0.weight")


def test_found_inf_leaves_weights_and_moments_as_they_are():
    made = with_gradients(model())
    optimizer = optimizer_for(made, with_muon())
    optimizer.step()
    weights, state = copy.deepcopy(made.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(value, weights[name]) for name, value in made.state_dict().items())
    for number, moments in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, state[number][name]) for name, value in moments.items())


def test_a_loaded_state_goes_on_exactly():
    first, second = with_gradients(model()), with_gradients(model())
    one, other = optimizer_for(first, with_muon()), optimizer_for(second, with_muon())
    one.step()
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    second.load_state_dict(first.state_dict())
    for made, optimizer in ((first, one), (second, other)):
        with_gradients(made, seed=2)
        for group in optimizer.param_groups:
            group["lr"] *= 0.5
        optimizer.step()
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
