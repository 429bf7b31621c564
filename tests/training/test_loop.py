from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lavit.data.order import Place, items_at
from lavit.training import loop
from lavit.training.optimizer import OptimizerConfig, learning_rate_factor

ROOT = Path(__file__).parents[2]
STEPS, BATCH, ITEMS = 8, 4, 10


# ---------------------------------------------------------------------------------------------------------- training

# What the processes below run: `python -m probe '{"name": {settings}, ...}'` trains once for each name.
PROBE = '''
import json, os, signal, sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from lavit.data.order import items_at
from lavit.training.engine import TrainConfig
from lavit.training.optimizer import MuonConfig, OptimizerConfig
from lavit.training.loop import Stopped, train
from lavit.weights import save_weights

DATA = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))


class Loss(NamedTuple):
    loss: torch.Tensor
    size: torch.Tensor


class Model(nn.Module):
    """A small network; `poison` makes its loss, or only its gradient, not a number."""

    def __init__(self, width, frozen):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(4, width), nn.Linear(width, 4)
        self.frozen = nn.Parameter(torch.randn(4, frozen), requires_grad=False) if frozen else None
        self.again = self.frozen  # a second name, as a head has that is the embedding
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch):
        x, poison = batch
        if self.frozen is not None:
            x = x @ self.frozen @ self.frozen.T / self.frozen.shape[1]
        out = self.second(self.first(x).tanh())
        if self.training:
            self.seen += 1
        loss = (out - x.flip(-1)).square().mean()
        if poison == "loss":
            loss = loss * float("nan")
        if poison == "gradient":
            loss = loss + (self.second.bias.sum() * 0).sqrt()
        return Loss(loss, out.detach().abs().mean())


def main(
    folder, steps, poison={}, stop=None, cut=None, width=6, frozen=0, shift=0.0, muon=False, told=None, **settings
):
    model = Model(width, frozen)
    if shift:
        model.frozen.data += shift

    taken = []

    def batch_at(place):
        taken.append(place.step + 1)
        if stop is not None and place.step == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        if cut == [place.step, place.rank]:
            raise OSError("shard train-00003.tar is cut; fetch it again")
        wanted, micro, rank, kind = poison.get(str(place.step), (False, 0, 0, ""))
        hit = wanted and place.micro == micro and place.rank == rank
        return DATA[items_at(place, config.accumulate, 10, 3)], kind if hit else ""

    optimizer = OptimizerConfig(lr=0.05, warmup=2, clip=0.5, weight_decay=0.1, scale={"second*": 0.5})
    if muon:
        optimizer.muon = MuonConfig(["first*"])
    config = TrainConfig(steps=steps, batch=4, checkpoint_every=3, log_every=1, optimizer=optimizer, **settings)
    def validate():
        """Figures by the number of steps taken, as if they were measured."""
        assert not model.training
        return {"loss": told[str(taken[-1] if taken else 0)], "size": float(model((DATA, "")).size)}

    counts = lambda step: {"tokens_read": 3.0}
    train(model, batch_at, config, Path(folder), validate=validate if told else None, counts=counts, flops=len)
    if torch.distributed.get_rank() == 0:
        save_weights(model, Path(folder) / "model.safetensors")


runs = json.loads(sys.argv[1])
for name, settings in runs.items():
    try:
        main(name, **settings)
    except Stopped:
        if name == list(runs)[-1]:
            raise
    except (ValueError, RuntimeError) as error:
        Path(name, "error.txt").write_text(f"{type(error).__name__}: {error}")
'''


def started(folder: Path, runs: dict, ranks: int = 1) -> int:
    (folder / "probe.py").write_text(PROBE)
    if ranks > 1:
        command = [sys.executable, "-m", "lavit.launch", "probe", "--processes", str(ranks), "--", json.dumps(runs)]
    else:
        command = [sys.executable, "-m", "probe", json.dumps(runs)]
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode in (0, 143), done.stdout[-3000:] + done.stderr[-3000:]
    return done.returncode


SHARED_MEMORY = Path("/dev/shm")
WIDE = 30_000  # ZeRO-3 leaves parameters of fewer than 100,000 numbers whole
NAN_LOSS = {"3": [True, 1, 0, "loss"]}  # in the second micro-batch, after the first has left its gradients
NAN_GRADIENT = {"3": [True, 0, 0, "gradient"]}
NAN_ON_ONE_RANK = {"3": [True, 1, 1, "loss"]}
VALIDATED = {"steps": STEPS, "validate_every": 2, "told": {"0": 9.0, "2": 3.0, "4": 1.0, "6": 2.0, "8": 1.5}}
MUON = {"steps": STEPS, "muon": True, "poison": NAN_GRADIENT, "keep_checkpoints": 9}
EMA = {"steps": STEPS, "ema": 0.3, "validate_every": STEPS, "told": {"0": 9.0, "8": 1.0}}
FROZEN = {"steps": STEPS, "frozen": WIDE}
FOREVER = {str(step): [True, 0, 0, "loss"] for step in range(2, 20)}


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory) -> Path:
    """Trainings in one process; the last of them is told to stop in its fifth step."""
    folder = tmp_path_factory.mktemp("one")
    code = started(folder, {
        "whole": {"steps": STEPS},
        "wide": {"steps": 1, "width": WIDE},
        "accumulated": {"steps": STEPS, "accumulate": 2},
        "nan_loss": {"steps": STEPS, "accumulate": 2, "poison": NAN_LOSS},
        "nan_gradient": {"steps": STEPS, "poison": NAN_GRADIENT},
        "workers": {"steps": STEPS, "workers": 2},
        "nan_forever": {"steps": STEPS, "poison": FOREVER, "keep_checkpoints": 9},
        "muon": MUON,
        "validated": VALIDATED,
        "ema": EMA | {"poison": NAN_GRADIENT, "keep_checkpoints": 9},
        "ema_wide": {"steps": 3, "width": WIDE, "ema": 0.9},
        "ema_zero1_cut": EMA | {"zero_stage": 1, "stop": 4},
        "frozen": FROZEN,
        "frozen_cut": FROZEN | {"stop": 4},
        "frozen_zero1_cut": FROZEN | {"zero_stage": 1, "stop": 4},
        "zero1_cut": {"steps": STEPS, "zero_stage": 1, "stop": 4},
        "cut": {"steps": STEPS, "stop": 4},
    })  # fmt: skip
    assert code == 143
    return folder


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    before = set(SHARED_MEMORY.glob("deepspeed*"))
    assert 0 == started(folder, {
        "zero2": {"steps": STEPS, "zero_stage": 2},
        "offloaded_nan": {
            "steps": STEPS, "zero_stage": 2, "offload_optimizer": True, "poison": {"3": [True, 0, 1, "gradient"]},
        },
        "zero2_nan": {"steps": STEPS, "zero_stage": 2, "accumulate": 2, "poison": NAN_ON_ONE_RANK},
        "zero3_wide": {"steps": 1, "zero_stage": 3, "width": WIDE},
        "muon": MUON,
        "zero0_cut": {"steps": STEPS, "stop": 4},
        "zero2_cut": {"steps": STEPS, "zero_stage": 2, "stop": 4},
        "zero3_cut": {"steps": STEPS, "zero_stage": 3, "stop": 4},
        **{f"ema_zero{stage}_cut": EMA | {"zero_stage": stage, "stop": 4} for stage in (2, 3)},
        "ema_zero3_same": EMA | {"zero_stage": 3},
        "ema_wide": {"steps": 3, "width": WIDE, "ema": 0.9, "zero_stage": 3},
        **{f"frozen_zero{stage}": FROZEN | {"zero_stage": stage} for stage in (2, 3)},
        **{f"frozen_zero{stage}_cut": FROZEN | {"zero_stage": stage, "stop": 4} for stage in (2, 3)},
        "whole": {"steps": 1},
    }, ranks=2)  # fmt: skip
    assert set(SHARED_MEMORY.glob("deepspeed*")) <= before, "no buffers are left in memory"
    return folder


@pytest.fixture(scope="module")
def resumed(one_rank, two_ranks) -> Path:
    """A second process goes on where the first was stopped, past the leavings of one that was killed while saving."""
    half = one_rank / "cut" / "checkpoints" / "step7"
    half.mkdir()
    (half / "rubbish").touch()
    shutil.copytree(one_rank / "muon" / "checkpoints" / "step3", one_rank / "muon_cut" / "checkpoints" / "step3")
    shutil.copytree(
        one_rank / "validated" / "checkpoints" / "step4", one_rank / "validated_cut" / "checkpoints" / "step4"
    )
    shutil.copytree(one_rank / "ema" / "checkpoints" / "step3", one_rank / "ema_cut" / "checkpoints" / "step3")
    shutil.copytree(one_rank / "ema_cut", one_rank / "ema_lost")
    (one_rank / "ema_lost" / "checkpoints" / "step3" / "ema.safetensors").unlink()
    shutil.copytree(one_rank / "frozen_cut", one_rank / "frozen_other")
    started(one_rank, {
        "cut": {"steps": STEPS},
        "ema_cut": EMA | {"poison": NAN_GRADIENT},
        "ema_lost": EMA,
        "frozen_cut": FROZEN,
        "frozen_other": FROZEN | {"shift": 0.01},
        "muon_cut": MUON,
        "validated_cut": VALIDATED,
        **{str(two_ranks / f"zero{stage}_cut"): {"steps": STEPS, "zero_stage": stage} for stage in (0, 2, 3)},
        **{str(two_ranks / f"ema_zero{stage}_cut"): EMA | {"zero_stage": stage} for stage in (2, 3)},
    })  # fmt: skip
    started(two_ranks, {
        str(one_rank / "zero1_cut"): {"steps": STEPS, "zero_stage": 1},
        str(one_rank / "ema_zero1_cut"): EMA | {"zero_stage": 1},
        str(one_rank / "frozen_zero1_cut"): FROZEN | {"zero_stage": 1},
        **{f"frozen_zero{stage}_cut": FROZEN | {"zero_stage": stage} for stage in (2, 3)},
    }, ranks=2)  # fmt: skip
    return one_rank / "cut"


def log_of(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("elapsed", "speed")} for line in lines]


def losses(folder: Path) -> list[float | None]:
    return [line.get("loss") for line in log_of(folder) if "loss" in line or "skipped" in line]


def by_hand(skipped: int | None = None, ema: float = 0.0) -> tuple[list[float | None], dict[str, torch.Tensor]]:
    """The same training with nothing but torch: losses, and weights after ``STEPS`` steps or their averages."""
    torch.manual_seed(1)
    first, second = nn.Linear(4, 6), nn.Linear(6, 4)
    model = nn.ModuleDict({"first": first, "second": second})
    data = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    groups = [
        {"params": [p], "weight_decay": 0.1 if p.dim() > 1 else 0.0, "base": 0.05 * (0.5 if "second" in name else 1)}
        for name, p in model.named_parameters()
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    config, out = OptimizerConfig(warmup=2), []
    numbers = [items_at(Place(step, 0, 0, 1, BATCH), 1, ITEMS, 3) for step in range(STEPS)]
    averages = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(STEPS):
        x = data[numbers[step]]
        loss = (second(first(x).tanh()) - x.flip(-1)).square().mean()
        out.append(None if step == skipped else loss.item())
        if step == skipped:
            continue
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * learning_rate_factor(step, STEPS, config)
        optimizer.step()
        decay = min(ema, (1 + step) / (10 + step))
        averages = {name: decay * averages[name] + (1 - decay) * p.detach() for name, p in model.named_parameters()}
    return out, averages


def assert_trained_as_by_hand(folder: Path, skipped: int | None = None, ema: float = 0.0) -> None:
    expected, weights = by_hand(skipped, ema)
    found = losses(folder)
    assert len(found) == STEPS
    for step, (loss, wanted) in enumerate(zip(found, expected, strict=True)):
        assert loss == (None if wanted is None else pytest.approx(wanted, abs=1e-5)), f"step {step}"
    for name, value in load_file(folder / "model.safetensors").items():
        if name == "seen":
            continue
        torch.testing.assert_close(value, weights[name], atol=1e-5, rtol=0)


def test_the_loop_is_adamw_with_clipping_and_its_schedule(one_rank):
    assert_trained_as_by_hand(one_rank / "whole")
    assert losses(one_rank / "whole")[-1] < losses(one_rank / "whole")[0]


def test_accumulation_gives_the_same_steps(one_rank):
    assert_trained_as_by_hand(one_rank / "accumulated")


def test_two_ranks_with_zero_2_give_the_losses_of_one(one_rank, two_ranks):
    assert_trained_as_by_hand(two_ranks / "zero2")
    pairs = zip(losses(two_ranks / "zero2"), losses(one_rank / "whole"), strict=True)
    assert max(abs(a - b) for a, b in pairs) < 1e-5


@pytest.mark.parametrize("name", ["nan_loss", "nan_gradient"])
def test_a_step_without_a_finite_loss_or_gradient_is_dropped_whole(one_rank, name):
    assert_trained_as_by_hand(one_rank / name, skipped=3)
    assert {"step": 3, "skipped": 1.0, "tokens_read": 12.0} in log_of(one_rank / name)


@pytest.mark.parametrize("name", ["zero2_nan", "offloaded_nan"])
def test_a_step_is_dropped_on_every_rank(two_ranks, name):
    assert_trained_as_by_hand(two_ranks / name, skipped=3)


def test_weights_that_zero_3_spread_over_the_ranks_are_whole_again(one_rank, two_ranks):
    expected, found = (load_file(f / "model.safetensors") for f in (one_rank / "wide", two_ranks / "zero3_wide"))
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        # Adam's first step has the size of the learning rate, also where a gradient is next to nothing.
        assert (found[name] - value).abs().mean() < 1e-4, name
    assert losses(two_ranks / "zero3_wide") == pytest.approx(losses(one_rank / "wide"), abs=1e-5)


def test_five_dropped_steps_in_a_row_end_the_training(one_rank):
    error = (one_rank / "nan_forever" / "error.txt").read_text()
    assert error.startswith("RuntimeError: loss or gradients were not finite in 5 steps up to 6")
    assert error.endswith("checkpoints/step6")
    assert all(math.isfinite(loss) for loss in losses(one_rank / "nan_forever") if loss is not None)


def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(one_rank, resumed):
    assert log_of(resumed)[:4] == log_of(one_rank / "whole")[:4]
    assert losses(resumed) == losses(one_rank / "whole"), "no step is left out or taken twice"
    whole, cut = (load_file(folder / "model.safetensors") for folder in (one_rank / "whole", resumed))
    assert set(whole) == set(cut)
    for name, value in whole.items():
        assert torch.equal(value, cut[name]), name


@pytest.mark.parametrize("name", ["frozen", "frozen_zero2", "frozen_zero3"])
def test_what_is_frozen_is_in_no_checkpoint_and_training_goes_on_without(one_rank, two_ranks, resumed, name):
    folder = (one_rank if name == "frozen" else two_ranks) / name
    cut = folder.with_name(f"{name}_cut")
    files = [path for path in (cut / "checkpoints" / f"step{STEPS}").rglob("*") if path.is_file()]
    assert files and sum(path.stat().st_size for path in files) < 4 * WIDE, "of 16 * WIDE bytes that are frozen"
    assert losses(cut) == losses(folder) and len(losses(cut)) == STEPS
    whole, again = (load_file(path / "model.safetensors") for path in (folder, cut))
    assert whole["frozen"].abs().mean() > 0.5
    state = torch.load(next(path for path in files if path.name.endswith("model_states.pt")), weights_only=False)
    assert set(state["module"]) == {"first.weight", "first.bias", "second.weight", "second.bias", "seen"}
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_training_does_not_go_on_beside_other_frozen_weights(one_rank, resumed):
    error = (one_rank / "frozen_other" / "error.txt").read_text()
    assert re.fullmatch(
        r"ValueError: checkpoint \S+step5 was trained beside other frozen weights, such as another language model; "
        r"give it those again, or remove \S*frozen_other to begin anew",
        error,
    )


def test_another_number_of_ranks_goes_on_beside_what_is_frozen(one_rank, resumed):
    whole, cut = one_rank / "frozen", one_rank / "frozen_zero1_cut"
    assert losses(cut) == [pytest.approx(loss, abs=1e-5) for loss in losses(whole)]
    assert torch.equal(*(load_file(folder / "model.safetensors")["frozen"] for folder in (whole, cut)))


def test_batches_made_ahead_by_workers_are_the_same(one_rank):
    ahead, whole = (load_file(one_rank / name / "model.safetensors") for name in ("workers", "whole"))
    assert losses(one_rank / "workers") == losses(one_rank / "whole")
    assert all(torch.equal(ahead[name], value) for name, value in whole.items())


@pytest.mark.parametrize("name", ["whole", "cut"])
def test_what_steps_took_in_is_summed_in_the_log_also_over_a_resume(one_rank, resumed, name):
    lines = [json.loads(line) for line in (one_rank / name / "log.jsonl").read_text().splitlines()]
    assert [line["tokens_read"] for line in lines] == [3.0 * (step + 1) for step in range(STEPS)]
    for line in lines:
        speed = line["speed"]
        assert 0 <= speed["waiting"] < 1 and speed["step_seconds"] > 0 and speed["memory_gib"] > 0.05
        assert speed["tokens_a_second"] == pytest.approx(3 / speed["step_seconds"], rel=1e-2) and speed["mfu"] >= 0
    words = json.loads((one_rank / name / "progress.json").read_text())["note"]
    assert re.fullmatch(r"loss [\d.]+ size [\d.]+, [\d,]+ tokens/s, MFU 0.00, \d+% waiting for data, [\d.]+ GiB", words)


def test_muon_skips_resumes_and_runs_on_ranks_as_adamw_does(one_rank, resumed, two_ranks):
    assert {"step": 3, "skipped": 1.0, "tokens_read": 12.0} in log_of(one_rank / "muon")
    folders = (one_rank / "muon", one_rank / "muon_cut", two_ranks / "muon")
    whole, cut, both = (load_file(folder / "model.safetensors") for folder in folders)
    assert losses(folders[0])[3:] == losses(folders[1]), "the cut run began at step 3"
    for name, value in whole.items():
        assert torch.equal(value, cut[name]), name
        # Newton-Schulz is in bf16, which turns a last bit of a gradient into more.
        torch.testing.assert_close(both[name], value, atol=2e-3, rtol=0)
    assert not torch.allclose(whole["first.weight"], by_hand(3)[1]["first.weight"], atol=1e-2), "AdamW goes elsewhere"


@pytest.mark.parametrize("free", [0, 2**30])
def test_a_checkpoint_that_the_disk_has_no_room_for_is_told_and_leaves_nothing(tmp_path, monkeypatch, free):
    monkeypatch.setattr(loop.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    (tmp_path / "step3").mkdir()
    (tmp_path / "step3" / "half.pt").write_text("half")
    with (
        pytest.raises(OSError if free == 0 else RuntimeError) as raised,
        loop._telling_of_a_full_disk(tmp_path / "step3"),
    ):
        raise RuntimeError("unexpected pos 64 vs 0")  # as torch says it
    assert (tmp_path / "step3").exists() == (free > 0)
    assert free or (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "step3"))


def test_checkpoints_are_marked_and_only_the_newest_stay(one_rank, resumed):
    for folder in (one_rank / "whole", resumed):
        assert [path.name for path in (folder / "checkpoints").glob("step*")] == [f"step{STEPS}"]
        assert (folder / "checkpoints" / f"step{STEPS}" / "complete").is_file()


@pytest.mark.parametrize("name", ["validated", "validated_cut"])
def test_the_checkpoint_with_the_best_validation_loss_stays(one_rank, resumed, name):
    folder = one_rank / name
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = {line["step"] + 1: line["validation_loss"] for line in lines if "validation_loss" in line}
    before = [line["before_loss"] for line in lines if "before_loss" in line]
    assert before == ([9.0] if name == "validated" else []), "before the first step, and never again"
    assert found == ({2: 3.0, 4: 1.0, 6: 2.0, 8: 1.5} if name == "validated" else {6: 2.0, 8: 1.5})
    assert sorted(path.name for path in (folder / "checkpoints").glob("step*")) == ["step4", f"step{STEPS}"]
    newest = json.loads((folder / "checkpoints" / f"step{STEPS}" / "complete").read_text())
    assert newest["best"] == {"step": 4, "loss": 1.0}
    assert torch.equal(*(load_file(one_rank / n / "model.safetensors")["first.weight"] for n in (name, "whole")))


@pytest.mark.parametrize("name", ["zero0_cut", "zero1_cut", "zero2_cut", "zero3_cut"])
def test_another_number_of_ranks_goes_on(one_rank, two_ranks, resumed, name):
    """Two ranks are stopped and one goes on, or one and two; the steps are those of one that was never stopped."""
    folder = (one_rank if name == "zero1_cut" else two_ranks) / name
    assert_trained_as_by_hand(folder)
    assert load_file(folder / "model.safetensors")["seen"] == STEPS, "what is no parameter goes on too"
    assert [path.name for path in (folder / "checkpoints").iterdir() if path.is_dir()] == [f"step{STEPS}"]


@pytest.mark.parametrize("name", ["ema", "ema_cut"])
def test_averaged_weights_are_released_and_a_dropped_step_leaves_them(one_rank, resumed, name):
    averages, last = by_hand(3, 0.3)[1], by_hand(3)[1]
    released = load_file(one_rank / name / "model.safetensors")
    for key, value in averages.items():
        torch.testing.assert_close(released[key], value, atol=1e-6, rtol=0)
        assert (value - last[key]).abs().max() > 1e-3, "they are not the last ones"
        assert torch.equal(released[key], load_file(one_rank / "ema" / "model.safetensors")[key]), "bit for bit"


@pytest.mark.parametrize("name", ["ema_zero1_cut", "ema_zero2_cut", "ema_zero3_cut", "ema_zero3_same"])
def test_averages_are_the_same_under_zero_and_for_another_number_of_ranks(one_rank, two_ranks, resumed, name):
    folder = (one_rank if name == "ema_zero1_cut" else two_ranks) / name
    assert_trained_as_by_hand(folder, ema=0.3)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    (validated,) = (line["validation_size"] for line in lines if "validation_size" in line)
    weights = load_file(folder / "model.safetensors")
    data = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    hidden = (data @ weights["first.weight"].T + weights["first.bias"]).tanh()
    size = (hidden @ weights["second.weight"].T + weights["second.bias"]).abs().mean()
    assert validated == pytest.approx(size.item(), abs=1e-5), "the averages are what is validated"


def test_averages_of_what_zero_3_spreads_over_the_ranks_are_whole(one_rank, two_ranks):
    one, two = (load_file(folder / "ema_wide" / "model.safetensors") for folder in (one_rank, two_ranks))
    kept = load_file(two_ranks / "ema_wide" / "checkpoints" / "step3" / "ema.safetensors")
    for name, value in kept.items():
        assert torch.equal(value, two[name]), name
        assert (value - one[name]).abs().mean() < 1e-4, name


def test_a_checkpoint_without_its_averages_is_refused(one_rank, resumed):
    error = (one_rank / "ema_lost" / "error.txt").read_text()
    assert "step3/ema.safetensors does not hold the averaged weights" in error and "remove" in error


def test_a_rank_that_cannot_read_its_data_ends_the_others(tmp_path):
    start = time.monotonic()
    with pytest.raises(AssertionError, match="OSError: shard train-00003.tar is cut; fetch it again"):
        started(tmp_path, {"cut": {"steps": STEPS, "cut": [3, 1]}}, ranks=2)
    assert time.monotonic() - start < 90, "rank 0 waits for a step that never comes"
    assert [line["step"] for line in log_of(tmp_path / "cut")] == [0, 1, 2]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_training_with_workers_saves_when_it_is_stopped(tmp_path, signum):
    """The signal reaches the workers as well, as the launcher and a terminal send it to all processes of the group."""
    (tmp_path / "probe.py").write_text(PROBE)
    runs = {"cut": {"steps": 100_000, "workers": 2}}
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "probe", json.dumps(runs)]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, stderr=subprocess.PIPE)
    log = tmp_path / "cut" / "log.jsonl"
    while not (log.is_file() and log.read_text().count("\n") > 10):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    os.killpg(process.pid, signum)
    error = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 128 + signum, error[-3000:]
    newest = max(int(path.name[4:]) for path in (tmp_path / "cut" / "checkpoints").glob("step*"))
    assert newest == log_of(tmp_path / "cut")[-1]["step"] + 1, "the step it was stopped in is saved"
