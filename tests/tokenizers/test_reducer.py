from __future__ import annotations

import pytest
import torch

from lavit.tokenizers.reducer import (
    Budget,
    LearnedConfig,
    Merger,
    MergerConfig,
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


@pytest.fixture(params=[False, True], ids=["no places", "places"])
def merger(request):
    torch.manual_seed(2)
    config = MergerConfig(width=8, blocks=2, heads=2, mlp=16, position=request.param)
    return Merger(WIDTH, PATCHES, config).eval()


def calibrated(rho: float) -> Selector:
    torch.manual_seed(0)
    return Selector(WIDTH, LearnedConfig(rho=rho, calibrated=True)).eval()


# ------------------------------------------------------------------------------------------------------- selector


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
        (Budget(tokens=0), "tokens is 0, but an image has 9 patches: give a whole number from 1 on"),
        (Budget(tokens=10), "tokens is 10, but an image has 9 patches"),
        (Budget(at_most=10), "at_most is 10, but an image has 9 patches"),
        (Budget(at_most=2.5), "at_most is 2.5, but an image has 9 patches"),
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


# --------------------------------------------------------------------------------------------------------- merger


def test_merged_tokens_are_the_kept_patches_in_raster_order(merger):
    merged, keep, position = merger(images(2), keeping([7, 0, 3], [5]))
    assert merged.shape == (2, 3, 8) and keep.tolist() == [[True] * 3, [True, False, False]]
    assert position.dtype == torch.int64 and position[keep].tolist() == [0, 3, 7, 5]
    assert torch.equal(merged[1, 1:], torch.zeros(2, 8))


def test_merged_image_is_independent_of_its_neighbours(merger):
    rows = [[0, 3, 7], [5], list(range(PATCHES)), [1, 2]]
    together, keep, _ = merger(images(4), keeping(*rows))
    for i, row in enumerate(rows):
        alone = merger(images(4)[i : i + 1], keeping(row))[0]
        assert alone.shape[1] == len(row)
        torch.testing.assert_close(together[i][keep[i]], alone[0], atol=1e-5, rtol=0)


def test_merging_is_causal_over_kept_patches(merger):
    selection = keeping([1, 4, 6])
    changed = images(1)
    changed[0, 6] *= -1
    before, after = merger(images(1), selection)[0], merger(changed, selection)[0]
    torch.testing.assert_close(after[:, :2], before[:, :2], atol=0, rtol=0)
    assert (after[:, 2] - before[:, 2]).abs().max() > 1e-3
    changed = images(1)
    changed[0, 1] *= -1
    after = merger(changed, selection)[0]
    assert ((after - before).abs().amax(-1) > 1e-4).all(), "an earlier kept patch reaches all later tokens"


def test_gathered_merger_equals_the_dense_one_with_its_gradients(merger):
    """The dense form computes every patch under strict masks, as eq. 2 reads."""
    keep = keeping([7, 0, 3], [5], list(range(PATCHES)), [8, 1, 2, 4]).keep
    weight = torch.randn(4, PATCHES, 8, generator=torch.Generator().manual_seed(4))
    results = []
    for form in ("gathered", "dense"):
        merger.zero_grad()
        given, gate = images(4).requires_grad_(), keep.float().requires_grad_()
        selection = Selection(keep, gate, gate)
        if form == "gathered":
            merged, real, position = merger(given, selection)
            out = torch.zeros(4, PATCHES, 8).masked_scatter(keep[..., None], merged[real])
        else:
            out = merger.dense(given, selection) * keep[..., None]
        (out * weight).sum().backward()
        gradients = {name: p.grad.clone() for name, p in merger.named_parameters()}
        results.append({"out": out, "given": given.grad, "gate": gate.grad, **gradients})
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert results[0]["gate"].abs().min() > 0


def test_gathered_equals_dense_for_a_mask_drawn_with_noise(merger, selector):
    noise = gumbel_noise((6, PATCHES, 2), torch.Generator().manual_seed(3))
    selection = selector.train().select(images(6), noise)
    merged, real, _ = merger(images(6), selection)
    assert selection.keep.sum(1).unique().numel() > 1, "unequal counts, so that there is padding"
    torch.testing.assert_close(merged[real], merger.dense(images(6), selection)[selection.keep], atol=1e-5, rtol=0)


def test_soft_mask_is_nearly_the_strict_one_and_uniform_where_nothing_was_dropped():
    torch.manual_seed(2)
    config = MergerConfig(width=8, blocks=1, heads=2, mlp=16, soft_mask=True)
    soft = Merger(WIDTH, PATCHES, config).eval()
    selection = keeping([1, 4, 6])
    merged, real, position = soft(images(1), selection)
    assert position.tolist() == [[1, 4, 6]] and real.all()
    torch.testing.assert_close(merged[0], soft.dense(images(1), selection, soft=True)[0, [1, 4, 6]])
    strict = soft.dense(images(1), selection)[0, [1, 4, 6]]
    assert 0 < (merged[0] - strict).abs().max() < 1e-3
    block, x = soft.blocks[0], soft.proj_in(soft.norm_in(images(1)))
    alone = keeping(list(range(PATCHES)))
    after_self = x + block.self_attn(block.norm0(x), mask=torch.ones(PATCHES, PATCHES).tril())
    mean = block.cross_attn.proj(block.cross_attn.value(x).mean(1, keepdim=True))
    hidden = after_self + mean
    expected = soft.norm(hidden + block.mlp(block.norm2(hidden)))
    torch.testing.assert_close(soft(images(1), alone)[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("place", [0, 5, 8])
def test_a_dropped_patch_reaches_every_token(merger, place):
    selection = keeping([1, 4, 6])
    changed = images(1)
    changed[0, place] = -changed[0, place]
    difference = (merger(changed, selection)[0] - merger(images(1), selection)[0]).abs().amax(-1)
    assert (difference > 1e-4).all()


def test_keeping_everything_leaves_no_context_and_stays_finite(merger):
    features = images(2).requires_grad_()
    merged, keep, _ = merger(features, keeping(list(range(PATCHES)), [2]))
    assert keep[0].all() and merged.isfinite().all()
    merged = merger(features, keeping(list(range(PATCHES)), list(range(PATCHES))))[0]
    merged.square().sum().backward()
    assert merged.shape == (2, PATCHES, 8) and merged.isfinite().all() and features.grad.isfinite().all()


def test_gates_carry_the_gradient_of_kept_and_of_dropped_patches(merger):
    keep = keeping([1, 4, 6]).keep
    gate = keep.float().requires_grad_()
    weight = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(5))
    (merger(images(1), Selection(keep, gate, gate))[0] * weight).sum().backward()
    assert gate.grad.isfinite().all() and (gate.grad[0] != 0).all()


def test_places_are_used_where_the_config_asks(merger):
    swapped = images(1)
    swapped[0, [1, 4]] = swapped[0, [4, 1]]
    before = merger(images(1), keeping([1]))[0]
    after = merger(swapped, keeping([4]))[0]
    # The same patches, two of them at swapped places: only learned places can tell them apart.
    same = torch.allclose(before, after, atol=1e-5)
    assert same == (merger.position is None)
