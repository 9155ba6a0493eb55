/**
 * The value model of PPO: what score an answer may expect, seen from each of its tokens.
 *
 * @module
 */

import type { Tensor } from "../core/mod.ts";
import { type ForwardOptions, Linear, Module } from "../nn/mod.ts";
import { adapterStatus, withAdapters } from "../peft/mod.ts";

/** What gives hidden states: any language model of this library. */
export interface Backbone extends Module {
  /** i32 [B, T] -> the last hidden states, [B, T, hidden]. */
  forward(ids: Tensor, options?: ForwardOptions): Tensor;
}

/** Options of a {@linkcode ValueModel}. */
export interface ValueModelOptions {
  /**
   * What the hidden states come from. Default: the policy's own pass, which costs nothing more, and
   * whose weights both losses then train.
   */
  readonly backbone?: Backbone;
  /**
   * Names of the backbone's adapters that are active in the value model's pass. So the policy's own
   * weights can carry a value model of its own, as a second adapter. Default: those that are active.
   */
  readonly adapters?: readonly string[];
  /** The head to take over, [1, hidden]; default: one that gives 0. */
  readonly head?: Linear;
}

/**
 * A scalar head on hidden states: V of the state in which each next token is chosen. Its parameters are
 * the head's; what is trained of a backbone stands in the backbone.
 *
 * @example
 * ```ts
 * import { init, tensor } from "@graft/ml";
 * import { LlamaForCausalLM } from "@graft/ml/nn";
 * import { addAdapter, inject } from "@graft/ml/peft";
 * import { ValueModel } from "@graft/ml/rlhf";
 *
 * await init({ device: "cpu" });
 * const model = new LlamaForCausalLM({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2,
 * });
 * inject(model, { r: 4 }, { name: "policy" });
 * addAdapter(model, { r: 4 }, { name: "value" });
 * const ids = tensor([[1, 2, 3]], { dtype: "i32" });
 * const shared = new ValueModel(16);
 * console.log(shared.forward(ids, model.forward(ids)).shape); // [1, 3]
 * const own = new ValueModel(16, { backbone: model, adapters: ["value"] });
 * console.log(own.forward(ids).shape); // [1, 3]
 * ```
 */
export class ValueModel extends Module {
  /** Hidden state -> V, [1, hidden] with a bias. */
  readonly head: Linear;
  readonly #backbone: Backbone | null;
  readonly #adapters: readonly string[] | null;

  /**
   * A value model over hidden states of size `hidden`.
   *
   * Throws a `RangeError` where the head does not fit, an `Error` where the backbone has no adapter of
   * a name, or names are given without a backbone.
   */
  constructor(hidden: number, options: ValueModelOptions = {}) {
    super();
    const { backbone = null, adapters = null, head } = options;
    if (head && (head.inFeatures !== hidden || head.outFeatures !== 1)) {
      throw new RangeError(
        `ValueModel: needs a head [1, ${hidden}], got [${head.weight.shape.join(", ")}]`,
      );
    }
    const attached = backbone ? adapterStatus(backbone).attached : [];
    const unknown = adapters?.find((name) => !attached.includes(name));
    if (unknown !== undefined) {
      throw new Error(
        `ValueModel: the backbone has no adapter "${unknown}"; there is ` +
          (attached.join(", ") || "none"),
      );
    }
    this.head = head ?? Linear.zero(hidden, 1, true);
    this.#backbone = backbone;
    this.#adapters = adapters;
  }

  /** What the hidden states come from; null where they are the policy's. */
  get backbone(): Backbone | null {
    return this.#backbone;
  }

  /**
   * i32 [B, T] -> V at each position, [B, T]; `hidden` [B, T, hidden] are the states of the policy's
   * pass, which a shared value model reads.
   *
   * Throws a `TypeError` where a shared one is given none.
   */
  forward(ids: Tensor, hidden?: Tensor): Tensor {
    return this.head.forward(this.#states(ids, hidden)).squeeze(-1);
  }

  #states(ids: Tensor, hidden?: Tensor): Tensor {
    const backbone = this.#backbone;
    if (backbone) {
      const pass = (): Tensor => backbone.forward(ids);
      return this.#adapters ? withAdapters(backbone, this.#adapters, pass) : pass();
    }
    if (!hidden) {
      throw new TypeError("ValueModel: a shared value model needs the policy's hidden states");
    }
    return hidden;
  }
}
