"""The figures of a model on a standard set: the only place that knows both the sets and the metrics."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from lavit.benchmarks.choices import choice_index
from lavit.benchmarks.items import Benchmark, Item
from lavit.benchmarks.sets import SETS
from lavit.metrics.answerability import average_precision, f1_score, resampled_precision
from lavit.metrics.bootstrap import corpus_interval, drawn_interval
from lavit.metrics.coco import FIGURES, caption_figures
from lavit.metrics.lemmas import LEMMATIZER, vqa_accuracy_lemmatised
from lavit.metrics.vqa import exact_match, plain_match, textvqa_accuracy, vizwiz_accuracy, vqa_accuracy

Figures = dict[str, Any]
Groups = Callable[[Item], Iterable[str]]


def score(
    benchmark: Benchmark,
    predictions: Mapping[int | str, str],
    seed: int,
    answerable: Mapping[int | str, float] | None = None,
) -> Figures:
    """The official figures of predictions, one for each item.

    Captions: ``cider`` in [0, 10], ``bleu1`` to ``bleu4``, ``rouge_l``, ``meteor``, ``spice`` in [0, 1], and
    ``tokenization``. Questions: ``accuracy`` in [0, 1] by the set's own rule, and ``accuracy_lemmatised`` (see
    `lavit.metrics.lemmas`) or, with choices, ``unparsed``, the share of answers that name no choice: they are wrong.
    GQA: also ``accuracy_plain``, where case and a final full stop do not count.
    VizWiz: also ``answerability_ap`` and ``answerability_f1``, that a question has no answer. A group's figures have
    its name after theirs (``cider_in_domain``); a set's groups are those that its owner reports.

    Beside each figure stands ``FIGURE_interval``, [low, high]: 95 % by a bootstrap over the pictures, seeded by `seed`.
    One that could not be measured is None, and ``reasons`` says why; ``n`` is the number of items, ``libraries`` has
    the versions of those that were used.

    answerable: of VizWiz, how sure the model is that each question has an answer, in [0, 1].
    Errors: ValueError for no items, an item twice or without references, predictions that are missing, of other items
    or no texts, and shares out of range.
    """
    _check(benchmark, predictions, answerable)
    written = [predictions[item.id] for item in benchmark.items]
    rule = SETS[benchmark.name].metric
    if rule == "caption":
        figures = _captions(benchmark.items, written, seed)
    elif rule == "choice":
        figures = _choices(benchmark.items, written, seed)
    else:
        figures = _answers(benchmark, written, seed)
    if rule == "vizwiz":
        _merge(figures, _answerability(benchmark.items, answerable, seed))
    return figures | {"n": len(benchmark.items)}


def _captions(items: Sequence[Item], written: Sequence[str], seed: int) -> Figures:
    keys = [str(n) for n in range(len(items))]
    references = {key: list(item.references) for key, item in zip(keys, items, strict=True)}
    found = caption_figures(references, dict(zip(keys, written, strict=True)))
    parts = {"": found.figures}
    for name, places in _grouped(items, lambda item: [item.about["domain"]] if "domain" in item.about else []):
        parts[f"_{name}"] = found.part(keys[n] for n in places)  # by itself, as NoCaps' owner scores a domain
    figures: Figures = {}
    for suffix, part in parts.items():
        for name in FIGURES:
            figures[f"{name}{suffix}"] = part[name].value if name in part else None
            if name in part:
                figures[f"{name}{suffix}_interval"] = list(
                    corpus_interval(part[name].statistics, part[name].score, seed)
                )
    reasons = {f"{name}{suffix}": why for name, why in found.reasons.items() for suffix in parts}
    figures |= {"reasons": reasons} if reasons else {}
    return figures | {"tokenization": found.tokenization, "libraries": _libraries("pycocoevalcap", "numpy")}


def _answers(benchmark: Benchmark, written: Sequence[str], seed: int) -> Figures:
    def exact(text: str, answers: Sequence[str]) -> float:
        return exact_match(text, answers[0])

    rules = {"gqa": exact, "vizwiz": vizwiz_accuracy}
    rule = rules.get(SETS[benchmark.name].metric, textvqa_accuracy if benchmark.name == "textvqa" else vqa_accuracy)
    items = benchmark.items
    pairs = list(zip(written, (item.references for item in items), strict=True))
    figures = _means("accuracy", [rule(text, answers) for text, answers in pairs], items, _question_groups, seed)
    if rule is exact:
        plain = [plain_match(text, answers[0]) for text, answers in pairs]
        figures |= _means("accuracy_plain", plain, items, _question_groups, seed)
    lemmatised = [vqa_accuracy_lemmatised(text, answers) for text, answers in pairs]
    figures |= _means("accuracy_lemmatised", lemmatised, items, _question_groups, seed)
    return figures | {"lemmatizer": LEMMATIZER, "libraries": _libraries("lemminflect", "numpy")}


def _question_groups(item: Item) -> Iterable[str]:
    """VQA by type of answer (its figures by type of question would be 65), GQA as its evaluation has it."""
    about = item.about
    if "answer_type" in about:
        yield about["answer_type"]
    if "structural" in about:
        yield "open" if about["structural"] == "query" else "binary"
        yield f"structural_{about['structural']}"
    if "semantic" in about:
        yield f"semantic_{about['semantic']}"


def _choices(items: Sequence[Item], written: Sequence[str], seed: int) -> Figures:
    meant = [choice_index(text, item.about["choices"]) for text, item in zip(written, items, strict=True)]
    right = [float(choice == item.about["answer"]) for choice, item in zip(meant, items, strict=True)]
    figures = _means("accuracy", right, items, _science_groups, seed)
    figures |= _means("unparsed", [float(choice is None) for choice in meant], items, None, seed)
    return figures | {"libraries": _libraries("numpy")}


def _science_groups(item: Item) -> Iterable[str]:
    """As ScienceQA's evaluation has them; a question may have both a text and a picture."""
    about = item.about
    yield from (f"subject_{about['subject']}",) if "subject" in about else ()
    context = [name for name, there in (("text", about.get("hint")), ("image", item.image is not None)) if there]
    yield from (f"context_{name}" for name in context or ["none"])
    if grade := re.fullmatch(r"grade(\d+)", about.get("grade", "")):
        yield "grades_1_6" if int(grade[1]) <= 6 else "grades_7_12"


def _answerability(items: Sequence[Item], answerable: Mapping[int | str, float] | None, seed: int) -> Figures:
    """Of finding the questions that have no answer, which VizWiz' evaluation counts as positive."""
    names = ("answerability_ap", "answerability_f1")
    positive = np.array([not item.about["answerable"] for item in items])
    if answerable is None or not positive.any():
        why = "not run: the model was not asked" if answerable is None else "every question here has an answer"
        return dict.fromkeys(names) | {"reasons": dict.fromkeys(names, why)}
    unsure = np.array([1.0 - answerable[item.id] for item in items])
    called = unsure > 0.5
    counts = np.stack([positive & called, positive, called], axis=1).astype(np.float64)
    return {
        names[0]: average_precision(positive, unsure),
        f"{names[0]}_interval": list(
            drawn_interval(len(items), lambda times: resampled_precision(positive, unsure, times), seed)
        ),
        names[1]: float(f1_score(counts.sum(axis=0, keepdims=True))[0]),
        f"{names[1]}_interval": list(corpus_interval(counts, f1_score, seed)),
    }


def _means(name: str, values: Sequence[float], items: Sequence[Item], groups: Groups | None, seed: int) -> Figures:
    """The mean and its interval, of all and of each group."""
    figures: Figures = {name: float(np.mean(values)), f"{name}_interval": _by_picture(values, items, seed)}
    for group, places in _grouped(items, groups) if groups is not None else ():
        part = [values[n] for n in places]
        figures[f"{name}_{group}"] = float(np.mean(part))
        figures[f"{name}_{group}_interval"] = _by_picture(part, [items[n] for n in places], seed)
    return figures


def _by_picture(values: Sequence[float], items: Sequence[Item], seed: int) -> list[float]:
    """The interval of the mean, over pictures that are drawn with all their questions: those are not independent."""
    sums: dict[Any, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for n, (value, item) in enumerate(zip(values, items, strict=True)):
        one = sums[n if item.image is None else item.image]
        one[0] += value
        one[1] += 1
    return list(corpus_interval(list(sums.values()), lambda drawn: drawn[:, 0] / drawn[:, 1], seed))


def _grouped(items: Sequence[Item], groups: Groups) -> list[tuple[str, list[int]]]:
    """The places of the items of each group, by the group's name in letters, digits and underscores."""
    found: dict[str, list[int]] = defaultdict(list)
    for n, item in enumerate(items):
        for group in groups(item):
            found[re.sub(r"\W+", "_", str(group)).strip("_")].append(n)
    return sorted(found.items())


def _merge(figures: Figures, more: Figures) -> None:
    reasons = figures.get("reasons", {}) | more.get("reasons", {})
    figures |= more | ({"reasons": reasons} if reasons else {})


def _libraries(*names: str) -> dict[str, str]:
    return {name: version(name) for name in names}


def _check(
    benchmark: Benchmark, predictions: Mapping[int | str, str], answerable: Mapping[int | str, float] | None
) -> None:
    name, ids = f"{benchmark.name} ({benchmark.split})", [item.id for item in benchmark.items]
    if benchmark.name not in SETS:
        raise ValueError(f"no set is called {benchmark.name!r}: there are {', '.join(SETS)}")
    if not ids:
        raise ValueError(f"{name} has no items: there is nothing to score")
    faults = {
        "there twice": [number for number, count in Counter(ids).items() if count > 1],
        "without references, so that nothing can be scored": [i.id for i in benchmark.items if not i.references],
        "without a prediction": [number for number in ids if number not in predictions],
        "predicted but not in the set": list(predictions.keys() - set(ids)),
        "predicted as what is no text": [number for number in ids if not isinstance(predictions.get(number, ""), str)],
    }
    if answerable is not None:
        faults |= {
            "without a share of answerability": [number for number in ids if number not in answerable],
            "said to be answerable by no share in [0, 1]": [
                number for number in ids if not 0 <= answerable.get(number, 0) <= 1
            ],
        }
    for fault, found in faults.items():
        if found:
            some = ", ".join(repr(number) for number in sorted(found, key=str)[:3])
            raise ValueError(f"{name}: {len(found)} of {len(ids)} items are {fault} ({some})")
