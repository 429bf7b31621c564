"""Few-shot answers of a frozen language model about pictures as words, kind of task by kind of task.

Beside chance there are examples with the words of others, random words, words near the true name as a ceiling, and what
needs no language model: the example that shares most words, or has the most similar ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lavit.data.order import generator_for
from lavit.generation.episodes import (
    NEAR,
    Cell,
    Classes,
    Episode,
    InContextConfig,
    SettingConfig,
    Shown,
    ask,
    draw_episodes,
    show,
)
from lavit.generation.in_context import Answered, Contexts, answer_in_context, words_near
from lavit.metrics.captions import category_of, label_of
from lavit.metrics.in_context import mean_and_error, nearest_example, overlap, similarity
from lavit.model import UnifiedLM
from lavit.tokenizers.features import PictureSet

SHOWN = 6  # episodes of each of the first kinds
GUESSES = ("overlap", "similarity", "last")


class Bench(NamedTuple):
    """What everything is measured with.

    ``codes`` gives the words (n,) int64 in [0, K) of a picture, ``ids`` (K,) int64 theirs in the language model, and
    ``table`` (V, D) the directions of all of its words.
    """

    model: UnifiedLM
    contexts: Contexts
    ids: Tensor
    codes: Callable[[int], Tensor]
    config: InContextConfig
    seed: int
    table: Tensor


def check_words(config: InContextConfig, tokens: int) -> None:
    """Raise ValueError where a picture is to be read as more words than its pyramid has."""
    if max(config.words) > tokens:
        raise ValueError(f"evaluation.in_context.words {config.words}: the pyramid has {tokens} words; ask for fewer")


def by_category(pictures: PictureSet) -> Classes:
    """The pictures of every class word, those of one concept together, so that an episode shows it once."""
    classes: dict[str, dict[str, list[int]]] = {}
    for number, (caption, meta) in enumerate(zip(pictures.captions, pictures.meta, strict=True)):
        if name := category_of(caption):
            classes.setdefault(name, {}).setdefault(meta.get("concept", caption), []).append(number)
    return {name: list(units.values()) for name, units in classes.items()}


def by_label(pictures: PictureSet) -> Classes:
    """The pictures of everything that captions name, one of those that are the same pixel by pixel."""
    classes: dict[str, dict[str, list[int]]] = {}
    for number, (caption, meta) in enumerate(zip(pictures.captions, pictures.meta, strict=True)):
        classes.setdefault(label_of(caption).lower(), {}).setdefault(meta.get("pixels", str(number)), [number])
    return {name: list(units.values()) for name, units in classes.items()}


def shown_of(bench: Bench, cell: Cell, episode: Episode, number: int) -> Shown:
    """What stands for the pictures of a cell's episode with this number."""
    numbers = [picture for _, picture in episode.examples] + episode.queries
    codes = torch.stack([bench.codes(n)[: cell.words] for n in numbers])
    near = None
    if cell.arm == "named":
        names = [bench.contexts.answer(name)[:-1] for name in episode.names]
        near = torch.stack([words_near(bench.table, bench.ids, name, NEAR) for name in names])
    lot = generator_for(bench.seed, cell.ways, cell.shots, cell.words, number)
    return show(episode, codes, cell.arm, len(bench.ids), near, lot)


def answers(bench: Bench, cell: Cell, classes: Classes, part: range) -> list[dict[str, Any]]:
    """What was answered in a cell's episodes with these numbers, and by those who need no language model."""
    episodes = draw_episodes(classes, cell.ways, cell.shots, part, bench.seed)
    shown = [shown_of(bench, cell, episode, number) for number, episode in zip(part, episodes, strict=True)]
    setting = SettingConfig(cell.shots, cell.repeats, cell.induction)
    asked = [ask(bench.contexts, e.names, s, bench.ids, setting) for e, s in zip(episodes, shown, strict=True)]
    found = answer_in_context(bench.model, asked, bench.contexts.stop, bench.config.answer)
    return [
        {**judged(bench.contexts, episode, answer), **guessed(bench, one)}
        for episode, one, answer in zip(episodes, shown, found, strict=True)
    ]


def judged(contexts: Contexts, episode: Episode, answer: Answered) -> dict[str, Any]:
    """The likeliest name and the text written for every query, and the shares of them that are right.

    "calibrated" takes the name that gains most over questions that say nothing.
    """
    chosen = answer.likelihood.argmax(1).tolist()
    gained = (answer.likelihood - answer.prior).argmax(1)
    texts = [contexts.read(ids) for ids in answer.written]
    exact = [text.lower() == name.lower() for text, name in zip(texts, episode.names, strict=True)]
    right = [number == place for place, number in enumerate(chosen)]
    return {
        "accuracy": sum(right) / len(right),
        "calibrated": float((gained == torch.arange(len(gained))).double().mean()),
        "exact": sum(exact) / len(exact),
        "chosen": [episode.names[number] for number in chosen],
        "written": texts,
    }


def guessed(bench: Bench, shown: Shown) -> dict[str, float]:
    """The share of right answers by shared words, by similar words, and by the label of the last example."""
    target = torch.arange(len(shown.queries))
    scores = {
        "overlap": overlap(shown.queries, shown.examples),
        "similarity": similarity(bench.ids[shown.queries], bench.ids[shown.examples], bench.table),
    }
    guesses = {name: float(nearest_example(score, shown.labels, target).mean()) for name, score in scores.items()}
    return guesses | {"last": float((target == shown.labels[-1]).double().mean())}


def understanding(config: InContextConfig, answered: dict[Cell, list[dict[str, Any]]]) -> dict[str, Any]:
    """Means and standard errors over the episodes of every cell, and by task and ways those of the first setting."""
    rows, figures = [], {}
    for cell, results in answered.items():
        row: dict[str, Any] = {**cell._asdict(), "chance": 1 / cell.ways, "episodes": len(results)}
        for name in ("accuracy", "calibrated", "exact", *GUESSES):
            row[name], row[f"{name}_error"] = mean_and_error([result[name] for result in results])
        rows.append(row)
    for task, ways in dict.fromkeys((row["task"], row["ways"]) for row in rows):
        its = [row for row in rows if (row["task"], row["ways"]) == (task, ways)]
        ours = [row for row in its if row["arm"] == "words" and row["words"] == config.words[0]]
        key = f"{task}_{ways}way"
        figures |= {key: ours[0]["accuracy"], f"{key}_mean": sum(row["accuracy"] for row in ours) / len(ours)}
        figures |= {
            f"{key}_{name}": ours[0][name] for name in ("accuracy_error", "calibrated", "exact", "chance", *GUESSES)
        }
        figures |= {f"{key}_{row['arm']}": row["accuracy"] for row in its if row["arm"] != "words"}
    ours = [row for row in rows if row["arm"] == "words"]
    return {
        **figures,
        "accuracy": sum(row["accuracy"] for row in ours) / len(ours),
        "chance": sum(row["chance"] for row in ours) / len(ours),
        "n": sum(row["episodes"] * row["ways"] for row in ours),
        "episodes": config.episodes,
        "cells": rows,
    }


def first_cells(cells: list[Cell]) -> list[Cell]:
    """The first cell of every task and number of ways, whose episodes are shown."""
    return list({(cell.task, cell.ways): cell for cell in reversed(cells) if cell.arm == "words"}.values())[::-1]


def episode_shown(
    bench: Bench, cell: Cell, classes: dict[str, Classes], results: list[dict[str, Any]], words: list[str]
) -> list[dict[str, Any]]:
    """One query of each of a cell's first episodes, with its examples, their words and what was answered."""
    out = []
    count = min(SHOWN, len(results))
    episodes = draw_episodes(classes[cell.task], cell.ways, cell.shots, range(count), bench.seed)
    for number, (episode, result) in enumerate(zip(episodes, results[:count], strict=True)):
        query = number % cell.ways  # not always the class that was drawn first
        shown = shown_of(bench, cell, episode, number)
        examples = [
            {"number": picture, "name": episode.names[label], "words": [words[i] for i in row.tolist()]}
            for (label, picture), row in zip(episode.examples, shown.examples, strict=True)
        ]
        out.append({
            "kind": f"{cell.task}, {cell.ways} ways, {cell.shots} shot",
            "number": episode.queries[query],
            "words": [words[i] for i in shown.queries[query].tolist()],
            "examples": examples,
            "truth": episode.names[query],
            "chosen": result["chosen"][query],
            "written": result["written"][query],
        })  # fmt: skip
    return out
