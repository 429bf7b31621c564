"""Exponential moving averages of trained weights, which are better than the last ones after a noisy training."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lavit.runs import written_whole


class MovingAverage:
    """Averages of a module's trained parameters in fp32; of parameters that ZeRO-3 spreads, each rank's own part.

    Args:
        module: what DeepSpeed trains, after it was given to DeepSpeed.
        decay: of the averages, reached after a warm-up: min(decay, (1 + step) / (10 + step)).
        device: where ranks exchange tensors.
    """

    def __init__(self, module: nn.Module, decay: float, device: torch.device):
        self.decay, self.device = decay, device
        self.trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.values = {name: _held(p).float().clone() for name, p in self.trained.items()}

    def update(self, step: int) -> None:
        """Take in the weights after ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.trained.items():
            self.values[name].lerp_(_held(parameter), 1 - decay)

    def swap(self) -> None:
        """Exchange weights and averages in place, on every rank: once to look at the averages, once more to go on."""
        for name, parameter in self.trained.items():
            held, value = _held(parameter), self.values[name]
            kept = held.clone()
            held.copy_(value)
            value.copy_(kept)
            if hasattr(parameter, "ds_tensor") and parameter.numel():  # ZeRO-3 keeps small ones whole beside
                parameter.data.copy_(self._whole(parameter, held))

    def whole(self) -> dict[str, Tensor]:
        """The averages by name, of whole parameters; call on every rank."""
        return {name: self._whole(parameter, self.values[name]) for name, parameter in self.trained.items()}

    def save(self, path: Path) -> None:
        """Write the whole averages, parameter by parameter; call on every rank."""
        state = {}
        for name, parameter in self.trained.items():
            value = self._whole(parameter, self.values[name])
            if dist.get_rank() == 0:
                state[name] = value.cpu().contiguous()
        if dist.get_rank() == 0:
            with written_whole(path) as draft:
                save_file(state, draft)

    def load(self, path: Path) -> None:
        """Go on from averages that any number of ranks saved.

        Raises:
            ValueError: no such file, or one that does not fit.
        """
        try:
            with safe_open(path, "pt") as file:
                for name, parameter in self.trained.items():
                    self._take(name, parameter, file.get_tensor(name))
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{path} does not hold the averaged weights ({error}); remove {path.parent} to go on from before it"
            ) from None

    def _take(self, name: str, parameter: nn.Parameter, whole: Tensor) -> None:
        value = self.values[name]
        if not hasattr(parameter, "ds_tensor"):
            value.copy_(whole)
            return
        part = whole.flatten()[dist.get_rank() * value.numel() :][: value.numel()]
        value.zero_()[: len(part)] = part  # the last rank's part is padded

    def _whole(self, parameter: nn.Parameter, part: Tensor) -> Tensor:
        if not hasattr(parameter, "ds_tensor"):
            return part
        mine = part.to(self.device)
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine)
        return torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape)


def _held(parameter: nn.Parameter) -> Tensor:
    """What this rank has of a parameter: all of it, or under ZeRO-3 its part, flat."""
    return getattr(parameter, "ds_tensor", parameter).data
