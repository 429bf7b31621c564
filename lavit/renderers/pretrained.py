"""Models in local folders of diffusers, opened strictly: their shape and their weights, nothing fetched.

Weights are safetensors; where there are none, what torch saved, of which nothing pickled is run.
"""

from __future__ import annotations

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

WEIGHTS = re.compile(r"diffusion_pytorch_model(?:\.(\w+))?(?:-\d+-of-\d+)?\.(safetensors|bin)")


def differences(kind: type[nn.Module], folder: str | Path, wanted: dict[str, Any], key: str) -> None:
    """Check that the model in ``folder`` has the shape that the configuration says under ``key``.

    Raises:
        ValueError: there is none, or its shape is another; each difference is named.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"{key}.folder: {folder} has no config.json; give a local folder that diffusers saved")
    found = shape_of(kind, folder)
    wrong = [
        f"{name} is {_plain(found.get(name), value)} there and {_plain(value, value)} here"
        for name, value in wanted.items()
        if _plain(found.get(name), value) != _plain(value, value)
    ]
    if wrong:
        raise ValueError(f"{folder} does not fit {key}: {'; '.join(wrong)}")


def shape_of(kind: type[nn.Module], folder: str | Path) -> dict[str, Any]:
    """The arguments of the model in a folder, with diffusers' defaults for those that it does not say."""
    with torch.device("meta"):
        return dict(kind.from_config(kind.load_config(str(folder), local_files_only=True)).config)


def _plain(value: Any, like: Any) -> Any:
    """As a list where ``like`` is one: diffusers lets one number stand for all resolutions."""
    if not isinstance(like, list):
        return value
    return list(value) if isinstance(value, list | tuple) else [value] * len(like)


class Stored(NamedTuple):
    """How a folder holds its weights: diffusers' ``variant`` ("fp16"), ``kind`` of file, and the first one."""

    variant: str | None
    kind: str
    file: Path

    @property
    def dtype(self) -> torch.dtype:
        """Of the first tensor."""
        if self.kind == "safetensors":
            with safe_open(self.file, "pt") as file:
                return file.get_tensor(next(iter(file.keys()))).dtype
        return next(iter(torch.load(self.file, "cpu", weights_only=True).values())).dtype


def stored(folder: str | Path) -> Stored | None:
    """The weights in a folder, if any: first those without a variant, and safetensors first."""
    found = [(name, file) for file in sorted(Path(folder).iterdir()) if (name := WEIGHTS.fullmatch(file.name))]
    ways = [Stored(name[1], name[2], file) for name, file in found]
    return min(ways, key=lambda way: (way.variant or "", way.kind == "bin"), default=None)


def open_model(kind: type[nn.Module], folder: str | Path, dtype: torch.dtype | None = torch.float32) -> nn.Module:
    """The model of a folder in ``dtype``, or, with None, in that of its weights.

    Raises:
        ValueError: its weights are missing, broken or of another shape.
    """
    way = stored(folder)
    if way is None:
        raise ValueError(f"{folder} cannot be opened (no diffusion_pytorch_model.safetensors or .bin); get it again")
    try:
        model, about = kind.from_pretrained(
            str(folder),
            local_files_only=True,
            variant=way.variant,
            use_safetensors=way.kind == "safetensors",
            torch_dtype=dtype or way.dtype,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, UnpicklingError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be opened ({str(error).splitlines()[0]}); get it again") from None
    wrong = [str(name) for what in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in about[what]]
    if wrong:
        raise ValueError(f"{folder} does not fit; missing, unexpected or of another shape: {sorted(wrong)[:8]}")
    return model
