"""What is sent to a set's owner to be scored: a list of objects, or ScienceQA's results by question."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavit.benchmarks.choices import choice_index
from lavit.benchmarks.files import named, without_doubles
from lavit.benchmarks.items import Benchmark
from lavit.runs import write_atomic

UNPARSED = -1  # the index of an answer that means no choice


def rows_of(benchmark: Benchmark, predictions: Mapping[int | str, str], keys: tuple[str, str]) -> list[dict[str, Any]]:
    """``[{id key: id, text key: prediction}]``, in the order of the items."""
    return [dict(zip(keys, (item.id, predictions[item.id]), strict=True)) for item in benchmark.items]


def results_of(benchmark: Benchmark, predictions: Mapping[int | str, str]) -> dict[str, dict[int | str, int]]:
    """``{"results": {id: index of the choice}}``, -1 for what means no choice; ScienceQA's ``evaluate_acc.py``."""
    found = {item.id: choice_index(predictions[item.id], item.about["choices"]) for item in benchmark.items}
    return {"results": {number: UNPARSED if index is None else index for number, index in found.items()}}


def write(
    benchmark: Benchmark,
    predictions: Mapping[int | str, str],
    path: Path,
    keys: tuple[str, str] | None,
    answerable: Mapping[int | str, float] | None,
) -> None:
    """Write a submission; ``keys`` are those of a list's objects, None stands for results by question.

    Raises:
        ValueError: a prediction or a share is missing, of no item, or no text.
    """
    require_all(benchmark, predictions, "the predictions")
    if other := [number for number, text in predictions.items() if type(text) is not str]:
        raise ValueError(f"the predictions of {named(other)} are no texts")
    content = results_of(benchmark, predictions) if keys is None else rows_of(benchmark, predictions, keys)
    if answerable is not None:
        require_all(benchmark, answerable, "the shares of answerability")
        content = [
            row | {"answerable": answerable[item.id]} for row, item in zip(content, benchmark.items, strict=True)
        ]
    write_atomic(path, json.dumps(content) + "\n")


def read(benchmark: Benchmark, path: Path, keys: tuple[str, str] | None) -> dict[int | str, str]:
    """Read a submission; results by question come back as the texts of the choices, "" for no choice.

    Raises:
        ValueError: the file is missing, not of that form, or has an id twice, an id of no item, or not all ids.
    """
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=without_doubles)
    except FileNotFoundError:
        raise ValueError(f"no file {path}; write a submission first") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no submission ({error})") from None
    if keys is None:
        results = content.get("results") if type(content) is dict else None
        if type(results) is not dict:
            raise ValueError(f'{path} is no submission of {benchmark.name}, {{"results": {{id: index}}}}')
        require_all(benchmark, results, path)
        return {item.id: _choice(results[item.id], item.about["choices"], item.id, path) for item in benchmark.items}
    found: dict[int | str, str] = {}
    kind = type(benchmark.items[0].id)
    for n, row in enumerate(content if type(content) is list else [content]):
        number, text = (row.get(key) if type(row) is dict else None for key in keys)
        if type(number) is not kind or type(text) is not str:
            form = {keys[0]: "a number" if kind is int else "a text", keys[1]: "a text"}
            raise ValueError(f"{path}: entry {n} is not of the form of {benchmark.name}'s submissions, {form}")
        if number in found:
            raise ValueError(f"{path} has {number!r} twice; leave one")
        found[number] = text
    require_all(benchmark, found, path)
    return found


def require_all(benchmark: Benchmark, found: Mapping[Any, Any], what: Any) -> None:
    """Check that there is something for every item, and for nothing else.

    Raises:
        ValueError: naming some of the ids.
    """
    ids = {item.id for item in benchmark.items}
    name = f"{benchmark.name} ({benchmark.split}, {len(ids)} items)"
    if unknown := [number for number in found if number not in ids]:
        raise ValueError(f"{what}: {name} has no {named(unknown)}; take them out")
    if missing := [item.id for item in benchmark.items if item.id not in found]:
        raise ValueError(f"{what}: {named(missing)} of {name} are missing; an empty text stands for no answer")


def _choice(index: Any, choices: tuple[str, ...], number: int | str, path: Path) -> str:
    if type(index) is not int or not UNPARSED <= index < len(choices):
        raise ValueError(f"{path}: the result of {number!r} is {index!r}, its choices are 0 to {len(choices) - 1}")
    return choices[index] if index != UNPARSED else ""
