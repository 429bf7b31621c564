"""The page in gradio, and the server of it."""

from __future__ import annotations

import functools
import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavit.data.images import SUFFIXES
from lavit.pages.pictures import data_uri
from lavit.pipeline import LaVIT
from lavit.serve.listening import address_of
from lavit.serve.views import (
    CANDIDATES,
    FORGET,
    GUIDANCE,
    SEEDS,
    STEPS,
    TEXT,
    Drawn,
    ask,
    counted,
    draw,
    figures_html,
    is_small,
    look,
    opened,
    seen_html,
)

if TYPE_CHECKING:
    import socket

    import gradio

UPLOAD = "20mb"  # of one file
WAITING = 16  # visitors in the queue; those after them are told to come back
KEPT = 12  # drawings of a visit that are shown

TITLE = "LaVIT"
ABOUT = "Pictures become visual words, which one language model reads and writes together with text."
NO_PICTURE = '<p class="empty">Choose a picture to see which of its patches become tokens.</p>'
NO_DRAWING = '<p class="empty">Nothing is drawn yet.</p>'


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its errors as messages on the page: a user's mistake in its own words, others without them."""
    import gradio

    @functools.wraps(function)
    def run(*values: Any) -> Any:
        try:
            return function(*values)
        except ValueError as error:
            message = str(error)
        except Exception:
            traceback.print_exc()
            message = "something went wrong here; the terminal of `lavit serve` says what"
        # Gradio takes messages for HTML, and there may be a visitor's words in them.
        raise gradio.Error(escape(message[:1].upper() + message[1:]), print_exception=False)

    return run


def page(system: LaVIT) -> gradio.Blocks:
    """The page of a system, which shares one queue among all visitors."""
    import gradio as gr

    with gr.Blocks(analytics_enabled=False, title=TITLE, delete_cache=(FORGET // 6, FORGET)) as blocks:
        gr.HTML(f"<h1>{TITLE}</h1><p>{ABOUT}</p>", elem_id="head", padding=False)
        with gr.Tab("Look"):
            _look_tab(system)
        if system.renderer is not None:
            with gr.Tab("Draw"):
                _draw_tab(system)
    return blocks.queue(max_size=WAITING, api_open=False)


# One at a time for all of the page: they share one model.
TURN = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private", "show_progress": "minimal"}
AT_ONCE = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


def _look_tab(system: LaVIT) -> None:
    import gradio as gr

    patches = system.tokenizer.config.encoder.patches
    upload = gr.File(label="Picture", file_types=list(SUFFIXES), type="filepath", height=150)
    free = gr.Checkbox(True, label="As many tokens as it asks for")
    tokens = gr.Slider(1, patches, patches, step=1, label="Tokens", buttons=[])
    shown = gr.HTML(NO_PICTURE, padding=False)
    caption = gr.Textbox(label="Caption", interactive=False, lines=1)
    question = gr.Textbox(label="Question", max_length=TEXT, placeholder="what is it?", submit_btn="Ask")
    answer = gr.Textbox(label="Answer", interactive=False, lines=1)
    gr.HTML('<p class="note">Caption and answers read as many tokens as the picture asks for.</p>', padding=False)

    def arrive(path: str) -> tuple[Any, ...]:
        seen = look(system, path)
        return seen_html(seen), seen.tokens, system.caption(opened(path))

    def budget(path: str | None, free: bool, tokens: float) -> tuple[Any, ...]:
        seen = look(system, path, None if free else int(tokens or patches)) if path else None
        return seen_html(seen) if seen else NO_PICTURE, seen.tokens if seen and free else gr.skip()

    def moved(path: str | None, tokens: float) -> tuple[Any, ...]:
        return budget(path, False, tokens)[0], False

    def blank() -> tuple[Any, ...]:
        return NO_PICTURE, True, "", ""

    views = [shown, free, caption, answer]
    upload.upload(blank, None, views, **AT_ONCE).then(
        told(arrive), [upload], [shown, tokens, caption], show_progress_on=[shown], **TURN
    )
    upload.clear(blank, None, views, **AT_ONCE)
    there = TURN | {"show_progress_on": [shown], "trigger_mode": "always_last"}
    free.input(told(budget), [upload, free, tokens], [shown, tokens], **there)
    tokens.input(told(moved), [upload, tokens], [shown, free], **there)
    question.submit(told(functools.partial(ask, system)), [upload, question], [answer], **TURN)


def _draw_tab(system: LaVIT) -> None:
    import gradio as gr

    config = system.renderer.config
    text = gr.Textbox(label="Text", max_length=TEXT, lines=2, placeholder="animals: cat")
    images = gr.File(
        label="Images that the text follows (optional)", file_count="multiple", file_types=list(SUFFIXES),
        type="filepath", height=150,
    )  # fmt: skip
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=SEEDS, min_width=140)
        candidates = gr.Slider(1, CANDIDATES, min(system.plans.candidates, CANDIDATES), step=1, min_width=200,
                               label="Candidates, of which it takes the best", buttons=[])  # fmt: skip
    with gr.Row():
        guidance = gr.Slider(1, GUIDANCE, min(max(config.guidance, 1), GUIDANCE), step=0.1, min_width=200,
                             label="Guidance of the pixels", buttons=[])  # fmt: skip
        steps = gr.Slider(1, STEPS, min(config.sampling_steps, STEPS), step=1, min_width=200,
                          label="Steps of the pixels", buttons=[])  # fmt: skip
    button = gr.Button("Draw", variant="primary")
    shown, past = gr.HTML(NO_DRAWING, padding=False), gr.HTML("", padding=False)
    history = gr.State([], time_to_live=FORGET)

    def run(text: str, paths: list[str] | None, seed: int, *rest: Any) -> tuple[Any, ...]:
        *settings, drawings = rest
        picture = draw(system, text, paths, seed, *settings)
        said = [text.strip(), counted(len(paths), "image") if paths else ""]
        drawn = Drawn(
            " after ".join(filter(None, said)), int(seed), data_uri(picture, lossless=True), is_small(picture)
        )
        drawings = [drawn, *drawings][:KEPT]
        # The next drawing is another one, unless the visitor sets the seed back.
        return figures_html(drawings[:1]), figures_html(drawings[1:], past=True), drawings, (seed + 1) % SEEDS

    inputs = [text, images, seed, candidates, guidance, steps, history]
    outputs = [shown, past, history, seed]
    gr.on([button.click, text.submit], told(run), inputs, outputs, show_progress_on=[shown], **TURN)


# -------------------------------------------------------------------------------------------------------- the server


def serve(system: LaVIT, listening: socket.socket) -> None:
    """Serve the page until Ctrl-C or a SIGTERM, which raise KeyboardInterrupt.

    Raises:
        ValueError: gradio is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="lavit-serve-") as folder:  # which only this user can open
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        try:
            import gradio as gr
            import uvicorn
            from fastapi import FastAPI
        except ImportError:
            raise ValueError("the page needs gradio; `pip install 'gradio>=6.31,<7'`") from None
        blocks = page(system)
        theme = gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=["sans-serif"], font_mono=["monospace"])
        style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
        app = gr.mount_gradio_app(
            FastAPI(openapi_url=None), blocks, "/", theme=theme, css=style, show_error=False, max_file_size=UPLOAD,
            footer_links=[], run_history=False, ssr_mode=False, mcp_server=False, pwa=False,
        )  # fmt: skip
        # Whoever waits at an open page would keep a server from ending.
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
        print(f"The page is at {address_of(listening)} (Ctrl-C ends it).", flush=True)
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the folder goes too
        try:
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            signal.signal(signal.SIGTERM, before)
