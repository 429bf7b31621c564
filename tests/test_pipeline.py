from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from lavit import cli
from lavit.data.images import ImageError
from lavit.generation import ImagePlan, TextPlan, log_likelihood
from lavit.pipeline import LaVIT, Refused
from lavit.system import alike_in_length
from lavit.tokenizers.places import PlacesConfig
from lavit.tokenizers.selector import GainConfig, SelectionConfig
from lavit.tokenizers.tokenizer import Tokenizer
from lavit.tokens import Picture
from tests.conftest import PATCHES, ROW, TEXTS, WIDTH

PLAN = ImagePlan(min_tokens=2, max_tokens=6, top_k=5)


def features(count: int) -> torch.Tensor:
    return torch.randn(count, PATCHES, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def images() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (5, 50, 40, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in noise]


def same(ours, theirs) -> bool:
    """Equal but for a last digit that another batch may round otherwise."""
    return np.abs(np.asarray(ours, np.int16) - np.asarray(theirs, np.int16)).max() <= 1


# ------------------------------------------------------------------------------------------------------- to the user


def test_one_image_gives_one_result_and_a_list_a_list(system, images):
    captions = system.caption(images)
    assert len(captions) == 5 and all(isinstance(text, str) for text in captions)
    assert system.caption(images[2]) == captions[2] and system.caption([images[2]]) == [captions[2]]
    questions = [f"what is {i}?" for i in range(5)]
    answers = system.answer(images, questions)
    assert system.answer(images[3], questions[3]) == answers[3]
    tokens = system.tokens(images)
    assert torch.equal(system.tokens(images[1]).words, tokens[1].words)
    drawn = system.draw(TEXTS, seed=4)
    assert isinstance(system.draw(TEXTS[0]), Image.Image) and same(system.draw(TEXTS[1], seed=4), drawn[1])
    rebuilt = system.reconstruct(images, seed=[5, 6, 7, 8, 9])
    assert same(system.reconstruct(images[4], seed=9), rebuilt[4]) and rebuilt[0].size == (16, 16)


def test_a_batch_is_a_matter_of_speed_alone(system, images, monkeypatch):
    captions, drawn, rebuilt = system.caption(images), system.draw(TEXTS, seed=2), system.reconstruct(images)
    monkeypatch.setattr(system, "batch", 2)
    assert system.caption(images) == captions
    for ours, theirs in ((system.draw(TEXTS, seed=2), drawn), (system.reconstruct(images), rebuilt)):
        assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))


def test_every_form_of_an_image_is_read_alike(system, images, tmp_path):
    images[0].save(tmp_path / "a.png")
    array = np.array(images[0])
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), array, torch.from_numpy(array).permute(2, 0, 1)]
    words = [found.words for found in system.tokens([images[0], *forms])]
    assert all(torch.equal(its, words[0]) for its in words)
    stack = torch.stack([forms[3]] * 2)
    assert len(system.caption(stack)) == 2
    with pytest.raises(ImageError, match=r"no/such\.png"):
        system.caption(["no/such.png"])


def test_tokens_say_where_they_come_from_and_keep_to_a_budget(system, images):
    for found in system.tokens(images):
        assert found.grid == 4 and len(found.words) == len(found.places) == len(found.codes)
        assert (found.places.diff() > 0).all() and 0 <= found.places.min() and found.places.max() < 16
    assert [len(found.words) for found in system.tokens(images, tokens=3)] == [3] * 5
    assert not same(system.reconstruct(images[0], tokens=2), system.reconstruct(images[0], tokens=16))


def test_a_budget_below_the_anchors_has_no_words_but_a_picture(system, images, tmp_path, monkeypatch, capsys):
    config = replace(
        system.tokenizer.config, selection=SelectionConfig(gain=GainConfig(rho=0.6)), places=PlacesConfig(every=2)
    )
    placed = LaVIT(replace(system.parts, tokenizer=Tokenizer(config).eval()))
    gaps, found = placed.tokenizer.places.gaps, placed.tokens(images, tokens=3)
    reach = [int(its.places.diff(prepend=torch.tensor([-1])).max()) <= gaps for its in found]
    assert [its.words is not None for its in found] == reach and False in reach
    assert all(len(its.codes) == len(its.places) == 3 for its in found)
    assert len(placed.reconstruct(images, tokens=3)) == 5
    assert not same(placed.reconstruct(images[0], tokens=1), placed.reconstruct(images[0], tokens=16))
    assert len(placed.tokens(images[0], tokens=8).words) == 8, "the anchors alone can be said"
    (painted,) = placed.paint([placed.tokens(images[0]).words], [7], [""])
    assert same(placed.reconstruct(images[0], seed=7), painted), "words say all that the tokens do"
    images[reach.index(False)].save(tmp_path / "a.png")
    monkeypatch.setattr(cli, "opened", lambda arguments: placed)
    assert cli.main(["tokens", str(tmp_path / "a.png"), "--tokens", "3"]) == 0
    assert "3 of 16 patches\n  no words: they say places" in capsys.readouterr().out


def test_seeds_decide_what_is_drawn(system):
    one, again, other = (np.asarray(system.draw("a cat", seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    both = system.draw(["a cat", "a cat"], seed=[1, 2])
    assert same(both[0], one) and same(both[1], other)
    with pytest.raises(ValueError, match="3 seeds for 1"):
        system.draw("a cat", seed=[1, 2, 3])
    numbers = np.random.default_rng(0).integers(0, 9, 2)
    assert same(system.draw("a cat", seed=numbers[0]), system.draw(["a cat"] * 2, seed=numbers)[0])


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5, "a", None, [1.0]])
def test_what_is_no_seed_is_said(system, seed):
    with pytest.raises(ValueError, match="seed is .*; give a whole number, from 0 to 9223372036854775807"):
        system.draw("a cat", seed=seed)


def test_numbers_may_be_those_of_numpy_and_torch(system, images):
    plain = system.reconstruct(images[0], guidance=2.0, steps=2, size=(16, 16))
    for guidance, steps in ((np.float32(2), np.int64(2)), (torch.tensor(2.0), torch.tensor(2))):
        assert same(system.reconstruct(images[0], guidance=guidance, steps=steps, size=np.array([16, 16])), plain)


def test_images_beside_a_list_of_texts_may_be_one_array_of_them(system, images):
    pixels = np.stack([np.asarray(image) for image in images[:2]])
    each = system.draw(TEXTS[:2], images=list(images[:2]), seed=1)
    assert all(same(a, b) for a, b in zip(system.draw(TEXTS[:2], images=pixels, seed=1), each, strict=True))


def test_images_of_one_prompt_may_be_a_tuple_and_batches_arrays(system, images):
    one = np.array(system.draw("a cat", images=images[:2], seed=1))
    assert np.array_equal(system.draw("a cat", images=tuple(images[:2]), seed=1), one)
    pixels = np.stack([np.array(image.resize((40, 40))) for image in images[:2]])
    assert system.caption(pixels) == system.caption(list(pixels))


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda s, i: s.caption(i, ImagePlan()), "plan is a ImagePlan; give a TextPlan"),
        (lambda s, i: s.caption(i, {"beams": 2}), "plan is a dict; give a TextPlan"),
        (lambda s, i: s.caption(i, TextPlan(max_tokens=2.5)), "max_tokens is 2.5; give a whole number"),
        (lambda s, i: s.draw("a cat", plan=TextPlan()), "plan is a TextPlan; give a ImagePlan"),
        (lambda s, i: s.answer(i, None), "a question is None"),
        (lambda s, i: s.answer([i], [3]), "a question is 3"),
        (lambda s, i: s.draw("a cat", seed="12"), "seed is 12"),
        (lambda s, i: s.draw(["a", "b"], seed={1, 2}), "seed is"),
        (lambda s, i: s.answer(i, "caf\udce9"), "is not valid Unicode"),
        (lambda s, i: s.caption(Image.new("RGB", (0, 5))), "there is nothing to see"),
        (lambda s, i: s.reconstruct(i, tokens=2.5), "tokens is 2.5; give a whole number, from 1 to 16"),
    ],
)
def test_what_cannot_be_asked_for_is_said(system, images, call, said):
    with pytest.raises(ValueError, match=said):
        call(system, images[0])


def test_a_broken_image_is_called_by_its_place_in_the_list(system, images, monkeypatch):
    monkeypatch.setattr(system, "batch", 2)
    for call in (system.caption, system.tokens):
        with pytest.raises(ImageError, match="image 'number 4' has floats outside"):
            call([*images[:4], np.full((4, 4, 3), 7.0)])


def test_lists_of_nothing_give_nothing(system):
    assert system.draw([]) == system.caption([]) == system.tokens([]) == system.reconstruct([]) == []
    assert system.answer([], []) == []


def test_samplers_and_sizes_are_those_of_the_decoder(system, images):
    by_default = system.reconstruct(images[0], steps=2)
    assert same(system.reconstruct(images[0], steps=2, sampler="ddim", size=(16, 16)), by_default)
    assert not same(system.reconstruct(images[0], steps=2, sampler="dpm"), by_default)
    for ask in (partial(system.draw, "a cat"), partial(system.reconstruct, images[0]), partial(system.write, "a cat")):
        with pytest.raises(ValueError, match="sampler 'euler' does not go with sample; choose ddim or dpm"):
            ask(sampler="euler")
        with pytest.raises(ValueError, match=r"no images of 16 × 32; decoder.model allows 16 × 16 \(height × width\)"):
            ask(size=(16, 32))
        with pytest.raises(TypeError, match="colour"):
            ask(colour="red")


def test_prompts_of_images_and_text(system, images):
    with_image = system.draw("a red hat", images=images[0])
    assert with_image.size == (16, 16)
    assert same(system.draw((images[0], "a red hat")), with_image)
    assert same(system.draw(["a cat", "a red hat"], images=[None, [images[0]]])[1], with_image)
    documents = [system.maker.prompt(list(p), "image") for p in system.opened([(*images[:2], "a red hat")])]
    modes = [span.modality for span in documents[0]]
    assert modes == ["image", "image", "text", "image"], "images come before the text, and [IMG] at the end"
    assert all(span.features is None for span in documents[0]), "what draws reads ids"
    assert system.draw(images=images[0]).size == (16, 16)


def test_text_with_pictures_in_it(system, images):
    asked = []
    careful = LaVIT(system.parts, lambda image, text: asked.append((image.size, text)) or "")
    begin = system.model.vocabulary.image_begin - system.model.vocabulary.text_size
    head = system.model.head.new.data
    before, plan = head.clone(), TextPlan(max_tokens=3, temperature=1.0, top_k=2)
    try:
        head[begin] = system.model.head.text.data.mean(0) * 0 + 5 * head[begin].sign()  # [IMG] is likely now
        stories = [careful.write(("a cat", images[0]), seed=seed, pictures=1, text_plan=plan) for seed in range(6)]
    finally:
        head.copy_(before)
    assert all(isinstance(piece, str | Image.Image) for story in stories for piece in story)
    drawn = [piece for story in stories for piece in story if isinstance(piece, Image.Image)]
    assert drawn and len(drawn) == len(asked) and all(text.startswith("a cat") for _, text in asked)
    with pytest.raises(ValueError, match="pictures is 0"):
        system.write("a cat", pictures=0)
    with pytest.raises(ValueError, match="prompt is empty"):
        system.write("")


def test_a_file_in_a_prompt_of_several_parts_is_opened(system, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images[0].save("a.png")
    assert same(system.draw(("a.png", "a red hat")), system.draw((images[0], "a red hat")))
    with pytest.raises(ImageError, match=r"gone\.png"):
        system.draw(("gone.png", "in a house"))
    with pytest.raises(ValueError, match="give it as images"):
        system.draw("a.png")


@pytest.mark.parametrize("nothing", ["", "  ", None, ()])
def test_an_empty_prompt_is_said(system, nothing):
    with pytest.raises(ValueError, match="prompt is empty"):
        system.draw(nothing)


def test_what_does_not_go_together_is_said(system, images):
    with pytest.raises(ValueError, match="2 images and 1 questions"):
        system.answer(images[:2], "what?")
    with pytest.raises(ValueError, match="question is empty"):
        system.answer(images[0], " ")
    with pytest.raises(ValueError, match="2 texts and 1 entries"):
        system.draw(["a cat", "a hat"], images=[images[0]])
    with pytest.raises(ValueError, match="give a list with one entry"):
        system.draw(["a cat", "a hat"], images=images[0])
    for wrong in (0, -1, 1.5, "many", True):
        with pytest.raises(ValueError, match=f"candidates is {wrong}; give a whole number, at least 1"):
            system.draw("a cat", candidates=wrong)
    with pytest.raises(ValueError, match=r"steps is 2\.5"):
        system.draw("a cat", steps=2.5)
    with pytest.raises(ValueError, match="batch is 0"):
        LaVIT(system.parts, batch=0)
    with pytest.raises(ValueError, match="prompt is a list; write goes on with one"):
        system.write(["a cat", "a hat"])
    for wrong in (16, (16.0, 16.0), "16", (16, None)):
        with pytest.raises(ValueError, match="size is .*; give two whole numbers, height and width"):
            system.draw("a cat", size=wrong)
    for wrong in ("2", True, (1, 2)):
        with pytest.raises(ValueError, match="guidance is .*; give a number"):
            system.reconstruct(images[0], guidance=wrong)
    with pytest.raises(ValueError, match="guidance is nan"):
        system.draw("a cat", guidance=float("nan"))
    with pytest.raises(ValueError, match="temperature is inf"):
        system.draw("a cat", plan=ImagePlan(temperature=float("inf")))
    with pytest.raises(ValueError, match="64"):
        system.draw("a cat " * 100)


def test_a_policy_sees_what_leaves_and_may_keep_it(system, images):
    asked = []

    def policy(image: Image.Image, text: str) -> str:
        asked.append((image.size, text))
        return "no hats" if "hat" in text else ""

    careful = LaVIT(system.parts, policy)
    careful.draw("a cat")
    careful.reconstruct(images[0])
    assert asked == [((16, 16), "a cat"), ((16, 16), "")]
    with pytest.raises(Refused, match="'a red hat' is kept back: no hats"):
        careful.draw("a red hat")


# ------------------------------------------------------------------------------------------------ to the evaluations


def test_pictures_have_their_own_number_of_tokens(system):
    seen = system.look(features(5))
    assert len(seen) == 5 and len({len(picture.codes) for picture in seen}) > 1
    for picture in seen:
        assert picture.features.shape == (len(picture.codes), 8) and 1 <= len(picture.codes) <= PATCHES
    alone = system.look(features(5)[2:3])[0]
    assert torch.equal(alone.codes, seen[2].codes)
    torch.testing.assert_close(alone.features, seen[2].features, atol=1e-5, rtol=0)


def test_caption_scores_are_log_likelihoods(system, monkeypatch):
    monkeypatch.setattr(system, "batch", 2)
    seen = system.look(features(3))
    seen[0] = Picture(seen[0].codes[:3], seen[0].features[:3])
    scores = system.caption_scores(seen, [*TEXTS, ""])
    assert scores.shape == (3, 4) and (scores < 0).all()
    for picture, row in zip(seen, scores, strict=True):
        documents = [system.maker.image_text(picture, text) for text in [*TEXTS, ""]]
        torch.testing.assert_close(row, log_likelihood(system.model, documents, ROW), atol=1e-4, rtol=0)


def test_features_and_pixels_of_words(system):
    drawn = system.draw_words(TEXTS, PLAN, [1, 2, 3])
    assert [2 <= len(codes) <= 6 for codes in drawn] == [True] * 3
    rebuilt = system.features(drawn)
    assert rebuilt.shape == (3, PATCHES, WIDTH)
    torch.testing.assert_close(system.features(drawn[1:2])[0], rebuilt[1], atol=1e-5, rtol=0)
    pixels = system.render(rebuilt, [1, 2, 3])
    assert pixels.shape == (3, 3, 16, 16) and 0 <= pixels.min() and pixels.max() <= 1


def test_the_best_drawing_is_the_one_captioned_best(system):
    from lavit.data.order import seed_for

    best = system.draw_best(TEXTS, PLAN, 3, [1, 2, 3])
    for text, seed, chosen in zip(TEXTS, [1, 2, 3], best, strict=True):
        candidates = system.draw_words([text] * 3, PLAN, [seed_for(seed, number) for number in range(3)])
        seen = system.look(system.features(candidates))
        scores = [system.caption_scores([picture], [text]).item() for picture in seen]
        assert torch.equal(chosen, candidates[scores.index(max(scores))])
    single = system.draw_best(TEXTS, PLAN, 1, [1, 2, 3])
    assert all(torch.equal(a, b) for a, b in zip(single, system.draw_words(TEXTS, PLAN, [1, 2, 3]), strict=True))


def test_words_drawn_by_lot_follow_their_seed(system):
    seen, plan = system.look(features(4)), TextPlan(max_tokens=4, temperature=1.0)
    captions = system.caption(seen, plan, seed=[1, 2, 3, 4])
    assert system.caption(seen[2], plan, seed=3) == captions[2]
    assert system.caption(seen, plan, seed=[5, 6, 7, 8]) != captions


def test_prompts_of_like_length_are_read_together_and_texts_keep_their_order(system):
    texts = ["a cat", "two dogs that sit " * 4, "a red hat", "two dogs that sit " * 5, "a"]
    prompts = [system.maker.prompt([text], "text") for text in texts]
    parts = alike_in_length(prompts, 2)
    assert sorted(number for part in parts for number in part) == list(range(5)) and max(map(len, parts)) <= 2
    assert {1, 3} in map(set, parts), "the long ones are not padded with"
    alone = [system.write_texts([prompt], TextPlan(max_tokens=4), [0])[0] for prompt in prompts]
    assert system.write_texts(prompts, TextPlan(max_tokens=4), [0] * 5) == alone and len(set(alone)) > 1
