"""From noise to what a U-Net predicts, by diffusers' samplers: DDIM, DPM-Solver++, and Euler's method of a flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

FLOW = "flow_prediction"


class Process(NamedTuple):
    """A way from images to noise: what is predicted on the way back, and diffusers' beta schedule.

    ``clip`` says that clean images are in [-1, 1]. The flow's way is straight, x_t = (1 − t) x_0 + t · noise.
    """

    prediction: str
    timesteps: int
    schedule: str
    beta_start: float
    beta_end: float
    clip: bool

    @property
    def betas(self) -> dict[str, Any]:
        """The schedule by diffusers' names."""
        return {
            "num_train_timesteps": self.timesteps,
            "beta_schedule": self.schedule,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
        }


def samplers_of(prediction: str) -> tuple[str, ...]:
    """The samplers that go with a prediction."""
    return ("euler", "dpm") if prediction == FLOW else ("ddim", "dpm")


def check_sampler(prediction: str, name: str, key: str = "") -> None:
    """Raise ValueError unless the sampler, a setting below ``key``, goes with what is predicted."""
    if name not in samplers_of(prediction):
        allowed = " or ".join(samplers_of(prediction))
        raise ValueError(f"{key}sampler '{name}' does not go with {prediction}; choose {allowed}")


def new_sampler(process: Process, name: str) -> Any:
    """diffusers' scheduler of a process.

    Raises:
        ValueError: the sampler does not go with what is predicted.
    """
    check_sampler(process.prediction, name)
    predicted = {"prediction_type": process.prediction}
    if name == "euler":
        return FlowMatchEulerDiscreteScheduler(process.timesteps)
    if name == "ddim":
        return DDIMScheduler(**process.betas, **predicted, clip_sample=process.clip, timestep_spacing="trailing")
    if process.prediction == FLOW:
        return DPMSolverMultistepScheduler(process.timesteps, **predicted, use_flow_sigmas=True)
    # The cosine schedule ends in all but pure noise, where an error of the prediction has no bound.
    least = -5.1 if process.schedule == "squaredcos_cap_v2" else -float("inf")
    # Its clipping is dynamic thresholding whose threshold is 1 throughout.
    clip = {"thresholding": process.clip, "sample_max_value": 1.0}
    spacing = {"timestep_spacing": "trailing", "lambda_min_clipped": least}
    return DPMSolverMultistepScheduler(**process.betas, **predicted, **clip, **spacing)


def set_steps(scheduler: Any, steps: int) -> None:
    """Choose the times of ``steps`` steps."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        # Its own choice would spend the last step on the last thousandth of the way.
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps))
    else:
        scheduler.set_timesteps(steps)


def initial_noise(seeds: list[int], shape: tuple[int, ...]) -> Tensor:
    """(B, *shape) normal noise, each picture's from a generator of its own."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def denoise(
    predict: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], x: Tensor, scheduler: Any, steps: int, scale: float
) -> Tensor:
    """Latents of initial noise (B, C, h, w), with guidance ``u + scale (c − u)``, both branches in one pass.

    Args:
        predict: from noisy (N, C, h, w), time (N,), rows (N,) int64, which picture of the batch each is, and drop
            (N,) bool, whether it is to be taken for an unknown one.
        x: (B, C, h, w) noise.
        scheduler: from :func:`new_sampler`.
        steps: of the scheduler.
        scale: 1 is without guidance, and without its second branch.
    """
    set_steps(scheduler, steps)
    rows = torch.arange(len(x), device=x.device)
    known = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for t in scheduler.timesteps:
        if scale == 1.0:
            out = predict(x, t.to(x.device).expand(len(x)), rows, known)
        else:
            both = predict(
                x.repeat(2, 1, 1, 1), t.to(x.device).expand(2 * len(x)), rows.repeat(2), torch.cat([known, ~known])
            )
            conditioned, free = both.float().chunk(2)
            out = free + scale * (conditioned - free)
        x = scheduler.step(out.float(), t, x).prev_sample
    return x
