"""Visual words to features, and features to pixels: a tokenizer and a renderer, which need no language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, TypedDict, Unpack

import torch
from torch import Tensor

from lavit.arguments import as_count, as_number, batches
from lavit.experiment import Experiment
from lavit.tokenizers.codes import pad_codes
from lavit.vocabulary import UNDERSTANDS
from lavit.workspace import Workspace

BATCH = 64
IN_CONTEXT = "`make eval-in-context`, `make eval-caption` and `make eval-vqa`"


class Painting(TypedDict, total=False):
    """How features become pixels; what is left out or None is as the pixel decoder's configuration says.

    ``guidance`` 1 is none; ``steps`` and ``sampler`` (ddim, dpm, euler) are of denoising; ``size`` is height and width,
    those of training or one of the configuration's ``decoder.sizes``.
    """

    guidance: float | None
    steps: int | None
    sampler: str | None
    size: tuple[int, int] | None


class Painter:
    """A tokenizer and the ``renderer`` of its features, if there is one, at work on ``batch`` images at a time."""

    def __init__(self, tokenizer: Any, renderer: Any, batch: int = BATCH):
        self.tokenizer, self.renderer, self.batch = tokenizer, renderer, as_count("batch", batch)

    @classmethod
    def from_run(cls, work: Workspace) -> Self:
        """What a run trained, be its language model there or not.

        Raises:
            ValueError: a run whose pictures are words of a pyramid, or one that only understands pictures.
        """
        check_paints(work.experiment)
        return cls(work.tokenizer(), work.renderer(), work.experiment.evaluation.batch)

    @property
    def device(self) -> torch.device:
        return next(self.tokenizer.parameters()).device

    @torch.no_grad()
    def features(self, codes: list[Tensor]) -> Tensor:
        """(B, P, D) float32 reconstructed features of visual words."""
        padded = [[part.to(self.device) for part in pad_codes(part)] for part in batches(codes, self.batch)]
        found = [self.tokenizer.decode(self.tokenizer.lookup(*both)) for both in padded]
        return torch.cat(found) if found else self.no_features()

    def no_features(self) -> Tensor:
        """(0, P, D) float32."""
        config = self.tokenizer.config.encoder
        return torch.empty(0, config.patches, config.width, device=self.device)

    def render(self, features: Tensor, seeds: Sequence[int], **painting: Unpack[Painting]) -> Tensor:
        """(B, 3, H, W) float32 images in [0, 1], on the CPU, of reconstructed features.

        Raises:
            ValueError, TypeError: see :meth:`check_painting`.
        """
        painting = self.check_painting(painting)
        rows = zip(batches(features, self.batch), batches(seeds, self.batch), strict=True)
        images = [self.renderer.render(part, list(its), **painting).cpu() for part, its in rows]
        return torch.cat(images) if images else torch.empty(0, 3, *painting["size"])

    def check_painting(self, painting: Painting) -> Painting:
        """The settings of the pixel decoder in plain numbers; its own for those that are not given.

        Raises:
            ValueError: values that it does not know, or no pixel decoder.
            TypeError: a setting of another name.
        """
        if strange := sorted(painting.keys() - Painting.__annotations__.keys()):
            raise TypeError(f"unknown settings of the pixel decoder: {', '.join(strange)}")
        if self.renderer is None:
            raise ValueError("this system has no pixel decoder; it cannot make pictures")
        config = self.renderer.config
        given = {name: value for name, value in painting.items() if value is not None}
        sampler, size = self.renderer.check_sampling(given.get("sampler"), given.get("size"))
        return {
            "guidance": as_number("guidance", given.get("guidance", config.guidance)),
            "steps": as_count("steps", given.get("steps", config.sampling_steps), 1, config.timesteps),
            "sampler": sampler,
            "size": size,
        }


def check_trains(experiment: Experiment) -> None:
    """Raise ValueError for a run whose language model is frozen and reads words of a pyramid."""
    if experiment.pyramid is not None:
        raise ValueError(f"this run trains no language model: its pictures are words, which {IN_CONTEXT} read")


def check_paints(experiment: Experiment) -> None:
    """Raise ValueError for a run that has no visual words to paint from."""
    if experiment.pyramid is not None:
        others = f"`make eval-pyramid`, {IN_CONTEXT}"
        raise ValueError(f"pictures of this run are words of a pyramid, not visual words to paint from: use {others}")
    if experiment.pretrain.last().model.port == "unmerged":
        raise ValueError(UNDERSTANDS)
