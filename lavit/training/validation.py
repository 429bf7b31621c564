"""The language model on held-out documents of every kind, during its training."""

from __future__ import annotations

import torch
import torch.distributed as dist

from lavit.data.mixture import Mixture
from lavit.data.packing import document_length, pack, rows_for
from lavit.layers.ranks import world_size
from lavit.model import UnifiedLM
from lavit.tokens import PackedBatch, to_device

ROWS = 8  # at once, on a rank


class Validation:
    """Mean negative log-likelihoods of the learned tokens of ``size`` documents of every kind in a mixture.

    Called on every rank it gives the same figures on each: ``loss``, the mean over kinds by their shares, and
    ``KIND_text``, ``KIND_image`` and ``KIND_audio``, where there is anything to learn of each.
    """

    def __init__(self, model: UnifiedLM, mixture: Mixture, row: int, size: int, seed: int):
        self.model = model
        kinds = mixture.every_kind(size, seed)
        self.shares = {kind: mixture.share_of[kind] for kind in kinds}
        self.batches = {kind: self._batches(documents, row) for kind, documents in kinds.items()}

    @staticmethod
    def _batches(documents: list, row: int) -> list[PackedBatch]:
        """This rank's batches; as many as the others', because under ZeRO-3 each forward pass is a common one."""
        lengths, world = [document_length(document) for document in documents], world_size()
        calls = max(1, -(-sum(lengths) // (row * ROWS * world)))
        shares = rows_for(lengths, row, calls * world)
        rank = dist.get_rank() if world > 1 else 0
        return [pack(documents, rows=rows) for rows in shares[rank::world]]

    def __call__(self) -> dict[str, float]:
        figures, loss = {}, 0.0
        device = next(self.model.parameters()).device
        for kind, batches in self.batches.items():
            sums = torch.zeros(3, 2, dtype=torch.float64, device=device)  # by modality nats and tokens
            for batch in batches:
                labels = batch.labels.flatten().to(device)
                nll = self.model.token_nll(to_device(batch, device)).double()
                for its, where in zip(sums, self.model.vocabulary.by_modality(labels).values(), strict=False):
                    its += torch.stack([nll[where].sum(), where.sum()])
            if world_size() > 1:
                dist.all_reduce(sums)
            for name, (nats, tokens) in zip(("text", "image", "audio"), sums.tolist(), strict=True):
                figures |= {f"{kind}_{name}": nats / tokens} if tokens else {}
            nats, tokens = sums.sum(0).tolist()
            loss += self.shares[kind] * nats / max(1.0, tokens)
        return {"loss": loss, **figures}
