"""A pixel decoder as diffusers' folders: ``unet/``, ``vae/`` where there is one, ``scheduler/``, and what is not
diffusers' as ``conditioning.safetensors``: projections, positions, the unconditional vector, the draft.
"""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import init_empty_weights

from lavit.renderers.diffusion import DiffusionConfig, DiffusionRenderer
from lavit.renderers.latents import open_vae
from lavit.renderers.sampling import new_sampler
from lavit.runs import let_others_read
from lavit.weights import fill, read_tensors, stored, write_tensors

OWN = "conditioning.safetensors"


def save_diffusers(
    renderer: DiffusionRenderer, folder: Path, dtype: torch.dtype | None = None, shard: str = "5GB"
) -> None:
    """Write a renderer so that diffusers opens ``unet/``, ``vae/`` and ``scheduler/`` by itself.

    ``dtype`` is that of matrices on disk (:func:`lavit.weights.stored`), by default their own; no file of
    diffusers' is larger than ``shard``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("unet", renderer.unet), ("vae", renderer.latents.vae)):
        if part is not None:
            plain = {key: value for key, value in part.config.items() if key != "_name_or_path"}  # somebody's disk
            with init_empty_weights():
                kept = type(part).from_config(plain)
            kept.load_state_dict({k: stored(v.cpu(), dtype) for k, v in part.state_dict().items()}, assign=True)
            kept.save_pretrained(folder / name, safe_serialization=True, max_shard_size=shard)
    new_sampler(renderer.config.process, renderer.config.sampler).save_pretrained(folder / "scheduler")
    own = {name: value for name, value in renderer.state_dict().items() if not name.startswith("unet.")}
    write_tensors(own, folder / OWN, dtype)
    let_others_read(folder)


def load_diffusers(
    folder: Path, config: DiffusionConfig, feature_width: int, patches: int, dtype: torch.dtype = torch.float32
) -> DiffusionRenderer:
    """The renderer that :func:`save_diffusers` wrote, in evaluation mode, its U-Net and projections in ``dtype``.

    Raises:
        ValueError: a part that is missing or does not fit the configuration.
    """
    vae = open_vae(str(folder / "vae"), config.latents.vae) if config.latents.vae is not None else None
    with init_empty_weights():
        renderer = DiffusionRenderer(config, feature_width, patches, vae=vae)
    renderer.begin_from(str(folder / "unet"), dtype)
    own = read_tensors(folder / OWN, "write the folder anew")
    # The draft is of the features, which stay in float32.
    own = {name: value.to(dtype if name.startswith("conditioning.") else torch.float32) for name, value in own.items()}
    return fill(renderer, own, folder / OWN, assign=True, beside="unet.")
