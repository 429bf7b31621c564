"""A release as a model of lmms-eval 0.7 (https://github.com/EvolvingLMMs-Lab/lmms-eval): ``--model lavit``.

:mod:`lavit.harness.requests` reads what a task asks for, :mod:`lavit.harness.answers` answers it, and
:mod:`lavit.harness.plugin`, which lmms-eval alone imports, is the class that it makes.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """What the entry point ``lmms_eval.models`` names: where lmms-eval finds the class. It imports nothing else."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("lavit", simple_class_path="lavit.harness.plugin.LaVITModel")
