"""What `make plan` counts, against published numbers and against the real thing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eval import counting, plan
from eval.bench import saved_bytes
from lavit.experiment import load_experiment
from lavit.model import UnifiedLM
from lavit.renderers.adversary import Adversary
from lavit.renderers.diffusion import DiffusionRenderer
from lavit.tokenizers.pyramid_autoencoder import PyramidTokenizer
from lavit.tokenizers.tokenizer import Tokenizer
from lavit.tokens import Rows

CONFIGS = Path(__file__).parents[2] / "configs" / "lavit"


def stages(name: str, *overrides: str) -> dict[str, counting.StagePlan]:
    return {stage.name: stage for stage in plan.plan(load_experiment(CONFIGS / name, overrides))}


@pytest.fixture(scope="module")
def paper() -> dict[str, counting.StagePlan]:
    return stages("paper.yaml")


def parts(stage: counting.StagePlan) -> dict[str, counting.Part]:
    return {part.name: part for part in stage.parts}


def test_zero_memory_is_that_of_the_paper_on_zero():
    """arXiv 1910.02054, figure 1: 7.5 B parameters, 64 GPUs, mixed precision."""
    sizes = [counting.state_bytes(75 * 10**8, 75 * 10**8, stage, 64, (2, 2, 12)) / 1e9 for stage in range(4)]
    assert sizes == pytest.approx([120, 31.4, 16.6, 1.9], abs=0.05)
    assert counting.state_bytes(100, 10, 3, 10) == 40 + 4 + 8, "weights that are frozen are spread too"


def test_parameters_at_the_papers_scale_are_the_published_ones(paper):
    assert parts(paper["tokenizer"])["encoder"].parameters == 1_012_588_928
    assert parts(paper["tokenizer"])["encoder"].trainable == 0
    llm = [parts(paper["pretrain"])[name].parameters for name in ("embedding", "blocks", "head")]
    assert sum(llm) == 6_872_649_728, "Llama-2-7B grown to 48,386 rows"


def test_operations_are_two_a_weight_and_token(paper):
    blocks = parts(paper["pretrain"])["blocks"]
    tokens = paper["pretrain"].tokens / paper["pretrain"].train.batch
    attention = 4 * tokens**2 * 4096 * 32
    assert blocks.flops == pytest.approx(2 * blocks.parameters * tokens + attention, rel=0.02)
    encoder = parts(paper["tokenizer"])["encoder"]
    assert encoder.flops == pytest.approx(2 * encoder.parameters * 257, rel=0.05)
    assert encoder.step_flops == encoder.flops and blocks.step_flops == 3 * blocks.flops


def test_counts_are_those_of_the_real_models():
    experiment, planned = load_experiment(CONFIGS / "demo.yaml"), stages("demo.yaml")
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    model = experiment.tokenizer.model
    assert planned["tokenizer"].parameters == count(Tokenizer(model, pretrained=False))
    lm = UnifiedLM(experiment.pretrain.model, model.vocabulary(3000), model.merger.width)
    assert planned["pretrain"].parameters == count(lm)
    renderer = DiffusionRenderer(experiment.decoder.model, model.encoder.width, model.encoder.patches)
    assert parts(planned["decoder"])["U-Net"].parameters == planned["decoder"].trainable == count(renderer)
    assert planned["decoder"].beside == count(Tokenizer(model, pretrained=False).decoder)


def test_pixel_decoders_are_of_the_published_sizes(paper):
    """Stable Diffusion 1.5's and XL's U-Nets and VAE, and what the features need to enter them."""
    found = parts(paper["decoder"])
    assert found["U-Net"].parameters == 859_520_964 + 1409 * 768 + 768
    assert (found["VAE"].parameters, found["VAE"].trainable) == (83_653_863, 0)
    larger = parts(stages("paper_sdxl.yaml")["decoder"])
    pool = 257 * 1280 + 4 * 1281 * 1280
    assert larger["U-Net"].parameters == 2_567_463_684 + 1409 * (768 + 1280) + pool
    assert larger["VAE"].parameters == 83_653_863


def test_a_vae_of_ones_own_is_planned_too():
    planned = stages("small.yaml")
    assert list(planned) == ["tokenizer", "pretrain", "autoencoder", "decoder"]
    assert planned["autoencoder"].trainable == parts(planned["decoder"])["VAE"].parameters
    assert parts(planned["decoder"])["VAE"].flops < parts(planned["autoencoder"])["VAE"].flops, "it is only encoded"
    encoder, plain = parts(planned["autoencoder"])["encoder"], stages("small.yaml", "autoencoder.model.features=0.0")
    assert planned["autoencoder"].beside == encoder.parameters > 0 == encoder.trainable and encoder.kept > 0
    assert list(parts(plain["autoencoder"])) == ["VAE"]


def test_averages_take_four_bytes_a_weight():
    settings = ["decoder.train.ema=0.0"]
    plain, averaged = stages("demo.yaml", *settings)["decoder"], stages("demo.yaml")["decoder"]
    more = [averaged.memory(stage, 2)[0] - plain.memory(stage, 2)[0] for stage in (0, 2, 3)]
    assert more == [4 * plain.trainable, 4 * plain.trainable, 2 * plain.trainable]


def test_kept_bytes_are_those_of_a_real_pass():
    experiment = load_experiment(CONFIGS / "demo.yaml")
    model = experiment.tokenizer.model
    decoder = Tokenizer(model, pretrained=False).decoder
    words, keep = torch.randn(1, 21, 32), torch.ones(1, 21, dtype=torch.bool)
    real = saved_bytes(lambda: decoder(words, keep, torch.arange(21)[None]), decoder)
    assert parts(stages("demo.yaml")["tokenizer"])["feature decoder"].kept == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_blocks_keep_of_long_documents_is_what_a_real_pass_keeps(monkeypatch, precision):
    monkeypatch.setattr(plan, "TEXT_TOKENS", 1000)
    settings = ["run=/nowhere", f"pretrain.train.precision={precision}", "pretrain.model.llm.scratch.max_position=2048"]
    experiment = load_experiment(CONFIGS / "demo.yaml", settings)
    planned = {part.name: part for part in plan.pretrain_plan(experiment).parts}["blocks"]
    experiment.pretrain.model.checkpoint_activations = True
    checked = {part.name: part for part in plan.pretrain_plan(experiment).parts}["blocks"]
    length = plan.pretrain_plan(experiment).tokens // experiment.pretrain.train.batch
    assert length > 700
    found = []
    for checkpointed in (False, True):
        config = replace(experiment.pretrain.model, checkpoint_activations=checkpointed)
        model = UnifiedLM(config, experiment.tokenizer.model.vocabulary(3000), 192)
        states, places = torch.randn(1, length, 256), torch.arange(length)
        documents = (Rows(places, places, torch.ones(1, length, dtype=torch.bool)),)
        given = {"attention_mask": torch.zeros(1, 1, 1, 1), "position_ids": places[None], "use_cache": False}
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            forward = lambda: model.blocks(inputs_embeds=states, documents=documents, **given)  # noqa: B023, E731
            found.append(counting.measure(model.blocks, forward))
    assert planned.kept == pytest.approx(found[0].kept, rel=0.1)
    assert checked.kept == pytest.approx(found[1].kept + found[0].kept / 4, rel=0.1)
    assert planned.kept_once == found[0].copies == 4 * checked.kept_once
    weights = sum(p.numel() for p in model.blocks.parameters() if p.dim() > 1)
    assert found[0].copies == (2 * weights if precision == "bf16" else 0)


def test_what_is_frozen_needs_no_gradients():
    frozen = stages("demo.yaml", "pretrain.train.optimizer={frozen: ['blocks.*'], muon: null}")["pretrain"]
    assert parts(frozen)["blocks"].trainable == 0 and parts(frozen)["head"].trainable > 0
    whole = stages("demo.yaml")["pretrain"]
    assert frozen.memory(0, 1)[0] < whole.memory(0, 1)[0] and frozen.flops < whole.flops


def test_what_is_offloaded_is_not_on_the_gpu():
    plain = ["pretrain.train.optimizer.muon=null", "pretrain.train.zero_stage=3"]
    offloaded = ["pretrain.train.offload_optimizer=true", "pretrain.train.offload_parameters=true"]
    there, gone = (stages("demo.yaml", *settings)["pretrain"] for settings in (plain, plain + offloaded))
    assert there.memory(3, 1)[0] == 16 * there.parameters and gone.memory(3, 1)[0] == 0
    assert gone.memory(1, 1)[0] == 8 * gone.parameters, "weights and gradients stay below the stage that can spare them"


def test_an_encoder_beside_the_model_is_on_every_gpu_whole(paper):
    stage = paper["pretrain"]
    assert stage.beside == parts(stage)["encoder"].parameters == 1_012_588_928
    assert stage.memory(3, 10**6)[0] == pytest.approx(4 * stage.beside, rel=0.01)


def test_larger_micro_batches_keep_more():
    stage = stages("demo.yaml")["decoder"]
    assert stage.memory(0, 1)[1] == 4 * stage.memory(0, 4)[1]


def test_command(capsys):
    plan.main(["8", str(CONFIGS / "toy.yaml")])
    printed = capsys.readouterr().out
    assert printed.count("<- configured") == 3 and "ZeRO 3 on 8 GPUs" in printed and "feature decoder" in printed
    with pytest.raises(SystemExit, match="usage"):
        plan.main(["configs/lavit/toy.yaml"])
    with pytest.raises(SystemExit):
        plan.main(["1", str(CONFIGS / "paper.yaml"), "pretrain.model.shape=null"])
    assert "pretrain.model.shape must say" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_configuration_names_parameters_that_there_are(name):
    for stage in stages(name).values():
        assert 0 < stage.trainable <= stage.parameters


def test_a_pyramid_is_planned_as_it_is_made():
    spae = CONFIGS.parent / "spae"
    (planned,) = plan.plan(load_experiment(spae / "demo.yaml"))
    stage = load_experiment(spae / "demo.yaml").pyramid
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    made = PyramidTokenizer(stage.model, torch.zeros(10, stage.words.width), 1280)
    assert planned.trainable == count(made) + count(Adversary(stage.loss.adversary))
    assert parts(planned)["words"].flops == 2 * 149 * 32 * 8192
    (paper,) = plan.plan(load_experiment(spae / "paper.yaml"))
    assert paper.tokens == 256 * 597 and parts(paper)["encoder"].flops > 20 * parts(planned)["encoder"].flops
