"""A tiny run of TEAL with speech: tones of a few pitches, which the text names, through every stage in this process."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, WhisperConfig, WhisperForConditionalGeneration

from eval.export import model_card, weights_of
from eval.figures import REQUIRED
from eval.speech import written_down
from lavit.data.audio import read_sounds
from lavit.data.shards import Shards
from lavit.experiment import load_experiment, run_stage
from lavit.metrics.speech import error_rates
from lavit.pipeline import LaVIT
from lavit.runs import read_json
from lavit.vocabulary import SILENT
from lavit.workspace import Workspace
from tests.runs.stages import run_stages
from tests.runs.test_teal_run import changed
from tokenizer import train_speech

ROOT = Path(__file__).parents[2]
TOY = ROOT / "configs" / "teal" / "toy.yaml"
CONFIG = """
base: {toy}
demo:
  stages: [data, tokenizer, speech, extract, pretrain, vocoder, eval/speech, report]
data:
  speech: {{spoken_folder: {{path: {sounds}, name: tones}}}}
  split: {{validation: 0.2, test: 0.2}}
tokenizer:
  speech: {{folder: {whisper}, layer: 1, codes: 16, iterations: 5, batch: 8}}
pretrain:
  model: {{factored: {{speech: 16}}}}
  mixture: {{audio_text: 0.3, text_audio: 0.3}}
vocoder:
  model: {{width: 16, blocks: 1, mels: 20, window: 512, iterations: 4}}
  train: {{steps: 3, batch: 8, checkpoint_every: 2, log_every: 1}}
evaluation:
  clips: 6
  spoken: 3
  recogniser: {whisper}
  transcript: {{max_tokens: 4}}
  speech: {{min_tokens: 2, max_tokens: 6}}
"""


def write_whisper(folder: Path) -> Path:
    """A Whisper of random weights with a tokenizer of letters."""
    torch.manual_seed(0)
    words = ["<pad>", *"abcdefghijklmnopqrstuvwxyz", "<|endoftext|>", "<|startoftranscript|>", "<|es|>",
             "<|transcribe|>", "<|notimestamps|>"]  # fmt: skip
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(folder)
    WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(words),
            d_model=16,
            num_mel_bins=80,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            pad_token_id=0,
            bos_token_id=27,
            eos_token_id=27,
            decoder_start_token_id=28,
        )  # fmt: skip
    ).save_pretrained(folder)
    return folder


def write_tones(folder: Path) -> Path:
    """Half a second of one of four pitches in each of forty files, with the pitch as text; and a file of no sound."""
    folder.mkdir()
    for number in range(40):
        pitch = 200 * 2 ** (number % 4)
        time = np.arange(8000 + 40 * number) / 16000
        soundfile.write(folder / f"tone{number}.wav", 0.3 * np.sin(2 * np.pi * pitch * time), 16000)
        (folder / f"tone{number}.txt").write_text(f"tone {number} of {pitch}")
    (folder / "broken.wav").write_bytes(b"RIFF")
    (folder / "broken.txt").write_text("nothing to hear")
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    places = {"toy": TOY, "whisper": write_whisper(folder / "whisper"), "sounds": write_tones(folder / "tones")}
    (folder / "config.yaml").write_text(CONFIG.format(**places))
    run_stages(folder / "config.yaml", folder / "run")
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def work(config):
    run = config.parent / "run"
    return Workspace(load_experiment(config, [f"run={run}"]), run)


def test_clips_are_kept_as_they_were_and_what_is_no_sound_is_named(work):
    index = json.loads((work.run / "data" / "speech" / "index.json").read_text())
    assert sum(index["counts"].values()) == 40 and [skip[0] for skip in index["skipped"]] == ["broken.wav"]
    shards = Shards(work.run / "data" / "speech")
    assert shards.describe(0)[0].startswith("tone ") and shards.file(0)[:4] == b"fLaC"


def test_the_codes_of_a_clip_are_those_of_the_tokenizer(work):
    codes, shards = work.codes("speech", "train"), work.shards("speech", "train")
    assert len(codes) == len(shards) and int(codes.counts().min()) >= 12
    system = LaVIT.from_run(work, renders=False)
    assert [one.tolist() for one in system.listen(read_sounds(shards, [0, 3]))] == [
        codes.codes(n).tolist() for n in (0, 3)
    ]


def test_rows_of_speech_begin_as_its_centres_and_are_trained(work):
    centres = load_file(work.run / "speech" / "speech.safetensors")["codebook"]
    assert torch.equal(work.new_model().embedding.new.audio.codes, centres)
    old, new = (load_file(work.run / "pretrain" / phase / "model.safetensors") for phase in ("align", "finetune"))
    assert torch.equal(old["head.new.audio.codes"], centres)
    assert not torch.equal(new["head.new.audio.codes"], centres)
    assert changed(work.new_model().state_dict(), old) == {
        f"{side}.new.{kind}.{part}"
        for side in ("embedding", "head")
        for kind in ("image", "audio")
        for part in ("project", "project_bias")
    }, "the first phase moves projections alone"


def test_speech_is_logged_beside_text_and_images(work):
    lines = [json.loads(line) for line in (work.run / "pretrain" / "align" / "log.jsonl").read_text().splitlines()]
    assert any(line.get("audio") for line in lines) and any(line.get("tokens_audio_text") for line in lines)
    assert any(line.get("epochs_speech") for line in lines)


def test_figures_have_their_controls(work):
    figures = json.loads((work.run / "metrics.json").read_text())["speech"]
    assert set(REQUIRED["speech"].split()) | {"round_trip_cer", "spoken_cer", "mel_error"} <= figures.keys()
    samples = json.loads((work.run / "eval" / "speech" / "figures.json").read_text())["samples"]
    truth, written, near = ([sample[name] for sample in samples] for name in ("truth", "written", "nearest"))
    assert len(truth) == figures["n"] and figures["cer"] == error_rates(written, truth)["cer"]
    assert figures["cer_nearest"] == error_rates(near, truth)["cer"]
    assert "<h2>Speech</h2>" in (work.run / "report.html").read_text()


@pytest.mark.parametrize("ordered", [True, False])
def test_controls_of_transcripts_tell_who_hears_the_order_of_codes(work, ordered):
    """A writer that names each code it hears is right; with codes out of order it is wrong if their order tells it."""

    def write(heard, plan, seeds):
        return ["".join(chr(97 + int(code)) for code in (codes if ordered else codes.sort().values)) for codes in heard]

    writer = SimpleNamespace(maker=SimpleNamespace(heard=lambda codes: codes), write_texts=write)
    heard = [torch.arange(start, start + 8) for start in (0, 8, 16)]
    truth = ["abcdefgh", "ijklmnop", "qrstuvwx"]
    figures = written_down(writer, heard, truth, [0, 1, 2], work.experiment)
    assert figures["written"] == truth and figures["cer"] == 0 and figures["cer_shuffled"] == 1
    assert figures["cer_mixed"] > 0.3 if ordered else figures["cer_mixed"] == 0


def test_sounds_in_and_out_also_from_a_release(work, tmp_path):
    system = LaVIT.from_run(work, renders=False)
    sound = np.sin(np.arange(8000) / 10).astype(np.float32) / 4
    (text,) = system.transcribe([sound], rate=16000)
    assert text == system.transcribe(sound, rate=16000)
    spoken = system.speak("tone 1 of 400", seed=3)
    assert spoken.dim() == 1 and len(spoken) % 640 == 0 and float(spoken.abs().max()) <= 1
    system.save_pretrained(tmp_path / "release")
    again = LaVIT.from_pretrained(tmp_path / "release", "cpu")
    assert again.transcribe(sound, rate=16000) == text
    torch.testing.assert_close(again.speak("tone 1 of 400", seed=3), spoken)


def test_the_card_of_a_release_names_whose_speech_it_is(work):
    parts, index = weights_of(load_experiment("configs/teal/demo.yaml")), read_json(work.run / "data/speech/index.json")
    assert {part for part, about in parts.items() if "Whisper" in about["what"]} == {
        "encoder of speech, first half",
        "encoder of speech, second half",
    }
    figures = read_json(work.run / "eval/speech/figures.json")
    said = {"versions": {}, "python": "", "commit": "", "dirty": False}
    card = model_card(work.experiment, {"speech": figures}, {"speech": index}, said, {"vocoder": 1})
    assert f"0 pictures and {sum(index['counts'].values())} clips of speech" in card


def test_what_cannot_be_is_said(work, config, tmp_path, capsys):
    system = LaVIT.from_run(work, renders=False)
    with pytest.raises(ValueError, match="give words"):
        system.speak(" ")
    with pytest.raises(ValueError, match="samples without a rate"):
        system.transcribe(np.zeros(8000, dtype=np.float32))
    system.parts.vocoder = None
    with pytest.raises(ValueError, match="this system has no vocoder"):
        system.speak("a tone")
    deaf = LaVIT.from_pretrained(device="cpu")
    with pytest.raises(ValueError, match=SILENT[:30]):
        deaf.transcribe(np.zeros(8000, dtype=np.float32), rate=16000)
    with pytest.raises(ValueError, match="data.speech and tokenizer.speech go together"):
        load_experiment(config, ["data.speech=null", "pretrain.mixture.audio_text=0", "pretrain.mixture.text_audio=0"])
    with pytest.raises(ValueError, match="tokenizer.speech is not set"):
        load_experiment(config, ["tokenizer.speech=null"])
    with pytest.raises(ValueError, match="the codebook is .* model.factored asks for"):
        work.new_model().start_from_codebooks(torch.zeros(32, 8), torch.zeros(16, 8))
    with pytest.raises(SystemExit):
        run_stage(train_speech.main, "speech", [str(TOY), f"run={tmp_path / 'run'}"])
    assert "error: tokenizer.speech is not set" in capsys.readouterr().err
