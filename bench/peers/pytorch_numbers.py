"""The numbers of work.ts."""

import numpy as np


def _hash(count, seed):
    with np.errstate(over="ignore"):
        i = np.arange(1, count + 1, dtype=np.uint32)
        h = i * np.uint32(0x9E3779B1) ^ np.uint32(seed * 0x85EBCA6B & 0xFFFFFFFF)
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        return (h ^ (h >> np.uint32(16))) >> np.uint32(8)


def numbers(count, seed, scale=1.0):
    return ((_hash(count, seed) / 2.0**23 - 1) * scale).astype(np.float32)


def integers(count, seed, below):
    return (_hash(count, seed) % np.uint32(below)).astype(np.int32)


def power(values):
    values = np.asarray(values, dtype=np.float64).reshape(-1)[: 1 << 16]
    square = float((values**2).sum())
    product = float((values * numbers(values.size, 7)).sum())
    return [square / values.size, product / (values.size * square or 1) ** 0.5]
