"""Quantising a GGUF with llama.cpp's own quantiser."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from smolcls.errors import ConfigError, ModelError
from smolcls.files import replacing
from smolcls.native import forget_log, llama, recent_log
from smolcls.scan import scan

#: Quantisation names → llama.cpp's `llama_ftype` constants, as its binding names them.
KINDS = {
    "Q4_K_M": "LLAMA_FTYPE_MOSTLY_Q4_K_M",
    "Q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0",
    "IQ4_NL": "LLAMA_FTYPE_MOSTLY_IQ4_NL",
    "Q5_K_M": "LLAMA_FTYPE_MOSTLY_Q5_K_M",
    "Q6_K": "LLAMA_FTYPE_MOSTLY_Q6_K",
    "Q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0",
}
#: What an ONNX file is in; llama.cpp has no such kind.
INT8 = "INT8"


def check_kind(kind: str) -> str:
    """`kind` itself if it is a known quantisation, or F16; else `ConfigError`."""
    if kind != "F16" and kind not in KINDS:
        raise ConfigError(f"Unknown quantisation {kind!r}; expected F16 or one of {', '.join(KINDS)}.")
    return kind


def quantise(source: Path, target: Path, kind: str, *, threads: int = 0) -> None:
    """Quantise an unquantised GGUF, whole or not at all.

    Rows whose length is no multiple of 256 (SmolLM2-135M and 360M have such) fall back to other
    types by llama.cpp's rules: Q4_K to Q5_0, Q6_K to Q8_0.

    Args:
        threads: worker threads; 0 is all cores.

    Raises:
        ConfigError: an unknown `kind`.
        ModelError: the source is damaged, or llama.cpp refuses it.
    """
    check_kind(kind)
    scan(source)
    binding = llama()
    parameters = binding.llama_model_quantize_default_params()
    parameters.ftype = getattr(binding, KINDS[kind])
    parameters.nthread = threads
    forget_log()
    with replacing(target) as temporary:
        code = binding.llama_model_quantize(os.fsencode(source), os.fsencode(temporary), ctypes.byref(parameters))
        if code != 0:
            raise ModelError(f"llama.cpp could not quantise {source} to {kind} (code {code}): {recent_log()}.")
        scan(temporary)
