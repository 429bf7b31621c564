"""Speech of held-out things: written down, found by what is said, and said aloud.

Beside each figure stand its controls: texts of other clips, a clip's own codes in another order, the training clip that
sounds most alike, and, of what is made audible, what the same recogniser hears in the recording and in it after
Griffin–Lim alone.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lavit.data.audio import read_sounds, to_flac
from lavit.data.order import evenly, generator_for, seed_for
from lavit.data.whisper import whisper_folder
from lavit.experiment import Experiment, run_stage
from lavit.metrics.codes import code_usage
from lavit.metrics.retrieval import chance_recall, derangements, recall_at
from lavit.metrics.speech import error_rates
from lavit.pipeline import LaVIT
from lavit.renderers.vocoder import Vocoder
from lavit.runs import Progress, write_json
from lavit.tokenizers.codes import CodeSet
from lavit.tokenizers.recogniser import Recogniser
from lavit.tokenizers.speech import SpeechTokenizer
from lavit.workspace import Workspace

SHOWN = 8  # clips that can be heard in the report


def main(experiment: Experiment, run: Path) -> None:
    work, cfg = Workspace(experiment, run), experiment.evaluation
    if experiment.data.speech is None:
        raise ValueError("data.speech is not set: there is nothing to listen to; leave eval/speech out of demo.stages")
    folder, system = work.folder("eval/speech"), LaVIT.from_run(work, renders=False)
    clips, codes = work.shards("speech", cfg.split), work.codes("speech", cfg.split)
    numbers = evenly(list(range(len(clips))), cfg.clips)
    heard, truth = [codes.codes(n) for n in numbers], [clips.describe(n)[0] for n in numbers]
    progress = Progress(folder, 5, "passes")
    figures = written_down(system, heard, truth, numbers, experiment)
    written = figures.pop("written")
    progress.update(1)
    train = work.shards("speech", "train")
    sounds = read_sounds(clips, numbers)
    near = [train.describe(n)[0] for n in alike(sounds, system.parts.speech, work.codes("speech", "train"))]
    figures |= named("nearest", error_rates(near, truth)) | named("constant", constant(work, truth))
    progress.update(2)
    figures |= found(system, heard[: cfg.retrieval], truth[: cfg.retrieval])
    progress.update(3)
    if system.parts.vocoder is not None:
        parts = (its[: cfg.spoken] for its in (sounds, heard, truth, numbers))
        figures |= audible(system, *parts, experiment, folder)
    progress.update(4)
    counts = codes.counts().double()
    size = len(system.parts.speech.codebook)
    used = code_usage(torch.cat([codes.codes(n) for n in range(len(codes))]), size)
    figures |= {"tokens_mean": float(counts.mean()), "codes": size, "perplexity": used["perplexity"]}
    samples = [
        {"number": n, "truth": t, "written": w, "nearest": m}
        for n, t, w, m in zip(numbers, truth, written, near, strict=True)
    ]
    write_json(folder / "figures.json", figures | {"n": len(numbers), "split": cfg.split, "samples": samples})
    progress.update(5)


def named(name: str, rates: dict[str, float]) -> dict[str, float]:
    return {f"{key}_{name}": value for key, value in rates.items()}


def written_down(
    system: LaVIT, heard: list[Tensor], truth: list[str], numbers: list[int], experiment: Experiment
) -> dict:
    """Error rates of transcripts; of the same beside other clips' texts; and of clips whose codes are out of order."""
    cfg, seed = experiment.evaluation, experiment.seed
    seeds = [seed_for(seed, n) for n in numbers]

    def write(codes: list[Tensor]) -> list[str]:
        return system.write_texts([system.maker.heard(one) for one in codes], cfg.transcript, seeds)

    written = write(heard)
    wrong = [
        error_rates([written[i] for i in order], truth) for order in derangements(len(truth), cfg.derangements, seed)
    ]
    figures = error_rates(written, truth) | named("mixed", error_rates(write(out_of_order(heard, seeds)), truth))
    figures |= {f"{key}_shuffled": sum(one[key] for one in wrong) / len(wrong) for key in ("cer", "wer")}
    return figures | {"written": written}


def out_of_order(heard: list[Tensor], seeds: list[int]) -> list[Tensor]:
    """The codes of every clip in an order of its seed's."""
    return [one[torch.randperm(len(one), generator=generator_for(s))] for one, s in zip(heard, seeds, strict=True)]


def alike(sounds: list[Tensor], tokenizer: SpeechTokenizer, train: CodeSet) -> list[int]:
    """The training clips whose mean codes are most similar to those of sounds, by number."""
    mean = torch.stack([tokenizer.codebook[train.codes(n)].mean(0) for n in range(len(train))])
    own = torch.stack([tokenizer.encode([sound]).features[0].mean(0) - tokenizer.mean for sound in sounds])
    return (F.normalize(own, dim=-1) @ F.normalize(mean, dim=-1).T).argmax(1).tolist()


def constant(work: Workspace, truth: list[str]) -> dict[str, float]:
    """Error rates of the training text that is nearest to all of validation, whatever is said."""
    train, held = work.shards("speech", "train"), work.shards("speech", "validation")
    texts = sorted({train.describe(n)[0] for n in range(len(train))})[::7]  # a seventh: all pairs would take minutes
    right = [held.describe(n)[0] for n in range(len(held))]
    best = min(texts, key=lambda text: error_rates([text] * len(right), right)["cer"])
    return error_rates([best] * len(truth), truth)


def found(system: LaVIT, heard: list[Tensor], truth: list[str]) -> dict[str, float]:
    """Finding what is said in a clip among all texts, by its likelihood over the mean over clips."""
    raw = system.transcript_scores(heard, truth)
    scores, n = raw - raw.logsumexp(0, keepdim=True), len(truth)
    figures = {f"retrieval_r{k}": recall_at(scores, torch.arange(n), min(k, n)) for k in (1, 10)}
    return figures | {f"retrieval_chance_r{k}": chance_recall(n, min(k, n)) for k in (1, 10)} | {"retrieval_n": n}


def audible(
    system: LaVIT,
    sounds: list[Tensor],
    heard: list[Tensor],
    truth: list[str],
    numbers: list[int],
    experiment: Experiment,
    folder: Path,
) -> dict[str, float]:
    """What a recogniser hears, and how far spectrograms are from those of the recordings; some sounds are kept."""
    cfg, vocoder = experiment.evaluation, system.parts.vocoder
    seeds = [seed_for(experiment.seed, n) for n in numbers]
    said = system.say_codes(truth, cfg.speech, seeds)
    codes = heard, out_of_order(heard, seeds), said
    rebuilt, mixed, aloud = (vocoder.sounds(its, seeds) for its in codes)
    spectrogram = vocoder.spectrogram
    lifted = [
        spectrogram.sound(spectrogram(s), vocoder.config.iterations, i) for s, i in zip(sounds, seeds, strict=True)
    ]
    judge = Recogniser(cfg.recogniser or whisper_folder(), cfg.language)
    order = derangements(len(truth), 1, experiment.seed)[0].tolist()
    spoken = judge.transcribe(aloud)
    hears = {
        "recording": judge.transcribe(sounds), "lifted": judge.transcribe(lifted),
        "round_trip": judge.transcribe(rebuilt), "round_trip_mixed": judge.transcribe(mixed),
        "spoken": spoken, "spoken_shuffled": [spoken[i] for i in order],
    }  # fmt: skip
    heard_as = {"recording": sounds, "codes": rebuilt, "said": aloud}
    for number, *its in zip(numbers[:SHOWN], *heard_as.values(), strict=False):
        for name, sound in zip(heard_as, its, strict=True):
            (folder / f"{number}-{name}.flac").write_bytes(to_flac(sound if len(sound) else torch.zeros(160)))
    figures = {f"{name}_cer": error_rates(texts, truth)["cer"] for name, texts in hears.items()}
    errors = {"mel": rebuilt, "mel_lifted": lifted, "mel_mixed": mixed}
    figures |= {f"{name}_error": mel_error(vocoder, made, sounds) for name, made in errors.items()}
    mean = torch.stack([spectrogram(sound).mean(1) for sound in sounds]).mean(0)
    constants = [(spectrogram(sound) - mean[:, None]).abs().mean() for sound in sounds]
    lengths = torch.tensor([len(one) for one in said]).double() / torch.tensor([len(one) for one in heard])
    return figures | {
        "mel_constant_error": float(torch.stack(constants).mean()),
        "spoken_length": float(lengths.mean()),
        "spoken_n": len(truth),
    }


def mel_error(vocoder: Vocoder, made: list[Tensor], sounds: list[Tensor]) -> float:
    """Mean absolute difference of log-mel spectrograms, in nats, over the frames that both have."""
    errors = []
    for ours, theirs in zip(made, sounds, strict=True):
        one, other = vocoder.spectrogram(ours), vocoder.spectrogram(theirs)
        frames = min(one.shape[1], other.shape[1])
        errors.append((one[:, :frames] - other[:, :frames]).abs().mean())
    return float(torch.stack(errors).mean())


if __name__ == "__main__":
    run_stage(main, "eval/speech")
