from __future__ import annotations

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from lavit.layers.ranks import gathered, mean_over_ranks, summed_over_ranks, world_size
from lavit.tokenizers.selector import LearnedConfig, Selector

BATCH = torch.randn(6, 9, 12, generator=torch.Generator().manual_seed(0))


def kept(batch: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    return Selector(12, LearnedConfig(rho=0.3, calibrated=True)).train().select(batch).keep


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mine = torch.tensor([1.0, 2.0]) if rank == 0 else torch.tensor([10.0])
    weight = torch.tensor(2.0 + rank, requires_grad=True)
    summed_over_ranks(weight * weight).backward()
    said = {
        "world": world_size(),
        "gathered": gathered(mine),
        "mean": mean_over_ranks(mine.sum()),
        "gradient": weight.grad,
        "kept": kept(BATCH[3 * rank : 3 * rank + 3]),
    }
    torch.save(said, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks(tmp_path):
    multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for said in (first, second):
        assert said["world"] == 2 and said["gathered"].tolist() == [1.0, 2.0, 10.0] and said["mean"].item() == 6.5
    # Both ranks' losses hold both squares: each weight gets its own gradient twice.
    assert first["gradient"].item() == 8.0 and second["gradient"].item() == 12.0
    assert torch.equal(torch.cat([first["kept"], second["kept"]]), kept(BATCH)), "ranked over the global batch"


def test_one_rank_is_itself():
    rows = torch.tensor([1.0, 2.0])
    assert world_size() == 1 and torch.equal(gathered(rows), rows) and torch.equal(summed_over_ranks(rows), rows)
    value = mean_over_ranks(torch.tensor(3))
    assert value.item() == 3 and value.dtype == torch.float32
