"""What a stage of training takes, counted on tensors that are not there: parameters, operations, bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lavit.layers.chunked_loss import AT_ONCE
from lavit.training.engine import TrainConfig
from lavit.training.optimizer import parameter_groups

STATE_BYTES = (4, 4, 8)  # of a weight, of its gradient and of AdamW's two moments: all in fp32, also with bf16 autocast
LOGIT_BYTES = 8  # of a logit and its gradient


@dataclass
class Part:
    """A piece of a stage: its parameters, and what one item (an image, a row of tokens) costs it.

    ``flops`` of the forward pass; ``kept`` bytes that the backward pass will need, ``kept_once`` whatever the number of
    items; ``logits`` that are there for a moment, chunk by chunk.
    """

    name: str
    parameters: int
    trainable: int
    flops: int
    kept: int
    kept_once: int = 0
    logits: int = 0

    @property
    def step_flops(self) -> int:
        """Forward, and backward where something is trained: twice the forward pass."""
        return self.flops * (3 if self.trainable else 1)


@dataclass
class StagePlan:
    name: str
    parts: list[Part]
    train: TrainConfig
    items: str
    tokens: int | None = None
    beside: int = 0  # parameters of frozen models that every GPU holds whole, whatever the ZeRO stage

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def trainable(self) -> int:
        return sum(part.trainable for part in self.parts)

    def memory(self, stage: int, gpus: int) -> tuple[int, int]:
        """Bytes a GPU of model states, and of what a micro-batch keeps for its backward pass."""
        micro = -(-self.train.batch // (gpus * self.train.accumulate))
        kept = sum(micro * part.kept + part.kept_once for part in self.parts)
        kept += LOGIT_BYTES * min(AT_ONCE, micro * sum(part.logits for part in self.parts))
        sharded = self.parameters - self.beside
        states = state_bytes(sharded, self.trainable, stage, gpus, self.sizes(stage))
        if self.train.ema:  # averages are spread where the weights are
            states += -(-STATE_BYTES[0] * self.trainable // (gpus if stage == 3 else 1))
        return states + STATE_BYTES[0] * self.beside, kept

    def sizes(self, stage: int) -> tuple[int, int, int]:
        """Bytes on the GPU of a weight, its gradient and its moments: less of what the configuration offloads."""
        weights, gradients, moments = STATE_BYTES
        if self.train.offload_optimizer and stage:
            # The gradients' average leaves for the CPU piece by piece, where the update is made.
            gradients, moments = (0 if stage > 1 else gradients), 0
        return (0 if self.train.offload_parameters and stage == 3 else weights), gradients, moments

    @property
    def flops(self) -> int:
        """A step's, over all GPUs."""
        return self.train.batch * sum(part.step_flops for part in self.parts)


def state_bytes(
    parameters: int, trainable: int, stage: int, gpus: int, sizes: tuple[int, int, int] = STATE_BYTES
) -> int:
    """Bytes a GPU of weights, gradients and optimizer moments under a ZeRO stage (arXiv 1910.02054, figure 1)."""
    weights, gradients, moments = sizes
    share = lambda size, since: -(-size // gpus) if stage >= since else size  # noqa: E731
    return share(weights * parameters, 3) + share(gradients * trainable, 2) + share(moments * trainable, 1)


@contextmanager
def imagined(precision: str, *modules: nn.Module) -> Iterator[None]:
    """Within it tensors have shapes and types but no content, and modules of the meta device compute with them.

    What they compute, and keep, is what they would on a real device in the training's precision.
    """
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        known: dict[int, Tensor] = {}  # parameters may be shared
        for owner in (part for module in modules for part in module.modules()):
            for place in (owner._parameters, owner._buffers):
                for name, value in place.items():
                    if value is not None and id(value) not in known:
                        new = torch.empty(value.shape, dtype=value.dtype)
                        known[id(value)] = nn.Parameter(new, value.requires_grad) if place is owner._parameters else new
                    place[name] = None if value is None else known[id(value)]
        yield


def mark_frozen(model: nn.Module, train: TrainConfig) -> None:
    """Freeze what the configuration names, as the training would."""
    parameter_groups(model, train.optimizer)


def part(name: str, module: nn.Module, forward: Callable[[], Any] | None, known: nn.Module | None = None) -> Part:
    """Count a module's parameters, without those that ``known`` shares with it, and run its forward pass."""
    shared = {id(p) for p in known.parameters()} if known is not None else set()
    parameters = [p for p in module.parameters() if id(p) not in shared]
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    flops, kept, copies = measure(module, forward) if forward else (0, 0, 0)
    return Part(name, sum(p.numel() for p in parameters), trainable, flops, kept, copies)


class Measured(NamedTuple):
    """Of a forward pass: floating-point operations, and bytes that autograd keeps of it, parameters left out.

    ``copies`` are those of weights in bf16, which do not grow with the batch.
    """

    flops: int
    kept: int
    copies: int


def measure(module: nn.Module, forward: Callable[[], Any]) -> Measured:
    """Run a forward pass of ``module`` and look what it takes."""
    own = {p.untyped_storage()._cdata for p in module.parameters()}
    shapes = {tuple(sorted(p.shape)) for p in module.parameters() if p.dim() > 1}
    kept: dict[int, Any] = {}
    copies: dict[int, Any] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in own:
            copied = value.dtype == torch.bfloat16 and tuple(sorted(value.shape)) in shapes
            (copies if copied else kept)[storage._cdata] = storage  # held, so that no later one takes its address
        return value

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        forward()
    return Measured(counter.get_total_flops(), *(sum(s.nbytes() for s in found.values()) for found in (kept, copies)))
