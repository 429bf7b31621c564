"""Whole documents into even rows: restarted positions, nothing shared between neighbours."""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from lavit.data.documents import Document
from lavit.layers.ranks import mean_over_ranks
from lavit.tokens import IGNORE, Feed, Learn, PackedBatch, Slots, Span, read_vectors


def document_length(document: Document) -> int:
    return sum(len(span.ids) for span in document)


def best_fit(lengths: list[int], row: int) -> list[list[int]]:
    """Rows of document numbers by best-fit decreasing: few, and as full as can be but for the last.

    Raises:
        ValueError: a document longer than a row, or an empty one.
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[number]
        if not 0 < length <= row:
            raise ValueError(f"document {number} has {length} tokens; a row holds 1 to {row} (pretrain.row)")
        fitting = [i for i, space in enumerate(free) if space >= length]
        if fitting:
            best = min(fitting, key=lambda i: free[i])
        else:
            best = len(rows)
            rows.append([])
            free.append(row)
        rows[best].append(number)
        free[best] -= length
    return rows


def pack_rows(lengths: list[int], row: int, least: int = 1) -> list[list[int]]:
    """As few rows of document numbers as best fit needs or fewer, and as even as they can be.

    From the longest document on, each goes to the emptiest of as few rows as could hold all; where one then is too full
    there is a row more, up to the number of best fit, whose rows are taken then. Rows of one length leave no padding in
    a batch, which is as long as its longest.

    Args:
        lengths: tokens of each document.
        row: the most tokens of a row.
        least: the fewest rows; at most one for each document.

    Raises:
        ValueError: see :func:`best_fit`.
    """
    fitting = best_fit(lengths, row)
    least = max(least, -(-sum(lengths) // row))
    for count in range(min(least, len(lengths)), len(lengths) + 1):
        rows: list[list[int]] = [[] for _ in range(count)]
        loads = [(0, r) for r in range(count)]
        for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            load, emptiest = loads[0]
            rows[emptiest].append(number)
            heapq.heapreplace(loads, (load + lengths[number], emptiest))
        if max(loads)[0] <= row:
            return rows
        if count >= len(fitting) >= least:
            return fitting
    raise AssertionError("a row a document always fits")


def rows_for(lengths: list[int], row: int, slots: int) -> list[list[list[int]]]:
    """The rows of a step's documents for each of ``slots`` micro-batches (ranks × accumulation steps).

    Slots get as many rows each, so that no rank waits long for another, unless there are fewer documents than that.

    Raises:
        ValueError: fewer documents than slots, or see :func:`best_fit`.
    """
    if len(lengths) < slots:
        raise ValueError(
            f"{len(lengths)} documents are fewer than {slots} ranks × accumulation steps; raise their number"
        )
    count = slots * -(-sum(lengths) // (row * slots))
    while True:
        rows = pack_rows(lengths, row, least=count)
        if len(rows) % slots == 0 or len(rows) == len(lengths):
            return [rows[slot::slots] for slot in range(slots)]
        count = len(rows) + slots - len(rows) % slots


def pack(documents: list[Document], row: int | None = None, rows: list[list[int]] | None = None) -> PackedBatch:
    """Pack documents.

    Args:
        documents: what to pack.
        row: the most tokens of a row; by default every document gets a row of its own.
        rows: which documents go where; by default :func:`pack_rows`.

    Returns:
        A PackedBatch as long as its longest row.
    """
    lengths = [document_length(d) for d in documents]
    if rows is None:
        rows = pack_rows(lengths, row) if row else [[i] for i in range(len(documents))]
    width = max(sum(lengths[i] for i in r) for r in rows)
    shape = (len(rows), width)
    ids = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORE)
    position = torch.zeros(shape, dtype=torch.int64)
    document = torch.full(shape, -1)
    index: list[Tensor] = []
    fed: list[Span] = []
    for r, members in enumerate(rows):
        start = 0
        for number in members:
            end = start + lengths[number]
            ids[r, start:end] = torch.cat([span.ids for span in documents[number]])
            labels[r, start:end] = next_ids(documents[number])
            position[r, start:end] = torch.arange(end - start)
            document[r, start:end] = number
            for places, span in fed_places(documents[number]):
                index.append(places + r * width + start)
                fed.append(span)
            start = end
    slots = {"image": slots_of(torch.cat(index), fed)} if index else {}
    return PackedBatch(ids, labels, position, document, slots)


def with_common_total(batches: list[PackedBatch]) -> list[PackedBatch]:
    """The micro-batches of a step, their losses to be divided by the mean count of learned tokens over all of them.

    Their mean then is a mean over all tokens of the step, on every rank; and so for the places where vectors are fed.
    Call on every rank.
    """
    learned = torch.stack([(batch.labels != IGNORE).sum() for batch in batches])
    fed = [sum(len(slots.index) for slots in batch.slots.values()) for batch in batches]
    total = mean_over_ranks(learned.float().mean())
    places = mean_over_ranks(learned.new_tensor(fed).float().mean())
    return [batch._replace(total=total, places=places) for batch in batches]


def next_ids(document: Document) -> Tensor:
    """(n,) int64 what each place of a document must predict, -100 = nothing; the last place predicts nothing."""
    targets = [span.ids if span.learn == Learn.IDS else torch.full_like(span.ids, IGNORE) for span in document]
    return torch.cat([*targets, torch.tensor([IGNORE])])[1:]


def slots_of(index: Tensor, fed: list[Span]) -> Slots:
    """The places (S,) int64 of spans of vectors, with what a port reads of them."""
    if fed[0].keep is None:
        return Slots(index, torch.cat([span.features for span in fed]))
    return Slots(index, torch.stack([span.features for span in fed]), torch.stack([span.keep for span in fed]))


def fed_places(document: Document) -> list[tuple[Tensor, Span]]:
    """The places in a document where vectors enter, with their span: all ids of a fed image but its begin and end.

    Vectors that are still on disk are read here.

    Raises:
        ValueError: a span with more or fewer vectors than places.
    """
    out, start = [], 0
    for span in document:
        if span.feed == Feed.FEATURES:
            places = torch.arange(1, len(span.ids) - 1) + start
            features = None if span.features is None else read_vectors(span.features)
            if span.keep is not None and features.dim() == 2 and len(features) != len(span.keep):
                raise ValueError(f"a picture has {len(features)} patches, of which {len(span.keep)} are kept or not")
            span = span._replace(features=features)
            count = 0 if features is None else len(features) if span.keep is None else int(span.keep.sum())
            if count != len(places):
                raise ValueError(f"an {span.modality} has {len(places)} places but {count or 'no'} feature vectors")
            out.append((places, span))
        start += len(span.ids)
    return out
