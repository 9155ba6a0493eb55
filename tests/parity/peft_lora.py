"""Writes tiny_llama/ (a random tiny Llama) and peft_lora/ (a LoRA adapter of it, saved by PEFT).

    pip install torch transformers peft safetensors && python peft_lora.py

Each folder's golden.safetensors holds:

    input_ids, labels  [2, 9] int32; labels are -100 where a target is ignored. As in transformers,
                       the labels are not shifted: logits[:, t] are held against labels[:, t + 1]
    logits             [2, 9, 97]
    loss               the mean cross-entropy over the targets that count
    grad.<key>         the loss's gradient of each trainable parameter: in tiny_llama/ every
                       parameter under its key in model.safetensors, in peft_lora/ the LoRA
                       parameters under their keys in adapter_model.safetensors

and peft_lora/'s also logits_base (the adapter disabled) and logits_merged (merged into the base).
"""

import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

here = Path(__file__).parent
torch.manual_seed(20)
torch.set_num_threads(1)

config = LlamaConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    attn_implementation="eager",
)
model = LlamaForCausalLM(config).float()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        # Large enough that every part of the model shows in the logits; norms stand off from 1.
        if "norm" in name:
            parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
        else:
            parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
model.eval()

input_ids = torch.randint(3, 97, (2, 9))
labels = input_ids.clone()
labels[0, :3] = -100
labels[1, 7:] = -100

base = here / "tiny_llama"
shutil.rmtree(base, ignore_errors=True)
model.save_pretrained(base)

result = model(input_ids=input_ids, labels=labels)
result.loss.backward()
shared = {"input_ids": input_ids.int(), "labels": labels.int()}
golden = {**shared, "logits": result.logits.detach(), "loss": result.loss.detach()}
for name, parameter in model.named_parameters():
    golden[f"grad.{name}"] = parameter.grad.clone()
save_file(golden, base / "golden.safetensors")
model.zero_grad()
base_logits = result.logits.detach()

adapted = get_peft_model(
    model,
    LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=0.0,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        task_type="CAUSAL_LM",
        base_model_name_or_path="tiny_llama",
    ),
)
adapted.peft_config["default"].base_model_name_or_path = "tiny_llama"
with torch.no_grad():
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.copy_(0.3 * torch.randn_like(parameter))
adapted.eval()

folder = here / "peft_lora"
shutil.rmtree(folder, ignore_errors=True)
adapted.save_pretrained(folder)
(folder / "README.md").unlink(missing_ok=True)

result = adapted(input_ids=input_ids, labels=labels)
result.loss.backward()
golden = {**shared, "logits": result.logits.detach(), "loss": result.loss.detach()}
gradients = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
assert all(gradient is not None for gradient in gradients.values())
keys = get_peft_model_state_dict(adapted)
for name, gradient in gradients.items():
    key = name.replace(".default", "")
    assert key in keys, key
    golden[f"grad.{key}"] = gradient.clone()
assert len(gradients) == len(keys) == 2 * 4 * 2

with adapted.disable_adapter():
    golden["logits_base"] = adapted(input_ids=input_ids).logits.detach()
assert torch.allclose(golden["logits_base"], base_logits, atol=1e-6)
golden["logits_merged"] = adapted.merge_and_unload()(input_ids=input_ids).logits.detach()
assert (golden["logits"] - base_logits).abs().max() > 0.1
save_file(golden, folder / "golden.safetensors")
print("loss", result.loss.item())
