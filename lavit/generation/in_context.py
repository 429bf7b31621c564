"""Understanding in context: a frozen language model reads examples and says what a picture is that it reads as words.

A picture is words of the model's own vocabulary, as ids that no text tokenizer ever sees again, since a string of them
could be split otherwise. The protocol is the few-shot one of Frozen (arXiv 2106.13884, section 4.3), the form of the
prompt that of SPAE (arXiv 2306.17842, section 4): ``### Input: words Output: name``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lavit.data.documents import Document
from lavit.data.packing import document_length
from lavit.generation.cache import Cache, go_on
from lavit.model import ModelConfig, UnifiedLM
from lavit.tokens import Learn, Span
from lavit.vocabulary import Vocabulary

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def frozen_llm(config: ModelConfig, text_size: int, seed: int = 0, precision: str = "fp32") -> UnifiedLM:
    """The configuration's language model as it is, without visual words of its own, adapters or gradients.

    It is a :class:`UnifiedLM` so that prompts, cache and sampling are everybody's. ``precision`` is that of its blocks;
    the head is in float32, since likelihoods in bfloat16 would tie.

    Raises:
        ValueError: an unknown precision, or see :func:`lavit.model.build_llm`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"in_context.precision '{precision}' is unknown; choose {', '.join(PRECISIONS)}")
    model = UnifiedLM(ModelConfig(llm=config.llm, shape=config.shape), Vocabulary(text_size, 0), 1, seed)
    model.head.text = nn.Parameter(model.head.text.detach().clone())  # no longer the embedding's own tensor
    model.blocks.to(PRECISIONS[precision])
    model.embedding.to(PRECISIONS[precision])
    return model.eval().requires_grad_(False)


def check_word_ids(ids: Tensor, text_size: int) -> None:
    """Raise ValueError unless ids (K,) int64 are words of a text vocabulary, each once."""
    if ids.dim() != 1 or not len(ids):
        raise ValueError(
            "the word list holds no words of the language model's vocabulary, so that it cannot read pictures; make "
            "the words of a pyramid first"
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= text_size:
        raise ValueError(
            f"the word list has ids from {low} to {high} and the language model's text ids end at {text_size - 1}; "
            "make the words with the text tokenizer of pretrain.text"
        )
    if len(ids.unique()) != len(ids):
        raise ValueError(f"the word list names {len(ids) - len(ids.unique())} ids twice; each word must stand once")


class Contexts:
    """Writes prompts: texts through the text tokenizer, words of pictures as the ids that they are."""

    def __init__(self, text: PreTrainedTokenizerBase):
        self.text = text
        self.stop = self._ids("\n")[-1]  # the end of an answer

    def begin(self, induction: str = "") -> Document:
        """``<s>`` and, where there is one, a sentence that says what is to be done."""
        first = Span("text", torch.tensor([self.text.bos_token_id]), learn=Learn.NONE)
        return [first, self._span(f"{induction}\n")] if induction else [first]

    def ask(self, *given: str | Tensor) -> Document:
        """``### Input: given Output:``; texts, and ids (n,) int64 of words."""
        parts = [part if isinstance(part, Tensor) else self._ids(part) for part in given]
        spans = [Span("image" if isinstance(x, Tensor) else "text", torch.as_tensor(x)) for x in parts]
        asked = [self._span("###\nInput:"), *spans, self._span("\nOutput:")]
        return [span._replace(learn=Learn.NONE) for span in asked]

    def answer(self, answer: str | Tensor) -> Tensor:
        """(n,) int64 a text, or words (n - 1,) int64, and the end of the line, as both follow ``Output:``."""
        ids = answer.tolist() if isinstance(answer, Tensor) else self._ids(f" {answer}")
        return torch.tensor([*ids, self.stop])

    def example(self, given: tuple[str | Tensor, ...], answer: str | Tensor) -> Document:
        """``### Input: given Output: answer``, a line each."""
        modality = "image" if isinstance(answer, Tensor) else "text"
        return [*self.ask(*given), Span(modality, self.answer(answer), learn=Learn.NONE)]

    def said(self, begin: str) -> Span:
        """The beginning of an answer that is to be gone on with."""
        return self._span(f" {begin}")

    def read(self, ids: Tensor) -> str:
        """What was written up to the end of the line, without blanks around it."""
        return self.text.decode(ids[ids != self.stop].tolist()).strip()

    def _ids(self, text: str) -> list[int]:
        return self.text(text, add_special_tokens=False)["input_ids"]

    def _span(self, text: str) -> Span:
        return Span("text", torch.tensor(self._ids(text), dtype=torch.int64), learn=Learn.NONE)


def induction_of(names: list[str]) -> str:
    """The sentence that says what the task is; the order of the names is that of the list."""
    return f"For each of the following input output pairs, output is one of: {', '.join(names)}."


class Asked(NamedTuple):
    """A context and what is asked after it.

    Attributes:
        context: the examples.
        questions: Q of them, each answered on its own.
        answers: N of (n,) int64 ids, one of which is right.
        free: questions that say nothing, by which likelihoods are calibrated.
    """

    context: Document
    questions: list[Document]
    answers: list[Tensor]
    free: list[Document]


class Answered(NamedTuple):
    """What a model makes of the questions of one context.

    Attributes:
        likelihood: (Q, N) float32 log-likelihood of each answer, the mean over its tokens.
        prior: (N,) float32 the same after questions that say nothing, their mean (arXiv 2102.09690).
        written: Q of (n,) int64, greedily.
    """

    likelihood: Tensor
    prior: Tensor
    written: list[Tensor]


@torch.no_grad()
def answer_in_context(model: UnifiedLM, asked: list[Asked], stop: int, most: int) -> list[Answered]:
    """How likely each answer is, and what the model writes by itself: up to ``most`` tokens, or to the id ``stop``.

    Every context is read once, for all of its questions; these must have one length.

    Raises:
        ValueError: a prompt with its answer is longer than the model reads, or questions of several lengths.
    """
    check_room(model, asked, most)
    rows = [(number, question, q < len(one.questions))
            for number, one in enumerate(asked) for q, question in enumerate([*one.questions, *one.free])]  # fmt: skip
    questions = [torch.cat([span.ids for span in question]) for _, question, _ in rows]
    if len({len(ids) for ids in questions}) != 1:
        raise ValueError("the questions of a batch have several lengths; ask those of one number of words together")
    room = len(questions[0]) + max(most, *(len(answer) for one in asked for answer in one.answers))
    cache = Cache(model, [one.context for one in asked], room)
    cache.select([number for number, _, _ in rows])
    cache.feed(torch.stack(questions).to(cache.device))
    cache.keep()
    slots = [[asked[number].answers[slot] for number, _, _ in rows] for slot in range(len(asked[0].answers))]
    likelihood = torch.stack([mean_likelihood(model, cache, answers) for answers in slots], dim=1).cpu()
    real = [row for row, (_, _, counts) in enumerate(rows) if counts]
    cache.select(real)
    texts = iter(go_on(cache, len(real), _Line(model, stop, most)))
    out, start = [], 0
    for one in asked:
        asks, says = len(one.questions), len(one.free)
        its = likelihood[start : start + asks + says]
        written = [torch.tensor(next(texts), device="cpu") for _ in range(asks)]
        out.append(Answered(its[:asks], its[asks:].mean(0) if says else torch.zeros(its.shape[1]), written))
        start += asks + says
    return out


def mean_likelihood(model: UnifiedLM, cache: Cache, answers: list[Tensor]) -> Tensor:
    """(B,) float32 log-likelihood a token of an answer (n,) int64 to each row; the cache is left as it was."""
    lengths = torch.tensor([len(ids) for ids in answers], device=cache.device)
    ids = nn.utils.rnn.pad_sequence(answers, batch_first=True).to(cache.device)
    hidden = cache.last[:, None]
    if ids.shape[1] > 1:
        hidden = torch.cat([hidden, cache.feed(ids[:, :-1])], dim=1)
    cache.rewind()
    logs = text_logits(model, hidden).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    real = torch.arange(ids.shape[1], device=cache.device) < lengths[:, None]
    return (logs * real).sum(1) / lengths


def text_logits(model: UnifiedLM, hidden: Tensor) -> Tensor:
    """(..., D) states to (..., text) float32 logits of the model's own vocabulary alone, as it was trained."""
    return F.linear(hidden.float(), model.head.text.float())


def check_room(model: UnifiedLM, asked: list[Asked], most: int) -> None:
    """Raise ValueError if a context with a question and its answer is longer than the model reads."""
    limit = model.blocks.config.max_position_embeddings
    for one in asked:
        room = max(most, *map(len, one.answers)) + max(map(document_length, one.questions))
        if (length := document_length(one.context) + room) > limit:
            raise ValueError(
                f"a prompt and its answer have {length} tokens and the language model reads {limit}; lower ways, "
                "shots, repeats or words in evaluation.in_context"
            )


class _Line:
    """Greedy rows of a line of text."""

    def __init__(self, model: UnifiedLM, stop: int, most: int):
        self.model, self.stop, self.most = model, stop, most

    def choose(self, hidden: Tensor, rows: list[int], step: int) -> Tensor:
        return text_logits(self.model, hidden).argmax(-1)

    def take(self, row: int, number: int, step: int) -> bool:
        return number == self.stop or step + 1 == self.most


def directions(text: Tensor) -> Tensor:
    """(V, D) float32 unit vectors of a language model's embedding (V, D), less what all of them share.

    Without their mean, which is a large part of every one, words are told apart better.
    """
    return F.normalize(text.float() - text.float().mean(0), dim=-1)


def words_near(table: Tensor, ids: Tensor, name: Tensor, count: int) -> Tensor:
    """(count,) int64 the places in the word list whose vectors are nearest to the mean vector of a name's pieces.

    Args:
        table: (V, D) float32, what :func:`directions` gives.
        ids: (K,) int64 the word list.
        name: (n,) int64 ids of the name.
        count: how many, or as many as there are.
    """
    return (table[ids] @ table[name].mean(0)).topk(min(count, len(ids))).indices
