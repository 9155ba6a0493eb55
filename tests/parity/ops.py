"""Writes ops.safetensors: composed ops as PyTorch computes them, with gradients.

    python tests/parity/ops.py

For each case NAME: NAME.in.0, NAME.in.1, ... the inputs, NAME.out the output, and NAME.grad.0, ... the
gradients of sum(output * weight) for the float inputs, with weight = cos(0, 1, 2, ...) in row-major order.
"""

import os

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(20)
tensors = {}


def case(name, fn, *inputs):
    leaves = []
    for i, x in enumerate(inputs):
        tensors[f"{name}.in.{i}"] = x.to(torch.int32) if x.dtype == torch.int64 else x.clone()
        leaves.append(x.clone().requires_grad_() if x.is_floating_point() else x)
    out = fn(*leaves)
    kept = out.to(torch.int32) if not out.is_floating_point() else out.detach()
    tensors[f"{name}.out"] = kept.contiguous()
    if not out.requires_grad:
        return
    weight = torch.cos(torch.arange(out.numel(), dtype=torch.float32)).reshape(out.shape)
    (out * weight).sum().backward()
    for i, x in enumerate(leaves):
        # The angles of rotary positions are constants.
        if x.is_floating_point() and not (name == "rope" and i > 0):
            tensors[f"{name}.grad.{i}"] = x.grad


r = torch.randn
case("softmax", lambda x: torch.softmax(x, 1), r(3, 7, 2) * 3)
case("log_softmax", lambda x: torch.log_softmax(x, -1), r(4, 9) * 3)
case("logsumexp", lambda x: torch.logsumexp(x, (0, 2)), r(3, 4, 5) * 3)
case("variance", lambda x: torch.var(x, 1), r(3, 8))
case("mean", lambda x: torch.mean(x, (0, 1)), r(3, 4, 2))
case("layer_norm", lambda x, w, b: F.layer_norm(x, (6,), w, b), r(4, 3, 6), r(6), r(6))
case("rms_norm", lambda x, w: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * w, r(4, 3, 6), r(6))
case("gelu", lambda x: F.gelu(x), r(20) * 2)
case("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), r(20) * 2)
case("silu", lambda x: F.silu(x), r(20) * 2)
case("softplus", lambda x: F.softplus(x), r(20) * 2)
case("erf", lambda x: torch.erf(x), r(20))
case("pow", lambda x, y: torch.pow(x, y), torch.rand(12) + 0.2, r(12))
case("clamp", lambda x: torch.clamp(x, -0.5, 0.7), r(20))
case("cumsum", lambda x: torch.cumsum(x, 1), r(3, 11))
case("sort", lambda x: torch.sort(x, 1, descending=True)[0], r(3, 11))
case("argsort", lambda x: torch.argsort(x, 1), r(3, 11))
case("top_k", lambda x: torch.topk(x, 4, 1)[0], r(3, 11))
case("argmax", lambda x: torch.argmax(x, 0), r(5, 6))
case("prod", lambda x: torch.prod(x, 1), r(3, 5))
case("gather", lambda x, i: torch.gather(x, 1, i.long()), r(3, 6), torch.randint(0, 6, (3, 4)))
case("take", lambda x, i: x[i.long()], r(6, 3), torch.randint(0, 6, (2, 5)))
case(
    "scatter_add",
    lambda s, i: torch.zeros(3, 4).scatter_add(1, i.long(), s),
    r(3, 7),
    torch.randint(0, 4, (3, 7)),
)
case("one_hot", lambda i: F.one_hot(i.long(), 5).float(), torch.randint(0, 5, (4,)))
case("tril", lambda x: torch.tril(x, -1), r(2, 5, 4))
case("triu", lambda x: torch.triu(x, 1), r(5, 4))
case("concatenate", lambda a, b, c: torch.cat([a, b, c], 1), r(2, 3), r(2, 1), r(2, 4))
case("stack", lambda a, b: torch.stack([a, b], 1), r(2, 3), r(2, 3))
case("pad", lambda x: F.pad(x, (1, 2), value=1.5), r(2, 3))
case("flip", lambda x: torch.flip(x, (0, 1)), r(3, 4))
case("slice", lambda x: x[:, 1:6:2], r(3, 7))
case("max", lambda x: torch.amax(x, 1), r(4, 6))
case("einsum_product", lambda a, b: torch.einsum("bij,bkj->bik", a, b), r(2, 3, 4), r(2, 5, 4))
case("einsum_outer", lambda a, b: torch.einsum("i,j->ji", a, b), r(3), r(4))
case("einsum_three", lambda a, b, c: torch.einsum("ij,jk,kl->il", a, b, c), r(2, 3), r(3, 4), r(4, 2))
case("matmul", lambda a, b: a @ b, r(2, 1, 3, 4), r(3, 4, 5))
case(
    "cross_entropy",
    lambda x, t: F.cross_entropy(x, t.long()),
    r(6, 9) * 2,
    torch.tensor([1, 8, -100, 0, 3, -100]),
)
case(
    "linear_cross_entropy",
    lambda h, w, t: F.cross_entropy(h @ w.T, t.long(), reduction="sum"),
    r(7, 4),
    r(9, 4),
    torch.tensor([1, 8, -100, 0, 3, -100, 2]),
)
case(
    "rope",
    lambda x, c, s: torch.cat([x[..., :3] * c - x[..., 3:] * s, x[..., 3:] * c + x[..., :3] * s], -1),
    r(2, 2, 5, 6),
    r(5, 3),
    r(5, 3),
)
case(
    "attention_causal",
    lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    r(2, 3, 6, 4),
    r(2, 3, 6, 4),
    r(2, 3, 6, 4),
)
case(
    "attention_grouped",
    lambda q, k, v: F.scaled_dot_product_attention(
        q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    ),
    r(1, 4, 3, 8),
    r(1, 2, 5, 8),
    r(1, 2, 5, 8),
)
save_file(tensors, os.path.join(os.path.dirname(os.path.abspath(__file__)), "ops.safetensors"))
