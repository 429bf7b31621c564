"""Requests of lmms-eval: what they ask for, how a tiny system answers, and, where it is installed, its own scores."""

from __future__ import annotations

import importlib
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eval.export_tasks import CHOICES, FUNCTIONS, QUESTIONS, kwargs_of, write_lines, write_task
from lavit.data.images import ImageError
from lavit.generation import TextPlan
from lavit.harness.answers import Answers, chosen_device
from lavit.harness.requests import asks_for_caption, cut, only_picture, question_of, stops_of, text_plan
from lavit.metrics.vqa import vqa_accuracy
from lavit.pipeline import LaVIT

ROOT = Path(__file__).parents[1]
QUESTION = "Is it red?"
ANSWERS = ["a red hat", "a cat", "two dogs that sit"]
NOISE = np.random.default_rng(0).integers(0, 256, (6, 50, 40, 3), dtype=np.uint8)
PICTURES = [Image.fromarray(picture) for picture in NOISE]
DOCUMENTS = [{"picture": picture, "number": number} for number, picture in enumerate(PICTURES)]


def pictures_of(document: dict) -> list[Image.Image]:
    return [document["picture"]]


def request(*args: Any) -> SimpleNamespace:
    return SimpleNamespace(args=args, task_name="colours")


def asked(number: int, context: str = QUESTION, visuals: Any = pictures_of, **kwargs: Any) -> SimpleNamespace:
    return request(context, kwargs, visuals, number, "colours", "test")


def choice(number: int, text: Any, context: str = QUESTION) -> SimpleNamespace:
    return request(context, text, pictures_of, number, "colours", "test")


@pytest.fixture(scope="module")
def opened(release) -> Answers:
    answers = Answers(str(release), device="cpu", batch_size="4")
    answers.task_dict = {"colours": {"test": DOCUMENTS}}
    return answers


@pytest.fixture(scope="module")
def lavit(release) -> LaVIT:
    return LaVIT.from_pretrained(release, device="cpu", batch=4)


# ---------------------------------------------------------------------------------------------------- what is asked


def test_captions_are_told_from_questions():
    for context in ("", " \n", "<image>", "Provide a one-sentence caption for the provided image.", "Describe it."):
        assert asks_for_caption(context), context
    for context in ("What is it?", "Which caption fits?", "Name the colour.", "is it subcaptioned"):
        assert not asks_for_caption(context), context
    assert asks_for_caption("Tell me more.", "tell | say") and not asks_for_caption("Describe it.", "tell")
    assert asks_for_caption("", "")


def test_lines_on_the_form_of_an_answer_go_and_others_stay():
    short = "Answer the question using a single word or phrase."
    assert question_of(f"<image>\nWhere is he?\n{short}") == "Where is he?"
    assert question_of(f"Where is he?\n{short}", keep=True) == f"Where is he?\n{short}"
    assert (
        question_of(f"When?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n{short}")
        == "When?"
    )
    letters = "Which?\nA. one\nB. two\nAnswer with the option's letter from the given choices directly."
    assert question_of(letters) == letters
    assert question_of(short) == short  # a question that is nothing else


@pytest.mark.parametrize(
    ("kwargs", "plan"),
    [
        ({}, TextPlan(20, 2, 4)),
        ({"max_new_tokens": 16, "until": ["\n\n"], "top_p": None}, TextPlan(16, 2, 4)),
        ({"max_new_tokens": 1}, TextPlan(1, 1, 4)),
        ({"num_beams": 1, "temperature": 0, "top_p": 0, "do_sample": False}, TextPlan(20, 2, 1)),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, TextPlan(20, 2, 4)),
        ({"temperature": 0.7, "top_p": 0.9, "top_k": 5}, TextPlan(20, 2, 1, 1.0, 0.7, 5, 0.9)),
        ({"do_sample": True}, TextPlan(20, 2, 1, 1.0, 1.0)),
        ({"length_penalty": 0.0, "min_new_tokens": 3}, TextPlan(20, 3, 4, 0.0)),
    ],
)
def test_generation_kwargs_mean_what_they_mean_to_transformers(kwargs, plan):
    assert text_plan(kwargs, TextPlan(20, 2, 4)) == plan


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"max_new_tokens": "many"}, "max_new_tokens is 'many'"),
        ({"max_new_tokens": 0}, "leave no text"),
        ({"num_beams": 4, "temperature": 0.7}, "generation_kwargs.beams is 4 and temperature 0.7"),
        ({"num_beams": 0}, "beams is 0"),
        ({"temperature": -1}, "temperature is -1"),
    ],
)
def test_generation_kwargs_that_cannot_be_are_named(kwargs, said):
    with pytest.raises(ValueError, match=said):
        text_plan(kwargs, TextPlan())


def test_unknown_generation_kwargs_are_warned_of_once(caplog):
    for _ in range(2):
        assert text_plan({"image_aspect_ratio": "pad"}, TextPlan()) == TextPlan()
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == ["image_aspect_ratio"]


def test_a_text_ends_before_the_first_stop():
    assert cut("a cat\n\na dog. A", ("A", "\n\n")) == "a cat"
    assert cut("a cat", ("\n\n",)) == cut("a cat", ()) == "a cat"
    assert cut("\n\na cat", ("\n\n",)) == ""
    assert stops_of({"until": "\n"}) == ("\n",) and stops_of({"until": ["", "."]}) == (".",)
    assert stops_of({"until": None}) == stops_of({}) == ()
    with pytest.raises(ValueError, match="until is 3"):
        stops_of({"until": 3})


def test_a_document_shows_one_picture(tmp_path):
    picture = PICTURES[0]
    picture.save(path := tmp_path / "a.png")
    assert only_picture(picture, "it").size == only_picture([str(path)], "it").size == picture.size
    assert only_picture([picture, picture], "it", first=True).size == picture.size
    for visuals, said in (
        ([], "vqa, document 3 has no picture"),
        (None, "has no picture"),
        ([picture, picture], "has 2 pictures and LaVIT is asked about one; images=first"),
        (["a.mp4"], "shows 'a.mp4', which is no picture; videos"),
        ([{"array": [0.0]}], "shows a dict, which is no picture"),
    ):
        with pytest.raises(ValueError, match=said):
            only_picture(visuals, "vqa, document 3")
    with pytest.raises(ImageError, match="a.jpg"):
        only_picture([str(tmp_path / "a.jpg")], "it")


# ------------------------------------------------------------------------------------------------------- model_args


def test_model_args_that_cannot_be_are_named(release, tmp_path):
    for arguments, said in (
        ({}, "names no release; give pretrained=FOLDER"),
        ({"pretrained": str(tmp_path)}, "is no release: it has no config.yaml"),
        (
            {"pretrained": str(release), "quantise": 4, "beams": 2},
            "model_args has beams, quantise, which LaVIT does not",
        ),
        ({"pretrained": str(release), "question": "Q:"}, "question is 'Q:'; write {} once"),
        ({"pretrained": str(release), "images": "all"}, "images is 'all'; choose one or first"),
        ({"pretrained": str(release), "instructions": "no"}, "instructions is 'no'; choose drop or keep"),
        ({"pretrained": str(release), "batch_size": "many"}, "batch_size is many"),
        ({"pretrained": str(release), "dtype": "int3"}, "dtype int3 is unknown"),
        ({"pretrained": str(release), "device": "tpu9"}, "device tpu9 cannot be used"),
    ):
        with pytest.raises(ValueError, match=said):
            Answers(**arguments)


def test_model_args_reach_the_system(release):
    answers = Answers(str(release), "cpu", "float16", batch_size="auto", question="Q {} A", max_batch_size=8)
    assert (answers.question, answers.system.batch) == ("Q {} A", 64)
    assert next(answers.system.model.blocks.parameters()).dtype == torch.float16


def test_each_rank_has_its_gpu(monkeypatch):
    assert chosen_device(None) is None and chosen_device("cuda:1") == "cuda:1"
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen_device("cuda") == chosen_device(None) == torch.device("cuda", 3)
    assert chosen_device("cpu") == "cpu"


# --------------------------------------------------------------------------------------------------------- answers


def test_questions_and_captions_are_those_of_the_pipeline(opened, lavit):
    requests = [asked(n, context, max_new_tokens=4) for n in range(6) for context in (QUESTION, "", "Describe it.")]
    written = opened.generate_until(requests)
    plan = TextPlan(max_tokens=4)
    assert written[::3] == lavit.answer(PICTURES, [QUESTION] * 6, plan)
    assert written[1::3] == written[2::3] == lavit.caption(PICTURES, plan)
    assert len(set(written)) > 1


def test_beams_and_stops_count(opened, lavit):
    plan = TextPlan(max_tokens=6, beams=3)
    whole = lavit.answer(PICTURES, [QUESTION] * 6, plan)
    assert opened.generate_until([asked(n, max_new_tokens=6, num_beams=3) for n in range(6)]) == whole
    stop = next(text for text in whole if text)[-1]
    stopped = opened.generate_until([asked(n, max_new_tokens=6, num_beams=3, until=[stop]) for n in range(6)])
    assert stopped == [text.split(stop)[0].rstrip() for text in whole] != whole


def test_what_is_drawn_by_lot_is_the_same_in_any_order_and_new_when_repeated(opened):
    requests = [asked(n, temperature=1.0, max_new_tokens=8) for n in (0, 1, 2, 3, 4, 0)]
    written = opened.generate_until(requests)
    assert opened.generate_until(requests[4::-1]) == written[4::-1]
    assert written[0] != written[5]


def test_as_much_is_written_as_the_model_reads(opened):
    assert len(opened.generate_until([asked(0, max_new_tokens=4096)])) == 1


def test_the_form_of_a_question_can_be_chosen(opened, lavit, monkeypatch):
    monkeypatch.setattr(opened, "question", "{} Short answer:")
    plan = TextPlan(max_tokens=4)
    ours = lavit.write_texts(
        lavit.question_prompts(lavit.see(PICTURES), [QUESTION] * 6, "{} Short answer:"), plan, [0] * 6
    )
    assert opened.generate_until([asked(n, max_new_tokens=4) for n in range(6)]) == ours


def test_a_document_that_cannot_be_asked_about_is_named(opened):
    for visuals, said in ((None, "colours, document 2 has no picture"), (lambda document: ["a.mp4"], "'a.mp4'")):
        with pytest.raises(ValueError, match=said):
            opened.generate_until([asked(2, visuals=visuals)])


def test_rounds_end_when_the_task_says_so(opened, lavit):
    """Document n has n + 1 rounds; the second is about the same picture, the third about another one."""
    heard = []

    def next_round(document, previous_output, round_idx, previous_round_info):
        heard.append((document["number"], round_idx, previous_round_info))
        end = round_idx > document["number"]
        shown = [PICTURES[5]] if round_idx == 2 else None
        return shown, f"Is it {round_idx}?", end, [*previous_output[:-1], previous_output[-1] + "!"], round_idx

    requests = [
        request(QUESTION, {"max_new_tokens": 4}, pictures_of, next_round, n, "colours", "test") for n in range(3)
    ]
    said = opened.generate_until_multi_round(requests)
    plan = TextPlan(max_tokens=4)
    first = lavit.answer(PICTURES[:3], [QUESTION] * 3, plan)
    second = lavit.answer(PICTURES[1:3], ["Is it 1?"] * 2, plan)
    third = lavit.answer(PICTURES[5], "Is it 2?", plan)
    assert said == [[f"{first[0]}!"], [f"{first[1]}!", f"{second[0]}!"], [f"{first[2]}!", f"{second[1]}!", f"{third}!"]]
    assert heard == [(0, 1, None), (1, 1, None), (2, 1, None), (1, 2, 1), (2, 2, 1), (2, 3, 2)]


# ------------------------------------------------------------------------------------------------------ likelihoods


def test_losses_are_least_where_the_text_is_likeliest(opened, lavit):
    pairs = opened.loglikelihood([choice(n, f" {answer}") for n in range(6) for answer in ANSWERS])
    losses = torch.tensor([loss for loss, _ in pairs]).view(6, 3)
    scores = lavit.text_scores(lavit.question_prompts(lavit.see(PICTURES), [QUESTION] * 6), ANSWERS)
    torch.testing.assert_close(losses, -scores, atol=1e-5, rtol=1e-5)
    assert (losses > 0).all() and losses.argmin(1).tolist() == scores.argmax(1).tolist()
    # By hand, of one: the mean over the tokens of the text and its end.
    (prompt,) = lavit.question_prompts(lavit.see(PICTURES[:1]), [QUESTION])
    whole = lavit.text_scores([prompt], ANSWERS[:1], mean=False)
    assert pairs[0][0] == pytest.approx(-float(whole) / len(lavit.maker.continuation(ANSWERS[0])), abs=1e-5)


def test_only_the_text_that_is_written_is_greedy(opened, monkeypatch):
    plans = []
    monkeypatch.setattr(opened.system, "write_texts", lambda prompts, plan, seeds: plans.append(plan) or [ANSWERS[1]])
    pairs = opened.loglikelihood([choice(0, f" {answer}") for answer in ANSWERS])
    assert [greedy for _, greedy in pairs] == [False, True, False]
    # Room for the longest and its end, so that what goes on after it is another text.
    longest = max(len(opened.system.maker.continuation(answer)) for answer in ANSWERS)
    assert plans == [TextPlan(max_tokens=longest)]


def test_texts_may_be_functions_of_the_document_and_differ_by_document(opened):
    texts = [ANSWERS[n % 3] for n in range(6)]
    pairs = opened.loglikelihood([choice(n, lambda document: ANSWERS[document["number"] % 3]) for n in range(6)])
    assert pairs == opened.loglikelihood([choice(n, text) for n, text in enumerate(texts)])
    backwards = opened.loglikelihood([choice(n, text) for n, text in reversed(list(enumerate(texts)))])
    assert [loss for loss, _ in backwards[::-1]] == pytest.approx([loss for loss, _ in pairs], abs=1e-5)


def test_a_text_without_a_picture_is_refused(opened):
    with pytest.raises(ValueError, match="colours asks how likely a text is without its picture"):
        opened.loglikelihood([request("", "red")])


# -------------------------------------------------------------------------------------------------------- lmms-eval


def test_the_entry_point_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, name = project["entry-points"]["lmms_eval.models"]["lavit"].split(":")
    assert callable(getattr(importlib.import_module(module), name))
    assert project["optional-dependencies"]["harness"][0].startswith("lmms-eval")


def test_lmms_eval_finds_the_model():
    registry = pytest.importorskip("lmms_eval.models.registry_v2")
    from lavit.harness import manifest

    found = registry.ModelRegistryV2()
    found.register_manifest(manifest())
    assert found.get_model_class("lavit").__name__ == "LaVITModel"


def test_lmms_eval_needs_losses_to_be_wrapped():
    unwrap = pytest.importorskip("lmms_eval.api.instance").unwrap_generation_output
    from lavit.harness.plugin import GenerationResult

    assert unwrap(GenerationResult((1.5, True)))[0] == (1.5, True)


@pytest.mark.slow
def test_scores_in_lmms_eval_are_ours(release, lavit, tmp_path, monkeypatch):
    """Answers, choices and what is right of them; the answers are made such that some are."""
    evaluator = pytest.importorskip("lmms_eval.evaluator")
    from lmms_eval.tasks import TaskManager

    from lavit.harness.plugin import LaVITModel

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    plan, folder = TextPlan(max_tokens=4), tmp_path / "tasks"
    folder.mkdir()
    for number, picture in enumerate(PICTURES):
        picture.save(folder / f"{number}.png")
    paths = [str(folder / f"{number}.png") for number in range(6)]
    written = lavit.answer(paths, [QUESTION] * 6, plan)
    prompts = lavit.question_prompts(lavit.see(paths), [QUESTION] * 6)
    choices = list(dict.fromkeys([*written, *ANSWERS]))
    best = lavit.text_scores(prompts, choices).argmax(1).tolist()
    answers = [[text if number % 2 else choices[best[0]]] for number, text in enumerate(written)]
    lines = [
        {"id": n, "picture": f"{n}.png", "question": QUESTION, "answers": answers[n], "choices": choices}
        for n in range(6)
    ]
    write_lines(folder / "questions.jsonl", lines)
    write_task(folder, "tiny", "questions", QUESTIONS.format(plan=kwargs_of(plan)))
    write_task(folder, "tiny_choices", "questions", CHOICES)
    shutil.copy(FUNCTIONS, folder / "functions.py")
    found = evaluator.simple_evaluate(
        model=LaVITModel(str(release), device="cpu", batch_size=4),
        tasks=["tiny", "tiny_choices"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False, model_name="lavit"),
        batch_size=4,
        log_samples=True,
    )
    ours = [vqa_accuracy(text, right) for text, right in zip(written, answers, strict=True)]
    assert found["results"]["tiny"]["accuracy,none"] == sum(ours) / 6
    assert [sample["filtered_resps"][0] for sample in found["samples"]["tiny"]] == written
    right = [choices[n] == answers[i][0] for i, n in enumerate(best)]
    assert found["results"]["tiny_choices"]["acc,none"] == sum(right) / 6
    assert 0 < sum(right)
