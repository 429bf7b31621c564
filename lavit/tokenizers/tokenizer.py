"""LaVIT's tokenizer: encoder, selector and merger, quantizer, feature decoder, and the loss that trains them.

Source: arXiv 2309.04669, section 3.1 and eq. 4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lavit.tokenizers.decoder import FeatureDecoder, FeatureDecoderConfig, cosine
from lavit.tokenizers.encoders import Encoder, EncoderConfig
from lavit.tokenizers.merger import Merger, MergerConfig
from lavit.tokenizers.places import Places, PlacesConfig
from lavit.tokenizers.quantizer import Quantizer, QuantizerConfig
from lavit.tokenizers.selector import (
    FREE,
    Budget,
    GainSelector,
    LearnedConfig,
    Selection,
    SelectionConfig,
    Selector,
    even_positions,
    within,
)
from lavit.tokens import Tokens
from lavit.vocabulary import Vocabulary


@dataclass
class TokenizerConfig:
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    selection: SelectionConfig = field(default_factory=lambda: SelectionConfig(learned=LearnedConfig()))
    merger: MergerConfig = field(default_factory=MergerConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    decoder: FeatureDecoderConfig = field(default_factory=FeatureDecoderConfig)
    places: PlacesConfig | None = None
    attention: str = "sdpa"

    def vocabulary(self, text_size: int, port: str = "features", sounds: int = 0) -> Vocabulary:
        """The ids of a language model that reads these visual words, or unmerged patches and no words; and speech."""
        if port == "unmerged":
            return Vocabulary(text_size, 0, sounds=sounds)
        return Vocabulary(text_size, self.quantizer.codes, self.known_places().gaps if self.places else 1, sounds)

    def fed_width(self, port: str) -> int:
        """D of what a port projects."""
        return self.encoder.width if port == "unmerged" else self.merger.width

    def known_places(self) -> Places | None:
        """What the words say about places, None if they say nothing (as in the paper).

        Raises:
            ValueError: a lattice that does not fit the grid.
        """
        return Places(self.encoder.grid, self.quantizer.codes, self.places) if self.places else None


class TokenizerBatch(NamedTuple):
    """inputs: (B, P, D) standardized patch features, or (B, 3, S, S) images in [0, 1] that are encoded on the way;
    noise: (B, P, 2) Gumbel noise, or None for a fixed decision."""

    inputs: Tensor
    noise: Tensor | None


class TokenizerLoss(NamedTuple):
    """loss () and what it comes from: cosine of all channels alike, rate (kept share), commitment, entropy, tokens an
    image; only the loss carries gradients."""

    loss: Tensor
    cosine: Tensor
    rate: Tensor
    commitment: Tensor
    entropy: Tensor
    tokens: Tensor


class ImageTokenizer(nn.Module):
    """What all tokenizers of images do with their frozen ``encoder``."""

    encoder: Encoder

    def patch_features(self, inputs: Tensor) -> Tensor:
        """(B, P, D) standardized features as they are, or those of images (B, 3, S, S) in [0, 1]."""
        return self.encoder(inputs) if inputs.dim() == 4 else inputs

    @torch.no_grad()
    def encode(
        self, images: Tensor, *, tokens: int | None = None, ratio: float | None = None, at_most: int | None = None
    ) -> Tokens:
        """Tokens of images (B, 3, S, S) float32 in [0, 1]; see ``encode_features``."""
        return self.encode_features(self.encoder(images), tokens=tokens, ratio=ratio, at_most=at_most)


class Tokenizer(ImageTokenizer):
    """Images or their features to visual words and back to features.

    ``quantize`` is off in the first phase of training: the decoder then reads the merger's projected features. Without
    ``pretrained`` the encoder's weights are left to a checkpoint.
    """

    def __init__(self, config: TokenizerConfig, seed: int = 0, pretrained: bool = True):
        super().__init__()
        self.config = config
        width, patches = config.encoder.width, config.encoder.patches
        kind, choice = config.selection.chosen()
        self.places = config.known_places()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.selector = self._new_selector(kind, choice)
            self.merger = Merger(width, patches, config.merger, config.attention)
            self.quantizer = Quantizer(config.merger.width, config.quantizer, seed)
            size = (config.quantizer.width, config.encoder.grid, width)
            self.decoder = FeatureDecoder(*size, config.decoder, config.attention, bool(config.places))
        if kind == "even":
            even_positions(patches, choice.tokens)  # an impossible number is said now
        self.encoder = Encoder(config.encoder, pretrained)
        weights = torch.cat([torch.full((layer.width,), layer.weight) for layer in config.encoder.layers])
        self.register_buffer("channel_weight", weights, persistent=False)
        self.quantize = True

    def _new_selector(self, kind: str, choice) -> Selector | None:
        encoder = self.config.encoder
        if kind == "gain":
            return GainSelector(encoder.width, choice, encoder.patches, self.places.anchors if self.places else None)
        if kind == "learned" and self.places:
            raise ValueError("tokenizer.places needs selection 'gain': 'learned' keeps no anchors")
        return Selector(encoder.width, choice) if kind == "learned" else None

    def select(self, features: Tensor, noise: Tensor | None = None, budget: Budget = FREE) -> Selection:
        """What to keep of (B, P, D) features; without noise the answer depends on the image alone."""
        if self.selector is not None:
            return within(self.selector.select(features, noise), budget)
        patches = self.config.encoder.patches
        count = self.config.selection.even.tokens
        limit = budget.limit(patches) or count
        keep = even_positions(patches, min(limit, count) if budget.at_most else limit).to(features.device)
        keep = keep.expand(len(features), -1)
        return Selection.of(keep)

    @torch.no_grad()
    def encode_features(
        self, features: Tensor, *, tokens: int | None = None, ratio: float | None = None, at_most: int | None = None
    ) -> Tokens:
        """Tokens of (B, P, D) standardized encoder features: codes, merged features and positions, in raster order.

        Nothing is drawn at random: the selector decides by the probability that it gives a patch. ``tokens``,
        ``ratio`` or ``at_most`` set the length instead (:class:`~lavit.tokenizers.selector.Budget`), and the most
        important patches come first.

        Raises:
            ValueError: more than one budget, or one that no image can meet.
        """
        return self.tokens_of(features, self.select(features, budget=Budget(tokens, ratio, at_most)))

    @torch.no_grad()
    def tokens_of(self, features: Tensor, selection: Selection) -> Tokens:
        """The tokens of (B, P, D) features when just the patches of ``selection`` are kept."""
        merged, keep, position = self.merger(features, selection)
        codes = self.quantizer.nearest(self.quantizer.project(merged.float()))
        return Tokens(codes * keep, keep, merged, position)

    def words(self, tokens: Tokens) -> Tensor:
        """(B, N) int64 visual words: the tokens' codes, with their places if words say them.

        Raises:
            ValueError: fewer tokens than the words' gaps can bridge.
        """
        return self.places.write(tokens.codes, tokens.position, tokens.keep) if self.places else tokens.codes

    def sayable(self, tokens: Tokens) -> Tensor:
        """(B,) bool: whether words can say an image's tokens, as they always can where they say no places."""
        if self.places is None:
            return tokens.keep.new_ones(len(tokens.keep))
        return self.places.bridged(tokens.position, tokens.keep)

    @torch.no_grad()
    def lookup(self, words: Tensor, keep: Tensor) -> Tokens:
        """Tokens of visual words (B, N) int64, extracted or generated, with keep (B, N) bool; they have no features."""
        codes, position = self.places.read(words, keep) if self.places else (words, None)
        return Tokens(codes, keep, None, position)

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Tensor:
        """Reconstructed standardized features (B, P, D) float32 of the tokens' codes."""
        words = self.quantizer.lookup(tokens.codes) * tokens.keep[..., None]
        return self.decoder(words, tokens.keep, tokens.position)

    def forward(self, batch: TokenizerBatch) -> TokenizerLoss:
        """The loss of eq. 4: mean (1 − cos) over all patches + λ (ρ − kept share)², + β commitment + γ entropy.

        The layers' weights multiply the channels inside the cosine. Where the gain selects, its regression takes the
        place of the rate loss.
        """
        features = self.patch_features(batch.inputs)
        selection = self.select(features, batch.noise)
        merged, keep, position = self.merger(features, selection)
        if self.quantize:
            words, _, commitment, entropy = self.quantizer(merged, keep)
        else:
            words = self.quantizer.project(merged) * keep[..., None]
            commitment = entropy = words.new_zeros(())
        rebuilt = self.decoder(words, keep, position)
        weight, cfg = self.channel_weight, self.config.quantizer
        error = 1 - cosine(features * weight, rebuilt * weight)
        loss = error.mean() + cfg.commitment * commitment + cfg.entropy * entropy
        if self.config.selection.gain is not None:
            loss = loss + self.config.selection.gain.weight * self.selector.loss(selection, error)
        learned = self.config.selection.learned
        if learned is not None:
            # Per image, as in DynamicViT: a mean over the batch lets some images keep everything and others one patch.
            per_image = selection.gate.float().mean(1)
            loss = loss + learned.rate_weight * (learned.rho - per_image).square().mean()
        rate, tokens = selection.gate.float().mean(), keep.float().sum(1).mean()
        figures = (cosine(features, rebuilt.detach()).mean(), rate, commitment, entropy, tokens)
        return TokenizerLoss(loss, *(figure.detach() for figure in figures))
