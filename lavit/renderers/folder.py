"""A pixel decoder as diffusers' folders: ``unet/``, ``vae/`` where there is one, ``scheduler/``, and what is not
diffusers' as ``conditioning.safetensors``: projections, positions, the unconditional vector, the draft.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lavit.renderers.diffusion import DiffusionConfig, DiffusionRenderer
from lavit.renderers.latents import open_vae
from lavit.renderers.sampling import new_sampler
from lavit.runs import written_whole

OWN = "conditioning.safetensors"


def save_diffusers(
    renderer: DiffusionRenderer, folder: Path, dtype: torch.dtype | None = None, shard: str = "5GB"
) -> None:
    """Write a renderer so that diffusers opens ``unet/``, ``vae/`` and ``scheduler/`` by itself.

    ``dtype`` is that of the weights on disk, by default their own; no file of diffusers' is larger than ``shard``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("unet", renderer.unet), ("vae", renderer.latents.vae)):
        if part is not None:
            part = copy.deepcopy(part).to(dtype) if dtype else part
            part.save_pretrained(folder / name, safe_serialization=True, max_shard_size=shard)
    new_sampler(renderer.config.process, renderer.config.sampler).save_pretrained(folder / "scheduler")
    state = {name: value.detach().cpu().contiguous().clone() for name, value in _own_state(renderer).items()}
    with written_whole(folder / OWN) as draft:
        save_file(state, draft)


def load_diffusers(folder: Path, config: DiffusionConfig, feature_width: int, patches: int) -> DiffusionRenderer:
    """The renderer that :func:`save_diffusers` wrote, in evaluation mode.

    Raises:
        ValueError: a part that is missing or does not fit the configuration.
    """
    vae = open_vae(str(folder / "vae"), config.latents.vae) if config.latents.vae is not None else None
    renderer = DiffusionRenderer(config, feature_width, patches, vae=vae)
    renderer.begin_from(str(folder / "unet"))
    try:
        state = load_file(folder / OWN)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / OWN} cannot be read ({error}); write the folder anew") from None
    own = _own_state(renderer)
    wrong = own.keys() ^ state.keys()
    wrong |= {name for name in own.keys() & state.keys() if own[name].shape != state[name].shape}
    if wrong:
        raise ValueError(f"{folder / OWN} does not fit; missing, unexpected or of another shape: {sorted(wrong)[:8]}")
    for name, value in state.items():
        own[name].copy_(value)
    return renderer.eval()


def _own_state(renderer: DiffusionRenderer) -> dict:
    return {name: value for name, value in renderer.state_dict().items() if not name.startswith("unet.")}
