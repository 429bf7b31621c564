"""Models in local folders of diffusers, opened strictly: their shape and safetensors, nothing pickled or fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


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


def open_model(kind: type[nn.Module], folder: str | Path) -> nn.Module:
    """The model of a folder in float32.

    Raises:
        ValueError: its weights are missing, broken or of another shape.
    """
    try:
        model, about = kind.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{folder} cannot be opened ({str(error).splitlines()[0]}); get it again") from None
    wrong = [str(name) for what in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in about[what]]
    if wrong:
        raise ValueError(f"{folder} does not fit; missing, unexpected or of another shape: {sorted(wrong)[:8]}")
    return model
