"""Every command with a tiny system: what it prints and writes, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lavit import cli
from lavit.cli import main
from lavit.pipeline import LaVIT

ROOT = Path(__file__).parents[1]


@pytest.fixture
def work(release, tmp_path, monkeypatch) -> Path:
    """A folder to work in, with two pictures, where the system is the tiny one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAVIT_MODEL", str(release))
    noise = np.random.default_rng(0).integers(0, 256, (2, 50, 40, 3), dtype=np.uint8)
    for name, pixels in zip(("a.png", "b.jpg"), noise, strict=True):
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def run(capsys, *arguments: str, code: int = 0) -> str:
    """What a command prints, or the one line of its error."""
    assert main(arguments) == code
    said = capsys.readouterr()
    if code == 0:
        assert said.err == ""
        return said.out
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    return said.err


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


# ------------------------------------------------------------------------------------------------- pictures to words


def test_caption(system, work, capsys):
    first, second = system.caption(["a.png", "b.jpg"])
    assert run(capsys, "caption", "a.png") == f"{first}\n"
    assert run(capsys, "caption", "a.png", "b.jpg") == f"a.png: {first}\nb.jpg: {second}\n"
    found = rows(run(capsys, "caption", "a.png", "b.jpg", "--json"))
    assert found == [{"image": "a.png", "caption": first}, {"image": "b.jpg", "caption": second}]
    short = rows(run(capsys, "caption", "a.png", "--max-tokens", "1", "--beams", "2", "--json"))[0]["caption"]
    assert len(short) < len(first)


def test_answer(system, work, capsys):
    said = system.answer("a.png", "what is it?")
    assert run(capsys, "answer", "a.png", "what is it?") == f"{said}\n"
    found = rows(run(capsys, "answer", "a.png", "what is it?", "--json"))
    assert found == [{"image": "a.png", "question": "what is it?", "answer": said}]
    assert "question is empty" in run(capsys, "answer", "a.png", " ", code=2)


def test_tokens(system, work, capsys):
    found = system.tokens("a.png", 5)
    lines = run(capsys, "tokens", "a.png", "--tokens", "5").splitlines()
    assert lines[0] == "a.png: 5 of 16 patches"
    assert lines[1].split() == [str(word) for word in found.words.tolist()]
    marks = "".join(lines[2:]).split()
    assert [place for place, mark in enumerate(marks) if mark == "#"] == found.places.tolist() and len(marks) == 16
    one, other = rows(run(capsys, "tokens", "a.png", "b.jpg", "--tokens", "5", "--json"))
    said = {name: getattr(found, name).tolist() for name in ("places", "codes", "words")}
    assert one == {"image": "a.png", "grid": 4, **said}
    assert other["image"] == "b.jpg"
    assert "17" in run(capsys, "tokens", "a.png", "--tokens", "17", code=2)


def test_info(system, work, release, capsys):
    said = json.loads(run(capsys, "info", "--json"))
    assert said["folder"] == str(release) and said["patches"] == 16 and said["draws"] == 16 and said["reads"] == 64
    assert said["parameters"]["decoder"] == sum(x.numel() for x in system.renderer.state_dict().values())
    assert "codes 12" in run(capsys, "info")


# ------------------------------------------------------------------------------------------------- words to pictures


def test_draw(system, work, capsys):
    assert run(capsys, "draw", "a cat", "--seed", "3") == "drawing.png\n"
    assert np.array_equal(Image.open("drawing.png"), system.draw("a cat", seed=3))
    found = rows(run(capsys, "draw", "a cat", "--seed", "2", "--count", "2", "--out", "cat.png", "--json"))
    wanted = [{"text": "a cat", "seed": seed, "file": f"cat-{number}.png"} for number, seed in enumerate((2, 3))]
    assert found == wanted and not Path("cat.png").exists()
    assert np.array_equal(Image.open("cat-1.png"), Image.open("drawing.png"))
    assert run(capsys, "draw", "a cat", "--count", "2", "--out", "two.webp") == "two-0.webp\ntwo-1.webp\n"
    assert Image.open("two-0.webp").format == "WEBP"


def test_what_draw_is_told_changes_the_drawing(work, capsys):
    plain = run(capsys, "draw", "a cat") and np.array(Image.open("drawing.png"))
    for name, *told in (
        ["seed", "--seed", "1"], ["steps", "--steps", "5"], ["guidance", "--guidance", "4"],
        ["tokens", "--tokens", "2"], ["image", "--image", "a.png"], ["candidates", "--candidates", "4"],
        ["text", "--text-guidance", "9"],
        ["temperature", "--temperature", "0"], ["one", "--top-k", "1"], ["least", "--top-p", "0.01"],
    ):  # fmt: skip
        run(capsys, "draw", "a cat", *told, "--out", f"{name}.png")
        assert not np.array_equal(Image.open(f"{name}.png"), plain), name
    assert run(capsys, "draw", "--image", "a.png", "--image", "b.jpg", "--out", "x") == "x\n"
    assert Image.open("x").format == "PNG", "as it is where the name says nothing"


def test_fewer_tokens_than_the_plans_least_are_drawn(work, capsys):
    assert rows(run(capsys, "draw", "a cat", "--tokens", "1", "--out", "one.png", "--json"))[0]["file"] == "one.png"


def test_reconstruct(system, work, capsys):
    assert run(capsys, "reconstruct", "a.png") == "reconstruction.png\n"
    assert np.array_equal(Image.open("reconstruction.png"), system.reconstruct("a.png"))
    found = rows(run(capsys, "reconstruct", "a.png", "--tokens", "2", "--out", "few.png", "--json"))
    assert found == [{"image": "a.png", "file": "few.png"}]
    assert np.array_equal(Image.open("few.png"), system.reconstruct("a.png", 2))


def test_pictures_are_never_written_over(work, capsys):
    before = Path("a.png").read_bytes()
    assert "a.png is there already" in run(capsys, "draw", "a cat", "--out", "a.png", code=2)
    assert "a.png is there already" in run(capsys, "reconstruct", "b.jpg", "--out", "a.png", code=2)
    Path("a-1.png").write_text("mine")
    assert "a-1.png is there" in run(capsys, "draw", "a cat", "--count", "2", "--out", "a.png", code=2)
    assert Path("a.png").read_bytes() == before and not Path("a-0.png").exists()
    assert run(capsys, "draw", "a cat", "--out", "a.png", "--force") == "a.png\n"
    assert Image.open("a.png").size == (16, 16)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["draw", "a cat", "--out", "no/such/cat.png"], "there is no folder no/such"),
        (["draw", "a cat", "--out", "a.png/cat.png"], "there is no folder a.png"),
        (["draw", "a cat", "--out", "cat.xyz"], "cat.xyz has no known picture format; end --out in .png"),
        (["draw", "a cat", "--count", "0"], "--count 0 draws nothing"),
        (["draw", "a cat", "--out", ".", "--force"], "is a folder"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(work, capsys, monkeypatch, arguments, said):
    monkeypatch.setattr(cli, "opened", lambda arguments: pytest.fail("the system was opened"))
    assert said in run(capsys, *arguments, code=2)


def test_a_folder_that_may_not_be_written_in(work, capsys, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # the tests may run as root, who may all
    assert "drawing.png cannot be written" in run(capsys, "draw", "a cat", code=2)


def test_a_full_disk_leaves_nothing(work, capsys, monkeypatch):
    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    before = sorted(work.iterdir())
    assert "drawing.png cannot be written: No space left" in run(capsys, "draw", "a cat", code=2)
    assert sorted(work.iterdir()) == before


# ---------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["caption", "gone.png"], "image 'gone.png' cannot be read: No such file"),
        (["caption", "a.png", "text.png"], "image 'text.png' cannot be decoded"),
        (["draw", "a cat", "--image", "gone.png"], "gone.png"),
        (["draw"], "the prompt is empty"),
        (["draw", ""], "the prompt is empty"),
        (["draw", "a cat " * 100], "64"),
        (["draw", "a cat", "--steps", "0"], "steps is 0"),
        (["draw", "a cat", "--steps", "-1"], "steps is -1"),
        (["draw", "a cat", "--steps", "5000"], "steps is 5000"),
        (["draw", "a cat", "--sampler", "euler"], "choose ddim or dpm"),
        (["reconstruct", "a.png", "--size", "16", "32"], "no images of 16 × 32"),
        (["caption", "a.png", "--batch", "0"], "batch is 0"),
        (["draw", "a cat", "--candidates", "0"], "candidates is 0"),
        (["draw", "a cat", "--candidates", "-2"], "candidates is -2"),
        (["draw", "a cat", "--temperature", "-1"], "temperature is -1"),
        (["draw", "a cat", "--top-p", "0"], "top_p is 0"),
        (["draw", "a cat", "--tokens", "0"], "at most 0 tokens leave nothing"),
        (["draw", "a.png"], "a.png is a file and stands where the text is expected; give it by --image"),
        (["draw", "caf\udce9"], "is not valid Unicode"),
        (["draw", "a cat", "--out", "-"], "--out - names no file"),
        (["draw", "a cat", "--out", "/dev/null", "--force"], "/dev/null is a link or a device"),
        (["draw", "a cat", "--out", "cat.xbm"], "no known picture format"),
        (["caption", "a.png", "--device", "meta"], "device meta cannot be used"),
        (["draw", "a cat", "--seed", str(2**70)], f"seed is {2**70}"),
        (["reconstruct", "a.png", "--tokens", "0"], "tokens is 0"),
        (["reconstruct", "a.png", "--seed", str(-(2**70))], "seed is -"),
        (["caption", "a.png", "--beams", "0"], "beams is 0"),
        (["caption", "a.png", "--max-tokens", "0"], "at most 0 tokens leave nothing"),
        (["caption", "a.png", "--model", "."], "is no release"),
        (["caption", "a.png", "--model", "gone"], "gone is no release"),
        (["caption", "a.png", "--device", "abacus"], "device abacus cannot be used"),
        (["caption", "a.png", "--device", "cuda:77"], "device cuda:77 cannot be used"),
        (["caption", "a.png", "--dtype", "int8"], "dtype int8 is unknown"),
    ],
)
def test_a_mistake_is_one_line_and_2(work, capsys, arguments, said):
    Path("text.png").write_text("no picture")
    before = sorted(work.iterdir())
    assert said in run(capsys, *arguments, code=2)
    assert sorted(work.iterdir()) == before


def test_no_release_comes_with_the_package(work, capsys, monkeypatch):
    monkeypatch.delenv("LAVIT_MODEL")
    monkeypatch.setattr("lavit.release.RELEASED", work / "released")
    assert "(--model), or set $LAVIT_MODEL" in run(capsys, "caption", "a.png", code=2)


def test_a_file_that_another_program_makes_meanwhile_stays(system, work, capsys, monkeypatch):
    class Slow(LaVIT):
        def draw(self, *arguments, **options):
            Path("drawing.png").write_text("theirs")
            return super().draw(*arguments, **options)

    monkeypatch.setattr(cli, "opened", lambda arguments: Slow(system.parts))
    assert "made by another program meanwhile" in run(capsys, "draw", "a hat", code=2)
    assert Path("drawing.png").read_text() == "theirs" and not list(Path().glob(".*.tmp"))
    run(capsys, "draw", "a hat", "--force")
    assert Path("drawing.png").read_bytes().startswith(b"\x89PNG")


def test_links_are_not_followed(system, work, capsys):
    Path("link.png").symlink_to("nowhere.png")
    assert "is a link" in run(capsys, "draw", "a hat", "--out", "link.png", code=2)
    assert not Path("nowhere.png").exists()


def test_too_little_memory_is_one_line(work, capsys, monkeypatch):
    def hungry(arguments):
        torch.empty(2**60)

    monkeypatch.setattr(cli, "opened", hungry)
    assert "try a smaller --batch" in run(capsys, "caption", "a.png", code=2)


def test_what_a_policy_keeps_back_is_not_written(system, work, capsys, monkeypatch):
    careful = LaVIT(system.parts, lambda picture, text: "no cats" if "cat" in text else "")
    monkeypatch.setattr(cli, "opened", lambda arguments: careful)
    assert "no cats" in run(capsys, "draw", "a cat", code=2)
    assert not Path("drawing.png").exists()
    run(capsys, "draw", "a hat")


def test_ctrl_c_is_130(work, capsys, monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "opened", interrupted)
    assert main(["caption", "a.png"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("arguments", [[], ["paint"], ["caption"], ["draw", "a", "b"], ["draw", "--seed", "x"]])
def test_unknown_usage_is_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "usage: lavit" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", "caption", "answer", "draw", "reconstruct", "tokens", "serve", "info"])
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0 and f"  lavit {command}" in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom lavit.cli import main\ntry:\n    main(['serve', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'PIL', 'gradio'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_is_no_error(work):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "lavit.cli", "tokens", "a.png"], stdout=writer, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
