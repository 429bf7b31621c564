from __future__ import annotations

import pytest
import torch

from lavit.data.documents import DocumentMaker
from lavit.data.mixture import Mixture, MixtureConfig
from lavit.data.packing import pack
from lavit.model import LLMConfig, ModelConfig, ScratchConfig, UnifiedLM
from lavit.tokens import Picture
from lavit.training.validation import Validation
from lavit.vocabulary import Vocabulary

VOCABULARY, WIDTH = Vocabulary(20, 6), 3


class Numbers:
    bos_token_id, eos_token_id = 0, 1

    def __call__(self, text: str, add_special_tokens: bool) -> dict:
        return {"input_ids": [int(word) for word in text.split()]}


class Codes:
    """Pictures of as many tokens as their number says, and one."""

    def codes(self, number: int) -> torch.Tensor:
        return torch.arange(number + 1) % 6

    def __len__(self) -> int:
        return 3

    def features(self, number: int) -> torch.Tensor:
        return torch.ones(number + 1, WIDTH) * number

    def picture(self, number: int) -> Picture:
        return Picture(self.codes(number), lambda: self.features(number))


def small_model() -> UnifiedLM:
    scratch = ScratchConfig(hidden=16, layers=1, heads=2, mlp=32, max_position=64)
    return UnifiedLM(ModelConfig(LLMConfig(scratch=scratch)), VOCABULARY, WIDTH, seed=0).eval()


@pytest.fixture
def mixture() -> Mixture:
    maker = DocumentMaker(VOCABULARY, Numbers(), 32)
    config = MixtureConfig(image_text=0.25, text_image=0.75, unconditional=0.5, drop_tokens=0.9, drop_text=0.9)
    captions = [("5 6 7", {}), ("8 9", {}), ("2 3 4 5", {})]
    return Mixture(maker, (Codes(), captions.__getitem__), None, config)


def test_documents_of_every_kind_are_whole_and_always_the_same(mixture):
    kinds = mixture.every_kind(3, seed=0)
    assert list(kinds) == ["image_text", "text_image"] and all(len(documents) == 3 for documents in kinds.values())
    lengths = sorted(sum(len(span.ids) for span in document) for document in kinds["text_image"])
    assert lengths == sorted(1 + text + 2 + image for text, image in ((3, 1), (2, 2), (4, 3)))
    again = mixture.every_kind(3, seed=0)
    for kind, documents in kinds.items():
        for one, other in zip(documents, again[kind], strict=True):
            assert all(torch.equal(a.ids, b.ids) for a, b in zip(one, other, strict=True))
    assert mixture.config.drop_tokens == 0.9, "training goes on as before"


class Plain:
    """One text."""

    def __len__(self) -> int:
        return 1

    def text(self, number: int) -> str:
        return "5 6 7 8"


def test_plain_texts_are_read_without_a_share_and_without_a_weight(mixture):
    model = small_model()
    with torch.no_grad():
        before = Validation(model, mixture, row=32, size=3, seed=0)()
        mixture.texts = Plain()
        after = Validation(model, mixture, row=32, size=3, seed=0)()
    assert after.pop("text_only_text") > 0 and after == before


def test_figures_are_means_over_the_tokens_of_a_kind(mixture):
    model = small_model()
    with torch.no_grad():
        found = Validation(model, mixture, row=32, size=3, seed=0)()
        means = {}
        for kind, documents in mixture.every_kind(3, seed=0).items():
            batch = pack(documents)
            nll, labels = model.token_nll(batch), batch.labels.flatten()
            means[f"{kind}_text"] = nll[(labels >= 0) & (labels < 20)].mean().item()
            means[kind] = nll[labels >= 0].mean().item()
            if kind == "text_image":
                means["text_image_image"] = nll[labels >= 20].mean().item()
    assert set(found) == {"loss", "image_text_text", "text_image_text", "text_image_image"}
    for name in found.keys() - {"loss"}:
        assert found[name] == pytest.approx(means[name], abs=1e-5)
    assert found["loss"] == pytest.approx(0.25 * means["image_text"] + 0.75 * means["text_image"], abs=1e-5)
