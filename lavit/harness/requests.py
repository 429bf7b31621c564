"""What a task of lmms-eval asks for, as prompts and plans of this project; nothing here needs lmms-eval."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from PIL import Image

from lavit.data.images import SUFFIXES, as_image
from lavit.generation.plans import TextPlan, check_plan

log = logging.getLogger(__name__)

CAPTION_WORDS = "caption|describe"
# What tasks add for models that follow instructions. One that was trained on "Question: … Answer:" alone is asked the
# bare question, as the LaVIT paper does. Instructions that choices come with (letters) stay.
INSTRUCTIONS = (
    "answer the question using a single word or phrase",
    "please answer the question using a single word or phrase",
    "when the provided information is insufficient, respond with 'unanswerable'",
)
PLACEHOLDER = re.compile(r"<image(?:[ _]?\d+)?>")
# generation_kwargs, which are named as transformers names them, and what they are in a plan.
LENGTHS = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
SEARCH = {"num_beams": "beams", "length_penalty": "length_penalty"}
LOTS = {"top_p": "top_p", "top_k": "top_k"}
READ = {*LENGTHS, *SEARCH, *LOTS, "temperature", "do_sample", "until"}
_told: set[str] = set()  # of what was warned


def plain(context: str) -> str:
    """A context without places of pictures, which always come first here, and blanks around it."""
    return PLACEHOLDER.sub("", context).strip()


def asks_for_caption(context: str, words: str = CAPTION_WORDS) -> bool:
    """Whether a context is empty, or no question and has a word that begins with one of ``words`` (joined by |)."""
    text = plain(context)
    if not text:
        return True
    begins = "|".join(re.escape(word.strip()) for word in words.split("|") if word.strip())
    return bool(begins) and "?" not in text and re.search(rf"\b(?:{begins})", text, re.IGNORECASE) is not None


def question_of(context: str, keep: bool = False) -> str:
    """The question in a context, without the lines after the first that only say what form its answer is to have.

    With ``keep`` those stay.
    """
    first, *rest = plain(context).split("\n")
    if not keep:
        rest = [line for line in rest if line.strip().lower().rstrip(".:") not in INSTRUCTIONS]
    return "\n".join([first, *rest]).strip()


def text_plan(kwargs: Mapping[str, Any], default: TextPlan) -> TextPlan:
    """The plan that a task's ``generation_kwargs`` ask for; what they leave open is as in ``default``.

    They mean what they mean to transformers: ``do_sample: false`` writes the likeliest text, whatever the temperature.
    Where a task names a temperature and no ``do_sample``, the temperature counts. What is None is left open; what is
    unknown is warned of once.

    Raises:
        ValueError: values that cannot be.
    """
    given = {key: value for key, value in kwargs.items() if value is not None}
    if strange := sorted(given.keys() - READ - _told):
        _told.update(strange)
        log.warning("generation_kwargs that LaVIT does not know are ignored: %s", ", ".join(strange))
    chosen = {name: given[key] for key, name in (LENGTHS | SEARCH).items() if key in given}
    if given.get("do_sample") is False:
        chosen["temperature"] = 0.0
    elif "temperature" in given or given.get("do_sample"):
        chosen["temperature"] = given.get("temperature", 1.0)
    if chosen.get("temperature", default.temperature):
        chosen |= {name: given[key] for key, name in LOTS.items() if key in given}
        chosen.setdefault("beams", 1)
    if "max_tokens" in chosen and "min_tokens" not in chosen and isinstance(chosen["max_tokens"], int):
        chosen["min_tokens"] = min(default.min_tokens, chosen["max_tokens"])
    names = {name: key for key, name in (LENGTHS | SEARCH | LOTS | {"temperature": "temperature"}).items()}
    for field in fields(TextPlan):
        if isinstance(value := chosen.get(field.name, 0), str | bool):
            raise ValueError(f"generation_kwargs: {names[field.name]} is {value!r}; give a number")
    plan = replace(default, **chosen)
    check_plan(plan, "generation_kwargs")
    return plan


def stops_of(kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """The strings at which a text is to end.

    Raises:
        ValueError: ``until`` that is neither a string nor a list of them.
    """
    until = kwargs.get("until")
    several = [] if until is None else [until] if isinstance(until, str) else until
    if not isinstance(several, list | tuple) or not all(isinstance(stop, str) for stop in several):
        raise ValueError(f"generation_kwargs: until is {until!r}; give a string or a list of them")
    return tuple(stop for stop in several if stop)


def cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of ``stops`` in it."""
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends)].rstrip() if ends else text


def only_picture(visuals: Any, name: str, first: bool = False) -> Image.Image:
    """The one picture of a document, which is called ``name`` in an error; with ``first`` the first of several.

    Raises:
        ValueError: no picture, several, or something else: a video or a sound.
    """
    several = [] if visuals is None else list(visuals) if isinstance(visuals, list | tuple) else [visuals]
    if not several:
        raise ValueError(f"{name} has no picture; LaVIT is asked about one")
    if len(several) > 1 and not first:
        raise ValueError(
            f"{name} has {len(several)} pictures and LaVIT is asked about one; images=first takes the first"
        )
    picture = several[0]
    named = isinstance(picture, str | Path)
    if named and not str(picture).lower().endswith(SUFFIXES) or not named and not isinstance(picture, Image.Image):
        what = f"'{picture}'" if named else f"a {type(picture).__name__}"
        raise ValueError(f"{name} shows {what}, which is no picture; videos and sounds are not read")
    return as_image(picture, name)
