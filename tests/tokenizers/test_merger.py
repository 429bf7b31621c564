from __future__ import annotations

import pytest
import torch

from lavit.tokenizers.merger import Merger, MergerConfig
from lavit.tokenizers.selector import LearnedConfig, Selection, Selector, gumbel_noise

WIDTH, PATCHES = 12, 9


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, PATCHES, WIDTH, generator=torch.Generator().manual_seed(seed))


def keeping(*rows: list[int]) -> Selection:
    keep = torch.zeros(len(rows), PATCHES, dtype=torch.bool)
    for row, places in zip(keep, rows, strict=True):
        row[places] = True
    return Selection(keep, keep.float(), keep.float())


@pytest.fixture(params=[False, True], ids=["no places", "places"])
def merger(request):
    torch.manual_seed(2)
    config = MergerConfig(width=8, blocks=2, heads=2, mlp=16, position=request.param)
    return Merger(WIDTH, PATCHES, config).eval()


@pytest.fixture
def selector():
    torch.manual_seed(1)
    return Selector(WIDTH, LearnedConfig()).eval()


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
