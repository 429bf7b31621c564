"""The page: what it shows, what it refuses, the server around it, and a visit in a browser."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lavit.cli import main
from lavit.data.images import ImageError
from lavit.pages.pictures import FRAME, SHADE
from lavit.pipeline import LaVIT, VisualTokens
from lavit.release import Parts
from lavit.serve import page, views
from lavit.serve.listening import address_of, listen
from lavit.serve.page import serve

ROOT = Path(__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split() + ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # no host but this one is there


@pytest.fixture
def picture(tmp_path) -> str:
    path = tmp_path / "cat.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(path)
    return str(path)


# ------------------------------------------------------------------------------------------------------ what is shown


def test_overlay_dims_what_was_dropped_and_draws_a_grid():
    grid, cell = 4, views.SIDE // 4
    places = torch.tensor([0, 6, 15])
    shown = views.overlay(Image.new("RGB", (64, 64), "white"), VisualTokens(places, places, places, grid))
    pixels = np.asarray(shown).astype(int)
    assert pixels.shape == (views.SIDE, views.SIDE, 3)
    dim = np.round(255 * 0.22 + np.array(SHADE) * 0.78)
    for place in range(grid**2):
        y, x = place // grid * cell, place % grid * cell
        middle = pixels[y + 20 : y + cell - 20, x + 20 : x + cell - 20]
        if place in places:
            assert (middle == 255).all() and (pixels[y, x] == FRAME).all()
        else:
            assert (middle == dim).all() and (pixels[y, x] != dim).all(), "a thin line between dropped patches"
            assert (pixels[y + 1, x + 1] == dim).all()


def test_a_look_at_a_picture(system, picture):
    seen = views.look(system, picture)
    assert seen.tokens == len(system.tokens(picture).words) and seen.patches == 16
    assert seen.picture.size == seen.kept.size == (views.SIDE, views.SIDE)
    assert np.asarray(seen.picture)[:, 0].min() == 255, "upright pictures get white sides, as the tokenizer sees them"
    few = views.look(system, picture, 3)
    assert few.tokens == 3 and np.array_equal(few.rebuilt, system.reconstruct(picture, 3))
    html = views.seen_html(few)
    assert html.count("<img") == html.count(" alt=") == 3 and "3 of 16 patches" in html and "from 3 tokens" in html
    assert "http" not in html and "/tmp" not in html, "the pictures are in the page, and files are not told of"
    assert "from 1 token<" in views.seen_html(views.look(system, picture, 1))


def without_decoder(system) -> LaVIT:
    kept = {name: getattr(system.parts, name) for name in ("tokenizer", "model", "text", "language", "generation")}
    return LaVIT(Parts(renderer=None, **kept))


def test_a_system_that_only_writes_has_no_drawings(system, picture):
    mute = without_decoder(system)
    seen = views.look(mute, picture)
    assert seen.rebuilt is None and views.seen_html(seen).count("<img") == 2
    labels = [
        [block.label for block in page.page(its).blocks.values() if hasattr(block, "label")] for its in (mute, system)
    ]
    assert "Draw" not in labels[0] and "Draw" in labels[1]


def test_a_visitors_words_are_no_html():
    drawn = views.Drawn('"><script>alert(1)</script>', 3, "data:,", False)
    html = views.figures_html([drawn, drawn._replace(prompt="a cat past a house")], past=True)
    assert "<script" not in html and html.count("&lt;script&gt;") == 2 and "seed 3" in html and "a cat" in html
    assert views.figures_html([]) == ""


# -------------------------------------------------------------------------------------------------------- what is not


def drawing(**changed):
    return {"text": "a cat", "paths": None, "seed": 0, "candidates": 1, "guidance": 1.5, "steps": 2} | changed


def test_a_drawing_follows_its_settings(system, picture):
    ours = views.draw(system, **drawing(seed=3, candidates=2, guidance=2.0, steps=4))
    assert np.array_equal(ours, system.draw("a cat", seed=3, candidates=2, guidance=2.0, steps=4))
    ours = views.draw(system, **drawing(text=" ", paths=[picture]))
    assert np.array_equal(ours, system.draw("", images=[picture], guidance=1.5, steps=2))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"text": "a" * 501}, "the text has 501 characters; shorten it to 500"),
        ({"text": ""}, "prompt is empty"),
        ({"text": None}, "prompt is empty"),
        ({"paths": ["a.png"] * 5}, "5 images are more than the 4"),
        ({"seed": None}, "the seed is empty; give a number from 0"),
        ({"seed": -1}, "the seed is -1"),
        ({"seed": 2**31}, "the seed is 2147483648"),
        ({"candidates": 17}, "the number of candidates is 17; give a number from 1 to 16"),
        ({"guidance": float("nan")}, "the guidance is nan"),
        ({"guidance": 10.5}, "the guidance is 10.5"),
        ({"steps": 101}, "the number of steps is 101"),
        ({"steps": True}, "the number of steps is True"),
    ],
)
def test_limits_of_a_drawing(system, changed, said):
    with pytest.raises(ValueError, match=said):
        views.draw(system, **drawing(**changed))


def test_limits_of_a_look(system, picture):
    for tokens in (0, 17):
        with pytest.raises(ValueError, match=f"number of tokens is {tokens}; give a number from 1 to 16"):
            views.look(system, picture, tokens)
    with pytest.raises(ValueError, match="choose one first"):
        views.ask(system, None, "what is it?")
    with pytest.raises(ValueError, match="question is empty"):
        views.ask(system, picture, " ")
    with pytest.raises(ValueError, match="question has 600 characters"):
        views.ask(system, picture, "a" * 600)
    assert views.ask(system, picture, " what is it? ") == system.answer(picture, "what is it?")


def test_pictures_that_are_none_or_too_large_are_told_by_name_alone(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("1", (7000, 6000)).save(tmp_path / "wide.png")
    for name, said in (("text.png", "it is none of PNG, JPEG"), ("wide.png", "more than 40 megapixels")):
        with pytest.raises(ImageError, match=said) as error:
            views.opened(str(tmp_path / name))
        assert f"image '{name}'" in str(error.value) and str(tmp_path) not in str(error.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)  # twice as many are an error to Pillow itself
    with pytest.raises(ImageError, match="too large"):
        views.opened(str(tmp_path / "wide.png"))
    with pytest.raises(ImageError, match=r"'gone\.png' was removed after 60 minutes; choose it again"):
        views.opened(str(tmp_path / "gone.png"))


def test_errors_are_messages(capsys):
    import gradio

    def fails(error: Exception) -> None:
        raise error

    with pytest.raises(gradio.Error) as mistake:
        page.told(fails)(ValueError("a '<b>' is none"))
    assert mistake.value.message == "A &#x27;&lt;b&gt;&#x27; is none" and not mistake.value.print_exception
    assert capsys.readouterr().err == ""
    with pytest.raises(gradio.Error) as fault:
        page.told(fails)(RuntimeError("at /home/me/secret"))
    assert "secret" not in fault.value.message and "terminal" in fault.value.message
    assert "RuntimeError: at /home/me/secret" in capsys.readouterr().err


def test_every_action_waits_its_turn_and_none_is_an_api(system):
    blocks = page.page(system)
    assert blocks.max_threads and blocks._queue.max_size == page.WAITING
    working = [fn for fn in blocks.fns.values() if fn.queue]
    assert len(working) == 5 and {fn.concurrency_id for fn in working} == {"model"}
    assert {fn.concurrency_limit for fn in working} == {1}
    assert {fn.api_visibility for fn in blocks.fns.values()} == {"private"}


# --------------------------------------------------------------------------------------------------------- the server


def test_a_port_in_use_is_said_before_anything_is_opened(capsys, monkeypatch):
    monkeypatch.setattr("lavit.cli.opened", lambda arguments: pytest.fail("the system was opened"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    said = f"error: port {port} is in use; stop what listens there, or give another --port\n"
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [("127.0.0.1", 70000, "--port is 70000"), ("127.0.0.1", -1, "--port is -1"), ("no host", 0, "--host no host")],
)
def test_where_nothing_can_listen(host, port, said):
    with pytest.raises(ValueError, match=said):
        listen(host, port)


def test_a_port_that_is_not_allowed(monkeypatch):
    def refused(*arguments, **named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refused)
    with pytest.raises(ValueError, match="port 80 is not allowed to you; give a --port above 1023"):
        listen("127.0.0.1", 80)


def test_without_gradio(system, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with listen("127.0.0.1", 0) as listening, pytest.raises(ValueError, match="pip install 'gradio"):
        serve(system, listening)


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C counts, also where the tests run behind a shell that ignores it, as with ``&``."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_and_leave_no_uploads(system, tmp_path, monkeypatch, capsys, number, interrupts):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")
    answers = []

    def visit(url: str) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            answers.append(opener.open(url, timeout=30).read().decode())
            answers.append([path.stat().st_mode & 0o777 for path in tmp_path.iterdir()])
        finally:
            os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM)
    with listen("127.0.0.1", 0) as listening:
        visitor = threading.Thread(target=visit, args=[address_of(listening)])
        visitor.start()
        with pytest.raises(KeyboardInterrupt):
            serve(system, listening)
        visitor.join()
    html, modes = answers
    assert "gradio" in html and modes == [0o700] and list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before
    assert capsys.readouterr().out.startswith("The page is at http://127.0.0.1:")


class Server:
    """`lavit serve` in a process of its own, on a free port."""

    def __init__(self, release: Path, folder: Path):
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        # Nothing beyond this machine is to be reached: who tries runs into a proxy that is not there.
        nowhere = dict.fromkeys(
            ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://[::1]:9"
        )
        env = (
            os.environ | nowhere | {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary), "LAVIT_MODEL": str(release)}
        )
        command = [sys.executable, "-m", "lavit.cli", "serve", "--port", "0", "--device", "cpu"]
        self.process = subprocess.Popen(
            command,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Tests that a script runs in the background were started with Ctrl-C ignored, which children inherit.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        line = self.process.stdout.readline()
        found = re.fullmatch(r"The page is at (http://127\.0\.0\.1:\d+) \(Ctrl-C ends it\)\.\n", line)
        assert found, (line, self.process.stderr.read() if self.process.poll() is not None else "")
        self.url = found[1]

    def end(self) -> tuple[int, str]:
        """Its exit status after Ctrl-C, and what it said on the way."""
        self.process.send_signal(signal.SIGINT)
        try:
            said, wrong = self.process.communicate(timeout=60)
        finally:
            self.process.kill()
        return self.process.returncode, said + wrong


@pytest.fixture
def server(release, tmp_path) -> Iterator[Server]:
    started = Server(release, tmp_path)
    yield started
    started.process.kill()
    started.process.communicate()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_visit(server, picture, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    console, foreign = [], []

    def noted(request) -> None:
        if not request.url.startswith((server.url, "data:", "blob:")):
            foreign.append(request.url)

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=CHROMIUM, args=FLAGS, viewport={"width": 400, "height": 800}
        )
        browser.set_default_timeout(30_000)
        tab = browser.new_page()
        tab.on("request", noted)
        tab.on("console", lambda message: message.type == "error" and console.append(message.text))
        tab.on("pageerror", lambda error: console.append(str(error)))
        tab.goto(server.url)

        tab.get_by_text("Choose a picture").wait_for()
        tab.locator("input[type=file]").first.set_input_files(picture)
        tab.get_by_alt_text("The picture, as a square").wait_for()
        caption = tab.get_by_label("Caption")
        sync_api.expect(caption).not_to_have_value("")
        slider = tab.get_by_role("slider", name="Tokens")
        slider.focus()
        slider.press("End")
        tab.get_by_alt_text("16 of 16 patches kept").wait_for()
        sync_api.expect(tab.get_by_label("As many tokens")).not_to_be_checked()
        tab.get_by_label("Question").fill("what is it?")
        tab.get_by_text("Ask", exact=True).click()
        sync_api.expect(tab.get_by_label("Answer")).not_to_have_value("")
        files = [path for path in server.temporary.rglob("*") if path.is_file() and path.stat().st_size]
        assert [path.name for path in files] == ["cat.png"], "results are in the page alone"
        (folder,) = server.temporary.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700

        tab.get_by_role("tab", name="Draw").click()
        draw = tab.get_by_role("button", name="Draw", exact=True)
        draw.click()
        tab.get_by_text("The prompt is empty; say what to draw").wait_for()
        for seed, text in enumerate(("a cat", "a red hat", "<b>two dogs</b>")):
            tab.get_by_label("Text").fill(text)
            draw.click()
            tab.get_by_text(f"seed {seed}", exact=True).wait_for()
        shown = tab.locator("figure", has_text="seed")
        told = ["<b>two dogs</b>seed 2", "a red hatseed 1", "a catseed 0"]
        assert [words.replace("\n", "") for words in shown.all_inner_texts()] == told
        assert len({image.get_attribute("src") for image in shown.locator("img").all()}) == 3
        assert tab.evaluate("document.documentElement.scrollWidth") == 400

        other = browser.new_page()
        other.goto(server.url)
        other.get_by_role("tab", name="Draw").click()
        other.get_by_text("Nothing is drawn yet").wait_for()
        assert other.locator("figure").count() == 0, "a history is of one visit"
        browser.close()
    assert (console, foreign) == ([], [])
    # The browser may still hold the page open; Ctrl-C ends it all the same.
    code, said = server.end()
    assert code == 130 and said == "" and list(server.temporary.iterdir()) == []
