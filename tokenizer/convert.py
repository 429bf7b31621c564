"""LaVIT's published tokenizer as a run of ours: ``make convert CONFIG=configs/lavit/official.yaml OFFICIAL=FOLDER``

What follows reads it like a tokenizer that was trained here: ``make extract``, ``make eval-tokenizer``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lavit.experiment import Experiment, run_stage
from lavit.runs import is_done, mark_done
from lavit.tokenizers.official import open_official
from lavit.training.weights import save_weights
from lavit.workspace import Workspace


def convert(experiment: Experiment, run: Path, official: Path) -> list[str]:
    """Write ``tokenizer.safetensors`` into the run unless it is there; returns the published names without a use."""
    folder = Workspace(experiment, run).folder("tokenizer")
    if is_done(folder):
        return []
    tokenizer, unexpected = open_official(official, experiment.tokenizer.model)
    save_weights(tokenizer, folder / "tokenizer.safetensors")
    mark_done(folder, {"unexpected": unexpected})
    return unexpected


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        raise SystemExit("usage: python -m tokenizer.convert FOLDER CONFIG [key=value ...]")

    def stage(experiment: Experiment, run: Path) -> None:
        for name in convert(experiment, run, Path(argv[0])):
            print(f"not used: {name}")
        print(f"{run / 'tokenizer' / 'tokenizer.safetensors'} is ready")

    run_stage(stage, argv=argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
