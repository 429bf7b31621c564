from __future__ import annotations

import dataclasses

import pytest
import torch

from lavit.data.documents import DocumentMaker
from lavit.data.packing import pack
from lavit.generation import ImagePlan, TextPlan, draw_codes, log_likelihood, write_text
from lavit.model import LLMConfig, ModelConfig, ScratchConfig, UnifiedLM
from lavit.tokenizers.places import Places, PlacesConfig
from lavit.tokens import Learn, Picture, Span
from lavit.vocabulary import Vocabulary

TEXT, CODES, WIDTH = 12, 9, 3
VOCABULARY = Vocabulary(TEXT, CODES)


class Numbers:
    """A text tokenizer whose words are their own ids; other words are left out."""

    bos_token_id, eos_token_id = 0, 1

    def __call__(self, text: str, add_special_tokens: bool) -> dict:
        return {"input_ids": [int(word) for word in text.split() if word.isdigit()]}


MAKER = DocumentMaker(VOCABULARY, Numbers(), 256)


@pytest.fixture(scope="module")
def model() -> UnifiedLM:
    scratch = ScratchConfig(hidden=16, layers=2, heads=2, mlp=32, max_position=64)
    made = UnifiedLM(ModelConfig(LLMConfig(scratch=scratch)), VOCABULARY, WIDTH, seed=2).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.4, generator=torch.Generator().manual_seed(parameter.numel()))
    return made


def picture(n: int, seed: int = 0) -> Picture:
    generator = torch.Generator().manual_seed(seed)
    return Picture(torch.randint(CODES, (n,), generator=generator), torch.randn(n, WIDTH, generator=generator))


def text_prompts() -> list:
    """Of unequal length, with fed pictures and without."""
    return [
        MAKER.caption_prompt(picture(2)),
        MAKER.question_prompt(picture(5, 1), "3 4 5"),
        [Span("text", torch.tensor([0, 7, 8]))],
        MAKER.caption_prompt(picture(1, 2)),
        [Span("text", torch.tensor([0]))],
    ]


def next_logits(model: UnifiedLM, prompt: list, written: list[int]) -> torch.Tensor:
    """What follows a prompt and what was written, by one whole forward pass over that document alone."""
    document = [*prompt, Span("text", torch.tensor(written, dtype=torch.int64))]
    with torch.no_grad():
        return model.head(model.hidden(pack([document])))[0, -1]


# ---------------------------------------------------------------------------------------------------------------- text


def greedy_by_hand(model: UnifiedLM, prompt: list, end: int, most: int) -> list[int]:
    written: list[int] = []
    while len(written) < most:
        best = int(next_logits(model, prompt, written)[:TEXT].argmax())
        if best == end:
            break
        written.append(best)
    return written


@pytest.mark.parametrize("end", range(TEXT))
def test_greedy_text_equals_recomputing_each_prompt_alone(model, end):
    prompts = text_prompts()
    expected = [greedy_by_hand(model, prompt, end, 9) for prompt in prompts]
    written = write_text(model, prompts, end, TextPlan(max_tokens=9))
    assert [row.tolist() for row in written] == expected
    assert all(row.dtype == torch.int64 and len(row) <= 9 for row in written)


def test_the_greedy_cases_are_different_enough(model):
    lengths = {len(row) for end in range(TEXT) for row in write_text(model, text_prompts(), end, TextPlan(9))}
    assert {0, 9} < lengths and len(lengths) > 4
    assert len({tuple(row.tolist()) for row in write_text(model, text_prompts(), TEXT - 1, TextPlan(9))}) >= 3


def test_text_holds_no_image_ids(model):
    before = model.head.new.clone()
    with torch.no_grad():
        model.head.new.mul_(100)
        written = write_text(model, text_prompts(), 1, TextPlan(max_tokens=5))
        model.head.new.copy_(before)
    assert all((row < TEXT).all() for row in written)


# --------------------------------------------------------------------------------------------------------------- images


DRAW = ImagePlan(min_tokens=2, max_tokens=7, top_k=4, temperature=0.8, guidance=1.7)
PROMPTS = [MAKER.draw_prompt("3 4 5"), MAKER.draw_prompt("6"), MAKER.draw_prompt("7 8 9 10"), MAKER.draw_prompt("2")]


def draw(model: UnifiedLM, seed: int = 0, prompts=PROMPTS, **changes) -> list[list[int]]:
    plan = dataclasses.replace(DRAW, **changes)
    generator = torch.Generator().manual_seed(seed)
    return [row.tolist() for row in draw_codes(model, prompts, MAKER.draw_prompt(None), plan, generator)]


def draw_by_hand(model: UnifiedLM, plan: ImagePlan, seed: int) -> list[list[int]]:
    """The same without cache, padding or batch: l_u + a (l_c - l_u) over what an image may hold, then top-k."""
    generator = torch.Generator().manual_seed(seed)
    drawn: list[list[int]] = [[] for _ in PROMPTS]
    done = [False] * len(PROMPTS)
    for step in range(plan.max_tokens):
        rows = []
        for prompt, ids in zip(PROMPTS, drawn, strict=True):
            conditional = next_logits(model, prompt, ids)
            free = next_logits(model, MAKER.draw_prompt(None), ids)
            logits = free + plan.guidance * (conditional - free)
            logits[:TEXT] = logits[VOCABULARY.image_begin] = -torch.inf
            if step < plan.min_tokens:
                logits[VOCABULARY.image_end] = -torch.inf
            least = logits.sort(descending=True).values[plan.top_k - 1]
            rows.append(torch.where(logits < least, -torch.inf, logits) / plan.temperature)
        sampled = torch.multinomial(torch.stack(rows).softmax(-1), 1, generator=generator)[:, 0].tolist()
        for i, number in enumerate(sampled):
            done[i] |= number == VOCABULARY.image_end
            drawn[i].append(VOCABULARY.image_end if done[i] else number)
        if all(done):
            break
    cut = [ids[: ids.index(VOCABULARY.image_end)] if VOCABULARY.image_end in ids else ids for ids in drawn]
    return [[number - VOCABULARY.first_code for number in ids] for ids in cut]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("guidance", [0.0, 1.0, 1.7])
def test_drawing_equals_recomputing_each_prompt_alone(model, seed, guidance):
    plan = dataclasses.replace(DRAW, guidance=guidance)
    assert draw(model, seed, guidance=guidance) == draw_by_hand(model, plan, seed)


def test_images_keep_their_limits_and_hold_codes_alone(model):
    seen = [row for seed in range(20) for row in draw(model, seed, top_k=0)]
    assert {len(row) for row in seen} > {2, 7}
    assert all(2 <= len(row) <= 7 and all(0 <= code < CODES for code in row) for row in seen)
    assert {code for row in seen for code in row} == set(range(CODES))
    assert all(len(row) == 3 for row in draw(model, min_tokens=3, max_tokens=3))


@pytest.mark.parametrize(("sign", "length"), [(1, 2), (-1, 7)])
def test_an_image_that_wants_to_end_ends_at_once_and_another_never(model, sign, length):
    class Ending(torch.nn.Module):
        def __init__(self, head):
            super().__init__()
            self.head = head

        def forward(self, hidden):
            logits = self.head(hidden)
            logits[..., VOCABULARY.image_end] = sign * 1e4
            return logits

    head = model.head
    model.head = Ending(head)
    try:
        assert all(len(row) == length for row in draw(model))
    finally:
        model.head = head


def test_the_generator_alone_decides(model):
    assert draw(model, 1) == draw(model, 1)
    assert len({str(draw(model, seed)) for seed in range(5)}) == 5
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    draw(model, 1)
    assert torch.equal(torch.rand(1), expected)


def test_the_likeliest_code_alone_needs_no_luck(model):
    assert draw(model, 1, top_k=1) == draw(model, 2, top_k=1)
    cold = draw(model, 1, temperature=0.0)
    assert cold == draw(model, 1, top_k=1)


def test_guidance_sharpens_towards_the_text(model):
    """Where all prompts are the unconditional one, guidance changes nothing."""
    free = [MAKER.draw_prompt(None)] * 3
    assert draw(model, 3, free, guidance=1.0) == draw(model, 3, free, guidance=5.0)
    assert draw(model, 3, guidance=1.0, top_k=1) != draw(model, 3, guidance=5.0, top_k=1)


@pytest.mark.parametrize("limits", [(0, 4), (5, 4)])
def test_limits_that_leave_no_image(model, limits):
    with pytest.raises(ValueError, match=f"image limits {limits[0]} to {limits[1]} tokens leave no image"):
        draw(model, min_tokens=limits[0], max_tokens=limits[1])


def test_prompt_that_begins_no_image(model):
    with pytest.raises(ValueError, match=r"must end with \[IMG\], id 12"):
        draw(model, prompts=[MAKER.text_only("3")])


# ----------------------------------------------------------------------------------------------------------- likelihood


def test_log_likelihood_is_the_sum_over_learned_tokens_alone(model):
    documents = [
        MAKER.image_text(picture(3), "4 5"),
        MAKER.text_image("6 7 8", picture(2)[0]),
        MAKER.text_only("9"),
        MAKER.question_answer(picture(1), "2 3", "10 11"),
        MAKER.image_only(picture(6)[0]),
        MAKER.image_text(picture(2, 5), "5"),
    ]
    expected = []
    for document in documents:
        total = 0.0
        for number, span in enumerate(document):
            for place, target in enumerate(span.ids.tolist()):
                if span.learn == Learn.IDS and (number or place):
                    seen = [*document[:number], span._replace(ids=span.ids[:place])]
                    with torch.no_grad():
                        logits = model.head(model.hidden(pack([seen])))[0, -1]
                    total += logits.log_softmax(-1)[target].item()
        expected.append(total)
    for row, at_once in ((16, 16), (12, 1), (64, 2)):
        found = log_likelihood(model, documents, row, rows_at_once=at_once)
        assert found.shape == (6,) and found.dtype == torch.float32
        torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=1e-5)


def test_log_likelihood_of_many_and_of_too_long_documents(model):
    documents = [MAKER.text_only(" ".join(["3"] * (1 + i % 5))) for i in range(300)]
    found = log_likelihood(model, documents, 16)
    torch.testing.assert_close(found, found[:5].repeat(60), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="document 0 has 7 tokens; a row holds 1 to 6"):
        log_likelihood(model, [MAKER.text_only("2 3 4 5 6")], 6)


# ------------------------------------------------------------------------------------------------------------ places


def test_drawn_words_that_say_places_are_a_whole_image():
    """Nine codes with three gaps each over a grid of 4 × 4: every drawing holds all anchors and ends at the last."""
    places = Places(4, CODES, PlacesConfig(every=2))
    vocabulary = Vocabulary(TEXT, CODES, places.gaps)
    scratch = ScratchConfig(hidden=16, layers=1, heads=2, mlp=32, max_position=64)
    made = UnifiedLM(ModelConfig(LLMConfig(scratch=scratch)), vocabulary, WIDTH, seed=3).eval()
    maker = DocumentMaker(vocabulary, Numbers(), 256)
    prompts = [maker.draw_prompt(text) for text in ("3 4", "5", "6 7", "8")] * 4
    plan = ImagePlan(min_tokens=1, max_tokens=16, top_k=0, guidance=1.5)
    drawn = draw_codes(made, prompts, maker.draw_prompt(None), plan, torch.Generator().manual_seed(0), places)
    anchors = set(places.anchors.nonzero().flatten().tolist())
    for words in drawn:
        position = places.read(words[None], torch.ones(1, len(words), dtype=torch.bool))[1][0]
        assert position.diff().gt(0).all() and anchors <= set(position.tolist())
    assert len({len(words) for words in drawn}) > 2, "how many patches lie between anchors is the model's choice"
    short = draw_codes(made, prompts[:1], maker.draw_prompt(None), ImagePlan(1, 3, 0), torch.Generator(), places)
    assert len(short[0]) == 3, "the most tokens are a limit all the same"
