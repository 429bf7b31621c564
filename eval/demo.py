"""Every stage of an experiment, from raw packages to the report: ``python -m eval.demo CONFIG [key=value ...]``.

A stage that is done is skipped and one that was cut goes on where it stopped, so that the same command continues.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lavit.conduct import Conductor, Stage
from lavit.config import load_section, read_layers
from lavit.launch import SAVE_PATIENCE
from lavit.runs import DemoConfig, Screen, end_with_parent, read_json, read_seconds, require_same_config, write_json
from lavit.runs.progress import clock

TOGETHER = "models and figures"  # two of these at a time, each with half of the cores
LAVIT = (
    Stage("data", "tokenizer.prepare", clocks=("assets", "data")),
    Stage("tokenizer", "tokenizer.train", needs=("data",), ranks=True),
    Stage("extract", "tokenizer.extract", needs=("tokenizer",)),
    Stage("pretrain", "pretrain.train", needs=("extract",), ranks=True, group=TOGETHER),
    Stage("decoder", "tokenizer.train_decoder", needs=("extract",), ranks=True, group=TOGETHER),
    Stage("eval/tokenizer", "tokenizer.evaluate", needs=("extract",), group=TOGETHER),
    Stage("eval/caption", "eval.caption", needs=("pretrain",), group=TOGETHER),
    Stage("eval/text_to_image", "eval.text_to_image", needs=("pretrain", "decoder"), group=TOGETHER),
    Stage("eval/vqa", "eval.vqa", needs=("pretrain",), group=TOGETHER),
    Stage("eval/reconstruction", "eval.reconstruct", needs=("decoder",), group=TOGETHER),
    Stage(
        "report",
        "eval.report",
        needs=("eval/tokenizer", "eval/caption", "eval/vqa", "eval/reconstruction", "eval/text_to_image"),
    ),
)
# Between the data and the decoder, where the decoder works on latents of a VAE that is to be trained.
AUTOENCODER = Stage("autoencoder", "tokenizer.train_autoencoder", needs=("data",), ranks=True)
# What ``demo.stages`` may name beside them: before the extraction, and after all others.
SPEECH = Stage("speech", "tokenizer.train_speech", needs=("data",))
TOKENIZERS = (
    SPEECH,
    Stage("pyramid", "tokenizer.train_pyramid", needs=("data",), ranks=True),
    Stage("words", "tokenizer.extract_words", needs=("pyramid",)),
)
OTHERS = (
    Stage("eval/visual_words", "eval.visual_words", needs=("pretrain",), group=TOGETHER),
    Stage("vocoder", "tokenizer.train_vocoder", needs=("extract",), ranks=True, group=TOGETHER),
    Stage("eval/speech", "eval.speech", needs=("pretrain", "vocoder"), group=TOGETHER),
    Stage("eval/in_context", "eval.in_context", needs=("words",), group=TOGETHER),
    Stage("eval/pyramid", "eval.pyramid", needs=("words",), group=TOGETHER),
)

HEADLINES = {
    "tokenizer.cosine": "tokenizer cosine, held out",
    "caption.category_accuracy": "caption category accuracy",
    "caption.cider": "caption CIDEr",
    "vqa.accuracy": "VQA accuracy",
    "reconstruction.r5": "reconstruction R@5",
    "text_to_image.rendered_r10": "text to image R@10",
    "in_context.accuracy": "answers in context",
    "visual_words.category_accuracy": "class by visual words",
    "speech.cer": "speech to text, character error rate",
    "pyramid.psnr": "pyramid PSNR",
    "pyramid.r5": "pyramid R@5",
    "pyramid.label_r10": "label R@10 by upper words",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 after a failed stage, 2 for a mistake of the user's, 130 or 143 after a signal."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0].startswith("-") or "=" in argv[0]:
        print("usage: python -m eval.demo CONFIG [key=value ...]", file=sys.stderr)
        return 2
    end_with_parent(grace=SAVE_PATIENCE + 15)
    screen = Screen()
    try:
        run = Path(load_section(argv[0], argv[1:], "run", str))
        demo = load_section(argv[0], argv[1:], "demo", DemoConfig)
        if not (run / "config.yaml").is_file() and (mistake := schema_mistake(argv)):
            raise ValueError(mistake)
        stages = stages_of(argv[0], argv[1:])
        conductor = Conductor(stages, run, argv, demo, screen)
        status = conductor.conduct()
        if status == 0:
            check_settings(run, argv[0], argv[1:], seen=bool(conductor.ran))
            show_results(run, stages, screen)
        return status
    except ValueError as error:
        screen.line(f"error: {error}")
        return 2


def stages_of(config: str, overrides: Sequence[str]) -> tuple[Stage, ...]:
    """The stages of an experiment: those that it names, or LaVIT's, with an autoencoder's if need be.

    Raises:
        ValueError: a name of none.
    """
    if names := load_section(config, overrides, "demo", DemoConfig).stages:
        return chosen(names)
    vae: dict[str, Any] | None = None
    for _, layer in read_layers(config, list(overrides)):
        latents = ((layer.get("decoder") or {}).get("model") or {}).get("latents") or {}
        vae = None if latents.get("folded") is not None else vae  # another choice
        vae = {**(vae or {}), **latents["vae"]} if latents.get("vae") is not None else vae
    if vae is None or vae.get("folder") is not None:
        return LAVIT
    return with_autoencoder()


def with_autoencoder() -> tuple[Stage, ...]:
    """LaVIT's stages with an autoencoder's before the decoder's, which works on its latents."""
    place = next(i for i, stage in enumerate(LAVIT) if stage.name == "decoder")
    decoder = replace(LAVIT[place], needs=(*LAVIT[place].needs, AUTOENCODER.name))
    return (*LAVIT[:place], AUTOENCODER, decoder, *LAVIT[place + 1 :])


def chosen(names: Sequence[str]) -> tuple[Stage, ...]:
    """The stages with these names in their order, each after those that it is built on, be it by one that is left out.

    Raises:
        ValueError: a name of none.
    """
    *before, report = with_autoencoder()
    place = next(i for i, stage in enumerate(before) if stage.name == "extract")
    before[place : place + 1] = *TOKENIZERS, replace(before[place], needs=(*before[place].needs, SPEECH.name))
    # A pyramid's captions and answers are written by a model that is not trained, of words that must be there.
    read = ("eval/caption", "eval/vqa")
    before = [replace(stage, needs=(*stage.needs, "words")) if stage.name in read else stage for stage in before]
    known = {stage.name: stage for stage in (*before, *OTHERS, report)}
    if strange := [name for name in names if name not in known]:
        raise ValueError(f"demo.stages: '{strange[0]}' is no stage; there are {', '.join(known)}")

    def needs(stage: Stage) -> tuple[str, ...]:
        direct = [(need,) if need in names else needs(known[need]) for need in stage.needs]
        return tuple(dict.fromkeys(name for part in direct for name in part))

    made = [replace(stage, needs=needs(stage)) for name, stage in known.items() if name in names]
    others = tuple(stage.name for stage in made if stage.name != report.name)
    return tuple(replace(stage, needs=others) if stage.name == report.name else stage for stage in made)


def schema_mistake(argv: Sequence[str]) -> str:
    """What is wrong with the settings, empty if nothing is.

    The whole schema needs every component, torch included: another process looks at it, so that this one stays small.
    """
    done = subprocess.run([sys.executable, "-m", "lavit.experiment", *argv], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1].removeprefix("error: ")


def check_settings(run: Path, config: str, overrides: Sequence[str], seen: bool) -> None:
    """Check that a finished run was made with the settings asked for now; the files they came from are compared first.

    Args:
        run: the run folder.
        config: the experiment's file.
        overrides: ``key=value`` strings.
        seen: a stage has run with these settings, and so has checked them.

    Raises:
        ConfigError: it was made with others.
    """
    asked = json.loads(json.dumps([layer for _, layer in read_layers(config, list(overrides))], default=str))
    path = run / "asked.json"
    if path.is_file() and read_json(path) == asked:
        return
    if not seen:  # imports every component, torch included: only now
        from lavit.experiment import OWNERS, load_experiment

        require_same_config(run, load_experiment(config, list(overrides)), OWNERS)
    write_json(path, asked)


def show_results(run: Path, stages: Sequence[Stage], screen: Screen) -> None:
    """Print the minutes of each stage, the chief figures and where the report is."""
    for stage in stages:
        for folder, seconds in stage.seconds(run).items():
            screen.line(f"  {folder:<28}{clock(seconds):>8}")
    screen.line(f"  {'in all':<28}{clock(read_seconds(run)):>8}")
    metrics: dict[str, Any] = read_json(run / "metrics.json")
    for key, words in HEADLINES.items():
        group, name = key.split(".")
        value = metrics.get(group, {}).get(name)
        if value is not None:
            screen.line(f"  {words:<28}{value:>8.3f}")
    screen.line(f"report: {run / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main())
