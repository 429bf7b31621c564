from __future__ import annotations

import pytest
import torch

from lavit.tokenizers.pyramid import RULES, PyramidLayers, PyramidQuantizer

PAPER = [1, 2, 4, 8, 16, 16]
SMALL = [1, 2, 4, 4]


def codebook(size: int = 50, width: int = 6) -> torch.Tensor:
    return torch.randn(size, width, generator=torch.Generator().manual_seed(1))


def latents(count: int = 2, width: int = 6, side: int = 4) -> torch.Tensor:
    return torch.randn(count, width, side, side, generator=torch.Generator().manual_seed(2))


def test_the_papers_layers_have_its_counts_and_leave_its_gaps():
    layers = PyramidLayers(PAPER)
    assert layers.counts == [1, 4, 16, 64, 256, 256] and layers.tokens == 597
    assert [layers.prefix(n) for n in range(1, 7)] == [1, 5, 21, 85, 341, 597]
    empty = [int((layers.held(layers.prefix(n)) == 0).sum()) for n in range(1, 7)]
    assert empty == [255, 251, 235, 171, 0, 0]
    assert layers.held(597).sum() == 597 and int(layers.held(597).max()) == 3


def test_places_are_the_formulas():
    """P(l) = {(h'i − ⌈h'/2⌉ + 1, w'j − ⌈w'/2⌉ + 1)}, counted from 1."""
    layers = PyramidLayers(PAPER)
    start = 0
    for side, count in zip(PAPER, layers.counts, strict=True):
        step = 16 // side
        line = [step * i - -(-step // 2) + 1 for i in range(1, side + 1)]
        expected = [(y - 1) * 16 + x - 1 for y in line for x in line]
        assert layers.places[start : start + count].tolist() == expected
        start += count
    assert layers.places[0] == 8 * 16 + 8


@pytest.mark.parametrize("sides", [[], [0, 4], [1, 3, 4], [4, 2]])
def test_sides_that_do_not_fit(sides):
    with pytest.raises(ValueError, match="pyramid.model.sides"):
        PyramidLayers(sides)


def brute_force(z: torch.Tensor, book: torch.Tensor, layers: PyramidLayers, rule: str):
    """One picture (C, h, h), place by place: the codes, what each layer quantized, and ẑ_≤l of every prefix."""
    side, start = layers.side, 0
    said: dict[tuple[int, int], list[torch.Tensor]] = {}
    codes, read, partial = [], [], []
    for count in layers.counts:
        fresh = []
        for place in layers.places[start : start + count].tolist():
            y, x = divmod(place, side)
            here = z[:, y, x]
            asked = here.clone()
            for e in said.get((y, x), []):
                asked = asked + {"average": here - e, "residual": -e, "single": 0 * e}[rule]
            code = min(range(len(book)), key=lambda k: float((asked - book[k]).square().sum()))
            codes.append(code)
            read.append(asked)
            fresh.append(((y, x), book[code]))
        for at, e in fresh:
            said.setdefault(at, []).append(e)
        value = torch.zeros(side, side, z.shape[0])
        for (y, x), vectors in said.items():
            total = sum(vectors)
            value[y, x] = total if rule == "residual" else total / len(vectors)
        partial.append(value.flatten(0, 1))
        start += count
    return codes, torch.stack(read), partial


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_what_a_loop_over_places_makes(rule):
    layers, book, z = PyramidLayers([1, 2, 4, 4, 4]), codebook(), latents()
    named = PyramidQuantizer(layers, book, rule)(z)
    assert named.codes.shape == (2, 53) and named.codes.dtype == torch.int64
    for picture in range(2):
        codes, read, partial = brute_force(z[picture], book, layers, rule)
        assert named.codes[picture].tolist() == codes
        torch.testing.assert_close(named.read[picture], read)
        for found, expected in zip(named.partial, partial, strict=True):
            torch.testing.assert_close(found[picture], expected)


def test_averages_come_nearer_and_residuals_of_one_codebook_less():
    """The error of ẑ falls from layer to layer, and ends under that of the alternatives at as many tokens."""
    layers, z = PyramidLayers([1, 2, 4, 8, 8, 8]), latents(4, 16, 8)
    book = torch.nn.functional.normalize(codebook(500, 16), dim=-1)
    z = torch.nn.functional.normalize(z, dim=1)
    ends = {}
    for rule in RULES:
        named = PyramidQuantizer(layers, book, rule)(z)
        flat = z.flatten(2).transpose(1, 2)
        errors = [float((flat - part).square().mean()) for part in named.partial]
        ends[rule] = errors[-1]
        if rule == "average":
            assert errors[3] > errors[4] > errors[5]
    assert ends["average"] < min(ends["residual"], ends["single"])


def test_filling_takes_the_nearest_token_and_the_first_of_equals():
    layers = PyramidLayers(SMALL)
    assert layers.filled_from(1).unique().tolist() == [2 * 4 + 2]
    five = layers.filled_from(5)  # tokens at (2, 2) and at (1, 1), (1, 3), (3, 1), (3, 3)
    assert [int(five[y * 4 + x]) for y, x in ((0, 0), (2, 2), (1, 2), (0, 2))] == [5, 10, 5, 5]
    assert layers.filled_from(layers.prefix(3)).tolist() == list(range(16))
    for wrong in (0, layers.tokens + 1):
        with pytest.raises(ValueError, match="at least one and at most all"):
            layers.filled_from(wrong)


@pytest.mark.parametrize("rule", RULES)
def test_codes_alone_give_the_latents_of_every_prefix(rule):
    layers = PyramidLayers(SMALL)
    quantizer = PyramidQuantizer(layers, codebook(), rule)
    named = quantizer(latents())
    for number in range(1, 5):
        count = layers.prefix(number)
        found = quantizer.latents(named.codes[:, :count])
        expected = named.partial[number - 1][:, layers.filled_from(count)]
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected)
    between = quantizer.latents(named.codes[:, :3])  # in the middle of a layer
    assert torch.equal(between[0, :, 1, 3], quantizer.codebook[named.codes[0, 2]])
    with pytest.raises(ValueError, match="a list of 50 words; give indices into the word list"):
        quantizer.latents(torch.tensor([[50]]))


def test_the_gradient_goes_straight_to_the_places_that_are_shown():
    layers = PyramidLayers(SMALL)
    quantizer, z = PyramidQuantizer(layers, codebook()), latents().requires_grad_()
    named = quantizer(z)
    count = torch.tensor([1, 4])
    out = quantizer.straight(z, named, count)
    shorter = quantizer.latents(named.codes[:1, :1])
    torch.testing.assert_close(out[:1], shorter)
    torch.testing.assert_close(out[1:], quantizer.latents(named.codes[1:]))
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    (out * weight).sum().backward()
    torch.testing.assert_close(z.grad[1], weight[1])
    torch.testing.assert_close(z.grad[0, :, 2, 2], weight[0].sum((1, 2)))
    assert z.grad[0].abs().sum((0,)).count_nonzero() == 1


def test_commitment_draws_latents_and_counts_places_with_tokens_alone():
    layers = PyramidLayers(SMALL)
    quantizer, z = PyramidQuantizer(layers, codebook()), latents().requires_grad_()
    named = quantizer(z)
    flat = z.detach().flatten(2).transpose(1, 2)
    expected = 0.0
    for number in range(1, 5):
        known = layers.held(layers.prefix(number)) > 0
        expected += float((flat - named.partial[number - 1])[:, known].square().mean())
    loss = quantizer.commitment(z, named)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert z.grad.abs().sum() > 0 and not quantizer.codebook.requires_grad


def test_tokens_and_an_unknown_rule():
    quantizer = PyramidQuantizer(PyramidLayers(SMALL), codebook())
    tokens = quantizer.tokens(quantizer(latents()))
    assert tokens.codes.shape == (2, 37) and tokens.keep.all() and tokens.features.shape == (2, 37, 6)
    assert tokens.position[1].tolist() == list(range(37))
    with pytest.raises(ValueError, match="pyramid.model.quantizer 'mean' is unknown; choose average, residual, single"):
        PyramidQuantizer(PyramidLayers(SMALL), codebook(), "mean")
