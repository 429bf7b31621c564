"""The class that lmms-eval makes of ``--model lavit``; it alone needs lmms-eval."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms

from lavit.harness.answers import Answers


class LaVITModel(Answers, lmms):
    """See :class:`lavit.harness.answers.Answers`, whose arguments are the ``model_args``."""

    is_simple = True

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._rank, self._world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

    @property
    def device(self) -> torch.device:
        return self.system.device

    @property
    def batch_size(self) -> int:
        return self.system.batch

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Pairs of loss and greedy; lmms-eval 0.7.3 makes a string of a pair that is not wrapped."""
        return [GenerationResult(pair) for pair in super().loglikelihood(requests)]

    def clean(self) -> None:
        """Give the memory back before what judges the answers is loaded."""
        del self.system
        super().clean()
