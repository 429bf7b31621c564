"""From a config file and a command line to a stage at work in its run folder."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path

from lavit.config import changed_keys, load, read_plain_text, to_yaml
from lavit.experiment.checks import check
from lavit.experiment.schema import Experiment
from lavit.runs import (
    FolderLock,
    end_with_parent,
    is_done,
    mark_done,
    open_run,
    owners_of,
    stage_clock,
    stage_folder,
    take_over,
)

# The stage whose work depends on a setting, by the beginning of its key; what is not here concerns the whole run.
# Those of () change nothing but, with the number of processes, the last digits.
CHANGES_NO_RESULT = tuple(
    f"{stage}.train.{name}"
    for stage in ("tokenizer", "pretrain", "pretrain.phases.*", "autoencoder", "decoder", "vocoder", "pyramid")
    for name in ("workers", "log_every", "checkpoint_every", "keep_checkpoints")
)
OWNERS: dict[str, tuple[str, ...]] = {
    "demo": (),
    **dict.fromkeys(CHANGES_NO_RESULT, ()),
    "data": ("data",),
    "data.text": ("text",),
    "tokenizer": ("tokenizer",),
    "tokenizer.model.encoder": ("data",),
    "tokenizer.cache_features": ("data",),
    "tokenizer.speech": ("speech",),
    "vocoder": ("vocoder",),
    "extraction": (),
    "extraction.features": ("extract",),
    "pretrain": ("pretrain",),
    "pretrain.model.llm": ("pretrain", "pyramid"),  # whose words a pyramid's are
    "pretrain.text": ("pretrain", "pyramid"),
    "finetune": ("pretrain",),
    "autoencoder": ("autoencoder",),
    "decoder": ("decoder",),
    "decoder.model.latents": ("autoencoder",),
    "pyramid": ("pyramid",),
    "evaluation": ("eval",),
    "evaluation.batch": (),
    "benchmarks": (),
    "evaluation.clip": (),
    "evaluation.fid": (),
    "evaluation.geneval": (),
    "card": (),
    "report": (),
    "checks": (),
}


def load_experiment(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Experiment:
    """The experiment of a YAML file with ``key=value`` overrides.

    Raises:
        ValueError: see :func:`lavit.config.load` and :func:`check`.
    """
    experiment = load(Experiment, path, overrides)
    check(experiment)
    return experiment


def taken_tokens(experiment: Experiment) -> Callable[[Path], None]:
    """What gives a run the tokens of another one, if the experiment takes them from there.

    Raises:
        ValueError: that run has no tokens yet, or they are made otherwise than the experiment says.
    """
    key = "tokens_from" if experiment.tokens_from else "finetune.start"
    start = experiment.tokens_from or experiment.finetune.start
    if start is None:
        return lambda run: None
    if not is_done(Path(start) / "extract"):
        raise ValueError(f"{key}: {start} has no finished extract; make it first")
    sections = ["data", "tokenizer", *(["extraction.features"] if experiment.extraction.features else [])]
    changed = require_alike(key, Path(start), experiment, tuple(sections), ("data.text", *CHANGES_NO_RESULT))
    own_texts = any(name.startswith("data.text") for name in changed)
    return lambda run: take_over(Path(start), run, texts=not own_texts)


def require_alike(
    key: str, start: Path, experiment: Experiment, sections: tuple[str, ...], may_differ: tuple[str, ...]
) -> list[str]:
    """Check that the run ``start``, named by ``key``, has the settings of ``experiment`` in these sections.

    Returns:
        All keys whose values differ, dotted.

    Raises:
        ValueError: naming up to five that must not.
    """

    def under(name: str, beginnings: tuple[str, ...]) -> bool:
        return owners_of(name, dict.fromkeys(beginnings, ())) is not None

    known, own = (read_plain_text(to_yaml(e)) for e in (load_experiment(start / "config.yaml"), experiment))
    changed = changed_keys(known, own)
    wrong = [name for name in changed if under(name, sections) and not under(name, may_differ)]
    if wrong:
        raise ValueError(f"{key}: {start} has other settings of {', '.join(wrong[:5])}; they must be the same here")
    return changed


def run_stage(
    main: Callable[[Experiment, Path], None], stage: str | None = None, argv: list[str] | None = None
) -> None:
    """Every run script's command line: ``CONFIG [key=value …]``.

    Opens the run folder and calls ``main(experiment, run)``; a user's mistake ends with one line and status 2. With
    ``stage``, a folder of the run, it also skips what is done, keeps a second writer out, counts the seconds and marks
    the end; the training loop does that for the stages that train.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        spec = sys.modules[main.__module__].__spec__  # a module that is run is called __main__; its spec knows its name
        raise SystemExit(f"usage: python -m {spec.name if spec else main.__module__} CONFIG [key=value ...]")
    end_with_parent()
    try:
        experiment = load_experiment(argv[0], argv[1:])
        take = taken_tokens(experiment)
        run = open_run(Path(experiment.run), experiment, OWNERS)
        take(run)
        if stage is None:
            main(experiment, run)
        elif not is_done(folder := stage_folder(run, stage)):
            with FolderLock(folder), stage_clock(folder):
                main(experiment, run)
                mark_done(folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        remedy = "make room and give the same command again: it goes on where it was"
        print(f"error: the disk of {error.filename or 'the run'} is full; {remedy}", file=sys.stderr)
        raise SystemExit(2) from error
