"""Released weights: safetensors and nothing pickled, loaded strictly."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lavit.runs import written_whole


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a module's parameters and buffers, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
    with written_whole(path) as draft:
        save_file(state, draft)


def file_digest(path: Path) -> str:
    """sha256 of a file of weights.

    Raises:
        ValueError: no such file.
    """
    if not path.is_file():
        raise ValueError(f"no weights at {path}; run the stage that writes them first")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(module: nn.Module, path: Path) -> nn.Module:
    """Fill ``module`` in place and return it in evaluation mode.

    Raises:
        ValueError: no such file, a broken one, or names and shapes that do not fit (named).
    """
    if not path.is_file():
        raise ValueError(f"no weights at {path}; run the stage that writes them first")
    try:
        state = load_file(path)
    except SafetensorError as error:
        problem = f"{path} is not a readable safetensors file ({error})"
        raise ValueError(f"{problem}; remove {path.parent} and run its stage again") from None
    return fill(module, state, path).eval()


def fill(module: nn.Module, state: dict[str, Tensor], origin: Path, assign: bool = False) -> nn.Module:
    """Fill ``module`` with exactly the tensors of ``state``, whose ``origin`` an error names.

    With ``assign`` they take the place of the module's own, which may have no storage.

    Raises:
        ValueError: names and shapes that do not fit.
    """
    own = module.state_dict()
    wrong = list(own.keys() ^ state.keys())
    wrong += [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if wrong:
        raise ValueError(f"{origin} does not fit; missing, unexpected or of another shape: {sorted(wrong)[:8]}")
    module.load_state_dict(state, assign=assign)
    return module
