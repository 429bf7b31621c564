"""A finished run as a release folder with its model card: ``make release CONFIG=… OUT=…``"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval.figures import GROUPS, Metrics, table
from lavit.data.assets import licence_of
from lavit.experiment import Experiment, run_stage
from lavit.pipeline import LaVIT
from lavit.runs import read_json
from lavit.workspace import Workspace

STORED = "float16"
OWN = {"package": "files of your own", "licence": "their own, which the release must keep to"}
SHARD = "14MB"  # a file that version control and mirrors still take


def export(experiment: Experiment, run: Path, folder: Path) -> None:
    """Write what ``run`` trained to ``folder``; the card of a run without a report has no figures, and says so.

    Raises:
        ValueError: a stage is missing, or the folder holds something.
    """
    metrics = read_json(run / "metrics.json") if (run / "metrics.json").is_file() else {}
    if not metrics:
        if found := sorted(path.parent.name for path in run.glob("eval/*/figures.json")):
            raise ValueError(
                f"{run} has figures ({', '.join(found)}) and no metrics.json for the card; run its report first"
            )
        print(f"{run} has no metrics.json, which its report writes: the model card says that nothing was measured")
    work = Workspace(experiment, run)
    draws = "decoder" in (experiment.demo.stages or ["decoder"])
    system = LaVIT.from_run(work, renders=draws)
    sizes = {
        "tokenizer, with its frozen encoder": system.tokenizer,
        "language model": system.model,
        **({"pixel decoder": system.renderer} if draws else {}),
        **({"speech tokenizer, with its frozen encoder": system.parts.speech} if system.parts.speech else {}),
        **({"vocoder": system.parts.vocoder} if system.parts.vocoder else {}),
    }
    system.tokenizer.encoder.drop_classifier()  # as it is saved
    tensors = {name: {value.data_ptr(): value for value in part.state_dict().values()} for name, part in sizes.items()}
    counts = {name: sum(value.numel() for value in its.values()) for name, its in tensors.items()}
    indices = {part: read_json(run / "data" / part / "index.json") for part in work.all_parts()}
    card = model_card(experiment, metrics, indices, read_json(run / "environment.json"), counts)
    system.save_pretrained(folder, STORED, card, SHARD)


def model_card(
    experiment: Experiment,
    metrics: Metrics,
    indices: dict[str, dict[str, Any]],
    environment: dict[str, Any],
    counts: dict[str, int],
) -> str:
    """The text of README.md: what it is, what it was trained on, its figures beside their baselines, its limits."""
    sources = {name: about for index in indices.values() for name, about in index["licences"].items()}
    data = licence_rows(sources | texts_of(experiment))
    weights = licence_rows(weights_of(experiment)) or ["| none, all is from random numbers | | | |"]
    figures = [
        f"| {group} | {row.title}{f' ({row.note})' if row.note else ''} | {row.value} | "
        f"{', '.join(f'{mark.words} {mark.value}' for mark in row.marks)} |"
        for group, rows in table(metrics).items()
        for row in rows
    ]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    parts = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in counts.items())
    tests = next((metrics[group]["split"] for group in GROUPS if group in metrics), None)
    measured = f"""Measured on the {tests} split, whose concepts were not trained on; how is in the project's docs.

| | figure | this model | beside it |
|---|---|---|---|
{chr(10).join(figures)}"""
    e, commit = experiment, environment["commit"][:12] + (", with changes" if environment["dirty"] else "")
    had = {part: sum(index["counts"].values()) for part, index in indices.items()}
    clips = had.pop("speech", 0)
    draws = "pixel decoder" in counts
    drawing = (
        f"""
model.draw("{e.card.text}", seed=1).save("drawn.png")
model.reconstruct("cat.png", tokens=16).save("rebuilt.png")"""
        if draws
        else ""
    )
    folders = (
        """
`unet/` and `scheduler/` (and `vae/`, where there is one) below `decoder/` are diffusers' own folders.
"""
        if draws
        else ""
    )
    size = f" Its pictures are {e.decoder.model.image_size} pixels wide." if draws else ""
    return f"""---
library_name: lavit
tags: [image-to-text, {"text-to-image, " if draws else ""}visual-tokens]
license: other
license_name: those of its data and of the weights it began with
---
# {e.card.name}, {sum(counts.values()) / 1e6:.0f} M parameters

{e.report.about} ({e.report.paper}) Parameters: {parts}.

```python
from lavit.pipeline import LaVIT

model = LaVIT.from_pretrained("this folder")
model.caption("cat.png")
model.answer("cat.png", "what is it?"){drawing}
```
{folders}
## Trained on

{sum(had.values()):,} pictures{f" and {clips:,} clips of speech" if clips else ""}. {e.card.about}

| source | package | licence | what |
|---|---|---|---|
{chr(10).join(data)}

It began with these weights:

| weights | package | licence | what |
|---|---|---|---|
{chr(10).join(weights)}

## Figures

{measured if tests else "Nothing was measured before this was written."}

## Limits

{e.card.limits}{size} It repeats what its sources hold, stereotypes
included, and has no filter: `LaVIT.from_pretrained(…, policy=…)` takes one.

## Made by

Commit {commit} of the project with `{e.run}` (seed {e.seed}), Python {environment["python"]}, {versions}.
`config.yaml` has every setting of the parts and the sha256 of every file.
"""


def licence_rows(sources: dict[str, dict[str, str]]) -> list[str]:
    """Rows of a markdown table: name, package and version, licence, what it is."""
    return [
        f"| {name} | {a.get('package', '')} {a.get('version', '')} | {a['licence']} | {a.get('what', '')} |"
        for name, a in sources.items()
    ]


def texts_of(experiment: Experiment) -> dict[str, dict[str, str]]:
    """What the language model read besides pictures."""
    text = experiment.data.text
    if text is None:
        return {}
    return {name: licence_of(name) for name in text.assets} | {
        Path(path).name: OWN | {"what": "text"} for path in text.paths
    }


def weights_of(experiment: Experiment) -> dict[str, dict[str, str]]:
    """Where the weights came from that no stage of the run made from nothing, by the part that holds them."""
    llm, decoder, speech = experiment.pretrain.model.llm, experiment.decoder.model, experiment.tokenizer.speech
    packaged = speech is not None and speech.folder is None
    parts: dict[str, tuple[str | None, Any]] = {
        "encoder": (experiment.tokenizer.model.encoder.weights.asset, experiment.tokenizer.model.encoder.weights.file),
        "vectors of words": ("sentences" if experiment.pretrain.text.words else None, None),
        "language model": (llm.asset, llm.folder),
        "encoder of speech, first half": ("whisper-part1" if packaged else None, speech and speech.folder),
        "encoder of speech, second half": ("whisper-part2" if packaged else None, None),
        "U-Net": (None, decoder.unet.folder),
        "VAE": (None, decoder.latents.vae and decoder.latents.vae.folder),
    }
    return {
        part: licence_of(asset) if asset else OWN | {"what": Path(place).name}
        for part, (asset, place) in parts.items()
        if asset or place
    }


def run_export(write: Callable[[Experiment, Path, Path], None], module: str, argv: list[str]) -> None:
    """The command line ``FOLDER CONFIG [key=value …]`` of a ``module`` that writes a folder from a run."""
    if len(argv) < 2:
        raise SystemExit(f"usage: python -m {module} FOLDER CONFIG [key=value ...]")

    def stage(experiment: Experiment, run: Path) -> None:
        write(experiment, run, Path(argv[0]))
        print(f"{argv[0]} is ready")

    run_stage(stage, argv=argv[1:])


if __name__ == "__main__":
    run_export(export, "eval.export", sys.argv[1:])
