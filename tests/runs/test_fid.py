"""FID and CLIP score of drawings of a system of random weights; Inception is a stand-in but in the slow test."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity import FeatureExtractorInceptionV3, feature_extractor_inceptionv3

from eval import drawings, fid
from eval.drawings import Wanted, draw
from lavit.benchmarks import inception
from lavit.benchmarks.drawings import DrawingConfig
from lavit.benchmarks.inception import FidConfig, Inception
from lavit.data.order import seed_for
from lavit.experiment import run_stage
from lavit.metrics.images import frechet_distance
from lavit.tokenizers.relevance import Clip
from tests.tokenizers.tiny_clip import tiny_clip

TOY = "configs/lavit/toy.yaml"
CAPTIONS = ["a cat", "a dog", "a red cat", "dog", "cat", "a"]


class MeanColours:
    """A stand-in of three features: the mean colour."""

    official = True
    digest = "0" * 64

    def __init__(self, weights, resize, device="cpu"):
        self.resize = resize

    def features(self, pictures):
        return torch.tensor(np.stack([np.array(picture).mean((0, 1)) for picture in pictures]), dtype=torch.float32)

    of_files = Inception.of_files


@pytest.fixture
def artist(system, monkeypatch):
    """The tiny system in place of the run's own; what it is asked for is kept."""
    asked: list[str] = []

    class Asked:
        plans, features, render = system.plans, system.features, system.render

        def draw_best(self, texts, *more):
            asked.extend(texts)
            return system.draw_best(texts, *more)

        def draw_words(self, texts, *more):
            asked.extend(texts)
            return system.draw_words(texts, *more)

    monkeypatch.setattr(fid, "open_artist", lambda *given: Asked())
    monkeypatch.setattr(drawings, "artist_digests", lambda *given: {"model": "tiny"})
    return asked


@pytest.fixture
def place(tmp_path):
    """Captions, reference pictures and a file that is there for weights."""
    lines = [json.dumps({"caption": caption}) for caption in CAPTIONS]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    (tmp_path / "reference").mkdir()
    for number in range(5):
        levels = np.random.default_rng(number).integers(0, 256, (20, 16 + number, 3), dtype=np.uint8)
        Image.fromarray(levels).save(tmp_path / "reference" / f"{number}.png")
    (tmp_path / "weights.pth").touch()
    return tmp_path


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(fid, "Inception", MeanColours)
    monkeypatch.setattr(inception, "WIDTH", 3)


def folder_of(place):
    return place / "run" / "benchmarks" / "fid"


def run(place, *settings):
    """The figures of the setting that was measured, or looked up, last."""
    given = [f"evaluation.fid.{name}={place / path}" for name, path in
             (("weights", "weights.pth"), ("reference", "reference"), ("captions", "captions.jsonl"))]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()) as said:
        run_stage(fid.main, None, [TOY, f"run={place / 'run'}", *given, "evaluation.fid.samples=6", *settings])
    (path,) = re.findall(r"CLIP score.*: (\S+/figures.json)", said.getvalue())
    return json.loads(Path(path).read_text()) | {"folder": Path(path).parent}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ([], "evaluation.fid is not set"),
        (["evaluation.fid.samples=4"], "evaluation.fid.weights is not set"),
    ],
)
def test_without_weights_there_are_no_figures_but_reasons(tmp_path, capsys, settings, why):
    run_stage(fid.main, None, [TOY, f"run={tmp_path / 'run'}", *settings])
    said = capsys.readouterr().out
    assert said == f"FID and CLIP score: not run: {why}\n"
    figures = json.loads((folder_of(tmp_path) / "figures.json").read_text())
    reasons = {"fid": f"not run: {why}", "clip_score": "not run: evaluation.clip is not set"}
    assert figures == {"fid": None, "clip_score": None, "reasons": reasons}


@pytest.mark.parametrize("setting", ["evaluation.fid.weights=nowhere.pth", "evaluation.clip=nowhere"])
def test_a_place_where_nothing_is_is_no_reason_but_a_mistake(tmp_path, capsys, setting):
    with pytest.raises(SystemExit) as ended:
        run_stage(fid.main, None, [TOY, f"run={tmp_path / 'run'}", setting])
    assert ended.value.code == 2
    assert f"{setting.partition('=')[0]} names nowhere" in capsys.readouterr().err


def test_a_system_that_does_not_draw_says_so(place, stand_in, capsys):
    settings = [f"evaluation.fid.{name}={place / name}" for name in ("weights.pth", "reference")]
    settings = [settings[0].replace(".pth=", "="), settings[1], f"run={place / 'run'}"]
    for system, said in (("visual_words", "cannot draw"), ("spae", "not visual words")):
        with pytest.raises(SystemExit):
            run_stage(fid.main, None, [f"configs/{system}/toy.yaml", *settings, f"run={place / system}"])
        assert said in capsys.readouterr().err


def test_the_distance_is_that_of_the_drawings_and_what_is_there_is_not_drawn_again(place, artist, stand_in, capsys):
    figures = run(place)
    folder = folder_of(place)
    files = sorted(folder.glob("drawings-*/*.png"))
    assert artist == CAPTIONS and [path.name for path in files] == [f"{n:06}.png" for n in range(6)]
    extractor = MeanColours("", "")
    two = [extractor.of_files(paths, 4) for paths in (files, sorted((place / "reference").iterdir()))]
    assert figures["fid"] == pytest.approx(frechet_distance(*two), rel=1e-6) and figures["fid"] > 0
    assert figures["clip_score"] is None and figures["reasons"].keys() == {"clip_score"}
    setting = figures["setting"]
    assert setting["fid"]["resize"] == "legacy_tensorflow" and setting["fid"]["reference_n"] == 5
    assert setting["fid"]["weights"] == hashlib.sha256(b"").hexdigest() and setting["samples"] == figures["n"] == 6
    assert setting["drawing"]["painting"] == {"guidance": 1.0, "steps": 4, "sampler": "ddim", "size": 32}
    assert setting["drawing"]["words"]["top_k"] == 8 and setting["drawing"]["seed"] == 0

    before = files[2].read_bytes()
    artist.clear()
    files[2].unlink()
    assert run(place) == figures and artist == [], "nothing is left to do"
    shutil.rmtree(figures["folder"])
    assert run(place)["fid"] == pytest.approx(figures["fid"], abs=1e-3)
    assert artist == CAPTIONS[2:3] and files[2].read_bytes() == before
    artist.clear()
    other = run(place, "evaluation.fid.resize=clean")
    assert artist == [] and other["setting"]["fid"]["resize"] == "clean"
    assert other["folder"] != figures["folder"] and (figures["folder"] / "figures.json").is_file()
    run(place, "evaluation.fid.drawing.words={top_k: 2, max_tokens: 4, min_tokens: 2}")
    assert artist == CAPTIONS and len(list(folder.glob("drawings-*"))) == 2, "another way of drawing"
    capsys.readouterr()
    run_stage(fid.main, None, [TOY, f"run={place / 'run'}"])
    assert capsys.readouterr().out.count("measured before: ") == 3


def test_statistics_of_a_file_and_weights_that_are_not_the_official_ones(place, artist, stand_in, monkeypatch, capsys):
    np.savez(place / "reference.npz", mu=np.zeros(3), sigma=np.eye(3))
    found = run(place, f"evaluation.fid.reference={place / 'reference.npz'}")
    assert found["setting"]["fid"]["reference_n"] is None and found["fid"] > 0
    monkeypatch.setattr(MeanColours, "official", False)
    shutil.rmtree(found["folder"])
    other = run(place, f"evaluation.fid.reference={place / 'reference.npz'}")
    assert other["fid"] is None and other["fd_inception"] == pytest.approx(found["fid"])
    assert "and not with 6726825d" in other["reasons"]["fid"]
    np.savez(place / "wrong.npz", mu=np.zeros(4), sigma=np.eye(4))
    with pytest.raises(SystemExit):
        run(place, f"evaluation.fid.reference={place / 'wrong.npz'}")
    assert "wrong.npz has mu (4,) and sigma (4, 4); those of FID are" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(place, "evaluation.fid.samples=7")
    assert "evaluation.fid.samples is 7, and there are 6 captions" in capsys.readouterr().err


def test_clip_scores_what_was_drawn_and_chooses_among_candidates(place, artist, system):
    clip = tiny_clip(place / "clip")
    settings = ["evaluation.fid.weights=null", f"evaluation.clip={clip}", "evaluation.fid.drawing.candidates=3"]
    figures = run(place, *settings)
    assert len(artist) == 18 and figures["fid"] is None and 0 <= figures["clip_score"] <= 100
    assert figures["reasons"] == {"fid": "not run: evaluation.fid.weights is not set"}
    assert figures["setting"]["drawing"]["judge"].keys() == {"model.safetensors"}
    model = Clip(str(clip))
    wanted = [Wanted(place / "x.png", text, seed) for seed, text in enumerate(CAPTIONS)]
    (chosen, one) = (draw(system, wanted, DrawingConfig(candidates=count), model) for count in (3, 1))
    assert [picture.size for picture in chosen] == [(16, 16)] * 6 == [picture.size for picture in one]
    for its, picture, text in zip(wanted, chosen, model.texts(CAPTIONS), strict=True):
        alone = [its._replace(seed=seed_for(its.seed, number)) for number in range(3)]
        three = draw(system, alone, DrawingConfig(), None)
        liked = model.images([model.pixels(three)]) @ text
        best = np.array(three[int(liked.argmax())]).astype(int)
        assert np.abs(np.array(picture).astype(int) - best).max() <= 1


def test_without_clip_the_model_is_its_own_judge(place, artist, stand_in):
    figures = run(place, "evaluation.fid.drawing.candidates=2")
    assert figures["setting"]["drawing"]["judge"] == "the model itself" and figures["fid"] > 0


def test_ranks_share_the_drawings(place, artist, stand_in, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    config = [f"evaluation.fid.{name}={place / path}" for name, path in
              (("weights", "weights.pth"), ("reference", "reference"), ("captions", "captions.jsonl"))]  # fmt: skip
    run_stage(fid.main, None, [TOY, f"run={place / 'run'}", *config, "evaluation.fid.samples=6"])
    assert artist == CAPTIONS[1::2] and not list(folder_of(place).glob("**/figures.json"))
    monkeypatch.setenv("RANK", "0")
    artist.clear()
    assert run(place)["n"] == 6 and artist == CAPTIONS[::2]
    next(folder_of(place).glob("drawings-*/000001.png")).unlink()
    monkeypatch.setenv("RANK", "1")
    artist.clear()
    run_stage(fid.main, None, [TOY, f"run={place / 'run'}", *config, "evaluation.fid.samples=6"])
    assert artist == [], "what is measured is not drawn again"


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["legacy_tensorflow", "clean"])
def test_the_whole_of_inception_with_random_weights(place, artist, monkeypatch, resize):
    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *given, **more: None)
        torch.manual_seed(0)
        torch.save(FeatureExtractorInceptionV3("inception", ["2048"]).state_dict(), place / "weights.pth")
    figures = run(place, f"evaluation.fid.resize={resize}")
    assert figures["fid"] is None and figures["fd_inception"] > 0
    extractor = Inception(str(place / "weights.pth"), resize)
    files = sorted(folder_of(place).glob("drawings-*/*.png"))
    two = [extractor.of_files(paths, 4) for paths in (files, sorted((place / "reference").iterdir()))]
    assert figures["fd_inception"] == pytest.approx(frechet_distance(*two), rel=1e-4)
    kept = next(folder_of(place).glob("reference-*.npz"))
    again = run(place, f"evaluation.fid.resize={resize}", f"evaluation.fid.reference={kept}")
    assert again["fd_inception"] == pytest.approx(figures["fd_inception"], rel=1e-6), "its own file of statistics"


def test_the_defaults_are_the_papers_number_and_no_way_of_resizing_is_silent():
    assert FidConfig().samples == 30000 and FidConfig().resize == "legacy_tensorflow"
