"""Writes peft_more/: adapters as PEFT saves them, one folder for each method.

    pip install torch transformers peft safetensors && PYTHONHASHSEED=0 python peft_more.py

The bases are tiny_llama/ (by peft_lora.py), families/qwen2 and families/gpt2 (by families.py), with
the input_ids and labels of their golden files. Each folder holds adapter_config.json, adapter_model.safetensors and golden.safetensors:

    logits         [B, T, V], with the adapter
    logits_merged  the same, after merge_and_unload
    loss           the mean cross-entropy over the targets that count
    grad.<key>     its gradient of each trained parameter, under the parameter's key in
                   adapter_model.safetensors; large ones summed over their last dimension
"""

import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

here = Path(__file__).parent
torch.set_num_threads(1)

QV = ["q_proj", "v_proj"]
LLAMA = {
    "rslora": dict(target_modules=QV, use_rslora=True, rank_pattern={"layers.0.self_attn.q_proj": 2},
                   alpha_pattern={"v_proj": 3}),
    "dora": dict(target_modules=["q_proj", "down_proj"], use_dora=True),
    "saved": dict(target_modules=QV, modules_to_save=["lm_head"]),
    "embedding": dict(target_modules=["embed_tokens", "q_proj"]),
    "pissa": dict(target_modules=QV, init_lora_weights="pissa"),
    "olora": dict(target_modules=QV, init_lora_weights="olora"),
    "embedding_dora": dict(target_modules=["embed_tokens", "q_proj"], use_dora=True),
}
QWEN2 = {  # whose projections have a bias
    "bias": dict(target_modules=QV, bias="lora_only"),
    "lora_bias": dict(target_modules=QV, lora_bias=True),
}
GPT2 = {
    "conv1d": dict(target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True),
    "conv1d_dora": dict(target_modules=["c_attn"], fan_in_fan_out=True, use_dora=True, bias="all"),
}


def write(name: str, base: str, options: dict) -> None:
    torch.manual_seed(30)
    model = AutoModelForCausalLM.from_pretrained(here / base, attn_implementation="eager").float()
    with safe_open(here / base / "golden.safetensors", "pt") as file:
        input_ids = file.get_tensor("input_ids").long()
        labels = file.get_tensor("labels").long()
    config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **options)
    config.base_model_name_or_path = Path(base).name
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = Path(base).name
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if not parameter.requires_grad:
                continue
            if "lora_B" in key or "lora_embedding_A" in key:
                parameter.copy_(0.3 * torch.randn_like(parameter))
            elif "lora_A" not in key and "lora_embedding" not in key:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.eval()
    folder = here / "peft_more" / name
    shutil.rmtree(folder, ignore_errors=True)
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        keys = set(file.keys())

    result = adapted(input_ids=input_ids, labels=labels)
    result.loss.backward()
    golden = {"logits": result.logits.detach(), "loss": result.loss.detach()}
    for key, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            short = key.replace(".modules_to_save.default", "").replace(".default", "")
            if short not in keys:
                short = short.removesuffix(".weight")
            assert short in keys, (short, keys)
            grad = parameter.grad.clone()
            golden[f"grad.{short}"] = grad.sum(-1) if grad.numel() > 2000 else grad
    merged = adapted.merge_and_unload()(input_ids=input_ids).logits.detach()
    golden["logits_merged"] = merged
    save_file(golden, folder / "golden.safetensors")
    print(name, "loss", result.loss.item(), "merged", (merged - golden["logits"]).abs().max().item())


for name, options in LLAMA.items():
    write(name, "tiny_llama", options)
for name, options in QWEN2.items():
    write(name, "families/qwen2", options)
for name, options in GPT2.items():
    write(name, "families/gpt2", options)
