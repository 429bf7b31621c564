from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lavit.config import load
from lavit.experiment import Experiment, load_experiment, run_stage
from lavit.experiment import stage as stage_module
from lavit.runs import FolderLock

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def parent(monkeypatch):
    """The tests' own parent is not watched."""
    monkeypatch.setattr(stage_module, "end_with_parent", lambda: None)


@pytest.fixture
def argv(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(f"run: {tmp_path / 'run'}\nseed: 3\n")
    return [str(path), "pretrain.row=81"]


def ended(main, stage, argv) -> int:
    with pytest.raises(SystemExit) as error:
        run_stage(main, stage, argv)
    return error.value.code


def test_main_gets_the_experiment_and_its_opened_run(argv, tmp_path):
    calls = []
    run_stage(lambda *given: calls.append(given), None, argv)
    ((experiment, run),) = calls
    assert isinstance(experiment, Experiment) and (experiment.seed, experiment.pretrain.row) == (3, 81)
    assert run == tmp_path / "run" and load(Experiment, run / "config.yaml") == experiment
    assert not list(run.rglob("done.json")), "a main without a stage marks its own end"


def test_a_stage_is_done_once(argv, tmp_path):
    calls = []
    for _ in range(2):
        run_stage(lambda *given: calls.append(given), "eval/caption", argv)
    folder = tmp_path / "run" / "eval" / "caption"
    assert len(calls) == 1 and (folder / "done.json").is_file()
    assert json.loads((folder / "seconds.json").read_text())["seconds"] >= 0


def test_a_stage_that_fails_is_not_done(argv, tmp_path, capsys):
    def fail(*given):
        raise ValueError("no pictures in /x; add some")

    assert ended(fail, "extract", argv) == 2
    assert capsys.readouterr().err == "error: no pictures in /x; add some\n"
    assert not (tmp_path / "run" / "extract" / "done.json").exists()
    calls = []
    run_stage(lambda *given: calls.append(given), "extract", argv)
    assert len(calls) == 1


def test_users_mistakes_end_with_one_line(argv, tmp_path, capsys):
    never = lambda *given: pytest.fail("must not run")  # noqa: E731
    assert ended(never, None, [argv[0], "sed=3"]) == 2
    assert capsys.readouterr().err == "error: command line: unknown key 'sed'; did you mean 'seed'?\n"
    assert ended(never, None, [str(tmp_path / "gone.yaml")]) == 2
    assert capsys.readouterr().err.startswith("error: no config file")
    run_stage(lambda *given: None, None, argv)
    run_stage(lambda *given: None, None, [argv[0], "pretrain.row=82"])
    (tmp_path / "run" / "pretrain").mkdir()
    (tmp_path / "run" / "pretrain" / "model.safetensors").touch()
    assert ended(never, None, [argv[0], "pretrain.row=83"]) == 2
    assert "holds a run with other settings: pretrain.row changed; remove" in capsys.readouterr().err
    assert ended(never, None, [argv[0], "pretrain.row=82", "seed=4"]) == 2
    assert "seed changed; remove the folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["pretrain.row=70"], "pretrain.row is 70, too short for an image of 64 patches and a text; .* at least 80"),
        (["pretrain.mixture.question_answer=0.2"], "question_answer is above 0 but data.vqa is not set"),
        (
            ["decoder.model.latents={folded: {patch: 7}}"],
            "decoder.model.image_size 64: 64 × 64 is not a multiple of decoder.model.latents.folded.patch 7",
        ),
        (
            ["decoder.model.latents={vae: {groups: 8, channels: [8, 8]}}", "decoder.model.image_size=33"],
            "33 × 33 is not a multiple of the factor of decoder.model.latents.vae.channels, 2",
        ),
        (["decoder.model.latents={vae: {}}"], "decoder.model.draft draws pixels, not latents; set it to false"),
        (["decoder.model.sizes=[[64, 64, 3]]"], r"decoder.model.sizes is \[\[64, 64, 3\]\]; give pairs"),
        (["decoder.model.sizes=[[60, 64]]", "decoder.model.draft=false"], "decoder.model.sizes: 60 × 64 is not a mul"),
        (["decoder.model.sizes=[[32, 64]]"], "draft needs .* and no other sizes"),
        (["decoder.model.image_size=32"], "a patch of the picture for each of the 64 features, not 16"),
        (
            ["decoder.model.prediction=noise"],
            "prediction 'noise' is unknown; choose sample, epsilon, v_prediction, flow",
        ),
        (
            ["decoder.model.prediction=flow_prediction"],
            "sampler 'ddim' does not go with flow_prediction; choose euler or",
        ),
        (
            ["decoder.model.prediction=flow_prediction", "decoder.model.sampler=dpm", "decoder.model.min_snr=5.0"],
            "min_snr is 5.0 with prediction flow_prediction: .* set it to null",
        ),
        (["decoder.model.min_snr=0.0"], "min_snr is 0.0 with prediction sample: it must be above 0"),
        (["decoder.model.sampler=euler"], "sampler 'euler' does not go with sample; choose ddim or dpm"),
        (["decoder.model.unet.heads=[3]"], "unet.heads has 1 entries and decoder.model.unet.channels 2"),
        (["decoder.model.unet.transformers=[1, 1, 1]"], "unet.transformers has 3 entries"),
        (["decoder.model.unet.channels=[96, 100]"], "100 is no multiple of groups 16 and heads 5"),
        (["decoder.model.conditioning={sdxl: {widths: [8, 12], heads: 5}}"], "widths 12 is no multiple of heads 5"),
        (["autoencoder.model.error=l3"], "autoencoder.model.error 'l3' is unknown; choose l1 or mse"),
        (["autoencoder.model.kl=-1.0"], "autoencoder.model: kl -1.0 and features 0.0 must be at least 0"),
        (["autoencoder.scale_sample=0"], "autoencoder.scale_sample is 0; it must be at least 1"),
        (["autoencoder.model.features=.nan"], "features nan must be at least 0"),
        (["decoder.model.latents={folded: {patch: 0}}"], "latents.folded.patch is 0; it must be at least 1"),
        (["decoder.model.latents={vae: {channels: [63, 128]}}", "decoder.model.draft=false"], "multiples of groups 16"),
        (["decoder.model.schedule=cosine"], "schedule 'cosine' is unknown; choose linear, scaled_linear, squared"),
        (["decoder.model.sampling_steps=5000"], "sampling_steps 5000 must be from 1 to timesteps 1000"),
        (["decoder.model.beta_start=0.5"], r"0 < beta_start 0.5 <= beta_end 0.02 < 1 must hold"),
        (["decoder.model.drop_condition=2"], "drop_condition is 2.0; it is a chance"),
        (["decoder.model.time_std=-1"], "time_std is -1.0; it must be above 0, or null"),
        (["decoder.model.guidance=.nan"], "guidance is nan; give a number"),
        (["decoder.model.unet.groups=0"], "must be at least 1, and there must be channels"),
        (["evaluation.candidates=0"], "candidates 0 must be at least 1"),
        (["evaluation.image.guidance=.inf"], "evaluation.image.guidance is inf; give a number"),
        (["tokenizer.train.ema=0.9"], "tokenizer.train.ema .* the codebook moves with those of the last step"),
        (
            ["pretrain.text={words: {}}", "pretrain.model.llm={folder: x}"],
            "pretrain.text.words is for a language model from scratch",
        ),
        (["tokenizer.vqa_share=1.5"], "tokenizer.vqa_share is 1.5, but it is a share"),
        (["tokenizer.model.encoder.grid=0", "pretrain.row=80"], "encoder.grid is 0"),
        (["tokenizer.model.quantizer.decay=1.5"], r"decay 1.5 in \(0, 1\)"),
        (["tokenizer.model.quantizer.codes=0"], "codes 0 must be at least 1"),
        (["tokenizer.model.selection={learned: {final_temperature: 0.0}}"], "final_temperature must be above 0"),
        (["extraction.batch=0"], "extraction.batch is 0"),
        (["evaluation.split=val"], "evaluation.split is 'val'; choose validation or test"),
        (["evaluation.derangements=0"], "evaluation.derangements is 0; it must be at least 1"),
        (["evaluation.captions=1"], "evaluation.captions is 1; it must be at least 2"),
        (["demo.stages=[data,eval/pyramid]"], "demo.stages has eval/pyramid, but pyramid is not set"),
        (["demo.stages=[data,vocoder]"], "demo.stages has vocoder, but data.speech is not set"),
        (["demo.stages=[data,eval/visual_words]"], "demo.stages has eval/visual_words, but pretrain.model.word_head"),
        (
            ["tokenizer.model.places={every: 4}", "tokenizer.model.selection={even: {tokens: 9}}"],
            "set it to null beside",
        ),
        (
            ["tokenizer.model.places={every: 4}", "tokenizer.model.selection={gain: {rho: 0.1}}"],
            "rho is 0.1, which is 6.4",
        ),
        (["pretrain.read=pixels"], "pretrain: read 'pixels' is unknown; choose features, ids, nothing"),
        (["pretrain.model.port=pixels"], "pretrain: port 'pixels' is unknown; choose features, patches, unmerged"),
        (["pretrain.model.projector=cubic"], "pretrain.model.projector 'cubic' is unknown; choose linear, mlp"),
        (["pretrain.model.word_head={fit: all}"], "word_head.fit 'all' is unknown; choose nothing, head, model"),
        (
            ["pretrain.model.port=unmerged"],
            "understands pictures and cannot draw them",
        ),
        (["pretrain.phases={a: {train: {step: 3}}}"], "pretrain.phases.a: unknown key 'train.step'; did you mean"),
        (["pretrain.phases={a: {train: {steps: many}}}"], "pretrain.phases.a: bad value for 'train.steps'"),
        (["pretrain.phases={a: {model: {projector: mlp}}, b: {}}"], "a phase trains the model of the others"),
        (["pretrain.phases={a: {text: {trained: {vocabulary: 300}}}}"], "all phases have one text tokenizer"),
        (["pretrain.phases={a: 3}"], "pretrain.phases.a is 3; give what the phase sets otherwise, or null"),
        (["pretrain.phases={text: {}}"], "pretrain.phases.text: a phase has a plain word for a name"),
        (["pretrain.phases={a: {row: 9}, b: {}}"], "pretrain.phases.a.row is 9, too short"),
        (["pretrain.phases={a: {train: {batch: 3, accumulate: 2}}}"], "pretrain.phases.a.train.batch 3 is not"),
        (["pretrain.model.factored={width: 8}"], "pretrain.model.factored: width is 8, and that of"),
        (["pretrain.phases={a: {phases: {}}}"], "pretrain.phases.a: a phase has a plain word for a name"),
        (["pretrain.phases={a: {train: {precision: fp8}}}"], "pretrain.phases.a.train.precision 'fp8' is unknown"),
        (["evaluation.answer.beams=0"], "evaluation.answer.beams is 0; it must be at least 1"),
        (["evaluation.image.top_p=2"], "evaluation.image.top_p is 2.0; it must be above 0 and at most 1"),
        (["pretrain.model.llm={asset: smollm2}"], "pretrain.text.asset is None; .* set both alike"),
        (
            ["pretrain.model.llm={asset: gpt}", "pretrain.text={asset: gpt}"],
            "llm.asset 'gpt' is unknown; choose smollm2",
        ),
        (
            ["pretrain.mixture={drop_tokens: 0.1, learn_read: true}"],
            "set it to 0 beside mixture.learn_read or read: ids",
        ),
        (
            ["pretrain.mixture.drop_tokens=0.1", "pretrain.read=ids"],
            "set it to 0 beside mixture.learn_read or read: ids",
        ),
        (["pretrain.train.workers=-1"], "pretrain.train.workers is -1; it must be at least 0"),
        (["decoder.train.precision=fp16"], "decoder.train.precision 'fp16' is unknown; choose fp32 or bf16"),
        (["decoder.train.ema=1.0"], "decoder.train.ema is 1.0; it must be at least 0, for none, and below 1"),
        (["pretrain.train.offload_optimizer=true"], "pretrain.train.offload_optimizer needs zero_stage 1 to 3"),
        (
            ["pretrain.train.offload_parameters=true", "pretrain.train.zero_stage=2"],
            "offload_parameters 3, not 2",
        ),
        (["tokenizer.train.steps=250"], "tokenizer.plain_steps 250 leaves no step for the codebook"),
        (
            ["demo.processes=3", "pretrain.train.batch=3"],
            r"tokenizer.train.batch 32 is not a multiple of demo.processes 3 × tokenizer.train.acc",
        ),
    ],
)
def test_sections_that_do_not_fit_together_are_found_at_once(overrides, said, tmp_path):
    path = tmp_path / "empty.yaml"
    path.touch()
    with pytest.raises(ValueError, match=said):
        load_experiment(path, overrides)


def test_the_schema_alone_can_be_checked(argv):
    command = [sys.executable, "-m", "lavit.experiment", *argv]
    done = subprocess.run([*command, "sed=3"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("error: command line: unknown key 'sed'; did you mean 'seed'?\n")


def test_a_second_writer_is_kept_out(argv, tmp_path, capsys):
    with FolderLock(tmp_path / "run" / "extract"):
        assert ended(lambda *given: pytest.fail("must not run"), "extract", argv) == 2
    assert "is in use by process" in capsys.readouterr().err


def test_other_errors_are_not_hidden(argv):
    with pytest.raises(ZeroDivisionError):
        run_stage(lambda *given: 1 / 0, "extract", argv)


def test_a_full_disk_is_told_in_one_line(argv, capsys):
    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device", "run/extract/x.npz")

    assert ended(full, "extract", argv) == 2
    said = "error: the disk of run/extract/x.npz is full; make room and give the same command again"
    assert capsys.readouterr().err.startswith(said)


def test_usage_names_the_module(capsys):
    assert ended(test_usage_names_the_module, None, []).startswith("usage: python -m ")
    done = subprocess.run([sys.executable, "-m", "tokenizer.extract"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "usage: python -m tokenizer.extract CONFIG [key=value ...]\n"


@pytest.fixture
def other(argv, tmp_path):
    """A run that has tokens, of the same data and tokenizer."""
    run_stage(lambda *given: None, None, [*argv, f"run={tmp_path / 'other'}", "seed=1"])
    for name in ("data/captions", "features", "tokenizer", "extract"):
        (tmp_path / "other" / name).mkdir(parents=True)
    for name in ("data", "extract"):
        (tmp_path / "other" / name / "done.json").write_text("{}")
    return tmp_path / "other"


@pytest.mark.parametrize("key", ["tokens_from", "finetune.start"])
def test_tokens_of_another_run_are_linked(argv, tmp_path, other, key):
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "data" / "log.txt").write_text("what prepares the data writes here")
    for _ in range(2):
        run_stage(lambda *given: None, None, [*argv, f"{key}={other}", "data.text={paths: [/a]}"])
    run = tmp_path / "run"
    for name in ("data/captions", "data/done.json", "features", "tokenizer", "extract"):
        assert (run / name).is_symlink() and (run / name).resolve() == (other / name).resolve()
    assert not (run / "text").exists(), "other texts are the run's own"
    assert not list(run.rglob(".*.tmp"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["tokens_from=nowhere"], "tokens_from: nowhere has no finished extract; make it first"),
        (["tokens_from={other}", "data.image_size=32"], "other settings of data.image_size; they must be the same"),
        (["tokens_from={other}", "finetune.start={other}"], "tokens_from and finetune.start are both set"),
    ],
)
def test_tokens_that_cannot_be_taken(argv, tmp_path, other, capsys, settings, said):
    given = [setting.replace("{other}", str(other)) for setting in settings]
    assert ended(lambda *given: None, None, [*argv, *given]) == 2
    assert said in capsys.readouterr().err


def test_what_changes_no_result_may_be_changed_in_a_run_that_has_made_something(argv, tmp_path, capsys):
    phase = "pretrain.phases.align.train"
    given = [*argv, f"{phase}.steps=3", f"{phase}.workers=0"]
    run_stage(lambda *given: None, None, given)
    (tmp_path / "run" / "pretrain").mkdir()
    (tmp_path / "run" / "pretrain" / "model.safetensors").touch()
    run_stage(lambda *given: None, None, [*argv, f"{phase}.steps=3", f"{phase}.workers=2"])
    assert ended(lambda *given: None, None, [*argv, f"{phase}.steps=4", f"{phase}.workers=2"]) == 2
    assert f"{phase}.steps changed" in capsys.readouterr().err


def test_a_slip_in_the_name_of_the_other_run_locks_nothing(argv, tmp_path, other):
    assert ended(lambda *given: None, None, [*argv, f"tokens_from={other}r"]) == 2
    run_stage(lambda *given: None, None, [*argv, f"tokens_from={other}", "tokenizer.train.workers=2"])
    assert (tmp_path / "run" / "extract").resolve() == other / "extract"


def test_tokens_without_the_features_that_are_wanted(argv, other, capsys):
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("  features: true", "  features: false"))
    assert ended(lambda *given: None, None, [*argv, f"tokens_from={other}"]) == 2
    assert "other settings of extraction.features" in capsys.readouterr().err
    run_stage(lambda *given: None, None, [*argv, f"tokens_from={other}", "extraction.features=false"])


def test_a_run_whose_data_are_a_link_as_a_whole_stays_as_it_is(argv, tmp_path, other):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "data").symlink_to(other / "data")
    run_stage(lambda *given: None, None, [*argv, f"tokens_from={other}"])
    assert (tmp_path / "run" / "data").is_symlink() and not (other / "data" / "captions").is_symlink()


def test_what_a_run_has_of_its_own_is_kept(argv, tmp_path, other, capsys):
    (tmp_path / "run" / "extract").mkdir(parents=True)
    assert ended(lambda *given: None, None, [*argv, f"tokens_from={other}"]) == 2
    assert f"{tmp_path / 'run' / 'extract'} is there, which this run takes from {other}; remove it" in (
        capsys.readouterr().err
    )


def test_what_changes_no_result_may_change_within_a_run(argv, tmp_path):
    run_stage(lambda *given: None, None, argv)
    (tmp_path / "run" / "pretrain").mkdir()
    (tmp_path / "run" / "pretrain" / "model.safetensors").touch()
    run_stage(lambda *given: None, None, [*argv, "demo.processes=2", "pretrain.train.workers=3"])
    assert load(Experiment, tmp_path / "run" / "config.yaml").pretrain.train.workers == 3
    assert ended(lambda *given: None, None, [*argv, "pretrain.train.steps=3"]) == 2


def test_pictures_that_have_no_visual_words_are_not_painted():
    for system, stage in (("visual_words", "eval/reconstruction"), ("spae", "eval/text_to_image")):
        with pytest.raises(ValueError, match=f"demo.stages has {stage}, but a model that draws is not set"):
            load_experiment(f"configs/{system}/demo.yaml", [f"demo.stages=[data,{stage}]"])


def test_phases_are_the_section_with_some_settings_of_their_own():
    overrides = [
        "pretrain.train.batch=8",
        "pretrain.phases={first: {train: {steps: 2, optimizer: {trained: ['port.*']}}}, second: {}, third: {}}",
        "pretrain.phases.first.train.steps=5",
        "pretrain.phases.third=null",
    ]
    experiment = load_experiment(ROOT / "configs" / "lavit" / "demo.yaml", overrides)
    parts = experiment.pretrain.parts()
    assert list(parts) == ["first", "second"] and all(not part.phases for part in parts.values())
    assert parts["first"].train.steps == 5 and parts["first"].train.optimizer.trained == ["port.*"]
    assert parts["second"].train == experiment.pretrain.train and parts["first"].train.batch == 8
    assert load_experiment(ROOT / "configs" / "lavit" / "demo.yaml").pretrain.parts().keys() == {""}
