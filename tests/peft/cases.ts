/**
 * Every family of models and every method that adapts them, for `acceptance.test.ts`.
 *
 * @module
 */

import { manualSeed, type Tensor, tensor } from "@graft/ml";
import {
  BertForSequenceClassification,
  BertForTokenClassification,
  CausalLM,
  DecoderClassifier,
  GPT2LMHeadModel,
  LlamaForCausalLM,
  LlamaForSequenceClassification,
  MistralForCausalLM,
  Qwen2ForCausalLM,
  Qwen3ForCausalLM,
  RobertaForSequenceClassification,
  RobertaForTokenClassification,
  type SequenceHead,
  type TokenHead,
} from "@graft/ml/nn";
import {
  injectFromBase,
  injectPrompt,
  type LoraConfig,
  type PromptConfig,
  type PromptModel,
} from "@graft/ml/peft";

/** A model of any family. */
export type AnyModel = PromptModel & (CausalLM | DecoderClassifier | SequenceHead | TokenHead);

/** What the layers of a family are called. */
interface Names {
  readonly query: string;
  readonly value: string;
  readonly output: string;
  readonly embedding: string;
  /** A module to train a copy of. */
  readonly saved: string;
}

/** A family of models. */
export interface Family {
  readonly names: Names;
  readonly task: "CAUSAL_LM" | "SEQ_CLS" | "TOKEN_CLS";
  /** A fresh model, always the same; `square` has few shapes of matrices. */
  fresh(square: boolean): AnyModel;
}

/** Tokens [4, 4]; the third row is the first. */
export const ROWS: readonly (readonly number[])[] = [
  [2, 5, 7, 4],
  [3, 2, 9, 6],
  [2, 5, 7, 4],
  [6, 8, 2, 5],
];

/** The tokens as a tensor. */
export const ids = (): Tensor => tensor(ROWS.map((row) => [...row]), { dtype: "i32" });

/** Logits of the tokens. */
export function logitsOf(model: AnyModel): Tensor {
  if (model instanceof CausalLM) return model.logits(model.forward(ids()));
  const head: { forward(ids: Tensor): Tensor } = model;
  return head.forward(ids());
}

/** A batch to learn from. */
function batchOf(model: AnyModel, task: Family["task"]): object {
  if (model instanceof CausalLM) {
    // The next token; after the last comes the first.
    const targets = tensor(ROWS.map((row) => [...row.slice(1), row[0]]), { dtype: "i32" });
    return { inputs: ids(), targets };
  }
  if (model instanceof DecoderClassifier) {
    const labels = Int32Array.of(2, 0, 1, 2), inputs = Int32Array.from(ROWS.flat());
    return { inputs, labels, shape: [4, 4] };
  }
  const labels = task === "SEQ_CLS"
    ? tensor([2, 0, 1, 2], { dtype: "i32" })
    : tensor(ROWS.map((row) => row.map((id) => id % 3)), { dtype: "i32" });
  return { inputs: ids(), labels };
}

/** A loss to learn by. */
export function lossOf(model: AnyModel, task: Family["task"]): Tensor {
  const learner: { loss(batch: never): Tensor } = model;
  return learner.loss(batchOf(model, task) as never);
}

/** Sizes under the names of each configuration. A GPU compiles a kernel for each shape of a matrix. */
function sizes(square: boolean) {
  const [inner, vocab] = square ? [16, 16] : [24, 23];
  const shared = {
    vocab_size: vocab,
    hidden_size: 16,
    intermediate_size: inner,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    max_position_embeddings: 32,
    initializer_range: 0.3,
  };
  return {
    rotary: { ...shared, num_key_value_heads: square ? 2 : 1 },
    gpt2: {
      vocab_size: vocab,
      n_embd: 16,
      n_inner: inner,
      n_layer: 1,
      n_head: 2,
      n_positions: 32,
      initializer_range: 0.3,
    },
    classifier: { ...shared, num_labels: square ? 16 : 3 },
  };
}

const LLAMA: Names = {
  query: "q_proj",
  value: "v_proj",
  output: "o_proj",
  embedding: "embed_tokens",
  saved: "lm_head",
};
const LLAMA_HEAD: Names = { ...LLAMA, saved: "mlp.up_proj" };
const GPT2: Names = {
  query: "c_attn",
  value: "mlp.c_fc",
  output: "mlp.c_proj",
  embedding: "wte",
  saved: "ln_f",
};
const BERT: Names = {
  query: "query",
  value: "value",
  output: "attention.output.dense",
  embedding: "word_embeddings",
  saved: "intermediate.dense",
};

function family(
  names: Names,
  task: Family["task"],
  make: (given: ReturnType<typeof sizes>) => AnyModel,
): Family {
  const fresh = (square: boolean): AnyModel => {
    manualSeed(7);
    return make(sizes(square)).eval() as AnyModel; // no dropout: every pass is the same
  };
  return { names, task, fresh };
}

const decoder = (make: (given: ReturnType<typeof sizes>["rotary"]) => AnyModel): Family =>
  family(LLAMA, "CAUSAL_LM", ({ rotary }) => make(rotary));

const encoder = (
  task: Family["task"],
  make: (given: ReturnType<typeof sizes>["classifier"]) => AnyModel,
): Family => family(BERT, task, ({ classifier }) => make(classifier));

/** By name. SmolLM is a Llama whose output layer is the embedding. */
export const FAMILIES: Readonly<Record<string, Family>> = {
  llama: decoder((given) => new LlamaForCausalLM(given)),
  smollm: decoder((given) => new LlamaForCausalLM({ ...given, tie_word_embeddings: true })),
  mistral: decoder((given) => new MistralForCausalLM({ ...given, sliding_window: 3 })),
  qwen2: decoder((given) => new Qwen2ForCausalLM(given)),
  qwen3: decoder((given) => new Qwen3ForCausalLM({ ...given, head_dim: 8 })),
  gpt2: family(GPT2, "CAUSAL_LM", ({ gpt2 }) => new GPT2LMHeadModel(gpt2)),
  llama_sequence: family(
    LLAMA_HEAD,
    "SEQ_CLS",
    ({ rotary }) => new LlamaForSequenceClassification({ ...rotary, num_labels: 3 }),
  ),
  bert_sequence: encoder("SEQ_CLS", (given) => new BertForSequenceClassification(given)),
  bert_token: encoder("TOKEN_CLS", (given) => new BertForTokenClassification(given)),
  roberta_sequence: encoder("SEQ_CLS", (given) => new RobertaForSequenceClassification(given)),
  roberta_token: encoder("TOKEN_CLS", (given) => new RobertaForTokenClassification(given)),
};

/** A way to adapt. */
export interface Method {
  /** Whether it is a soft prompt, which nothing can be merged of. */
  readonly isPrompt: boolean;
  /** Adapts `model` under `name`; numbers come from the default generator. */
  inject(model: AnyModel, family: Family, name: string): Promise<unknown>;
}

function lora(config: (names: Names) => LoraConfig): Method {
  return {
    isPrompt: false,
    inject: (model, { names, task }, name) =>
      injectFromBase(model, { r: 4, lora_alpha: 8, task_type: task, ...config(names) }, { name }),
  };
}

function prompt(config: PromptConfig, tokens?: readonly number[]): Method {
  return {
    isPrompt: true,
    inject: (model, { task }, name) =>
      injectPrompt(model, { ...config, task_type: task }, { name, tokens }),
  };
}

const n = 2;
const lstm = "LSTM" as const;

/** By name. */
export const METHODS: Readonly<Record<string, Method>> = {
  lora: lora(({ query, value }) => ({ target_modules: [query, value] })),
  rslora: lora(({ query }) => ({
    target_modules: "all-linear",
    use_rslora: true,
    rank_pattern: { [query]: 2 },
    alpha_pattern: { [query]: 3 },
  })),
  dora: lora(({ query, output }) => ({ target_modules: [query, output], use_dora: true })),
  "bias all": lora(({ query }) => ({ target_modules: [query], bias: "all" })),
  "bias lora_only": lora(({ query }) => ({ target_modules: [query], bias: "lora_only" })),
  lora_bias: lora(({ output }) => ({ target_modules: [output], lora_bias: true })),
  modules_to_save: lora(({ query, saved }) => ({
    target_modules: [query],
    modules_to_save: [saved],
  })),
  embedding: lora(({ embedding, value }) => ({ target_modules: [embedding, value] })),
  "embedding dora": lora(({ embedding }) => ({ target_modules: [embedding], use_dora: true })),
  gaussian: lora(({ query }) => ({ target_modules: [query], init_lora_weights: "gaussian" })),
  pissa: lora(({ query }) => ({ target_modules: [query], init_lora_weights: "pissa" })),
  olora: lora(({ output }) => ({ target_modules: [output], init_lora_weights: "olora" })),
  orthogonal: lora(({ query }) => ({ target_modules: [query], init_lora_weights: "orthogonal" })),
  eva: {
    isPrompt: false,
    inject: (model, { names, task }, name) =>
      injectFromBase(
        model,
        {
          r: 2,
          target_modules: [names.query, names.output],
          init_lora_weights: "eva",
          task_type: task,
        },
        { name, batches: [batchOf(model, task)] },
      ),
  },
  "prompt tuning": prompt({ peft_type: "PROMPT_TUNING", num_virtual_tokens: n }),
  "p-tuning": prompt({ peft_type: "P_TUNING", num_virtual_tokens: n, encoder_hidden_size: 6 }),
  "p-tuning lstm": prompt({
    peft_type: "P_TUNING",
    num_virtual_tokens: n,
    encoder_hidden_size: 6,
    encoder_reparameterization_type: lstm,
  }),
  prefix: prompt({ peft_type: "PREFIX_TUNING", num_virtual_tokens: n }, [8, 3]),
  "prefix projection": prompt({
    peft_type: "PREFIX_TUNING",
    num_virtual_tokens: n,
    prefix_projection: true,
    encoder_hidden_size: 6,
  }),
};
