"""The stages of an experiment one after the other in one process, which spares their start."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eval.demo import stages_of
from lavit.experiment import run_stage

# Those that keep their clock and their end themselves.
OWN = (
    "tokenizer.prepare", "tokenizer.train", "tokenizer.extract", "pretrain.train", "tokenizer.train_decoder",
    "tokenizer.train_vocoder", "tokenizer.train_pyramid",
)  # fmt: skip


@contextmanager
def alone() -> Iterator[None]:
    """A training in this process leaves its rank and its port to no process that a later test starts."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run_stages(config: Path, run: Path, *overrides: str) -> None:
    """Run all stages that ``config`` names, or the ``overrides``, into the folder ``run``."""
    argv = [str(config), f"run={run}", *overrides]
    with alone():
        for stage in stages_of(argv[0], argv[1:]):
            main = importlib.import_module(stage.module).main
            run_stage(main, None if stage.module in OWN else stage.name, argv)
