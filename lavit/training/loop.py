"""The one training loop: every stage runs it, on one core and on a cluster.

A step's batch is a function of the seed and the step alone, and so are the learning rate and the noise. Resuming
therefore needs nothing but the engine's state and the number of the step.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lavit.data.order import Place
from lavit.runs import FolderLock, Progress, StopSignal, end_with_parent, stage_clock, write_json
from lavit.tokens import to_device
from lavit.training.ema import MovingAverage
from lavit.training.engine import (
    UNIVERSAL,
    TrainConfig,
    build_engine,
    checkpoint_for,
    complete_checkpoints,
    finite_gradients,
    frozen_digest,
    latest_checkpoint,
    load_unfrozen,
    make_whole,
    restore_groups,
    skip_update,
    start_processes,
    without_frozen,
)
from lavit.training.loading import micro_batches
from lavit.training.log import TrainingLog
from lavit.training.meter import Meter, peak_flops, speed_words
from lavit.training.optimizer import learning_rate_factor

AVERAGE = "ema.safetensors"  # beside what DeepSpeed writes into a checkpoint
FULL = 2**24  # bytes; a disk with less has no room for a checkpoint's files


class Stopped(SystemExit):
    """Training was asked to stop; its state is saved."""


def train(
    objective: nn.Module,
    batch_at: Callable[[Place], Any],
    config: TrainConfig,
    folder: Path,
    before_step: Callable[[int], None] = lambda step: None,
    after_step: Callable[[], None] = lambda: None,
    together: Callable[[list[Any]], list[Any]] = lambda batches: batches,
    validate: Callable[[], dict[str, float]] | None = None,
    counts: Callable[[Any], dict[str, float]] | None = None,
    flops: Callable[[Any], float] | None = None,
    unit: str = "step",
) -> nn.Module:
    """Train ``objective`` to ``config.steps`` and return it whole, resuming from the newest complete checkpoint.

    With ``config.ema`` what is returned are the averaged weights.

    Args:
        objective: a module whose forward takes a batch and returns a NamedTuple of () tensors, the loss first; None
            where there is no such figure.
        batch_at: makes the micro-batch of a Place; depends on nothing else.
        config: steps, batch, optimizer.
        folder: the stage's folder; its checkpoints, log and progress go there.
        before_step: called with the number of each step before it, on every rank.
        after_step: called after each step's update, on every rank: what is not moved by gradients moves here.
        together: what the micro-batches of a step must know of each other; gets and returns them, on every rank.
        validate: figures of the objective in evaluation mode, the same on every rank; ``loss`` decides which is best.
        counts: what the step of a micro-batch takes in, over all ranks, to be summed in the log; names that begin with
            ``tokens`` give the tokens a second.
        flops: floating-point operations of a micro-batch, forward and backward, for the utilisation in the log.

    Raises:
        Stopped: after SIGINT or SIGTERM, with the state saved.
        RuntimeError: five steps in a row without a finite loss or gradient, with the last checkpoint named; or what is
            frozen has moved.
    """
    end_with_parent()
    rank, world, device = start_processes()
    lock = FolderLock(folder) if rank == 0 else contextlib.nullcontext()
    clock = stage_clock(folder) if rank == 0 else contextlib.nullcontext()
    with lock, StopSignal() as stop, clock, contextlib.ExitStack() as last_of_all:
        newest = checkpoint_for(folder / "checkpoints", world, config.zero_stage, rank)
        universal = newest is not None and newest.name == UNIVERSAL
        frozen = frozen_digest(objective, config.optimizer) if rank == 0 else ""
        engine = build_engine(objective.to(device), config, world, universal)
        # What a utilisation is measured by takes a moment to find out, and is wanted only where operations are known.
        peak = peak_flops(device, config.precision) if flops else 1.0
        run = _Run(engine, config, folder, rank, world, Meter(device, peak), frozen)
        last_of_all.callback(run.close)
        first = run.resume(newest)
        progress = Progress(folder, config.steps, unit) if rank == 0 else None
        batches = run.batches(first, batch_at)
        if validate and config.validate_every and first == 0:
            with run.meter.paused():
                run.log_validation(0, "before", run.measured(validate))
        for step in range(first, config.steps):
            before_step(step)
            figures = run.step(step, batches, together, flops, counts)
            after_step()
            run.log(step, figures, always="skipped" in figures)
            if progress:
                words = [f"{k} {v:.3f}" for k, v in figures.items()]
                progress.update(step + 1, ", ".join([" ".join(words), *([run.speed] if run.speed else [])]))
            last = step + 1 == config.steps
            stopping = run.any_rank(stop.requested)
            best = False
            with run.meter.paused():
                if validate and config.validate_every and (last or (step + 1) % config.validate_every == 0):
                    best = run.validated(step, validate)
                if last or stopping or best or (step + 1) % config.checkpoint_every == 0:
                    run.save(step + 1)
            if stopping and not last:
                raise Stopped(128 + (stop.signal or 15))
        averaged = run.average.whole() if run.average else {}
        make_whole(objective)
        for name, value in averaged.items():
            objective.get_parameter(name).data.copy_(value)
        if rank == 0 and frozen_digest(objective, config.optimizer) != frozen:
            raise RuntimeError("what is frozen has moved while the rest was trained; please report this")
    return objective


@contextlib.contextmanager
def _telling_of_a_full_disk(checkpoint: Path) -> Iterator[None]:
    """Raise OSError, "No space left", where torch's and safetensors' own errors hide it; what was written goes."""
    try:
        yield
    except Exception as error:  # RuntimeError of torch, SafetensorError, OSError
        if shutil.disk_usage(checkpoint.parent).free > FULL:
            raise
        shutil.rmtree(checkpoint, ignore_errors=True)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(checkpoint)) from error


class _Run:
    """The engine of a stage with what belongs to it on disk."""

    def __init__(
        self, engine: Any, config: TrainConfig, folder: Path, rank: int, world: int, meter: Meter, frozen: str
    ):
        self.engine, self.config, self.folder, self.frozen = engine, config, folder, frozen
        self.rank, self.world, self.device, self.meter = rank, world, meter.device, meter
        self.checkpoints = folder / "checkpoints"
        self.skipped_in_a_row = 0
        self.best: dict[str, float] | None = None  # the step of the best checkpoint and its validation loss
        self.counts: dict[str, float] = {}  # what was taken in since the first step
        self.speed = ""
        self.written: TrainingLog | None = None
        self.average = MovingAverage(engine.module, config.ema, meter.device) if config.ema else None

    def resume(self, newest: Path | None) -> int:
        """The step to go on with, after everything is as it was before it."""
        first = self._load(newest) if newest else 0
        if self.rank == 0:
            self.written = TrainingLog(self.folder, first)
        return first

    def _load(self, newest: Path) -> int:
        groups = [dict(group) for group in self.engine.optimizer.param_groups]
        try:
            path, state = self.engine.load_checkpoint(
                str(self.checkpoints), tag=newest.name, custom_load_fn=load_unfrozen
            )
            problem = None if path else "DeepSpeed finds nothing in it"
        except Exception as error:  # a cut or foreign file: unpickling, zip and key errors of every kind
            problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        if problem:
            raise ValueError(
                f"checkpoint {newest} cannot be loaded ({problem}); remove it to go on from the one before it, or from "
                "the start"
            )
        if self.rank == 0 and state.get("frozen", self.frozen) != self.frozen:
            raise ValueError(
                f"checkpoint {newest} was trained beside other frozen weights, such as another language model; give it "
                f"those again, or remove {self.folder} to begin anew"
            )
        if newest.name == UNIVERSAL:
            restore_groups(self.engine.optimizer, groups)
            own = dict(self.engine.module.named_buffers())  # DeepSpeed restores parameters alone
            for name, value in state["buffers"].items():
                own[name].copy_(value)
        if self.average:  # of whole parameters, for any number of ranks
            self.average.load(latest_checkpoint(self.checkpoints) / AVERAGE)
        self.best, self.counts = state.get("best"), state.get("counts", {})
        return state["step"]

    def batches(self, first: int, batch_at: Callable[[Place], Any]) -> Iterator[Any]:
        """This rank's micro-batches from step ``first`` on."""
        cfg = self.config
        size = cfg.batch // (self.world * cfg.accumulate)
        places = [
            Place(step, micro, self.rank, self.world, size)
            for step in range(first, cfg.steps)
            for micro in range(cfg.accumulate)
        ]
        return micro_batches(batch_at, places, cfg.workers, pin=self.device.type == "cuda")

    @torch.no_grad()
    def measured(self, validate: Callable[[], dict[str, float]]) -> dict[str, float]:
        self.engine.eval()
        if self.average:
            self.average.swap()
        with self._autocast():
            figures = validate()
        if self.average:
            self.average.swap()
        self.engine.train()
        return figures

    def log_validation(self, step: int, when: str, figures: dict[str, float]) -> None:
        if self.written:
            self.written.write(step, {f"{when}_{name}": value for name, value in figures.items()})

    def validated(self, step: int, validate: Callable[[], dict[str, float]]) -> bool:
        """Log what validation finds, and say whether it is the best so far."""
        figures = self.measured(validate)
        self.log_validation(step, "validation", figures)
        if self.best is not None and not figures["loss"] < self.best["loss"]:
            return False
        self.best = {"step": step + 1, "loss": figures["loss"]}
        return True

    def step(
        self,
        step: int,
        batches: Iterator[Any],
        together: Callable[[list[Any]], list[Any]],
        flops: Callable[[Any], float] | None,
        counts: Callable[[Any], dict[str, float]] | None,
    ) -> dict[str, float]:
        """One update from the step's micro-batches; its figures, means over them and over ranks."""
        cfg = self.config
        factor = learning_rate_factor(step, cfg.steps, cfg.optimizer)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        totals: dict[str, Tensor] = {}
        self.engine.train()
        finite = True
        with self.meter.waiting():
            mine = [next(batches) for _ in range(cfg.accumulate)]
        self.count(sum(map(flops, mine)) if flops else 0.0, counts(mine[0]) if counts else {})
        for micro, batch in enumerate(together([to_device(batch, self.device) for batch in mine])):
            with self._autocast():
                out = self.engine(batch)
            self.engine.backward(out.loss)
            for name, value in out._asdict().items():
                if value is None:
                    continue
                totals[name] = totals.get(name, 0) + value.detach().float() / cfg.accumulate
            if micro + 1 == cfg.accumulate:
                # In fp32 DeepSpeed without ZeRO checks nothing; the whole step is dropped, on every rank.
                here = bool(totals["loss"].isfinite()) and finite_gradients(self.engine)
                finite = not self.any_rank(not here)
                skip_update(self.engine, not finite)
            self.engine.step()
        # With offloaded states DeepSpeed keeps the gradients to itself, and drops the update by itself.
        finite = finite and not self.any_rank(bool(getattr(self.engine.optimizer, "overflow", False)))
        if self.average and finite:
            self.average.update(step)
        return self._figures(step, totals, finite)

    def _figures(self, step: int, totals: dict[str, Tensor], finite: bool) -> dict[str, float]:
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= 5:
            newest = latest_checkpoint(self.checkpoints)
            raise RuntimeError(
                f"loss or gradients were not finite in 5 steps up to {step}; the last good state is {newest}"
            )
        if not finite:
            return {"skipped": 1.0}
        names = list(totals)
        values = torch.stack([totals[name].reshape(()) for name in names])
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        return dict(zip(names, values.tolist(), strict=True))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def close(self) -> None:
        if self.written:
            self.written.close()

    def any_rank(self, flag: bool) -> bool:
        if self.world == 1:
            return flag
        value = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(value)
        return bool(value.item())

    def count(self, work: float, counts: dict[str, float]) -> None:
        """Add what a step takes in, and its floating-point operations."""
        for name, value in counts.items():
            self.counts[name] = self.counts.get(name, 0) + value
        self.meter.add(work, sum(value for name, value in counts.items() if name.startswith("tokens")))

    def log(self, step: int, figures: dict[str, float], always: bool = False) -> None:
        """Write a step's figures with the sums and the speed, now and then or ``always``."""
        if self.written and (always or step % self.config.log_every == 0 or step + 1 == self.config.steps):
            speed = self.meter.read()
            self.speed = speed_words(speed)
            self.written.write(step, figures | self.counts, speed)

    def save(self, step: int) -> None:
        tag = f"step{step}"
        if self.rank == 0:
            shutil.rmtree(self.checkpoints / tag, ignore_errors=True)
        dist.barrier()
        buffers = {name: value.cpu() for name, value in self.engine.module.named_buffers()}
        state = {"step": step, "best": self.best, "counts": self.counts, "buffers": buffers, "frozen": self.frozen}
        with _telling_of_a_full_disk(self.checkpoints / tag), without_frozen(self.engine.module):
            self.engine.save_checkpoint(
                str(self.checkpoints), tag=tag, client_state=state, exclude_frozen_parameters=True
            )
            if self.average:
                self.average.save(self.checkpoints / tag / AVERAGE)
        dist.barrier()
        if self.rank == 0:
            write_json(self.checkpoints / tag / "complete", {"world": self.world, "best": self.best})
            kept = complete_checkpoints(self.checkpoints)[-max(1, self.config.keep_checkpoints) :]
            if self.best:
                kept.append(self.checkpoints / f"step{self.best['step']}")
            others = [*self.checkpoints.glob("step*"), self.checkpoints / UNIVERSAL]
            for other in others:  # older ones, and any that was cut while it was written
                if other not in kept:
                    shutil.rmtree(other, ignore_errors=True)
        dist.barrier()
