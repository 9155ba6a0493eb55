"""Writes safetensors_python.safetensors: a file as the Python safetensors library lays it out.

    pip install numpy safetensors && python safetensors_python.py
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

tensors = {
    "z.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 4,
    "a.weight": np.array([-1, 2**40], dtype=np.int64),
    "half": np.array([0.5, -2.0, 65504.0], dtype=np.float16),
    "bytes": np.array([0, 127, 255], dtype=np.uint8),
    "mask": np.array([True, False, True]),
    "ids": np.array([7], dtype=np.int32),
    "é\n\"quoted\"": np.array(3.25, dtype=np.float32),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "\U0001d11e": np.ones(1, dtype=np.float32),
    "\uffee": np.ones(1, dtype=np.float32),
}
save_file(tensors, Path(__file__).with_suffix(".safetensors"), metadata={"format": "pt"})
