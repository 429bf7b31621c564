"""Few-shot tasks of pictures as words: which are shown, which is asked for, and with what in the place of their words.

Every task has ``ways`` classes, ``shots`` pictures of each as examples, and asks for one other picture of every class
after the same examples: whoever does not look at the picture that is asked for is right in one of ``ways`` cases.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lavit.data.documents import Document
from lavit.data.order import generator_for
from lavit.generation.denoising import DenoisingConfig
from lavit.generation.in_context import PRECISIONS, Asked, Contexts, induction_of

CONTROLS = ("shuffled", "random", "named")
FREE = 2  # questions of random words, by which an episode's likelihoods are calibrated
NEAR = 12  # words near a name that a picture's are drawn from, so that two pictures of one class differ


@dataclass
class SettingConfig:
    """``shots`` pictures of each class, all of them shown ``repeats`` times more; ``induction`` says the task first."""

    shots: int = 1
    repeats: int = 0
    induction: bool = True


def paper_settings() -> list[SettingConfig]:
    """The columns of the papers' tables (Frozen, arXiv 2106.13884, table 4)."""
    first = SettingConfig(induction=False)
    shots = [SettingConfig(shots=shots) for shots in (1, 3, 5)]
    return [*shots[:1], first, *shots[1:], *(SettingConfig(repeats=repeats) for repeats in (1, 3, 5))]


@dataclass
class TaskConfig:
    """``ways`` classes and the settings; controls and other numbers of words are measured in the first setting."""

    ways: list[int] = field(default_factory=lambda: [2, 5])
    settings: list[SettingConfig] = field(default_factory=paper_settings)


@dataclass
class InContextConfig:
    """What a frozen language model is asked in context.

    ``category`` has the words before the colon of captions as classes, each shown by pictures of different concepts;
    ``label`` what follows the colon, of which there must be several pictures; null leaves one out. A picture is read
    as the first of ``words`` words of its pyramid; the other numbers are measured in the first setting alone, and so
    are the ``controls``: "shuffled" deals the examples' words anew among them, "random" has random words, "named"
    words near the true name, which is a ceiling. ``episodes`` tasks are made of each kind, ``at_once`` of them are read
    together. Captions and questions are answered after ``examples`` training pictures, each read as ``read`` words. An
    answer of its own has up to ``answer`` tokens. ``precision`` is the model's, fp32 or bf16.
    """

    category: TaskConfig | None = field(default_factory=TaskConfig)
    label: TaskConfig | None = None
    words: list[int] = field(default_factory=lambda: [5, 1, 21])
    controls: list[str] = field(default_factory=lambda: list(CONTROLS))
    episodes: int = 40
    at_once: int = 4
    examples: int = 6
    read: int = 5
    answer: int = 8
    precision: str = "fp32"
    denoising: DenoisingConfig = field(default_factory=DenoisingConfig)


def check_in_context(config: InContextConfig, key: str = "evaluation.in_context") -> None:
    """Check a section of a configuration.

    Raises:
        ValueError: naming the key.
    """
    for task in ("category", "label"):
        if (its := getattr(config, task)) is None:
            continue
        if not its.ways or min(its.ways) < 2 or not its.settings:
            raise ValueError(f"{key}.{task}: ways {its.ways} must be at least 2 and settings at least one")
        for setting in its.settings:
            if setting.shots < 1 or setting.repeats < 0:
                raise ValueError(
                    f"{key}.{task}.settings: shots {setting.shots} must be at least 1 and repeats {setting.repeats} 0"
                )
    if config.category is None and config.label is None:
        raise ValueError(f"{key}: category and label are both null; set one of them")
    if config.examples < 1 or config.read < 1:
        raise ValueError(f"{key}: examples {config.examples} and read {config.read} must be at least 1")
    if not config.words or min(config.words) < 1:
        raise ValueError(f"{key}.words is {config.words}; give numbers of words, at least 1")
    if unknown := [name for name in config.controls if name not in CONTROLS]:
        raise ValueError(f"{key}.controls: '{unknown[0]}' is unknown; choose {', '.join(CONTROLS)}")
    for name in ("episodes", "at_once", "answer"):
        if getattr(config, name) < 1:
            raise ValueError(f"{key}.{name} is {getattr(config, name)}; it must be at least 1")
    if config.precision not in PRECISIONS:
        raise ValueError(f"{key}.precision '{config.precision}' is unknown; choose {', '.join(PRECISIONS)}")
    config.denoising.check(f"{key}.denoising")


class Cell(NamedTuple):
    """One kind of task; ``arm`` is "words", or what stands in their place."""

    task: str
    ways: int
    shots: int
    repeats: int
    induction: bool
    words: int
    arm: str

    @property
    def name(self) -> str:
        told = "induced" if self.induction else "plain"
        return f"{self.task}-{self.ways}way-{self.shots}shot-{self.repeats}rep-{told}-{self.words}words-{self.arm}"


def cells_of(config: InContextConfig) -> list[Cell]:
    """All kinds of tasks of a configuration, those that are compared beside one another."""
    cells = []
    for task in ("category", "label"):
        if (its := getattr(config, task)) is None:
            continue
        for ways in its.ways:
            for number, s in enumerate(its.settings):
                alone = (task, ways, s.shots, s.repeats, s.induction)
                cells.append(Cell(*alone, config.words[0], "words"))
                if number == 0:
                    cells += [Cell(*alone, config.words[0], arm) for arm in config.controls]
                    cells += [Cell(*alone, words, "words") for words in config.words[1:]]
    return list(dict.fromkeys(cells))


# A class's name to its units: lists of pictures, of which an episode takes at most one.
Classes = dict[str, list[list[int]]]


class Episode(NamedTuple):
    """One task.

    Attributes:
        names: N names of classes, in an order drawn by lot.
        examples: (class, picture) of every example, in the order in which they are shown.
        queries: N pictures, that of class n at place n.
    """

    names: list[str]
    examples: list[tuple[int, int]]
    queries: list[int]


def draw_episodes(classes: Classes, ways: int, shots: int, numbers: range, seed: int) -> list[Episode]:
    """The episodes with these numbers, each of ``seed`` and its number alone.

    The examples come in ``shots`` rounds of one picture a class, in an order drawn by lot in each round.

    Raises:
        ValueError: too few classes with ``shots`` + 1 pictures.
    """
    enough = sorted(name for name, units in classes.items() if len(units) > shots)
    if len(enough) < ways:
        raise ValueError(
            f"{ways} ways of {shots} shots need {ways} classes with {shots + 1} different pictures and there are "
            f"{len(enough)}; lower ways or shots in evaluation.in_context"
        )
    return [_draw(classes, enough, ways, shots, generator_for(seed, ways, shots, number)) for number in numbers]


def _draw(classes: Classes, enough: list[str], ways: int, shots: int, generator: torch.Generator) -> Episode:
    names = [enough[i] for i in torch.randperm(len(enough), generator=generator)[:ways].tolist()]
    taken = []
    for name in names:
        units = [classes[name][i] for i in torch.randperm(len(classes[name]), generator=generator)[: shots + 1]]
        taken.append([unit[int(torch.randint(len(unit), (), generator=generator))] for unit in units])
    examples = []
    for shot in range(shots):
        order = torch.randperm(ways, generator=generator).tolist()
        examples += [(number, taken[number][shot]) for number in order]
    return Episode(names, examples, [pictures[-1] for pictures in taken])


class Shown(NamedTuple):
    """What stands for an episode's pictures, as places in a word list.

    Attributes:
        examples: (N · shots, W) int64.
        queries: (N, W) int64.
        labels: (N · shots,) int64 the class of each example.
        free: (FREE, W) int64 random words, which say nothing.
    """

    examples: Tensor
    queries: Tensor
    labels: Tensor
    free: Tensor


def show(episode: Episode, codes: Tensor, arm: str, size: int, near: Tensor | None, lot: torch.Generator) -> Shown:
    """The words of an episode in one arm of the comparison.

    Args:
        episode: what is shown.
        codes: (examples + queries, W) int64 words of its pictures in the order of ``examples`` and ``queries``.
        arm: see :class:`InContextConfig`.
        size: K, how many words there are.
        near: (N, M) int64 words near each name, for "named".
        lot: what decides.
    """
    labels, count = torch.tensor([label for label, _ in episode.examples]), len(episode.examples)
    if arm == "random":
        codes = torch.randint(size, codes.shape, generator=lot)
    if arm == "named":
        rows = near[torch.cat([labels, torch.arange(len(episode.queries))])]
        order = torch.rand(rows.shape, generator=lot).argsort(1)
        codes = rows.gather(1, order).repeat(1, -(-codes.shape[1] // rows.shape[1]))[:, : codes.shape[1]]
    examples, queries = codes[:count], codes[count:]
    if arm == "shuffled":
        examples = examples[torch.randperm(count, generator=lot)]
    return Shown(examples, queries, labels, torch.randint(size, (FREE, codes.shape[1]), generator=lot))


def ask(contexts: Contexts, names: list[str], shown: Shown, ids: Tensor, setting: SettingConfig) -> Asked:
    """An episode as prompts; ``ids`` (K,) int64 are those of the word list."""
    document: Document = contexts.begin(induction_of(sorted(names)) if setting.induction else "")
    for words, label in list(zip(shown.examples, shown.labels.tolist(), strict=True)) * (setting.repeats + 1):
        document += contexts.example((ids[words],), names[label])
    questions, free = ([contexts.ask(ids[words]) for words in rows] for rows in (shown.queries, shown.free))
    return Asked(document, questions, [contexts.answer(name) for name in names], free)
