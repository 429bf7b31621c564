"""Stage 1 on one rank, on two, and with accumulation: the same tokenizer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lavit.experiment import load_experiment, run_stage
from tests.runs.stages import alone as in_this_process
from tokenizer import prepare, train
from tokenizer.train import check_kmeans

ROOT = Path(__file__).parents[2]
CONFIG = """
run: {run}
data:
  sources: [{{folder: {{path: {pictures}, captions: {pictures}/captions.csv}}}}]
  split: {{validation: 0.1, test: 0.1}}
  image_size: 32
  vqa: null
tokenizer:
  plain_steps: 2
  noise_steps: 2
  model:
    encoder:
      weights: {{random: 0}}
      image_size: 32
      grid: 4
      layers: [{{name: blocks.1, width: 24}}, {{name: blocks.6, width: 320}}]
    merger: {{width: 16, blocks: 1, heads: 2, mlp: 16}}
    quantizer: {{codes: 32, width: 8, dead_below: 0.9, kmeans_vectors: 64}}
    decoder: {{width: 16, blocks: 1, heads: 2, mlp: 16}}
  train: {{steps: 6, batch: 8, log_every: 1, optimizer: {{lr: 1.0e-3}}}}
"""
EVEN, GAIN = "tokenizer.model.selection={even: {tokens: 5}}", "tokenizer.model.selection={gain: {rho: 0.5}}"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stage1")
    (folder / "pictures").mkdir()
    dice, rows = np.random.default_rng(0), ["file,caption"]
    for i in range(60):
        picture = Image.fromarray(dice.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((32, 32))
        picture.save(folder / "pictures" / f"p{i}.png")
        rows.append(f"p{i}.png,thing {i}")
    (folder / "pictures" / "captions.csv").write_text("\n".join(rows))
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(run=folder / "run", pictures=folder / "pictures"))
    return path


def trained(config: Path, name: str, ranks: int, *overrides: str) -> Path:
    """The stage's folder of a run of its own."""
    run = config.parent / name
    arguments = [str(config), f"run={run}", *overrides]
    run_stage(prepare.main, None, arguments)
    command = [sys.executable, "-m", "lavit.launch", "tokenizer.train", "--processes", str(ranks), "--", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=170, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return run / "tokenizer"


def test_too_few_vectors_for_the_codes_are_told_before_training(config):
    stage = load_experiment(config, ["tokenizer.model.selection={learned: {rho: 0.375}}"]).tokenizer
    check_kmeans(stage, 48)
    stage.model.quantizer.codes = 500
    with pytest.raises(ValueError, match="only about 288 vectors: 6 of each of at most 48 pictures"):
        check_kmeans(stage, 48)
    stage.model.selection.learned.rho = 0.0625
    with pytest.raises(ValueError, match="only about 192 vectors: 1 of each of at most 1000 pictures"):
        check_kmeans(stage, 1000)  # enough of them, but k-means counts on a third of the patches


@pytest.fixture(scope="module")
def alone(config) -> Path:
    return trained(config, "alone", 1, EVEN)


@pytest.mark.timeout(300)
def test_ranks_and_micro_batches_do_not_matter(config, alone):
    folder = trained(config, "shared", 2, EVEN, "tokenizer.train.accumulate=2")
    expected, found = (load_file(path / "tokenizer.safetensors") for path in (alone, folder))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    assert int(expected["quantizer.updates"]) == 4
    losses = [
        [json.loads(line)["loss"] for line in (f / "log.jsonl").read_text().splitlines()] for f in (alone, folder)
    ]
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_selector_that_zero_3_spreads_is_calibrated(config):
    """Its inner matrix is large enough to be spread, and the other rank has left when the threshold is measured."""
    folder = trained(config, "spread", 2, GAIN, "tokenizer.train.zero_stage=3")
    weights = load_file(folder / "tokenizer.safetensors")
    assert weights["selector.inner.weight"].numel() > 100_000
    assert weights["selector.threshold"] != 0


def test_a_codebook_of_a_file_stays_as_it_is(config, tmp_path, capsys):
    given = torch.randn(32, 8, generator=torch.Generator().manual_seed(3))
    save_file({"codebook": given}, tmp_path / "given.safetensors")
    settings = [f"run={tmp_path / 'run'}", f"tokenizer.model.quantizer.file={tmp_path / 'given.safetensors'}"]
    with in_this_process():
        run_stage(prepare.main, None, [str(config), *settings])
        run_stage(train.main, None, [str(config), *settings])
    state = load_file(tmp_path / "run" / "tokenizer" / "tokenizer.safetensors")
    torch.testing.assert_close(state["quantizer.codebook"], torch.nn.functional.normalize(given, dim=-1))
    for wrong, said in (
        (torch.randn(31, 8), r"\(31, 8\).*32 × 8"),
        (torch.randn(32, 9), r"\(32, 9\).*32 × 8"),
        (given.index_fill(0, torch.tensor([3]), torch.nan), "no directions"),
        (given.index_fill(0, torch.tensor([3]), 0.0), "no directions"),
        (torch.ones(32, 8, dtype=torch.int64), r"no directions \(torch.int64\)"),
        (None, "does not exist"),
    ):
        path = tmp_path / "wrong.safetensors"
        path.unlink(missing_ok=True)
        if wrong is not None:
            save_file({"codebook": wrong}, path)
        with in_this_process(), pytest.raises(SystemExit):
            other = [f"run={tmp_path / 'other'}", f"tokenizer.model.quantizer.file={path}"]
            run_stage(prepare.main, None, [str(config), *other])
            run_stage(train.main, None, [str(config), *other])
        assert re.search(said, capsys.readouterr().err)
