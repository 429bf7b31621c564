"""Released weights: safetensors and nothing pickled, loaded strictly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lavit.runs import written_whole

NAMED = 20  # tensors in an error, of another model's thousands


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a module's parameters and buffers, whole or not at all."""
    write_tensors(module.state_dict(), path)


def write_tensors(state: dict[str, Tensor], path: Path, dtype: torch.dtype | None = None) -> None:
    """Write tensors, whole or not at all; see :func:`stored` for ``dtype``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: stored(value.detach().cpu(), dtype).contiguous().clone() for name, value in state.items()}
    with written_whole(path) as draft:
        save_file(state, draft)


def stored(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor as releases keep it: matrices of floats in ``dtype``; vectors, such as norms and biases, as they are."""
    return value.to(dtype) if dtype and value.is_floating_point() and value.dim() > 1 else value


def file_digest(path: Path) -> str:
    """sha256 of a file of weights.

    Raises:
        ValueError: no such file.
    """
    if not path.is_file():
        raise ValueError(f"no weights at {path}; run the stage that writes them first")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def opening(folder: str | Path, key: str, what: str) -> Iterator[None]:
    """Say in one line that a local folder, which the setting ``key`` names, cannot be opened as ``what``, and why.

    Raises:
        ValueError: there is no such folder, or the block raised anything.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{key}: no folder {folder}; put {what} there, or leave it out")
    try:
        yield
    except Exception as error:  # of many kinds: missing files, another model, a broken one
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{key}: {folder} cannot be opened as {what} ({reason})") from None


def open_whole(kind: Any, folder: str | Path) -> Any:
    """A model of transformers, of the class ``kind``, in evaluation mode; nothing is fetched.

    Raises:
        ValueError: a weight is missing, which transformers alone would draw by lot.
        Exception: of many kinds, from transformers.
    """
    model, told = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    if lacking := told["missing_keys"] & dict(model.named_parameters()).keys():
        raise ValueError(f"its weights lack {min(lacking)}")
    return model.eval()


def load_weights(module: nn.Module, path: Path) -> nn.Module:
    """Fill ``module`` in place and return it in evaluation mode.

    Raises:
        ValueError: no such file, a broken one, or names and shapes that do not fit (named).
    """
    if not path.is_file():
        raise ValueError(f"no weights at {path}; run the stage that writes them first")
    return fill(module, read_tensors(path, f"remove {path.parent} and run its stage again"), path)


def read_tensors(path: Path, remedy: str = "get it again") -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        ValueError: one that cannot be opened, or is broken, with the ``remedy``.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as weights ({error}); {remedy}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be opened: {error.strerror or error}") from None


def fill(
    module: nn.Module, state: dict[str, Tensor], origin: Path, assign: bool = False, beside: str = ""
) -> nn.Module:
    """Fill ``module`` with exactly the tensors of ``state``, and return it in evaluation mode.

    Args:
        module: in place.
        state: by the names of its own state dict.
        origin: where they come from, for an error.
        assign: they take the place of the module's own, which may have no storage.
        beside: tensors whose names begin so are filled otherwise.

    Raises:
        ValueError: names and shapes that do not fit.
    """
    own = {name: value for name, value in module.state_dict().items() if not (beside and name.startswith(beside))}
    problems = [f"{name} is missing" for name in sorted(own.keys() - state.keys())]
    problems += [f"{name} is unexpected" for name in sorted(state.keys() - own.keys())]
    problems += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if state[name].shape != own[name].shape
    ]
    if len(problems) > NAMED:
        problems = [*problems[:NAMED], f"and {len(problems) - NAMED} more"]
    if problems:
        raise ValueError(f"{origin} does not fit the configuration: {', '.join(problems)}")
    module.load_state_dict(state, strict=not beside, assign=assign)
    return module.eval()
