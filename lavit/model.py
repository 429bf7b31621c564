"""UnifiedLM: a transformers causal LM with new rows for visual words and a port for visual features.

LaVIT, arXiv 2309.04669, section 3.2: text and image tokens are predicted by one head under one next-token loss.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PretrainedConfig

from lavit.config import OneOf
from lavit.data.documents import READ
from lavit.data.llms import llm_folder
from lavit.layers.attention import BACKENDS
from lavit.layers.bias_norm import add_bias_norm
from lavit.layers.chunked_loss import Divergence
from lavit.layers.lora import LoRAConfig, add_lora
from lavit.layers.packed_attention import attend_by_document, block_diagonal_mask, documents_by_length
from lavit.layers.port import Port
from lavit.layers.ranks import mean_over_ranks
from lavit.layers.rows import FactoredConfig, SplitEmbedding, SplitHead, Visual
from lavit.tokens import IGNORE, PackedBatch
from lavit.vocabulary import Vocabulary


@dataclass
class ScratchConfig:
    """A LLaMA from random weights; ``tied`` makes the text rows of its embedding those of its head."""

    hidden: int = 256
    layers: int = 4
    heads: int = 4
    mlp: int = 688
    max_position: int = 512
    tied: bool = False


@dataclass
class LLMConfig(OneOf):
    """A LLaMA from scratch, a Hugging Face folder with any LLaMA-architecture causal LM, or one of a package registry.

    ``asset`` is a name of :data:`lavit.data.llms.LLMS`; its text tokenizer comes with it.
    """

    scratch: ScratchConfig | None = None
    folder: str | None = None
    asset: str | None = None


@dataclass
class LLMShape:
    """What a folder's model looks like, for plans that are made without it: LLaMA-2-7B by default."""

    hidden: int = 4096
    layers: int = 32
    heads: int = 32
    key_value_heads: int = 32
    mlp: int = 11008
    max_position: int = 4096
    vocabulary: int = 32000
    tied: bool = False


@dataclass
class WordHeadConfig:
    """A head that names what is read of a picture in words of the text's vocabulary (arXiv 2403.07720).

    ``fit`` is the second loss at the places of a picture, beside the one of text: "head" draws the head to the language
    model's predictions, "model" these to the head, "vectors" is the squared error of the next vector, for comparison,
    and "nothing" none. ``weight`` is its share. ``pseudo`` feeds the mean of word vectors by the head's distribution in
    place of the vector that it names.
    """

    fit: str = "nothing"
    weight: float = 1.0
    pseudo: bool = False


@dataclass
class ModelConfig:
    """``shape`` is checked against the model in ``llm.folder``, if both are given.

    ``lora`` puts adapters into the language model's blocks, which stay otherwise. ``checkpoint_activations`` keeps only
    what enters each block for the backward pass, which computes the rest again (arXiv 1604.06174). ``port`` says what
    is read of a picture: "features" that the tokenizer merged, or "patches", which a merger of the port's own merges,
    or all patches "unmerged", which needs no tokenizer but its encoder, and understands pictures without drawing any.
    ``projector`` maps them to the language model's width, "linear" or "mlp". ``word_head`` names what is read in words.
    ``factored`` makes the rows of codes of their codebook and a projection. ``bias_norm`` gives the blocks, which stay
    otherwise, biases and gains to learn.
    ``attention`` of packed rows is "sdpa", or "xformers" on a GPU.
    ``z_loss`` weighs log²Z of the softmax's denominator Z in the loss (PaLM, arXiv 2204.02311, section 5).
    """

    llm: LLMConfig = field(default_factory=lambda: LLMConfig(scratch=ScratchConfig()))
    shape: LLMShape | None = None
    z_loss: float = 0.0
    lora: LoRAConfig | None = None
    checkpoint_activations: bool = False
    port: str = "features"
    projector: str = "linear"
    word_head: WordHeadConfig | None = None
    factored: FactoredConfig | None = None
    bias_norm: bool = False
    attention: str = "sdpa"


PORTS = ("features", "patches", "unmerged")


def check_reading(port: str, read: str, key: str) -> None:
    """Raise ValueError, with the dotted ``key`` of the section, for an unknown way to read pictures."""
    for name, value, known in (("port", port, PORTS), ("read", read, READ)):
        if value not in known:
            raise ValueError(f"{key}: {name} '{value}' is unknown; choose {', '.join(known)}")


Fit = Callable[["UnifiedLM", Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]


class LMOutput(NamedTuple):
    """loss () to minimise; text, image and audio (): mean negative log-likelihood of each modality's learned tokens.

    Where pictures are read in words, visual () is the mean divergence of :meth:`SplitHead.diverge`, or squared error of
    the next vector, over the places that are read, and entropy () that of the visual words, in nats.
    """

    loss: Tensor
    text: Tensor
    image: Tensor
    visual: Tensor | None = None
    entropy: Tensor | None = None
    audio: Tensor | None = None


def build_llm(config: ModelConfig, text_size: int, seed: int) -> nn.Module:
    """The transformers model; a folder's weights, or seeded random ones.

    Raises:
        ValueError: a missing folder, one whose vocabulary is smaller than the text tokenizer's, or another shape than
            the configuration's.
    """
    folder = llm_folder(config.llm.asset) if config.llm.asset else config.llm.folder
    if folder is not None:
        if not Path(folder).is_dir():
            raise ValueError(f"model.llm.folder {folder} does not exist; give a Hugging Face folder")
        llm = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        if llm.config.vocab_size < text_size:
            raise ValueError(f"{folder} has {llm.config.vocab_size} rows for a text tokenizer of {text_size}")
        if config.shape is not None:
            check_shape(llm.config, llama_of(config.shape), folder)
        return llm
    c = config.llm.scratch
    shape = LLMShape(c.hidden, c.layers, c.heads, c.heads, c.mlp, c.max_position, text_size, c.tied)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(llama_of(shape))


def llama_of(shape: LLMShape) -> LlamaConfig:
    """transformers' configuration of a LLaMA of this shape."""
    return LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.key_value_heads, intermediate_size=shape.mlp,
        max_position_embeddings=shape.max_position, tie_word_embeddings=shape.tied,
        initializer_range=shape.hidden**-0.5,
    )  # fmt: skip


def check_shape(found: PretrainedConfig, expected: LlamaConfig, folder: str) -> None:
    """Raise ValueError, naming what differs, unless a folder's model has the expected shape."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
             "vocab_size", "tie_word_embeddings")  # fmt: skip
    wrong = [
        f"{name} {getattr(found, name, None)} instead of {getattr(expected, name)}"
        for name in names
        if getattr(found, name, None) != getattr(expected, name)
    ]
    if wrong:
        raise ValueError(f"{folder} is not what pretrain.model.shape says: {', '.join(wrong)}")


class UnifiedLM(nn.Module):
    """Next-token prediction over text, visual words and codes of speech.

    The blocks are those of ``llm``, by default the one of the configuration; its embedding and head become the text
    part of the split ones. ``feature_width`` is D of what the port projects, ``merger`` what it merges patches with,
    ``encoder`` what it makes patches of pixels with.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: Vocabulary,
        feature_width: int,
        seed: int = 0,
        llm: nn.Module | None = None,
        merger: nn.Module | None = None,
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        llm = llm or build_llm(config, vocabulary.text_size, seed)
        if llm.config.vocab_size != vocabulary.text_size:
            vocabulary = replace(vocabulary, text_size=llm.config.vocab_size)
        self.vocabulary = vocabulary
        self.blocks = llm.model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            self.embedding = SplitEmbedding(llm.get_input_embeddings(), vocabulary, config.factored)
            self.words = config.word_head
            out = llm.get_output_embeddings()
            self.head = SplitHead(out, vocabulary, config.z_loss, self.words is not None, config.factored)
            width = llm.config.hidden_size
            self.port = Port(feature_width, width, merger, encoder, config.projector)
            self.next_vector = nn.Linear(width, width) if self.words and self.words.fit == "vectors" else None
        # The embedding lives in the split module alone; transformers is always given vectors.
        self.blocks.embed_tokens = None
        if config.attention not in BACKENDS:
            raise ValueError(f"model.attention '{config.attention}' is unknown; choose one of {', '.join(BACKENDS)}")
        self.attention = config.attention
        attend_by_document(self.blocks)
        if config.lora:
            add_lora(self.blocks, config.lora, seed + 2)
        if config.bias_norm:
            add_bias_norm(self.blocks)
        if config.checkpoint_activations:
            checkpoint_blocks(self.blocks)

    def start_from_codebooks(self, image: Tensor, audio: Tensor | None = None) -> None:
        """Let the factored rows of embedding and head begin as the tokenizers' codebooks, (K, d) each."""
        for rows in (self.embedding.new, self.head.new):
            rows.image.start_from(image)
            if audio is not None:
                rows.audio.start_from(audio)

    def forward(self, batch: PackedBatch) -> LMOutput:
        """The mean next-token loss over all learned tokens of all ranks, and of all of a step's micro-batches."""
        labels = batch.labels.flatten()
        learned = labels != IGNORE
        # Gradients are averaged over ranks; dividing by the mean count makes the loss a mean over all ranks' tokens.
        total = mean_over_ranks(learned.sum()) if batch.total is None else batch.total
        vectors = self.port(batch.slots.get("image"))
        states = self.hidden(batch, vectors).flatten(0, 1)
        loss, nll = self.head(states, labels, learned / total.clamp_min(1))
        masks = self.vocabulary.by_modality(labels)
        parts = {name: (nll * mask).sum() / mask.sum().clamp_min(1) for name, mask in masks.items()}
        if self.words is None or self.words.fit == "nothing":
            return LMOutput(loss, **parts)
        count = batch.places
        if count is None:
            count = mean_over_ranks(states.new_tensor(float(len(vectors))))
        weights = torch.ones(len(vectors), device=states.device) / count.clamp_min(1)
        before = states[places_of(batch) - 1]  # [IMG] begins a picture, so that something stands before each place
        visual, entropy = FITS[self.words.fit](self, vectors, before, weights)
        return LMOutput(loss + self.words.weight * visual, **parts, visual=visual.detach(), entropy=entropy)

    def flops(self, batch: PackedBatch) -> float:
        """Floating-point operations of a batch, forward and backward, as far as the model asks for them.

        Two for every weight of a matrix and token, of the head's for every learned token, and those of attention within
        documents; neither padding nor a frozen encoder that runs beside the model counts. Twice as many in the backward
        pass, less those of frozen weights' gradients.
        """
        real = batch.document >= 0
        blocks, head = (matrix_sizes(part) for part in (self.blocks, self.head))
        if self.vocabulary.gaps > 1:  # each gap's states meet the rows of all codes
            head += (self.vocabulary.gaps - 1) * operations_of(self.head.new)
        config = self.blocks.config
        tokens, learned = float(real.sum()), float((batch.labels != IGNORE).sum())
        pairs = float((batch.position + 1)[real].sum())
        attended = pairs * config.num_attention_heads * config.head_dim * config.num_hidden_layers
        return tokens * blocks + learned * head + 12 * attended

    def token_nll(self, batch: PackedBatch) -> Tensor:
        """(B*T,) float32 negative log-likelihood of every label, zero where there is none; without gradient."""
        return self.head(self.hidden(batch).flatten(0, 1), batch.labels.flatten()).nll

    def visual_words(self, batch: PackedBatch, fit: str = "model") -> Divergence:
        """How far predictions and visual words are from each other at all S places where pictures are read.

        Raises:
            ValueError: the model has no head for words.
        """
        if self.words is None:
            raise ValueError("this model names nothing that it reads; train one with pretrain.model.word_head")
        vectors = self.port(batch.slots.get("image"))
        before = self.hidden(batch, vectors).flatten(0, 1)[places_of(batch) - 1]
        return self.head(Visual(vectors, before, before.new_ones(len(vectors), dtype=torch.float32), fit))

    def hidden(self, batch: PackedBatch, vectors: Tensor | None = None) -> Tensor:
        """(B, T, D) last hidden states; documents of one row do not see each other; see :meth:`embed`."""
        x = self.embed(batch.ids, batch, vectors)
        blocked = self.attention == "xformers"  # whose kernels pad nothing
        documents = documents_by_length(batch.document, batch.position, padded=not blocked)
        out = self.blocks(
            inputs_embeds=x,
            attention_mask=x.new_zeros(1, 1, 1, 1),  # has four dimensions, so that transformers makes none of its own
            position_ids=batch.position,
            use_cache=False,
            documents=documents,
            block_diagonal=block_diagonal_mask(documents) if blocked else None,
        )
        return out.last_hidden_state

    def embed(self, ids: Tensor, batch: PackedBatch, vectors: Tensor | None = None) -> Tensor:
        """(B, T, D) input vectors: rows of ids, replaced by projected features where they are fed.

        Args:
            ids: (B, T) int64.
            batch: what is fed where.
            vectors: (S, D) float, what the port makes of it, if that is known.

        Raises:
            ValueError: more or fewer vectors than places.
        """
        x, index = self.embedding(ids), places_of(batch)
        fed = self.port(batch.slots.get("image")) if vectors is None else vectors
        if self.words and self.words.pseudo:
            fed = self.embedding(self.head(Visual(fed)))
        if len(index) != len(fed):
            raise ValueError(f"{len(index)} places are fed with {len(fed)} feature vectors")
        return x.flatten(0, 1).index_copy(0, index, fed.to(x.dtype)).unflatten(0, x.shape[:2])


def fit_divergence(fit: str) -> Fit:
    """The loss of :meth:`SplitHead.diverge`."""

    def loss(model: UnifiedLM, vectors: Tensor, before: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        found = model.head(Visual(vectors, before, weights, fit))
        return found.loss, (weights * (found.target_entropy if fit == "model" else found.entropy)).sum()

    return loss


def fit_vectors(model: UnifiedLM, vectors: Tensor, before: Tensor, weights: Tensor) -> tuple[Tensor, None]:
    """The squared error of the vectors as a linear map of what stands before each has them."""
    error = (model.next_vector(before).float() - vectors.detach().float()).square().mean(-1)
    return (weights * error).sum(), None


# By ``word_head.fit`` the second loss: (model, vectors (S, D), states before (S, D), weights (S,)) → loss (), entropy.
FITS: dict[str, Fit] = {"head": fit_divergence("head"), "model": fit_divergence("model"), "vectors": fit_vectors}


def places_of(batch: PackedBatch) -> Tensor:
    """(S,) int64 flat places where vectors are fed."""
    slots = batch.slots.get("image")
    return batch.ids.new_zeros(0) if slots is None else slots.index


def checkpoint_blocks(blocks: nn.Module) -> None:
    """Let transformers' blocks keep only what enters them for the backward pass."""
    # What calls this in transformers also looks for the embedding, which stands elsewhere.
    blocks._set_gradient_checkpointing(gradient_checkpointing_func=functools.partial(checkpoint, use_reentrant=False))


def matrix_sizes(module: nn.Module) -> int:
    """Operations a token costs in the matrices of ``module``; see :func:`operations_of`."""
    return sum(map(operations_of, module.parameters()))


def operations_of(weight: nn.Parameter) -> int:
    """Operations a token costs in a matrix: 2 a number forward, 2 back, 2 more for a gradient; none in a vector."""
    shape = getattr(weight, "ds_shape", weight.shape)  # ZeRO-3 has it elsewhere
    return math.prod(shape) * (6 if weight.requires_grad else 4) if len(shape) > 1 else 0
