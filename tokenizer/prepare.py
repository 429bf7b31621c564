"""Before stage 1: fetch assets, write shards, cache features. ``python -m tokenizer.prepare CONFIG [key=value ...]``"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from lavit.data.assets import fetch
from lavit.data.llms import llm_folder
from lavit.data.prepare import DataConfig, left_out_words, prepare
from lavit.data.shards import Shards
from lavit.data.sources import fetch_source
from lavit.data.texts import write_texts
from lavit.data.whisper import whisper_folder
from lavit.experiment import Experiment, run_stage
from lavit.runs import FolderLock, Progress, end_with_parent, is_done, mark_done, stage_clock
from lavit.tokenizers.encoders import check_encoder
from lavit.workspace import Workspace


def main(experiment: Experiment, run: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    work = Workspace(experiment, run)
    folder = work.folder("data")
    end_with_parent()
    with FolderLock(folder):
        if experiment.data.text:  # before the data are done: what is cut here must not be skipped
            with stage_clock(work.folder("assets")):
                write_texts(experiment.data.text, experiment.data.split, run / "text")
        if not is_done(folder):
            make_data(work, folder)


def make_data(work: Workspace, folder: Path) -> None:
    """Shards of pictures, and what the encoder makes of them where that is kept."""
    experiment = work.experiment
    check_encoder(experiment.tokenizer.model.encoder)
    with stage_clock(work.folder("assets")):
        fetch_assets(experiment.data, experiment.tokenizer.model.encoder.weights.asset, folder)
        if experiment.pretrain.model.llm.asset:
            llm_folder(experiment.pretrain.model.llm.asset)
        if experiment.pretrain.text.words or experiment.pyramid and not experiment.pyramid.relevance.clip:
            fetch("sentences")
        if experiment.tokenizer.speech and experiment.tokenizer.speech.folder is None:
            whisper_folder()
    with stage_clock(folder):
        indices = write_shards(experiment.data, folder)
        require_splits(indices, folder, experiment.evaluation.split)
        work.cache_features()
    counts = {name: index["counts"] for name, index in indices.items()}
    mark_done(folder, {"counts": counts, "note": left_out_words(indices, folder)})


def fetch_assets(data: DataConfig, weights: str | None, folder: Path) -> None:
    """Fetch what the sources and the encoder are made of; what is in the cache is only looked at."""
    sources = [*data.sources, *(source for source in (data.vqa, data.speech) if source)]
    progress = Progress(folder, len(sources) + 1, "assets")
    for number, source in enumerate(sources):
        progress.update(number, source.chosen()[0])
        fetch_source(source)
    if weights is not None:
        fetch(weights)
    progress.update(len(sources) + 1)


def write_shards(data: DataConfig, folder: Path) -> dict[str, dict]:
    """Write ``captions``, ``vqa`` and ``speech`` below ``folder`` unless they are there; their indices by name."""
    bars: dict[str, Progress] = {}

    def show(done: int, total: int, part: str) -> None:
        bars.setdefault(part, Progress(folder, total, "clips" if part == "speech" else "pictures")).update(done, part)

    return prepare(data, folder, show)


def require_splits(indices: dict[str, dict], folder: Path, evaluated: str = "test") -> None:
    """Check that there is something to train on and to choose by, and two to evaluate on; else shards are removed.

    Evaluations shuffle what is said of one picture to another, so that pictures to be captioned need two captions.

    Raises:
        ValueError: naming the part, its counts and what can be done.
    """
    for place, (name, index) in enumerate(indices.items()):
        if lacking := lack(name, index["counts"], folder / name, sorted({"test", evaluated})):
            for part in list(indices)[place:]:  # which pictures a later part has depends on the earlier ones
                shutil.rmtree(folder / part)
            remedy = "add some of other things, raise data.split, or give a source its split"
            raise ValueError(f"data: {lacking}: {remedy}")


def lack(name: str, counts: dict[str, int], folder: Path, evaluated: list[str]) -> str | None:
    """What is missing in a part's shards, where anything is."""
    if any(count < (2 if split in evaluated else 1) for split, count in counts.items()):
        return f"{name} has {counts} examples; each split needs some, {' and '.join(evaluated)} two"
    for split in evaluated if name == "captions" else ():
        if not (found := Shards(folder, split)).differ():
            return f"all pictures of {split} are captioned {found.describe(0)[0]!r}; two captions are needed"
    return None


if __name__ == "__main__":
    run_stage(main)
