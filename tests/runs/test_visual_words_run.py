"""A tiny run of visual words, stage after stage in this process; LaVIT's goes through the launcher."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eval.demo import stages_of
from eval.visual_words import Named, WholeWords, categories, hits, looked_over
from lavit.experiment import load_experiment, run_stage
from lavit.pipeline import LaVIT
from lavit.workspace import Workspace
from pretrain.train import main as pretrain
from tests.runs.stages import alone, run_stages

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "visual_words" / "toy.yaml"
PHASES = ("align", "instruct", "head", "joint")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("visual_words") / "run"
    run_stages(CONFIG, folder)
    return folder


def weights(run: Path, phase: str) -> dict[str, torch.Tensor]:
    return load_file(run / "pretrain" / phase / "model.safetensors")


@pytest.mark.parametrize(
    "before, after, moved",
    [
        ("align", "instruct", ("port.", "embedding.new.", "blocks.")),
        ("instruct", "head", ("head.words",)),
        ("head", "joint", ("port.", "embedding.new.", "blocks.")),
    ],
)
def test_a_phase_moves_what_it_names_and_nothing_else(run, before, after, moved):
    old, new = weights(run, before), weights(run, after)
    changed = {name for name in new if not torch.equal(new[name], old[name])}
    assert changed and all(name.startswith(moved) for name in changed)
    assert all("lora" in name for name in changed if name.startswith("blocks."))
    for beginning in moved:
        assert any(name.startswith(beginning) for name in changed), beginning


def test_the_last_phase_is_what_is_used(run):
    last, used = weights(run, "joint"), load_file(run / "pretrain" / "model.safetensors")
    assert all(torch.equal(last[name], value) for name, value in used.items())
    assert (run / "pretrain" / "model.safetensors").samefile(run / "pretrain" / "joint" / "model.safetensors")


def test_the_last_phase_is_what_is_used_where_files_cannot_be_linked(run, tmp_path, monkeypatch):
    whole = shutil.copytree(run, tmp_path / "again") / "pretrain"
    for name in ("done.json", "model.safetensors"):
        (whole / name).unlink()

    def unable(*_):
        raise PermissionError("links are not supported")

    monkeypatch.setattr("pretrain.train.os.link", unable)
    with alone():
        run_stage(pretrain, None, [str(CONFIG), f"run={whole.parent}"])
    made, last = whole / "model.safetensors", whole / "joint" / "model.safetensors"
    assert made.read_bytes() == last.read_bytes() and not made.samefile(last)


def test_a_run_that_is_cut_in_a_later_phase_ends_as_one_that_was_not(run, tmp_path):
    """What came before stays, the phase goes on at its checkpoint, the others follow."""
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    whole = cut / "pretrain"
    for path in (whole / "done.json", whole / "model.safetensors", *(whole / "instruct").glob("*.*")):
        path.unlink()
    for path in (whole / "head", whole / "joint", whole / "instruct" / "checkpoints" / "step3"):
        shutil.rmtree(path)
    before = (whole / "align" / "model.safetensors").stat().st_mtime_ns
    with alone():
        run_stage(pretrain, None, [str(CONFIG), f"run={cut}"])
    for phase in PHASES:
        expected, found = weights(run, phase), weights(cut, phase)
        assert all(torch.equal(found[name], value) for name, value in expected.items()), phase
    assert (whole / "align" / "model.safetensors").stat().st_mtime_ns == before
    steps = [json.loads(line)["step"] for line in (whole / "instruct" / "log.jsonl").read_text().splitlines()]
    assert steps == [2], "two of its three steps were not made again"


def test_phases_read_on_where_those_before_them_stopped(run):
    seen = [
        json.loads((run / "pretrain" / phase / "log.jsonl").read_text().splitlines()[0])["tokens_image_text"]
        for phase in PHASES
    ]
    assert len(set(seen)) > 1, "the same documents would have as many tokens"


def test_divergence_and_entropy_are_logged_where_they_count(run):
    for phase in PHASES:
        lines = [json.loads(line) for line in (run / "pretrain" / phase / "log.jsonl").read_text().splitlines()]
        assert all(("visual" in line) == (phase in ("head", "joint")) for line in lines)
        assert all(0 < line["entropy"] <= math.log(400) for line in lines if "entropy" in line)


def test_its_figures_and_report(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics) == {"caption", "vqa", "visual_words", "seconds"}
    assert set(metrics["seconds"]) == {"assets", "data", "pretrain", "eval", "total"}
    words = metrics["visual_words"]
    assert words["before"] == "head" and words["divergence"] > 0 and words["entropy"] <= words["entropy_mean"]
    page = (run / "report.html").read_text()
    assert "<h1>Visual words</h1>" in page and "Drawings" not in page and "Through tokens and back" not in page


def test_it_understands_and_does_not_draw(run, tmp_path):
    system = LaVIT.from_run(Workspace(load_experiment(CONFIG, [f"run={run}"]), run))
    picture = torch.rand(3, 64, 64)
    assert isinstance(system.caption(picture), str) and isinstance(system.answer(picture, "what is it?"), str)
    with pytest.raises(ValueError, match="this model understands pictures and cannot draw"):
        system.draw("a cat")
    with pytest.raises(ValueError, match="this model understands pictures and cannot draw"):
        system.reconstruct(picture)
    system.save_pretrained(tmp_path / "release")
    again = LaVIT.from_pretrained(tmp_path / "release", "cpu")
    assert again.caption(picture) == system.caption(picture)
    with pytest.raises(ValueError, match="reads all 16 patches"):
        again.tokens(picture, 3)
    found = again.tokens(picture)
    assert found.words is None and found.places.tolist() == list(range(16))


def test_pictures_that_are_encoded_by_the_port_are_read_alike(run):
    """With features on disk and without, from pictures and from pixels."""
    cached, online = (
        LaVIT.from_run(Workspace(load_experiment(CONFIG, [f"run={run}", *more]), run), renders=False)
        for more in ([], ["tokenizer.cache_features=false"])
    )
    pictures = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    assert online.model.port.reads_patches and not cached.model.port.reads_patches
    assert online.caption(pictures) == cached.caption(pictures)
    stored = Workspace(load_experiment(CONFIG, [f"run={run}", "tokenizer.cache_features=false"]), run)
    scores = [
        system.caption_scores([work.codes("captions", "test").picture(0)], ["animals: cat", "food: pear"])
        for system, work in ((cached, Workspace(load_experiment(CONFIG, [f"run={run}"]), run)), (online, stored))
    ]
    torch.testing.assert_close(*scores, atol=1e-3, rtol=1e-4)


def test_stages_may_be_named():
    stages = {stage.name: stage for stage in stages_of(str(CONFIG), [])}
    assert list(stages) == ["data", "pretrain", "eval/caption", "eval/vqa", "eval/visual_words", "report"]
    assert stages["pretrain"].needs == ("data",)
    assert set(stages["report"].needs) == stages.keys() - {"report"}
    order = list(stage.name for stage in stages_of(str(CONFIG), ["demo.stages=[data,decoder,autoencoder,tokenizer]"]))
    assert order == ["data", "tokenizer", "autoencoder", "decoder"]
    with pytest.raises(ValueError, match="demo.stages: 'evil' is no stage; there are data, tokenizer"):
        stages_of(str(CONFIG), ["demo.stages=[data,evil]"])


# ------------------------------------------------------------------------------------------------------------- figures


class Pieces:
    """A text tokenizer of a few pieces."""

    pieces = ("Ġcat", "cat", "Cat", "Ġca", "ts", "▁dog", "!", "Ġthe")

    def __len__(self):
        return len(self.pieces)

    def convert_ids_to_tokens(self, ids):
        return [self.pieces[i] for i in ids]


def test_whole_words_gather_their_pieces():
    whole = WholeWords(Pieces())
    assert whole.words == ["cat", "dog", "the"]
    words = torch.tensor([0.1, 0.2, 0.1, 0.1, 0.1, 0.2, 0.1, 0.1])
    torch.testing.assert_close(whole(words), torch.tensor([0.4, 0.2, 0.1]))


def test_spread_tells_varied_words_from_the_same_ones():
    one, two = torch.eye(4)[:2] * 0.96 + 0.01
    as_they_are = lambda words: words  # noqa: E731
    varied = looked_over([one[None, None], two[None, None]], torch.full((4,), 0.25), as_they_are).spread
    same = looked_over([torch.stack([one, one])[:, None]], one, as_they_are).spread
    assert varied["entropy_mean"] > varied["entropy"] + 0.5
    assert same["entropy_mean"] == pytest.approx(same["entropy"], abs=1e-6)
    assert same["divergence_constant"] == pytest.approx(0, abs=1e-6) and varied["divergence_constant"] > 1


def test_classes_and_hits_are_counted_beside_shuffles():
    experiment = load_experiment(CONFIG)
    known = ["animals", "cat", "food", "pear"]
    said = torch.tensor([[0.5, 0.4, 0.1, 0.0], [0.1, 0.0, 0.5, 0.4], [0.6, 0.3, 0.1, 0.0]])
    truth = ["animals: cat", "food: pear", "food: soup"]
    found = categories(said, known, truth, ["animals: dog", "animals: cow", "food: rice"], experiment)
    assert found["category_accuracy"] == pytest.approx(2 / 3) and found["category_majority"] == pytest.approx(1 / 3)
    assert found["category_chance"] == 0.5 and found["category_known"] == 1
    fewer = categories(said, known, ["flags: x", *truth[1:]], ["animals: dog", "food: rice"], experiment)
    assert fewer["category_accuracy"] == 0.5 and fewer["category_known"] == pytest.approx(2 / 3)
    words = [f"{letter}{letter}{letter}" for letter in "abcdefghij"]
    truths, usual = ["ccc: aaa", "nothing", "ddd: ccc"], torch.full((10,), 0.1)
    shown = torch.tensor([[2, 0], [5, 5], [3, 9]])[..., None]  # ccc and aaa; fff twice; ddd and jjj
    named = Named(torch.eye(10)[:3], shown, {})
    counted = hits(named, usual, words, truths, ["nothing here", "nothing at all"], experiment)
    assert counted["hit5"] == pytest.approx(2 / 3) and counted["hit5_constant"] == pytest.approx(1 / 3)
    assert counted["patch_hit"] == pytest.approx(3 / 6) and counted["patch_hit_constant"] == pytest.approx(1 / 3)
    assert counted["patch_hit_shuffled"] <= 1 / 6, "one of six at most is in another's caption"
    assert categories(said, known, truth, ["a b: c"], experiment)["category_accuracy"] is None
