"""Language models in less memory: matrices in 8 or 4 bits (bitsandbytes), weights that wait in the CPU's memory."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from accelerate import cpu_offload
from torch import nn

from lavit.layers.bias_norm import BIAS


def check_bits(bits: int) -> None:
    """Raise ValueError unless weights can be put into so many bits here."""
    if bits not in (4, 8):
        raise ValueError(f"bits is {bits}; choose 8 or 4, or none for the weights as they are")
    if find_spec("bitsandbytes") is None:
        raise ValueError("weights in few bits need bitsandbytes; `pip install bitsandbytes`, or leave bits out")


def quantize(module: nn.Module, bits: int, device: torch.device) -> None:
    """Put the linear layers of ``module`` into 8 bits (LLM.int8(), arXiv 2208.07339) or 4 (NF4, arXiv 2305.14314).

    In place, and all of it goes to ``device``, layer by layer. What it computes stays near what it was. Do not move it
    afterwards: a layer in 8 bits would leave its scales behind.

    Raises:
        ValueError: another number of bits, or bitsandbytes is not installed.
    """
    check_bits(bits)
    from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit

    layers = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    for name, layer in layers:
        bias = layer.bias
        if hasattr(layer, BIAS):  # what it learned beside its matrix
            bias = nn.Parameter(getattr(layer, BIAS) + (0 if bias is None else bias))
        weight, sizes = layer.weight.data, (layer.in_features, layer.out_features, bias is not None)
        if bits == 8:
            new = Linear8bitLt(*sizes, has_fp16_weights=False)
            new.weight = Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        else:
            new = Linear4bit(*sizes, compute_dtype=weight.dtype, quant_type="nf4")
            new.weight = Params4bit(weight, requires_grad=False, quant_type="nf4")
        new.bias = bias
        holder, _, last = name.rpartition(".")
        # Moving them is what quantizes them, also to where they are.
        setattr(module.get_submodule(holder), last, new.to(device))
    new = {id(module.get_submodule(name)) for name, _ in layers}
    for part in module.modules():
        if id(part) not in new:
            for value in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
                value.data = value.data.to(device)


def offload(module: nn.Module, device: torch.device) -> None:
    """Keep the weights of ``module`` in the CPU's memory; each layer's go to ``device`` while it computes."""
    cpu_offload(module, execution_device=device)
