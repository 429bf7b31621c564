"""Captions and answers of a frozen language model after examples, with a tiny one and words made by hand."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from lavit.experiment import Experiment
from lavit.few_shot import FewShot
from lavit.generation import TextPlan
from lavit.generation.in_context import text_logits
from lavit.tokens import Picture
from tests.test_in_context import CONFIG, IDS, LETTERS, WORDS, Letters

CAPTIONS = ["a: cat", "b: dog", "a: hat", "b: cup"]
QUESTIONS = [{"questions": [{"question": f"is it {n}?", "answers": ["yes" if n % 2 else "no"]}]} for n in range(4)]


class Codes:
    """Picture n has the words n, n + 1, … of the list."""

    def codes(self, number: int) -> torch.Tensor:
        return (torch.arange(8) + number) % WORDS

    def picture(self, number: int) -> Picture:
        return Picture(self.codes(number), torch.zeros(8, 0))


class Asked:
    """Pictures with a question each."""

    def __len__(self) -> int:
        return len(QUESTIONS)

    def describe(self, number: int) -> tuple[str, dict]:
        return "", QUESTIONS[number]


class Text(Letters):
    def __len__(self) -> int:
        return LETTERS + WORDS


def work(examples: int = 2, read: int = 3) -> SimpleNamespace:
    experiment = Experiment()
    experiment.pretrain.model = copy.deepcopy(CONFIG)
    experiment.evaluation.in_context.examples, experiment.evaluation.in_context.read = examples, read
    return SimpleNamespace(
        experiment=experiment,
        text_tokenizer=Text,
        word_list=lambda: SimpleNamespace(ids=IDS, words=[]),
        pictures=lambda part, split: SimpleNamespace(captions=CAPTIONS, distinct=lambda: list(range(len(CAPTIONS)))),
        codes=lambda part, split: Codes(),
        shards=lambda part, split: Asked(),
    )


def ids_of(document) -> list[int]:
    return torch.cat([span.ids for span in document]).tolist()


def test_examples_are_words_as_ids_with_their_captions():
    system = FewShot(work())
    found = ids_of(system.captioned)
    shown = [n for n in range(4) if CAPTIONS[n] in as_text(found)]
    assert len(shown) == 2
    for n in shown:
        words = IDS[(torch.arange(3) + n) % WORDS].tolist()
        place = next(i for i in range(len(found)) if found[i : i + 3] == words)
        assert as_text(found[place + 3 :]).startswith(f"\nOutput: {CAPTIONS[n]}\n")
        assert found[place + 3] < LETTERS, "no more words than are to be read"
    assert found == ids_of(FewShot(work()).captioned), "the same for all pictures and runs of a seed"


def as_text(ids: list[int]) -> str:
    return "".join(chr(number) if number < LETTERS else "?" for number in ids)


def test_a_question_stands_between_words_and_answer():
    found = as_text(ids_of(FewShot(work()).asked))
    assert found.count("Input:???\nis it ") == 2 and found.count("?\nOutput: ") == 2


def test_captions_are_the_likeliest_letters_after_examples_and_words():
    system = FewShot(work())
    pictures = [Codes().picture(5), Codes().picture(9)]
    written = system.caption(pictures, TextPlan(max_tokens=5), [0, 1])
    for picture, text in zip(pictures, written, strict=True):
        ids = ids_of([*system.captioned, *system.contexts.ask(system.words(picture.codes))])
        start = len(ids)
        for _ in range(5):
            ids.append(int(text_logits(system.model, last_state(system, ids)).argmax()))
            if ids[-1] == system.contexts.stop:
                break
        assert text == system.contexts.read(torch.tensor(ids[start:]))


def last_state(system: FewShot, ids: list[int]) -> torch.Tensor:
    """(D,) what stands behind the ids, in one pass over all of them."""
    with torch.no_grad():
        mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)[None, None]
        return system.model.blocks(
            inputs_embeds=system.model.embedding(torch.tensor([ids])), attention_mask=mask,
            position_ids=torch.arange(len(ids))[None], use_cache=False,
        ).last_hidden_state[0, -1]  # fmt: skip


def test_scores_are_likelihoods_of_the_whole_line():
    system = FewShot(work(examples=1, read=2))
    picture = Codes().picture(4)
    (scores,) = system.caption_scores([picture], ["a: x", "b: y"])
    for score, caption in zip(scores, ["a: x", "b: y"], strict=True):
        ids = ids_of([*system.captioned, *system.contexts.ask(system.words(picture.codes))])
        total = 0.0
        for number in system.contexts.answer(caption).tolist():
            total += float(system.model.head(last_state(system, ids)).log_softmax(-1)[number])
            ids.append(number)
        assert float(score) == pytest.approx(total, abs=1e-3)


def test_too_few_pictures_for_the_examples():
    with pytest.raises(ValueError, match="evaluation.in_context.examples is 5 and there are 4 pictures"):
        FewShot(work(examples=5)).caption([Codes().picture(0)], TextPlan(max_tokens=2), [0])
