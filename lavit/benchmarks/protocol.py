"""How a model is asked on standard sets.

What is left as it is here is LaVIT's protocol (arXiv 2309.04669) as far as beams, lengths and the forms of prompts are
concerned. Whether a question can be answered is asked in words of our own, and answers are scored as they were written:
the paper's evaluation cuts and cleans them first, so that its figures are of a milder rule.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lavit.generation.plans import TextPlan, check_plan


@dataclass
class BenchmarksConfig:
    """Standard sets, and how captions and answers are asked for.

    Attributes:
        data: the folder of each set that is there, by the set's name, as its owner distributes it.
        sets: those of them that are scored; by default all.
        task: ``caption`` or ``question``, which the ``sets`` must be of.
        split: of all of them; by default the one that is reported of each set.
        limit: so many items, evenly spread over the split; 0 takes all.
        release: the folder of a release that is measured in place of the run's own model; by FID and GenEval too.
        batch: pictures that are looked at, and prompts that are gone on with, at a time.
        caption: text that a caption goes on from, after the picture; LaVIT has none.
        question: what is asked, with ``{}`` where the question goes; by default the system's own form.
        answerable: VizWiz alone: asked before the question, in the same form; where the model finds "no" likelier than
            "yes", the answer is "unanswerable". None: not asked.
        choices: where a question has choices, ``likelihood`` takes the one that is likeliest a token, ``letters``
            shows them with letters and reads the letter that is written.
        captions, answers: how they are written. The paper's least of two tokens of an answer counts the end of the text
            (else there would be no "yes").
    """

    data: dict[str, str] = field(default_factory=dict)
    sets: list[str] = field(default_factory=list)
    task: str | None = None
    split: str | None = None
    limit: int = 0
    release: str | None = None
    batch: int = 16
    caption: str | None = None
    question: str | None = None
    answerable: str | None = "Can the question be answered: {}"
    choices: str = "likelihood"
    captions: TextPlan = field(default_factory=lambda: TextPlan(max_tokens=36, min_tokens=8, beams=2))
    answers: TextPlan = field(
        default_factory=lambda: TextPlan(max_tokens=10, min_tokens=1, beams=5, length_penalty=0.0)
    )


def check_benchmarks(config: BenchmarksConfig) -> None:
    """Check the settings, before a model is opened.

    Raises:
        ValueError: naming the key.
    """
    check_plan(config.captions, "benchmarks.captions")
    check_plan(config.answers, "benchmarks.answers")
    for name in ("question", "answerable"):
        form = getattr(config, name)
        if form and form.count("{}") != 1:
            raise ValueError(f"benchmarks.{name} is {form!r}; write {{}} once, where the question goes")
    if strange := [name for name in config.sets if not config.data.get(name)]:
        raise ValueError(f"benchmarks.sets: {strange[0]} has no folder in benchmarks.data; give its DATA")
    if config.choices not in ("likelihood", "letters"):
        raise ValueError(f"benchmarks.choices is {config.choices!r}; choose likelihood or letters")
    if config.limit < 0:
        raise ValueError(f"benchmarks.limit is {config.limit}; it must be 0 (all) or more")
    if config.batch < 1:
        raise ValueError(f"benchmarks.batch is {config.batch}; it must be at least 1")
