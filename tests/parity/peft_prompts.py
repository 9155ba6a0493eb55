"""Writes peft_prompts/: soft prompts of tiny_llama (see peft_lora.py), trained nowhere, saved by PEFT.

    pip install torch transformers peft safetensors && python peft_prompts.py

Each folder below it is one adapter of four virtual tokens, as save_pretrained writes it:

    prompt/             PROMPT_TUNING
    prefix/             PREFIX_TUNING, without projection
    prefix_projection/  PREFIX_TUNING, with projection
    p_tuning/           P_TUNING, the encoder an MLP

and its golden.safetensors holds:

    input_ids, labels     [2, 9] int32; labels are -100 where a target is ignored, and not shifted
    logits                [2, 9, 97], those of the virtual tokens left out
    logits_loaded         the same, after from_pretrained has loaded the folder again
    logits_base           the adapter disabled
    loss                  the mean cross-entropy over the targets that count
    parameter.<key>       what is trained, by its name in PEFT's encoder
    grad.<key>            the loss's gradient of it
    padded.ids            prefix/ only: [2, 12] int32, the second row padded on the left with three 0
    padded.last           prefix/ only: [2, 97], the logits of the last position, with a mask for them
                          and positions that begin with each row's first token
    greedy                prompt/ and prefix/ only: [16] int32, the continuation of row 0

from_text.safetensors holds, for the tokens `ids` [4], `rows` [4, 2 L d]: the base model's keys (after
rotary positions) and values of them, laid out as prefix tuning's `prompt_embeddings`.
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
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

here = Path(__file__).parent
base_folder = here / "tiny_llama"
out = here / "peft_prompts"
torch.set_num_threads(1)
TOKENS = 4


def base():
    model = AutoModelForCausalLM.from_pretrained(base_folder, attn_implementation="eager")
    return model.float().eval()


known = load_file(base_folder / "golden.safetensors")
input_ids, labels = known["input_ids"].long(), known["labels"].long()
# With vectors before the input PEFT would have the last of them predict the first token.
labels[:, 0] = -100
shutil.rmtree(out, ignore_errors=True)

shared = dict(num_virtual_tokens=TOKENS, task_type="CAUSAL_LM")
configs = {
    "prompt": PromptTuningConfig(**shared),
    "prefix": PrefixTuningConfig(**shared),
    "prefix_projection": PrefixTuningConfig(
        **shared, prefix_projection=True, encoder_hidden_size=12
    ),
    "p_tuning": PromptEncoderConfig(**shared, encoder_hidden_size=12),
}
for seed, (name, config) in enumerate(configs.items()):
    torch.manual_seed(seed)
    model = get_peft_model(base(), config)
    model.peft_config["default"].base_model_name_or_path = "tiny_llama"
    encoder = model.prompt_encoder["default"]
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(0.7 * torch.randn_like(parameter))
    model.eval()
    folder = out / name
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    result = model(input_ids=input_ids, labels=labels)
    result.loss.backward()
    own = -input_ids.shape[1]
    golden = {
        "input_ids": input_ids.int(),
        "labels": labels.int(),
        "logits": result.logits[:, own:].detach().contiguous(),
        "loss": result.loss.detach(),
    }
    for key, parameter in encoder.named_parameters():
        golden[f"parameter.{key}"] = parameter.detach().clone()
        golden[f"grad.{key}"] = parameter.grad.clone()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == len(list(encoder.parameters()))
    with torch.no_grad():
        with model.disable_adapter():
            golden["logits_base"] = model(input_ids=input_ids).logits
        assert torch.allclose(golden["logits_base"], known["logits"], atol=1e-6)
        assert (golden["logits"] - known["logits"]).abs().max() > 0.1
        loaded = PeftModel.from_pretrained(base(), folder).eval()
        golden["logits_loaded"] = loaded(input_ids=input_ids).logits[:, own:].contiguous()
        assert torch.allclose(golden["logits_loaded"], golden["logits"], atol=1e-5)
        if name in ("prompt", "prefix"):
            greedy = model.generate(
                input_ids=input_ids[:1],
                attention_mask=torch.ones_like(input_ids[:1]),
                max_new_tokens=16,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
            golden["greedy"] = greedy[0, -16:].int().contiguous()
        if name == "prefix":
            # PEFT drops positions, so the base is called with the prefix as its cache.
            padded = torch.zeros(2, 12, dtype=torch.long)
            padded[0] = torch.arange(3, 15)
            padded[1, 3:] = input_ids[1]
            mask = torch.ones(2, TOKENS + 12, dtype=torch.long)
            mask[1, TOKENS : TOKENS + 3] = 0
            positions = torch.arange(12).repeat(2, 1) + TOKENS
            positions[1] = (positions[1] - 3).clamp(min=TOKENS)
            last = base()(
                input_ids=padded,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=model.get_prompt(batch_size=2),
            ).logits[:, -1]
            golden["padded.ids"], golden["padded.last"] = padded.int(), last.contiguous()
    save_file(golden, folder / "golden.safetensors")
    print(name, "loss", result.loss.item())

ids = torch.tensor([11, 42, 7, 90])
with torch.no_grad():
    cache = base()(input_ids=ids[None], use_cache=True).past_key_values
rows = []
for layer in cache.layers:
    for part in (layer.keys, layer.values):  # [1, H, 4, D] -> [4, H · D]
        rows.append(part[0].permute(1, 0, 2).reshape(TOKENS, -1))
save_file({"ids": ids.int(), "rows": torch.cat(rows, 1)}, out / "from_text.safetensors")
