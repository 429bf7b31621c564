from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F

from lavit.layers.ranks import gathered
from lavit.tokenizers.quantizer import Quantizer, QuantizerConfig, spherical_kmeans

FEATURES, WIDTH, CODES = 6, 4, 5


def unit_vectors(count: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=-1)


def inputs(batch: int = 3, length: int = 4, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    features = torch.randn(batch, length, FEATURES, generator=torch.Generator().manual_seed(seed))
    keep = torch.ones(batch, length, dtype=torch.bool)
    keep[0, 2:] = False
    return features, keep


def quantizer(seed: int = 0, **changes) -> Quantizer:
    torch.manual_seed(seed)
    return Quantizer(FEATURES, QuantizerConfig(**{"codes": CODES, "width": WIDTH, "dead_below": 0.0, **changes}), seed)


# ---------------------------------------------------------------------------------------------------------- k-means


def kmeans_by_hand(unit: torch.Tensor, size: int, iterations: int, generator: torch.Generator):
    """The same by loops: assign by cosine, sum, normalise; an empty cluster takes the worst served vector."""
    centres = [unit[i] for i in torch.randperm(len(unit), generator=generator)[:size].tolist()]

    def assign():
        served = [max((float(vector @ centre), -c) for c, centre in enumerate(centres)) for vector in unit]
        return [-c for _, c in served], [s for s, _ in served]

    for _ in range(iterations):
        owner, similarity = assign()
        worst = iter(sorted(range(len(unit)), key=lambda i: similarity[i]))
        for c in range(size):
            members = [vector for vector, o in zip(unit, owner, strict=True) if o == c]
            total = sum(members) if members else unit[next(worst)]
            centres[c] = total / total.norm()
    owner, _ = assign()
    return torch.stack(centres), torch.tensor([max(1, owner.count(c)) for c in range(size)]).float()


@pytest.mark.parametrize("size", [3, 12])
def test_spherical_kmeans_equals_loops(size):
    unit = unit_vectors(40)
    centres, count = spherical_kmeans(unit, size, 4, torch.Generator().manual_seed(7))
    expected, expected_count = kmeans_by_hand(unit, size, 4, torch.Generator().manual_seed(7))
    torch.testing.assert_close(centres, expected, atol=1e-6, rtol=0)
    assert torch.equal(count, expected_count)


def test_kmeans_moves_an_empty_cluster_to_the_worst_served_vector():
    # Three equal vectors and a far one: with two starts among the equal ones, one cluster is empty.
    unit = torch.eye(WIDTH)[[0, 0, 0, 1]]
    start = next(
        seed for seed in range(50)
        if 3 not in torch.randperm(4, generator=torch.Generator().manual_seed(seed))[:2].tolist()
    )  # fmt: skip
    centres, count = spherical_kmeans(unit, 2, 2, torch.Generator().manual_seed(start))
    assert sorted(centres.argmax(-1).tolist()) == [0, 1] and sorted(count.tolist()) == [1, 3]


def test_kmeans_starts_the_codebook_with_the_shares_of_its_clusters():
    made = quantizer(kmeans_iterations=3)
    unit = unit_vectors(30)
    made.start_from(unit)
    torch.testing.assert_close(made.codebook.norm(dim=-1), torch.ones(CODES))
    # The generator first chooses the vectors (here all of them, in an order of its own), then the starts.
    generator = torch.Generator().manual_seed(0)
    chosen = unit[torch.randperm(30, generator=generator)]
    centres, count = kmeans_by_hand(chosen, CODES, 3, generator)
    torch.testing.assert_close(made.codebook, centres, atol=1e-6, rtol=0)
    torch.testing.assert_close(made.count, count / count.sum())
    torch.testing.assert_close(made.total, centres * (count / count.sum())[:, None], atol=1e-6, rtol=0)


def test_kmeans_of_too_few_vectors():
    repeated = unit_vectors(4).repeat(10, 1)
    with pytest.raises(ValueError, match=f"at least {CODES} different vectors for as many codes and got 4 among 40"):
        quantizer().start_from(repeated)


# ------------------------------------------------------------------------------------------------------ quantization


def test_words_are_the_nearest_codes():
    made = quantizer().eval()
    features, keep = inputs()
    out = made(features, keep)
    unit = made.project(features)
    assert out.words.shape == (3, 4, WIDTH) and out.codes.shape == (3, 4) and out.codes.dtype == torch.int64
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(3, 4))
    distance = (unit[:, :, None] - made.codebook).square().sum(-1)
    assert torch.equal(out.codes[keep], distance.argmin(-1)[keep])
    torch.testing.assert_close(out.words[keep], made.lookup(out.codes)[keep])
    assert not out.words[~keep].any() and not out.codes[~keep].any()
    expected = torch.stack([distance[i, j].min() for i, j in keep.nonzero().tolist()]).mean()
    torch.testing.assert_close(out.commitment, expected)


def test_gradient_passes_straight_through_to_the_projection():
    made = quantizer().eval()
    features, keep = inputs()
    weight = torch.randn(3, 4, WIDTH, generator=torch.Generator().manual_seed(2))
    (made(features, keep).words * weight).sum().backward()
    ours = [p.grad.clone() for p in made.parameters()]
    made.zero_grad()
    (made.project(features) * keep[..., None] * weight).sum().backward()
    for mine, expected in zip(ours, made.parameters(), strict=True):
        torch.testing.assert_close(mine, expected.grad)
    assert not made.codebook.requires_grad


def test_arithmetic_is_float32_under_autocast():
    made = quantizer().eval()
    features, keep = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        half = made(features.bfloat16().float(), keep)
    torch.testing.assert_close(half.words, made(features.bfloat16().float(), keep).words, atol=0, rtol=0)


def test_codes_do_not_depend_on_the_precision_around():
    made = quantizer(codes=64).eval()
    features = torch.randn(500, FEATURES, generator=torch.Generator().manual_seed(5))
    with torch.autocast("cpu", torch.bfloat16):
        around = made.nearest(made.project(features))
    assert torch.equal(around, made.nearest(made.project(features)))


def test_evaluation_does_not_move_the_codebook():
    made = quantizer().eval()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made(*inputs())
    assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())


# ------------------------------------------------------------------------------------------------------------ entropy


def entropy_by_hand(made: Quantizer, unit: torch.Tensor) -> torch.Tensor:
    choices = []
    for vector in unit:
        odds = torch.stack([(vector @ code / made.config.entropy_temperature).exp() for code in made.codebook])
        choices.append(odds / odds.sum())
    own = torch.stack([-sum(p * p.log() for p in choice) for choice in choices]).mean()
    mean = sum(choices) / len(choices)
    return own + sum(p * p.log() for p in mean)


def test_entropy_equals_loops():
    made = quantizer(entropy=0.1, entropy_temperature=0.3)
    features, keep = inputs()
    expected = entropy_by_hand(made, made.project(features)[keep])
    torch.testing.assert_close(made(features, keep).entropy, expected)
    assert quantizer()(features, keep).entropy.item() == 0, "off unless it is asked for"


def test_entropy_is_least_where_tokens_are_sure_and_spread():
    made = quantizer(entropy=0.1, entropy_temperature=0.01)
    made.codebook.copy_(F.normalize(torch.eye(CODES, WIDTH) - 0.5 * torch.eye(CODES, WIDTH).roll(-1, 0), dim=-1))
    spread = made.entropy(made.codebook)
    same = made.entropy(made.codebook[:1].expand(CODES, -1))
    assert spread.item() == pytest.approx(-math.log(CODES), abs=1e-3) and same.item() == pytest.approx(0, abs=1e-3)


# ----------------------------------------------------------------------------------------------------------- averages


def step_by_hand(made: Quantizer, unit: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One moving average, code by code: shares of the tokens, and sums of vectors over their number."""
    decay, n = made.config.decay, len(unit)
    count, total = made.count.clone(), made.total.clone()
    for code in range(CODES):
        members = [unit[i] for i in range(n) if int(codes[i]) == code]
        count[code] = decay * count[code] + (1 - decay) * len(members) / n
        total[code] = decay * total[code] + (1 - decay) * (sum(members) / n if members else 0)
    return count, total, total / total.norm(dim=-1, keepdim=True)


def test_one_step_of_the_moving_average():
    made = quantizer(decay=0.8)
    features, keep = inputs()
    unit = made.project(features).detach()
    count, total, codebook = step_by_hand(made, unit[keep], made.nearest(unit)[keep])
    made(features, keep)
    assert int(made.updates) == 0, "nothing moves before the step's end"
    made.move()
    torch.testing.assert_close(made.count, count)
    torch.testing.assert_close(made.total, total)
    torch.testing.assert_close(made.codebook, codebook)
    assert made.count.sum().item() == pytest.approx(1) and int(made.updates) == 1
    made.move()
    assert int(made.updates) == 1, "nothing was quantized since"


def test_dropped_places_do_not_move_the_codebook():
    first, second = quantizer(), quantizer()
    features, keep = inputs()
    rubbish = features.clone()
    rubbish[~keep] = 1e3
    first(features, keep), second(rubbish, keep)
    first.move(), second.move()
    assert int(first.updates) == 1
    assert torch.equal(first.codebook, second.codebook) and torch.equal(first.count, second.count)


def test_dead_codes_restart_at_inputs_and_always_at_the_same():
    made, again = (quantizer(decay=0.5, dead_below=0.9) for _ in range(2))
    features, keep = inputs()
    unit = made.project(features).detach()
    count, _, moved = step_by_hand(made, unit[keep], made.nearest(unit)[keep])
    dead = count < 0.9 / CODES
    assert 0 < dead.sum() < CODES, "the case must have both kinds"
    made(features, keep), again(features, keep)
    made.move(), again.move()
    assert torch.equal(made.codebook, again.codebook)
    torch.testing.assert_close(made.codebook[~dead], moved[~dead])
    for code in dead.nonzero().flatten().tolist():
        assert (unit[keep] - made.codebook[code]).abs().amax(-1).min() < 1e-6, "a restarted code is an input"
        assert made.count[code].item() == pytest.approx(1 / CODES)


def test_averages_without_restarts_keep_unused_codes_in_place():
    made = quantizer(decay=0.9)
    made.codebook[0] = -F.normalize(made.project(inputs()[0])[0, 0].detach(), dim=-1)
    made.total[0] = made.codebook[0] / CODES
    before = made.codebook[0].clone()
    features, keep = inputs(batch=1)
    keep[:] = False
    keep[0, 0] = True
    made(features, keep)
    made.move()
    torch.testing.assert_close(made.codebook[0], before)
    assert made.count[0].item() == pytest.approx(0.9 / CODES)


def test_a_batch_that_is_not_finite_leaves_the_codebook_alone():
    made = quantizer()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    features, keep = inputs()
    features[1, 1] = float("nan")
    assert made(features, keep).commitment.isnan()
    made.move()
    assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())


# -------------------------------------------------------------------------------------------------------- two ranks


def trained_on(features: torch.Tensor, keep: torch.Tensor, start: torch.Tensor, accumulate: int = 1) -> Quantizer:
    made = quantizer(decay=0.5, dead_below=0.9)
    made.start_from(gathered(start))
    for step in range(3):
        for micro in range(accumulate):
            made((features + 0.3 * step)[micro::accumulate], keep[micro::accumulate])
        made.move()
    return made


def in_order_of_micro_batches(features: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.tensor([0, 2, 1, 3])  # of a batch of four, when every second one makes a micro-batch
    return features[order], keep[order]


def test_accumulated_micro_batches_give_the_codebook_of_one_batch():
    parts = trained_on(*inputs(batch=4), unit_vectors(20), accumulate=2).state_dict()
    whole = trained_on(*in_order_of_micro_batches(*inputs(batch=4)), unit_vectors(20)).state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-6, rtol=0)
    assert not torch.equal(whole["codebook"], trained_on(*inputs(3), unit_vectors(20)).codebook)


def entropy_gradients(features: torch.Tensor, keep: torch.Tensor) -> list[torch.Tensor]:
    """Of the projection; averaged over ranks as data parallelism does."""
    made = quantizer(entropy=1.0, entropy_temperature=0.3).eval()
    made(features, keep).entropy.backward()
    gradients = [p.grad for p in made.parameters()]
    if dist.is_initialized():
        for gradient in gradients:
            dist.all_reduce(gradient, op=dist.ReduceOp.SUM)
            gradient /= dist.get_world_size()
    return gradients


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    features, keep = inputs(batch=4)
    half = slice(2 * rank, 2 * rank + 2)
    made = trained_on(features[half], keep[half], unit_vectors(20)[10 * rank : 10 * rank + 10])
    torch.save(made.state_dict(), f"{folder}/{rank}.pt")
    torch.save(entropy_gradients(features[half], keep[half]), f"{folder}/gradients-{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_give_the_codebook_and_the_entropy_of_one(tmp_path):
    multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    alone = trained_on(*inputs(batch=4), unit_vectors(20)).state_dict()
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert set(alone) == set(ranks[0])
    for name, value in alone.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], value, atol=1e-6, rtol=0)
    for gradients in (torch.load(tmp_path / f"gradients-{rank}.pt", weights_only=True) for rank in range(2)):
        for mine, expected in zip(gradients, entropy_gradients(*inputs(batch=4)), strict=True):
            torch.testing.assert_close(mine, expected, atol=1e-6, rtol=0)
            assert expected.abs().max() > 1e-4
