"""A release: a trained system as a folder that anyone can open, with nothing pickled in it.

```
config.yaml          one readable file: the parts' settings, how to write and draw, sha256 of every other file
README.md            the model card
tokenizer/           model*.safetensors
language_model/      config.json (transformers), model*.safetensors, tokenizer.json
decoder/             unet/, vae/, scheduler/ (diffusers opens each of them), conditioning.safetensors
speech/              config.json (transformers), model*.safetensors; vocoder/ model*.safetensors
```
"""

from __future__ import annotations

import copy
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import init_empty_weights
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from lavit.config import load, read_layers, to_yaml
from lavit.data.text import open_text_tokenizer
from lavit.generation import ImagePlan, TextPlan
from lavit.layers.lora import without_lora
from lavit.layers.rows import FactoredConfig
from lavit.model import ModelConfig, UnifiedLM, WordHeadConfig, check_reading
from lavit.placement import check_bits, offload, quantize
from lavit.renderers.diffusion import DiffusionConfig, DiffusionRenderer
from lavit.renderers.folder import load_diffusers, save_diffusers
from lavit.renderers.vocoder import Vocoder, VocoderConfig
from lavit.runs import let_others_read
from lavit.tokenizers.merger import Merger
from lavit.tokenizers.patches import PatchTokenizer
from lavit.tokenizers.speech import SpeechConfig, SpeechTokenizer
from lavit.tokenizers.tokenizer import Tokenizer, TokenizerConfig
from lavit.weights import file_digest, fill, read_tensors, stored

FORMAT = 1
SHARD = "5GB"
RELEASED = Path(__file__).parent / "released"  # comes with the package


@dataclass
class GenerationConfig:
    """How the system writes and draws unless it is told otherwise; see :class:`lavit.pipeline.LaVIT`."""

    caption: TextPlan = field(default_factory=TextPlan)
    answer: TextPlan = field(default_factory=TextPlan)
    image: ImagePlan = field(default_factory=ImagePlan)
    candidates: int = 1
    transcript: TextPlan = field(default_factory=TextPlan)
    speech: ImagePlan = field(default_factory=ImagePlan)


@dataclass
class LanguageConfig:
    """``row``, ``read`` and what is read as in the settings of pretraining."""

    row: int = 256
    read: str = "features"
    port: str = "features"
    projector: str = "linear"
    word_head: WordHeadConfig | None = None
    factored: FactoredConfig | None = None
    bias_norm: bool = False

    @classmethod
    def of(cls, row: int, read: str, model: ModelConfig) -> Self:
        """What of the settings of pretraining a trained model still has to know."""
        return cls(row, read, model.port, model.projector, model.word_head, model.factored, model.bias_norm)


@dataclass
class ReleaseConfig:
    """``files`` has the sha256 of every file of weights, of settings and of the text tokenizer, by its path."""

    format: int = FORMAT
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    language_model: LanguageConfig = field(default_factory=LanguageConfig)
    decoder: DiffusionConfig | None = None
    speech: SpeechConfig | None = None
    vocoder: VocoderConfig | None = None
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    files: dict[str, str] = field(default_factory=dict)


@dataclass
class Parts:
    """What a release holds. ``renderer`` is None for a system that only writes, ``speech`` for one that is deaf."""

    tokenizer: Tokenizer
    model: UnifiedLM
    renderer: DiffusionRenderer | None
    text: PreTrainedTokenizerBase
    language: LanguageConfig
    generation: GenerationConfig
    changed: str = ""  # how it was opened otherwise than it was saved
    card: str = ""  # its README.md
    speech: SpeechTokenizer | None = None
    vocoder: Vocoder | None = None


def write_release(folder: Path, parts: Parts, card: str, dtype: torch.dtype | None = None, shard: str = SHARD) -> None:
    """Write a release, whole or not at all.

    Args:
        folder: must not exist, or be empty.
        parts: what is written.
        card: text of README.md.
        dtype: of matrices on disk; vectors, such as norms and biases, stay as they are. By default all stays.
        shard: the largest a file of weights may be, but for what stands beside the U-Net and for tensors that alone
            are larger.

    Raises:
        ValueError: the folder holds something, or cannot be written (a full disk, no permission).
    """
    require_free(folder)
    folder = folder.absolute()
    if folder.resolve() == Path.cwd():
        raise ValueError(f"{folder} is the folder that you are in; name another one, which may be new")
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        draft.mkdir(parents=True)
        _write(draft, parts, card, dtype, shard)
        let_others_read(draft)
        if folder.is_dir():
            folder.rmdir()
        draft.rename(folder)
    except (OSError, SafetensorError) as error:
        said = getattr(error, "strerror", None) or error
        raise ValueError(f"{folder} cannot be written: {said}; nothing was left there") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def require_free(folder: Path) -> None:
    """Raise ValueError if ``folder`` holds something."""
    if folder.is_dir() and any(folder.iterdir()) or folder.is_file():
        raise ValueError(f"{folder} is there already; remove it or name another folder")


def _write(folder: Path, parts: Parts, card: str, dtype: torch.dtype | None, shard: str) -> None:
    tokenizer = copy.deepcopy(parts.tokenizer)
    tokenizer.encoder.drop_classifier()
    _save(tokenizer, folder / "tokenizer", dtype, shard)
    model = without_lora(parts.model)
    _save(model, folder / "language_model", dtype, shard)
    model.blocks.config.save_pretrained(folder / "language_model")
    parts.text.save_pretrained(folder / "language_model")
    if parts.renderer is not None:
        save_diffusers(parts.renderer, folder / "decoder", dtype, shard)
    if parts.speech is not None:
        _save(parts.speech, folder / "speech", dtype, shard)
        parts.speech.encoder.config.save_pretrained(folder / "speech")
    if parts.vocoder is not None:
        _save(parts.vocoder, folder / "vocoder", dtype, shard)
    files = {path.relative_to(folder).as_posix(): file_digest(path) for path in _files(folder)}
    decoder = parts.renderer.config if parts.renderer is not None else None
    speech = parts.speech.config if parts.speech is not None else None
    vocoder = parts.vocoder.config if parts.vocoder is not None else None
    config = ReleaseConfig(
        FORMAT, parts.tokenizer.config, parts.language, decoder, speech, vocoder, parts.generation, files
    )
    config = _without_paths(config)
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "README.md").write_text(card, encoding="utf-8")


def _weights(folder: Path) -> list[Path]:
    """Files of weights in a folder; hidden ones, which some systems make when they copy, are no part of a release."""
    return sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _save(module: nn.Module, folder: Path, dtype: torch.dtype | None, shard: str) -> None:
    folder.mkdir()
    state, kept = {}, {}
    for name, value in module.state_dict().items():  # tied tensors stay one
        place = (value.data_ptr(), value.shape) if value.numel() else name
        if place not in kept:
            kept[place] = stored(value.detach().cpu(), dtype)
        state[name] = kept[place]
    save_torch_state_dict(state, folder, max_shard_size=shard)


def _without_paths(config: ReleaseConfig) -> ReleaseConfig:
    """The settings without the places on somebody's disk that weights once came from."""
    config = copy.deepcopy(config)
    weights = config.tokenizer.encoder.weights
    weights.file = weights.file and Path(weights.file).name
    config.tokenizer.quantizer.file = None
    if config.speech is not None:
        config.speech.folder = None
    if config.decoder is not None:
        config.decoder.unet.folder = None
        if config.decoder.latents.vae is not None:
            config.decoder.latents.vae.folder = None
    return config


def chosen_folder(named: str | Path | None = None) -> Path:
    """The release that is ``named``, else the one of $LAVIT_MODEL, else the one that comes with the package.

    Raises:
        ValueError: there is none.
    """
    chosen = named or os.environ.get("LAVIT_MODEL")
    if not chosen and not RELEASED.is_dir():
        raise ValueError(
            "no system comes with this lavit; name the folder of a release (--model), or set $LAVIT_MODEL to it"
        )
    return Path(chosen or RELEASED)


def read_config(folder: Path, verify: bool = True) -> ReleaseConfig:
    """The settings of a release whose files are as they were written.

    Raises:
        ValueError: no release there, one of a newer format, and files that are missing or altered, by name.
    """
    if not (folder / "config.yaml").is_file():
        lacks = "it has no config.yaml" if folder.is_dir() else "there is no such folder"
        raise ValueError(f"{folder} is no release: {lacks}; give a folder that save_pretrained wrote")
    found = read_layers(folder / "config.yaml")[0][1].get("format")
    if found is None:
        raise ValueError(
            f"{folder} is no release: its config.yaml names no format; give one that save_pretrained wrote"
        )
    if found != FORMAT:
        raise ValueError(f"{folder} has format {found}, and this lavit reads {FORMAT}; install the other version")
    config = load(ReleaseConfig, folder / "config.yaml")
    check_reading(config.language_model.port, config.language_model.read, f"{folder}/config.yaml: language_model")
    if outside := [name for name in config.files if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise ValueError(f"{folder}/config.yaml names files outside of the release: {', '.join(outside[:5])}")
    there = {path.relative_to(folder).as_posix() for path in _files(folder)} - {"config.yaml", "README.md"}
    hidden = {name for name in there if any(part.startswith(".") for part in Path(name).parts)}
    if strange := sorted(there - hidden - config.files.keys()):
        raise ValueError(f"the release {folder} has files that its config.yaml does not know: {', '.join(strange[:5])}")
    missing = [name for name in config.files if not (folder / name).is_file()]
    altered = [] if missing or not verify else [n for n, sha in config.files.items() if file_digest(folder / n) != sha]
    if missing or altered:
        said = f"is missing {', '.join(missing)}" if missing else f"was altered: {', '.join(altered)}"
        raise ValueError(f"the release {folder} {said}; get it again")
    return config


def describe(folder: Path) -> dict[str, Any]:
    """What a release is, in plain values, without opening its models; its files are checked.

    ``parameters`` are all numbers that it stores, averages and statistics too.

    Raises:
        ValueError: see :func:`read_config`.
    """
    config = read_config(folder)
    names = ("tokenizer", "language_model", "decoder", "speech", "vocoder")
    counts = {part: 0 for part in names if (folder / part).is_dir()}
    for part in counts:
        for path in (folder / name for name in config.files if name.startswith(f"{part}/")):
            if path.suffix != ".safetensors":
                continue
            with safe_open(path, "pt") as file:
                counts[part] += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
    tokenizer, shape = config.tokenizer, AutoConfig.from_pretrained(folder / "language_model")
    return {
        "folder": str(folder),
        "megabytes": round(sum(path.stat().st_size for path in _files(folder)) / 1e6, 1),
        "parameters": counts,
        "vocabulary": {
            "text": shape.vocab_size,
            "codes": tokenizer.vocabulary(shape.vocab_size, config.language_model.port).codes,
            **({"sounds": config.speech.codes} if config.speech else {}),
        },
        "patches": tokenizer.encoder.patches,
        "reads": tokenizer.encoder.image_size,
        "draws": config.decoder.image_size if config.decoder is not None else None,
    }


def read_release(
    folder: Path,
    verify: bool = True,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    bits: int | None = None,
    offloaded: bool = False,
) -> Parts:
    """The parts of a release in evaluation mode, the language model and the U-Net in ``dtype``, the rest in float32.

    ``bits`` and ``offloaded`` are of the language model's blocks; see :mod:`lavit.placement`.

    Raises:
        ValueError: see :func:`read_config` and :func:`lavit.placement.quantize`.
    """
    if bits and offloaded:
        raise ValueError("bits and offload do not go together; choose one of them")
    if bits is not None:
        check_bits(bits)
    config = read_config(folder, verify)
    text = open_text_tokenizer(folder / "language_model")
    shape = AutoConfig.from_pretrained(folder / "language_model")

    def new_tokenizer() -> Tokenizer | PatchTokenizer:
        unmerged = config.language_model.port == "unmerged"
        tokenizer = PatchTokenizer(config.tokenizer) if unmerged else Tokenizer(config.tokenizer, pretrained=False)
        tokenizer.encoder.drop_classifier()
        return tokenizer

    tokenizer = _filled(new_tokenizer, folder / "tokenizer", torch.float32)
    twins = ("head.text", "embedding.text.weight") if shape.tie_word_embeddings else None
    sounds = config.speech.codes if config.speech is not None else 0
    new = lambda: new_language_model(config.tokenizer, config.language_model, shape, sounds)  # noqa: E731
    model = _filled(new, folder / "language_model", dtype, twins)
    if twins:
        model.head.text = model.embedding.text.weight
    blocks, model.blocks = model.blocks, None
    if offloaded:
        offload(blocks, torch.device(device))
    elif bits:
        quantize(blocks, bits, torch.device(device))
    else:
        blocks.to(device)
    model = model.to(device)
    model.blocks = blocks
    renderer = None
    if config.decoder is not None:
        encoder = config.tokenizer.encoder
        renderer = load_diffusers(folder / "decoder", config.decoder, encoder.width, encoder.patches, dtype).to(device)
    changed = f"in {bits} bits" if bits else "offloaded" if offloaded else ""
    card = folder / "README.md"
    said = card.read_text(encoding="utf-8") if card.is_file() else ""
    heard = read_speech_parts(folder, config, torch.device(device))
    return Parts(
        tokenizer.to(device), model, renderer, text, config.language_model, config.generation, changed, said, *heard
    )


def read_speech_parts(
    folder: Path, config: ReleaseConfig, device: torch.device
) -> tuple[SpeechTokenizer | None, Vocoder | None]:
    """The speech tokenizer and the vocoder of a release, in float32, where it has them."""
    if config.speech is None:
        return None, None
    shape = WhisperConfig.from_pretrained(folder / "speech")
    speech = _filled(lambda: SpeechTokenizer(config.speech, WhisperEncoder(shape)), folder / "speech", torch.float32)
    if config.vocoder is None:
        return speech.to(device), None
    vocoder = Vocoder(config.vocoder, speech.codebook.clone(), config.speech.frames)
    state = {n: v.float() for file in _weights(folder / "vocoder") for n, v in read_tensors(file).items()}
    return speech.to(device), fill(vocoder, state, folder / "vocoder").to(device)


def new_language_model(
    tokenizer: TokenizerConfig, config: LanguageConfig, shape: PretrainedConfig, sounds: int = 0
) -> UnifiedLM:
    """An untrained model of a tokenizer's words and of ``sounds``; ``shape`` is transformers' of the text part."""
    merger, port = None, config.port
    if port == "patches":
        merger = Merger(tokenizer.encoder.width, tokenizer.encoder.patches, tokenizer.merger, tokenizer.attention)
    return UnifiedLM(
        ModelConfig(
            port=port,
            projector=config.projector,
            word_head=config.word_head,
            factored=config.factored,
            bias_norm=config.bias_norm,
        ),
        tokenizer.vocabulary(shape.vocab_size, port, sounds),
        tokenizer.fed_width(port),
        llm=AutoModelForCausalLM.from_config(shape),
        merger=merger,
    )


def _filled(
    new: Callable[[], nn.Module], folder: Path, dtype: torch.dtype, twins: tuple[str, str] | None = None
) -> nn.Module:
    """A module made without weights of its own, with those of a folder, which holds one of the ``twins``."""
    with init_empty_weights():
        module = new()
    state: dict[str, Tensor] = {}
    for file in _weights(folder):
        for name, value in read_tensors(file).items():
            state[name] = value.to(dtype) if value.is_floating_point() else value
    for name, other in (twins, twins[::-1]) if twins else ():
        if name not in state and other in state:
            state[name] = state[other]
    return fill(module, state, folder, assign=True)
