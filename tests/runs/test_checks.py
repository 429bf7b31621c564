"""Arms and seeds side by side; the runs themselves are those of the demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eval import checks
from lavit.config import load_section
from lavit.data.documents import DocumentMaker
from lavit.data.packing import pack
from lavit.experiment import load_experiment
from lavit.model import UnifiedLM
from lavit.runs import ChecksConfig
from lavit.tokens import PackedBatch, Picture
from lavit.training.optimizer import parameter_groups
from lavit.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]
CONFIG = """
run: {run}
checks:
  arms: {{plain: [], other: [pretrain.row=300]}}
  seeds: [3, 4]
  figures: [vqa.accuracy]
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG.format(run=tmp_path / "run"))
    return path


@pytest.fixture
def ran(monkeypatch):
    """What runs were asked for; each has an accuracy of a tenth of its seed, and one more where a row is longer."""
    asked: list[list[str]] = []

    def demo(argv: list[str]) -> int:
        asked.append(argv)
        given = dict(item.split("=") for item in argv[1:])
        run = Path(given["run"])
        run.mkdir(parents=True, exist_ok=True)
        accuracy = int(given["seed"]) / 10 + ("pretrain.row" in given)
        (run / "metrics.json").write_text(json.dumps({"vqa": {"accuracy": accuracy}}))
        return 0

    monkeypatch.setattr(checks, "demo", demo)
    return asked


def test_every_arm_runs_with_every_seed_in_a_folder_of_its_own(config, ran, tmp_path, capsys):
    assert checks.main([str(config), "data.image_size=64"]) == 0
    assert len({argv[-1] for argv in ran}) == 4
    assert ran[1][1:] == ["data.image_size=64", "pretrain.row=300", "seed=3", f"run={tmp_path}/run/checks/other-3"]
    found = json.loads((tmp_path / "run" / "checks" / "checks.json").read_text())
    assert found["plain"]["vqa.accuracy"] == {
        "mean": 0.35,
        "std": pytest.approx(0.0707, abs=1e-4),
        "values": [0.3, 0.4],
    }
    assert "| other | 1.350 ± 0.071 |" in (tmp_path / "run" / "checks" / "checks.md").read_text()
    assert "| 2 seeds | `vqa.accuracy` |" in capsys.readouterr().out


def test_a_run_that_does_not_end_ends_it_all(config, ran, monkeypatch, tmp_path):
    made = checks.demo
    monkeypatch.setattr(checks, "demo", lambda argv: made(argv) or (130 if len(ran) == 2 else 0))
    assert checks.main([str(config)]) == 130 and len(ran) == 2
    assert not (tmp_path / "run" / "checks" / "checks.json").exists()


def test_mistakes_are_said(config, ran, capsys):
    assert checks.main([]) == 2
    assert checks.main([str(config), "checks.figures=[vqa.acuracy]"]) == 2
    assert "has no vqa.acuracy" in capsys.readouterr().err
    assert checks.main([str(ROOT / "configs" / "lavit" / "demo.yaml")]) == 2
    assert "has no checks; those of teal, visual_words and spae have some" in capsys.readouterr().err


CHECKED = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if "\nchecks:" in path.read_text()]


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_arm_has_the_stages_of_the_figures(path):
    found = load_section(path, [], "checks", ChecksConfig)
    for arm, settings in found.arms.items():
        overrides = [*found.settings, *settings]
        checks.require_stages(str(path), overrides, found.figures, arm)
        with pytest.raises(ValueError, match=rf"reconstruction.psnr is of eval/reconstruction, .* of the arm {arm}"):
            checks.require_stages(str(path), [*overrides, "demo.stages=[data]"], ["reconstruction.psnr"], arm)


@pytest.mark.parametrize("system", ["visual_words", "teal"])
def test_every_phase_of_every_arm_trains_parameters_that_there_are(system):
    """Tiny models of the same parts: each phase's loss reaches what it is to move."""
    path = ROOT / "configs" / system / "toy.yaml"
    demo = ROOT / "configs" / system / "demo.yaml"
    for arm, settings in load_section(demo, [], "checks", ChecksConfig).arms.items():
        experiment = load_experiment(path, settings)
        config, stage = experiment.tokenizer.model, experiment.pretrain
        vocabulary, width = config.vocabulary(400, stage.model.port), config.fed_width(stage.model.port)
        for name, part in stage.parts().items():
            model = UnifiedLM(stage.last().model, vocabulary, width)
            model.words = part.model.word_head
            groups = parameter_groups(model, part.train.optimizer)
            model(packed(vocabulary, width)).loss.backward()
            moved = [p.grad is not None and bool(p.grad.any()) for group in groups for p in group["params"]]
            assert any(moved), f"{arm}/{name}"


def packed(vocabulary: Vocabulary, width: int) -> PackedBatch:
    """A picture that is read with its text, and, where pictures are drawn, a text with its picture."""
    maker = DocumentMaker(vocabulary, Letters(), 64, "ids" if vocabulary.words else "features")
    codes = torch.arange(4) if vocabulary.words else torch.zeros(4, dtype=torch.int64)
    documents = [maker.image_text(Picture(codes, torch.randn(4, width)), "abc")]
    return pack(documents + ([maker.text_image("abc", codes)] if vocabulary.words else []))


class Letters:
    """A text tokenizer of letters."""

    bos_token_id, eos_token_id = 0, 1

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) - 90 for letter in text]}


def test_the_arms_of_visual_words_can_be_run():
    """The last phase of each differs in its loss, and the regression has a layer of its own to train."""
    path = ROOT / "configs" / "visual_words" / "demo.yaml"
    arms = load_section(path, [], "checks", ChecksConfig).arms
    heads = {name: load_experiment(path, settings).pretrain.last().model.word_head for name, settings in arms.items()}
    assert {name: head.fit for name, head in heads.items()} == {
        "nothing": "nothing", "regression": "vectors", "visual_words": "model", "pseudo": "model"
    }  # fmt: skip
    assert [name for name, head in heads.items() if head.pseudo] == ["pseudo"]
    trained = load_experiment(path, arms["regression"]).pretrain.last().train.optimizer.trained
    assert "next_vector.*" in trained and "blocks.*lora*" in trained


def made(run: Path, *stages: str) -> Path:
    """A run in which these stages are done."""
    for stage in stages:
        (run / stage).mkdir(parents=True, exist_ok=True)
        (run / stage / "done.json").write_text("{}")
    return run


def linked(run: Path) -> set[str]:
    return {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_symlink()}


def test_an_arm_has_by_links_what_it_does_not_change(tmp_path):
    stages = ("data", "features", "tokenizer", "speech", "extract", "pretrain", "decoder", "eval/tokenizer", "eval/vqa")
    first, demo = made(tmp_path / "first", *stages), str(ROOT / "configs" / "teal" / "demo.yaml")
    for number, (key, kept) in enumerate(
        {
            "pretrain.row": {"data", "features", "tokenizer", "speech", "extract", "decoder", "eval/tokenizer"},
            "tokenizer.speech.codes": {"data", "features", "tokenizer"},
            "tokenizer.model.quantizer.codes": {"data", "features", "speech"},
            "evaluation.questions": set(stages) - {"eval/tokenizer", "eval/vqa"},
            "data.image_size": set(),
            "seed": set(),
        }.items()
    ):
        own = tmp_path / f"own{number}"
        checks.share(first, own, [demo], [f"{key}=1"])
        assert linked(own) == kept, key


def test_what_a_finished_run_would_go_on_from_is_removed(config, ran, tmp_path, monkeypatch):
    made = checks.demo

    def trained(argv: list[str]) -> int:
        status = made(argv)
        folder = Path(argv[-1].removeprefix("run=")) / "pretrain"
        (folder / "checkpoints" / "step3").mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        return status or (130 if len(ran) == 2 else 0)

    monkeypatch.setattr(checks, "demo", trained)
    assert checks.main([str(config)]) == 130
    first, cut = (tmp_path / "run" / "checks" / f"{arm}-3" / "pretrain" for arm in ("plain", "other"))
    assert [path.name for path in first.iterdir()] == ["model.safetensors"]
    assert (cut / "checkpoints" / "step3").is_dir(), "one that was cut goes on from there"


def test_an_arm_has_the_phases_before_the_first_that_it_changes(tmp_path, monkeypatch):
    first = made(tmp_path / "first", "data", "pretrain/align", "pretrain/instruct", "pretrain/head", "pretrain")
    save_file({"a": torch.zeros(1)}, first / "pretrain" / "instruct" / "model.safetensors")
    demo, weights = str(ROOT / "configs" / "visual_words" / "demo.yaml"), torch.nn.Linear(1, 1)
    monkeypatch.setattr(checks.Workspace, "new_model", lambda work: weights)
    setting = "pretrain.phases.head.train.steps=3"
    checks.share(first, tmp_path / "other", [demo, setting], [setting])
    assert linked(tmp_path / "other") == {"data"}, "its model has other weights"
    save_file(weights.state_dict(), first / "pretrain" / "instruct" / "model.safetensors")
    checks.share(first, tmp_path / "own", [demo, setting], [setting])
    assert linked(tmp_path / "own") == {"data", "pretrain/align", "pretrain/instruct"}
