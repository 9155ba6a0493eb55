"""Writes peft_eva/: adapters that PEFT has just started by EVA, as it saves them.

    pip install torch transformers peft safetensors && PYTHONHASHSEED=0 python peft_eva.py

The base is tiny_llama/ (by peft_lora.py). inputs.safetensors has what all of them start from:

    input_ids   i32 [4, 40]
    labels      i32 [4, 40], the tokens themselves, -100 where they are of a prompt or padding

Each folder holds adapter_config.json and adapter_model.safetensors, with A as it starts and B zero.
`batches` has two of two rows, over which PEFT goes again and again until its directions stand still,
and of each it keeps the largest alone. The others have one batch of all rows, which PEFT sees twice:
once for the directions, once to find that they stand. Ranks are such that its power iterations are
exact to single precision. `whiten` has no two layers with the same input: PEFT divides the
directions that such layers share once for each of them.
"""

import shutil
from pathlib import Path

import torch
from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

here = Path(__file__).parent
out = here / "peft_eva"
torch.set_num_threads(1)

QVD = ["q_proj", "v_proj", "down_proj"]
CASES = {
    "plain": dict(r=8, target_modules=QVD),
    "patterns": dict(r=15, target_modules=QVD, eva=dict(rho=1.1), use_rslora=True,
                     rank_pattern={"v_proj": 10, "layers.1.mlp.down_proj": 13},
                     alpha_pattern={"q_proj": 3}),
    "whiten": dict(r=18, target_modules=["o_proj", "down_proj"],
                   eva=dict(rho=1.25, whiten=True, adjust_scaling_factors=False, use_label_mask=False)),
    "batches": dict(r=8, target_modules=QVD),
}

generator = torch.Generator().manual_seed(3)
input_ids = torch.randint(0, 97, (4, 40), generator=generator)
labels = input_ids.clone()
for row, (prompt, length) in enumerate([(0, 40), (9, 40), (14, 37), (3, 31)]):
    labels[row, :prompt] = -100
    labels[row, length:] = -100
shutil.rmtree(out, ignore_errors=True)
out.mkdir()
save_file({"input_ids": input_ids.int(), "labels": labels.int()}, out / "inputs.safetensors")


def batches(size: int) -> list[dict]:
    return [
        dict(input_ids=ids, labels=wanted, attention_mask=torch.ones_like(ids))
        for ids, wanted in zip(input_ids.split(size), labels.split(size))
    ]


for name, options in CASES.items():
    torch.manual_seed(30)
    model = AutoModelForCausalLM.from_pretrained(here / "tiny_llama", attn_implementation="eager")
    eva = EvaConfig(**options.pop("eva", {}))
    config = LoraConfig(lora_alpha=8, task_type="CAUSAL_LM", init_lora_weights="eva", eva_config=eva,
                        **options)
    adapted = get_peft_model(model.float(), config)
    adapted.peft_config["default"].base_model_name_or_path = "tiny_llama"
    initialize_lora_eva_weights(adapted, batches(2 if name == "batches" else 4),
                                show_progress_bar=False)
    adapted.save_pretrained(out / name)
    (out / name / "README.md").unlink(missing_ok=True)
    ranks = {k: p.shape[0] for k, p in adapted.named_parameters() if "lora_A" in k}
    print(name, list(ranks.values()), adapted.peft_config["default"].alpha_pattern)
