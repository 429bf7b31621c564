"""FID and CLIP score of drawings: ``make eval-fid CONFIG=… ARGS="evaluation.fid={weights: …, reference: …}"``.

LaVIT's protocol is 30,000 captions of COCO, of four drawings of each the one that CLIP likes best (arXiv 2309.04669).
Nothing is fetched: without Inception's weights there is no FID, and without CLIP no CLIP score, and ``figures.json``
says so; that of each setting is in ``run/benchmarks/fid/DIGEST``. The drawings are in ``drawings-DIGEST`` beside it, a
folder for each way of drawing; what was cut goes on.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.drawings import Wanted, at_work, check_draws, draw_missing, drawing_setting, not_run, setting_folder
from eval.models import digest_of, open_artist, weights_digests
from lavit.arguments import batches, device_of_rank
from lavit.benchmarks.drawings import read_captions, sampled
from lavit.benchmarks.inception import (
    KEY,
    OFFICIAL,
    FidConfig,
    Inception,
    extractor_name,
    read_moments,
    reference_digest,
    reference_files,
)
from lavit.data.images import open_image
from lavit.data.order import seed_for
from lavit.experiment import Experiment, run_stage
from lavit.launch import rank_and_world
from lavit.metrics.images import Moments, checked, clip_scores, frechet_of_moments, moments
from lavit.runs import (
    Progress,
    environment,
    is_done,
    mark_done,
    stage_folder,
    write_json,
    written_whole,
)
from lavit.tokenizers.relevance import Clip
from lavit.weights import file_digest
from lavit.workspace import Workspace

SHOWN = 50  # texts of drawings that figures.json names
LOT, DRAW = 5, 6  # which of the seeds


def main(experiment: Experiment, run: Path) -> None:
    config, rank = experiment.evaluation.fid or FidConfig(), rank_and_world()[0]
    folder = stage_folder(run, "benchmarks/fid")
    reasons = missing(config, experiment.evaluation.clip)
    if experiment.evaluation.fid is None:
        unset = f"not run: {KEY} is not set"
        reasons = {"fid": unset, "clip_score": reasons.get("clip_score", unset)}
    if len(reasons) == 2:
        if rank == 0:
            not_run(folder, "FID and CLIP score", reasons)
        return
    check_draws(experiment)
    with at_work(folder):
        evaluate(experiment, run, config, reasons, folder)


def missing(config: FidConfig, clip: str | None) -> dict[str, str]:
    """Why each figure cannot be measured, by its name.

    Raises:
        ValueError: a place is set, and nothing is there.
    """
    needs = {
        "fid": {f"{KEY}.weights": config.weights, f"{KEY}.reference": config.reference},
        "clip_score": {"evaluation.clip": clip},
    }
    reasons: dict[str, str] = {}
    for figure, places in needs.items():
        for key, place in places.items():
            if place is None:
                reasons.setdefault(figure, f"not run: {key} is not set")
            elif not Path(place).exists() or key == f"{KEY}.weights" and not Path(place).is_file():
                raise ValueError(f"{key} names {place}, which is not there, or no file of weights; correct the path")
    return reasons


def evaluate(experiment: Experiment, run: Path, config: FidConfig, reasons: dict[str, str], folder: Path) -> None:
    """Draw what is missing; on rank 0, measure it as soon as all is there."""
    rank, seed = rank_and_world()[0], experiment.seed
    captions = captions_of(experiment, run, config)
    setting: dict[str, Any] = {"samples": len(captions), "captions": config.captions or experiment.evaluation.split}
    setting["drawing"] = drawing_setting(experiment, run, config.drawing) | {"texts": digest_of(captions)}
    drawings = folder / f"drawings-{digest_of(setting['drawing'])[:12]}"
    setting["clip"] = weights_digests(experiment.evaluation.clip) if "clip_score" not in reasons else None
    setting["fid"] = about_fid(config) if "fid" not in reasons else None
    place = setting_folder(folder, setting)
    if is_done(place):
        if rank == 0:
            print(f"FID and CLIP score: {place / 'figures.json'}", flush=True)
        return
    # What is wrong with the judges is found before anything is drawn.
    clip = (
        Clip(experiment.evaluation.clip, "evaluation.clip").to(device_of_rank())
        if "clip_score" not in reasons
        else None
    )
    extractor = reference = None
    if setting["fid"] and rank == 0:
        extractor = Inception(config.weights, config.resize, device_of_rank())
        reference = moments_of_reference(extractor, config, setting["fid"], folder)
    files = [drawings / f"{number:06}.png" for number in range(len(captions))]
    wanted = [
        Wanted(path, text, seed_for(seed, DRAW, number))
        for number, (path, text) in enumerate(zip(files, captions, strict=True))
    ]
    progress = Progress(folder, len(wanted), "drawings") if rank == 0 else None
    system = functools.cache(lambda: open_artist(experiment, run))
    draw_missing(wanted, system, config.drawing, clip, experiment.evaluation.batch, progress)
    if progress is None:
        return
    figures: dict[str, Any] = dict.fromkeys(("fid", "clip_score")) | {"reasons": dict(reasons)}
    if extractor is not None and reference is not None:
        told = functools.partial(_told, progress, len(files))
        distance = frechet_of_moments(moments(extractor.of_files(files, config.batch, told)), reference)
        figures |= named(distance, extractor, figures["reasons"])
    if clip is not None:
        scores = clip_scores_of(clip, wanted, config.batch)
        figures |= {"clip_score": float(scores.mean()), "clip_score_error": float(scores.std() / len(scores) ** 0.5)}
    samples = [{"number": number, "text": text} for number, text in enumerate(captions[:SHOWN])]
    about = {"n": len(files), "setting": setting, "release": experiment.benchmarks.release}
    place.mkdir(exist_ok=True)
    write_json(place / "figures.json", figures | about | {"environment": environment(), "samples": samples})
    mark_done(place)
    progress.update(len(files))
    lacking = "".join(f" ({name} {reason})" for name, reason in figures["reasons"].items())
    print(f"FID and CLIP score of {len(files):,} drawings: {place / 'figures.json'}{lacking}", flush=True)


def _told(progress: Progress, count: int, done: int) -> None:
    progress.update(min(done, count - 1), "features")


def named(distance: float, extractor: Inception, reasons: dict[str, str]) -> dict[str, Any]:
    """The distance under its name: with other weights than those that FID is defined with it is ``fd_inception``."""
    if extractor.official:
        return {"fid": distance}
    why = (
        f"not run: the sha256 of the weights begins with {extractor.digest[:8]} and not with {OFFICIAL}, as that of "
        "the weights which FID is defined with; the distance with these is fd_inception"
    )
    return {"fd_inception": distance, "reasons": reasons | {"fid": why}}


def captions_of(experiment: Experiment, run: Path, config: FidConfig) -> list[str]:
    """The texts that are drawn, chosen by lot from those of a file or of the run's own split."""
    if config.captions is not None:
        captions = read_captions(config.captions, f"{KEY}.captions")
    else:
        pictures = Workspace(experiment, run).pictures("captions", experiment.evaluation.split)
        captions = [pictures.captions[number] for number in pictures.distinct()]
    return sampled(captions, config.samples, seed_for(experiment.seed, LOT), f"{KEY}.samples")


def about_fid(config: FidConfig) -> dict[str, Any]:
    """All that FID depends on beside the drawings."""
    path = Path(config.reference)
    return {
        "extractor": extractor_name(),
        "weights": file_digest(Path(config.weights)),
        "resize": config.resize,
        "reference": config.reference,
        "reference_digest": reference_digest(path),
        "reference_n": len(reference_files(path)) if path.is_dir() else None,
    }


def moments_of_reference(extractor: Inception, config: FidConfig, about: dict[str, Any], folder: Path) -> Moments:
    """Mean and covariance of the reference's features; those of a folder of pictures are kept in ``folder``.

    ``about`` is what :func:`about_fid` tells, whose digest of the reference reads all of it.

    Raises:
        ValueError: a .npz of other features, or pictures that cannot be read.
    """
    path = Path(config.reference)
    if path.is_file():
        return _checked(path)
    kept = folder / f"reference-{digest_of([about[k] for k in ('weights', 'resize', 'reference_digest')])[:12]}.npz"
    if not kept.is_file():
        files = reference_files(path)
        progress = Progress(folder, len(files), "reference pictures")
        found = moments(extractor.of_files(files, config.batch, progress.update))
        with written_whole(kept) as draft, draft.open("wb") as file:
            np.savez(file, mu=found.mean.numpy(), sigma=found.covariance.numpy())
    return _checked(kept)


def _checked(path: Path) -> Moments:
    try:
        return checked(Moments(*read_moments(path)))
    except ValueError as error:
        raise ValueError(str(error) if KEY in str(error) else f"{KEY}.reference: {path}: {error}") from None


def clip_scores_of(clip: Clip, wanted: list[Wanted], batch: int) -> torch.Tensor:
    """(n,) float64 CLIP scores of drawings and their texts."""
    found = []
    for part in batches(wanted, batch):
        pixels = clip.pixels([open_image(one.path, str(one.path)) for one in part])
        found.append(clip_scores(clip.images([pixels]), clip.texts([one.text for one in part])))
    return torch.cat(found)


if __name__ == "__main__":
    run_stage(main)
