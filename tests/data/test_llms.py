from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lavit.data.assets import AssetError
from lavit.data.llms import llm_folder


def test_an_unknown_language_model():
    with pytest.raises(AssetError, match="no language model is called 'llama'; there are smollm2"):
        llm_folder("llama")


@pytest.mark.slow
@pytest.mark.network
def test_smollm2_knows_what_it_knew():
    folder = llm_folder("smollm2")
    assert folder == llm_folder("smollm2") and not list(folder.parent.glob(f".{folder.name}.*"))
    model, text = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == "llama" and model.config.tie_word_embeddings and model.dtype == torch.float32
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    ids = text("The capital of France is", return_tensors="pt")
    said = text.decode(model.generate(**ids, max_new_tokens=2, do_sample=False)[0])
    assert said.endswith("is Paris."), said
