from __future__ import annotations

import json

import pytest

from eval.collect import collect


def test_means_and_spread_over_runs(tmp_path):
    runs = [tmp_path / name for name in ("a", "b", "c")]
    for run, value in zip(runs, (1.0, 2.0, 6.0), strict=True):
        run.mkdir()
        (run / "metrics.json").write_text(json.dumps({"vqa": {"accuracy": value, "split": "test", "exact": None}}))
    table = collect(runs)
    assert table == {"vqa": {"accuracy": {"mean": 3.0, "std": pytest.approx(7**0.5), "values": [1.0, 2.0, 6.0]}}}
    assert collect(runs[:1])["vqa"]["accuracy"]["std"] == 0.0


def test_a_run_that_took_a_stage_over_is_left_out_of_its_seconds(tmp_path):
    for name, seconds in (("a", {"tokenizer": 4.0}), ("b", {"tokenizer": None})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps({"seconds": seconds}))
    found = collect([tmp_path / "a", tmp_path / "b"])
    assert found == {"seconds": {"tokenizer": {"mean": 4.0, "std": 0.0, "values": [4.0]}}}


def test_unfinished_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="unfinished"):
        collect([tmp_path / "unfinished"])
    with pytest.raises(ValueError, match="no run at all"):
        collect([])
