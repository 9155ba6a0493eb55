"""Writes rlhf/: losses, metrics and gradients of SFT, reward models, DPO and GRPO, by TRL's trainers.

    pip install torch transformers peft trl datasets tokenizers && python rlhf.py

Each trainer is made as a user would, and its own compute_loss is called on rows that its own collator
has padded on the right; where rotary positions make it no matter, again with all padding on the left,
and the script fails where a loss or gradient differs. Bases are tiny_llama (by peft_lora.py) and
families/gpt2 (by families.py), adapters peft_lora (by peft_lora.py) and peft_more/conv1d (by
peft_more.py). Rows of tokens are int32, filled up with -1.

sft.safetensors           tiny_llama, all of it trained, on completions alone
    rows [4, T], prompts [4]    tokens, and how many of them are the prompt
    loss, grad.<key>            the mean over all rows' completion tokens
    half.0, half.1              loss of rows 0-1 and of 2-3, each divided by the tokens of all four
reward_llama/, reward_gpt2/   one label, as save_pretrained writes it; golden.safetensors:
    prompts [4, P], chosen [4, C], rejected [4, C], margins [4]
    scores [8]                  of the chosen ones, then of the rejected ones
    loss, grad.<key>, accuracy, margin, mean_reward, min_reward, max_reward
    ranked.loss, ranked.grad.<key>   all eight as K = 4 ranked answers to two prompts: chosen 0, chosen 1,
                                rejected 0, rejected 1, and so on, the first best; TRL has no such loss,
                                so this is PyTorch, pair by pair
dpo_llama.safetensors, dpo_gpt2.safetensors   with the adapter, the reference with it switched off
    prompts, chosen, rejected   as above
    <kind>.loss, <kind>.grad.<key>   kind sigmoid and ipo, β 0.1
    rewards/chosen, rewards/rejected, rewards/accuracies, rewards/margins, logps/chosen, logps/rejected
grpo.safetensors          tiny_llama with peft_lora, ε 0.2, temperature 0.7, groups of 4
    prompts [8, P], completions [8, C], scores [8], old_logprobs [8, C], ref_logprobs [8, C]
    advantages [8]; the second group's scores are all the same
    <case>.loss, <case>.grad.<key>, <case>.clip, kl   case plain (β 0), kl (β 0.04), and fresh (β 0, the
                                policy is the one that sampled)
"""

import os
import shutil
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

here = Path(__file__).parent
out = here / "rlhf"
shutil.rmtree(out, ignore_errors=True)
out.mkdir()
torch.set_num_threads(1)
torch.manual_seed(61)

END, PAD = 2, 0
SIZES = {"llama": 97, "gpt2": 61}
BASES = {"llama": here / "tiny_llama", "gpt2": here / "families" / "gpt2"}
ADAPTERS = {"llama": here / "peft_lora", "gpt2": here / "peft_more" / "conv1d"}
run = tempfile.mkdtemp()


def tokenizer(size):
    names = ["<pad>", "<s>", "</s>", "<unk>"] + [f"t{i}" for i in range(4, size)]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def common(**more):
    return dict(
        output_dir=run, use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False, **more
    )


def text(ids):
    return "".join(f"t{i} " for i in ids)


def sample(size, length, ends=True):
    ids = torch.randint(4, size, (length,)).tolist()
    return ids + [END] if ends else ids


def ragged(rows):
    width = max(map(len, rows))
    return torch.tensor([r + [-1] * (width - len(r)) for r in rows], dtype=torch.int32)


def base(name):
    return AutoModelForCausalLM.from_pretrained(BASES[name], attn_implementation="eager").float()


def adapted(name):
    model = PeftModel.from_pretrained(base(name), ADAPTERS[name], is_trainable=True)
    return model.eval()


def off(trainer):
    """The trainer's model; its reference is the base. TRL's is a copy of an adapter it is given."""
    model = trainer.model.eval()
    if "ref" in model.peft_config:
        model.delete_adapter("ref")
    return model


def gradients(model, loss, prefix="grad."):
    model.zero_grad()
    loss.backward()
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = name.replace("base_model.model.", "").replace(".default", "")
            found[prefix + key] = parameter.grad.clone()
    return found


def left(inputs, masks):
    """The same rows with all padding on the left."""
    length = inputs["attention_mask"].sum(1).tolist()
    turned = {}
    for key, value in inputs.items():
        if value.dim() != 2:
            turned[key] = value
            continue
        fill = masks.get(key, 0)
        rows = [torch.cat((torch.full((len(r) - n,), fill), r[:n])) for r, n in zip(value, length)]
        turned[key] = torch.stack(rows)
    return turned


def same(what, a, b):
    for key in a:
        difference = (a[key] - b[key]).abs().max().item()
        assert difference < 2e-6 * max(1, a[key].abs().max().item()), (what, key, difference)


def save(path, tensors):
    tensors = {k: torch.as_tensor(v).detach().contiguous() for k, v in tensors.items()}
    tensors = {k: v.float() if v.is_floating_point() else v.int() for k, v in tensors.items()}
    save_file(tensors, path)
    print(path.relative_to(here), {k: v.item() for k, v in tensors.items() if v.dim() == 0})


def sft():
    model = base("llama")
    lengths = [(3, 6), (1, 2), (5, 1), (2, 9)]
    rows = [(sample(97, p, False), sample(97, c)) for p, c in lengths]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**common(completion_only_loss=True, max_length=None, loss_type="nll")),
        train_dataset=Dataset.from_list([{"prompt": text(p), "completion": text(c[:-1])} for p, c in rows]),
        processing_class=tokenizer(97),
    )
    trainer.model.eval()
    examples = [trainer.train_dataset[i] for i in range(4)]
    # TRL has added the end token itself.
    assert [e["input_ids"] for e in examples] == [p + c for p, c in rows]
    total = sum(sum(label != -100 for label in e["labels"]) for e in examples)
    inputs = trainer.data_collator(examples)
    loss = trainer.compute_loss(model, dict(inputs))
    golden = gradients(model, loss) | {"loss": loss.detach()}
    turned = left(dict(inputs), {"labels": -100})
    loss = trainer.compute_loss(model, turned)
    same("sft", golden, gradients(model, loss) | {"loss": loss.detach()})
    for i in (0, 1):
        part = trainer.data_collator(examples[2 * i : 2 * i + 2])
        golden[f"half.{i}"] = trainer.compute_loss(model, dict(part), num_items_in_batch=total)
    golden |= {"rows": ragged([p + c for p, c in rows]), "prompts": torch.tensor([len(p) for p, _ in rows])}
    save(out / "sft.safetensors", golden)


def answers(size):
    shape = [(4, 5, 3), (2, 1, 7), (6, 2, 2), (1, 8, 4)]
    return [(sample(size, p, False), sample(size, c), sample(size, r)) for p, c, r in shape]


def reward(name):
    size = SIZES[name]
    model = AutoModelForSequenceClassification.from_pretrained(
        BASES[name], num_labels=1, pad_token_id=PAD, attn_implementation="eager"
    ).float()
    with torch.no_grad():
        model.score.weight.copy_(torch.randn_like(model.score.weight))
    rows = answers(size)
    margins = [0.0, 0.5, 0.25, 1.0]
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**common(max_length=None)),
        train_dataset=Dataset.from_list(
            [{"chosen_ids": p + c, "rejected_ids": p + r, "margin": m} for (p, c, r), m in zip(rows, margins)]
        ),
        processing_class=tokenizer(size),
    )
    model = trainer.model.eval()
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])

    def compute(inputs):
        trainer._metrics["eval"].clear()
        loss = trainer.compute_loss(model, dict(inputs))
        keys = ("accuracy", "margin", "mean_reward", "min_reward", "max_reward")
        metrics = {k: torch.tensor(trainer._metrics["eval"][k][0]) for k in keys}
        return gradients(model, loss) | {"loss": loss.detach()} | metrics

    golden = compute(inputs)
    if name == "llama":
        same("reward", golden, compute(left(dict(inputs), {})))
    plain = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    scores = model(**plain).logits.squeeze(-1)
    golden["scores"] = scores.detach()

    # Two prompts with four answers each: rows of chosen and rejected by turns.
    ranked = 0.0
    for first in (0, 2):
        group = [scores[first], scores[first + 1], scores[4 + first], scores[4 + first + 1]]
        terms = [
            -torch.nn.functional.logsigmoid(group[i] - group[j]) for i in range(4) for j in range(i + 1, 4)
        ]
        ranked = ranked + sum(terms) / len(terms) / 2
    golden |= gradients(model, ranked, "ranked.grad.") | {"ranked.loss": ranked.detach()}
    golden["margins"] = torch.tensor(margins)
    for key, i in (("prompts", 0), ("chosen", 1), ("rejected", 2)):
        golden[key] = ragged([row[i] for row in rows])
    folder = out / f"reward_{name}"
    model.save_pretrained(folder)
    save(folder / "golden.safetensors", golden)


def dpo(name):
    size = SIZES[name]
    rows = answers(size)
    golden = {}
    for kind in ("sigmoid", "ipo"):
        trainer = DPOTrainer(
            model=adapted(name),
            args=DPOConfig(**common(beta=0.1, loss_type=[kind], max_length=None)),
            train_dataset=Dataset.from_list(
                [{"prompt": text(p), "chosen": text(c[:-1]), "rejected": text(r[:-1])} for p, c, r in rows]
            ),
            processing_class=tokenizer(size),
        )
        model = off(trainer)
        examples = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in rows]
        inputs = trainer.data_collator(examples)

        def compute(inputs):
            trainer._metrics["eval"].clear()
            loss = trainer.compute_loss(model, dict(inputs))
            return gradients(model, loss, f"{kind}.grad.") | {f"{kind}.loss": loss.detach()}

        golden |= compute(inputs)
        for key, values in trainer._metrics["eval"].items():
            if key.startswith(("rewards/", "logps/")):
                golden[key] = torch.tensor(values[0])
        if name == "llama":
            same("dpo", {k: golden[k] for k in golden if k.startswith(kind)}, compute(left(dict(inputs), {})))
    for key, i in (("prompts", 0), ("chosen", 1), ("rejected", 2)):
        golden[key] = ragged([row[i] for row in rows])
    save(out / f"dpo_{name}.safetensors", golden)


def grpo():
    prompts = [sample(97, 3, False), sample(97, 6, False)]
    lengths = [5, 1, 8, 3, 2, 9, 4, 6]
    # An answer that was cut off has no end.
    completions = [sample(97, n, i != 2) for i, n in enumerate(lengths)]
    scores = [1.5, -0.5, 3.0, 0.25, 2.0, 2.0, 2.0, 2.0]
    given = [prompts[i // 4] for i in range(8)]
    fixed = {"prompt_ids": given, "completion_ids": completions, "logprobs": [[0.0] * len(c) for c in completions]}
    golden, moved = {}, None
    for case, beta in (("plain", 0.0), ("kl", 0.04), ("fresh", 0.0)):
        trainer = GRPOTrainer(
            model=adapted("llama"),
            reward_funcs=lambda completions, **_: scores,
            args=GRPOConfig(
                **common(
                    beta=beta, epsilon=0.2, temperature=0.7, num_generations=4, num_generations_eval=4,
                    per_device_train_batch_size=8, loss_type="bnpo", scale_rewards="group",
                    use_bias_correction_kl=False,
                )
            ),
            train_dataset=Dataset.from_list([{"prompt": text(p)} for p in prompts]),
            processing_class=tokenizer(97),
            rollout_func=lambda prompts, trainer: fixed,
        )
        model = off(trainer)
        inputs = trainer._generate_and_score_completions([{"prompt": text(p)} for p in given])
        mask = inputs["completion_mask"]
        golden["advantages"] = inputs["advantages"]
        if moved is None:
            ids = torch.cat((inputs["prompt_ids"], inputs["completion_ids"]), 1)
            seen = torch.cat((inputs["prompt_mask"], mask), 1)
            with torch.no_grad():
                now, _, _ = trainer._get_per_token_logps_and_entropies(model, ids, seen, mask.shape[1])
                with model.disable_adapter():
                    ref, _, _ = trainer._get_per_token_logps_and_entropies(model, ids, seen, mask.shape[1])
            moved = (now + 0.3 * torch.randn_like(now)) * mask
            golden |= {"old_logprobs": moved, "ref_logprobs": ref * mask}
        inputs["old_per_token_logps"] = None if case == "fresh" else moved
        trainer._metrics["eval"].clear()
        loss = trainer._compute_loss(model, inputs)
        found = gradients(model, loss, f"{case}.grad.") | {f"{case}.loss": loss.detach()}
        metrics = trainer._metrics["eval"]
        found[f"{case}.clip"] = torch.tensor(metrics["clip_ratio/region_mean"][0])
        if beta:
            found["kl"] = torch.tensor(metrics["kl"][0])
            same("ref", {"ref": golden["ref_logprobs"]}, {"ref": inputs["ref_per_token_logps"] * mask})
        golden |= found
    golden |= {
        "prompts": ragged(given),
        "completions": ragged(completions),
        "scores": torch.tensor(scores),
    }
    save(out / "grpo.safetensors", golden)


sft()
for name in ("llama", "gpt2"):
    reward(name)
    dpo(name)
grpo()
shutil.rmtree(run)
