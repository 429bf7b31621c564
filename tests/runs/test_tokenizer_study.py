"""Curves of reconstruction by token count, what decides the count, and tokenizers side by side."""

from __future__ import annotations

import json

import pytest
import torch

from lavit.tokenizers.decoder import FeatureDecoderConfig, cosine
from lavit.tokenizers.encoders import EncoderConfig, LayerConfig, WeightsConfig
from lavit.tokenizers.merger import MergerConfig
from lavit.tokenizers.quantizer import QuantizerConfig
from lavit.tokenizers.selector import EvenConfig, LearnedConfig, SelectionConfig
from lavit.tokenizers.tokenizer import Tokenizer, TokenizerConfig
from tokenizer import compare
from tokenizer.curves import complexity, content, length_curve, rank_correlation
from tokenizer.evaluate import keep_rates

SIZE, PATCHES = 32, 16


class Squares:
    """Pictures by number: 0 is white, 1 has a square in its first patch, 2 is noise."""

    def inputs(self, numbers, size):
        return self.pixels(numbers, size)

    def pixels(self, numbers, size):
        images = torch.ones(3, 3, size, size)
        images[1, :, 1:7, 1:7] = 0.25
        images[2] = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))
        return images[torch.as_tensor(numbers)]


def tokenizer(selection: SelectionConfig) -> Tokenizer:
    encoder = EncoderConfig(
        weights=WeightsConfig(random=0), image_size=SIZE, grid=4, layers=[LayerConfig("blocks.1", 24)]
    )
    config = TokenizerConfig(
        encoder=encoder,
        selection=selection,
        merger=MergerConfig(width=8, blocks=1, heads=2, mlp=16),
        quantizer=QuantizerConfig(codes=12, width=4),
        decoder=FeatureDecoderConfig(width=8, blocks=1, heads=2, mlp=16),
    )
    return Tokenizer(config).eval()


def test_curve_ends_where_all_patches_are_kept():
    made = tokenizer(SelectionConfig(learned=LearnedConfig()))
    curve = length_curve(made, Squares(), [0, 1, 2], seed=0)
    assert curve["tokens"] == [1, 2, 3, 4, 5, 8, 12, 16]
    tokens = made.encode(Squares().pixels([0, 1, 2], SIZE), tokens=PATCHES)
    whole = float(cosine(made.encoder(Squares().pixels([0, 1, 2], SIZE)), made.decode(tokens)).mean())
    assert [curve[policy][-1] for policy in ("chosen", "even", "random")] == pytest.approx([whole] * 3, abs=1e-6)
    assert curve["chosen"][:-1] != curve["even"][:-1] != curve["random"][:-1]
    assert length_curve(made, Squares(), [0, 1, 2], seed=0) == curve
    assert length_curve(made, Squares(), [0, 1, 2], seed=1)["random"] != curve["random"]


def test_even_tokenizer_chooses_even_patches():
    curve = length_curve(tokenizer(SelectionConfig(even=EvenConfig(5))), Squares(), [1, 2], seed=0)
    assert curve["chosen"] == curve["even"]


def test_noise_is_more_complex_than_a_square_than_white():
    sizes, blank = content(Squares(), [0, 1, 2], tokenizer(SelectionConfig(even=EvenConfig(5))))
    assert sizes[0] < sizes[1] < sizes[2]
    assert blank.sum(1).tolist() == [16, 15, 0] and not blank[1, 0]


def test_complexity_of_equal_counts_is_nothing():
    made = tokenizer(SelectionConfig(learned=LearnedConfig()))
    found = complexity(made, Squares(), [0, 1, 2], torch.tensor([5, 5, 5]), torch.tensor([1.0, 2.0, 3.0]))
    assert found == {"bytes": 0.0, "error": 0.0, "gain": 0.0}
    found = complexity(made, Squares(), [0, 1, 2], torch.tensor([5, 6, 7]), torch.tensor([1.0, 2.0, 3.0]))
    assert found["bytes"] == pytest.approx(1.0) and -1 <= found["gain"] <= 1


def test_keep_rates_by_content_and_place():
    kept = torch.tensor([[True, True, False, False], [True, False, False, True]])
    blank = torch.tensor([[True, False, False, False], [False, False, True, True]])
    rates = keep_rates(kept, blank, 2)
    assert rates["drawn"] == pytest.approx(2 / 5) and rates["blank"] == pytest.approx(2 / 3)
    assert rates["blank_share"] == pytest.approx(3 / 8) and rates["by_place"] == [[1.0, 0.5], [0.0, 0.5]]
    assert keep_rates(kept, torch.zeros_like(kept), 2)["blank"] is None


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 400], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 2, 3], [1, 2, 3, 4], 4.5 / (4.5 * 5) ** 0.5),  # ranks 1, 2.5, 2.5, 4
        ([5, 5, 5], [1, 2, 3], 0.0),
    ],
)
def test_rank_correlation(a, b, expected):
    assert rank_correlation(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected)


def test_one_picture_has_no_correlation():
    assert rank_correlation(torch.tensor([3]), torch.tensor([1.0])) == 0.0


def run_with(folder, cosine: float, counts: list[int], tokens=(1, 16), pictures="abc"):
    curve = {"tokens": list(tokens)} | {policy: [cosine / 2, cosine] for policy in ("chosen", "even", "random")}
    figures = {name: 1.0 for name in compare.FIGURES} | {"cosine": cosine, "n": len(counts), "split": "test"}
    figures |= {"counts": counts, "curve": curve, "complexity": {"gain": 0.5}, "pictures": pictures}
    figures |= {"kept": {"drawn": 0.4, "blank": None}}
    (folder / "eval" / "tokenizer").mkdir(parents=True)
    (folder / "eval" / "tokenizer" / "figures.json").write_text(json.dumps(figures))
    return folder


def test_comparison_over_seeds(tmp_path, capsys):
    a, b = run_with(tmp_path / "a", 0.6, [1, 2, 4]), run_with(tmp_path / "b", 0.8, [2, 2, 6])
    c = run_with(tmp_path / "c", 0.5, [3, 3, 3])
    compare.main([f"ours={a},{b}", f"even={c}", "--out", str(tmp_path / "out")])
    ours = json.loads((tmp_path / "out" / "comparison.json").read_text())["ours"]
    assert ours["cosine"]["mean"] == pytest.approx(0.7) and ours["cosine"]["std"] == pytest.approx(0.02**0.5)
    assert ours["curve"]["chosen"] == pytest.approx([0.35, 0.7]) and ours["kept_blank"] is None
    assert ours["seeds"]["difference"] == pytest.approx(1.0)
    assert ours["seeds"]["difference_shuffled"] == pytest.approx((1 + 1 + 5 + 0 + 0 + 4 + 2 + 2 + 2) / 9)
    assert ours["seeds"]["rank_correlation"] == pytest.approx(3**0.5 / 2)
    printed = capsys.readouterr().out
    assert "| ours | 2 | 0.700 ± 0.141 |" in printed and "| even | 1 |" in printed
    assert (tmp_path / "out" / "comparison.svg").read_text().startswith("<?xml")


def test_comparison_needs_the_same_pictures(tmp_path):
    a = run_with(tmp_path / "a", 0.6, [1, 2])
    others = (run_with(tmp_path / "b", 0.6, [1, 2, 3]), run_with(tmp_path / "c", 0.6, [1, 2], tokens=(1, 2)))
    for b in (*others, run_with(tmp_path / "d", 0.6, [1, 2], pictures="xyz")):
        for command in ([f"ours={a},{b}"], [f"ours={a}", f"even={b}"]):
            with pytest.raises(SystemExit, match="different pictures"):
                compare.main(command)
    with pytest.raises(SystemExit, match="make eval-tokenizer"):
        compare.main([f"ours={a},{tmp_path / 'nothing'}"])
    with pytest.raises(SystemExit, match="NAME=RUN"):
        compare.main(["runs/a"])
