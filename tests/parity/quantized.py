"""Writes quantized.safetensors and qlora/: packed weights as bitsandbytes and PEFT have them.

    PYTHONHASHSEED=0 python tests/parity/quantized.py

With torch, transformers, peft and bitsandbytes, on a CPU. PEFT's LoftQ asks for a GPU by name: the name
is changed on its way.

quantized.safetensors:
  w            [6, 192]  a matrix, with a block of zeros and one with its largest element below 0
  nf4.codes    i32 [6, 192], nf4.scales [18], nf4.values [6, 192]: quantize_4bit, blocks of 64
  int8.codes   i32 [6, 192], int8.scales [6], int8.values [6, 192]: int8_vectorwise_quant, a scale a row
  loftq.w      [24, 128]; for BITS in 4, 8 and ITER in 1, 4: loftq.BITS.ITER.q and loftq.BITS.ITER.ba,
               PEFT's loftq_init at rank 6, with B and A multiplied
qlora/: a random Llama (hidden 64, 1 layer, vocabulary 61) as save_pretrained writes it; qlora/lora and
  qlora/dora: adapters (r 4, B not zero) trained on its Linear4bit layers, as save_pretrained writes them,
  and in each golden.safetensors: input_ids, labels, logits, loss, the gradient of every trained parameter,
  and logits_merged, after merge_and_unload into the packed weights.
"""

import os

import bitsandbytes as bnb
import bitsandbytes.functional as F
import peft
import torch
from peft.utils import loftq_utils
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

here = os.path.dirname(os.path.abspath(__file__))
torch.manual_seed(11)


def on_cpu(to):
    def moved(self, *args, **kwargs):
        args = ["cpu" if x == "cuda" else x for x in args]
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return to(self, *args, **kwargs)

    return moved


torch.Tensor.to = on_cpu(torch.Tensor.to)
bnb.nn.Params4bit.to = on_cpu(bnb.nn.Params4bit.to)


def matrices():
    w = torch.randn(6, 192) * torch.rand(6, 1)
    w[2, 64:128] = 0
    w[3, 70] = -9
    tensors = {"w": w}

    packed, state = F.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=False)
    bytes_ = packed.flatten().to(torch.int32)
    tensors["nf4.codes"] = torch.stack([bytes_ >> 4, bytes_ & 15], 1).reshape(w.shape)
    tensors["nf4.scales"] = state.absmax
    tensors["nf4.values"] = F.dequantize_4bit(packed, state)

    codes, scales, _ = F.int8_vectorwise_quant(w)
    tensors["int8.codes"] = codes.to(torch.int32)
    tensors["int8.scales"] = scales
    tensors["int8.values"] = F.int8_vectorwise_dequant(codes, scales)

    w = torch.randn(24, 128) @ torch.diag(torch.linspace(1, 0.1, 128))
    tensors["loftq.w"] = w
    for bits in [4, 8]:
        for iterations in [1, 4]:
            q, a, b = loftq_utils.loftq_init(w.clone(), bits, 6, iterations)
            tensors[f"loftq.{bits}.{iterations}.q"] = q
            tensors[f"loftq.{bits}.{iterations}.ba"] = b @ a
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    save_file(tensors, f"{here}/quantized.safetensors")


def model(folder):
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def packed_model(folder):
    base = LlamaForCausalLM.from_pretrained(folder)
    base.is_loaded_in_4bit = True
    for name, module in list(base.named_modules()):
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        layer = bnb.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=False,
            compute_dtype=torch.float32,
            compress_statistics=False,
            quant_type="nf4",
        )
        weight = module.weight.data
        layer.weight = bnb.nn.Params4bit(
            weight, requires_grad=False, compress_statistics=False, quant_type="nf4"
        ).to("cpu")
        parent, _, last = name.rpartition(".")
        setattr(base.get_submodule(parent), last, layer)
    return base


def adapters(folder):
    ids = torch.randint(0, 61, (2, 9))
    labels = ids.clone()
    labels[0, :3] = -100
    for name, extra in {"lora": {}, "dora": {"use_dora": True}}.items():
        config = peft.LoraConfig(
            r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **extra
        )
        adapted = peft.get_peft_model(packed_model(folder), config)
        adapted.peft_config["default"].base_model_name_or_path = "qlora"
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.1)
        out = adapted(input_ids=ids, labels=labels)
        out.loss.backward()
        adapted.save_pretrained(f"{folder}/{name}")
        tensors = {
            "input_ids": ids.to(torch.int32),
            "labels": labels.to(torch.int32),
            "logits": out.logits.detach(),
            "loss": out.loss.detach().reshape(1),
        }
        for key, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                short = key.replace(".default", "")
                # The file's key; one of DoRA's vectors has none of ".weight".
                short = short.replace("magnitude_vector.weight", "magnitude_vector")
                tensors[f"grad.{short}"] = parameter.grad
        with torch.no_grad():
            tensors["logits_merged"] = adapted.merge_and_unload()(input_ids=ids).logits
        save_file(tensors, f"{folder}/{name}/golden.safetensors")
        os.remove(f"{folder}/{name}/README.md")


matrices()
model(f"{here}/qlora")
adapters(f"{here}/qlora")
