"""Extraction over ranks, shards and pictures that nobody has looked at before."""

from __future__ import annotations

import io
import json
import logging
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lavit.experiment import load_experiment, run_stage
from lavit.runs import read_json
from lavit.tokenizers.codes import CodeSet
from lavit.weights import save_weights
from lavit.workspace import Workspace
from tokenizer import extract, prepare

ROOT = Path(__file__).parents[2]
CONFIG = """
run: {run}
data:
  sources: [{{folder: {{path: {pictures}, captions: {pictures}/captions.csv}}}}]
  split: {{validation: 0.2, test: 0.2}}
  image_size: 32
  samples_per_shard: 8
tokenizer:
  cache_features: {cached}
  model:
    encoder: {{weights: {{random: 0}}, image_size: 32, grid: 4, layers: [{{name: blocks.1, width: 24}}]}}
    selection: {{learned: {{}}}}
    merger: {{width: 16, blocks: 1, heads: 2, mlp: 16, position: true}}
    quantizer: {{codes: 32, width: 8}}
    decoder: {{width: 16, blocks: 1, heads: 2, mlp: 16}}
"""


def make_run(folder: Path, cached: bool = False) -> Path:
    """A prepared run with a tokenizer of random weights; the config's path."""
    (folder / "pictures").mkdir(parents=True)
    dice, rows = random.Random(0), ["file,caption"]
    for i in range(40):
        noise = np.array([dice.randrange(256) for _ in range(8 * 8 * 3)], dtype=np.uint8).reshape(8, 8, 3)
        Image.fromarray(noise).resize((32, 32)).save(folder / "pictures" / f"p{i}.png")
        rows.append(f"p{i}.png,thing {i}")
    (folder / "pictures" / "captions.csv").write_text("\n".join(rows))
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(run=folder / "run", pictures=folder / "pictures", cached=str(cached).lower()))
    run_stage(prepare.main, None, [str(config)])
    work = Workspace(load_experiment(config), folder / "run")
    save_weights(work.new_tokenizer(), work.run / "tokenizer" / "tokenizer.safetensors")
    return config


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("extract"))


def opened(config: Path, *overrides: str) -> tuple[Workspace, list[extract.Job]]:
    experiment = load_experiment(config, overrides)
    work = Workspace(experiment, Path(experiment.run))
    source = experiment.extraction.input
    if source is None:
        return work, extract.jobs_of(work)
    return work, extract.foreign_jobs(Path(source), work.run / "extracted" / "x", experiment.tokenizer.model.encoder)


def encode(work: Workspace, jobs: list[extract.Job], out: Path, rank: int = 0, world: int = 1) -> list[Path]:
    """The shards of one rank below ``out``, which all jobs are turned to."""
    jobs = [job._replace(folder=out / job.folder.parent.name / job.folder.name) for job in jobs]
    coders = {"captions": extract.Coder.of(work, "captions")}
    extract.encode(jobs, jobs[rank::world], coders, work.experiment.extraction, None)
    return [job.folder for job in jobs]


def contents(folders: list[Path]) -> list[bytes]:
    return [(folder / name).read_bytes() for folder in folders for name in ("words.npy", "start.npy", "features.npy")]


def test_codes_are_those_of_the_tokenizer(config, tmp_path):
    work, jobs = opened(config)
    codes = CodeSet(encode(work, jobs, tmp_path)[: len(work.shards("captions", "train").paths)])
    pictures, tokenizer = work.pictures("captions", "train"), work.tokenizer()
    assert len(jobs) > 4 and len(codes) == len(pictures) > 16
    tokens = tokenizer.encode(pictures.pixels(list(range(len(pictures))), 32))
    for n in range(len(pictures)):
        assert torch.equal(codes.codes(n), tokenizer.words(tokens)[n][tokens.keep[n]])
        torch.testing.assert_close(codes.features(n), tokens.features[n][tokens.keep[n]], atol=1e-2, rtol=1e-2)
    assert codes.about()["keys"] == pictures.shards.keys


def test_any_number_of_ranks_writes_the_same(config, tmp_path):
    work, jobs = opened(config)
    alone = encode(work, jobs, tmp_path / "alone")
    for rank in (2, 0, 1):
        three = encode(work, jobs, tmp_path / "three", rank, 3)
    assert contents(alone) == contents(three)


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_any_batch_size_gives_the_same_words(config, tmp_path, batch):
    work, jobs = opened(config)
    expected = CodeSet(encode(work, jobs, tmp_path / "whole"))  # 64, more than a shard holds
    work.experiment.extraction.batch = batch
    found = CodeSet(encode(work, jobs, tmp_path / "other"))
    assert torch.equal(found.counts(), expected.counts())
    assert all(torch.equal(found.codes(n), expected.codes(n)) for n in range(len(found)))


def test_what_was_cut_goes_on_at_the_next_shard(config, tmp_path, monkeypatch):
    work, jobs = opened(config)
    write, written = extract.write_shard, []

    def cut(folder, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(folder.name)
        write(folder, *rest)

    monkeypatch.setattr(extract, "write_shard", cut)
    with pytest.raises(KeyboardInterrupt):
        encode(work, jobs, tmp_path / "cut")
    monkeypatch.setattr(
        extract, "write_shard", lambda folder, *rest: (written.append(folder.name), write(folder, *rest))
    )
    folders = encode(work, jobs, tmp_path / "cut")
    assert written == [job.folder.name for job in jobs], "each shard once"
    assert contents(folders) == contents(encode(work, jobs, tmp_path / "whole"))


@pytest.mark.timeout(180)
def test_two_processes_of_the_launcher(tmp_path):
    config = make_run(tmp_path, cached=True)
    command = [sys.executable, "-m", "lavit.launch", "tokenizer.extract", "--processes", "2", "--", str(config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    work, jobs = opened(config)
    assert contents([job.folder for job in jobs]) == contents(encode(work, jobs, tmp_path / "alone"))
    assert (work.run / "extract" / "done.json").is_file() and done.stdout.count("a second") == 2


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 20), (value, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def test_folder_of_images_with_broken_ones(config, tmp_path, caplog):
    source = tmp_path / "mine"
    (source / "deeper").mkdir(parents=True)
    (source / "a.png").write_bytes(png(10))
    (source / "b.jpg").write_bytes(png(20)[:60])
    (source / "deeper" / "c.png").write_bytes(b"")
    (source / "deeper" / "d.png").write_bytes(png(30))
    work, jobs = opened(config, f"extraction.input={source}", "extraction.features=false")
    with caplog.at_level(logging.WARNING):
        codes = CodeSet(encode(work, jobs, tmp_path / "out"))
    about = codes.about()
    assert about["keys"] == ["a.png", "b.jpg", "deeper/c.png", "deeper/d.png"]
    assert set(about["skipped"]) == {"b.jpg", "deeper/c.png"} and "0 bytes" in about["skipped"]["deeper/c.png"]
    assert (codes.counts() > 0).tolist() == [True, False, False, True]
    assert caplog.text.count("left out: image") == 2 and "b.jpg" in caplog.text


def test_tars_of_img2dataset(config, tmp_path):
    source = tmp_path / "tars"
    source.mkdir()
    for number in range(2):
        with tarfile.open(source / f"{number:05d}.tar", "w") as tar:
            files = {
                f"{number}0.jpg": png(9),
                f"{number}0.txt": b"x",
                f"{number}1.txt": b"no image",
                f"{number}2.png": png(99),
            }
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    work, jobs = opened(config, f"extraction.input={source}")
    assert [job.folder.name for job in jobs] == ["00000", "00001"]
    codes = CodeSet(encode(work, jobs, tmp_path / "out"))
    assert codes.about()["keys"] == ["00", "01", "02", "10", "11", "12"]
    assert (codes.counts() > 0).tolist() == [True, False, True] * 2
    assert "has no image" in codes.about()["skipped"]["01"]


def test_broken_and_empty_tars_are_named_and_the_rest_goes_on(config, tmp_path):
    source = tmp_path / "tars"
    (source / "deeper").mkdir(parents=True)
    with tarfile.open(source / "a.tar", "w") as tar:
        info = tarfile.TarInfo("0.png")
        info.size = len(png(9))
        tar.addfile(info, io.BytesIO(png(9)))
    tarfile.open(source / "b.tar", "w").close()
    (source / "c.tar").write_bytes((source / "a.tar").read_bytes()[:700])
    (source / "deeper" / "a.tar").write_bytes((source / "a.tar").read_bytes())
    work, jobs = opened(config, f"extraction.input={source}")
    assert [job.folder.relative_to(work.run / "extracted" / "x").as_posix() for job in jobs] == [
        "a",
        "b",
        "c",
        "deeper/a",
    ]
    codes = CodeSet(encode(work, jobs, tmp_path / "out"))
    assert codes.about()["keys"] == ["0", "c.tar", "0"]
    assert (codes.counts() > 0).tolist() == [True, False, True] and "c.tar" in codes.about()["skipped"]["c.tar"]


def test_other_inputs_beside_the_run_s_own_data(config, tmp_path, capsys):
    first, second = tmp_path / "first" / "mine", tmp_path / "second" / "mine"
    for folder in (first, second):
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(png(10))
    (second / "b.png").write_bytes(b"no picture")
    run = load_experiment(config).run
    for overrides in ([], [f"extraction.input={first}"], [f"extraction.input={second}", "extraction.batch=3"], []):
        run_stage(extract.main, None, [str(config), *overrides])
    assert "1 could not be read" in capsys.readouterr().out
    made = {extract.input_name(folder): folder for folder in (first, second)}
    assert {path.name for path in Path(run, "extracted").iterdir()} == set(made)
    told = {folder: read_json(Path(run, "extracted", name, "done.json")) for name, folder in made.items()}
    assert list(Path(run, "extract").rglob("features.npy")) and not list(Path(run, "extracted").rglob("features.npy"))
    assert (told[first]["left_out"], told[second]["left_out"]) == (0, 1)
    (first / "c.png").write_bytes(png(30))
    with pytest.raises(SystemExit):
        run_stage(extract.main, None, [str(config), f"extraction.input={first}"])
    assert "has other images than before; remove" in capsys.readouterr().err


def test_codes_of_another_tokenizer_are_refused(tmp_path, capsys):
    config = make_run(tmp_path)
    run_stage(extract.main, None, [str(config)])
    work, _ = opened(config)
    other = work.tokenizer()
    other.quantizer.codebook.mul_(-1)
    save_weights(other, work.run / "tokenizer" / "tokenizer.safetensors")
    with pytest.raises(SystemExit):
        run_stage(extract.main, None, [str(config)])
    assert "has codes of another tokenizer; remove" in capsys.readouterr().err


def test_input_without_images(config, tmp_path):
    with pytest.raises(ValueError, match=r"extraction\.input .*/none does not exist"):
        opened(config, f"extraction.input={tmp_path}/none")
    with pytest.raises(ValueError, match=r"extraction\.input .* holds no tars and no images"):
        opened(config, f"extraction.input={tmp_path}")


def test_whole_stage_is_done_once(tmp_path, capsys):
    config = make_run(tmp_path)
    run_stage(extract.main, None, [str(config)])
    work, jobs = opened(config)
    assert len(work.codes("captions", "test")) == len(work.shards("captions", "test"))
    assert json.loads((work.run / "extract" / "done.json").read_text())["shards"] == len(jobs)
    assert " a second" in capsys.readouterr().out
    run_stage(extract.main, None, [str(config)])
    assert " a second" not in capsys.readouterr().out
