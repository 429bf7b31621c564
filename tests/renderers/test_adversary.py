from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lavit.renderers.adversary import Adversary, AdversaryConfig, check_adversary, hinge, lecam

CONFIG = AdversaryConfig(channels=[4, 8])


def pictures(seed: int) -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_hinge_and_lecam_are_their_formulas():
    real, made = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert float(hinge(real, made)) == pytest.approx((0 + 0.5) / 2 + (0 + 1) / 2)
    expected = ((2 - 0.2) ** 2 + (0.5 - 0.2) ** 2) / 2 + ((-3 - 0.7) ** 2 + (0 - 0.7) ** 2) / 2
    assert float(lecam(real, made, torch.tensor(0.7), torch.tensor(0.2))) == pytest.approx(expected)


def test_no_gradient_crosses_over():
    made = Adversary(CONFIG)
    rebuilt = pictures(1).requires_grad_()
    judged = made(rebuilt, pictures(0))
    judged.generator.backward(retain_graph=True)
    assert rebuilt.grad.abs().sum() > 0 and all(p.grad is None for p in made.critic.parameters())
    rebuilt.grad = None
    (judged.critic + judged.lecam).backward()
    assert rebuilt.grad is None and all(p.grad.abs().sum() > 0 for p in made.critic.parameters())
    assert float(judged.generator.detach()) == pytest.approx(-float(made.critic(pictures(1)).mean()), rel=1e-5)


def test_one_optimizer_moves_both_as_two_would():
    torch.manual_seed(0)
    generator, adversary = nn.Conv2d(3, 3, 3, padding=1), Adversary(CONFIG)
    twin, rival = copy.deepcopy(generator), copy.deepcopy(adversary)
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "fused": True}
    one = torch.optim.AdamW([*generator.parameters(), *adversary.parameters()], **options)
    first, second = torch.optim.AdamW(twin.parameters(), **options), torch.optim.AdamW(rival.parameters(), **options)
    for step in range(4):
        real, given = pictures(step), pictures(step + 10)
        judged = adversary(generator(given), real)
        one.zero_grad()
        (judged.generator + judged.critic + 0.1 * judged.lecam).backward()
        one.step()
        # The usual way: a loss of its own for each, and the critic's weights frozen for the generator's.
        rebuilt = twin(given)
        rival.critic.requires_grad_(False)
        first.zero_grad()
        loss = -rival.critic(rebuilt).mean()
        loss.backward()
        rival.critic.requires_grad_(True)
        second.zero_grad()
        scores = rival.critic(real), rival.critic(rebuilt.detach())
        (hinge(*scores) + 0.1 * lecam(*scores, rival.real, rival.made)).backward()
        first.step()
        second.step()
    for ours, theirs in ((generator, twin), (adversary, rival)):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b)


def test_averages_move_once_a_step_by_the_mean_of_its_parts():
    made = Adversary(CONFIG).train()
    halves = [made(pictures(i + 5), pictures(i)) for i in range(2)]
    assert float(made.real) == 0 and len(halves) == 2
    real = torch.stack([made.critic(pictures(i)).mean() for i in range(2)]).mean()
    made.move()
    assert float(made.real) == pytest.approx(0.01 * float(real), rel=1e-4)
    before = made.real.clone()
    made.move()
    made.eval()(pictures(5), pictures(0))
    made.move()
    assert torch.equal(made.real, before), "nothing was seen in training"


def test_it_waits_for_its_start():
    made = Adversary(AdversaryConfig(channels=[4, 8], start=3))
    assert not made.active and made(pictures(1), pictures(0)) == (0, 0, 0)
    made.active = True
    assert made(pictures(1), pictures(0)).critic > 0


def test_scores_are_of_patches_and_seeded():
    critic = Adversary(CONFIG).critic
    assert critic(pictures(0)).shape == (2, 1, 4, 4)
    assert torch.equal(critic(pictures(0)), Adversary(CONFIG).critic(pictures(0)))
    torch.testing.assert_close(critic(pictures(0))[:1], critic(pictures(0)[:1])), "a picture's score is its own"


@pytest.mark.parametrize("wrong", [{"weight": -1.0}, {"lecam": float("nan")}, {"decay": 1.0}, {"start": -1},
                                   {"channels": []}])  # fmt: skip
def test_bad_settings(wrong):
    with pytest.raises(ValueError, match="pyramid.loss.adversary"):
        check_adversary(AdversaryConfig(**wrong), "pyramid.loss.adversary")
