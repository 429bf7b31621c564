"""Speed and memory of the parts that were made for them, beside the plain way: ``make bench``.

Prints a table and writes ``runs/bench.json``, ``{benchmark: {figure: value}}``; a benchmark that is run again replaces
its own figures only. ``python -m eval.bench merger`` runs one of them.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn

from eval.codebook import codebook
from eval.generate import generate
from eval.packing import packing
from eval.resume import resume
from lavit.launch import launch_environment
from lavit.layers.rows import SplitHead
from lavit.runs import read_json, write_json
from lavit.tokenizers.merger import Merger, MergerConfig
from lavit.tokenizers.selector import Selection
from lavit.vocabulary import Vocabulary

RESULTS = Path("runs/bench.json")


def merger(images: int = 8, patches: int = 256, config: MergerConfig | None = None, rounds: int = 3) -> dict:
    """The merger on gathered patches and on all of them under masks, forward and backward, at the paper's size.

    A third of the patches is kept on average, from a sixth in one image to a half in another. ``speedup`` is the ratio
    of median seconds of interleaved rounds, ``memory_ratio`` that of the bytes that autograd saves for the backward
    pass, weights left out.
    """
    config = config or MergerConfig(width=1408, blocks=12, heads=16, mlp=6144)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    made = Merger(config.width, patches, config)
    features = torch.randn(images, patches, config.width, generator=generator)
    counts = torch.linspace(patches / 6, patches / 2, images).round().long()
    ranks = torch.rand(images, patches, generator=generator).argsort(1).argsort(1)
    keep = ranks < counts[:, None]
    selection = Selection.of(keep)
    forms: dict[str, Callable[[], Tensor]] = {
        "gathered": lambda: made(features, selection)[0],
        "dense": lambda: made.dense(features, selection) * keep[..., None],
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    saved = {name: saved_bytes(form, made) for name, form in forms.items()}  # also warms up
    for _ in range(rounds):
        for name, form in forms.items():
            made.zero_grad(set_to_none=True)
            start = time.perf_counter()
            form().square().mean().backward()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "speedup": medians["dense"] / medians["gathered"],
        "memory_ratio": saved["gathered"] / saved["dense"],
        "gathered_seconds": medians["gathered"],
        "dense_seconds": medians["dense"],
        "gathered_mib": saved["gathered"] / 2**20,
        "dense_mib": saved["dense"] / 2**20,
        "kept_share": float(keep.float().mean()),
        "threads": torch.get_num_threads(),
    }


def saved_bytes(form: Callable[[], Tensor], module: nn.Module) -> int:
    """Bytes that autograd keeps between the forward and the backward pass, each storage once, without parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        out = form().square().mean()
    del out
    return sum(kept.values())


def loss(tokens: int = 8192, vocabulary: int = 65536, width: int = 576, rounds: int = 3) -> dict:
    """The loss in chunks and from all logits at once, forward and backward in float32.

    ``time_ratio`` is the ratio of median seconds of interleaved rounds, ``memory_ratio`` that of the peaks of resident
    memory over what is there before, each in a process of its own, ``gradient_error`` the largest difference between
    gradients, relative to the largest gradient.
    """
    sizes = (tokens, vocabulary, width)
    seconds: dict[str, list[float]] = {"chunked": [], "dense": []}
    gradients = {}
    for _ in range(rounds):
        for name in seconds:
            run = LossRun(name, *sizes)
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
            gradients[name] = run.gradients()
    peaks = {}
    for name in seconds:
        with get_context("spawn").Pool(1) as pool:
            peaks[name] = pool.apply(peak_memory, (name, *sizes))
    error = max(
        float((mine - its).abs().max() / its.abs().max())
        for mine, its in zip(gradients["chunked"], gradients["dense"], strict=True)
    )
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "memory_ratio": peaks["chunked"] / peaks["dense"],
        "time_ratio": medians["chunked"] / medians["dense"],
        "gradient_error": error,
        **{f"{name}_mib": peak / 2**20 for name, peak in peaks.items()},
        **{f"{name}_seconds": value for name, value in medians.items()},
        "threads": torch.get_num_threads(),
    }


class LossRun:
    """One forward and backward pass of the head's loss: in chunks, or ``dense``."""

    def __init__(self, name: str, tokens: int, vocabulary: int, width: int):
        torch.manual_seed(0)
        text = vocabulary * 3 // 4
        self.dense = name == "dense"
        self.head = SplitHead(nn.Linear(width, text, bias=False), Vocabulary(text, vocabulary - text - 2))
        self.hidden = torch.randn(tokens, width, requires_grad=True)
        self.labels = torch.randint(vocabulary, (tokens,))

    def __call__(self) -> None:
        if self.dense:
            nn.functional.cross_entropy(self.head(self.hidden), self.labels).backward()
        else:
            weights = torch.full(self.labels.shape, 1 / len(self.labels))
            self.head(self.hidden, self.labels, weights).loss.backward()

    def gradients(self) -> list[Tensor]:
        return [self.hidden.grad, *(parameter.grad for parameter in self.head.parameters())]


def peak_memory(name: str, *sizes: int) -> int:
    """Bytes by which resident memory grows at most during a run; Linux resets the peak on request."""
    run = LossRun(name, *sizes)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(key: str) -> int:
    """A figure in bytes of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


BENCHMARKS = {
    "merger": merger,
    "codebook": codebook,
    "loss": loss,
    "packing": packing,
    "generate": generate,
    "resume": resume,
}


def main(names: list[str]) -> int:
    """Run the named benchmarks, by default all; 2 for a name that is none."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"error: no benchmark is called '{unknown[0]}'; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    for name in names or BENCHMARKS:
        print(f"{name}: running", flush=True)
        try:
            figures = BENCHMARKS[name]()
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        for figure, value in figures.items():
            print(f"  {name}.{figure:<24}{value:>12.4g}")
        known = read_json(RESULTS) if RESULTS.is_file() else {}
        RESULTS.parent.mkdir(exist_ok=True)
        write_json(RESULTS, known | {name: figures})
    print(f"written to {RESULTS}")
    return 0


if __name__ == "__main__":
    # What trainings are started with; memory that is given back and taken again would cost them a third of their time.
    environment = os.environ | launch_environment()
    if environment != os.environ:
        os.execve(sys.executable, [sys.executable, "-m", "eval.bench", *sys.argv[1:]], environment)
    sys.exit(main(sys.argv[1:]))
