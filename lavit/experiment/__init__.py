"""One file is one experiment: its sections, what is checked of them, and a stage's command line."""

from lavit.experiment.checks import check_stored, names_patches
from lavit.experiment.schema import Experiment, ExtractionConfig, PretrainStage, PyramidStage, TokenizerStage
from lavit.experiment.stage import OWNERS, load_experiment, require_alike, run_stage

__all__ = [
    "OWNERS",
    "Experiment",
    "ExtractionConfig",
    "PretrainStage",
    "PyramidStage",
    "TokenizerStage",
    "check_stored",
    "load_experiment",
    "names_patches",
    "require_alike",
    "run_stage",
]
