"""Writes peft_heads/: soft prompts that are trained with a head, saved by PEFT.

    pip install torch transformers peft safetensors && python peft_heads.py

The bases are the classifiers in families/ (by families.py), to whose prompts PEFT adds a copy of the
classifier, two decoders with `modules_to_save`, and rlhf/reward_llama (by rlhf.py), a decoder with one
label, on rows without padding that stand with their labels in golden.safetensors. Each folder is one adapter of four virtual tokens,
as save_pretrained writes it, named <base>.<method>; its golden.safetensors holds, for input_ids,
attention_mask, token_type_ids and labels of the base's golden.safetensors:

    logits            classifiers: [2, 3] or [2, 11, 5]; decoders: [B, T, V]; those of virtual tokens
                      left out, and for decoders 0 where padding is
    loss              the mean cross-entropy over the labels that count
    parameter.<key>   what is trained: prompt.<key>, by its name in PEFT's encoder, and the copies by
                      their key in adapter_model.safetensors
    grad.<key>        the loss's gradient of it
"""

import shutil
from pathlib import Path

import torch
from peft import (
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

here = Path(__file__).parent
out = here / "peft_heads"
torch.set_num_threads(1)
TOKENS = 4
CLASSES = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "CAUSAL_LM": AutoModelForCausalLM,
}
METHODS = {
    "prompt": (PromptTuningConfig, {}),
    "prefix": (PrefixTuningConfig, {}),
    "projection": (PrefixTuningConfig, dict(prefix_projection=True, encoder_hidden_size=5)),
    "lstm": (
        PromptEncoderConfig,
        dict(encoder_reparameterization_type="LSTM", encoder_hidden_size=5, encoder_num_layers=2),
    ),
}


FOLDERS = {"tiny_llama": here / "tiny_llama", "reward_llama": here / "rlhf/reward_llama"}


def folder_of(name):
    return FOLDERS.get(name, here / "families" / name)


def base(name, task):
    model = CLASSES[task].from_pretrained(folder_of(name), attn_implementation="eager")
    return model.float().eval()


def results(model, name, task, inputs, labels):
    """Logits of the tokens, and the loss."""
    if task == "SEQ_CLS":
        result = model(**inputs, labels=labels)
        return result.logits, result.loss
    logits = model(**inputs).logits[:, -labels.shape[1] :]
    if task == "TOKEN_CLS":  # PEFT's own loss takes prompts' virtual tokens for labelled ones
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return logits, loss
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    if "attention_mask" in inputs:
        logits = logits * inputs["attention_mask"].unsqueeze(-1)
    return logits, loss


def write(seed, name, method, task, **more):
    torch.manual_seed(seed)
    cls, settings = METHODS[method]
    config = cls(num_virtual_tokens=TOKENS, task_type=task, **settings, **more)
    model = get_peft_model(base(name, task), config)
    model.peft_config["default"].base_model_name_or_path = name
    encoder = model.prompt_encoder["default"]
    trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for key, parameter in trained.items():
            noise = torch.randn_like(parameter)
            if key.startswith("prompt_encoder."):
                parameter.copy_(0.7 * noise)
            else:
                parameter.add_(0.2 * noise)
    model.eval()
    folder = out / f"{name}.{method}"
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        keys = set(file.keys())

    known = load_file(folder_of(name) / "golden.safetensors")
    if name == "reward_llama":
        known = {"input_ids": torch.randint(4, 97, (2, 9)), "labels": torch.tensor([0.5, -1.5])}
    inputs = {k: known[k].long() for k in ("input_ids", "attention_mask", "token_type_ids") if k in known}
    labels = known["labels"] if known["labels"].is_floating_point() else known["labels"].long()
    logits, loss = results(model, name, task, inputs, labels)
    loss.backward()
    golden = {"logits": logits.detach().contiguous(), "loss": loss.detach()}
    if name == "reward_llama":
        golden |= {"input_ids": inputs["input_ids"].int(), "labels": labels}
    for key, parameter in trained.items():
        short = key.replace(".modules_to_save.default", "")
        short = short.replace("prompt_encoder.default.", "prompt.")
        assert short in keys or short.startswith("prompt."), (short, keys)
        golden[f"parameter.{short}"] = parameter.detach().clone()
        golden[f"grad.{short}"] = parameter.grad.clone()
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(base(name, task), folder).eval()
        again, _ = results(loaded, name, task, inputs, labels)
        assert torch.allclose(again, logits, atol=1e-5)
        plain, _ = results(base(name, task), name, task, inputs, labels)
        assert (plain - logits).abs().max() > 0.1
    save_file(golden, folder / "golden.safetensors")
    print(folder.name, "loss", loss.item(), sorted(keys))


shutil.rmtree(out, ignore_errors=True)
cases = [
    (f"{family}_{head}", method, task, {})
    for family in ("bert", "roberta")
    for head, task in (("sequence", "SEQ_CLS"), ("token", "TOKEN_CLS"))
    for method in ("prompt", "prefix", "projection")
]
cases += [
    ("roberta_sequence", "lstm", "SEQ_CLS", {}),
    ("tiny_llama", "prompt", "CAUSAL_LM", {"modules_to_save": ["lm_head"]}),
    ("gpt2", "prefix", "CAUSAL_LM", {"modules_to_save": ["ln_f"]}),
    ("reward_llama", "prompt", "SEQ_CLS", {}),
    ("reward_llama", "prefix", "SEQ_CLS", {}),
]
for seed, (name, method, task, more) in enumerate(cases, 50):
    write(seed, name, method, task, **more)
print("bytes", sum(f.stat().st_size for f in out.rglob("*") if f.is_file()))
