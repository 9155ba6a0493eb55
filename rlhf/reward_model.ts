/**
 * The reward model: a number that says how good an answer is.
 *
 * @module
 */

import { read, type Tensor, tensor } from "../core/mod.ts";
import { writeAtomically } from "../core/files.ts";
import {
  BertForSequenceClassification,
  DecoderClassifier,
  GPT2ForSequenceClassification,
  LlamaForSequenceClassification,
  MistralForSequenceClassification,
  Module,
  type PretrainedClass,
  PretrainedModel,
  type PretrainedOptions,
  Qwen2ForSequenceClassification,
  Qwen3ForSequenceClassification,
  RobertaForSequenceClassification,
  type SequenceHead,
} from "../nn/mod.ts";
import { isThere, readJson } from "../nn/models/pretrained.ts";
import { adapterStatus, loadAdapter, saveAdapter } from "../peft/mod.ts";
import type { Answer } from "./answers.ts";
import { checkTokens } from "./checks.ts";
import { evaluating } from "./modes.ts";

/** A classifier of sequences of any family. */
export type RewardBackbone = DecoderClassifier | SequenceHead;

const CLASSES: readonly PretrainedClass[] = [
  LlamaForSequenceClassification,
  MistralForSequenceClassification,
  Qwen2ForSequenceClassification,
  Qwen3ForSequenceClassification,
  GPT2ForSequenceClassification,
  BertForSequenceClassification,
  RobertaForSequenceClassification,
];

/** Where the bias is kept, beside the model's own files. */
const FILE = "reward_model.json";

/** Options of {@linkcode RewardModel.fromPretrained}. */
export interface RewardModelOptions extends Pick<PretrainedOptions, "quantize"> {
  /** Folder of an adapter of the model, as {@linkcode RewardModel.savePretrained} wrote it. */
  readonly adapter?: string;
}

/** Options of {@linkcode RewardModel.reward} and {@linkcode RewardModel.normalize}. */
export interface ScoringOptions {
  /** Answers in a pass. Default 16. */
  readonly batch?: number;
}

/**
 * A classifier with one label, and the bias that makes demonstrations score 0 (Ouyang et al. 2022,
 * section 3.5). Its score is that of the row's last token, which should be the end token where there is
 * one; an answer that was cut off is scored where it stops.
 *
 * @example
 * ```ts
 * import { init } from "@graft/ml";
 * import { LlamaForSequenceClassification } from "@graft/ml/nn";
 * import { AdamW } from "@graft/ml/optim";
 * import { inject } from "@graft/ml/peft";
 * import { rankingLoss, RewardModel } from "@graft/ml/rlhf";
 *
 * await init({ device: "cpu" });
 * const model = new LlamaForSequenceClassification({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2, num_labels: 1,
 * });
 * // The score head is trained beside the adapter.
 * const reward = new RewardModel(inject(model, { r: 4, task_type: "SEQ_CLS" }));
 * const optimizer = new AdamW(reward.trainable(), { lr: 1e-3 });
 * const { loss } = rankingLoss(reward, [
 *   { prompt: [1, 5], answers: [[6, 2], [7, 8, 2], [9, 2]] }, // best first
 * ]);
 * loss.backward();
 * await optimizer.step();
 * await reward.normalize([[1, 5, 6, 2]]);
 * console.log(await reward.scores([[1, 5, 6, 2]]).data()); // [0]
 * ```
 */
export class RewardModel extends Module {
  /** The classifier: its own parameters are all there are. */
  readonly model: RewardBackbone;
  /** What is added to each score. */
  bias = 0;

  /** Throws a `TypeError` where the classifier has more than one label. */
  constructor(model: RewardBackbone) {
    super();
    const { num_labels: count } = model.config;
    if (count !== 1) {
      throw new TypeError(
        `RewardModel: needs a model with num_labels 1, ${model.constructor.name} has ${count}`,
      );
    }
    this.model = model;
    this.training = model.training;
  }

  /**
   * The reward model in a folder of Hugging Face's layout: what {@linkcode savePretrained} wrote, or any model of
   * the family, whose head then starts fresh. It comes in evaluation mode.
   *
   * Throws an `Error` that names the file where one is missing or no such thing, and a `TypeError`
   * where there is no classifier of its model_type.
   */
  static async fromPretrained(
    folder: string,
    options: RewardModelOptions = {},
  ): Promise<RewardModel> {
    const path = `${folder}/config.json`;
    const config = await readJson("load reward model", path);
    const type = config.model_type;
    const found = CLASSES.find(({ pretrained }) => pretrained.modelType === type);
    if (!found) {
      throw new TypeError(
        `load reward model: ${path}: model_type ${
          JSON.stringify(type ?? null)
        } is not supported; ` +
          `these are: ${CLASSES.map(({ pretrained }) => pretrained.modelType).join(", ")}`,
      );
    }
    const labels = config.num_labels ?? Object.keys(config.id2label ?? { 0: 0, 1: 1 }).length;
    const named = Array.isArray(config.architectures) ? config.architectures : [];
    const isReward = named.includes(found.pretrained.architecture) && labels === 1;
    const model = await PretrainedModel.fromPretrained.call(found, folder, {
      config: { num_labels: 1 },
      newHead: !isReward,
      quantize: options.quantize,
    }) as RewardBackbone;
    const { adapter } = options;
    if (adapter !== undefined) await loadAdapter(model, adapter);
    const reward = new RewardModel(model);
    reward.bias = await readBias(adapter ?? folder);
    return reward;
  }

  /**
   * Writes the model as Hugging Face's `...ForSequenceClassification`; where it has adapters, the one
   * called `adapter` as PEFT does, and nothing of the base. The bias, of which Hugging Face knows
   * nothing, stands beside it in `reward_model.json`.
   *
   * Throws an `Error` that names what cannot be written, or where there is no such adapter.
   */
  async savePretrained(folder: string, adapter = "default"): Promise<void> {
    if (adapterStatus(this.model).attached.length > 0) {
      await saveAdapter(this.model, folder, { name: adapter });
    } else await this.model.savePretrained(folder);
    const text = `${JSON.stringify({ bias: this.bias }, null, 2)}\n`;
    await writeAtomically(
      `${folder}/${FILE}`,
      (file) => file.write(new TextEncoder().encode(text)),
    );
  }

  /**
   * The score of each row of tokens, prompt and answer together: [B], with a gradient. Rows are padded
   * to `width`; default: to the longest, in sixteens.
   *
   * Throws a `RangeError` where there is no row, one is empty, longer than the width or the context, or
   * has a token outside the vocabulary.
   */
  scores(rows: readonly (readonly number[])[], width?: number): Tensor {
    const { model } = this;
    const longest = model.promptSizes().positions - (model.prompt?.length ?? 0);
    check(rows, { max_position_embeddings: longest, vocab_size: model.config.vocab_size });
    const most = Math.max(...rows.map((row) => row.length));
    const t = width ?? Math.min(longest, Math.ceil(most / 16) * 16);
    if (most > t) throw new RangeError(`RewardModel: a row has ${most} tokens, the width is ${t}`);
    const ids = new Int32Array(rows.length * t), mask = new Int32Array(rows.length * t);
    rows.forEach((row, b) => {
      ids.set(row, b * t);
      mask.fill(1, b * t, b * t + row.length);
    });
    const shape = [rows.length, t];
    const tokens = tensor(ids, { shape });
    const logits = model instanceof DecoderClassifier
      ? model.forward(tokens, { attentionMask: mask })
      : model.forward(tokens, { attentionMask: tensor(mask, { shape }) }); // [B, 1]
    return logits.squeeze(1).add(this.bias);
  }

  /**
   * Scores of sampled answers: what PPO, GRPO and best-of-n take as a reward. Dropout is off.
   *
   * Throws as {@linkcode scores} does.
   */
  async reward(answers: readonly Answer[], options: ScoringOptions = {}): Promise<number[]> {
    return await this.#values(answers.map((a) => [...a.prompt, ...a.tokens]), options);
  }

  /**
   * Sets the bias so that the demonstrations, rows of tokens with prompt and answer together, score 0 in
   * the mean, and gives it.
   *
   * Throws a `RangeError` as {@linkcode scores} does, or where a score is not finite; then the bias is
   * as before.
   */
  async normalize(
    demonstrations: readonly (readonly number[])[],
    options: ScoringOptions = {},
  ): Promise<number> {
    if (demonstrations.length === 0) {
      throw new RangeError("RewardModel.normalize: needs at least one demonstration");
    }
    const scores = await this.#values(demonstrations, options);
    const mean = scores.reduce((sum, x) => sum + x, 0) / scores.length;
    if (!Number.isFinite(mean)) {
      throw new RangeError(`RewardModel.normalize: the mean score must be finite, got ${mean}`);
    }
    return this.bias -= mean;
  }

  async #values(
    rows: readonly (readonly number[])[],
    { batch = 16 }: ScoringOptions,
  ): Promise<number[]> {
    const values: number[] = [];
    for (let at = 0; at < rows.length; at += batch) {
      const scores = evaluating(this, () => this.scores(rows.slice(at, at + batch)));
      values.push(...(await read(scores))[0] as Float32Array);
    }
    return values;
  }
}

function check(
  rows: readonly (readonly number[])[],
  limits: Parameters<typeof checkTokens>[3],
): void {
  if (rows.length === 0) throw new RangeError("RewardModel: needs at least one row");
  const empty = rows.findIndex((row) => row.length === 0);
  if (empty >= 0) throw new RangeError(`RewardModel: row ${empty} is empty, it needs a token`);
  checkTokens("RewardModel", "row", rows, limits);
}

async function readBias(folder: string): Promise<number> {
  const path = `${folder}/${FILE}`;
  if (!await isThere(path)) return 0;
  const { bias } = await readJson("load reward model", path);
  if (typeof bias !== "number" || !Number.isFinite(bias)) {
    throw new TypeError(
      `load reward model: ${path} needs a number bias, has ${JSON.stringify(bias)}`,
    );
  }
  return bias;
}
