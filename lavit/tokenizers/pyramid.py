"""The pyramid of SPAE: which places of a latent grid each layer reads, and how a frozen codebook names them.

Source: SPAE, arXiv 2306.17842, section 3.1 (dilation subsampler, streaming average quantization). The layers have
1, 2, 4, … places a side, so that a prefix of the layers is a short description of the whole picture.

Shape letters: B pictures, N tokens of all layers, P places of the grid, C width of a vector, K codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lavit.tokens import Tokens

AT_ONCE = 4096  # vectors whose distances to all codes are in memory at a time


class PyramidLayers:
    """Where the tokens of layers with ``sides`` places a side lie on the grid of the last one.

    Attributes:
        side: places a side of the grid.
        counts: tokens of each layer, sides².
        places: (N,) int64 in [0, side²), the raster place of each token, layer by layer, in raster order within each.

    Raises:
        ValueError: a side that does not divide the last one, or is under one.
    """

    def __init__(self, sides: list[int]):
        if not sides or min(sides) < 1 or any(sides[-1] % side for side in sides):
            raise ValueError(
                f"pyramid.model.sides {sides}: every layer's side must divide the last one, as 1, 2, 4, 8, 16, 16 do"
            )
        self.sides, self.side = list(sides), sides[-1]
        self.counts = [side**2 for side in sides]
        self.places = torch.cat([self.subsampled(side) for side in sides])

    @property
    def tokens(self) -> int:
        """N, the tokens of all layers."""
        return sum(self.counts)

    def prefix(self, layers: int) -> int:
        """The tokens of the first ``layers`` layers."""
        return sum(self.counts[:layers])

    def subsampled(self, side: int) -> Tensor:
        """(side²,) int64 raster places of the dilation subsampler P(l).

        The paper's places count from 1: h'·i − ⌈h'/2⌉ + 1 for i ≤ h_l, with h' = h_D / h_l; from 0 and with i from 1 it
        is h'·i − ⌈h'/2⌉.
        """
        step = self.side // side
        # On the CPU whatever is built around it: it is looked at while models are built, also of those without content.
        line = step * torch.arange(1, side + 1, device="cpu") - (step + 1) // 2
        return (line[:, None] * self.side + line).flatten()

    def held(self, tokens: int) -> Tensor:
        """(P,) int64: how many of the first ``tokens`` tokens each place holds."""
        return torch.bincount(self.places[:tokens], minlength=self.side**2)

    def filled_from(self, tokens: int) -> Tensor:
        """(P,) int64: the place whose tokens each place shows after the first ``tokens``: our fill rule.

        A place that holds a token shows its own; another one shows the nearest that does, and of equally near ones the
        first in raster order. The paper does not say what a decoder sees where a prefix leaves places without a token.

        Raises:
            ValueError: no tokens, or more than there are.
        """
        if not 1 <= tokens <= self.tokens:
            raise ValueError(f"{tokens} tokens of a pyramid of {self.tokens}: decode at least one and at most all")
        known = self.held(tokens).nonzero().flatten()
        rows, columns = torch.arange(self.side**2) // self.side, torch.arange(self.side**2) % self.side
        apart = (rows[:, None] - rows[known]).square() + (columns[:, None] - columns[known]).square()
        first = (apart == apart.min(1, keepdim=True).values).int().argmax(1)  # argmin may return any of equal ones
        return known[first]


class Rule(NamedTuple):
    """How a layer's vector comes about, and what the tokens so far amount to.

    Attributes:
        read: (z, total, held) to what a layer quantizes, where ``total`` is the sum of the codes' vectors that a place
            holds and ``held`` their number.
        value: (total, held) to the latents that they stand for.
    """

    read: Callable[[Tensor, Tensor, Tensor], Tensor]
    value: Callable[[Tensor, Tensor], Tensor]


RULES = {
    # z_l = z + Σ_{i<l} (z − e(k_i)), ẑ = mean of e(k_i): each token makes good what the mean of those before it lacks.
    "average": Rule(lambda z, total, held: (1 + held) * z - total, lambda total, held: total / held.clamp_min(1)),
    # z_l = z − Σ_{i<l} e(k_i), ẑ = Σ e(k_i): residual quantization with the one codebook that there is.
    "residual": Rule(lambda z, total, held: z - total, lambda total, held: total),
    # z_l = z: every token of a place says the same, as if there were one layer.
    "single": Rule(lambda z, total, held: z, lambda total, held: total / held.clamp_min(1)),
}


class Named(NamedTuple):
    """What a pyramid makes of latents.

    Attributes:
        codes: (B, N) int64 in [0, K).
        read: (B, N, C) float32, what each token quantized, z_l at its place; gradients reach the latents.
        partial: for each layer l, ẑ_≤l (B, P, C) float32 without gradient, zero at places without a token.
    """

    codes: Tensor
    read: Tensor
    partial: tuple[Tensor, ...]


class PyramidQuantizer(nn.Module):
    """Latents (B, C, side, side) to codes of a frozen codebook, layer by layer, and codes back to latents.

    Args:
        layers: the geometry.
        codebook: (K, C) float32; a buffer that nothing moves.
        rule: a name of :data:`RULES`.
    """

    def __init__(self, layers: PyramidLayers, codebook: Tensor, rule: str = "average"):
        super().__init__()
        if rule not in RULES:
            raise ValueError(f"pyramid.model.quantizer '{rule}' is unknown; choose {', '.join(RULES)}")
        self.layers, self.rule = layers, RULES[rule]
        self.register_buffer("codebook", codebook.float().clone())

    def nearest(self, vectors: Tensor) -> Tensor:
        """(n, C) float32 vectors to the (n,) int64 codes at the least distance, in fp32 and in blocks."""
        with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):
            half = self.codebook.square().sum(-1) / 2
            return torch.cat([(part.float() @ self.codebook.T - half).argmax(-1) for part in vectors.split(AT_ONCE)])

    def forward(self, latents: Tensor) -> Named:
        """Quantize latents (B, C, side, side), every layer what those before it left."""
        with torch.autocast(latents.device.type, enabled=False):
            z = latents.float().flatten(2).transpose(1, 2)
            total, held = torch.zeros_like(z), z.new_zeros(z.shape[1], 1)
            codes, read, partial = [], [], []
            for here in self.layers.places.to(z.device).split(self.layers.counts):
                asked = self.rule.read(z[:, here], total[:, here], held[here])
                found = self.nearest(asked.detach().flatten(0, 1)).view(asked.shape[:2])
                # New ones, since those that a layer has read belong to its gradient.
                total = total.index_add(1, here, self.codebook[found])
                held = held.index_add(0, here, held.new_ones(len(here), 1))
                codes.append(found)
                read.append(asked)
                partial.append(self.rule.value(total, held).detach())
            return Named(torch.cat(codes, 1), torch.cat(read, 1), tuple(partial))

    def tokens(self, named: Named) -> Tokens:
        """As the value type that all tokenizers share; ``position`` counts the cells layer by layer."""
        codes = named.codes
        position = torch.arange(codes.shape[1], device=codes.device).expand_as(codes)
        return Tokens(codes, torch.ones_like(codes, dtype=torch.bool), named.read.detach(), position)

    def latents(self, codes: Tensor) -> Tensor:
        """(B, n) int64 codes of the first n tokens to filled latents (B, C, side, side) float32.

        Raises:
            ValueError: no tokens, more than there are, or codes that are none.
        """
        count, side = codes.shape[1], self.layers.side
        source = self.layers.filled_from(count).to(codes.device)
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < len(self.codebook):
            raise ValueError(
                f"codes in [{int(codes.min())}, {int(codes.max())}] of a list of {len(self.codebook)} words; "
                "give indices into the word list, not the language model's ids"
            )
        here = self.layers.places[:count].to(codes.device)
        total = self.codebook.new_zeros(len(codes), side**2, self.codebook.shape[1])
        total = total.index_add(1, here, self.codebook[codes])
        value = self.rule.value(total, self.layers.held(count).to(total)[:, None])
        return value[:, source].transpose(1, 2).unflatten(2, (side, side))

    def straight(self, latents: Tensor, named: Named, layers: Tensor) -> Tensor:
        """What a decoder reads while it trains: ẑ of the first ``layers`` (B,) int64 layers of each picture, filled.

        Its gradient goes straight to the latents of the places that are shown (straight-through estimator).
        """
        z = latents.float().flatten(2).transpose(1, 2)
        value, source = torch.empty_like(z), torch.empty(z.shape[:2], dtype=torch.int64, device=z.device)
        for count in layers.unique().tolist():
            mine = layers == count
            value[mine] = named.partial[count - 1][mine]
            source[mine] = self.layers.filled_from(self.layers.prefix(count)).to(z.device)
        through = z + (value - z).detach()
        through = through.gather(1, source[..., None].expand_as(through))
        return through.transpose(1, 2).unflatten(2, (self.layers.side, self.layers.side))

    def commitment(self, latents: Tensor, named: Named) -> Tensor:
        """() Σ_l ‖Z − sg(ẑ_≤l)‖², each a mean over the numbers of the places that hold a token by then."""
        z = latents.float().flatten(2).transpose(1, 2)
        total = z.new_zeros(())
        for number, partial in enumerate(named.partial, start=1):
            known = (self.layers.held(self.layers.prefix(number)) > 0).to(z.device)
            total = total + (z[:, known] - partial[:, known]).square().mean()
        return total
