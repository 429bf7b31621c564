"""LaVIT's published checkpoint as the parts of a release: tokenizer, language model, pixel decoder.

The folder is that of the Hugging Face hub (``rain1011/LaVIT-7B-v2``):

```
language_model/            a Hugging Face Llama with 48,386 rows, visual_weight.bin: merger and projection of the port
visual_tokenizer/          see :mod:`lavit.tokenizers.official`; highres_tokenizer_decoder.bin for larger pictures
pixel_decoding/            unet/, vae/, scheduler/ of diffusers, uncond_embeddings.bin
highres_pixel_decoding/    unet/, vae/, scheduler/
```

Nothing pickled is run. The real files were never at hand: names and shapes are those of a description, and where it
says nothing, of the libraries that such files come from.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from diffusers import DDIMScheduler
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from lavit.data.text import open_text_tokenizer
from lavit.experiment import Experiment
from lavit.model import UnifiedLM
from lavit.release import GenerationConfig, LanguageConfig, Parts, new_language_model
from lavit.renderers.diffusion import DiffusionConfig, DiffusionRenderer
from lavit.renderers.latents import open_vae
from lavit.tokenizers.encoders import read_saved, read_state
from lavit.tokenizers.official import State, fitted, open_official, renamed
from lavit.tokenizers.tokenizer import TokenizerConfig
from lavit.weights import read_tensors

PORT = (
    (r"causal_encoder\.ln_vision\.", "port.merger.norm_in."),
    (r"causal_encoder\.", "port.merger."),
    (r"vit_proj\.", "port.proj."),
)
# What names in the feature decoder's file begin with, and ours of the conditioning.
SD = {"unet_proj.": "project."}
SDXL = {
    "unet_proj_1.": "project.0.",
    "unet_proj_2.": "project.1.",
    "unet_attnpool.positional_embedding": "pool.position",
    "unet_attnpool.q_proj.": "pool.query.",
    "unet_attnpool.k_proj.": "pool.key.",
    "unet_attnpool.v_proj.": "pool.value.",
}
CARD = """# LaVIT's published weights

Converted from the authors' release, whose licence they keep. Open them with `LaVIT.from_pretrained(FOLDER)`.
"""


def open_published(folder: Path, experiment: Experiment) -> tuple[Parts, list[str]]:
    """The parts of the published model in evaluation mode, each tensor in its own dtype: to be written, not to be run.

    With a ``decoder.model.conditioning`` of SDXL's shape the pixel decoder is the one for larger pictures, and its own
    feature decoder takes the place of the tokenizer's.

    Returns:
        the parts, and the tensors without a use, by file and name: of tokenizer_encoder.bin, and tables that are
        computed.

    Raises:
        ValueError: files that are missing or cannot be read, and tensors that are missing, unexpected or of another
            shape than the configuration says, by name.
    """
    config, decoder = experiment.tokenizer.model, experiment.decoder.model
    if decoder.latents.vae is None:
        raise ValueError("decoder.model.latents.vae is not set, and the published decoder works on a VAE's latents")
    large = decoder.conditioning.sdxl is not None
    pixels, words = (
        ("highres_pixel_decoding", "highres_tokenizer_decoder.bin") if large else
        ("pixel_decoding", "tokenizer_decoder.bin")
    )  # fmt: skip
    needed = ["language_model/config.json", "language_model/visual_weight.bin"]
    needed += [f"visual_tokenizer/{name}" for name in ("eva_vitg_psz14.bin", "tokenizer_encoder.bin", words)]
    needed += [
        f"{pixels}/{name}" for name in ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
    ]
    needed += [] if large else [f"{pixels}/uncond_embeddings.bin"]
    if absent := [name for name in needed if not (folder / name).is_file()]:
        raise ValueError(f"{folder} has no {', '.join(absent)}; give the folder of the published model")
    tokenizer, unused = open_official(folder / "visual_tokenizer", config, words)
    own = f"{words}: unet_"
    projections = {name.partition(": ")[2]: unused.pop(name) for name in list(unused) if name.startswith(own)}
    if strange := [name for name in unused if not name.startswith("tokenizer_encoder.bin")]:
        raise ValueError(f"{folder / 'visual_tokenizer'} has unexpected tensors: {', '.join(strange)}")
    renderer = open_renderer(folder / pixels, decoder, projections, config)
    model, text, tables = open_language_model(folder / "language_model", config)
    e = experiment.evaluation
    language = LanguageConfig(experiment.pretrain.row, "features", "patches")
    generation = GenerationConfig(e.text, e.answer, e.image, e.candidates)
    return Parts(tokenizer, model, renderer, text, language, generation), [*unused, *tables]


# ------------------------------------------------------------------------------------------------- the language model


def open_language_model(
    folder: Path, tokenizer: TokenizerConfig
) -> tuple[UnifiedLM, PreTrainedTokenizerBase, list[str]]:
    """The model of ``language_model``, its text tokenizer, and the names of tables that are computed here.

    Rows of embedding and head are the text's, then ``[IMG]``, ``[/IMG]`` and one a code. The port reads patches.

    Raises:
        ValueError: see :func:`open_published`; rows that are not those of the text tokenizer and of the codes.
    """
    text, shape = open_text_tokenizer(folder), read_shape(folder)
    size = shape.vocab_size - 2 - tokenizer.quantizer.codes
    if size != text.vocab_size:
        raise ValueError(
            f"{folder} has {shape.vocab_size} rows, but its text tokenizer has {text.vocab_size} pieces, and "
            f"tokenizer.model.quantizer.codes is {tokenizer.quantizer.codes}, with two rows more for [IMG] and [/IMG]"
        )
    shape.vocab_size, shape.tie_word_embeddings = size, False
    with init_empty_weights():
        model = new_language_model(tokenizer, LanguageConfig(port="patches"), shape)
    state, tables = State(), []
    for name, value in read_llama(folder).items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            names = ("embedding.text.weight", "embedding.new.weight") if "embed" in name else ("head.text", "head.new")
            state |= dict(zip(names, (value[:size], value[size:]), strict=True))
        elif name.endswith("rotary_emb.inv_freq"):  # older versions of transformers stored it
            tables.append(f"language_model: {name}")
        else:
            state["blocks." + name.removeprefix("model.")] = value
    found, unknown, _ = renamed(read_state(folder / "visual_weight.bin"), PORT)
    return fitted(model, state | found | unknown, folder), text, tables


def read_shape(folder: Path) -> PretrainedConfig:
    """transformers' configuration of a folder with a LLaMA; raises ValueError if there is none."""
    try:
        shape = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} cannot be read ({str(error).splitlines()[0]})") from None
    if shape.model_type != "llama":
        raise ValueError(f"{folder} holds a model of type {shape.model_type}; the published one is a llama")
    return shape


def read_llama(folder: Path) -> State:
    """All tensors of a Hugging Face folder in their own dtypes, of one file or of parts that an index names.

    Safetensors are taken first, then what torch saved.

    Raises:
        ValueError: no weights there, a part that is missing, or a file that cannot be read.
    """
    for whole, read in (("model.safetensors", read_tensors), ("pytorch_model.bin", read_state)):
        index = folder / f"{whole}.index.json"
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            except (ValueError, KeyError, AttributeError, TypeError):
                raise ValueError(f"{index} is no index of weights; get it again") from None
        else:
            names = [whole] if (folder / whole).is_file() else []
        if absent := [name for name in names if not (folder / name).is_file()]:
            raise ValueError(f"{folder} has no {', '.join(absent)}, which {index.name} names; get it again")
        if names:
            return {name: value for file in names for name, value in read(folder / file).items()}
    raise ValueError(f"{folder} has no model.safetensors, no pytorch_model.bin and no index of parts of them")


# --------------------------------------------------------------------------------------------------- the pixel decoder


def open_renderer(
    folder: Path, config: DiffusionConfig, projections: State, tokenizer: TokenizerConfig
) -> DiffusionRenderer:
    """The renderer of ``pixel_decoding``, or of ``highres_pixel_decoding`` where ``config`` has SDXL's shape.

    ``projections`` are the ``unet_…`` tensors of the feature decoder's file. The names inside ``unet_attnpool``, and
    that its place is added to the mean alone and nothing follows the attention, are diffusers' ``AttentionPooling``:
    not verified. Nor is whether ``uncond_embeddings.bin`` holds one vector or one a patch; both are taken.

    Raises:
        ValueError: see :func:`open_published`; another schedule of noise than ``config`` says.
    """
    check_schedule(folder / "scheduler", config)
    width, patches = tokenizer.encoder.width, tokenizer.encoder.patches
    vae = open_vae(str(folder / "vae"), config.latents.vae, dtype=None)
    names, conditioning = (SDXL if config.conditioning.sdxl else SD), config.conditioning
    state = {}
    for name, value in projections.items():
        theirs = next((start for start in names if name.startswith(start)), "")
        state[names.get(theirs, "") + name.removeprefix(theirs)] = value
    if conditioning.sdxl:
        state |= pooling(state, conditioning.sdxl.widths[-1], patches)
    else:
        rows = state["unconditional"] = unconditional(folder / "uncond_embeddings.bin", conditioning.sd.width, patches)
        conditioning = replace(conditioning, sd=replace(conditioning.sd, unconditional=len(rows)))
    config = replace(config, conditioning=conditioning)
    with init_empty_weights():
        renderer = DiffusionRenderer(config, width, patches, vae=vae)
    fitted(renderer.conditioning, state, folder.parent / "visual_tokenizer")
    renderer.begin_from(str(folder / "unet"), dtype=None)
    return renderer.eval()


def pooling(state: State, width: int, patches: int) -> State:
    """What makes diffusers' attention pooling of ours: no places but the mean's, and nothing after the attention."""
    extra = {"pool.out.weight": torch.eye(width), "pool.out.bias": torch.zeros(width)}
    place = state.get("pool.position")
    if place is not None and place.shape == (1, width):
        extra["pool.position"] = F.pad(place, (0, 0, 0, patches))
    elif place is not None:
        raise ValueError(f"unet_attnpool.positional_embedding is {tuple(place.shape)} instead of {(1, width)}")
    return extra


def unconditional(path: Path, width: int, patches: int) -> Tensor:
    """(1 or patches, width): a tensor, or the only one of a dictionary.

    Raises:
        ValueError: something else.
    """
    found = read_saved(path)
    if isinstance(found, dict) and len(found) == 1:
        (found,) = found.values()
    if not isinstance(found, Tensor):
        raise ValueError(f"{path} holds something else than one tensor")
    rows = found.detach()
    while rows.dim() > 2 and len(rows) == 1:
        rows = rows[0]
    rows = rows[None] if rows.dim() == 1 else rows
    if rows.shape not in ((1, width), (patches, width)):
        raise ValueError(
            f"{path} is {tuple(found.shape)}; it must be one vector of decoder.model.conditioning.sd.width {width}, or "
            f"one for each of the {patches} patches"
        )
    return rows


def check_schedule(folder: Path, config: DiffusionConfig) -> None:
    """Raise ValueError, naming what differs, unless a scheduler's noise is what the configuration says."""
    path = folder / "scheduler_config.json"
    try:
        found = {**DDIMScheduler().config, **json.loads(path.read_text())}
    except (ValueError, TypeError):
        raise ValueError(f"{path} is no scheduler of diffusers; get it again") from None
    wanted = {**config.process.betas, "prediction_type": config.prediction}
    wanted |= {"trained_betas": None, "rescale_betas_zero_snr": False}
    wrong = [
        f"{name} is {found[name]} there and {value} here" for name, value in wanted.items() if found[name] != value
    ]
    if wrong:
        raise ValueError(
            f"{folder} does not fit decoder.model: {'; '.join(wrong)}; set its prediction, schedule, beta_start, "
            "beta_end and timesteps"
        )
