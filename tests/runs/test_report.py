"""The report of a small run: real data, tokenizer, codes and renderer with random weights; figures as if measured."""

from __future__ import annotations

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval import report
from eval.figures import BUDGETS, LAVIT, REQUIRED, budgets, groups_of, read_figures, stage_seconds, table
from lavit.experiment import load_experiment, run_stage
from lavit.pages.html import number
from lavit.pages.pictures import blank_patches, kept_patches, lit
from lavit.pages.plots import running_mean
from lavit.runs import read_json, write_json
from lavit.tokenizers.features import write_array
from lavit.weights import save_weights
from lavit.workspace import Workspace
from tokenizer import evaluate, extract, prepare

CONFIG = """
run: {run}
data:
  sources: [{{folder: {{path: {pictures}, captions: {pictures}/captions.csv, name: squares, licence: CC0-1.0}}}}]
  vqa: {{vqav2: {{train: {asked}, test: {asked}}}}}
  image_size: 32
  split: {{validation: 0.2, test: 0.4}}
tokenizer:
  plain_steps: 2
  model:
    encoder: {{model: tf_efficientnet_lite0, weights: {{random: 0}}, image_size: 32, grid: 4,
               layers: [{{name: blocks.2, width: 40}}]}}
    merger: {{width: 16, blocks: 1, heads: 2, mlp: 16}}
    quantizer: {{codes: 32, width: 8}}
    decoder: {{width: 16, blocks: 1, heads: 2, mlp: 16}}
  train: {{steps: 4}}
decoder:
  model: {{image_size: 16, latents: {{folded: {{patch: 4}}}}, unet: {{channels: [16, 16], heads: [2, 2], groups: 4}}}}
"""
NASTY = "<script>alert(1)</script> & co"


class Made:
    """A finished run and what its evaluations are made to say."""

    def __init__(self, folder: Path):
        torch.manual_seed(0)
        self.run, self.config = folder / "run", folder / "tiny.yaml"
        asked = make_pictures(folder / "pictures")
        text = CONFIG.format(run=self.run, pictures=folder / "pictures", asked=json.dumps(asked))
        self.config.write_text(text)
        self.work = Workspace(load_experiment(self.config), self.run)
        self.stage(prepare.main)
        save_weights(self.work.new_tokenizer(), self.run / "tokenizer" / "tokenizer.safetensors")
        self.stage(extract.main)
        self.stage(evaluate.main, "eval/tokenizer")
        self.tokenizer = read_json(self.run / "eval" / "tokenizer" / "figures.json")
        save_weights(self.work.new_renderer(), self.run / "decoder" / "renderer.safetensors")
        write_logs(self.run)
        write_evaluations(self.work)

    def stage(self, main, name: str | None = None) -> None:
        run_stage(main, name, [str(self.config)])

    def report(self) -> tuple[dict, str]:
        (self.run / "report" / "done.json").unlink(missing_ok=True)
        self.stage(report.main, "report")
        return json.loads((self.run / "metrics.json").read_text()), (self.run / "report.html").read_text()


def make_pictures(folder: Path) -> dict[str, str]:
    """Forty squares with captions, and forty others with a question each; the VQA files of one split."""
    (folder / "asked").mkdir(parents=True)
    dice = random.Random(0)
    rows = ["file,caption"]
    for i in range(40):
        image = Image.new("RGB", (32, 32), "white")
        image.paste(tuple(dice.randrange(256) for _ in range(3)), (8, 8, 24, 8 + dice.randrange(4, 20)))
        image.save(folder / f"square_{i}.png")
        image.rotate(180).save(folder / "asked" / f"other_{i}.png")
        rows.append(f'square_{i}.png,"things: square {i} {NASTY if i % 2 else ""}"')
    (folder / "captions.csv").write_text("\n".join(rows))
    asked = [{"question_id": i, "image_id": i, "question": f"Is it {i}?"} for i in range(40)]
    answers = [{"question_id": i, "answers": [{"answer": "yes"}] * 10} for i in range(40)]
    (folder / "questions.json").write_text(json.dumps({"questions": asked}))
    (folder / "answers.json").write_text(json.dumps({"annotations": answers}))
    files = {"images": "asked", "questions": "questions.json", "annotations": "answers.json"}
    return {name: str(folder / file) for name, file in files.items()}


def write_logs(run: Path) -> None:
    names = {"tokenizer": ("cosine",), "pretrain": ("text", "image"), "decoder": ("loss", "draft")}
    for stage, parts in names.items():
        (run / stage).mkdir(exist_ok=True)
        lines = [json.dumps({"step": i, **{part: 1 / (i + 1) for part in parts}}) for i in range(4)]
        (run / stage / "log.jsonl").write_text("\n".join([*lines, '{"step": 3, "cos']))


def write_evaluations(work: Workspace) -> None:
    """Seeded figures under the names that the evaluations use."""
    pictures, dice = work.pictures("captions", "test"), random.Random(1)
    numbers = pictures.distinct()
    texts = [pictures.captions[n] for n in numbers]
    pairs = list(zip(numbers, texts, strict=True))
    said = [{"number": n, "truth": text, "written": NASTY, "nearest": texts[0]} for n, text in pairs]
    given = [{"number": n, "question": f"{n}?", "answers": ["yes"], "given": "no"} for n in range(20)]
    drawn = [{"number": n, "text": text, "tokens": 3} for n, text in pairs]
    counts_of = {f"budget_{name}_tokens": tokens for name, tokens in zip(BUDGETS, (2, 4, 8, 16), strict=True)}
    counts = work.codes("captions", "test").counts()
    more = {
        "tokenizer": {
            "codes_used": 9,
            "codes_total": int(counts.sum()),
            "histogram": torch.bincount(counts).tolist(),
            "kept": read_json(work.run / "eval/tokenizer/figures.json")["kept"],
        },
        "caption": {"samples": said, "retrieval_n": len(numbers), "cider_nearest": 2.0, "cider": 0.5},
        "vqa": {"samples": given},
        "reconstruction": {
            "numbers": numbers,
            "shown": [0, 2, 3],
            "draft_fd_lite0": 5.0,
            "fd_lite0": 40.0,
            **counts_of,
            "budget_own_tokens": 5.25,
        },
        "text_to_image": {"samples": drawn, "candidates": 2, "image_text_prompts": drawn[:5]},
    }
    for group in LAVIT:
        names = REQUIRED[group]
        figures = {name: round(dice.uniform(0.1, 0.9), 4) for name in names.split()}
        write_json(work.folder(f"eval/{group}") / "figures.json", {**figures, **more[group], "n": len(numbers)})
        write_json(work.folder(f"eval/{group}") / "seconds.json", {"seconds": 2.0})
    made = {"reconstruction/images": (len(numbers),), "reconstruction/budgets": (3, len(BUDGETS)),
            "text_to_image/images": (len(numbers),), "text_to_image/prompts": (5,)}  # fmt: skip
    for name, shape in made.items():
        images = np.random.default_rng(0).integers(0, 256, (*shape, 16, 16, 3), dtype=np.uint8)
        write_array(work.run / "eval" / f"{name}.npy", images)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return Made(tmp_path_factory.mktemp("report"))


class Page(HTMLParser):
    """Counts the tags, and keeps all addresses and what is left open."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.images: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open += [tag] if tag not in self.VOID else []
        found = [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        (self.images if tag == "img" else self.addresses).extend(found)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_metrics_hold_the_promised_figures(made):
    metrics, _ = made.report()
    assert set(metrics) == {*LAVIT, "seconds"}
    for group in LAVIT:
        names = REQUIRED[group]
        figures = json.loads((made.run / "eval" / group / "figures.json").read_text())
        assert {name: metrics[group][name] for name in names.split()} == {name: figures[name] for name in names.split()}
    assert "samples" not in metrics["caption"] and "numbers" not in metrics["reconstruction"]
    assert set(metrics["seconds"]) == {
        "assets", "data", "tokenizer", "extract", "pretrain", "decoder", "eval", "total"
    }  # fmt: skip
    assert metrics["seconds"]["pretrain"] is None, "it never ran here"
    assert metrics["seconds"]["eval"] == 10.0


def test_page_is_whole_and_needs_nothing_else(made):
    _, html = made.report()
    page = Page(html)
    assert page.open == []
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(image.startswith(("data:image/webp;base64,", "data:image/svg+xml;base64,")) for image in page.images)
    assert all(address.startswith("https://arxiv.org/") for address in page.addresses), "links may, content may not"
    assert "@import" not in html and "url(" not in html
    number_of = {"rebuilt": 8 * 3, "prompts": 2 * 5, "said": report.SHOWN["caption"] + report.SHOWN["vqa"]}
    shown = len(made.work.pictures("captions", "test").distinct())
    assert shown > report.SHOWN["caption"]
    drawn = 2 * min(shown, report.SHOWN["text_to_image"])
    assert len(page.images) == sum(number_of.values()) + drawn + 6


def test_every_reconstruction_says_its_number_of_tokens(made):
    _, html = made.report()
    said = [int(count) for count in re.findall(r"<figcaption>(?:all )?(\d+) tokens</figcaption>", html)]
    assert said == [2, 4, 8, 16] * 3 and html.count("<figcaption>all 16 tokens") == 3
    own = [int(count) for count in re.findall(r"<b>(\d+) tokens</b>, its own", html)]
    numbers = [made.work.pictures("captions", "test").distinct()[place] for place in (0, 2, 3)]
    assert own == made.work.codes("captions", "test").counts()[numbers].tolist()
    assert [row.tokens for row in budgets(read_figures(made.run)["reconstruction"]).values()] == [
        2, 4, 5.25, 8, 16
    ]  # fmt: skip


def test_a_picture_and_a_text_stand_beside_what_was_drawn_of_them(made):
    _, html = made.report()
    assert html.count("<figcaption>this picture</figcaption>") == 5 == html.count("<figcaption>drawn, 3 tokens")
    assert "This run never trained on pictures among text" in html


def test_texts_are_escaped(made):
    _, html = made.report()
    assert "&lt;script&gt;alert(1)" in html
    assert "<script" not in html


def test_report_is_the_same_each_time(made):
    assert made.report()[1] == made.report()[1]


def test_without_questions_there_is_no_such_group(made):
    figures = read_figures(made.run, groups_of([], vqa=False))
    assert "vqa" not in figures
    assert "Questions" not in table(figures)


def test_missing_figures_are_named(made):
    path = made.run / "eval" / "caption" / "figures.json"
    kept = path.read_text()
    try:
        write_json(path, {**json.loads(kept), "cider": None})
        with pytest.raises(ValueError, match=r"caption/figures.json has no cider; remove .* and run it again"):
            read_figures(made.run)
        path.unlink()
        with pytest.raises(ValueError, match="run the stage that writes it"):
            read_figures(made.run)
    finally:
        path.write_text(kept)


def test_a_figure_may_be_null_with_a_reason(made):
    path = made.run / "eval" / "caption" / "figures.json"
    kept = path.read_text()
    names = ("category_accuracy", "category_shuffled", "category_nearest")
    reasons = dict.fromkeys(names, "the captions name no category")
    try:
        write_json(path, {**json.loads(kept), **dict.fromkeys(names), "reasons": reasons})
        metrics, html = made.report()
    finally:
        path.write_text(kept)
    assert metrics["caption"]["category_accuracy"] is None
    assert metrics["caption"]["reasons"] == reasons
    assert "Not measured: category_nearest, since the captions name no category." in html
    assert "Category of the caption is right" not in html


def test_pictures_that_do_not_fit_the_figures_are_refused(made):
    with pytest.raises(ValueError, match=r"images.npy holds uint8 .* speak of 3 pictures"):
        report.read_images(made.work, "reconstruction", 3)
    with pytest.raises(ValueError, match=r"budgets.npy holds uint8 \(3, 4, 16, 16, 3\) .* speak of 2 pictures"):
        report.read_images(made.work, "reconstruction", 2, "budgets.npy")


def test_total_is_the_clock_where_there_is_one(tmp_path):
    for stage, seconds in (("pretrain", 300.0), ("decoder", 200.0), ("eval/vqa", 5.5), ("eval/caption", 6.0)):
        (tmp_path / stage).mkdir(parents=True)
        write_json(tmp_path / stage / "seconds.json", {"seconds": seconds})
    assert stage_seconds(tmp_path) == {
        "assets": None, "data": None, "tokenizer": None, "extract": None,
        "pretrain": 300.0, "decoder": 200.0, "eval": 11.5, "total": 511.5,
    }  # fmt: skip
    (tmp_path / "autoencoder").mkdir()
    write_json(tmp_path / "autoencoder" / "seconds.json", {"seconds": 10.0})
    assert stage_seconds(tmp_path)["autoencoder"] == 10.0
    write_json(tmp_path / "seconds.json", {"seconds": 320.0})
    assert stage_seconds(tmp_path)["total"] == 320.0


def test_table_tells_which_baselines_do_better(made):
    rows = {row.title: row for group in table(read_figures(made.run)).values() for row in group}
    marks = {mark.words: mark for mark in rows["CIDEr of the label"].marks}
    assert marks["nearest neighbour"].kind == "better"
    assert marks["nearest neighbour"].place == pytest.approx(100 / 1.1)
    assert rows["CIDEr of the label"].place == pytest.approx(25 / 1.1)
    assert [mark.kind for mark in rows["Fréchet distance over Lite0 features"].marks] == ["better"], "less is better"
    assert rows["Its caption found first"].marks == [], "a baseline that was not measured is left out"


@pytest.mark.parametrize(("value", "text"), [(0.12345, "0.123"), (470.25, "470.2"), (2000, "2,000"), (30.51, "30.5")])
def test_numbers(value, text):
    assert number(value) == text


def test_kept_patches_are_those_of_the_tokens(made):
    tokenizer = made.work.tokenizer()
    pixels = made.work.pictures("captions", "test").pixels([0, 1, 2], 32)
    kept = kept_patches(tokenizer, pixels)
    assert kept.shape == (3, 16)
    assert torch.equal(kept, tokenizer.select(tokenizer.patch_features(pixels)).keep)


def test_lit_shows_kept_patches_and_darkens_the_rest():
    image = Image.new("RGB", (64, 64), "white")
    keep = np.zeros((4, 4), dtype=bool)
    keep[1, 2] = True
    out = np.asarray(lit(image, keep, side=128))
    assert out.shape == (128, 128, 3)
    assert out[48, 80].min() == 255, "the middle of the kept patch"
    assert out[48, 16].max() < 130, "the middle of a dropped one"
    assert tuple(out[32, 64]) == (255, 122, 26), "its frame"
    assert (out[32:64, 64:96, 1] >= 122).all()


def test_blank_patches():
    image = torch.ones(1, 3, 8, 8)
    image[0, 1, 5, 6] = 0.0
    assert blank_patches(image, 2)[0].tolist() == [True, True, True, False]


def test_log_keeps_the_later_of_a_step_made_twice(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0, "loss": 3}\n{"step": 10, "loss": 2}\n{"step": 20, "lo\n{"step": 10, "loss": 1}\n')
    assert report.read_log(path, {"loss": "loss"}) == {"loss": ([0, 10], [3, 1])}
    with pytest.raises(ValueError, match="logs none of cosine"):
        report.read_log(path, {"cosine": "cosine"})


def test_running_mean():
    assert running_mean([1.0, 1.0, 1.0]).tolist() == [1.0, 1.0, 1.0]
    assert running_mean([0.0, 3.0, 6.0], share=1.0).tolist() == [1.5, 3.0, 4.5]


def test_templates_name_no_other_host():
    root = Path(report.__file__).parents[1]
    texts = {path.name: path.read_text() for folder in ("eval", "tokenizer") for path in (root / folder).glob("*.j2")}
    hosts = {name: re.findall(r"https?://[^\s\"<]+", text) for name, text in texts.items()}
    assert hosts == {"report.html.j2": ["https://arxiv.org/abs/{{"], "table.html.j2": [], "page.html.j2": []}


def test_tokenizer_page_stands_alone(made):
    page = (made.run / "eval" / "tokenizer" / "page.html").read_text()
    assert page.count("kept patches of") == min(24, made.work.codes("captions", "test").counts().numel())
    assert "<script" not in page and "&lt;script" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "rank correlation" in page and len(re.findall("patches of code", page)) > 0
    assert f"{made.tokenizer['cosine']:.3f}" in page
