from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from eval import bench, generate, packing
from lavit.data.packing import pack
from lavit.generation import ImagePlan, draw_codes
from lavit.model import LLMConfig, ModelConfig, ScratchConfig, UnifiedLM
from lavit.tokenizers.merger import MergerConfig
from lavit.vocabulary import Vocabulary


def test_the_merger_benchmark_measures_both_forms():
    small = MergerConfig(width=64, blocks=2, heads=4, mlp=256)
    figures = bench.merger(images=4, patches=64, config=small, rounds=1)
    assert figures["kept_share"] == pytest.approx(1 / 3, abs=0.02)
    assert figures["gathered_seconds"] > 0 and figures["dense_seconds"] > 0
    assert 0.2 < figures["memory_ratio"] < 0.8


def test_saved_bytes_are_those_of_the_activations():
    layer = nn.Linear(8, 8)
    x = torch.randn(16, 8, requires_grad=True)
    first = bench.saved_bytes(lambda: layer(x).tanh(), layer)
    # x for the weight's gradient, tanh's output for its own and for the square's.
    assert first == 2 * 16 * 8 * 4
    assert bench.saved_bytes(lambda: layer(x).tanh().tanh(), layer) == first + 16 * 8 * 4


def test_results_of_other_benchmarks_stay(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "BENCHMARKS", {"one": lambda: {"a": 1.0}, "two": lambda: {"b": 2.0}})
    assert bench.main([]) == 0
    monkeypatch.setitem(bench.BENCHMARKS, "one", lambda: {"a": 3.0})
    assert bench.main(["one"]) == 0
    assert json.loads((tmp_path / "runs" / "bench.json").read_text()) == {"one": {"a": 3.0}, "two": {"b": 2.0}}
    assert bench.main(["three"]) == 2
    assert "no benchmark is called 'three'; there are one, two" in capsys.readouterr().err


@pytest.mark.slow
def test_the_loss_benchmark_measures_both_forms():
    figures = bench.loss(tokens=512, vocabulary=2**17, width=8, rounds=1)
    assert figures["gradient_error"] < 1e-5
    assert figures["chunked_seconds"] > 0 and figures["dense_seconds"] > 0
    assert figures["dense_mib"] > 512 * 2**17 * 4 / 2**20, "all logits at least"
    assert figures["memory_ratio"] < 0.9


def test_a_balanced_knapsack_spreads_its_load():
    lengths = [6, 5, 4, 3, 2]
    rows = packing.balanced_knapsack(lengths, 10)
    assert sorted(i for row in rows for i in row) == list(range(5))
    assert [sum(lengths[i] for i in row) for row in rows] == [9, 9, 2], "best fit would have filled two"
    assert len(packing.balanced_knapsack([6, 6, 6], 10)) == 3, "two rows would hold 18 tokens, but not these"
    assert packing.waste(lengths, 2, 10) == 0 and packing.waste([5], 1, 10) == 0.5


def test_the_generation_benchmark_measures_all_ways():
    small = ScratchConfig(hidden=32, layers=1, heads=2, mlp=64)
    figures = bench.generate({"demo": small, "large": small}, batch=2, tokens=5, rounds=2)
    assert min(figures.values()) > 0 and {"speedup", "by_hand", "large_speedup", "large_by_hand"} < set(figures)
    with pytest.raises(ValueError, match="words that say places have no rows of their own"):
        generate.grown(UnifiedLM(ModelConfig(LLMConfig(scratch=small)), Vocabulary(5, 3, gaps=2), 4))


def test_both_sides_of_the_generation_benchmark_have_the_same_logits():
    model = UnifiedLM(ModelConfig(LLMConfig(scratch=ScratchConfig(32, 2, 2, 64))), generate.VOCABULARY, 4).eval()
    prompts = generate.made_prompts(3)
    with torch.no_grad():
        theirs = generate.grown(model)(generate.flat(prompts)).logits
        torch.testing.assert_close(model.head(model.hidden(pack(prompts))), theirs, atol=1e-5, rtol=0)
    plan = ImagePlan(min_tokens=6, max_tokens=6, top_k=1, guidance=2.0)  # the likeliest word, however it is drawn
    ours = draw_codes(model, prompts, generate.FREE, plan, [0, 1, 2])
    for draw in (generate.by_transformers, generate.by_hand):
        drawn = draw(generate.grown(model), prompts, plan)
        assert [generate.VOCABULARY.to_codes(row).tolist() for row in drawn] == [row.tolist() for row in ours]


def test_packing_needs_a_finished_run(tmp_path):
    with pytest.raises(ValueError, match="run make demo first"):
        packing.packing(tmp_path)
