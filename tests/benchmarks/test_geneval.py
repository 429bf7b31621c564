"""GenEval's prompts and folders."""

from __future__ import annotations

import json

import pytest

from lavit.benchmarks.geneval import GenEvalConfig, check_geneval, read_prompts, sample_path, write_layout

CAT = {"class": "cat", "count": 1}
GOOD = {"tag": "position", "include": [CAT, {"class": "dog", "count": 1, "position": ["left of", 0]}], "prompt": "p"}


def test_prompts_and_their_folders(tmp_path):
    path = tmp_path / "evaluation_metadata.jsonl"
    counting = {"tag": "counting", "include": [CAT], "exclude": [{"class": "cat", "count": 2}], "prompt": "a photo"}
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps(counting)}\n")
    prompts = read_prompts(path)
    assert prompts == [GOOD, counting]
    write_layout(tmp_path / "out", prompts)
    assert json.loads((tmp_path / "out" / "00001" / "metadata.jsonl").read_text()) == counting
    assert sample_path(tmp_path / "out", 1, 3) == tmp_path / "out" / "00001" / "samples" / "0003.png"
    assert sample_path(tmp_path / "out", 1, 3).parent.is_dir()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tag": None}, "line 2: it has no 'tag' that is a text"),
        ({"prompt": " "}, "it has no 'prompt'"),
        ({"include": []}, "it has no 'include' that is a list"),
        ({"include": [{"count": 1}]}, r"include\[0\] has no 'class'"),
        ({"include": [{"class": "cat"}]}, r"include\[0\] has no 'count' that is a whole number above 0"),
        ({"include": [CAT | {"color": 3}]}, "has a 'color' that is no text"),
        ({"include": [CAT | {"position": ["left of", 0]}]}, "number of an object before it"),
        ({"include": [CAT, CAT | {"position": ["near", 0]}]}, "must be one of left of, right of"),
        ({"exclude": [{"class": "cat", "count": 0}]}, r"exclude\[0\] has no 'count'"),
    ],
)
def test_a_line_with_a_fault_is_named(tmp_path, change, said):
    path = tmp_path / "metadata.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps(GOOD | change)}\n")
    with pytest.raises(ValueError, match=f"evaluation.geneval.prompts: .*metadata.jsonl.*{said}"):
        read_prompts(path)


def test_files_that_are_no_prompts(tmp_path):
    with pytest.raises(ValueError, match="cannot be read .* get it from https://github.com/djghosh13/geneval"):
        read_prompts(tmp_path / "none.jsonl")
    (tmp_path / "a.jsonl").write_text("a photo of a cat\n")
    with pytest.raises(ValueError, match="line 1: "):
        read_prompts(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="evaluation.geneval.samples is 0"):
        check_geneval(GenEvalConfig(samples=0))
