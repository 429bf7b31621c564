"""Drawing with guidance beside ``transformers.generate`` on the same weights: a bench of :mod:`eval.bench`."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from lavit.data.documents import Document
from lavit.generation import ImagePlan, draw_codes
from lavit.model import LLMConfig, ModelConfig, ScratchConfig, UnifiedLM
from lavit.tokens import Span
from lavit.vocabulary import Vocabulary

# The demo's language model (configs/lavit/demo.yaml) and one of eight times its weights.
SIZES = {
    "demo": ScratchConfig(hidden=256, layers=4, heads=4, mlp=688),
    "large": ScratchConfig(hidden=512, layers=8, heads=8, mlp=1376),
}
VOCABULARY = Vocabulary(3000, 1024)
PROMPT = 12
FREE = [Span("image", torch.tensor([VOCABULARY.image_begin]))]


def generate(
    sizes: dict[str, ScratchConfig] | None = None, batch: int = 8, tokens: int = 40, rounds: int = 5
) -> dict[str, float]:
    """Tokens a second of guided drawing, and of two other ways with the same weights, prompts and number of tokens.

    ``speedup`` is over ``generate(guidance_scale=…)`` as it comes, which reads the unconditional prompts in a pass of
    their own; ``by_hand`` is over transformers' cached forward with both branches in one batch. Both are the medians of
    the ratios of interleaved rounds. All sample, top-k 50, with text ids suppressed; no image ends before its last
    token.
    """
    figures: dict[str, float] = {}
    for name, size in (sizes or SIZES).items():
        model = UnifiedLM(ModelConfig(LLMConfig(scratch=size)), VOCABULARY, 8).eval()
        other, prompts = grown(model), made_prompts(batch)
        plan = ImagePlan(min_tokens=tokens, max_tokens=tokens, top_k=50, guidance=2.0)
        ways: dict[str, Callable[[], list[Tensor]]] = {
            "ours": lambda m=model, p=prompts, a=plan: draw_codes(m, p, FREE, a, list(range(batch))),
            "transformers": lambda m=other, p=prompts, a=plan: by_transformers(m, p, a),
            "batched": lambda m=other, p=prompts, a=plan: by_hand(m, p, a),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds + 1):
            for way, draw in ways.items():
                start = time.perf_counter()
                drawn = draw()
                if number:  # the first warms up
                    seconds[way].append(time.perf_counter() - start)
                if [len(row) for row in drawn] != [tokens] * batch:
                    raise AssertionError(f"{way} drew {[len(row) for row in drawn]} tokens instead of {tokens}")
        prefix = "" if name == "demo" else f"{name}_"
        for key, way in (("speedup", "transformers"), ("by_hand", "batched")):
            ratios = [theirs / ours for theirs, ours in zip(seconds[way], seconds["ours"], strict=True)]
            figures[prefix + key] = statistics.median(ratios)
        for way, values in seconds.items():
            figures[f"{prefix}{way}_tokens_a_second"] = batch * tokens / statistics.median(values)
    return figures | {"batch": batch, "tokens": tokens, "threads": torch.get_num_threads()}


def grown(model: UnifiedLM) -> LlamaForCausalLM:
    """The same language model as transformers has it: one embedding and one head, with the new rows after the text's.

    Raises:
        ValueError: words that say places, whose rows are no plain ones.
    """
    if model.vocabulary.gaps > 1:
        raise ValueError("words that say places have no rows of their own, so that no LlamaForCausalLM holds them")
    config = copy.deepcopy(model.blocks.config)
    config.vocab_size, config._attn_implementation, config.tie_word_embeddings = model.vocabulary.size, "sdpa", False
    out = LlamaForCausalLM(config).eval()
    weights = {f"model.{name}": value for name, value in model.blocks.state_dict().items()}
    weights["model.embed_tokens.weight"] = torch.cat([model.embedding.text.weight, model.embedding.new.weight])
    weights["lm_head.weight"] = torch.cat([model.head.text, model.head.new])
    out.load_state_dict(weights)
    return out


def made_prompts(count: int) -> list[Document]:
    """Texts of :data:`PROMPT` tokens, [IMG] included."""
    texts = torch.randint(VOCABULARY.text_size, (count, PROMPT - 1), generator=torch.Generator().manual_seed(0))
    return [[Span("text", text), *FREE] for text in texts]


class Only(LogitsProcessor):
    """Suppresses all ids but those of ``allowed`` (vocabulary,) bool."""

    def __init__(self, allowed: Tensor):
        self.barred = ~allowed

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill(self.barred, -torch.inf)


def flat(prompts: list[Document]) -> Tensor:
    return torch.stack([torch.cat([span.ids for span in prompt]) for prompt in prompts])


def by_transformers(model: LlamaForCausalLM, prompts: list[Document], plan: ImagePlan) -> list[Tensor]:
    """As ``generate`` comes."""
    ids = flat(prompts)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        negative_prompt_ids=ids[:, -1:],
        guidance_scale=plan.guidance,
        logits_processor=LogitsProcessorList([Only(VOCABULARY.image_mask(may_end=False))]),
        do_sample=True,
        top_k=plan.top_k,
        max_new_tokens=plan.max_tokens,
        pad_token_id=VOCABULARY.image_end,
        eos_token_id=VOCABULARY.image_end,
    )
    return list(out[:, ids.shape[1] :])


@torch.no_grad()
def by_hand(model: LlamaForCausalLM, prompts: list[Document], plan: ImagePlan) -> list[Tensor]:
    """The loop one writes oneself: both branches left-padded in one batch, transformers' own cache."""
    ids = flat(prompts)
    ids = torch.cat([ids, torch.zeros_like(ids)])
    ids[len(prompts) :, -1] = VOCABULARY.image_begin
    mask = torch.ones_like(ids)
    mask[len(prompts) :, :-1] = 0
    cache, barred = DynamicCache(config=model.config), ~VOCABULARY.image_mask(may_end=False)
    drawn: list[Tensor] = []
    for _ in range(plan.max_tokens):
        position = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = model(ids, attention_mask=mask, position_ids=position, past_key_values=cache, logits_to_keep=1)
        conditional, free = out.logits[:, -1].float().log_softmax(-1).chunk(2)
        scores = (free + plan.guidance * (conditional - free)).masked_fill(barred, -torch.inf)
        least = scores.topk(plan.top_k).values[:, -1:]
        chosen = torch.multinomial(scores.masked_fill(scores < least, -torch.inf).softmax(-1), 1)
        drawn.append(chosen)
        ids = torch.cat([chosen, chosen])
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    return list(torch.cat(drawn, dim=1))
