"""Which model a standard measure is taken of: a run's own, or a release's; and what it is made of, in digests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lavit.arguments import device_of_rank
from lavit.experiment import Experiment
from lavit.few_shot import writer_of
from lavit.pipeline import LaVIT
from lavit.release import read_config
from lavit.weights import file_digest
from lavit.workspace import Workspace

WRITES = ("pretrain/model.safetensors",)
DRAWS = ("tokenizer/tokenizer.safetensors", "pretrain/model.safetensors", "decoder/renderer.safetensors")


def open_writer(experiment: Experiment, run: Path) -> Any:
    """What captions and answers, on this rank's device: ``benchmarks.release``, or the run's own model."""
    if experiment.benchmarks.release is not None:
        return _release(experiment, experiment.benchmarks.batch)
    writer = writer_of(Workspace(experiment, run))
    writer.batch = experiment.benchmarks.batch
    return writer.to(device_of_rank())


def open_artist(experiment: Experiment, run: Path) -> LaVIT:
    """What draws, on this rank's device: ``benchmarks.release``, or the run's own system."""
    if experiment.benchmarks.release is not None:
        return _release(experiment, experiment.evaluation.batch)
    return LaVIT.from_run(Workspace(experiment, run)).to(device_of_rank())


def _release(experiment: Experiment, batch: int) -> LaVIT:
    return LaVIT.from_pretrained(experiment.benchmarks.release, device_of_rank(), batch=batch)


def writer_precision(experiment: Experiment) -> str:
    """In what the language model computes: a release on a GPU in half of it, the rest in full."""
    on_gpu = device_of_rank().type == "cuda"
    return "bfloat16" if on_gpu and experiment.benchmarks.release is not None else "float32"


def writer_digests(experiment: Experiment, run: Path) -> dict[str, str]:
    """sha256 of every file of weights that captions and answers depend on, by its path in the release or the run, or by
    what it is where it lies elsewhere."""
    if experiment.benchmarks.release is not None:
        return _release_digests(experiment)
    tokenizer = "tokenizer/tokenizer.safetensors"  # visual words have none of their own
    given = given_digests(experiment, (run / tokenizer).is_file())
    if experiment.pyramid is not None:
        return given | {name: file_digest(run / name) for name in ("pyramid/pyramid.safetensors", "words/words.json")}
    names = (*WRITES, tokenizer) if (run / tokenizer).is_file() else WRITES
    return given | {name: file_digest(run / name) for name in names}


def given_digests(experiment: Experiment, tokenized: bool) -> dict[str, str]:
    """sha256 of the weights from elsewhere that no file of a run holds: a language model's that is read in context, and
    an encoder's, which a run that is ``tokenized`` has in its tokenizer.

    Packaged ones have digests of their own, in :data:`lavit.data.assets.ASSETS`.
    """
    encoder, llm = experiment.tokenizer.model.encoder.weights.file, experiment.pretrain.model.llm.folder
    found = {"encoder": file_digest(Path(encoder))} if encoder and not tokenized else {}
    if experiment.pyramid is not None and llm:
        found |= {f"language model, {name}": digest for name, digest in weights_digests(llm).items()}
    return found


def artist_digests(experiment: Experiment, run: Path) -> dict[str, str]:
    """sha256 of every file of weights that a drawing depends on."""
    if experiment.benchmarks.release is not None:
        return _release_digests(experiment)
    vae = experiment.decoder.model.latents.vae
    folder = Path(vae.folder) if vae and vae.folder else run / "autoencoder" / "vae"
    return weights_digests(folder) | {name: file_digest(run / name) for name in DRAWS}


def _release_digests(experiment: Experiment) -> dict[str, str]:
    folder = Path(experiment.benchmarks.release)
    return dict(read_config(folder).files) | {"config.yaml": file_digest(folder / "config.yaml")}


def weights_digests(folder: str | Path) -> dict[str, str]:
    """sha256 of the files of weights in a folder, by their names."""
    files = [path for path in sorted(Path(folder).glob("*")) if path.suffix in (".safetensors", ".bin")]
    return {path.name: file_digest(path) for path in files}


def digest_of(value: Any) -> str:
    """sha256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
