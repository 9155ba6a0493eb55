/**
 * Models that are loaded from, and saved to, folders of Hugging Face's layout.
 *
 * @module
 */

import { normal, type QuantizedFormat, zeros } from "../../core/mod.ts";
import { writeAtomically } from "../../core/files.ts";
import { Embedding } from "../embedding.ts";
import { Conv1D, Linear } from "../linear.ts";
import { Module } from "../module.ts";
import { makePacked, type QuantizeOptions } from "../quantize.ts";
import { KeysError } from "../state.ts";
import {
  type ConfigFile,
  configText,
  generationConfig,
  modelConfig,
  withLabels,
} from "./config_file.ts";
import { weightFiles } from "./pretrained.ts";

/** What a class says of its checkpoints. */
export interface PretrainedInfo {
  /** As `architectures` of `config.json` names it. */
  readonly architecture: string;
  /** As `model_type` does. */
  readonly modelType: string;
  /** First name of every key of the model without its head; files of that model alone leave it out. */
  readonly base: string;
  /** Keys of a file that hold nothing a model needs. */
  readonly ignored?: RegExp;
  /** Keys below the base that some checkpoints lack; with a new head they may start fresh. */
  readonly optional?: RegExp;
  /** Throws where a configuration cannot be; `source` begins the message. */
  checkConfig(config: Record<string, unknown>, source: string): void;
}

/** The class of a {@linkcode PretrainedModel}. */
export interface PretrainedClass<M extends PretrainedModel = PretrainedModel> {
  /** A model with fresh weights. */
  /** A model with fresh weights, made from its configuration. */
  new (config: never): M;
  /** What it says of its checkpoints. */
  readonly pretrained: PretrainedInfo;
}

/** Options of `fromPretrained` and `loadModel`. */
export interface PretrainedOptions {
  /** Settings that stand over those of `config.json`, such as `{ num_labels: 3 }`. */
  readonly config?: Readonly<Record<string, unknown>>;
  /**
   * Whether the head starts fresh, whatever the folder holds of one: how a pretrained encoder becomes a
   * classifier. Default false.
   */
  readonly newHead?: boolean;
  /**
   * Packs the weights of linear layers as they are read, as `quantize` does afterwards: a format, or
   * all its options. The floats of all layers are never there at once. Default: they stay floats.
   */
  readonly quantize?: QuantizedFormat | QuantizeOptions;
}

/** Base of the models in this folder. Their fields have Hugging Face's names: a path is a key. */
export abstract class PretrainedModel extends Module {
  readonly #given: Readonly<Record<string, unknown>>;
  #file: ConfigFile | null = null;
  #generation: ConfigFile | null = null;
  /** What the folder it came from calls a key, where that differs. */
  #names: ReadonlyMap<string, string> = new Map();

  /** With the configuration as it was given, which `savePretrained` writes. */
  constructor(config: Readonly<Record<string, unknown>>) {
    super();
    this.#given = config;
  }

  /** The configuration, defaults filled in. */
  abstract get config(): Readonly<Record<string, unknown>>;

  /** What `generation_config.json` said of the folder it came from, or null. */
  get generationConfig(): Readonly<Record<string, unknown>> | null {
    return this.#generation?.config ?? null;
  }

  /**
   * The model in a folder of Hugging Face's layout: `config.json` and `model.safetensors`, or the parts
   * that `model.safetensors.index.json` names. It comes in evaluation mode.
   *
   * Throws an `Error` that names the file where one is missing or no such thing, the setting that cannot
   * be, the tensor that an index names and no part has, or every key that does not fit, with both shapes.
   */
  static async fromPretrained<M extends PretrainedModel>(
    this: PretrainedClass<M>,
    folder: string,
    options: PretrainedOptions = {},
  ): Promise<M> {
    const file = await modelConfig(folder);
    const config = { ...file.config, ...options.config };
    this.pretrained.checkConfig(config, file.path);
    const { quantization_config: packed } = config as { quantization_config?: object | null };
    if (packed) {
      const { quant_method: method } = packed as { quant_method?: unknown };
      throw new TypeError(
        `load model: ${file.path}: weights that are packed already (quantization_config, ` +
          `${JSON.stringify(method ?? null)}) are not read; take the model as floats, which ` +
          "{ quantize } packs as it loads",
      );
    }
    const { paths, keys } = await weightFiles(folder);
    const model = new this(config as never);
    const { newHead = false, quantize } = options;
    if (quantize) makePacked(model, typeof quantize === "string" ? { format: quantize } : quantize);
    const rename = renaming(this.pretrained, model, keys, newHead);
    const { base, optional } = this.pretrained;
    const inHead = (key: string): boolean =>
      (hasBase(model, base) && !key.startsWith(`${base}.`)) || (optional?.test(key) ?? false);
    try {
      await model.load(paths, { rename, mayMiss: newHead ? inHead : undefined });
    } catch (error) {
      throw fitting(error, file, this.pretrained.architecture, newHead);
    }
    model.#file = file;
    model.#generation = await generationConfig(folder);
    const stripped = !hasBase(model, base) && keys.some((key) => key.startsWith(`${base}.`));
    // A file of another architecture's layout is not what this one would write.
    if (!newHead && !stripped) {
      model.#names = new Map(keys.flatMap((name) => {
        const key = rename(name);
        return key === null || key === name ? [] : [[key, name]];
      }));
    }
    return model.eval();
  }

  /**
   * Writes `config.json` and `model.safetensors` into `folder`, each whole or as it was before, and
   * `generation_config.json` where it came with one.
   * Adapters are left out. Keys are those of the folder it came from, and so is the configuration, but
   * for `architectures`, the dtype, and what was set at loading.
   *
   * Throws an `Error` that names what cannot be written.
   *
   * @example
   * ```ts
   * import { init } from "@graft/ml";
   * import { LlamaForCausalLM, loadModel } from "@graft/ml/nn";
   *
   * await init({ device: "cpu" });
   * const folder = await Deno.makeTempDir();
   * const model = new LlamaForCausalLM({
   *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
   *   num_hidden_layers: 1, num_attention_heads: 2,
   * });
   * await model.savePretrained(folder);
   * console.log((await loadModel(folder)) instanceof LlamaForCausalLM); // true
   * ```
   */
  async savePretrained(folder: string): Promise<void> {
    const { pretrained } = this.constructor as unknown as PretrainedClass;
    const given = this.#given;
    const dtypes = new Set([...this.stateDict().values()].map((variable) => variable.dtype));
    const [dtype] = dtypes.size === 1 ? dtypes : [];
    const longNames: Record<string, string> = { f32: "float32", f16: "float16", bf16: "bfloat16" };
    const text = configText(this.#file, {
      ...withLabels(given),
      architectures: [pretrained.architecture],
      model_type: given.model_type ?? pretrained.modelType,
      // transformers 4 calls it torch_dtype.
      ...(dtype && { ["torch_dtype" in given ? "torch_dtype" : "dtype"]: longNames[dtype] }),
    });
    await this.save(`${folder}/model.safetensors`, (key) => this.#names.get(key) ?? key);
    const write = (name: string, text: string): Promise<void> =>
      writeAtomically(`${folder}/${name}`, (file) => file.write(new TextEncoder().encode(text)));
    await write("config.json", text);
    if (this.#generation) await write("generation_config.json", this.#generation.text);
  }

  /** Starts linear layers and embeddings as N(0, std), and biases as 0, as Hugging Face does. */
  protected initialize(std: number): void {
    for (const module of this.modules()) {
      if (!(module instanceof Linear || module instanceof Conv1D || module instanceof Embedding)) {
        continue;
      }
      module.weight.assign(normal(module.weight.shape, { std }));
      if (!(module instanceof Embedding)) module.bias?.assign(zeros(module.bias.shape));
    }
  }
}

function hasBase(model: Module, base: string): boolean {
  return Object.hasOwn(model, base);
}

/** From a file's keys to the model's; null for what is left out. */
function renaming(
  { base, ignored }: PretrainedInfo,
  model: Module,
  keys: readonly string[],
  newHead: boolean,
): (key: string) => string | null {
  const withBase = keys.some((key) => key.startsWith(`${base}.`));
  const own = new Set(model.stateDict().keys());
  return (name) => {
    if (ignored?.test(name)) return null;
    // The first checkpoints of BERT have TensorFlow's names.
    let key = name.replace(/\bLayerNorm\.gamma$/, "LayerNorm.weight")
      .replace(/\bLayerNorm\.beta$/, "LayerNorm.bias");
    if (!hasBase(model, base)) {
      // Of a model with a head, only what stands below the base.
      if (!withBase) return key;
      return key.startsWith(`${base}.`) ? key.slice(base.length + 1) : null;
    }
    if (!withBase && own.has(`${base}.${key}`)) key = `${base}.${key}`;
    return newHead && !key.startsWith(`${base}.`) ? null : key;
  };
}

/** Says where sizes come from, and what to do about another model's head. */
function fitting(
  error: unknown,
  { path, config }: ConfigFile,
  architecture: string,
  newHead: boolean,
): unknown {
  if (!(error instanceof KeysError)) return error;
  const other = config.architectures;
  const isOther = !newHead && Array.isArray(other) && !other.includes(architecture);
  return new KeysError(
    `${error.message}\nThe shapes and blocks that are needed are those of ${path}` +
      (isOther
        ? `, which is of a ${
          other.join(", ")
        }; { newHead: true } starts ${architecture}'s head fresh`
        : ""),
    { cause: error },
  );
}
