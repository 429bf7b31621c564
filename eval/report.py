"""Everything a run measured, as ``metrics.json`` and one page that opens offline, ``report.html``. ``make report``"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.figures import BUDGETS, CLOCKS, Metrics, budgets, groups_of, metrics_of, read_figures, stage_seconds, table
from lavit.data.order import evenly
from lavit.data.shards import read_index
from lavit.experiment import Experiment, run_stage
from lavit.metrics.captions import category_of
from lavit.metrics.vqa import vqa_accuracy
from lavit.pages.html import render
from lavit.pages.pictures import data_uri, kept_patches, linear_drafts, lit, to_image
from lavit.pages.plots import code_usage_plot, curves, place_map, token_histogram
from lavit.runs import read_json, write_atomic, write_json
from lavit.tokenizers.features import PictureSet
from lavit.tokenizers.tokenizer import Tokenizer
from lavit.workspace import Workspace

TEMPLATE = Path(__file__).with_name("report.html.j2")
SHOWN = {"caption": 16, "vqa": 12, "text_to_image": 24, "visual_words": 12, "speech": 24}
LISTED = 21  # words of a pyramid that are written out; the rest are too many to read
SIDE = 192  # pixels of a shown original


def main(experiment: Experiment, run: Path) -> None:
    work = Workspace(experiment, run)
    stages = experiment.demo.stages
    figures = read_figures(run, groups_of(stages, vqa=experiment.data.vqa is not None))
    page = build_page(work, figures)
    metrics = metrics_of(figures, stage_seconds(run, stages))  # after the pictures and plots, whose time counts too
    write_atomic(run / "report.html", render(TEMPLATE, page | measured(metrics)))
    write_json(run / "metrics.json", metrics)


def measured(metrics: Metrics) -> dict[str, Any]:
    """What the template shows of metrics.json."""
    seconds = metrics["seconds"]
    stages = [stage for stage in CLOCKS if stage in seconds]
    longest = max([1.0, *(seconds[stage] or 0.0 for stage in stages)])
    return {"metrics": metrics, "table": table(metrics), "seconds": seconds, "stages": stages, "longest": longest}


def build_page(work: Workspace, figures: Metrics) -> dict[str, Any]:
    """All else that it shows: pictures, plots, and where they come from."""
    drawn, rebuilt = figures.get("text_to_image"), figures.get("reconstruction")
    tokenizer = work.tokenizer() if figures.keys() & {"reconstruction", "tokenizer"} else None
    return {
        "name": work.run.resolve().name,
        "about": work.experiment.report,
        "split": figures.get("tokenizer", {}).get("split", work.experiment.evaluation.split),
        "figures": figures,
        "reconstructions": reconstructions(work, tokenizer, rebuilt) if rebuilt else [],
        "budgets": budgets(rebuilt) if rebuilt else {},
        "captions": captions(work, figures["caption"]) if "caption" in figures else [],
        "questions": questions(work, figures["vqa"]) if "vqa" in figures else [],
        "drawings": drawings(work, drawn) if drawn else [],
        "prompts": prompts(work, drawn["image_text_prompts"]) if drawn else [],
        "practised": work.experiment.pretrain.mixture.interleaved > 0,
        "context": in_context(work, figures["in_context"]) if "in_context" in figures else None,
        "named": named(work, figures["visual_words"]) if "visual_words" in figures else [],
        "spoken": spoken(work, figures["speech"]) if "speech" in figures else [],
        "pyramids": pyramids(work, figures["pyramid"]) if "pyramid" in figures else [],
        "curves": training_curves(work),
        "tokens": token_plots(work, tokenizer, figures["tokenizer"]) if "tokenizer" in figures else None,
        **provenance(work),
    }


# ---------------------------------------------------------------------------------------------------- pictures


def reconstructions(work: Workspace, tokenizer: Tokenizer, figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Held-out pictures, the patches kept of them, their words, the linear draft, and the pictures rendered from these
    words and from other numbers of tokens."""
    places = figures["shown"]
    images = read_images(work, "reconstruction", len(figures["numbers"]))
    others = read_images(work, "reconstruction", len(places), "budgets.npy")
    numbers = [figures["numbers"][place] for place in places]
    split, encoder = work.experiment.evaluation.split, tokenizer.config.encoder
    pictures, codes = work.pictures("captions", split), work.codes("captions", split)
    kept = kept_patches(tokenizer, pictures.inputs(numbers, encoder.image_size))
    drafts: list[str | None] = [None] * len(numbers)
    if work.experiment.decoder.model.draft:
        features = tokenizer.decode(tokenizer.lookup(*codes.padded(numbers)))
        drafts = [data_uri(image) for image in linear_drafts(work.renderer(), features)]
    cards = []
    for place, n, keep, draft, made in zip(places, numbers, kept, drafts, others, strict=True):
        original = to_image(pictures.pixels([n], SIDE)[0])
        mask = keep.unflatten(0, (encoder.grid, encoder.grid)).numpy()
        cards.append({
            "caption": pictures.captions[n],
            "original": data_uri(original),
            "kept": data_uri(lit(original, mask)),
            "draft": draft,
            "rendered": data_uri(images[place]),
            "budgets": {figures[f"budget_{name}_tokens"]: data_uri(x) for name, x in zip(BUDGETS, made, strict=True)},
            "tokens": int(keep.sum()),
            "patches": encoder.patches,
            "codes": codes.codes(n).tolist(),
        })  # fmt: skip
    return cards


def captions(work: Workspace, figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Captions beside the truth and the nearest training picture's, and whether they are of its category."""
    samples = evenly(figures["samples"], SHOWN["caption"])
    return [
        {
            **sample,
            "picture": picture,
            "written_right": same_category(sample["written"], sample["truth"]),
            "nearest_right": same_category(sample["nearest"], sample["truth"]),
        }
        for sample, picture in zip(samples, thumbnails(work, "captions", samples), strict=True)
    ]


def same_category(caption: str, truth: str) -> bool | None:
    """Whether the class words before the colon agree; None where the truth has none."""
    return category_of(caption) == category_of(truth) if category_of(truth) else None


def questions(work: Workspace, figures: dict[str, Any]) -> list[dict[str, Any]]:
    samples = evenly(figures["samples"], SHOWN["vqa"])
    return [
        {
            **sample,
            "picture": picture,
            "answer": max(sample["answers"], key=sample["answers"].count),
            "right": vqa_accuracy(sample["given"], sample["answers"]) >= 0.5,
        }
        for sample, picture in zip(samples, thumbnails(work, "vqa", samples), strict=True)
    ]


def drawings(work: Workspace, figures: dict[str, Any]) -> list[dict[str, Any]]:
    """What was drawn of a text, beside the picture that the text belongs to."""
    images = read_images(work, "text_to_image", len(figures["samples"]))
    samples = evenly(list(zip(figures["samples"], images, strict=True)), SHOWN["text_to_image"])
    real = thumbnails(work, "captions", [sample for sample, _ in samples])
    return [
        {**sample, "drawn": data_uri(image), "picture": picture}
        for (sample, image), picture in zip(samples, real, strict=True)
    ]


def prompts(work: Workspace, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pictures with another one's text, and what was drawn of both."""
    images = read_images(work, "text_to_image", len(samples), "prompts.npy")
    shown = zip(samples, thumbnails(work, "captions", samples), images, strict=True)
    return [{**sample, "picture": picture, "drawn": data_uri(image)} for sample, picture, image in shown]


def in_context(work: Workspace, figures: dict[str, Any]) -> dict[str, Any]:
    """Episodes with the words of their pictures, and pyramids that were written, painted."""
    samples, names = figures["samples"], figures["painted"]
    every = [example for sample in samples for example in [*sample["examples"], sample]]
    pictures = iter(thumbnails(work, "captions", every))
    episodes = [
        {**sample, "examples": [{**example, "picture": next(pictures)} for example in sample["examples"]],
         "picture": next(pictures), "right": sample["chosen"] == sample["truth"]}
        for sample in samples
    ]  # fmt: skip
    images = iter(read_images(work, "in_context", len(figures["numbers"]) * len(names)))
    painted = [
        {"original": original, "made": {name: data_uri(next(images)) for name in names}}
        for original in thumbnails(work, "captions", [{"number": number} for number in figures["numbers"]])
    ]
    return {"episodes": episodes, "painted": painted, "cells": figures["cells"], "layers": figures["layers"]}


def named(work: Workspace, figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Pictures with the words of each patch, row by row."""
    samples, grid = evenly(figures["samples"], SHOWN["visual_words"]), figures["grid"]
    return [
        {**sample, "picture": picture, "rows": [sample["words"][y * grid : (y + 1) * grid] for y in range(grid)]}
        for sample, picture in zip(samples, thumbnails(work, "captions", samples), strict=True)
    ]


def spoken(work: Workspace, figures: dict[str, Any]) -> list[dict[str, Any]]:
    """What was written of clips, with the sounds that were kept of some as data URIs by name."""
    cards = []
    for sample in figures["samples"][: SHOWN["speech"]]:
        files = sorted((work.run / "eval" / "speech").glob(f"{sample['number']}-*.flac"))
        sounds = {file.stem.partition("-")[2]: base64.b64encode(file.read_bytes()).decode() for file in files}
        cards.append({**sample, "sounds": {name: f"data:audio/flac;base64,{data}" for name, data in sounds.items()}})
    return cards


def pyramids(work: Workspace, figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Pictures with their words layer by layer, and what each prefix of the layers gives."""
    samples, counts = figures["samples"], figures["counts"]
    images = read_images(work, "pyramid", len(samples), layers=len(counts))
    upto = [sum(counts[: n + 1]) for n in range(len(counts))]
    return [
        {
            **sample,
            "picture": picture,
            "words": [words for words, tokens in zip(sample["words"], upto, strict=True) if tokens <= LISTED],
            "prefixes": [(tokens, data_uri(image)) for tokens, image in zip(upto, made, strict=True)],
        }
        for sample, picture, made in zip(samples, thumbnails(work, "captions", samples), images, strict=True)
    ]


def thumbnails(work: Workspace, part: str, samples: list[dict[str, Any]]) -> list[str]:
    """The stored pictures that samples speak of, as data URIs."""
    pictures = PictureSet(work.shards(part, work.experiment.evaluation.split))
    return [data_uri(to_image(pixels)) for pixels in pictures.pixels([s["number"] for s in samples], SIDE)]


def read_images(work: Workspace, group: str, count: int, name: str = "images.npy", layers: int = 0) -> np.ndarray:
    """(count, S, S, 3) uint8 that an evaluation rendered, or (count, budgets, S, S, 3) in ``budgets.npy``, or with a
    pyramid's ``layers`` (count, layers, S, S, 3).

    Raises:
        ValueError: they are missing, or are not as many as its figures say.
    """
    path = work.run / "eval" / group / name
    if not path.is_file():
        raise ValueError(f"no pictures {path}; remove {path.parent} and run the evaluation again")
    images = np.load(path)
    several = len(BUDGETS) if name == "budgets.npy" else layers
    shape = (count, several) if several else (count,)
    if images.dtype != np.uint8 or images.ndim != len(shape) + 3 or images.shape[: len(shape)] != shape:
        raise ValueError(
            f"{path} holds {images.dtype} {images.shape} and its figures speak of {count} pictures; "
            f"remove {path.parent} and run the evaluation again"
        )
    return images


# ------------------------------------------------------------------------------------------------------- plots


def training_curves(work: Workspace) -> list[dict[str, str]]:
    """A plot of each training from its log."""
    stage = work.experiment.tokenizer
    codebook = {"codebook on": stage.plain_steps} if 0 < stage.plain_steps < stage.train.steps else {}
    read = {"text": "text", "image": "visual words", "audio": "speech", "visual": "divergence"}
    phases = [
        (f"pretrain/{name}" if name else "pretrain", f"Language model{name and ': '}{name}", "nats a token", read, {})
        for name in work.experiment.pretrain.parts()
    ]
    plots = (
        ("tokenizer", "Tokenizer", "cosine, reconstructed", {"cosine": "cosine"}, codebook),
        *phases,
        ("autoencoder", "Autoencoder", "error of pixels", {"error": "error"}, {}),
        ("pyramid", "Pyramid", "loss", {"error": "pixels", "commitment": "commitment", "features": "features"}, {}),
        ("decoder", "Pixel decoder", "mean squared error", {"loss": "U-Net", "draft": "linear draft"}, {}),
        ("vocoder", "Vocoder", "error of log-mel magnitudes", {"loss": "error"}, {}),
    )
    made = work.experiment.demo.stages or ["tokenizer", "pretrain", "decoder"]
    if work.experiment.trains_autoencoder and not work.experiment.demo.stages:
        made = [*made, "autoencoder"]
    plots = [plot for plot in plots if plot[0].partition("/")[0] in made]
    return [
        {"title": title, "plot": curves(read_log(work.run / folder / "log.jsonl", names), label, marks)}
        for folder, title, label, names, marks in plots
    ]


def read_log(path: Path, names: dict[str, str]) -> dict[str, tuple[list[int], list[float]]]:
    """(steps, values) of some figures of a training log, under new names; of a step made twice, the later one.

    Raises:
        ValueError: there is no log, or none of the figures in it.
    """
    if not path.is_file():
        raise ValueError(f"no training log {path}; run its stage first")
    lines: dict[int, dict[str, Any]] = {}
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # cut by a kill while it was written; the step was made again
            continue
        lines.setdefault(line["step"], {}).update(line)
    series = {}
    for name, words in names.items():
        points = [(step, line[name]) for step, line in sorted(lines.items()) if line.get(name) is not None]
        if any(value for _, value in points):
            steps, values = zip(*points, strict=True)
            series[words] = (list(steps), list(values))
    if not series:
        raise ValueError(f"{path} logs none of {', '.join(names)}; remove its folder and train again")
    return series


def token_plots(work: Workspace, tokenizer: Tokenizer, figures: dict[str, Any]) -> dict[str, Any]:
    """Numbers of tokens, use of the codes and kept places, over one picture of every held-out caption."""
    split = work.experiment.evaluation.split
    codes = work.codes("captions", split)
    used = torch.cat([codes.codes(n) for n in work.pictures("captions", split).distinct()])
    counts = torch.bincount(used % tokenizer.config.quantizer.codes, minlength=tokenizer.config.quantizer.codes).numpy()
    return {
        "histogram": token_histogram(figures["histogram"], figures["tokens_mean"]),
        "usage": code_usage_plot(counts, figures["perplexity"]),
        "places": place_map(np.array(figures["kept"]["by_place"])),
        "kept": figures["kept"],
        "selection": tokenizer.config.selection.chosen()[0],
    }


# --------------------------------------------------------------------------------------------------- provenance


def provenance(work: Workspace) -> dict[str, Any]:
    """Data with their licences, the machine, the versions and the configuration."""
    indices = {part: read_index(work.run / "data" / part) for part in work.all_parts()}
    return {
        "data": indices,
        "licences": {name: about for index in indices.values() for name, about in index["licences"].items()},
        "environment": read_json(work.run / "environment.json"),
        "config": (work.run / "config.yaml").read_text(),
    }


if __name__ == "__main__":
    run_stage(main, "report")
