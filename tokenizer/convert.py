"""LaVIT's published tokenizer as a run of ours: ``make convert CONFIG=configs/lavit/official.yaml OFFICIAL=FOLDER``

What follows reads it like a tokenizer that was trained here: ``make extract``, ``make eval-tokenizer``. With
``OUT=FOLDER`` the whole published model becomes a release instead, which :meth:`lavit.pipeline.LaVIT.from_pretrained`
opens.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lavit.experiment import Experiment, load_experiment, run_stage
from lavit.official import CARD, open_published
from lavit.release import require_free, write_release
from lavit.runs import is_done, mark_done
from lavit.tokenizers.official import open_official
from lavit.weights import save_weights
from lavit.workspace import Workspace


def convert(experiment: Experiment, run: Path, official: Path) -> list[str]:
    """Write ``tokenizer.safetensors`` into the run unless it is there; returns the published names without a use."""
    folder = Workspace(experiment, run).folder("tokenizer")
    if is_done(folder):
        return []
    tokenizer, unused = open_official(official, experiment.tokenizer.model)
    save_weights(tokenizer, folder / "tokenizer.safetensors")
    mark_done(folder, {"unexpected": list(unused)})
    return list(unused)


def release(experiment: Experiment, official: Path, out: Path) -> list[str]:
    """Write the whole published model as a release; returns the published names without a use.

    Raises:
        ValueError: see :func:`lavit.official.open_published` and :func:`lavit.release.write_release`.
    """
    require_free(out)  # said now, not after minutes
    parts, unused = open_published(official, experiment)
    write_release(out, parts, CARD)
    return unused


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tokenizer.convert", description=__doc__.splitlines()[0])
    parser.add_argument("official", metavar="FOLDER", type=Path, help="of the published tokenizer, or of all of it")
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--release", metavar="OUT", type=Path, help="write all of it as a release, and make no run")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)

    def stage(experiment: Experiment, run: Path) -> None:
        report(convert(experiment, run, arguments.official), run / "tokenizer" / "tokenizer.safetensors")

    if arguments.release is None:
        run_stage(stage, argv=[arguments.config, *arguments.overrides])
        return
    try:
        experiment = load_experiment(arguments.config, arguments.overrides)
        report(release(experiment, arguments.official, arguments.release), arguments.release)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def report(unused: list[str], made: Path) -> None:
    for name in unused:
        print(f"not used: {name}")
    print(f"{made} is ready")


if __name__ == "__main__":
    main(sys.argv[1:])
