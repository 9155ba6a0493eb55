"""Writes rlhf_ppo.safetensors: PPO's rewards, advantages, losses and gradients, by TRL and PyTorch.

    pip install torch transformers peft "trl @ git+https://github.com/huggingface/trl@f2cd577" \
        && python rlhf_ppo.py

TRL (1.10.0.dev0; later versions have no PPO) computes everything inside PPOTrainer.train(), so that
method cannot be called in pieces. Its helper functions are called where there is one: forward,
truncate_response, first_true_indices, selective_log_softmax, masked_whiten, masked_mean and
PolicyAndValueWrapper. What stands between them is written here from the documented formulas, with one
deliberate difference: the score is added at the answer's last token, where TRL adds it one later.

The policy is tiny_llama with the adapter of peft_lora, the reference the same with the adapter off,
both at temperature 0.7. Queries [3, 6] are padded on the left and answers [3, 8] on the right with 0,
which is what TRL needs; the end token is 2. Every result is computed again with all padding on the
right, or all on the left, and has to be the same. Numbers of padding are 0.

    queries, responses            int32
    logprobs, ref_logprobs, entropy, values   [3, 8]; values by score_shared on the policy's states
    scores [3]                    before the penalty of 1.5 for a missing end
    rewards, advantages, returns  [3, 8], β 0.05, γ 0.98, λ 0.9; advantages_raw before whitening
    rewards_whitened              variance 1, mean kept
    old_logprobs, old_values      what the losses are clipped against
    policy_loss, value_loss, approxkl, clipfrac, value_clipfrac, entropy_mean, ratio
    grad.<key>, grad.score        of policy_loss + 0.1 value_loss, a shared value model
    ptx.<key>                     with 27.8 times the next-token loss on tiny_llama's golden batch added
    own.values, own.value_loss, own.grad.score, own.grad.norm   with a value model of its own: tiny_llama
                                  as a sequence classifier, of which score and the last norm are trained
"""

from pathlib import Path

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaForCausalLM, LlamaForSequenceClassification
from trl.experimental.ppo.ppo_trainer import (
    PolicyAndValueWrapper,
    first_true_indices,
    forward,
    masked_mean,
    masked_whiten,
    selective_log_softmax,
    truncate_response,
)

here = Path(__file__).parent
torch.set_num_threads(1)
torch.manual_seed(41)

PAD, END = 0, 2
TEMPERATURE, BETA, GAMMA, LAMBDA, CLIP, VALUE_CLIP, VALUE_COEFFICIENT = 0.7, 0.05, 0.98, 0.9, 0.2, 0.2, 0.1
PENALTY, GAMMA_PTX = 1.5, 27.8

base = LlamaForCausalLM.from_pretrained(here / "tiny_llama", attn_implementation="eager").float()
policy = PeftModel.from_pretrained(base, here / "peft_lora", is_trainable=True).eval()

# Prompts of 6, 4 and 2 tokens; answers of 8 tokens without an end, of 5 with it, and of the end alone.
queries = torch.randint(3, 97, (3, 6))
queries[1, :2] = PAD
queries[2, :4] = PAD
sampled = torch.randint(3, 97, (3, 8))
sampled[1, 4] = END
sampled[2, 0] = END
responses = truncate_response(END, PAD, sampled)
query_responses = torch.cat((queries, responses), 1)
context = queries.shape[1]
ended = (responses == END).any(1)
lengths = first_true_indices(responses == PAD)
mask = torch.arange(responses.shape[1]) < lengths[:, None]
assert lengths.tolist() == [8, 5, 1] and ended.tolist() == [False, True, True]

score_shared = torch.nn.Linear(32, 1, bias=False)
score_own = torch.nn.Linear(32, 1, bias=False)
classifier = LlamaForSequenceClassification.from_pretrained(
    here / "tiny_llama", num_labels=1, attn_implementation="eager"
).float().eval()
classifier.score = score_own
for name, parameter in classifier.named_parameters():
    parameter.requires_grad = name in ("score.weight", "model.norm.weight")


def answers_of(states: torch.Tensor) -> torch.Tensor:
    return states[:, context - 1 : -1]


def passed(model):
    """log π, entropy and last hidden states in the states that answers' tokens are chosen from."""
    output = forward(model, query_responses, PAD)
    logits = answers_of(output.logits) / TEMPERATURE
    logprobs = selective_log_softmax(logits, responses)
    entropy = torch.logsumexp(logits, -1) - (logits.softmax(-1) * logits).sum(-1)
    return logprobs, entropy, answers_of(output.hidden_states[-1])


def padded_otherwise(model, side: str):
    """log π of the answers' tokens, all of a row's padding on one side."""
    rows = []
    for row in range(3):
        tokens = query_responses[row]
        kept, padding = tokens[tokens != PAD], tokens[tokens == PAD]
        rows.append(torch.cat((padding, kept) if side == "left" else (kept, padding)))
    ids = torch.stack(rows)
    logits = forward(model, ids, PAD).logits / TEMPERATURE
    result = torch.zeros(3, responses.shape[1])
    for row in range(3):
        places = (ids[row] != PAD).nonzero().squeeze(1)[-lengths[row] :]
        chosen = selective_log_softmax(logits[row : row + 1, places - 1], ids[row : row + 1, places])
        result[row, : lengths[row]] = chosen[0]
    return result


def zeroed(x: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, x, 0).detach()


with torch.no_grad():
    logprobs, entropy, states = passed(policy)
    with policy.disable_adapter():
        ref_logprobs, _, _ = passed(policy)
    values = score_shared(states).squeeze(-1)
    for side in ("left", "right"):
        again = padded_otherwise(policy, side)
        assert (again - zeroed(logprobs)).abs().max() < 1e-5, side
logprobs, ref_logprobs, values = zeroed(logprobs), zeroed(ref_logprobs), zeroed(values)

scores = torch.tensor([1.25, -0.5, 2.0])
rewards = -BETA * (logprobs - ref_logprobs)
rewards[torch.arange(3), lengths - 1] += torch.where(ended, scores, scores - PENALTY)


def estimated(rewards: torch.Tensor):
    last, reversed_ = 0, []
    for t in reversed(range(rewards.shape[1])):
        following = values[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        delta = rewards[:, t] + GAMMA * following - values[:, t]
        last = delta + GAMMA * LAMBDA * last
        reversed_.append(last)
    advantages = torch.stack(reversed_[::-1], 1)
    return advantages, advantages + values


raw, returns = estimated(rewards)
advantages = masked_whiten(raw, mask)

old_logprobs = zeroed(logprobs + 0.3 * torch.randn(3, 8))
old_values = zeroed(values + 0.3 * torch.randn(3, 8))
golden = {
    "queries": queries.int(),
    "responses": responses.int(),
    "logprobs": logprobs,
    "ref_logprobs": ref_logprobs,
    "entropy": zeroed(entropy),
    "values": values,
    "score_shared": score_shared.weight.detach().clone(),
    "score_own": score_own.weight.detach().clone(),
    "scores": scores,
    "rewards": rewards,
    "rewards_whitened": zeroed(masked_whiten(rewards, mask, shift_mean=False)),
    "advantages_raw": zeroed(raw),
    "advantages": zeroed(advantages),
    "returns": zeroed(returns),
    "old_logprobs": old_logprobs,
    "old_values": old_values,
}


def value_loss_of(values: torch.Tensor):
    clipped = torch.clamp(values, old_values - VALUE_CLIP, old_values + VALUE_CLIP)
    plain, near = (values - golden["returns"]) ** 2, (clipped - golden["returns"]) ** 2
    return 0.5 * masked_mean(torch.max(plain, near), mask), masked_mean((near > plain).float(), mask)


def gradients(prefix: str) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            found[f"{prefix}.{name.replace('.default', '')}"] = parameter.grad.clone()
    assert len(found) == 16
    policy.zero_grad()
    return found


def policy_loss_of(logprobs: torch.Tensor):
    difference = torch.where(mask, logprobs - old_logprobs, 0)
    ratio = difference.exp()
    plain = -golden["advantages"] * ratio
    clipped = -golden["advantages"] * ratio.clamp(1 - CLIP, 1 + CLIP)
    return masked_mean(torch.max(plain, clipped), mask), {
        "approxkl": 0.5 * masked_mean(difference**2, mask).detach(),
        "clipfrac": masked_mean((clipped > plain).float(), mask).detach(),
        "ratio": masked_mean(ratio, mask).detach(),
    }


def ppo():
    new_logprobs, entropy, states = passed(policy)
    policy_loss, stats = policy_loss_of(new_logprobs)
    value_loss, value_clipfrac = value_loss_of(score_shared(states).squeeze(-1))
    golden.update(stats)
    golden.update(
        policy_loss=policy_loss.detach(),
        value_loss=value_loss.detach(),
        value_clipfrac=value_clipfrac,
        entropy_mean=masked_mean(entropy, mask).detach(),
    )
    return policy_loss + VALUE_COEFFICIENT * value_loss


ppo().backward()
golden["grad.score"] = score_shared.weight.grad.clone()
golden |= gradients("grad")
assert 0 < golden["clipfrac"] < 1 and 0 < golden["value_clipfrac"] < 1

ppo().backward()
with safe_open(here / "tiny_llama" / "golden.safetensors", "pt") as file:
    batch = {key: file.get_tensor(key).long() for key in ("input_ids", "labels")}
ptx = policy(**batch).loss
(GAMMA_PTX * ptx).backward()
golden["ptx_loss"] = ptx.detach()
golden |= gradients("ptx")

_, vpred = forward(PolicyAndValueWrapper(policy, classifier), query_responses, PAD)
own = answers_of(vpred).squeeze(-1)
golden["own.values"] = zeroed(own)
loss, _ = value_loss_of(own)
loss.backward()
golden["own.value_loss"] = loss.detach()
golden["own.grad.score"] = score_own.weight.grad.clone()
golden["own.grad.norm"] = classifier.model.norm.weight.grad.clone()

save_file({key: value.contiguous() for key, value in golden.items()}, here / "rlhf_ppo.safetensors")
for key in ("policy_loss", "value_loss", "clipfrac", "value_clipfrac", "ratio", "ptx_loss"):
    print(key, golden[key].item())
