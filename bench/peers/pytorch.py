"""PyTorch's side: python3 pytorch.py THREADS. Speaks as child.ts does."""

import json
import math
import os
import sys
import time

THREADS = int(sys.argv[1])
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(THREADS)

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

torch.set_num_threads(THREADS)
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from pytorch_models import gpt_training, llama_generation, llama_load, llama_training  # noqa: E402
from pytorch_numbers import integers, numbers, power  # noqa: E402

MODERN = hasattr(F, "scaled_dot_product_attention")


def array(shape, seed, trained=False):
    data = numbers(math.prod(shape), seed).reshape(shape)
    return torch.from_numpy(data).requires_grad_(trained)


class Work:
    def __init__(self, run, value=None):
        self.results = []
        self._run = run
        self._value = value

    def run(self):
        self.results = self._run()

    def value(self):
        if self._value:
            return self._value()
        return [n for t in self.results for n in power(t.detach().numpy())]


def forward_only(compute):
    def run():
        with torch.no_grad():
            return [compute()]

    return Work(run)


def with_gradients(trained, g, compute):
    def run():
        y = compute()
        return [y, *torch.autograd.grad(y, trained, g)]

    return Work(run)


def causal_attention(q, k, v, mask):
    if MODERN:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    return scores.masked_fill_(mask, -math.inf).softmax(-1) @ v


def attention(b, h, t, d, backward):
    q, k, v = (array([b, h, t, d], seed, backward == 1) for seed in (1, 2, 3))
    g = array([b, h, t, d], 4)
    mask = torch.ones(t, t, dtype=torch.bool).triu(1)
    compute = lambda: causal_attention(q, k, v, mask)  # noqa: E731
    return with_gradients([q, k, v], g, compute) if backward else forward_only(compute)


def matmul(batch, m, n, k, turned):
    lead = [batch] if batch > 1 else []
    a = array([*lead, m, k], 1)
    b = array([*lead, *([n, k] if turned else [k, n])], 2)
    return forward_only(lambda: a @ (b.transpose(-1, -2) if turned else b))


def norm(rows, size, layer):
    x, weight, bias = array([rows, size], 1, True), array([size], 2, True), array([size], 3, True)
    g = array([rows, size], 4)
    if layer:
        compute = lambda: F.layer_norm(x, [size], weight, bias, 1e-5)  # noqa: E731
        return with_gradients([x, weight, bias], g, compute)
    compute = lambda: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight  # noqa: E731
    return with_gradients([x, weight], g, compute)


def loss_of(x, compute):
    def run():
        loss = compute()
        return [loss.reshape(1), *torch.autograd.grad(loss, [x])]

    return Work(run)


def cross_entropy(rows, classes):
    x, targets = array([rows, classes], 1, True), torch.from_numpy(integers(rows, 2, classes)).long()
    return loss_of(x, lambda: F.cross_entropy(x, targets))


def head(rows, size, classes):
    x, weight = array([rows, size], 1, True), array([classes, size], 2)
    targets = torch.from_numpy(integers(rows, 3, classes)).long()
    return loss_of(x, lambda: F.cross_entropy(F.linear(x, weight), targets))


def embedding(rows, size, vocabulary):
    weight = array([vocabulary, size], 1, True)
    ids = torch.from_numpy(integers(rows, 2, vocabulary)).long()
    return with_gradients([weight], array([rows, size], 3), lambda: F.embedding(ids, weight))


def adam_w(count, size):
    parameters = []
    for i in range(count):
        for shape in ([size, size], [size]):
            p = array(shape, 2 * i, True)
            p.grad = array(shape, 2 * i + 1)
            parameters.append(p)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, eps=1e-8, weight_decay=0, foreach=True)
    early = []

    def run():
        optimizer.step()
        if not early:
            early.extend(power(parameters[0].detach().numpy()))

    return Work(run, lambda: early)


def training(step):
    losses = []
    return Work(lambda: losses.append(step(len(losses))), lambda: losses)


def generation(folder, prompt, count):
    tokens = []
    generate = llama_generation(folder, integers(prompt, 6, 32000), count, causal_attention)
    return Work(lambda: tokens.__setitem__(slice(None), generate()), lambda: tokens)


def loading(folder):
    norm = []
    load = llama_load(folder)
    return Work(lambda: norm.__setitem__(slice(None), power(load())), lambda: norm)


def open_work(case, data):
    kind, sizes = case["kind"], case["sizes"]
    if kind == "step":
        return training(gpt_training(data, case["method"], causal_attention))
    if kind == "stories":
        return training(llama_training(data, **sizes, attention=causal_attention))
    if kind in ("prompt", "decode"):
        return generation(data, **sizes)
    if kind == "load":
        return loading(data)
    makers = {
        "matmul": matmul,
        "attention": attention,
        "layer norm": lambda **s: norm(**s, layer=True),
        "RMS norm": lambda **s: norm(**s, layer=False),
        "cross-entropy": cross_entropy,
        "head": head,
        "embedding": embedding,
        "AdamW": adam_w,
    }
    return makers[kind](**sizes) if kind in makers else None


def say(what):
    print(json.dumps(what), flush=True)


def timed(work, times):
    start = time.perf_counter()
    for _ in range(times):
        work.run()
    return (time.perf_counter() - start) * 1000 / times


say({"name": f"PyTorch {torch.__version__.split('+')[0]}, {THREADS} threads"})
work = None
for line in sys.stdin:
    asked = json.loads(line)
    try:
        if asked["ask"] == "open":
            start = time.perf_counter()
            work = None
            work = open_work(asked["case"], asked["data"])
            say({"has": work is not None, "ms": (time.perf_counter() - start) * 1000})
        elif asked["ask"] == "run":
            say({"ms": timed(work, asked["times"])})
        else:
            say({"value": [float(n) for n in work.value()]})
    except Exception as error:  # a side that fails is a row in the table
        say({"error": f"{type(error).__name__}: {error}"})
