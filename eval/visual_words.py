"""The words that a model names what it reads of held-out pictures, beside shuffled captions and constant distributions.

Each patch has a distribution over the text's vocabulary, its visual words (arXiv 2403.07720). Only whole words are
looked at where words are compared: pieces that begin one and have three letters or more.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lavit.data.documents import DocumentMaker
from lavit.data.packing import pack
from lavit.experiment import Experiment, names_patches, run_stage
from lavit.layers.rows import Visual
from lavit.metrics.captions import category_accuracy, category_of
from lavit.metrics.retrieval import derangements
from lavit.model import UnifiedLM
from lavit.runs import Progress, write_json
from lavit.tokenizers.word_codebook import SPACES
from lavit.tokens import PackedBatch
from lavit.weights import load_weights
from lavit.workspace import Workspace

AT_ONCE = 4  # pictures, whose patches' distributions over a large vocabulary take a gigabyte and more
SHOWN = 2  # telling words of a patch
RARE = 1e-5  # what is rarer tells nothing
LETTERS = re.compile(r"[a-z]{3,}")


class WholeWords:
    """The ids (W,) of pieces that are whole words, and which word each is; one word may have several."""

    def __init__(self, text: PreTrainedTokenizerBase):
        pieces = text.convert_ids_to_tokens(range(len(text)))
        # A word within a text begins with a space, which is another letter in a piece; at its beginning it has none.
        first = {piece[1:].lower() for piece in pieces if piece.startswith(SPACES)}
        plain = [piece.removeprefix(SPACES[0]).removeprefix(SPACES[1]).lower() for piece in pieces]
        kept = [(i, word) for i, word in enumerate(plain) if LETTERS.fullmatch(word)]
        kept = [(i, word) for i, word in kept if word in first]
        if not kept:
            raise ValueError("no piece of the text tokenizer is a whole word: there are no visual words to show")
        self.words = sorted({word for _, word in kept})
        place = {word: number for number, word in enumerate(self.words)}
        self.ids, self.of = torch.tensor([i for i, _ in kept]), torch.tensor([place[word] for _, word in kept])

    def __call__(self, words: Tensor) -> Tensor:
        """(..., V) distributions over pieces to (..., W) probabilities of whole words, which sum to less than one."""
        out = words.new_zeros(*words.shape[:-1], len(self.words))
        return out.index_add(-1, self.of, words[..., self.ids])


def main(experiment: Experiment, run: Path) -> None:
    work, cfg = Workspace(experiment, run), experiment.evaluation
    if not names_patches(experiment.pretrain.last().model):
        raise ValueError(
            f"{run} names no patches: pretrain.model has no word_head with port: unmerged; "
            "configs/visual_words/demo.yaml has both"
        )
    folder = work.folder("eval/visual_words")
    progress = Progress(folder, 4, "passes")
    pictures, model = work.pictures("captions", cfg.split), work.model()
    numbers = pictures.distinct(cfg.captions)
    batches = pictures_alone(work, model, cfg.split, numbers)
    known = work.pictures("captions", "train").distinct(cfg.captions)
    usual = mean_words(model, pictures_alone(work, model, "train", known))
    progress.update(1)
    whole = WholeWords(work.text_tokenizer())
    named = looked_over(visual_words(model, batches), usual, whole)
    progress.update(2)
    figures = {"divergence": divergence(model, batches), **named.spread}
    phases = list(experiment.pretrain.parts())
    if len(phases) > 1:
        before = load_weights(work.new_model(), run / "pretrain" / phases[-2] / "model.safetensors")
        before.words = experiment.pretrain.parts()[phases[-2]].model.word_head
        figures |= {"divergence_before": divergence(before, batches), "before": phases[-2]}
    progress.update(3)
    truth = [pictures.captions[n] for n in numbers]
    learned = work.pictures("captions", "train").captions
    figures |= categories(named.said, whole.words, truth, learned, experiment)
    figures |= hits(named, whole(usual), whole.words, truth, learned, experiment)
    samples = [
        {"number": n, "truth": t, "words": [[whole.words[i] for i in patch] for patch in patches]}
        for n, t, patches in zip(numbers, truth, named.shown.tolist(), strict=True)
    ]
    about = {"n": len(numbers), "split": cfg.split, "grid": experiment.tokenizer.model.encoder.grid}
    write_json(folder / "figures.json", figures | about | {"samples": samples})
    progress.update(4)


def pictures_alone(work: Workspace, model: UnifiedLM, split: str, numbers: list[int]) -> list[PackedBatch]:
    """Some captioned pictures, each as a document that goes on with text."""
    codes = work.codes("captions", split)
    maker = DocumentMaker(model.vocabulary, work.text_tokenizer(), work.experiment.pretrain.row)
    documents = [maker.prompt([codes.picture(number)], "text") for number in numbers]
    return [pack(documents[start : start + AT_ONCE]) for start in range(0, len(documents), AT_ONCE)]


@torch.no_grad()
def visual_words(model: UnifiedLM, batches: list[PackedBatch]) -> Iterator[Tensor]:
    """(n, P, V) float32 distributions over text of every patch of a batch's pictures, batch by batch.

    The language model itself reads nothing for them.
    """
    for batch in batches:
        yield model.head(Visual(model.port(batch.slots["image"]))).unflatten(0, (len(batch.ids), -1))


def mean_words(model: UnifiedLM, batches: list[PackedBatch]) -> Tensor:
    """(V,) float32 the mean over all patches: what pictures' words usually are."""
    sums = [(words.double().sum((0, 1)), words.shape[0] * words.shape[1]) for words in visual_words(model, batches)]
    return (sum(total for total, _ in sums) / sum(count for _, count in sums)).float()


class Named(NamedTuple):
    """What pictures are named.

    Attributes:
        said: (N, W) float32 the mean over a picture's patches of the probabilities of whole words.
        shown: (N, P, 1 + SHOWN) int64 of each patch the likeliest whole word and those that tell most.
        spread: how wide the distributions are, in nats, and how far the usual one is from them. Where all patches had
            the same words, the entropy of their mean would be no larger than theirs.
    """

    said: Tensor
    shown: Tensor
    spread: dict[str, float]


def looked_over(named: Iterable[Tensor], usual: Tensor, whole: Callable[[Tensor], Tensor]) -> Named:
    """What pictures are named, from distributions (n, P, V) batch by batch; ``usual`` (V,) is what they usually are."""
    often, said, shown, patches = whole(usual), [], [], 0
    entropy, far, total = 0.0, 0.0, torch.zeros_like(usual, dtype=torch.float64)
    for words in named:
        its = whole(words)
        said.append(its.mean(1))
        shown.append(torch.cat([its.argmax(-1, keepdim=True), telling(its, often, SHOWN)], dim=-1))
        own = torch.special.entr(words).sum(-1)
        entropy += float(own.sum())
        far -= float((own + torch.xlogy(words, usual).sum(-1)).sum())
        total += words.double().sum((0, 1))
        patches += own.numel()
    spread = {
        "entropy": entropy / patches,
        "entropy_mean": float(torch.special.entr(total / patches).sum()),
        "divergence_constant": far / patches,
    }
    return Named(torch.cat(said), torch.cat(shown), spread)


@torch.no_grad()
def divergence(model: UnifiedLM, batches: list[PackedBatch]) -> float:
    """How far the model's predictions are from its visual words, in nats, the mean over all patches."""
    return float(torch.cat([model.visual_words(batch).kl for batch in batches]).mean())


def categories(
    said: Tensor, known: list[str], truth: list[str], learned: list[str], experiment: Experiment
) -> dict[str, float]:
    """How often the likeliest of all class words in a picture (N, W) is the one of its caption, in which it is a word.

    A class that is no whole word (``category_known`` is the share of captions where it is one) is not asked for.
    """
    classes = sorted({category_of(caption) for caption in learned} & set(known))
    if not classes:
        reason = "no caption has a class that is a whole word"
        return {"category_accuracy": None, "reasons": {"category_accuracy": reason}}
    asked = [i for i, caption in enumerate(truth) if category_of(caption) in classes]
    best = said[asked][:, [known.index(word) for word in classes]].argmax(1).tolist()
    guess, right = [f"{classes[i]}: " for i in best], [truth[i] for i in asked]
    orders = derangements(len(right), experiment.evaluation.derangements, experiment.seed).tolist()
    majority = max(sorted(classes), key=Counter(map(category_of, learned)).__getitem__)
    return {
        "category_accuracy": category_accuracy(guess, right),
        "category_shuffled": sum(category_accuracy([guess[i] for i in order], right) for order in orders) / len(orders),
        "category_majority": category_accuracy([f"{majority}: "] * len(right), right),
        "category_chance": 1 / len(classes),
        "category_known": len(asked) / len(truth),
    }


def hits(
    named: Named, usual: Tensor, known: list[str], truth: list[str], learned: list[str], experiment: Experiment
) -> dict[str, float]:
    """How often words are in the caption: one of five of a picture, and of single patches the likeliest.

    The five are those that a picture has most beyond the ``usual`` (W,). The constants are the five words, and the one,
    that most of the captions learned have.
    """
    counts = Counter(word for caption in learned for word in set(LETTERS.findall(caption.lower())))
    common = sorted(counts, key=lambda word: (-counts[word], word))[:5]
    five = [[{known[i] for i in row}] for row in telling(named.said, usual, 5).tolist()]
    likeliest = [[{known[i]} for i in patches] for patches in named.shown[..., 0].tolist()]
    captions = [set(LETTERS.findall(caption.lower())) for caption in truth]
    orders = derangements(len(truth), experiment.evaluation.derangements, experiment.seed).tolist()

    def rate(said: list[list[set[str]]], order: list[int]) -> float:
        found = [bool(words & captions[i]) for its, i in zip(said, order, strict=True) for words in its]
        return sum(found) / len(found)

    figures, own = {}, list(range(len(truth)))
    for name, said, constant in (("hit5", five, common), ("patch_hit", likeliest, common[:1])):
        figures[name] = rate(said, own)
        figures[f"{name}_shuffled"] = sum(rate(said, order) for order in orders) / len(orders)
        figures[f"{name}_constant"] = rate([[set(constant)]] * len(truth), own)
    return figures


def telling(said: Tensor, usual: Tensor, count: int) -> Tensor:
    """(..., count) int64 the words whose probability (..., W) is most times the ``usual`` one (W,)."""
    return (said / usual.clamp_min(RARE)).topk(count).indices


if __name__ == "__main__":
    run_stage(main, "eval/visual_words")
