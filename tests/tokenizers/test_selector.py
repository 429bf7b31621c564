from __future__ import annotations

import pytest
import torch

from lavit.tokenizers.selector import (
    Budget,
    GainConfig,
    GainSelector,
    LearnedConfig,
    Selection,
    Selector,
    even_positions,
    gumbel_noise,
    noise_scale,
    within,
)

WIDTH, PATCHES = 12, 9


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, PATCHES, WIDTH, generator=torch.Generator().manual_seed(seed))


def keeping(*rows: list[int]) -> Selection:
    keep = torch.zeros(len(rows), PATCHES, dtype=torch.bool)
    for row, places in zip(keep, rows, strict=True):
        row[places] = True
    return Selection(keep, keep.float(), keep.float())


@pytest.fixture
def selector():
    torch.manual_seed(1)
    return Selector(WIDTH, LearnedConfig()).eval()


def calibrated(rho: float) -> Selector:
    torch.manual_seed(0)
    return Selector(WIDTH, LearnedConfig(rho=rho, calibrated=True)).eval()


def test_selector_gives_log_probabilities(selector):
    log_p = selector(images(2))
    assert log_p.shape == (2, PATCHES, 2) and log_p.dtype == torch.float32
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(2, PATCHES))


def test_selector_decides_in_float32_under_autocast(selector):
    with torch.autocast("cpu", torch.bfloat16):
        half = selector(images(2))
    torch.testing.assert_close(half, selector(images(2)), atol=0, rtol=0)


def test_selection_without_noise_is_deterministic_and_follows_the_probability(selector):
    first, second = selector.select(images(4)), selector.select(images(4))
    assert torch.equal(first.keep, second.keep)
    torch.testing.assert_close(first.importance.sigmoid(), selector(images(4))[..., 0].exp())
    likeliest = first.importance == first.importance.amax(1, keepdim=True)
    assert torch.equal(first.keep, (first.importance > 0) | likeliest)
    assert 0 < first.keep.float().mean() < 1, "a selector that keeps all or nothing shows nothing here"


def test_selection_of_an_image_is_independent_of_its_neighbours(selector):
    together = selector.select(images(4))
    for i in range(4):
        alone = selector.select(images(4)[i : i + 1])
        assert torch.equal(alone.keep[0], together.keep[i])
        torch.testing.assert_close(alone.importance[0], together.importance[i], atol=1e-6, rtol=0)


def test_at_least_the_likeliest_patch_is_kept(selector):
    selector.out[-1].bias.data = torch.tensor([-50.0, 50.0])
    chosen = selector.select(images(3))
    assert chosen.keep.sum(1).tolist() == [1, 1, 1]
    assert torch.equal(chosen.keep.long().argmax(1), chosen.importance.argmax(1))


def test_every_patch_may_be_kept(selector):
    selector.out[-1].bias.data = torch.tensor([50.0, -50.0])
    assert selector.select(images(2)).keep.all()


def test_noise_decides_by_the_noisy_scores(selector):
    noise = gumbel_noise((3, PATCHES, 2), torch.Generator().manual_seed(3))
    noisy = selector(images(3)) + noise
    expected = noisy[..., 0] > noisy[..., 1]
    kept = selector.select(images(3), noise).keep
    assert torch.equal(kept, expected)
    assert not torch.equal(kept, selector.select(images(3)).keep)


@pytest.mark.parametrize("rho", [0.1, 0.5])
@pytest.mark.parametrize("noisy", [False, True])
def test_calibrated_training_batches_keep_their_share(rho, noisy):
    made = calibrated(rho).train()
    noise = gumbel_noise((40, PATCHES, 2), torch.Generator().manual_seed(3)) if noisy else None
    chosen = made.select(images(40), noise)
    scores = made(images(40)) + (noise if noisy else 0)
    odds = scores[..., 0] - scores[..., 1]
    likeliest = odds >= odds.flatten().sort(descending=True).values[round(rho * odds.numel()) - 1]
    first = torch.zeros_like(likeliest).scatter(1, odds.argmax(1, keepdim=True), True)
    assert torch.equal(chosen.keep, likeliest | first), "ranked over the batch, and one an image at least"
    assert made.threshold.item() == 0, "training does not move what evaluation uses"
    chosen.gate.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


def test_the_gradient_s_temperature_follows_the_noise():
    torch.manual_seed(0)
    made = Selector(WIDTH, LearnedConfig(temperature=2.0, final_temperature=0.5))
    found = []
    for noise in (1.0, 0.5, 0.0):
        made.anneal(noise)
        made.zero_grad()
        chosen = made.select(images(2))
        chosen.gate.sum().backward()
        p = (chosen.importance.detach() / made.temperature).sigmoid()
        expected = (p * (1 - p)).sum() / made.temperature
        torch.testing.assert_close(made.out[-1].bias.grad[0], expected)
        found.append(made.temperature)
    assert found == [2.0, 1.25, 0.5]


def test_calibration_stores_the_threshold_of_a_sample():
    made = calibrated(0.25)
    made.out[-1].bias.data = torch.tensor([-3.0, 3.0])
    assert (made.select(images(40)).keep.sum(1) == 1).all(), "by one half nearly nothing is kept"
    made.calibrate(images(40).split(7))
    assert made.select(images(40)).keep.float().mean().item() == pytest.approx(0.25, abs=0.02)
    again = calibrated(0.25)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.select(images(4)).keep, made.select(images(40)[:4]).keep), "kept with the weights"


def test_gate_equals_keep_and_its_gradient_reaches_the_selector(selector):
    chosen = selector.select(images(2))
    torch.testing.assert_close(chosen.gate, chosen.keep.float(), atol=1e-6, rtol=0)
    chosen.gate.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in selector.parameters())
    # d gate / d logit of "keep" is p (1 - p): temperature 1, straight through.
    p = chosen.importance.detach().sigmoid()
    expected = (p * (1 - p)).sum()
    torch.testing.assert_close(selector.out[-1].bias.grad, torch.stack([expected, -expected]))


def test_gumbel_noise_is_seeded_and_has_gumbel_moments():
    make = lambda seed: gumbel_noise((20000,), torch.Generator().manual_seed(seed))  # noqa: E731
    assert torch.equal(make(0), make(0)) and not torch.equal(make(0), make(1))
    assert make(0).mean().item() == pytest.approx(0.5772, abs=0.03)
    assert make(0).var().item() == pytest.approx(1.6449, rel=0.05)


def test_noise_scale_ends():
    assert noise_scale(0, 100) == 1.0
    assert noise_scale(50, 100) == pytest.approx(0.5)
    assert noise_scale(100, 100) == noise_scale(1000, 100) == 0.0
    assert noise_scale(0, 0) == noise_scale(5, 0) == 0.0
    falling = [noise_scale(step, 100) for step in range(101)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize(
    ("budget", "counts"),
    [
        (Budget(), [3, 1]),
        (Budget(tokens=1), [1, 1]),
        (Budget(tokens=4), [4, 4]),
        (Budget(tokens=PATCHES), [PATCHES, PATCHES]),
        (Budget(ratio=0.5), [4, 4]),
        (Budget(ratio=0.01), [1, 1]),
        (Budget(ratio=1.0), [PATCHES, PATCHES]),
        (Budget(at_most=2), [2, 1]),
        (Budget(at_most=PATCHES), [3, 1]),
    ],
)
def test_a_budget_keeps_what_was_asked_the_most_important_first(budget, counts):
    importance = torch.tensor([[-1.0, 3, -2, 1, -9, -3, 2, -8, -1], [-5.0] * PATCHES])
    chosen = within(keeping([1, 3, 6], [0])._replace(importance=importance), budget)
    assert chosen.keep.sum(1).tolist() == counts and torch.equal(chosen.gate, chosen.keep.float())
    assert chosen.keep[0].nonzero().flatten().tolist() == sorted([1, 6, 3, 0, 8, 2, 5, 7, 4][: counts[0]])
    assert chosen.keep[1].nonzero().flatten().tolist() == list(range(counts[1])), "equals go by raster order"


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(tokens=0), "tokens is 0; give a whole number from 1 to the 9 patches of an image"),
        (Budget(tokens=10), "tokens is 10; give a whole number"),
        (Budget(at_most=10), "at_most is 10; give a whole number"),
        (Budget(at_most=2.5), "at_most is 2.5; give a whole number"),
        (Budget(tokens=True), "tokens is True"),
        (Budget(ratio=0.0), "ratio is 0.0, but it must be above 0 and at most 1"),
        (Budget(ratio=1.1), "ratio is 1.1"),
        (Budget(ratio=float("nan")), "ratio is nan"),
        (Budget(tokens=3, ratio=0.5), "tokens and ratio contradict each other"),
    ],
)
def test_impossible_budgets(budget, said):
    with pytest.raises(ValueError, match=said):
        within(keeping([1]), budget)


@pytest.mark.parametrize("tokens", [1, 4, PATCHES])
def test_even_positions(tokens):
    places = even_positions(PATCHES, tokens).nonzero().flatten()
    assert len(places) == tokens
    gaps = places.diff().tolist()
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("tokens", [0, PATCHES + 1])
def test_even_positions_out_of_range(tokens):
    with pytest.raises(ValueError, match=f"even.tokens is {tokens}, but an image has {PATCHES} patches"):
        even_positions(PATCHES, tokens)


# -------------------------------------------------------------------------------------------------------------- gain


def gaining(rho: float = 0.4, anchors: list[int] | None = None) -> GainSelector:
    torch.manual_seed(0)
    fixed = torch.zeros(PATCHES, dtype=torch.bool)
    fixed[anchors or []] = True
    return GainSelector(WIDTH, GainConfig(rho=rho), PATCHES, fixed).eval()


@pytest.mark.parametrize("anchors", [[], [0, 4, 8]])
@pytest.mark.parametrize("noisy", [False, True])
def test_training_batches_keep_the_patches_of_largest_gain_and_all_anchors(anchors, noisy):
    made = gaining(0.5, anchors).train()
    noise = gumbel_noise((40, PATCHES, 2), torch.Generator().manual_seed(3)) if noisy else None
    chosen = made.select(images(40), noise)
    assert chosen.keep[:, anchors].all() and torch.equal(chosen.gate, chosen.keep.float())
    assert chosen.keep.float().mean().item() == pytest.approx(0.5, abs=0.02)
    gain = (chosen.errors[..., 0] - chosen.errors[..., 1]).detach()
    others = [i for i in range(PATCHES) if i not in anchors]
    kept, dropped = (gain[:, others][chosen.keep[:, others] == which] for which in (True, False))
    forced = chosen.keep.sum(1) == 1  # an image's only patch may gain less than what other images drop
    assert noisy == (kept.min() < dropped.max()) or forced.any()
    assert made.threshold == 0, "training does not move what evaluation uses"


def test_the_regression_learns_each_branch_from_where_it_was_taken():
    """Kept patches err by .2, dropped ones by .5, and .9 where a feature says so: those are to be kept."""
    made = gaining(0.3).train()
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    for _ in range(300):
        given = torch.randn(16, PATCHES, WIDTH, generator=generator)
        hard = given[..., 0] > 0.5
        chosen = made.select(given, gumbel_noise((16, PATCHES, 2), generator))
        error = torch.where(chosen.keep, 0.2, torch.where(hard, 0.9, 0.5))
        optimizer.zero_grad()
        made.loss(chosen, error).backward()
        optimizer.step()
    given = torch.randn(64, PATCHES, WIDTH, generator=generator)
    made.calibrate([given])
    chosen, hard = made.eval().select(given), given[..., 0] > 0.5
    assert chosen.keep.float().mean().item() == pytest.approx(0.3, abs=0.05)
    assert chosen.keep[hard].float().mean() > 0.8 and chosen.keep[~hard].float().mean() < 0.2
    assert chosen.errors[..., 1].mean().item() == pytest.approx(0.2, abs=0.05)
    assert chosen.errors[hard][:, 0].mean().item() == pytest.approx(0.9, abs=0.1)


def test_gain_without_noise_depends_on_the_image_alone():
    made = gaining(0.4, [4])
    made.calibrate([images(30)])
    together = made.select(images(6))
    for i in range(6):
        alone = made.select(images(6)[i : i + 1])
        assert torch.equal(alone.keep[0], together.keep[i]) and alone.keep[0, 4]
    assert together.keep.sum(1).unique().numel() > 1, "counts follow the image"


@pytest.mark.parametrize(("rho", "anchors"), [(0.3, [0, 4, 8]), (1.0, [])])
def test_a_share_that_leaves_nothing_to_choose(rho, anchors):
    with pytest.raises(ValueError, match=f"tokenizer.selection.gain.rho is {rho}, which is .* of 9 patches; it must"):
        gaining(rho, anchors)
