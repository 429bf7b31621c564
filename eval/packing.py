"""Packing documents into rows, beside another way of packing them and beside padding: a bench of :mod:`eval.bench`.

The documents are those of a finished run's own mixture (``make demo`` first), so that their lengths are real.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from torch.utils.flop_counter import FlopCounterMode

from lavit.data.documents import Document
from lavit.data.packing import document_length, pack, pack_rows
from lavit.experiment import load_experiment
from lavit.model import UnifiedLM
from lavit.tokens import PackedBatch
from lavit.workspace import Workspace

RUN = Path("runs/demo")
DOCUMENTS, BATCHES, PADDED_BATCH = 2048, 6, 64


def packing(run: Path = RUN, rounds: int = 3) -> dict[str, float]:
    """Waste of rows, and what packing gains over random batches that are padded to their longest document.

    ``waste`` is the share of the rows' places that hold nothing, ``peer_waste`` that of a balanced greedy knapsack,
    ``gain`` the ratio of useful tokens a second in training (forward and backward, medians of interleaved rounds) of
    packed over padded batches, ``possible_gain`` the ratio of their shares of useful places. That would be the gain if
    all work were done at every place; but the head works for labels alone, of which padding has none, and
    ``possible_gain_of_work`` is the ratio of operations a useful token, as PyTorch counts them.

    Raises:
        ValueError: there is no finished run.
    """
    if not (run / "extract" / "done.json").is_file():
        raise ValueError(f"the packing benchmark reads the documents of {run}; run make demo first")
    work = Workspace(load_experiment(run / "config.yaml"), run)
    model, row = work.new_model(), work.experiment.pretrain.row
    documents = [drawn.document for drawn in work.mixture(model.vocabulary).step(0, DOCUMENTS, work.experiment.seed)]
    lengths = [document_length(document) for document in documents]
    rows = pack_rows(lengths, row)
    packed = list(packed_batches(documents, rows, PADDED_BATCH * max(lengths) // row))[:BATCHES]
    padded = list(padded_batches(documents))[:BATCHES]
    seconds: dict[str, list[float]] = {"packed": [], "padded": []}
    sets = {"packed": packed, "padded": padded}
    for _ in range(rounds):
        for name, batches in sets.items():
            start = time.perf_counter()
            for batch in batches:
                model.zero_grad(set_to_none=True)
                model(batch).loss.backward()
            seconds[name].append(time.perf_counter() - start)
    useful = {name: sum(int((batch.document >= 0).sum()) for batch in batches) for name, batches in sets.items()}
    places = {name: sum(batch.ids.numel() for batch in batches) for name, batches in sets.items()}
    work = {name: operations(model, batches) for name, batches in sets.items()}
    rate = {name: useful[name] / statistics.median(seconds[name]) for name in sets}
    return {
        "waste": waste(lengths, len(rows), row),
        "peer_waste": waste(lengths, len(balanced_knapsack(lengths, row)), row),
        "gain": rate["packed"] / rate["padded"],
        "possible_gain": (useful["packed"] / places["packed"]) / (useful["padded"] / places["padded"]),
        "possible_gain_of_work": (work["padded"] / useful["padded"]) / (work["packed"] / useful["packed"]),
        "padding_share": 1 - useful["padded"] / places["padded"],
        "packed_tokens_a_second": rate["packed"],
        "padded_tokens_a_second": rate["padded"],
        "documents": DOCUMENTS,
        "mean_length": statistics.mean(lengths),
        "row": row,
    }


def operations(model: UnifiedLM, batches: list[PackedBatch]) -> int:
    """Floating-point operations of the batches, forward and backward."""
    counter = FlopCounterMode(display=False)
    with counter:
        for batch in batches:
            model(batch).loss.backward()
    return counter.get_total_flops()


def packed_batches(documents: list[Document], rows: list[list[int]], size: int) -> Iterator[PackedBatch]:
    for start in range(0, len(rows), size):
        yield pack(documents, rows=rows[start : start + size])


def padded_batches(documents: list[Document]) -> Iterator[PackedBatch]:
    """Batches in the order of the mixture, which is random: a row a document."""
    for start in range(0, len(documents), PADDED_BATCH):
        yield pack(documents[start : start + PADDED_BATCH])


def waste(lengths: list[int], rows: int, row: int) -> float:
    """The share of ``rows`` × ``row`` places that documents of these lengths leave empty."""
    return 1 - sum(lengths) / (rows * row)


def balanced_knapsack(lengths: list[int], row: int) -> list[list[int]]:
    """Rows of document numbers by a greedy knapsack with balanced loads, as nanoVLM's loader packs its buffer.

    From the longest document on, each goes to the emptiest of as few rows as could hold all, or to a new one.
    """
    rows: list[list[int]] = [[] for _ in range(-(-sum(lengths) // row))]
    loads = [0] * len(rows)
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = min(range(len(rows)), key=loads.__getitem__)
        if loads[place] + lengths[number] > row:
            place = len(rows)
            rows.append([])
            loads.append(0)
        rows[place].append(number)
        loads[place] += lengths[number]
    return rows
