"""How fast a training runs, and what it waits for."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator

import torch

# Dense bf16 tensor-core peaks in FLOP/s, by the beginning of CUDA's device name (the makers' data sheets).
PEAKS = {"NVIDIA B200": 2250e12, "NVIDIA H200": 989e12, "NVIDIA H100": 989e12, "NVIDIA A100": 312e12}


class Meter:
    """Seconds, waiting, work and memory of the steps since the last reading.

    Args:
        device: where the model is.
        peak: FLOP/s that a model FLOPs utilisation of 1 stands for.
    """

    def __init__(self, device: torch.device, peak: float):
        self.device, self.peak = device, peak
        self._begin()

    def _begin(self) -> None:
        self.start, self.waited, self.steps, self.flops, self.tokens = time.perf_counter(), 0.0, 0, 0.0, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The block's time is time spent waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The block's time is no step's."""
        start = time.perf_counter()
        yield
        self.start += time.perf_counter() - start

    def add(self, flops: float, tokens: float) -> None:
        """A step is over; ``flops`` of this rank's forward and backward, ``tokens`` of all ranks, 0 if unknown."""
        self.steps += 1
        self.flops += flops
        self.tokens += tokens

    def read(self) -> dict[str, float]:
        """Figures of the steps since the last reading, and begin anew.

        ``step_seconds``; ``waiting``, a share of them; ``memory_gib``, the most this process has held (of the GPU where
        there is one); ``tokens_a_second`` of all ranks and ``mfu`` where they are known. ``mfu`` is the model FLOPs
        utilisation (PaLM, arXiv 2204.02311, appendix B): only what the model asks for counts, not what is recomputed.
        """
        seconds = max(time.perf_counter() - self.start, 1e-9)
        figures = {"step_seconds": seconds / max(1, self.steps), "waiting": self.waited / seconds}
        figures["memory_gib"] = memory_bytes(self.device) / 2**30
        if self.tokens:
            figures["tokens_a_second"] = self.tokens / seconds
        if self.flops:
            figures["mfu"] = self.flops / seconds / self.peak
        self._begin()
        return figures


def speed_words(figures: dict[str, float]) -> str:
    """``1,520 tokens/s, MFU 0.41, 2 % waiting for data, 2.1 GiB`` of what :meth:`Meter.read` gives."""
    parts = [f"{figures['tokens_a_second']:,.0f} tokens/s"] if "tokens_a_second" in figures else []
    parts += [f"MFU {figures['mfu']:.2f}"] if "mfu" in figures else []
    return ", ".join([*parts, f"{figures['waiting']:.0%} waiting for data, {figures['memory_gib']:.1f} GiB"])


def memory_bytes(device: torch.device) -> int:
    """The most memory this process has held: allocated on a GPU, or resident in the CPU's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s that ``device`` can reach: of the data sheet for a known GPU in bf16, else of a large matrix product."""
    if device.type == "cuda" and precision == "bf16":
        name = torch.cuda.get_device_name(device)
        for start, peak in PEAKS.items():
            if name.startswith(start):
                return peak
    return measured_peak(device, torch.bfloat16 if precision == "bf16" else torch.float32)


def measured_peak(device: torch.device, dtype: torch.dtype, rounds: int = 5) -> float:
    """FLOP/s of the fastest of a few products of two square matrices."""
    size = 8192 if device.type == "cuda" else 768
    a = torch.ones(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        product = a @ a
        product[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return 2 * size**3 / min(seconds)
