"""Between stages 1 and 2: pictures to visual words and merged features, speech to codes. ``make extract CONFIG=…``

Reads the run's prepared shards, or with ``extraction.input`` a folder of images or of img2dataset's tars as they are.
A shard of pictures becomes a shard of codes below ``run/extract`` (of another input: ``run/extracted/NAME``), whole or
not at all, so that a run that was cut goes on at the next shard; ranks share the shards, and a shard's result does not
depend on their number. A shard tells whose codes it holds: those of another tokenizer, or of other pictures, are an
error.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lavit.arguments import device_of_rank
from lavit.data.audio import read_sounds
from lavit.data.images import SUFFIXES, open_image
from lavit.data.shards import ShardError, Shards
from lavit.experiment import Experiment, ExtractionConfig, run_stage
from lavit.launch import rank_and_world
from lavit.runs import FolderLock, Progress, is_done, mark_done, read_json, stage_clock
from lavit.tokenizers.codes import Extracted, write_shard
from lavit.tokenizers.encoders import EncoderConfig, to_pixels
from lavit.tokenizers.features import PictureSet
from lavit.tokenizers.speech import ROOM, SpeechTokenizer
from lavit.tokenizers.tokenizer import Tokenizer
from lavit.tokens import Tokens
from lavit.weights import file_digest
from lavit.workspace import SPLITS, Workspace

log = logging.getLogger(__name__)
FOLDER_SHARD = 1000  # images of a folder that make a shard


class Pictures(NamedTuple):
    """The pictures of a shard.

    keys: their names; read: numbers within the shard to inputs of the tokenizer for those that can be read (None if
    there are none), their numbers, and why the others cannot.
    """

    keys: list[str]
    read: Callable[[list[int]], tuple[Tensor | None, list[int], dict[int, str]]]


class Job(NamedTuple):
    """A shard to be made: the folder of its codes, how its pictures are opened, where they are.

    keys: of images in a folder, which may have changed since; a tar stays what it is. part: captions, vqa or speech.
    """

    folder: Path
    open: Callable[[], Pictures]
    source: Path
    keys: list[str] | None = None
    part: str = "captions"


class Coder(NamedTuple):
    """What makes the codes of a part: the digest of a tokenizer, and what opens it, once, to give tokens of inputs."""

    made_by: str
    open: Callable[[], Callable[[Any], list[Extracted]]]

    @classmethod
    def of(cls, work: Workspace, part: str) -> Coder:
        """The one of pictures or, for the part "speech", of sounds."""
        if part == "speech":
            # Codes also depend on how far sounds are padded, which no file of weights says.
            digest = f"{file_digest(work.run / 'speech' / 'speech.safetensors')} padded to {ROOM} codes"
            return cls(digest, functools.cache(lambda: partial(heard, work.speech_tokenizer().to(device_of_rank()))))
        digest = file_digest(work.run / "tokenizer" / "tokenizer.safetensors")
        return cls(digest, functools.cache(lambda: partial(tokens_of, work.tokenizer().to(device_of_rank()))))


def main(experiment: Experiment, run: Path) -> None:
    work = Workspace(experiment, run)
    source = experiment.extraction.input
    folder = work.folder("extract") if source is None else work.folder(f"extracted/{input_name(Path(source))}")
    jobs = jobs_of(work) if source is None else foreign_jobs(Path(source), folder, experiment.tokenizer.model.encoder)
    coders = {part: Coder.of(work, part) for part in {job.part for job in jobs}}
    check_made(jobs, coders)
    if is_done(folder) and not missing(jobs):
        return
    # Ranks need nothing of each other but that their shards appear, and the launcher ends all if one fails.
    rank, world = rank_and_world()
    with FolderLock(folder) if rank == 0 else contextlib.nullcontext():
        with stage_clock(folder) if rank == 0 else contextlib.nullcontext():
            progress = Progress(folder, len(jobs), "shards") if rank == 0 else None
            encode(jobs, jobs[rank::world], coders, experiment.extraction, progress)
            if rank == 0:
                while missing(jobs):
                    time.sleep(0.5)
                    progress.update(len(jobs) - missing(jobs), "waiting for the other ranks")
                left_out = sum(len(read_json(job.folder / "about.json")["skipped"]) for job in jobs)
                note = f"{left_out} could not be read; the log and about.json name them" if left_out else None
                mark_done(folder, {"shards": len(jobs), "left_out": left_out, "note": note})
                if note:
                    print(note, flush=True)


def check_made(jobs: list[Job], coders: dict[str, Coder]) -> None:
    """Check that what is there already is of this tokenizer and of these pictures.

    Raises:
        ValueError: naming the folder to remove.
    """
    for job in jobs:
        if job.folder.is_dir():
            about = read_json(job.folder / "about.json")
            if about["made_by"] != coders[job.part].made_by:
                raise ValueError(f"{job.folder} has codes of another tokenizer; remove {job.folder.parent}")
            if job.keys is not None and about["keys"] != job.keys:
                raise ValueError(f"{job.source} has other images than before; remove {job.folder.parent}")


def missing(jobs: list[Job]) -> int:
    return sum(not job.folder.is_dir() for job in jobs)


# ------------------------------------------------------------------------------------------------------ which pictures


def jobs_of(work: Workspace) -> list[Job]:
    """Every shard of the run's data, in the same order on all ranks."""
    size = work.experiment.tokenizer.model.encoder.image_size
    jobs = []
    for part in work.parts():
        for split in SPLITS:
            pictures = work.pictures(part, split)
            jobs += [
                Job(work.code_folder(part, tar), partial(prepared, pictures, numbers, size), tar)
                for tar, numbers in pictures.shards.by_tar()
            ]
    for split in SPLITS if work.experiment.data.speech else ():
        clips = work.shards("speech", split)
        jobs += [
            Job(work.code_folder("speech", tar), partial(recorded, clips, numbers), tar, part="speech")
            for tar, numbers in clips.by_tar()
        ]
    return jobs


def prepared(pictures: PictureSet, numbers: range, size: int) -> Pictures:
    """A prepared shard. Its pictures were read when it was written: one that cannot be read now is an error."""

    def read(wanted: list[int]) -> tuple[Tensor, list[int], dict[int, str]]:
        return pictures.inputs([numbers[n] for n in wanted], size), wanted, {}

    return Pictures([pictures.shards.keys[n] for n in numbers], read)


def recorded(clips: Shards, numbers: range) -> Pictures:
    """A prepared shard of clips."""

    def read(wanted: list[int]) -> tuple[list[Tensor], list[int], dict[int, str]]:
        return read_sounds(clips, [numbers[n] for n in wanted]), wanted, {}

    return Pictures([clips.keys[n] for n in numbers], read)


def input_name(source: Path) -> str:
    """A name for an input's codes: that of the input, and what tells it from others of that name."""
    return f"{source.stem}-{hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]}"


def foreign_jobs(source: Path, out: Path, encoder: EncoderConfig) -> list[Job]:
    """The tars of a folder and of those in it, or its images a thousand at a time.

    Raises:
        ValueError: an input that is not there or holds neither.
    """
    if not source.exists():
        raise ValueError(f"extraction.input {source} does not exist")
    base = source.parent if source.suffix == ".tar" else source
    tars = [source] if source.suffix == ".tar" else sorted(source.rglob("*.tar"))
    if tars:
        folders = [out / tar.relative_to(base).with_suffix("") for tar in tars]
        return [Job(folder, partial(foreign_tar, tar, encoder), tar) for folder, tar in zip(folders, tars, strict=True)]
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"extraction.input {source} holds no tars and no images ({', '.join(SUFFIXES)})")
    jobs = []
    for start in range(0, len(paths), FOLDER_SHARD):
        part = paths[start : start + FOLDER_SHARD]
        keys = [path.relative_to(source).as_posix() for path in part]
        opened = Pictures(keys, partial(read_foreign, part.__getitem__, keys, encoder))
        jobs.append(Job(out / f"images-{start // FOLDER_SHARD:06d}", partial(Pictures, *opened), source, keys))
    return jobs


def foreign_tar(tar: Path, encoder: EncoderConfig) -> Pictures:
    """A tar; of one that cannot be read nothing is, and its own name stands for its pictures."""
    try:
        shard = Shards(tar)
    except ShardError as error:
        reason = str(error)
        return Pictures([tar.name], lambda numbers: (None, [], dict.fromkeys(numbers, reason)))
    return Pictures(shard.keys, partial(read_foreign, shard.file, shard.keys, encoder))


def read_foreign(
    image: Callable[[int], bytes | Path], keys: list[str], encoder: EncoderConfig, numbers: list[int]
) -> tuple[Tensor | None, list[int], dict[int, str]]:
    """Pictures that nobody has looked at yet: those that are missing or cannot be read are named."""
    pixels, good, bad = [], [], {}
    for n in numbers:
        try:
            pixels.append(to_pixels(open_image(image(n), keys[n]), encoder.image_size, encoder.fit))
            good.append(n)
        except ValueError as error:
            bad[n] = str(error)
    return (torch.stack(pixels) if pixels else None), good, bad


# ------------------------------------------------------------------------------------------------------------ encoding


def encode(
    jobs: list[Job],
    own: list[Job],
    coders: dict[str, Coder],
    config: ExtractionConfig,
    progress: Progress | None,
) -> None:
    """Make the shards of ``own`` that are not there yet."""
    made, start = 0, time.perf_counter()

    def tell(more: int) -> None:
        nonlocal made
        made += more
        if progress:
            progress.update(len(jobs) - missing(jobs), f"{made / (time.perf_counter() - start):.1f} a second")

    for job in own:
        if not job.folder.is_dir():
            encode_shard(job, coders[job.part], config, tell)
            tell(0)
    if made:
        seconds = time.perf_counter() - start
        print(f"{made} encoded in {seconds:.0f} s, {made / seconds:.1f} a second", flush=True)


@torch.no_grad()
def encode_shard(job: Job, coder: Coder, config: ExtractionConfig, tell: Callable[[int], None]) -> None:
    """Make one shard; pictures that cannot be read get no tokens, and are named in the log and in the shard."""
    keys, read = job.open()
    found: dict[int, Extracted] = {}
    skipped: dict[str, str] = {}
    for first in range(0, len(keys), config.batch):
        numbers = list(range(first, min(first + config.batch, len(keys))))
        inputs, good, bad = read(numbers)
        if inputs is not None:
            found |= zip(good, coder.open()(inputs), strict=True)
        for n, reason in bad.items():
            skipped[keys[n]] = reason
            log.warning("left out: %s", reason)
        tell(len(good))
    nothing = torch.zeros(0, dtype=torch.int64)
    blank = Extracted(nothing, torch.zeros(0, next(iter(found.values())).features.shape[1] if found else 1), nothing)
    about = {"keys": keys, "skipped": skipped, "made_by": coder.made_by}
    # Speech enters a language model as codes alone, and pictures of elsewhere enter none.
    features = config.features and config.input is None and job.part != "speech"
    write_shard(job.folder, [found.get(n, blank) for n in range(len(keys))], about, features)


def tokens_of(tokenizer: Tokenizer, inputs: Tensor) -> list[Extracted]:
    """The tokens of a batch of inputs, on the CPU."""
    tokens = tokenizer.encode_features(tokenizer.patch_features(inputs.to(tokenizer.channel_weight.device)))
    return split_up(tokens._replace(codes=tokenizer.words(tokens)))


def heard(tokenizer: SpeechTokenizer, sounds: list[Tensor]) -> list[Extracted]:
    """The tokens of sounds, on the CPU."""
    return split_up(tokenizer.encode(sounds))


def split_up(tokens: Tokens) -> list[Extracted]:
    """The tokens of each item of a batch."""
    parts = (tokens.codes, tokens.features.float(), tokens.position, tokens.keep)
    rows = zip(*(part.cpu() for part in parts), strict=True)
    return [Extracted(words[keep], features[keep], places[keep]) for words, features, places, keep in rows]


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    run_stage(main)
