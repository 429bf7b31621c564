"""Few-shot prompts, answers and pyramids in context, with tiny language models and one that copies what it read."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from eval.few_shot import Bench, answers, judged, understanding
from lavit.data.order import generator_for
from lavit.data.packing import document_length, pack
from lavit.generation.denoising import (
    DenoisingConfig,
    Problem,
    corrupt,
    problems_of,
    prompt,
    segments,
    write_pyramids,
)
from lavit.generation.episodes import (
    Cell,
    Episode,
    InContextConfig,
    SettingConfig,
    Shown,
    TaskConfig,
    ask,
    cells_of,
    check_in_context,
    draw_episodes,
    show,
)
from lavit.generation.in_context import (
    Answered,
    Contexts,
    answer_in_context,
    check_word_ids,
    directions,
    frozen_llm,
    text_logits,
    words_near,
)
from lavit.metrics.in_context import (
    accuracy_by_layer,
    majority_copy,
    mean_and_error,
    nearest_example,
    overlap,
    similarity,
)
from lavit.model import LLMConfig, ModelConfig, ScratchConfig, UnifiedLM, build_llm
from lavit.tokens import Span

LETTERS, WORDS = 128, 40  # ids of letters are their codes; the words of pictures come after them
TEXT = LETTERS + WORDS
IDS = torch.arange(WORDS).flip(0) + LETTERS  # not in the order of the vocabulary
CONFIG = ModelConfig(LLMConfig(scratch=ScratchConfig(hidden=16, layers=2, heads=2, mlp=32, max_position=600)))
NAMES = ["cat", "dog", "hat", "ufo", "cup", "key"]
PER_CLASS = 6


class Letters:
    """A text tokenizer whose pieces are letters."""

    bos_token_id, eos_token_id = 0, 1

    def __call__(self, text: str, add_special_tokens: bool) -> dict:
        return {"input_ids": [ord(letter) for letter in text]}

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(number) if number < LETTERS else "?" for number in ids)


CONTEXTS = Contexts(Letters())


@pytest.fixture(scope="module")
def model() -> UnifiedLM:
    made = frozen_llm(CONFIG, TEXT, seed=3)
    generator = torch.Generator().manual_seed(5)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 0.4, generator=generator)
    return made


class Copier(nn.Module):
    """Blocks that go on with the name of the example which shares most words with the one that is asked for."""

    def forward(self, inputs_embeds: Tensor, past_key_values, **_) -> SimpleNamespace:
        before = past_key_values.length
        read = past_key_values.update(inputs_embeds[:, None], inputs_embeds[:, None], 0)[0][:, 0].argmax(-1)
        out = torch.zeros_like(inputs_embeds)
        for row, ids in enumerate(read.tolist()):
            for place in range(inputs_embeds.shape[1]):
                out[row, place, self.follows(ids[: before + place + 1])] = 20.0
        return SimpleNamespace(last_hidden_state=out)

    def follows(self, ids: list[int]) -> int:
        text = "".join(chr(number) if number < LETTERS else chr(1000 + number) for number in ids)
        *examples, asked = text.split("###\n")
        words, said, written = asked.removeprefix("Input:").partition("\nOutput:")
        if not said:
            return ord("?")
        scores = {}
        for example in examples:
            its, _, name = example.removeprefix("Input:").partition("\nOutput:")
            if name.startswith(written) and len(name) > len(written):
                scores.setdefault(len(set(its) & set(words)), name)
        return ord(scores[max(scores)][len(written)]) if scores else ord("?")


@pytest.fixture(scope="module")
def copier() -> UnifiedLM:
    made = frozen_llm(CONFIG, TEXT)
    made.blocks, made.embedding = Copier(), nn.Embedding(TEXT, TEXT).requires_grad_(False)
    made.blocks.config = SimpleNamespace(max_position_embeddings=10**4)
    made.embedding.text = made.embedding
    for rows in (made.embedding.weight, made.head.text):
        rows.data = torch.eye(TEXT)
    made.embed = lambda ids, batch: made.embedding(ids)
    return made


def telling(number: int) -> Tensor:
    """A pyramid of five words, of which those of one class share two at least, and classes none."""
    lot = generator_for(1, number)
    kind = number // PER_CLASS
    return 6 * kind + torch.randperm(6, generator=lot)[:5] % 6


CLASSES = {name: [[PER_CLASS * i + k] for k in range(PER_CLASS)] for i, name in enumerate(NAMES)}


def bench(model: UnifiedLM, codes=telling) -> Bench:
    table = directions(torch.randn(TEXT, 8, generator=generator_for(2)))
    return Bench(model, CONTEXTS, IDS, codes, InContextConfig(answer=6), 0, table)


def cell(ways: int, arm: str = "words", shots: int = 1, repeats: int = 0) -> Cell:
    return Cell("label", ways, shots, repeats, True, 5, arm)


def accuracy(model: UnifiedLM, cell: Cell, episodes: int = 12, name: str = "accuracy", codes=telling) -> float:
    found = answers(bench(model, codes), cell, CLASSES, range(episodes))
    return sum(result[name] for result in found) / episodes


# -------------------------------------------------------------------------------------------------- episodes, prompts


@pytest.mark.parametrize("ways, shots", [(2, 1), (2, 5), (5, 3), (6, 1)])
def test_episodes_are_disjoint_balanced_and_of_their_number_alone(ways, shots):
    episodes = draw_episodes(CLASSES, ways, shots, range(20), seed=4)
    for episode in episodes:
        shown = [picture for _, picture in episode.examples]
        assert len(set(shown)) == ways * shots and not set(shown) & set(episode.queries)
        assert len(set(episode.names)) == ways == len(episode.queries)
        labels = [label for label, _ in episode.examples]
        assert all(labels.count(number) == shots for number in range(ways))
        for label, picture in [*episode.examples, *enumerate(episode.queries)]:
            assert [picture] in CLASSES[episode.names[label]]
    assert draw_episodes(CLASSES, ways, shots, range(7, 9), seed=4) == episodes[7:9]
    assert draw_episodes(CLASSES, ways, shots, range(20), seed=5) != episodes
    assert len({tuple(episode.names) for episode in episodes}) > 1


def test_of_a_unit_an_episode_takes_one_picture():
    classes = {"a": [[1, 2, 3], [4, 5]], "b": [[6], [7]]}
    taken = set()
    for episode in draw_episodes(classes, 2, 1, range(40), seed=0):
        place = episode.names.index("a")
        example = next(picture for label, picture in episode.examples if label == place)
        taken |= {example, episode.queries[place]}
        assert (example in (1, 2, 3)) != (episode.queries[place] in (1, 2, 3))
    assert taken == {1, 2, 3, 4, 5}


def test_too_few_classes_are_named_with_their_number():
    with pytest.raises(ValueError, match="7 ways of 1 shots need 7 classes with 2 different pictures and there are 6"):
        draw_episodes(CLASSES, 7, 1, range(1), 0)
    with pytest.raises(ValueError, match="need 2 classes with 7 different pictures and there are 0"):
        draw_episodes(CLASSES, 2, 6, range(1), 0)


def test_a_prompt_holds_exactly_the_ids_given():
    shown = Shown(
        torch.tensor([[3, 4], [9, 9]]), torch.tensor([[7, 8], [1, 2]]), torch.tensor([1, 0]), torch.tensor([[5, 6]])
    )
    asked = ask(CONTEXTS, ["cat", "dog"], shown, IDS, SettingConfig(repeats=1))

    def letters(text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def example(words: list[int], name: str) -> list[int]:
        return [*letters("###\nInput:"), *IDS[words].tolist(), *letters(f"\nOutput: {name}\n")]

    induction = "For each of the following input output pairs, output is one of: cat, dog.\n"
    both = [*example([3, 4], "dog"), *example([9, 9], "cat")]
    assert torch.cat([span.ids for span in asked.context]).tolist() == [0, *letters(induction), *both, *both]
    last = [*letters("###\nInput:"), *IDS[[1, 2]].tolist(), *letters("\nOutput:")]
    assert torch.cat([span.ids for span in asked.questions[1]]).tolist() == last
    assert [answer.tolist() for answer in asked.answers] == [letters(" cat\n"), letters(" dog\n")]
    assert [span.ids.tolist() for span in asked.context if span.modality == "image"][0] == IDS[[3, 4]].tolist()
    assert IDS[[5, 6]].tolist() == [span.ids for span in asked.free[0] if span.modality == "image"][0].tolist()
    plain = ask(CONTEXTS, ["cat", "dog"], shown, IDS, SettingConfig(induction=False))
    assert torch.cat([span.ids for span in plain.context]).tolist() == [0, *both]


# ----------------------------------------------------------------------------------------------------------- answers


def asked_of(count: int, ways: int = 3) -> list:
    episodes = draw_episodes(CLASSES, ways, 1, range(count), seed=1)
    codes = [torch.stack([telling(n) for n in [*(p for _, p in e.examples), *e.queries]]) for e in episodes]
    shown = [show(e, c, "words", WORDS, None, generator_for(0)) for e, c in zip(episodes, codes, strict=True)]
    names = [[name * (1 + i % 2) for i, name in enumerate(episode.names)] for episode in episodes]  # of two lengths
    setting = SettingConfig(induction=False)
    return [
        ask(CONTEXTS, n, s, IDS, SettingConfig() if i else setting)
        for i, (n, s) in enumerate(zip(names, shown, strict=True))
    ]


def test_likelihoods_and_texts_are_those_of_whole_forward_passes(model):
    """Against transformers' own model, which knows no rows but the text's."""
    plain: LlamaForCausalLM = build_llm(CONFIG, TEXT, seed=3)
    plain.model.load_state_dict(model.blocks.state_dict(), strict=False)
    plain.model.embed_tokens.weight.data = model.embedding.text.weight.data
    plain.lm_head.weight.data = model.head.text.data
    asked = asked_of(2)
    assert document_length(asked[0].context) != document_length(asked[1].context)
    for one, found in zip(asked, answer_in_context(model, asked, CONTEXTS.stop, 4), strict=True):
        prior = torch.zeros(len(one.answers))
        for row, question in enumerate([*one.questions, *one.free]):
            start = torch.cat([span.ids for span in [*one.context, *question]])
            for slot, answer in enumerate(one.answers):
                with torch.no_grad():
                    logits = plain(torch.cat([start, answer])[None]).logits[0]
                logs = logits[len(start) - 1 : -1].log_softmax(-1).gather(1, answer[:, None])
                if row >= len(one.questions):
                    prior[slot] += logs.mean() / len(one.free)
                    continue
                torch.testing.assert_close(found.likelihood[row, slot], logs.mean(), rtol=1e-4, atol=1e-4)
            if row >= len(one.questions):
                continue
            text: list[int] = []
            while len(text) < 4 and CONTEXTS.stop not in text:
                with torch.no_grad():
                    text.append(
                        int(
                            plain(torch.cat([start, torch.tensor(text, dtype=torch.int64)])[None])
                            .logits[0, -1]
                            .argmax()
                        )
                    )
            assert found.written[row].tolist() == text
        torch.testing.assert_close(found.prior, prior, rtol=1e-4, atol=1e-4)


def test_what_stands_beside_an_episode_changes_nothing(model):
    together = answer_in_context(model, asked_of(3), CONTEXTS.stop, 3)
    for one, found in zip(asked_of(3), together, strict=True):
        alone = answer_in_context(model, [one], CONTEXTS.stop, 3)[0]
        torch.testing.assert_close(alone.likelihood, found.likelihood, rtol=1e-4, atol=1e-4)


def test_a_model_that_copies_is_always_right_and_a_constant_one_by_chance(copier):
    assert accuracy(copier, cell(2)) == accuracy(copier, cell(5)) == 1
    assert accuracy(copier, cell(5), name="exact") == 1
    constant = frozen_llm(CONFIG, TEXT)
    constant.head.text.zero_()
    assert accuracy(constant, cell(2)) == 1 / 2 and accuracy(constant, cell(5)) == pytest.approx(1 / 5)
    assert accuracy(constant, cell(2), name="exact") == 0


def test_calibration_takes_away_what_the_context_alone_makes_likely():
    """All queries are answered with the first name, and the right one gains most over nothing."""
    likelihood, prior = torch.tensor([[-1.0, -3.0], [-1.2, -2.0]]), torch.tensor([-1.1, -2.5])
    episode = Episode(["cat", "dog"], [], [1, 2])
    found = judged(CONTEXTS, episode, Answered(likelihood, prior, [CONTEXTS.answer("Cat"), CONTEXTS.answer("hat")]))
    assert found == {"accuracy": 0.5, "calibrated": 1.0, "exact": 0.5, "chosen": ["cat"] * 2, "written": ["Cat", "hat"]}


def test_shuffled_and_random_words_take_the_advantage_away(copier):
    assert accuracy(copier, cell(2, "shuffled"), 60) == pytest.approx(1 / 2, abs=0.17)
    assert accuracy(copier, cell(5, "shuffled"), 30) == pytest.approx(1 / 5, abs=0.15)
    assert accuracy(copier, cell(5, "random"), 20) == pytest.approx(1 / 5, abs=0.15)


def test_words_near_the_names_help_where_those_of_the_pictures_do_not(copier):
    def nothing(number: int) -> Tensor:
        return torch.randint(WORDS, (5,), generator=generator_for(9, number))

    near = torch.arange(24).reshape(2, 12)
    episode = draw_episodes(CLASSES, 2, 1, range(1), 0)[0]
    shown = show(episode, torch.zeros(4, 5, dtype=torch.int64), "named", WORDS, near, generator_for(3))
    for words, label in zip([*shown.examples, *shown.queries], [*shown.labels.tolist(), 0, 1], strict=True):
        assert set(words.tolist()) < set(near[label].tolist()) and len(set(words.tolist())) == 5
    assert accuracy(copier, cell(5, "words"), 20, codes=nothing) < 0.6


def test_near_words_are_those_of_the_name():
    table = torch.randn(TEXT, 16, generator=generator_for(3))
    table[IDS[7]] = table[5] + 0.1
    assert words_near(directions(table), IDS, torch.tensor([5]), 3)[0] == 7
    assert len(words_near(directions(table), IDS, torch.tensor([5]), 99)) == WORDS


def test_a_prompt_beyond_what_the_model_reads_is_refused(model):
    episode = draw_episodes(CLASSES, 6, 5, range(1), 0)[0]
    codes = torch.zeros(36, 5, dtype=torch.int64)
    shown = show(episode, codes, "words", WORDS, None, generator_for(0))
    asked = ask(CONTEXTS, episode.names, shown, IDS, SettingConfig())
    with pytest.raises(
        ValueError, match=r"tokens and the language model reads 600; lower ways, shots, repeats or words"
    ):
        answer_in_context(model, [asked], CONTEXTS.stop, 4)


def test_likelihoods_are_of_the_frozen_model_alone(model):
    """Neither [IMG] nor [/IMG], which it never knew, has a share."""
    hidden = torch.randn(3, 16)
    assert text_logits(model, hidden).shape == (3, TEXT)
    assert not any(parameter.requires_grad for parameter in model.parameters()) and not model.training
    half = frozen_llm(CONFIG, TEXT, precision="bf16")
    assert half.head.text.dtype == torch.float32 and half.embedding.text.weight.dtype == torch.bfloat16
    assert answer_in_context(half, asked_of(2), CONTEXTS.stop, 2)[0].likelihood.dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------- baselines


def test_overlap_and_nearest_examples_by_hand():
    queries, examples = torch.tensor([[1, 2, 3], [4, 4, 5]]), torch.tensor([[3, 2, 9], [4, 7, 7], [8, 8, 8]])
    scores = overlap(queries, examples)
    assert scores.tolist() == [[2, 0, 0], [0, 1, 0]]
    labels = torch.tensor([0, 1, 1])
    assert nearest_example(scores, labels, torch.tensor([0, 1])).tolist() == [1, 1]
    assert nearest_example(scores, labels, torch.tensor([1, 0])).tolist() == [0, 0]
    assert nearest_example(torch.zeros(1, 3), labels, torch.tensor([1])).tolist() == [pytest.approx(2 / 3)]
    table = torch.eye(10)
    near = similarity(queries, examples, table)
    assert near.argmax(1).tolist() == [0, 1] and near[0, 0] == pytest.approx(2 / 3)


def test_whoever_ignores_the_query_is_right_by_chance(copier):
    results = answers(bench(copier), cell(5, shots=2), CLASSES, range(3))
    assert all(result["last"] == pytest.approx(1 / 5) for result in results)
    assert all(result["overlap"] == 1 for result in results)


def test_means_and_errors():
    assert mean_and_error([0.0, 1.0, 1.0, 0.0]) == (0.5, pytest.approx(0.288675, abs=1e-5))
    assert mean_and_error([0.3]) == (pytest.approx(0.3), 0.0)
    with pytest.raises(ValueError, match="no values"):
        mean_and_error([])


def test_figures_of_understanding(copier):
    setting = [SettingConfig(), SettingConfig(shots=2)]
    config = InContextConfig(category=None, label=TaskConfig([2], setting), words=[5, 1], episodes=4)
    cells = cells_of(config)
    assert [(c.shots, c.words, c.arm) for c in cells] == [
        (1, 5, "words"), (1, 5, "shuffled"), (1, 5, "random"), (1, 5, "named"), (1, 1, "words"), (2, 5, "words"),
    ]  # fmt: skip
    made = {c: answers(bench(copier), c, CLASSES, range(4)) for c in cells if c.arm != "named"}
    made |= {c: made[cells[0]] for c in cells if c.arm == "named"}
    figures = understanding(config, made)
    assert figures["label_2way"] == figures["label_2way_mean"] == figures["label_2way_named"] == 1
    assert figures["label_2way_chance"] == 0.5 and figures["label_2way_accuracy_error"] == 0
    assert 0 <= figures["label_2way_shuffled"] <= 1 and "category_2way" not in figures
    assert figures["n"] == 3 * 4 * 2 and figures["chance"] == 0.5 and len(figures["cells"]) == 6


# --------------------------------------------------------------------------------------------------------- generation

COUNTS = [1, 4, 9]
PLAN = DenoisingConfig(pictures=3, contexts=4, upper=2, segment=4)


def truth(count: int = 6) -> Tensor:
    return torch.randint(WORDS, (count, 14), generator=generator_for(8))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_corruption_changes_exactly_its_share(share):
    codes = torch.arange(30)
    rows = torch.stack([corrupt(codes, share, WORDS, generator_for(n)) for n in range(40)])
    assert ((rows != codes).sum(1) == round(30 * share)).all() and 0 <= rows.min() and rows.max() < WORDS
    if share == 0.5:
        assert (rows != codes).any(0).all(), "some places are never changed"


def test_majority_copy_by_hand():
    contexts = torch.tensor([[1, 5, 7, 3], [2, 5, 8, 3], [1, 6, 9, 4]])
    assert majority_copy(contexts).tolist() == [1, 5, 9, 3]  # of three different ones the last
    assert majority_copy(torch.tensor([[1, 2], [2, 2], [2, 1], [1, 1]])).tolist() == [1, 1]


def test_problems_are_what_they_say():
    codes = truth()
    for number, problem in enumerate(problems_of("denoise", codes, WORDS, PLAN, 0)):
        assert problem.given is None and problem.query is None and torch.equal(problem.truth, codes[number])
        assert (problem.shown != problem.truth).sum(1).tolist() == [7, 6, 4, 3]  # of 14, from half to a fifth
    for number, problem in enumerate(problems_of("reconstruct", codes, WORDS, PLAN, 0)):
        assert (problem.query != problem.truth).sum() == 3
        assert (problem.given != problem.shown).sum(1).tolist() == [7, 6, 4, 3]
        rows = [codes.tolist().index(row) for row in problem.shown.tolist()]
        assert len(set(rows)) == 4 and number not in rows
    again = problems_of("denoise", codes, WORDS, PLAN, 0)[2]
    assert torch.equal(again.shown, problems_of("denoise", codes[:3], WORDS, PLAN, 0)[2].shown)
    with pytest.raises(ValueError, match="contexts is 4 and there are 4 pictures; lower it"):
        problems_of("reconstruct", codes[:4], WORDS, PLAN, 0)
    with pytest.raises(ValueError, match="'invent' is no way to generate in context; choose denoise, reconstruct"):
        problems_of("invent", codes, WORDS, PLAN, 0)


def test_pieces_of_a_pyramid():
    assert segments([1, 4, 9], 2, 4) == [(5, 9), (9, 13), (13, 14)]
    assert segments([1, 4, 16, 16], 3, 16) == [(21, 37)] and segments([1, 4], 2, 16) == []
    problem = problems_of("reconstruct", truth(), WORDS, PLAN, 0)[0]

    def read(piece: tuple[int, int]) -> list[list[int]]:
        spans = prompt(CONTEXTS, problem, "reconstruct", torch.arange(5), piece, IDS)
        return [span.ids.tolist() for span in spans if span.modality == "image"]

    upper = read((0, 5))
    assert upper[0] == IDS[problem.given[0, :5]].tolist() and upper[-1] == IDS[problem.query[:5]].tolist()
    assert upper[1] == [*IDS[problem.shown[0, :5]].tolist(), CONTEXTS.stop] and len(upper) == 2 * 4 + 1
    deeper = read((5, 9))
    assert deeper[:2] == [IDS[problem.shown[0, :5]].tolist(), IDS[problem.given[0, 5:9]].tolist()]
    assert deeper[-2:] == [IDS[:5].tolist(), IDS[problem.query[5:9]].tolist()]


@pytest.mark.parametrize("variant", ["denoise", "reconstruct"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_pyramids_are_written_of_listed_words_and_as_by_hand(model, variant, temperature):
    """A list of few words, which an unconstrained model hardly ever writes."""
    ids, codes = IDS[:7], truth() % 7
    config = dataclasses.replace(PLAN, temperature=temperature)
    problems = problems_of(variant, codes, 7, config, 0)[:3]
    made = write_pyramids(model, CONTEXTS, problems, variant, ids, COUNTS, config, [4, 5, 6])
    assert made.shape == (3, 14) and 0 <= made.min() and made.max() < 7
    again = write_pyramids(model, CONTEXTS, problems[1:2], variant, ids, COUNTS, config, [5])
    assert torch.equal(again[0], made[1]), "what stands beside a picture changed it"
    if temperature:
        other = write_pyramids(model, CONTEXTS, problems[1:2], variant, ids, COUNTS, config, [9])
        assert not torch.equal(other, again)
        return
    for start, end in [(0, 5), (5, 9), (13, 14)]:
        document = prompt(CONTEXTS, problems[0], variant, made[0, :5], (start, end), ids)
        for place in range(start, end):
            logits = text_logits(model, model.hidden(pack([document]))[0, -1])
            assert int(logits[ids].argmax()) == made[0, place]
            document = [*document, Span("image", ids[made[0, place : place + 1]])]


def test_shares_of_right_words_by_layer():
    problem = Problem(None, truth()[:1].expand(3, -1), None, truth()[0])
    assert torch.equal(majority_copy(problem.shown), problem.truth)
    assert accuracy_by_layer(problem.truth[None], problem.truth[None], COUNTS) == [1, 1, 1]
    wrong = problem.truth.clone()
    wrong[1:3] = (wrong[1:3] + 1) % WORDS
    assert accuracy_by_layer(wrong[None], problem.truth[None], COUNTS) == [1, 0.5, 1]
    with pytest.raises(ValueError, match="layers of"):
        accuracy_by_layer(wrong[None], problem.truth[None], [1, 4])


def test_layers_that_a_pyramid_has_not_and_prompts_that_are_too_long(model):
    assert DenoisingConfig(depth=2).layers(COUNTS) == [1, 4] and PLAN.layers(COUNTS) == COUNTS
    with pytest.raises(ValueError, match="asks for 4 layers and the pyramid has 3; lower depth or upper"):
        DenoisingConfig(depth=4).layers(COUNTS)
    config = dataclasses.replace(PLAN, contexts=30)
    problems = problems_of("denoise", truth(), WORDS, config, 0)[:1]
    with pytest.raises(ValueError, match=r"more than the 600.*lower in_context.denoising.contexts, upper or segment"):
        write_pyramids(model, CONTEXTS, problems, "denoise", IDS, COUNTS, config, [0])


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "ids, words",
    [
        (torch.zeros(0, dtype=torch.int64), "holds no words of the language model's vocabulary"),
        (torch.tensor([3, TEXT]), f"ids from 3 to {TEXT} and the language model's text ids end at {TEXT - 1}"),
        (torch.tensor([-1, 3]), "ids from -1 to 3"),
        (torch.tensor([3, 4, 3]), "names 1 ids twice"),
    ],
)
def test_word_lists_that_the_model_cannot_read(ids, words):
    with pytest.raises(ValueError, match=words):
        check_word_ids(ids, TEXT)
    check_word_ids(IDS, TEXT)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"category": TaskConfig([1])}, r"in_context.category: ways \[1\] must be at least 2"),
        ({"label": TaskConfig(settings=[SettingConfig(shots=0)])}, "in_context.label.settings: shots 0"),
        ({"category": None}, "category and label are both null"),
        ({"words": [0]}, r"words is \[0\]"),
        ({"controls": ["reversed"]}, "controls: 'reversed' is unknown; choose shuffled, random, named"),
        ({"episodes": 0}, "episodes is 0"),
        ({"precision": "fp8"}, "precision 'fp8' is unknown; choose fp32, bf16"),
        ({"denoising": DenoisingConfig(first=0.1, last=0.4)}, "denoising: first 0.1 and last 0.4"),
        ({"denoising": DenoisingConfig(contexts=0)}, "denoising.contexts is 0"),
        ({"denoising": DenoisingConfig(temperature=-1.0)}, "denoising.temperature is -1.0"),
        ({"denoising": DenoisingConfig(upper=3, depth=2)}, "depth 2 leaves out some of the 3 upper layers"),
    ],
)
def test_settings_that_cannot_be(change, words):
    with pytest.raises(ValueError, match=words):
        check_in_context(dataclasses.replace(InContextConfig(), **change))
    check_in_context(InContextConfig())


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="in_context.precision 'half' is unknown"):
        frozen_llm(CONFIG, TEXT, precision="half")
    assert F.cosine_similarity(directions(torch.eye(3)), directions(torch.eye(3))).allclose(torch.ones(3))
