"""The language model under every stage of ZeRO: two ranks through the real launcher against one rank, step by step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
STEPS = 10
TIED, UNTIED = {"tied": True}, {"tied": False}
KINDS = ("named", "adapted")  # visual words in a text's words; a frozen model with rows of codes, biases and gains
STAGES = {f"zero{stage}": {"zero_stage": stage} for stage in range(4)}
STAGES |= {"offloaded": {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True}}

# What the processes below run: `python -m probe '{"name": {settings}, ...}'` trains once for each name.
PROBE = '''
import json, sys
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from lavit.data.order import items_at
from lavit.data.packing import pack, with_common_total
from lavit.layers.rows import FactoredConfig
from lavit.model import LLMShape, ModelConfig, UnifiedLM, WordHeadConfig, llama_of
from lavit.tokens import Feed, Learn, Span
from lavit.training.engine import TrainConfig
from lavit.training.loop import train
from lavit.training.optimizer import OptimizerConfig
from lavit.weights import save_weights
from lavit.vocabulary import Vocabulary

VOCABULARY, WIDTH = Vocabulary(1700, 40, gaps=3), 6
PLAIN = Vocabulary(1700, 120)  # as many words
KINDS = {
    "plain": ModelConfig(),
    "named": ModelConfig(word_head=WordHeadConfig("model")),
    "adapted": ModelConfig(factored=FactoredConfig(8), bias_norm=True),
}


def document(number):
    """Text and an image, in either order; of different lengths, so that ranks have different numbers of labels."""
    generator = torch.Generator().manual_seed(number)
    draw = lambda high, n: torch.randint(high, (n,), generator=generator)
    words = int(draw(6, 1)) + 1
    text = Span("text", draw(VOCABULARY.text_size, words + 2))
    ends = torch.tensor([VOCABULARY.image_begin]), torch.tensor([VOCABULARY.image_end])
    image = Span("image", torch.cat([ends[0], VOCABULARY.to_ids(draw(VOCABULARY.words, words)), ends[1]]))
    if number % 2:
        return [text, image]
    features = torch.randn(words, WIDTH, generator=generator)
    return [image._replace(features=features, feed=Feed.FEATURES, learn=Learn.NONE), text]


def main(folder, tied, kind="plain", **settings):
    torch.manual_seed(0)
    llm = LlamaForCausalLM(llama_of(LLMShape(64, 2, 4, 2, 1600, 64, VOCABULARY.text_size, tied)))
    model = UnifiedLM(KINDS[kind], PLAIN if kind == "adapted" else VOCABULARY, WIDTH, llm=llm)
    for parameter in (model.head.gap_states, model.head.gap_bias) if kind != "adapted" else ():
        torch.nn.init.normal_(parameter, std=0.02)
    optimizer = OptimizerConfig(lr=3e-3, warmup=2, clip=0.7, weight_decay=0.1, scale={"port*": 2.0})
    config = TrainConfig(steps=10, batch=8, log_every=1, optimizer=optimizer, **settings)

    def batch_at(place):
        return pack([document(i) for i in items_at(place, config.accumulate, 30, 5).tolist()], row=40)

    train(model, batch_at, config, Path(folder), together=with_common_total)
    if torch.distributed.get_rank() == 0:
        save_weights(model, Path(folder) / "model.safetensors")


for name, settings in json.loads(sys.argv[1]).items():
    main(name, **settings)
'''


def started(folder: Path, runs: dict, ranks: int) -> Path:
    folder.mkdir()
    (folder / "probe.py").write_text(PROBE)
    command = ["-m", "probe", json.dumps(runs)]
    if ranks > 1:
        command = ["-m", "lavit.launch", "probe", "--processes", str(ranks), "--", json.dumps(runs)]
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("zero")
    one = {"tied": TIED, "untied": UNTIED, "accumulated": {**UNTIED, "accumulate": 2}}
    one |= {kind: {**TIED, "kind": kind} for kind in KINDS}
    two = {name: {**UNTIED, **stage} for name, stage in STAGES.items()}
    two |= {f"tied_{name}": {**TIED, **STAGES[name]} for name in ("zero2", "zero3")}
    two |= {"accumulated": {**UNTIED, "accumulate": 2, "zero_stage": 3}}
    two |= {kind: {**TIED, "kind": kind, "accumulate": 2, "zero_stage": 3} for kind in KINDS}
    return {1: started(folder / "one", one, 1), 2: started(folder / "two", two, 2)}


def losses(folder: Path) -> torch.Tensor:
    """(steps, 3): the loss, that of text and that of image tokens."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return torch.tensor([[line[key] for key in ("loss", "text", "image")] for line in lines], dtype=torch.float64)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        *((name, "untied") for name in STAGES),
        ("tied_zero2", "tied"),
        ("tied_zero3", "tied"),
        ("accumulated", "untied"),
        *((kind, kind) for kind in KINDS),
    ],
)
def test_two_ranks_give_the_losses_of_one(runs, name, reference):
    expected, found = losses(runs[1] / reference), losses(runs[2] / name)
    assert found.shape == (STEPS, 3)
    assert (found[:, 0] - expected[:, 0]).abs().max() < 1e-5
    assert expected[-1, 0] < expected[0, 0] - 0.1, "it learns, so that the losses say something of the updates"


def test_accumulation_gives_the_losses_of_one_batch(runs):
    assert (losses(runs[1] / "accumulated") - losses(runs[1] / "untied"))[:, 0].abs().max() < 1e-5


def test_weights_under_zero_3_are_whole_and_near_those_of_one_rank(runs):
    expected, found = (load_file(runs[n] / name / "model.safetensors") for n, name in ((1, "untied"), (2, "zero3")))
    assert set(expected) == set(found)
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert (found[name] - value).abs().mean() < 1e-5, name
