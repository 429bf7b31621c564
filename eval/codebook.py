"""Quantizers beside each other: 16,384 codes of 32 dimensions on real patch features, with everything else the same.

A bench of :mod:`eval.bench`. Every method gets the same encoder features, the same projection to 32 dimensions, the
same decoder, the same batches, a first phase without quantization, and 14 bits a patch. The peers are those of
vector-quantize-pytorch (``requirements-bench.txt``). Settings were chosen among as many for every method, on the
validation split (``python -m eval.codebook 300``); what is reported comes from the test split, which chose nothing.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavit.experiment import load_experiment
from lavit.metrics.codes import code_usage
from lavit.tokenizers.decoder import cosine
from lavit.tokenizers.quantizer import Quantizer, QuantizerConfig
from lavit.workspace import Workspace

CONFIG, RUN = "configs/lavit/demo.yaml", Path("runs/bench-data")
CODES, WIDTH, HIDDEN = 16384, 32, 512
BATCH, STEPS, PLAIN, START = 1024, 1000, 200, 32768


class Setting(NamedTuple):
    lr: float
    options: dict[str, Any]


# A code's mean moving count, which is what the peers' threshold of a dead code is to be compared with.
FAIR = BATCH / CODES

# What was tried of each method, the chosen one first: learning rates, and what each can be tuned by.
SETTINGS: dict[str, list[Setting]] = {
    "ours": [Setting(8e-3, {}), Setting(2e-3, {}), Setting(4e-3, {}), Setting(4e-3, {"entropy": 0.02})],
    "ema_expiry": [
        Setting(8e-3, {"threshold_ema_dead_code": 0.03 * FAIR}),
        Setting(2e-3, {"threshold_ema_dead_code": 0.03 * FAIR}),
        Setting(4e-3, {"threshold_ema_dead_code": 0.03 * FAIR}),
        Setting(4e-3, {"threshold_ema_dead_code": FAIR}),
    ],
    "rotation": [
        Setting(8e-3, {"threshold_ema_dead_code": 0.03 * FAIR}),
        Setting(2e-3, {"threshold_ema_dead_code": 0.03 * FAIR}),
        Setting(4e-3, {"threshold_ema_dead_code": 0.03 * FAIR}),
        Setting(4e-3, {"threshold_ema_dead_code": FAIR}),
    ],
    "simvq": [
        Setting(8e-3, {}),
        Setting(2e-3, {}),
        Setting(4e-3, {}),
        Setting(4e-3, {"input_to_quantize_commit_loss_weight": 1.0}),
    ],
    "fsq": [Setting(8e-3, {}), Setting(2e-3, {}), Setting(4e-3, {}), Setting(4e-3, {"levels": [16, 16, 8, 8]})],
    "lfq": [Setting(4e-3, {"entropy_loss_weight": 0.02}), Setting(2e-3, {}), Setting(4e-3, {}), Setting(8e-3, {})],
}


class Method(NamedTuple):
    """A quantizer of unit vectors (n, 32).

    module: what is trained; start: a first look at vectors, for k-means; quantize: vectors to words (n, 32), codes (n,)
    int64 and the method's own loss (); move: what follows a step, if not gradients move the codebook.
    """

    module: nn.Module
    start: Callable[[Tensor], Any]
    quantize: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    move: Callable[[], None] = lambda: None


def method_of(name: str, options: dict[str, Any]) -> Method:
    """A method by its name in :data:`SETTINGS`; a codebook starts from k-means where the method has one that moves.

    Raises:
        ValueError: the peers' package is not installed.
    """
    if name == "ours":
        return ours(QuantizerConfig(codes=CODES, width=WIDTH, **options))
    try:
        import vector_quantize_pytorch as peers
    except ImportError:
        raise ValueError("the codebook benchmark needs `pip install -r requirements-bench.txt`") from None
    if name in ("ema_expiry", "rotation"):
        shared = {"decay": 0.99, "kmeans_init": True, "use_cosine_sim": True, "commitment_weight": 0.25}
        made = peers.VectorQuantize(WIDTH, CODES, rotation_trick=name == "rotation", **shared, **options)
        # By default a restarted code begins with the threshold as its count, and is dead again after one step.
        made._codebook.reset_cluster_size = max(FAIR, made._codebook.threshold_ema_dead_code)
        return peer(made)
    if name == "simvq":
        return peer(peers.SimVQ(WIDTH, CODES, **options))
    if name == "fsq":
        return peer(peers.FSQ(**{"levels": [8, 8, 8, 8, 4], **options}, dim=WIDTH))
    # Its entropy looks at all codes, which takes 2 s a step for all vectors: a quarter of them, drawn anew each time.
    return peer(peers.LFQ(dim=WIDTH, codebook_size=CODES, frac_per_sample_entropy=0.25, **options))


def ours(config: QuantizerConfig) -> Method:
    """The project's quantizer, its projection replaced by the common one."""
    made = Quantizer(WIDTH, config)
    made.proj = nn.Identity()

    def quantize(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = made(vectors[None], torch.ones(1, len(vectors), dtype=torch.bool))
        return out.words[0], out.codes[0], config.commitment * out.commitment + config.entropy * out.entropy

    return Method(made, lambda vectors: made.start_from(made.project(vectors)), quantize, made.move)


def peer(made: nn.Module) -> Method:
    """A quantizer of vector-quantize-pytorch: its k-means, if it has one, takes the first batch that it sees."""

    def quantize(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        words, codes, *losses = made(vectors[None])
        return words[0], codes[0], losses[0].sum() if losses else vectors.new_zeros(())

    return Method(made, quantize, quantize)


class Autoencoder(NamedTuple):
    """Standardized features (n, D) through 32 dimensions and 14 bits and back."""

    encode: nn.Module
    method: Method
    decode: nn.Module

    @property
    def modules(self) -> nn.ModuleList:
        return nn.ModuleList([self.encode, self.method.module, self.decode])

    def vectors(self, features: Tensor) -> Tensor:
        """(n, 32) unit vectors."""
        return F.normalize(self.encode(features.float()), dim=-1)


def train(name: str, setting: Setting, features: Tensor, steps: int = STEPS, plain: int = PLAIN) -> Autoencoder:
    """One method on (n, D) training features; the batches are the same for all."""
    torch.manual_seed(0)
    width = features.shape[1]
    encode = nn.Sequential(nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))
    decode = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, width))
    model = Autoencoder(encode, method_of(name, setting.options), decode)
    modules = model.modules.train()
    optimizer = torch.optim.AdamW(modules.parameters(), lr=setting.lr, betas=(0.9, 0.95), weight_decay=0.0)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        if step == plain:
            with torch.no_grad():
                chosen = torch.randint(len(features), (min(START, len(features)),), generator=generator)
                model.method.start(model.vectors(features[chosen]))
        for group in optimizer.param_groups:
            group["lr"] = setting.lr * min(1.0, (step + 1) / 50, 2 * (1 - step / steps))
        batch = features[torch.randint(len(features), (BATCH,), generator=generator)].float()
        words, loss = model.vectors(batch), batch.new_zeros(())
        if step >= plain:
            words, _, loss = model.method.quantize(words)
        loss = loss + (1 - cosine(batch, model.decode(words))).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        model.method.move()
    modules.eval()
    return model


@torch.no_grad()
def evaluate(model: Autoencoder, held_out: Tensor) -> dict[str, float]:
    """Cosine and perplexity on held-out features, and the share of codes hit by them."""
    similar, codes = [], []
    for batch in held_out.split(4096):
        words, chosen, _ = model.method.quantize(model.vectors(batch))
        similar.append(cosine(batch.float(), model.decode(words)))
        codes.append(chosen)
    usage = code_usage(torch.cat(codes).long(), CODES)
    return {
        "cosine": float(torch.cat(similar).mean()),
        "hit": usage["utilization"],
        "perplexity": usage["perplexity"],
    }


@torch.no_grad()
def used(model: Autoencoder, seen: Tensor) -> float:
    """The share of codes that are some training vector's: those that live."""
    alive = torch.cat([model.method.quantize(model.vectors(batch))[1] for batch in seen.split(4096)])
    return len(alive.unique()) / CODES


def features_of(splits: tuple[str, ...], run: Path = RUN) -> Tensor:
    """(n, D) float16 patch features of the captioned pictures of some splits; prepares them once."""
    if not (run / "data" / "done.json").is_file():
        subprocess.run([sys.executable, "-m", "tokenizer.prepare", CONFIG, f"run={run}"], check=True)
    work = Workspace(load_experiment(CONFIG, [f"run={run}"]), run)
    return torch.cat([torch.from_numpy(work.pictures("captions", s).cached[:].copy()).flatten(0, 1) for s in splits])


def codebook() -> dict[str, float]:
    """The benchmark: every method with its chosen setting, on the test split."""
    seen, held_out = features_of(("train",)), features_of(("test",))
    figures: dict[str, float] = {"held_out_vectors": len(held_out), "train_vectors": len(seen)}
    for name, settings in SETTINGS.items():
        start = time.perf_counter()
        model = train(name, settings[0], seen)
        found = evaluate(model, held_out) | {"used": used(model, seen)}
        prefix = "" if name == "ours" else f"{name}_"
        figures |= {prefix + figure: value for figure, value in found.items()}
        figures[f"{prefix}seconds"] = time.perf_counter() - start
        print(f"  {name}: " + ", ".join(f"{figure} {value:.4g}" for figure, value in found.items()), flush=True)
    return figures | {"best_peer_cosine": max(v for k, v in figures.items() if k.endswith("_cosine"))}


def tune(steps: int, names: list[str]) -> Iterator[tuple[str, Setting, dict[str, float]]]:
    """Every setting of some methods on the validation split."""
    seen, held_out = features_of(("train",)), features_of(("validation",))
    for name in names:
        for setting in SETTINGS[name]:
            yield name, setting, evaluate(train(name, setting, seen, steps, steps // 5), held_out)


def main(argv: list[str], report: Callable[[str], None] = lambda line: print(line, flush=True)) -> None:
    """``python -m eval.codebook [STEPS [METHOD …]]``: the settings of methods, or of all, on the validation split."""
    for name, setting, found in tune(int(argv[0]) if argv else STEPS, argv[1:] or list(SETTINGS)):
        report(f"{name} {setting.lr} {setting.options}: " + ", ".join(f"{k} {v:.4g}" for k, v in found.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
