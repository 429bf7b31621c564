"""The model that comes with the package: small, whole, free to pass on, and at work without being named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lavit import cli
from lavit.pipeline import LaVIT
from lavit.release import RELEASED, read_config

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def released():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LAVIT_MODEL", raising=False)
        yield LaVIT.from_pretrained(device="cpu")


@pytest.fixture
def apple(tmp_path) -> Path:
    image = Image.new("RGB", (72, 72), "white")
    ImageDraw.Draw(image).ellipse((14, 18, 58, 64), fill=(214, 30, 34))
    image.save(tmp_path / "apple.png")
    return tmp_path / "apple.png"


def test_it_is_whole_and_small_and_nothing_in_it_is_pickled():
    assert read_config(RELEASED).files  # every digest is compared
    files = [path for path in RELEASED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40e6
    assert max(path.stat().st_size for path in files) < 15 * MEBIBYTE
    assert {path.suffix for path in files} == {".yaml", ".md", ".json", ".safetensors"}


def test_its_card_names_sources_licences_and_baselines():
    card = (RELEASED / "README.md").read_text()
    for words in ("Apache-2.0", "CC-BY-4.0", "CC-PDDC", "MIT", "nearest neighbour", "shuffled", "chance"):
        assert words in card, words
    assert "GPL" not in card and "unknown" not in card


def test_it_does_all_that_a_system_can(released, apple):
    caption = released.caption(apple)
    assert ": " in caption and len(caption.split()) <= 20, "category: label"
    assert released.answer(apple, "what color is the shape?") == "red"
    found = released.tokens(apple)
    assert 8 <= len(found.words) <= 64 and found.grid == 8
    few, whole = (np.asarray(released.reconstruct(apple, tokens=count), float) for count in (2, 64))
    truth = np.asarray(Image.open(apple).resize((64, 64)), float)
    assert np.square(whole - truth).mean() < np.square(few - truth).mean(), "more tokens remember more"


def test_what_it_draws_depends_on_the_text(released):
    heart, sky = released.draw(["symbols: red heart", "symbols: blue square"], seed=1, candidates=2)
    red, blue = (np.asarray(image, float).mean((0, 1)) for image in (heart, sky))
    assert red[0] > red[2] + 20 and red[0] - red[2] > blue[0] - blue[2] + 20
    assert np.array_equal(released.draw("symbols: red heart", seed=1, candidates=2), heart)


def test_the_command_line_uses_it(monkeypatch, capsys, apple):
    monkeypatch.delenv("LAVIT_MODEL", raising=False)
    assert cli.main(["caption", str(apple), "--device", "cpu"]) == 0 and ": " in capsys.readouterr().out
    assert cli.main(["info"]) == 0 and "codes 1,024" in capsys.readouterr().out
