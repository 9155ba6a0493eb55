"""Writes peft_combine/: two adapters of tiny_llama (see peft_lora.py) and what PEFT combines of them.

    pip install torch transformers peft safetensors && PYTHONHASHSEED=0 python peft_combine.py

a/ and b/ are LoRA adapters as save_pretrained writes them: a of rank 4 on q_proj and v_proj, b of rank 2
on q_proj alone and with rsLoRA. golden.safetensors holds ΔW [out, in] of the combination 0.7 a - 0.4 b,
under the name of the combination and that of the layer:

    <name>/layers.0.self_attn.q_proj, <name>/layers.1.self_attn.v_proj

    cat, svd          as add_weighted_adapter's combination_type says
    svd_3             to rank 3
    ties, ties_frequency, magnitude_prune
                      combination_type "..._svd", density 0.3, to rank 16
"""

import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

here = Path(__file__).parent
out = here / "peft_combine"
shutil.rmtree(out, ignore_errors=True)
torch.set_num_threads(1)
torch.manual_seed(80)

base = AutoModelForCausalLM.from_pretrained(here / "tiny_llama").float()
shared = dict(task_type="CAUSAL_LM", base_model_name_or_path="tiny_llama")
model = get_peft_model(
    base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **shared), "a"
)
model.add_adapter(
    "b", LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj"], use_rslora=True, **shared)
)
with torch.no_grad():
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            parameter.copy_(0.3 * torch.randn_like(parameter))
for config in model.peft_config.values():
    config.base_model_name_or_path = "tiny_llama"
model.save_pretrained(out)
(out / "README.md").unlink(missing_ok=True)
for name in ("a", "b"):
    (out / name / "README.md").unlink(missing_ok=True)

pruned = dict(density=0.3, svd_rank=16)
golden = {}
for name, options in {
    "cat": dict(combination_type="cat"),
    "svd": dict(combination_type="svd"),
    "svd_3": dict(combination_type="svd", svd_rank=3),
    "ties": dict(combination_type="ties_svd", **pruned),
    "ties_frequency": dict(
        combination_type="ties_svd", majority_sign_method="frequency", **pruned
    ),
    "magnitude_prune": dict(combination_type="magnitude_prune_svd", **pruned),
}.items():
    model.add_weighted_adapter(["a", "b"], [0.7, -0.4], name, **options)
    for path in ("layers.0.self_attn.q_proj", "layers.1.self_attn.v_proj"):
        layer = model.base_model.model.model.get_submodule(path)
        golden[f"{name}/{path}"] = layer.get_delta_weight(name).detach().contiguous()
    model.delete_adapter(name)
save_file(golden, out / "golden.safetensors")
print("bytes", sum(f.stat().st_size for f in out.rglob("*") if f.is_file()))
