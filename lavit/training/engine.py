"""DeepSpeed from the typed configuration: ZeRO stage, process group, checkpoints.

The dict that DeepSpeed wants is built here and nowhere else; there is no JSON file beside it.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lavit.runs import read_json
from lavit.training.optimizer import OptimizerConfig, optimizer_for, trained_names

UNIVERSAL = "universal"  # the folder of a checkpoint that any number of ranks can load


@dataclass
class TrainConfig:
    """One training stage. ``batch`` is items a step over all ranks and accumulation steps.

    The newest ``keep_checkpoints`` are kept, and the one with the least validation loss where there is validation:
    before the first step, every ``validate_every`` steps and at the end, never if 0. A GPU's optimizer state (from
    ZeRO 1 on) and parameters (ZeRO 3) may be offloaded to the CPU's memory. ``workers`` processes a rank make batches
    ahead of time. ``ema`` above 0 is the decay of moving averages of the weights, which are then validated and released
    in their place.
    """

    steps: int = 400
    batch: int = 32
    accumulate: int = 1
    zero_stage: int = 0
    offload_optimizer: bool = False
    offload_parameters: bool = False
    precision: str = "fp32"
    checkpoint_every: int = 100
    keep_checkpoints: int = 1
    validate_every: int = 0
    log_every: int = 10
    workers: int = 0
    ema: float = 0.0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


def start_processes() -> tuple[int, int, torch.device]:
    """Join the process group that the launcher made: (rank, world size, device). Alone without a launcher.

    Call once, before anything that needs ranks.
    """
    import deepspeed

    if "RANK" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads:
        torch.set_num_threads(int(threads))
    if not dist.is_initialized():
        if os.environ["WORLD_SIZE"] == "1":
            # One rank talks to nobody, and compiling DeepSpeed's CPU op for that would take most of a minute.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed("nccl" if torch.cuda.is_available() else "gloo", verbose=False)
        _unlink_shared_memory()
        if dist.get_backend() == "gloo":
            # Its threads may still hold tensors when Python is torn down, and then abort the process now and then.
            atexit.register(_leave)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    # The same run gives the same weights; an operation without a deterministic form only warns.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a help to find bugs that takes its time
    return dist.get_rank(), dist.get_world_size(), device


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _unlink_shared_memory() -> None:
    """Take the name off the buffer that DeepSpeed's CPU op keeps in shared memory, 66 MiB a rank.

    It never does so itself, and memory would be lost until the machine restarts. All ranks have it mapped by now.
    """
    dist.barrier()
    parts = (os.getuid(), os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], os.environ["LOCAL_RANK"])
    Path("/dev/shm", f"deepspeed_allreduce_buffer_{'_'.join(map(str, parts))}").unlink(missing_ok=True)


def _free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def check_train(config: TrainConfig, key: str = "train") -> None:
    """Check what does not go together in the stage's settings, whose dotted ``key`` the message names.

    Raises:
        ValueError: an unknown precision or ZeRO stage, fewer than no workers, or what needs another stage.
    """
    stage = config.zero_stage
    if config.precision not in ("fp32", "bf16"):
        raise ValueError(f"{key}.precision '{config.precision}' is unknown; choose fp32 or bf16")
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"{key}.zero_stage {stage} is unknown; choose 0, 1, 2 or 3")
    if config.workers < 0:
        raise ValueError(f"{key}.workers is {config.workers}; it must be at least 0")
    if not 0 <= config.ema < 1:
        raise ValueError(f"{key}.ema is {config.ema}; it must be at least 0, for none, and below 1, e.g. 0.999")
    if config.optimizer.muon and stage:
        raise ValueError(
            f"{key}.optimizer.muon needs zero_stage 0, not {stage}: ZeRO cuts the matrices that Muon orthogonalizes; "
            "choose zero_stage: 0 or muon: null"
        )
    if config.offload_optimizer and not stage or config.offload_parameters and stage != 3:
        raise ValueError(f"{key}.offload_optimizer needs zero_stage 1 to 3 and offload_parameters 3, not {stage}")


def build_engine(model: nn.Module, config: TrainConfig, world: int, universal: bool = False) -> Any:
    """The DeepSpeed engine around ``model``; ``universal`` says which kind of checkpoint it is going to load.

    Raises:
        ValueError: a batch that the ranks and accumulation steps do not divide, or an unknown precision or stage.
    """
    import deepspeed

    if config.batch % (world * config.accumulate):
        raise ValueError(
            f"batch {config.batch} is not a multiple of {world} ranks × {config.accumulate} accumulation steps"
        )
    check_train(config)
    opt = config.optimizer
    optimizer = optimizer_for(model, opt)
    trained = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    settings = {
        "train_micro_batch_size_per_gpu": config.batch // (world * config.accumulate),
        "gradient_accumulation_steps": config.accumulate,
        "gradient_clipping": opt.clip,
        # By default ZeRO allocates a bucket of 5e8 numbers at every step, however small the model is.
        "zero_optimization": {
            "stage": config.zero_stage,
            "reduce_bucket_size": min(trained, 5 * 10**8),
            **({"offload_optimizer": {"device": "cpu"}} if config.offload_optimizer else {}),
            **({"offload_param": {"device": "cpu"}} if config.offload_parameters else {}),
        },
        "zero_allow_untested_optimizer": True,
        # The CPU steps offloaded states with PyTorch's own fused AdamW.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        "checkpoint": {"load_universal": universal},
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    return engine


def finite_gradients(engine: Any) -> bool:
    """Whether the gradients that this rank is about to apply are finite; between the last backward and the step."""
    shares = getattr(engine.optimizer, "averaged_gradients", None)  # where ZeRO keeps a rank's part
    if shares is None:
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    else:
        gradients = [gradient for share in shares.values() for gradient in share or ()]
    return not gradients or bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all())


def skip_update(engine: Any, skip: bool) -> None:
    """Let the engine's next step leave weights and moments as they are, or not.

    The engine still steps and does its own bookkeeping; both optimizers pass over an update whose ``found_inf`` is 1.
    """
    engine.basic_optimizer.found_inf = torch.tensor(float(skip), device=engine.device)


def make_whole(module: nn.Module) -> None:
    """Give a module that ZeRO-3 spread over the ranks its whole parameters back, on every rank, to be saved.

    Call on every rank; does nothing to a module of another stage. Training is over for it afterwards, and so is any
    other use: a forward pass would still ask the other ranks for their parts.
    """
    import deepspeed

    spread = [parameter for parameter in module.parameters() if hasattr(parameter, "ds_id")]
    if spread:
        with deepspeed.zero.GatheredParameters(spread):
            values = [parameter.detach().clone() for parameter in spread]
        for parameter, value in zip(spread, values, strict=True):
            parameter.data = value


def digest(module: nn.Module) -> str:
    """sha256 of a module's parameters and buffers by name, type and shape: proves what stayed frozen."""
    return digest_of(module.state_dict())


def frozen_digest(module: nn.Module, config: OptimizerConfig) -> str:
    """sha256 of the parameters that a training leaves as they are, see :func:`trained_names`."""
    moved = trained_names(module, config)
    return digest_of({name: value for name, value in module.named_parameters() if name not in moved})


def digest_of(values: Mapping[str, Tensor]) -> str:
    """sha256 of tensors with their names, types and shapes."""
    total = hashlib.sha256()
    for name, value in sorted(values.items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        total.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints below ``folder``, the oldest first; one without its mark was cut in the writing."""
    return sorted((mark.parent for mark in folder.glob("step*/complete")), key=lambda path: int(path.name[4:]))


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint below ``folder``."""
    return next(reversed(complete_checkpoints(folder)), None)


def checkpoint_for(folder: Path, world: int, zero_stage: int, rank: int) -> Path | None:
    """The newest complete checkpoint below ``folder``, made loadable by ``world`` ranks; None where there is none.

    ZeRO writes the optimizer's state in as many parts as there are ranks. For another number of them, rank 0 makes a
    universal checkpoint of it (arXiv 2406.18820). Call on every rank.

    Raises:
        ValueError: it cannot be converted.
    """
    newest = latest_checkpoint(folder)
    if newest is None:
        return None
    about = read_json(newest / "complete")
    if zero_stage == 0 or about["world"] == world:
        return newest
    made, failed = folder / UNIVERSAL, [False]
    if rank == 0:
        shutil.rmtree(made, ignore_errors=True)
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
        command += ["--input_folder", str(newest), "--output_folder", str(made)]
        done = subprocess.run(command, capture_output=True, text=True)
        failed = [done.returncode != 0]
        if done.returncode:
            print(done.stderr, file=sys.stderr)
    dist.broadcast_object_list(failed, 0)
    if failed[0]:
        raise ValueError(
            f"checkpoint {newest}, written by {about['world']} ranks, cannot be made universal for {world}; "
            f"start {about['world']} ranks, or remove the stage's folder"
        )
    return made


def frozen_names(module: nn.Module) -> set[str]:
    """All names of parameters that are not trained; one that stands in two places has two."""
    every = module.named_parameters(remove_duplicate=False)
    return {name for name, parameter in every if not parameter.requires_grad}


@contextlib.contextmanager
def without_frozen(module: nn.Module) -> Iterator[None]:
    """Within it the state dict leaves out what is frozen.

    A frozen language model would otherwise be written with each checkpoint. DeepSpeed can leave it out, but for
    matrices with a second name, such as an embedding's that is the head's too.
    """
    frozen = frozen_names(module)

    def leave_out(of: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
        for name in frozen.intersection(state):
            del state[name]

    hook = module.register_state_dict_post_hook(leave_out)
    try:
        yield
    finally:
        hook.remove()


def load_unfrozen(src: dict[str, Tensor], dst: nn.Module) -> None:
    """Load what a checkpoint holds of a model: all but the frozen parameters, which are as they were built.

    Raises:
        ValueError: the names are not those of the model.
    """
    found = dst.load_state_dict(src, strict=False)
    if wrong := sorted({*found.missing_keys, *found.unexpected_keys} - frozen_names(dst)):
        raise ValueError(f"not the model's parameters: {wrong[0]} and {len(wrong) - 1} more names differ")


def restore_groups(optimizer: Any, groups: list[dict[str, Any]]) -> None:
    """Undo what DeepSpeed does beside loading a universal checkpoint.

    It gives all groups the settings of the first, and all parameters one counter of steps, which each of them then
    counts up.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    for group, before in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: value for key, value in before.items() if key != "params"})
    for state in inner.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
