"""The language model on held-out documents of every kind, during its training."""

from __future__ import annotations

import torch
import torch.distributed as dist

from lavit.data.mixture import Mixture
from lavit.data.packing import document_length, pack, rows_for
from lavit.layers.ranks import world_size
from lavit.model import UnifiedLM
from lavit.tokens import IGNORE, PackedBatch, to_device

ROWS = 8  # at once, on a rank


class Validation:
    """Mean negative log-likelihoods of the learned tokens of ``size`` documents of every kind in a mixture.

    Called on every rank it gives the same figures on each: ``loss``, the mean over kinds by their shares, and
    ``KIND_text`` and ``KIND_image``, where there is anything to learn of either.
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
            sums = torch.zeros(4, dtype=torch.float64, device=device)  # nats and tokens of text, then of images
            for batch in batches:
                labels = batch.labels.flatten().to(device)
                nll = self.model.token_nll(to_device(batch, device)).double()
                is_image = labels >= self.model.vocabulary.text_size
                for place, where in ((0, (labels != IGNORE) & ~is_image), (2, is_image)):
                    sums[place] += nll[where].sum()
                    sums[place + 1] += where.sum()
            if world_size() > 1:
                dist.all_reduce(sums)
            text, texts, image, images = sums.tolist()
            figures |= {f"{kind}_text": text / texts} if texts else {}
            figures |= {f"{kind}_image": image / images} if images else {}
            loss += self.shares[kind] * (text + image) / max(1.0, texts + images)
        return {"loss": loss, **figures}
