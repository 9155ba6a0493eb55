"""Writes families/: a random tiny model of each family, and what transformers computes with it.

    pip install torch transformers safetensors && python families.py

families/<name>/ is what `save_pretrained` writes, and golden.safetensors beside it:

    input_ids          [2, T] int32
    attention_mask     [2, T] int32: 0 where padding is (on the right)
    token_type_ids     [2, T] int32, BERT only
    labels             int32: [2, T] with -100 where a target is ignored (not shifted: a decoder's
                       logits[:, t] are held against labels[:, t + 1]), [2] for sequence
                       classification, float32 [2] for regression
    logits             as the model gives them; a decoder's are 0 where padding is
    loss               a scalar
    grad.<key>         the loss's gradient of every parameter under its key in model.safetensors
    prompt.<i>         decoders: a prompt, [T] int32
    greedy.<i>         and the tokens that greedy decoding with a cache puts after it, [12] int32
    loss.<problem>, labels.<problem>, grad.<problem>.<key>
                       bert_sequence: its loss as another problem_type, with the classifier's gradient
    logits.scaled      gpt2: with scale_attn_by_inverse_layer_idx and without scale_attn_weights
    hidden, pooled     bert_base: the last hidden states and the pooled first one; no loss
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
)

VOCABULARY = 61
out = Path(__file__).parent / "families"
shutil.rmtree(out, ignore_errors=True)
torch.manual_seed(31)
torch.set_num_threads(1)


def randomize(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Large enough that every part of the model shows in the logits; norms stand off from 1.
            noise = torch.randn_like(parameter)
            is_norm = any(part in name for part in ("norm", "Norm", "ln_"))
            if parameter.dim() > 1:
                # Conv1D is [in, out], a Linear [out, in]; square or not, the smaller will do.
                parameter.copy_(noise * min(parameter.shape) ** -0.5)
            elif is_norm and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(0.3 * noise)
    return model.float().eval()


def gradients(model, prefix="grad."):
    return {f"{prefix}{n}": p.grad.clone() for n, p in model.named_parameters()}


def save(name, model, inputs, labels, extra=None, blind=False):
    folder = out / name
    model.save_pretrained(folder)
    model.zero_grad()
    result = model(**inputs, labels=labels)
    result.loss.backward()
    golden = {k: v.int() for k, v in inputs.items()}
    golden["labels"] = labels if labels.is_floating_point() else labels.int()
    logits = result.logits.detach()
    # A padded query may have nothing in its window; what it then attends to is nobody's promise.
    if blind:
        logits = logits * inputs["attention_mask"].unsqueeze(-1)
    golden |= {"logits": logits, "loss": result.loss.detach()}
    golden |= gradients(model) | (extra or {})
    save_file({k: v.contiguous() for k, v in golden.items()}, folder / "golden.safetensors")
    print(name, "loss", result.loss.item(), sum(f.stat().st_size for f in folder.iterdir()))


def padded(pad, length=11, short=7):
    """Two rows of tokens, the second with padding on its right, and their mask."""
    ids = torch.randint(4, VOCABULARY, (2, length))
    mask = torch.ones_like(ids)
    ids[1, short:] = pad
    mask[1, short:] = 0
    return ids, mask


def continued(model, length):
    """A prompt after which each greedy choice is clear in any arithmetic, and those choices."""
    while True:
        ids = torch.randint(4, VOCABULARY, (1, length))
        text = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            use_cache=True,
            eos_token_id=None,
            pad_token_id=0,
        )
        top = model(text).logits[0, length - 1 : -1].topk(2).values
        if (top[:, 0] - top[:, 1]).min() > 1e-3:
            return ids[0].int(), text[0, length:].int()


def greedy(model):
    found = {}
    for i, length in enumerate((9, 4)):
        found[f"prompt.{i}"], found[f"greedy.{i}"] = continued(model, length)
    return found


def decoder(name, model, more=None):
    model = randomize(model)
    ids, mask = padded(0)
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, :3] = -100
    inputs = {"input_ids": ids, "attention_mask": mask}
    found = greedy(model) | (more(model, inputs) if more else {})
    save(name, model, inputs, labels, found, True)


shape = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=36,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    attn_implementation="eager",
)


def rope(theta, **others):
    return {"rope_theta": theta, "rope_type": "default", **others}


decoder(
    "smollm",
    LlamaForCausalLM(
        LlamaConfig(
            **shape | {"num_key_value_heads": 4},
            rope_parameters=rope(
                100000.0,
                rope_type="llama3",
                factor=4.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=16,
            ),
            tie_word_embeddings=True,
        )
    ),
)
decoder(
    "mistral",
    MistralForCausalLM(
        MistralConfig(**shape, rope_parameters=rope(1000.0), sliding_window=4)
    ),
)
# The first layer sees everything, the second a window. Shapes of attention are few among the
# decoders: a GPU compiles a kernel for each.
decoder(
    "qwen2",
    Qwen2ForCausalLM(
        Qwen2Config(
            **shape,
            rope_parameters=rope(1000000.0),
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=1,
        )
    ),
)
decoder(
    "qwen3",
    Qwen3ForCausalLM(
        Qwen3Config(
            **shape | {"hidden_size": 24},
            head_dim=8,
            rope_parameters=rope(10000.0, rope_type="linear", factor=2.0),
            tie_word_embeddings=True,
        )
    ),
)
def gpt2(**settings):
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_inner=40,
            n_layer=2,
            n_head=4,
            n_positions=40,
            bos_token_id=1,
            eos_token_id=2,
            attn_implementation="eager",
            **settings,
        )
    )


def scaled(model, inputs):
    """The same weights, each layer's scores divided by its number."""
    other = gpt2(scale_attn_by_inverse_layer_idx=True, scale_attn_weights=False).eval()
    other.load_state_dict(model.state_dict())
    logits = other(**inputs).logits.detach()
    return {"logits.scaled": logits * inputs["attention_mask"].unsqueeze(-1)}


decoder("gpt2", gpt2(), scaled)

encoder = dict(
    vocab_size=VOCABULARY,
    hidden_size=24,
    intermediate_size=28,
    num_hidden_layers=2,
    num_attention_heads=3,
    attn_implementation="eager",
)


def encoded(config, pad):
    ids, mask = padded(pad)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if config is BertConfig:
        inputs["token_type_ids"] = (torch.arange(ids.shape[1]) > 4).long().expand(2, -1).clone()
    return inputs


def token_labels(inputs, count):
    return torch.randint(0, count, inputs["input_ids"].shape).masked_fill(
        inputs["attention_mask"] == 0, -100
    )


for family, config, pad, models, positions in (
    (
        "bert",
        BertConfig,
        0,
        (BertForSequenceClassification, BertForTokenClassification, BertForMaskedLM),
        20,
    ),
    (
        "roberta",
        RobertaConfig,
        1,
        (RobertaForSequenceClassification, RobertaForTokenClassification, RobertaForMaskedLM),
        22,
    ),
):
    sequence, token, masked = models
    common = dict(**encoder, max_position_embeddings=positions, pad_token_id=pad)
    if config is RobertaConfig:
        common["type_vocab_size"] = 1

    model = randomize(sequence(config(**common, num_labels=3)))
    inputs = encoded(config, pad)
    extra = {}
    if config is BertConfig:
        for problem, labels in (
            ("regression", torch.randn(2, 3)),
            ("multi_label_classification", torch.tensor([[1.0, 0, 1], [0, 0, 1]])),
        ):
            model.config.problem_type = problem
            model.zero_grad()
            loss = model(**inputs, labels=labels).loss
            loss.backward()
            extra |= {f"loss.{problem}": loss.detach(), f"labels.{problem}": labels}
            extra[f"grad.{problem}.classifier.weight"] = model.classifier.weight.grad.clone()
        model.config.problem_type = None
    save(f"{family}_sequence", model, inputs, torch.tensor([2, 0]), extra)

    if config is RobertaConfig:
        model = randomize(sequence(config(**common, num_labels=1, problem_type="regression")))
        save(f"{family}_regression", model, encoded(config, pad), torch.tensor([0.5, -1.5]))

    model = randomize(token(config(**common, num_labels=5)))
    inputs = encoded(config, pad)
    save(f"{family}_token", model, inputs, token_labels(inputs, 5))

    model = randomize(masked(config(**common)))
    inputs = encoded(config, pad)
    save(f"{family}_masked", model, inputs, token_labels(inputs, VOCABULARY))

model = randomize(BertForSequenceClassification(BertConfig(**encoder, max_position_embeddings=20))).bert
inputs = encoded(BertConfig, 0)
model.save_pretrained(out / "bert_base")
result = model(**inputs)
golden = {k: v.int() for k, v in inputs.items()}
golden |= {"hidden": result.last_hidden_state.detach(), "pooled": result.pooler_output.detach()}
save_file({k: v.contiguous() for k, v in golden.items()}, out / "bert_base/golden.safetensors")

for path in out.glob("*/generation_config.json"):
    path.unlink()
print("bytes", sum(f.stat().st_size for f in out.rglob("*") if f.is_file()))
