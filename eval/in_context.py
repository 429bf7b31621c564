"""What a frozen language model does in context with pictures that are words of its own: answers, and pyramids written.

See :mod:`eval.few_shot` for what stands beside the answers; beside the pyramids the commonest word of every place over
the examples, the last example copied, and random words.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.few_shot import Bench, answers, by_category, by_label, check_words, episode_shown, first_cells, understanding
from lavit.data.order import generator_for, seed_for
from lavit.experiment import Experiment, run_stage
from lavit.generation.denoising import VARIANTS, Problem, problems_of, write_pyramids
from lavit.generation.episodes import cells_of, draw_episodes
from lavit.generation.in_context import Contexts, check_word_ids, directions
from lavit.metrics.in_context import accuracy_by_layer, majority_copy, mean_and_error
from lavit.runs import Progress, read_json, write_json
from lavit.tokenizers.codes import CodeSet
from lavit.workspace import Workspace

AT_ONCE = 4  # pyramids that are written together, and kept
PAINTED = ("last example", "commonest words", "written", "written from a corrupted one", "its own words")


def main(experiment: Experiment, run: Path) -> None:
    work, cfg = Workspace(experiment, run), experiment.evaluation
    config, seed = cfg.in_context, experiment.seed
    words, pyramid, pictures = work.word_list(), work.pyramid(), work.pictures("captions", cfg.split)
    folder = work.folder("eval/in_context")
    codes = checked_codes(work.pyramid_codes(cfg.split), len(words.ids))
    check_words(config, sum(pyramid.counts))
    classes = {"category": by_category(pictures), "label": by_label(pictures)}
    cells, layers = cells_of(config), config.denoising.layers(list(pyramid.counts))
    for cell in cells:  # what cannot be is known before anything has taken its time
        draw_episodes(classes[cell.task], cell.ways, cell.shots, range(1), seed)
    numbers = pictures.distinct(config.denoising.pictures)
    rows = torch.stack([codes(number)[: sum(layers)] for number in numbers])
    problems = {variant: problems_of(variant, rows, len(words.ids), config.denoising, seed) for variant in VARIANTS}
    model, contexts = work.frozen_llm(), Contexts(work.text_tokenizer())
    check_word_ids(words.ids, model.vocabulary.text_size)
    bench = Bench(model, contexts, words.ids, codes, config, seed, directions(model.embedding.text.weight))
    progress = Progress(folder, len(cells) * config.episodes + len(VARIANTS) * len(numbers), "episodes")
    parts = Parts(folder / "parts", progress)
    answered = {
        cell: parts.made(cell.name, config.episodes, config.at_once, partial(answers, bench, cell, classes[cell.task]))
        for cell in cells
    }
    made = {
        variant: torch.tensor(parts.made(variant, len(numbers), AT_ONCE, partial(written, bench, variant, its, layers)))
        for variant, its in problems.items()
    }
    figures = understanding(config, answered)
    for variant in VARIANTS:
        figures |= generation(variant, problems[variant], made[variant], layers, bench)
    figures["layers"] = [row for variant in VARIANTS for row in figures.pop(f"{variant}_layers")]
    shown = numbers[: config.denoising.shown]
    np.save(folder / "images.npy", painted(pyramid.decode_prefix, problems, made, len(shown)))
    about = {"split": cfg.split, "numbers": shown, "words": config.words[0], "layer_tokens": layers, "painted": PAINTED}
    samples = [episode_shown(bench, cell, classes, answered[cell], words.words) for cell in first_cells(cells)]
    write_json(folder / "figures.json", figures | about | {"samples": [s for part in samples for s in part]})


def checked_codes(codes: CodeSet, size: int) -> Callable[[int], Tensor]:
    """The words (n,) int64 in [0, size) of a picture by its number.

    The call raises ValueError for a picture without words, or with words that the list has not.
    """

    def found(number: int) -> Tensor:
        its = codes.codes(number)
        if not len(its):
            raise ValueError(f"picture {number} has no words, for it could not be read; take it out of the data")
        if int(its.min()) < 0 or int(its.max()) >= size:
            raise ValueError(
                f"picture {number} has words from {int(its.min())} to {int(its.max())} and the word list has {size}; "
                "make the words anew"
            )
        return its

    return found


class Parts:
    """Results that are kept as they are made, so that what was cut goes on where it stopped."""

    def __init__(self, folder: Path, progress: Progress):
        self.folder, self.progress, self.done = folder, progress, 0
        folder.mkdir(exist_ok=True)

    def made(self, name: str, total: int, size: int, make: Callable[[range], list]) -> list:
        """``total`` results under a name, ``size`` of them made at a time, none of them twice."""
        path = self.folder / f"{name}.json"
        results = read_json(path) if path.is_file() else []
        while len(results) < total:
            results += make(range(len(results), min(len(results) + size, total)))
            write_json(path, results)
            self.progress.update(self.done + len(results), name)
        self.done += total
        return results


def written(bench: Bench, variant: str, problems: list[Problem], layers: list[int], part: range) -> list[list[int]]:
    """The words that are written for the problems at these places."""
    seeds = [seed_for(bench.seed, number) for number in part]
    chosen = [problems[number] for number in part]
    config = bench.config.denoising
    return write_pyramids(bench.model, bench.contexts, chosen, variant, bench.ids, layers, config, seeds).tolist()


def copies(variant: str, problems: list[Problem], size: int, seed: int) -> dict[str, Tensor]:
    """(P, n) int64 what is written without a language model: see :func:`generation`."""
    truth = torch.stack([problem.truth for problem in problems])
    return {
        "majority": torch.stack([majority_copy(problem.shown) for problem in problems]),
        "last": torch.stack([problem.shown[-1] for problem in problems]),
        "random": torch.randint(size, truth.shape, generator=generator_for(seed)),
        **({} if problems[0].query is None else {"given": torch.stack([problem.query for problem in problems])}),
    }


def generation(variant: str, problems: list[Problem], made: Tensor, layers: list[int], bench: Bench) -> dict[str, Any]:
    """The share of right words, in all and by layer, beside the commonest word of each place over the examples, the
    last example copied, random words, and, where the query is given corrupted, that as it is."""
    truth = torch.stack([problem.truth for problem in problems])
    beside = copies(variant, problems, len(bench.ids), bench.seed)
    mean, error = mean_and_error((made == truth).double().mean(1).tolist())
    figures = {f"{variant}_accuracy": mean, f"{variant}_accuracy_error": error, f"{variant}_n": len(problems)}
    figures |= {f"{variant}_{name}": float((copy == truth).double().mean()) for name, copy in beside.items()}
    by_layer = {name: accuracy_by_layer(copy, truth, layers) for name, copy in {"accuracy": made, **beside}.items()}
    rows = [
        {
            "variant": variant,
            "layer": number + 1,
            "tokens": tokens,
            **{name: by_layer[name][number] for name in by_layer},
        }
        for number, tokens in enumerate(layers)
    ]
    return figures | {f"{variant}_layers": rows}


@torch.no_grad()
def painted(
    paint: Callable[[Tensor], Tensor], problems: dict[str, list[Problem]], made: dict[str, Tensor], count: int
) -> np.ndarray:
    """(count · 5, S, S, 3) uint8 of each of the first ``count`` pictures what :data:`PAINTED` says."""
    own = problems["denoise"][:count]
    rows = [
        torch.stack([problem.shown[-1] for problem in own]),
        torch.stack([majority_copy(problem.shown) for problem in own]),
        made["denoise"][:count],
        made["reconstruct"][:count],
        torch.stack([problem.truth for problem in own]),
    ]
    pixels = torch.stack([paint(row) for row in rows], dim=1)
    return (pixels.flatten(0, 1).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


if __name__ == "__main__":
    run_stage(main, "eval/in_context")
