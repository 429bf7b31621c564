"""Held-out pictures as words of a language model: what each prefix of the layers keeps, and what the words say.

``eval/pyramid/figures.json`` and, for the report, ``images.npy`` with the pictures that are shown, rebuilt from every
prefix of the layers.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.caption import nearest_pictures
from eval.reconstruct import pooled, similarity, to_bytes
from lavit.data.order import evenly
from lavit.data.sentences import sentence_vectors
from lavit.experiment import Experiment, run_stage
from lavit.metrics.captions import category_of, label_of
from lavit.metrics.codes import code_usage
from lavit.metrics.images import mean_psnr
from lavit.metrics.retrieval import chance_recall, derangements, recall_at
from lavit.runs import Progress, write_json
from lavit.tokenizers.encoders import Encoder
from lavit.tokenizers.features import write_array
from lavit.tokenizers.pyramid import RULES, PyramidQuantizer
from lavit.tokenizers.pyramid_autoencoder import PyramidTokenizer
from lavit.tokenizers.relevance import centred, relevance
from lavit.workspace import Workspace

AT_ONCE = 32  # pictures
MEAN_OF = 512  # training pictures whose mean is the dullest baseline
SHOWN = 12
TOLD = 2  # upper layers whose words are asked what they say of the picture
DRAWS = 20  # of random words


@torch.no_grad()
def main(experiment: Experiment, run: Path) -> None:
    work, cfg = Workspace(experiment, run), experiment.evaluation
    folder = work.folder("eval/pyramid")
    progress = Progress(folder, 4, "passes")
    tokenizer, encoder, words = work.pyramid(), work.encoder().eval(), work.word_list()
    pictures, codes = work.pictures("captions", cfg.split), work.pyramid_codes(cfg.split)
    numbers = pictures.distinct(cfg.reconstructions)
    named = torch.stack([codes.codes(n) for n in numbers])
    originals = pictures.pixels(numbers, tokenizer.config.image_size)
    rebuilt = [decoded(tokenizer, named[:, : tokenizer.geometry.prefix(n + 1)]) for n in range(len(tokenizer.counts))]
    progress.update(1)
    figures = prefixes(rebuilt, originals, encoder)
    figures |= baselines(work, encoder, numbers, originals, rebuilt[-1], experiment)
    progress.update(2)
    figures |= latent_errors(work, tokenizer, numbers, originals, named)
    progress.update(3)
    truth = [pictures.captions[n] for n in numbers]
    vectors = centred(sentence_vectors(words.words))
    learned = work.pictures("captions", "train").captions
    told = meaning(named[:, : tokenizer.geometry.prefix(TOLD)], vectors, truth, learned, experiment)
    fitted = aligned(work, vectors, numbers, truth)
    figures |= {**told, **fitted, "reasons": told.get("reasons", {}) | fitted.get("reasons", {})}
    usage = code_usage(named.flatten(), len(words.ids))
    upper = code_usage(named[:, : tokenizer.geometry.prefix(TOLD)].flatten(), len(words.ids))
    figures |= {"words_used": usage["used"], "utilization": usage["utilization"], "perplexity": usage["perplexity"]}
    figures |= {"upper_words_used": upper["used"], "upper_perplexity": upper["perplexity"], "words": len(words.ids)}
    shown = evenly(list(range(len(numbers))), SHOWN)
    write_array(folder / "images.npy", np.stack([to_bytes(part[shown]) for part in rebuilt], axis=1))
    samples = [
        {"number": numbers[i], "truth": truth[i], "words": by_layer(named[i], tokenizer.counts, words.words)}
        for i in shown
    ]
    about = {"n": len(numbers), "split": cfg.split, "counts": tokenizer.counts, "tokens": named.shape[1]}
    write_json(folder / "figures.json", figures | about | {"samples": samples})
    progress.update(4)


def by_layer(codes: Tensor, counts: list[int], words: list[str]) -> list[list[str]]:
    """The words (N,) of a picture, a list a layer."""
    return [[words[code] for code in layer.tolist()] for layer in codes.split(counts)]


@torch.no_grad()
def decoded(tokenizer: PyramidTokenizer, codes: Tensor) -> Tensor:
    """(n, 3, S, S) float32 in [0, 1] of codes (n, m)."""
    return torch.cat([tokenizer.decode_prefix(part) for part in codes.split(AT_ONCE)])


# --------------------------------------------------------------------------------------------------------- appearance


def measured(made: Tensor, originals: Tensor, encoder: Encoder, real: Tensor) -> dict[str, float]:
    """Error of pixels, PSNR, cosine of the features and how often the original is found by them (both sets centred)."""
    features = pooled(encoder, made, AT_ONCE)
    return {
        "mse": float((made - originals).square().mean()),
        "psnr": mean_psnr(made, originals),
        "cosine": float(F.cosine_similarity(features, real).mean()),
        "r5": recall_at(similarity(features, real), torch.arange(len(made)), min(5, len(made))),
    }


def prefixes(rebuilt: list[Tensor], originals: Tensor, encoder: Encoder) -> dict[str, Any]:
    """Figures of every prefix, ``mse_1`` of the first layer and so on; without a number those of all layers."""
    real = pooled(encoder, originals, AT_ONCE)
    found = [measured(made, originals, encoder, real) for made in rebuilt]
    figures = {f"{name}_{n}": value for n, its in enumerate(found, start=1) for name, value in its.items()}
    return figures | found[-1] | {"chance_r5": chance_recall(len(originals), min(5, len(originals)))}


def baselines(
    work: Workspace, encoder: Encoder, numbers: list[int], originals: Tensor, rebuilt: Tensor, experiment: Experiment
) -> dict[str, float]:
    """The mean training picture, the training picture nearest by features, and other pictures' reconstructions."""
    train, size = work.pictures("captions", "train"), originals.shape[-1]
    real, split = pooled(encoder, originals, AT_ONCE), experiment.evaluation.split
    mean = train.pixels(train.distinct(MEAN_OF), size).mean(0, keepdim=True).expand_as(originals)
    copied = measured(train.pixels(nearest_pictures(work, split, numbers), size), originals, encoder, real)
    orders = derangements(len(numbers), 2, experiment.seed)
    others = [measured(rebuilt[order], originals, encoder, real) for order in orders]
    return {
        "mse_mean_image": float((mean - originals).square().mean()),
        "psnr_mean_image": mean_psnr(mean, originals),
        **{f"{name}_nearest": value for name, value in copied.items()},
        **{f"{name}_shuffled": fmean(its[name] for its in others) for name in copied},
    }


def latent_errors(
    work: Workspace, tokenizer: PyramidTokenizer, numbers: list[int], originals: Tensor, named: Tensor
) -> dict[str, Any]:
    """‖z − ẑ_≤l‖² / ‖z‖² of every prefix over the places with a token, and at the end by each rule of quantization.

    The same latents, the encoder's, are quantized by every rule with the same number of tokens.
    """
    split = work.experiment.evaluation.split
    heads = work.head_features("captions", split, numbers) if tokenizer.config.pooled else None
    parts = []
    for start in range(0, len(numbers), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        parts.append(tokenizer.latents(originals[some] * 2 - 1, None if heads is None else heads[some]))
    z, figures = torch.cat(parts), {}
    own = tokenizer.quantizer(z).codes
    if (unlike := float((own != named).float().mean())) > 0.02:
        raise ValueError(
            f"{unlike:.0%} of the words are others than were extracted; remove {work.folder('words')} and extract again"
        )
    flat = z.flatten(2).transpose(1, 2)
    for rule in RULES:
        partial = PyramidQuantizer(tokenizer.geometry, tokenizer.quantizer.codebook, rule)(z).partial
        for n, part in enumerate(partial, start=1):
            known = tokenizer.geometry.held(tokenizer.geometry.prefix(n)) > 0
            error = (flat - part)[:, known].square().sum() / flat[:, known].square().sum()
            figures[f"latent_error_{rule}_{n}"] = float(error)
        figures[f"latent_error_{rule}"] = float(error)
    return figures


# -------------------------------------------------------------------------------------------------------------- words


def meaning(
    named: Tensor, vectors: Tensor, truth: list[str], learned: list[str], experiment: Experiment
) -> dict[str, float]:
    """What the words (n, m) of the upper layers say of their pictures, by sentence vectors (K, E) of the words.

    ``similarity`` is the mean cosine of a picture's words and its label, beside random words and those of other
    pictures; ``label_r10`` how often the label is among the ten nearest of all labels to the mean of the words;
    ``category`` how often the nearest category is the picture's, beside the commonest of the captions ``learned`` from.
    """
    labels = centred(sentence_vectors([label_of(caption) for caption in truth]))
    said = F.normalize(vectors[named].mean(1), dim=-1)
    orders = derangements(len(truth), experiment.evaluation.derangements, experiment.seed)
    generator = torch.Generator().manual_seed(experiment.seed)
    drawn = [torch.randint(len(vectors), named.shape, generator=generator) for _ in range(DRAWS)]

    def to_labels(words: Tensor) -> float:
        return float((vectors[words] * labels[:, None]).sum(-1).mean())

    target, ten = torch.arange(len(truth)), min(10, len(truth))
    figures = {
        "similarity": to_labels(named),
        "similarity_random": fmean(to_labels(words) for words in drawn),
        "similarity_shuffled": fmean(to_labels(named[order]) for order in orders),
        "label_r10": recall_at(said @ labels.T, target, ten),
        "label_r10_shuffled": fmean(recall_at(said[order] @ labels.T, target, ten) for order in orders),
        "label_r10_chance": chance_recall(len(truth), ten),
    }
    categories = [category_of(caption) for caption in truth]
    known = sorted(set(categories) - {""})
    if len(known) < 2:
        return figures | {"category": None, "reasons": {"category": "the captions name fewer than two categories"}}
    asked = [i for i, category in enumerate(categories) if category]
    right = torch.tensor([known.index(categories[i]) for i in asked])
    classes = centred(sentence_vectors(known))
    majority = max(known, key=Counter(map(category_of, learned)).__getitem__)

    def category(words: Tensor) -> float:
        guess = (F.normalize(vectors[words].mean(1), dim=-1) @ classes.T).argmax(1)
        return float((guess[asked] == right).float().mean())

    return figures | {
        "category": category(named),
        "category_random": fmean(category(words) for words in drawn),
        "category_shuffled": fmean(category(named[order]) for order in orders),
        "category_majority": float((right == known.index(majority)).float().mean()),
    }


def aligned(work: Workspace, vectors: Tensor, numbers: list[int], truth: list[str]) -> dict[str, Any]:
    """How good what the semantic loss learns from is: a held-out picture's own label among all of theirs."""
    if work.experiment.pyramid.relevance.clip is not None:
        reason = "words are relevant by CLIP, which was not fitted here"
        return {"alignment_r1": None, "reasons": {"alignment_r1": reason}}
    pictures = work.picture_meanings(work.experiment.evaluation.split)[numbers]
    labels = centred(sentence_vectors([label_of(caption) for caption in truth]))
    target, similar = torch.arange(len(truth)), pictures @ labels.T
    best = relevance(pictures, work.word_meanings()).argmax(1)
    return {
        **{f"alignment_r{k}": recall_at(similar, target, min(k, len(truth))) for k in (1, 10)},
        "alignment_chance_r1": chance_recall(len(truth), 1),
        "alignment_chance_r10": chance_recall(len(truth), min(10, len(truth))),
        # What the words could say at best: each picture's most relevant word.
        "similarity_relevant": float((vectors[best] * labels).sum(-1).mean()),
    }


if __name__ == "__main__":
    run_stage(main, "eval/pyramid")
