from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from eval import bench, packing
from lavit.tokenizers.merger import MergerConfig


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


def test_packing_needs_a_finished_run(tmp_path):
    with pytest.raises(ValueError, match="run make demo first"):
        packing.packing(tmp_path)
