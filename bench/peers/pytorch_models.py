"""The models in PyTorch, written plainly: tensors by name, functions over them."""

import json
import os

import numpy as np
import torch
import torch.nn.functional as F

from pytorch_numbers import integers, numbers

SETTINGS = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
RANK, SCALE, EPSILON = 8, 2.0, 1e-5


def gpt_training(folder, method, attention):
    """The GPT whose weights and batches the driver wrote into `folder`."""
    with open(os.path.join(folder, "index.json")) as file:
        index = json.load(file)
    sizes = index["sizes"]
    t, heads, layers = sizes["sequence"], sizes["heads"], sizes["layers"]
    flat = torch.from_numpy(np.fromfile(os.path.join(folder, "weights.bin"), np.float32))
    w, at = {}, 0
    for name, shape in index["weights"]:
        count = int(np.prod(shape))
        trained = method == "full" or "lora_" in name
        w[name] = flat[at : at + count].reshape(shape).clone().requires_grad_(trained)
        at += count
    ids = np.fromfile(os.path.join(folder, "batches.bin"), np.int32)
    batches = torch.from_numpy(ids).long().reshape(-1, 2, sizes["batch"], t)
    mask = torch.ones(t, t, dtype=torch.bool).triu(1)
    optimizer = torch.optim.AdamW([p for p in w.values() if p.requires_grad], foreach=True, **SETTINGS)

    def linear(x, name):
        return F.linear(x, w[name + ".weight"], w[name + ".bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], EPSILON)

    def block(x, i):
        b, t, size = x.shape
        name = f"h.{i}.attn.c_attn"
        h = norm(x, f"h.{i}.ln_1")
        qkv = linear(h, name)
        if name + ".lora_A" in w:
            low = F.linear(h, w[name + ".lora_A"])
            qkv = qkv + SCALE * F.linear(low, w[name + ".lora_B"])
        q, k, v = (
            part.reshape(b, t, heads, size // heads).transpose(1, 2) for part in qkv.split(size, -1)
        )
        y = attention(q, k, v, mask).transpose(1, 2).reshape(b, t, size)
        x = x + linear(y, f"h.{i}.attn.c_proj")
        inner = F.gelu(linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"), approximate="tanh")
        return x + linear(inner, f"h.{i}.mlp.c_proj")

    def step(number):
        inputs, targets = batches[number % len(batches)]
        x = F.embedding(inputs, w["wte.weight"]) + w["wpe.weight"][:t]
        for i in range(layers):
            x = block(x, i)
        logits = F.linear(norm(x, "ln_f"), w["wte.weight"])
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def read_safetensors(path):
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        data = np.frombuffer(bytearray(file.read()), np.uint8)
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        assert entry["dtype"] == "F32"
        tensors[name] = torch.from_numpy(data[first:last].view(np.float32)).reshape(entry["shape"])
    return tensors


class Llama:
    """stories15M."""

    def __init__(self, folder, attention):
        with open(os.path.join(folder, "config.json")) as file:
            self.config = json.load(file)
        self.w = read_safetensors(os.path.join(folder, "model.safetensors"))
        self.attention = attention
        self.lora = {}
        d = self.config["hidden_size"] // self.config["num_attention_heads"]
        longest = self.config["max_position_embeddings"]
        frequencies = self.config["rope_theta"] ** (-torch.arange(0, d, 2) / d)
        angles = torch.arange(longest)[:, None] * frequencies
        angles = torch.cat([angles, angles], -1)
        self.cos, self.sin = angles.cos(), angles.sin()
        self.mask = torch.ones(longest, longest, dtype=torch.bool).triu(1)

    def add_lora(self, targets):
        for name in list(self.w):
            if name.split(".")[-2] not in targets:
                continue
            out, inner = self.w[name].shape
            a = torch.from_numpy(numbers(RANK * inner, 5, 0.05)).reshape(RANK, inner)
            b = torch.zeros(out, RANK)
            self.lora[name] = (a.requires_grad_(), b.requires_grad_())

    def linear(self, x, name):
        name += ".weight"
        y = F.linear(x, self.w[name])
        if name in self.lora:
            a, b = self.lora[name]
            y = y + SCALE * F.linear(F.linear(x, a), b)
        return y

    def norm(self, x, name):
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        return x * scale * self.w[name + ".weight"]

    def rope(self, x, start):
        cos = self.cos[start : start + x.shape[2]]
        sin = self.sin[start : start + x.shape[2]]
        half = x.shape[-1] // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

    def hidden(self, ids, cache=None, start=0):
        b, t = ids.shape
        heads = self.config["num_attention_heads"]
        x = F.embedding(ids, self.w["model.embed_tokens.weight"])
        for i in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{i}."
            h = self.norm(x, name + "input_layernorm")
            q, k, v = (
                self.linear(h, f"{name}self_attn.{p}_proj").reshape(b, t, heads, -1).transpose(1, 2)
                for p in "qkv"
            )
            q, k = self.rope(q, start), self.rope(k, start)
            if cache is None:
                y = self.attention(q, k, v, self.mask[:t, :t])
            else:
                end = start + t
                cache[i][0][:, :, start:end] = k
                cache[i][1][:, :, start:end] = v
                k, v = cache[i][0][:, :, :end], cache[i][1][:, :, :end]
                scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
                if t > 1:
                    scores.masked_fill_(self.mask[start:end, :end], float("-inf"))
                y = scores.softmax(-1) @ v
            x = x + self.linear(y.transpose(1, 2).reshape(b, t, -1), name + "self_attn.o_proj")
            h = self.norm(x, name + "post_attention_layernorm")
            gate = F.silu(self.linear(h, name + "mlp.gate_proj"))
            x = x + self.linear(gate * self.linear(h, name + "mlp.up_proj"), name + "mlp.down_proj")
        return self.norm(x, "model.norm")

    def logits(self, hidden):
        return F.linear(hidden, self.w["model.embed_tokens.weight"])


def llama_training(folder, batch, sequence, attention):
    model = Llama(folder, attention)
    model.add_lora({"q_proj", "k_proj", "v_proj", "o_proj"})
    trained = [p for pair in model.lora.values() for p in pair]
    optimizer = torch.optim.AdamW(trained, foreach=True, **SETTINGS)
    vocabulary = model.config["vocab_size"]

    def step(number):
        ids = torch.from_numpy(integers(batch * (sequence + 1), 10 + number, vocabulary)).long()
        hidden = model.hidden(ids[: batch * sequence].reshape(batch, sequence))
        logits = model.logits(hidden).reshape(-1, vocabulary)
        loss = F.cross_entropy(logits, ids[1 : batch * sequence + 1])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def llama_generation(folder, prompt, count, attention):
    model = Llama(folder, attention)
    config = model.config
    heads = config["num_attention_heads"]
    shape = [1, heads, len(prompt) + count, config["hidden_size"] // heads]

    @torch.inference_mode()
    def generate():
        cache = [(torch.empty(shape), torch.empty(shape)) for _ in range(config["num_hidden_layers"])]
        ids, start, tokens = torch.from_numpy(prompt).long()[None], 0, []
        for _ in range(count):
            token = int(model.logits(model.hidden(ids, cache, start)[:, -1]).argmax())
            tokens.append(token)
            start += ids.shape[1]
            ids = torch.tensor([[token]])
        return tokens

    return generate


def llama_load(folder):
    """Loads the state dict from PyTorch's own format."""
    path = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"graft-bench-{os.getpid()}.pt")
    weights = read_safetensors(os.path.join(folder, "model.safetensors"))

    def load():
        if not os.path.exists(path):
            torch.save(weights, path)
        loaded = torch.load(path)
        return loaded["model.norm.weight"].numpy()

    return load
