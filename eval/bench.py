"""Speed and memory of the parts that were made for them, beside the plain way: ``make bench``.

Prints a table and writes ``runs/bench.json``, ``{benchmark: {figure: value}}``; a benchmark that is run again replaces
its own figures only. ``python -m eval.bench merger`` runs one of them.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from eval.codebook import codebook
from lavit.runs import read_json, write_json
from lavit.tokenizers.merger import Merger, MergerConfig
from lavit.tokenizers.selector import Selection

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
    selection = Selection(keep, keep.float(), keep.float())
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


BENCHMARKS = {"merger": merger, "codebook": codebook}


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
    sys.exit(main(sys.argv[1:]))
