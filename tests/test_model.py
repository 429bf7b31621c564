from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from lavit.layers.lora import LoRAConfig
from lavit.model import LLMConfig, ModelConfig, ScratchConfig, UnifiedLM, build_llm
from lavit.tokens import IGNORE, PackedBatch, Slots
from lavit.training.optimizer import OptimizerConfig, optimizer_for
from lavit.vocabulary import Vocabulary

TEXT, CODES, WIDTH = 11, 4, 3
VOCABULARY = Vocabulary(TEXT, CODES)
SCRATCH = ScratchConfig(hidden=16, layers=2, heads=2, mlp=32, max_position=32)


def unified(config: LLMConfig | None = None, seed: int = 0, vocabulary: Vocabulary = VOCABULARY) -> UnifiedLM:
    return UnifiedLM(ModelConfig(config or LLMConfig(scratch=SCRATCH)), vocabulary, WIDTH, seed).eval()


def batch_of(ids, labels, slots=None) -> PackedBatch:
    ids = torch.tensor(ids)
    position = torch.arange(ids.shape[1]).expand_as(ids)
    return PackedBatch(ids, torch.tensor(labels), position, torch.zeros_like(ids), slots or {})


def example(slots=None) -> PackedBatch:
    return batch_of([[0, 3, 11, 13, 12, 5]], [[3, 11, 13, IGNORE, 5, 1]], slots)


@pytest.fixture
def model():
    return unified()


def test_logits_and_loss_are_those_of_a_grown_llama(model):
    """Split embedding and head in a LLaMA equal one LLaMA with all rows."""
    grown = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY.size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, tie_word_embeddings=False,
    )).eval()  # fmt: skip
    grown.model.load_state_dict(model.blocks.state_dict(), strict=False)
    grown.model.embed_tokens.weight.data = torch.cat([model.embedding.text.weight, model.embedding.new.weight]).data
    grown.lm_head.weight.data = torch.cat([model.head.text, model.head.new]).data
    batch = example()
    with torch.no_grad():
        logits = grown(batch.ids).logits
        torch.testing.assert_close(model.head(model.hidden(batch)), logits, atol=1e-5, rtol=0)
        out = model(batch)
    expected = F.cross_entropy(logits[0], batch.labels[0], ignore_index=IGNORE)
    assert out.loss.shape == () and out.loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_parts_are_the_means_of_text_and_of_image_tokens(model):
    batch = example()
    with torch.no_grad():
        nll, out = model.token_nll(batch), model(batch)
    assert nll.shape == (6,) and nll[3] == 0
    assert out.text.item() == pytest.approx(nll[[0, 4, 5]].mean().item(), abs=1e-6)
    assert out.image.item() == pytest.approx(nll[[1, 2]].mean().item(), abs=1e-6)
    assert out.loss.item() == pytest.approx(nll[[0, 1, 2, 4, 5]].mean().item(), abs=1e-6)


def test_nothing_to_learn_is_a_loss_of_zero_with_gradients(model):
    out = model(batch_of([[0, 3]], [[IGNORE, IGNORE]]))
    out.loss.backward()
    assert out.loss.item() == out.text.item() == out.image.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_fed_features_replace_the_rows_of_their_ids(model):
    features = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))
    slots = {"image": Slots(torch.tensor([3, 4]), features)}
    x = model.embed(example().ids, example(slots))
    plain = model.embedding(example().ids)
    torch.testing.assert_close(x[0, 3:5], model.port.proj(features))
    assert torch.equal(x[0, [0, 1, 2, 5]], plain[0, [0, 1, 2, 5]])
    # The ids below are placeholders: other ones give the same.
    other = example(slots)._replace(ids=torch.tensor([[0, 3, 11, 14, 16, 5]]))
    assert torch.equal(model.hidden(other), model.hidden(example(slots)))


def test_places_and_vectors_must_agree(model):
    with pytest.raises(ValueError, match="2 places are fed with 1 feature vectors"):
        model(example({"image": Slots(torch.tensor([3, 4]), torch.zeros(1, WIDTH))}))


def test_every_parameter_has_a_gradient_whatever_the_batch_holds(model):
    """Ranks of one step may hold different kinds of documents, and reduce the same gradients all the same."""
    for slots in (None, {"image": Slots(torch.tensor([3]), torch.ones(1, WIDTH))}):
        model.zero_grad(set_to_none=True)
        model(example(slots)).loss.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
        assert bool(model.port.proj.weight.grad.abs().sum() > 0) == bool(slots)


def test_an_attention_that_is_not_there(model):
    with pytest.raises(ValueError, match="model.attention 'flash' is unknown; choose one of sdpa, xformers"):
        UnifiedLM(ModelConfig(LLMConfig(scratch=SCRATCH), attention="flash"), VOCABULARY, WIDTH)
    fast = UnifiedLM(ModelConfig(LLMConfig(scratch=SCRATCH), attention="xformers"), VOCABULARY, WIDTH)
    with pytest.raises(ValueError, match="attention 'xformers' needs a GPU"):
        fast(example())


def test_seed_alone_decides_the_weights():
    torch.manual_seed(1)
    first = unified(seed=3).state_dict()
    torch.manual_seed(2)
    expected = torch.rand(1)
    torch.manual_seed(2)
    second = unified(seed=3).state_dict()
    assert torch.equal(torch.rand(1), expected), "the global generator is left alone"
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = unified(seed=4).state_dict()
    assert not torch.equal(first["embedding.text.weight"], other["embedding.text.weight"])
    assert not torch.equal(first["embedding.new.weight"], other["embedding.new.weight"])


@pytest.mark.parametrize("tied", [False, True])
def test_language_model_from_a_folder(tmp_path, tied):
    shape = LlamaConfig(
        vocab_size=14, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(0)
    stored = LlamaForCausalLM(shape)
    stored.save_pretrained(tmp_path)
    made = unified(LLMConfig(folder=str(tmp_path)))
    assert torch.equal(made.embedding.text.weight, stored.model.embed_tokens.weight)
    # The folder has more rows than the text tokenizer: visual words come after all of them.
    assert made.vocabulary == Vocabulary(14, CODES)
    assert (made.head.text is made.embedding.text.weight) == tied
    batch = batch_of([[0, 3, 14, 16]], [[3, 14, 16, 19]])
    assert made(batch).loss.isfinite()
    with pytest.raises(ValueError, match="has 14 rows for a text tokenizer of 15"):
        unified(LLMConfig(folder=str(tmp_path)), vocabulary=Vocabulary(15, CODES))


def test_missing_folder():
    with pytest.raises(ValueError, match="model.llm.folder /no/such does not exist"):
        build_llm(ModelConfig(LLMConfig(folder="/no/such")), TEXT, 0)


@pytest.mark.parametrize("vocabulary", [VOCABULARY, Vocabulary(TEXT, 30, gaps=5)])
def test_operations_are_those_that_pytorch_counts(vocabulary):
    """Of rows without padding, with every token learned and so short that attention hardly counts."""
    scratch = ScratchConfig(hidden=64, layers=2, heads=2, mlp=176, max_position=32)
    model = unified(LLMConfig(scratch=scratch), vocabulary=vocabulary)
    ids = [[0, 3, 5, 7, 5, 3, 9, 2]] * 4
    batch = batch_of(ids, ids)
    with FlopCounterMode(display=False) as counter:
        model(batch).loss.backward()
    assert model.flops(batch) == pytest.approx(counter.get_total_flops(), rel=0.04)
    padded = batch._replace(document=torch.tensor([[0] * 4 + [-1] * 4] * 4), labels=batch.labels.clone())
    padded.labels[:, 4:] = IGNORE
    assert model.flops(padded) == pytest.approx(model.flops(batch) / 2, rel=0.02), "padding is no work"
    for parameter in model.blocks.parameters():
        parameter.requires_grad_(False)
    assert model.flops(batch) < 0.75 * counter.get_total_flops(), "frozen weights have no gradient"


def test_checkpointed_activations_give_the_same_gradients_and_keep_less():
    def run(checkpointed: bool) -> tuple[dict[str, torch.Tensor], int]:
        model = UnifiedLM(
            ModelConfig(LLMConfig(scratch=SCRATCH), checkpoint_activations=checkpointed), VOCABULARY, WIDTH
        )
        kept = 0

        def keep(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model.train()(example()).loss
        loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, kept

    (plain, all_kept), (again, less_kept) = run(False), run(True)
    assert plain.keys() == again.keys() and len(plain) > 10
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-6, msg=name)
    assert less_kept < 0.6 * all_kept


def test_lora_trains_adapters_rows_and_port_and_leaves_the_language_model():
    model = UnifiedLM(ModelConfig(LLMConfig(scratch=SCRATCH), lora=LoRAConfig(rank=2)), VOCABULARY, WIDTH)
    torch.testing.assert_close(model(example()).loss, unified()(example()).loss)
    optimizer = optimizer_for(
        model, OptimizerConfig(lr=0.1, weight_decay=0.0, frozen=["embedding.text.*", "head.text"])
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(example()).loss.backward()
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved and all("lora_B" in name or name.startswith(("embedding.new", "head.new")) for name in moved)
