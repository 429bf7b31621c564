from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from eval.generate import Only, grown
from lavit.data.documents import Document, DocumentMaker
from lavit.data.order import generator_for
from lavit.data.packing import pack
from lavit.generation import (
    ImagePlan,
    TextPlan,
    continuation_likelihood,
    draw_codes,
    log_likelihood,
    write_interleaved,
    write_text,
)
from lavit.generation.plans import choose
from lavit.model import LLMConfig, ModelConfig, ScratchConfig, UnifiedLM
from lavit.tokenizers.places import Places, PlacesConfig
from lavit.tokens import Learn, Picture, Span
from lavit.vocabulary import Vocabulary

TEXT, CODES, WIDTH = 12, 9, 3
VOCABULARY = Vocabulary(TEXT, CODES)
PLACES = Places(4, CODES, PlacesConfig(every=2))


class Numbers:
    """A text tokenizer whose words are their own ids; other words are left out."""

    bos_token_id, eos_token_id = 0, 1

    def __call__(self, text: str, add_special_tokens: bool) -> dict:
        return {"input_ids": [int(word) for word in text.split() if word.isdigit()]}


MAKER = DocumentMaker(VOCABULARY, Numbers(), 256)
FREE = MAKER.prompt([], then="image")


def made(vocabulary: Vocabulary, seed: int = 7) -> UnifiedLM:
    scratch = ScratchConfig(hidden=16, layers=2, heads=2, mlp=32, max_position=64)
    model = UnifiedLM(ModelConfig(LLMConfig(scratch=scratch)), vocabulary, WIDTH, seed=seed).eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.4, generator=generator)
    return model


@pytest.fixture(scope="module")
def model() -> UnifiedLM:
    return made(VOCABULARY)


@pytest.fixture(scope="module")
def placed() -> UnifiedLM:
    """Nine codes with three gaps each over a grid of 4 × 4."""
    return made(Vocabulary(TEXT, CODES, PLACES.gaps), seed=3)


def picture(n: int, seed: int = 0) -> Picture:
    generator = torch.Generator().manual_seed(seed)
    return Picture(torch.randint(CODES, (n,), generator=generator), torch.randn(n, WIDTH, generator=generator))


def text_prompts() -> list[Document]:
    """Eight of unequal length: texts, fed pictures, and both in any order."""
    return [
        MAKER.prompt([picture(2)], then="text"),
        MAKER.question_prompt(picture(5, 1), "3 4 5"),
        MAKER.prompt(["7 8"], then="text"),
        MAKER.prompt([picture(1, 2)], then="text"),
        MAKER.prompt([""], then="text"),
        MAKER.prompt(["5", picture(3, 3), "6 7", picture(2, 4)], then="text"),
        MAKER.prompt([picture(7, 5), "9"], then="text"),
        MAKER.prompt(["2 3 4 5 6 7 8 9 10 11"], then="text"),
    ]


def image_prompts(maker: DocumentMaker = MAKER) -> list[Document]:
    """Eight of unequal length: texts, pictures as ids, and both in any order."""
    texts = [["3 4 5"], ["6"], ["7 8 9 10"], [""]]
    pictures = [[picture(4)], [picture(2, 1), "3"], ["5 6", picture(6, 2), "7"], [picture(3, 3), picture(1, 4)]]
    return [maker.prompt(parts, then="image") for parts in [*texts, *pictures]]


def next_logits(model: UnifiedLM, prompt: Document, written: list[int]) -> torch.Tensor:
    """What follows a prompt and what was written, by one whole forward pass over that document alone."""
    document = [*prompt, Span("text", torch.tensor(written, dtype=torch.int64))]
    with torch.no_grad():
        return model.head(model.hidden(pack([document])))[0, -1]


def lists(rows: list[torch.Tensor]) -> list[list[int]]:
    assert all(row.dtype == torch.int64 and row.device.type == "cpu" for row in rows)
    return [row.tolist() for row in rows]


# ---------------------------------------------------------------------------------------------------------------- text


def greedy_by_hand(model: UnifiedLM, prompt: Document, end: int, plan: TextPlan) -> list[int]:
    written: list[int] = []
    while len(written) < plan.max_tokens:
        logits = next_logits(model, prompt, written)[:TEXT]
        if len(written) < plan.min_tokens:
            logits[end] = -torch.inf
        best = int(logits.argmax())
        if best == end:
            break
        written.append(best)
    return written


@pytest.mark.parametrize("least", [0, 4])
@pytest.mark.parametrize("end", range(TEXT))
def test_greedy_text_equals_recomputing_each_prompt_alone(model, end, least):
    plan = TextPlan(max_tokens=9, min_tokens=least)
    expected = [greedy_by_hand(model, prompt, end, plan) for prompt in text_prompts()]
    written = lists(write_text(model, text_prompts(), end, plan))
    assert written == expected and all(least <= len(row) <= 9 for row in written)


def test_the_greedy_cases_are_different_enough(model):
    plan = TextPlan(max_tokens=9)
    lengths = {len(row) for end in range(TEXT) for row in write_text(model, text_prompts(), end, plan)}
    assert {0, 9} < lengths and len(lengths) > 4
    assert len({tuple(row.tolist()) for row in write_text(model, text_prompts(), TEXT - 1, plan)}) >= 3


PLANS = {
    "greedy": TextPlan(max_tokens=9),
    "beams": TextPlan(max_tokens=9, min_tokens=2, beams=3, length_penalty=0.0),
    "by lot": TextPlan(max_tokens=9, temperature=1.3, top_k=8, top_p=0.9),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_text_holds_no_image_ids(model, plan):
    before = model.head.new.clone()
    try:
        with torch.no_grad():
            model.head.new.mul_(100)
        written = write_text(model, text_prompts(), 1, plan, list(range(8)))
    finally:
        with torch.no_grad():
            model.head.new.copy_(before)
    assert all((row < TEXT).all() for row in written)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("end", [1, 7])
def test_a_prompt_is_continued_alike_alone_and_in_a_batch(model, plan, end):
    prompts, seeds = text_prompts(), list(range(30, 38))
    together = lists(write_text(model, prompts, end, plan, seeds))
    alone = [write_text(model, [prompt], end, plan, [seed]) for prompt, seed in zip(prompts, seeds, strict=True)]
    assert together == [row for rows in alone for row in lists(rows)]
    turned = write_text(model, prompts[::-1], end, plan, seeds[::-1])
    assert lists(turned)[::-1] == together and len({str(row) for row in together}) > 4


def test_no_prompts(model):
    assert write_text(model, [], 1, TextPlan()) == [] and draw_codes(model, [], FREE, ImagePlan(), []) == []
    assert write_interleaved(model, [], FREE, TextPlan(), ImagePlan(), [], 1) == []


BEAMS = [(2, 1.0, 0, 8), (3, 0.0, 0, 6), (5, 0.0, 2, 10), (4, 2.0, 3, 7), (2, -1.0, 0, 5), (6, 0.5, 0, 1)]


@pytest.mark.parametrize(("beams", "penalty", "least", "most"), BEAMS)
def test_beams_find_what_transformers_finds(model, beams, penalty, least, most):
    """Token for token, on the same weights in one grown table; pictures are read as ids, which it can do too."""
    maker = DocumentMaker(VOCABULARY, Numbers(), 256, read="ids")
    prompts = [
        maker.prompt(["3 4 5"], then="text"),
        maker.prompt([picture(4), "6"], then="text"),
        maker.prompt(["8", picture(2, 1), "9 10"], then="text"),
        maker.prompt([""], then="text"),
    ]
    flat = [torch.cat([span.ids for span in prompt]) for prompt in prompts]
    width = max(map(len, flat))
    ids = torch.stack([torch.cat([row.new_zeros(width - len(row)), row]) for row in flat])
    mask = torch.stack([torch.arange(width) >= width - len(row) for row in flat]).long()
    found = set()
    for end in range(1, TEXT):
        out = grown(model).generate(
            ids,
            attention_mask=mask,
            num_beams=beams,
            length_penalty=penalty,
            min_new_tokens=least,
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
            logits_processor=LogitsProcessorList([Only(VOCABULARY.text_mask())]),
        )
        expected = [list(itertools.takewhile(lambda i: i != end, row)) for row in out[:, width:].tolist()]  # noqa: B023
        plan = TextPlan(max_tokens=most, min_tokens=least, beams=beams, length_penalty=penalty)
        assert lists(write_text(model, prompts, end, plan)) == expected
        found |= set(map(tuple, expected))
    assert len(found) > (5 if most > 1 else 3)


def test_beams_find_likelier_texts_than_greed(model):
    """With no id that ends a text, all texts are of one length, and their likelihoods compare."""
    prompts, plan = text_prompts(), TextPlan(max_tokens=4, min_tokens=4)

    def likelihood(plan: TextPlan) -> torch.Tensor:
        texts = write_text(model, prompts, 1, plan)
        return continuation_likelihood(model, prompts, texts).diagonal()

    gain = likelihood(dataclasses.replace(plan, beams=6)) - likelihood(plan)
    assert (gain > 0.1).any() and gain.mean() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 0}, "TextPlan.min_tokens 0 and max_tokens 0 leave no text"),
        ({"min_tokens": 5, "max_tokens": 4}, "TextPlan.min_tokens 5 and max_tokens 4 leave no text"),
        ({"beams": 0}, "TextPlan.beams is 0; it must be at least 1"),
        ({"beams": 2, "temperature": 0.5}, "TextPlan.beams is 2 and temperature 0.5; set 1 beam or temperature 0"),
        ({"beams": 7}, "TextPlan.beams is 7; it must be at most half of the 12 text ids"),
        ({"temperature": -1.0}, "TextPlan.temperature is -1.0; it must be 0"),
        ({"top_k": -1}, "TextPlan.top_k is -1; it must be 0"),
        ({"top_p": 0.0}, "TextPlan.top_p is 0.0; it must be above 0 and at most 1"),
        ({"temperature": 0.5}, "at temperature 0.5 ids are drawn by lot: give a seed for every prompt"),
        ({"max_tokens": 62}, "prompt 0 has 3 tokens and up to 62 may follow, which is more than the 64 that the model"),
    ],
)
def test_text_plans_that_cannot_be(model, changes, message):
    with pytest.raises(ValueError, match=message):
        write_text(model, [MAKER.prompt(["3 4"], then="text")], 1, TextPlan(**changes))


def test_prompts_that_cannot_be(model):
    with pytest.raises(ValueError, match="prompt 1 is empty; begin it with a text or a picture"):
        write_text(model, [*text_prompts()[:1], []], 1, TextPlan())
    with pytest.raises(ValueError, match="2 seeds are given for 1 prompts; give one for each"):
        write_text(model, text_prompts()[:1], 1, TextPlan(), [1, 2])
    with pytest.raises(ValueError, match="prompt 0 has 61 tokens and up to 4 may follow, which is more than the 64"):
        continuation_likelihood(model, [MAKER.prompt([" ".join(["3"] * 60)], then="text")], [torch.tensor([2] * 4)])
    assert len(write_text(model, [MAKER.prompt(["3 4"], then="text")], 1, TextPlan(max_tokens=61))[0]) <= 61


# --------------------------------------------------------------------------------------------------------------- choice


@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature"), [(0, 1.0, 1.0), (3, 1.0, 0.7), (0, 0.6, 1.0), (5, 0.8, 2.0)]
)
def test_lots_fall_as_the_warped_distribution_of_transformers_says(top_k, top_p, temperature):
    logits = torch.tensor([[0.3, 2.0, -torch.inf, 1.2, -0.7, 0.9, 0.1, -1.5]])
    warped = TemperatureLogitsWarper(temperature)(None, logits)
    warped = TopKLogitsWarper(top_k)(None, warped) if top_k else warped
    warped = TopPLogitsWarper(top_p)(None, warped) if top_p < 1 else warped
    lot = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    plan = ImagePlan(top_k=top_k, top_p=top_p, temperature=temperature)
    counts = choose(logits.expand(1000, -1), plan, lot).bincount(minlength=8)
    torch.testing.assert_close(counts / 1000, warped.softmax(-1)[0], atol=2e-3, rtol=0)
    assert ((counts == 0) == warped.isinf()[0]).all()


def test_last_digits_of_logits_change_no_choice():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, 500, generator=generator)
    lot = torch.rand(2000, generator=generator, dtype=torch.float64)
    shaken = logits + 1e-6 * torch.randn(2000, 500, generator=generator)
    for top_k in (0, 20):
        plan = ImagePlan(top_k=top_k)
        assert (choose(logits, plan, lot) != choose(shaken, plan, lot)).float().mean() <= 1e-3


# --------------------------------------------------------------------------------------------------------------- images


DRAW = ImagePlan(min_tokens=2, max_tokens=7, top_k=4, temperature=0.8, guidance=1.7)


def draw(model: UnifiedLM, seed: int = 0, prompts: list[Document] | None = None, **changes) -> list[list[int]]:
    prompts = image_prompts() if prompts is None else prompts
    seeds = [seed * 100 + number for number in range(len(prompts))]
    return lists(draw_codes(model, prompts, FREE, dataclasses.replace(DRAW, **changes), seeds))


def draw_by_hand(model: UnifiedLM, prompt: Document, plan: ImagePlan, seed: int) -> list[int]:
    """One prompt without cache or batch: l_u + a (l_c - l_u) over what an image may hold, top-k, the lot's place."""
    generator = generator_for(seed)
    drawn: list[int] = []
    while len(drawn) < plan.max_tokens:
        conditional, free = (next_logits(model, p, drawn).log_softmax(-1) for p in (prompt, FREE))
        logits = free + plan.guidance * (conditional - free)
        logits[:TEXT] = logits[VOCABULARY.image_begin] = -torch.inf
        if len(drawn) < plan.min_tokens:
            logits[VOCABULARY.image_end] = -torch.inf
        if plan.temperature == 0:
            number = int(logits.argmax())
        else:
            logits[logits < logits.sort(descending=True).values[plan.top_k - 1]] = -torch.inf
            lot = float(torch.rand((), generator=generator, dtype=torch.float64))
            shares = (logits.double() / plan.temperature).softmax(-1).cumsum(0).tolist()
            number = next(i for i, share in enumerate(shares) if share > lot)
        if number == VOCABULARY.image_end:
            break
        drawn.append(number)
    return [number - VOCABULARY.first_code for number in drawn]


@pytest.mark.parametrize("temperature", [0.8, 0.0])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 1.7])
def test_drawing_equals_recomputing_each_prompt_alone(model, guidance, temperature):
    plan = dataclasses.replace(DRAW, guidance=guidance, temperature=temperature)
    for seed in range(3):
        expected = [draw_by_hand(model, p, plan, seed * 100 + n) for n, p in enumerate(image_prompts())]
        assert draw(model, seed, guidance=guidance, temperature=temperature) == expected


@pytest.mark.parametrize("places", [None, PLACES], ids=["plain", "places"])
def test_one_seed_is_one_picture_whatever_the_batch(model, placed, places):
    model = model if places is None else placed
    maker = DocumentMaker(model.vocabulary, Numbers(), 256)
    prompts, seeds = image_prompts(maker), list(range(40, 48))
    plan = ImagePlan(min_tokens=3, max_tokens=16, top_k=20, guidance=1.7, top_p=0.95)

    def drawn(*numbers: int) -> list[list[int]]:
        return lists(draw_codes(model, [prompts[n] for n in numbers], FREE, plan, [seeds[n] for n in numbers], places))

    together = drawn(*range(8))
    assert [drawn(n)[0] for n in range(8)] == together and len({str(row) for row in together}) == 8
    assert drawn(*range(3)) + drawn(*range(3, 8)) == together
    assert drawn(7, 2, 2) == [together[7], together[2], together[2]]


def test_images_keep_their_limits_and_hold_codes_alone(model):
    seen = [row for seed in range(10) for row in draw(model, seed, top_k=0)]
    assert {len(row) for row in seen} > {2, 7}
    assert all(2 <= len(row) <= 7 and all(0 <= code < CODES for code in row) for row in seen)
    assert {code for row in seen for code in row} == set(range(CODES))
    assert all(len(row) == 3 for row in draw(model, min_tokens=3, max_tokens=3))


@pytest.mark.parametrize(("sign", "length"), [(1, 2), (-1, 7)])
def test_an_image_that_wants_to_end_ends_at_once_and_another_never(model, monkeypatch, sign, length):
    logits = model.head.image_logits
    end = torch.tensor([sign * 1e4] + [0.0] * CODES)
    monkeypatch.setattr(model.head, "image_logits", lambda hidden: logits(hidden) + end)
    assert all(len(row) == length for row in draw(model, guidance=1.0))


def test_rows_that_ended_leave_the_batch(model, monkeypatch):
    sizes: list[int] = []
    forward = model.blocks.forward

    def counted(**given):
        sizes.append(len(given["inputs_embeds"]))
        return forward(**given)

    monkeypatch.setattr(model.blocks, "forward", counted)
    lengths = [len(row) for row in draw(model, 5, top_k=0)]
    assert len(set(lengths)) > 2 and sizes[0] == 9, "eight prompts and one that is unconditional"
    assert sizes[1:] == [2 * sum(length >= step for length in lengths) for step in range(1, len(sizes))]


def test_the_seeds_alone_decide(model):
    assert draw(model, 1) == draw(model, 1)
    assert len({str(draw(model, seed)) for seed in range(5)}) == 5
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    draw(model, 1)
    assert torch.equal(torch.rand(1), expected)


def test_the_likeliest_code_alone_needs_no_luck(model):
    assert draw(model, 1, top_k=1) == draw(model, 2, top_k=1)
    assert draw(model, 1, temperature=0.0) == draw(model, 1, top_k=1) == draw(model, 3, top_k=0, top_p=1e-9)


def test_guidance_sharpens_towards_the_text(model):
    """Where all prompts are the unconditional one, guidance changes nothing."""
    free = [FREE] * 3
    assert draw(model, 3, free, guidance=1.0) == draw(model, 3, free, guidance=5.0)
    assert draw(model, 3, guidance=1.0, top_k=1) != draw(model, 3, guidance=5.0, top_k=1)


@pytest.mark.parametrize("limits", [(0, 4), (5, 4)])
def test_limits_that_leave_no_image(model, limits):
    with pytest.raises(ValueError, match=f"ImagePlan.min_tokens {limits[0]} and max_tokens {limits[1]} leave no image"):
        draw(model, min_tokens=limits[0], max_tokens=limits[1])


def test_prompts_that_begin_no_image(model):
    with pytest.raises(ValueError, match=r"must end with \[IMG\], id 12"):
        draw(model, prompts=[MAKER.text_only("3")])
    with pytest.raises(ValueError, match="prompt 0 has 3 tokens and up to 62 may follow, which is more than the 64"):
        draw(model, prompts=[MAKER.prompt(["3"], then="image")], max_tokens=62)
    with pytest.raises(ValueError, match="1 seeds are given for 8 prompts"):
        draw_codes(model, image_prompts(), FREE, DRAW, [1])


def test_drawn_words_that_say_places_are_a_whole_image(placed):
    """Every drawing holds all anchors and ends at the last."""
    maker = DocumentMaker(placed.vocabulary, Numbers(), 256)
    prompts = image_prompts(maker) * 2
    plan = ImagePlan(min_tokens=1, max_tokens=16, top_k=0, guidance=1.5)
    drawn = draw_codes(placed, prompts, FREE, plan, list(range(16)), PLACES)
    anchors = set(PLACES.anchors.nonzero().flatten().tolist())
    for words in drawn:
        position = PLACES.read(words[None], torch.ones(1, len(words), dtype=torch.bool))[1][0]
        assert position.diff().gt(0).all() and anchors <= set(position.tolist())
    assert len({len(words) for words in drawn}) > 2, "how many patches lie between anchors is the model's choice"
    short = draw_codes(placed, prompts[:1], FREE, ImagePlan(1, 3, 0), [0], PLACES)
    assert len(short[0]) == 3, "the most tokens are a limit all the same"


# ---------------------------------------------------------------------------------------------------------- interleaved


LOOSE = TextPlan(max_tokens=12, min_tokens=2, temperature=1.5)


def tell(model: UnifiedLM, prompts: list[Document], seeds: list[int], most: int = 2, **changes) -> list[Document]:
    plan = dataclasses.replace(LOOSE, **changes)
    return write_interleaved(model, prompts, FREE, plan, DRAW, seeds, 1, most_pictures=most)


def test_text_with_pictures_in_it(model):
    prompts = text_prompts() * 4
    told = tell(model, prompts, list(range(32)))
    counts = {sum(span.modality == "image" for span in document) for document in told}
    assert counts == {0, 1, 2}
    for document in told:
        assert all(a.modality != b.modality or a.modality == "image" for a, b in itertools.pairwise(document))
        assert 2 <= sum(len(span.ids) for span in document if span.modality == "text") <= 12
        for span in document:
            if span.modality == "text":
                assert ((span.ids < TEXT) & (span.ids != 1)).all()
            else:
                assert span.ids[0] == VOCABULARY.image_begin and span.ids[-1] == VOCABULARY.image_end
                assert 2 <= len(span.ids) - 2 <= 7 and VOCABULARY.to_codes(span.ids[1:-1]).ge(0).all()
    assert any(document and document[-1].modality == "text" and len(document) > 1 for document in told)
    # Documents are what prompts are: they may be read on.
    assert write_text(model, [[*p, *d] for p, d in zip(prompts, told, strict=True)], 1, TextPlan())


def test_a_story_is_the_same_alone_and_in_a_batch(model):
    prompts, seeds = text_prompts(), list(range(8, 16))
    together = tell(model, prompts, seeds)
    alone = [tell(model, [prompt], [seed])[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    flat = [[[(span.modality, span.ids.tolist()) for span in d] for d in told] for told in (together, alone)]
    assert flat[0] == flat[1] and any(len(document) > 2 for document in together)


def test_greedy_stories_are_greedy_text_and_drawings_by_turns(model, monkeypatch):
    """[IMG] made likely after any text: a picture, then text as write_text has it, as soon as no picture is left."""
    likely = model.head.new.clone()
    prompt = text_prompts()[1]
    logits = model.head.text_logits
    begin = torch.tensor([0.0] * TEXT + [1e4])
    monkeypatch.setattr(model.head, "text_logits", lambda hidden: logits(hidden) + begin)
    told = write_interleaved(model, [prompt], FREE, TextPlan(5), dataclasses.replace(DRAW, temperature=0.0), [0], 1)[0]
    assert torch.equal(model.head.new, likely) and told[0].modality == "image"
    opened = [*prompt, Span("image", torch.tensor([VOCABULARY.image_begin]))]
    drawn = draw_codes(model, [opened], FREE, dataclasses.replace(DRAW, temperature=0.0), [0])[0]
    assert torch.equal(VOCABULARY.to_codes(told[0].ids[1:-1]), drawn)
    after = write_text(model, [[*prompt, told[0]]], 1, TextPlan(5))[0]
    assert (told[1].ids.tolist() if len(told) > 1 else []) == after.tolist()


def test_a_prompt_that_ends_with_the_beginning_of_an_image_goes_on_with_it(model):
    told, other = tell(
        model, [MAKER.prompt(["3 4"], then="image"), MAKER.prompt([picture(2), ""], then="text")], [5, 6], most=1
    )
    assert not other or other[0].modality == "text" or other[0].ids[0] == VOCABULARY.image_begin
    assert told[0].modality == "image" and VOCABULARY.image_begin not in told[0].ids
    assert told[0].ids[-1] == VOCABULARY.image_end and all(span.modality == "text" for span in told[1:])


@pytest.mark.parametrize(
    ("most", "changes", "message"),
    [
        (0, {}, "most_pictures is 0; it must be at least 1"),
        (1, {"beams": 2, "temperature": 0.0}, "TextPlan.beams is 2; text with pictures is written without beams"),
        (6, {}, "prompt 0 has 3 tokens and up to 66 may follow, which is more than the 64 that the model reads"),
    ],
)
def test_stories_that_cannot_be(model, most, changes, message):
    with pytest.raises(ValueError, match=message):
        tell(model, [MAKER.prompt(["3 4"], then="text")], [0], most, **changes)


# --------------------------------------------------------------------------------------------------------------- device


def test_every_tensor_is_made_on_the_models_device(model, placed, monkeypatch):
    """Whatever is made without saying where would be on the device "meta" here, and could not meet the others."""
    maker = DocumentMaker(placed.vocabulary, Numbers(), 256)
    prompts, texts = image_prompts(maker), text_prompts()
    ids, document = [torch.tensor([2, 3]), torch.tensor([4])], MAKER.text_only("3 4")

    def everything() -> list:
        drawn = draw_codes(placed, prompts, FREE, DRAW, list(range(8)), PLACES)
        written = [write_text(model, texts, 1, plan, list(range(8))) for plan in PLANS.values()]
        told = [span.ids for document in tell(model, texts, list(range(8))) for span in document]
        likely = [log_likelihood(model, [document], 16), continuation_likelihood(model, texts, ids)]
        return [tensor.tolist() for tensor in itertools.chain(drawn, *written, told, likely)]

    def packed(*given, **options):
        with torch.device("cpu"):  # batches are made on the CPU, and moved
            return pack(*given, **options)

    expected = everything()
    monkeypatch.setattr("lavit.generation.cache.pack", packed)
    monkeypatch.setattr("lavit.generation.likelihood.pack", packed)
    with torch.device("meta"):
        found = everything()
    assert found == expected


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
