"""The stages of an experiment one after the other in one process, which spares their start."""

from __future__ import annotations

import importlib
from pathlib import Path

from eval.demo import stages_of
from lavit.experiment import run_stage

# Those that keep their clock and their end themselves.
OWN = ("tokenizer.prepare", "tokenizer.train", "tokenizer.extract", "pretrain.train", "tokenizer.train_decoder")


def run_stages(config: Path, run: Path) -> None:
    """Run all stages that ``config`` names into the folder ``run``."""
    argv = [str(config), f"run={run}"]
    for stage in stages_of(argv[0], argv[1:]):
        main = importlib.import_module(stage.module).main
        run_stage(main, None if stage.module in OWN else stage.name, argv)
