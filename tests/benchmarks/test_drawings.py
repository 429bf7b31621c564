"""Captions to be drawn, and settings of drawing."""

from __future__ import annotations

import json

import pytest

from lavit.benchmarks.drawings import DrawingConfig, check_drawing, read_captions, sampled
from lavit.generation.plans import ImagePlan


def test_one_caption_of_each_image_always_the_same(tmp_path):
    rows = [{"image_id": n // 5, "id": n, "caption": f" picture {n // 5}\n said {n % 5} "} for n in range(20)]
    (tmp_path / "coco.json").write_text(json.dumps({"images": [], "annotations": rows}))
    found = read_captions(tmp_path / "coco.json", "key")
    assert [caption.split(" said")[0] for caption in found] == [f"picture {n}" for n in range(4)]
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps(row) for row in reversed(rows)) + "\n\n")
    assert read_captions(tmp_path / "lines.jsonl", "key") == found[::-1]
    (tmp_path / "plain.jsonl").write_text('{"caption": "a cat"}\n{"caption": "a cat"}\n')
    assert read_captions(tmp_path / "plain.jsonl", "key") == ["a cat", "a cat"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"caption": "a"}\n{"text": "b"}', 'key: .*a.jsonl, line 2 has no "caption" that is a text'),
        ("a.json", '{"annotations": [{"caption": " "}]}', 'annotation 0 has no "caption"'),
        ("a.json", '{"caption": "a"}', "neither COCO's annotations .* nor lines of JSON"),
        ("a.jsonl", '{"caption": "a"}\n{"caption', r"nor lines of JSON \(line 2\)"),
        (
            "a.jsonl",
            '{"caption": "a", "image_id": [1]}',
            'line 1 has an "image_id" that is neither a text nor a number',
        ),
        ("a.jsonl", "a cat", "nor lines of JSON"),
        ("a.jsonl", "", "holds no captions"),
    ],
)
def test_files_without_captions(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        read_captions(tmp_path / name, "key")
    with pytest.raises(ValueError, match="key: .*none.jsonl cannot be read"):
        read_captions(tmp_path / "none.jsonl", "key")


def test_a_sample_is_by_lot_and_in_order():
    captions = [str(n) for n in range(100)]
    some = sampled(captions, 10, 0, "key")
    assert some == sampled(captions, 10, 0, "key") != sampled(captions, 10, 1, "key")
    assert len(set(some)) == 10 and some == sorted(some, key=int)
    assert sampled(captions, 0, 0, "key") == captions
    with pytest.raises(ValueError, match="key is 101, and there are 100 captions"):
        sampled(captions, 101, 0, "key")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (DrawingConfig(candidates=0), "key.candidates is 0; it must be at least 1"),
        (DrawingConfig(words=ImagePlan(top_k=-1)), "key.words.top_k is -1"),
        (DrawingConfig(guidance=float("nan")), "key.guidance is nan"),
        (DrawingConfig(steps=0), "key.steps is 0"),
    ],
)
def test_settings_that_cannot_be(config, said):
    with pytest.raises(ValueError, match=said):
        check_drawing(config, "key")
