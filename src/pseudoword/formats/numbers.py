"""Types of numbers as embedding files have them, by the names that safetensors gives them."""

from __future__ import annotations

import numpy as np

DTYPES = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": "<f8",
        "F32": "<f4",
        "F16": "<f2",
        "BF16": "<u2",
        "F8_E4M3": "u1",
        "F8_E5M2": "u1",
        "I64": "<i8",
        "I32": "<i4",
        "I16": "<i2",
        "I8": "i1",
        "U8": "u1",
        "BOOL": "?",
    }.items()
}
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


def _e4m3() -> np.ndarray:
    """Return the numbers of 8 bits with 4 of exponent, 3 of mantissa (Micikevicius et al. 2022, arXiv 2209.05433)."""
    bits = np.arange(256)
    exponent, mantissa = (bits >> 3) & 0xF, bits & 0x7
    sizes = np.where(exponent > 0, (1 + mantissa / 8) * 2.0 ** (exponent - 7), mantissa / 8 * 2.0**-6)
    sizes[(bits & 0x7F) == 0x7F] = np.nan  # there is no infinity
    return np.where(bits < 128, sizes, -sizes).astype(np.float32)


E4M3 = _e4m3()


def as_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return numbers stored as `dtype` as fp32; exact but for F64 and large integers. NumPy has no bfloat16 or fp8."""
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E5M2":  # the upper half of fp16
        return (values.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    if dtype == "F8_E4M3":
        return E4M3[values]
    with np.errstate(over="ignore", invalid="ignore"):  # an F64 beyond fp32 is infinite, and refused as such
        return values.astype(np.float32)


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return fp32 numbers as they are stored as `dtype`, rounded to nearest even; bfloat16 as its 16 bits."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    with np.errstate(over="ignore"):
        return values.astype(DTYPES[dtype])
