/**
 * P-tuning v1's other encoder: an LSTM over the virtual tokens (Hochreiter and Schmidhuber 1997), in
 * both directions.
 *
 * @module
 */

import { concatenate, normal, type Tensor, uniform, zeros } from "../../core/mod.ts";
import { Dropout, Linear, Parameter, type PromptSizes } from "../../nn/mod.ts";
import { PromptAdapter, PromptRows } from "./adapter.ts";
import type { ResolvedPromptConfig } from "./config.ts";

/** Vectors through an LSTM and two linear layers with ReLU between. */
export class PromptLstm extends PromptAdapter {
  /** The vectors, [n, hidden] */
  embedding: PromptRows;
  /**
   * The LSTM's parameters by PyTorch's names: of layer k `weight_ih_lk` [4h, in], `weight_hh_lk`
   * [4h, h], `bias_ih_lk` and `bias_hh_lk` [4h], for the input, forget, cell and output gates one below
   * the other; of the way back the same with `_reverse`.
   */
  lstm_head: Map<string, Parameter> = new Map();
  /** Of each layer's output but the last's. */
  lstm_dropout: Dropout;
  /** From 2h to 2h, and to hidden */
  mlp_head: Linear[];

  /** Fresh weights, as PyTorch's. */
  constructor(config: ResolvedPromptConfig, sizes: PromptSizes) {
    super(config, sizes);
    const { token_dim: d, num_virtual_tokens: n } = config;
    const h = config.encoder_hidden_size as number;
    this.embedding = new PromptRows(normal([n, d]));
    const bound = 1 / Math.sqrt(h);
    for (let k = 0; k < (config.encoder_num_layers as number); k++) {
      for (const way of ["", "_reverse"]) {
        const shapes: [string, number[]][] = [
          ["weight_ih", [4 * h, k === 0 ? d : 2 * h]],
          ["weight_hh", [4 * h, h]],
          ["bias_ih", [4 * h]],
          ["bias_hh", [4 * h]],
        ];
        for (const [name, shape] of shapes) {
          const value = uniform(shape, { low: -bound, high: bound });
          this.lstm_head.set(`${name}_l${k}${way}`, new Parameter(value));
        }
      }
    }
    this.lstm_dropout = new Dropout(config.encoder_dropout as number);
    this.mlp_head = [new Linear(2 * h, 2 * h), new Linear(2 * h, d)];
  }

  /** [n, hidden] -> [n, 2h] -> [n, 2h] -> [n, hidden] */
  override rows(): Tensor {
    const layers = this.config.encoder_num_layers as number;
    let x: Tensor = this.embedding.weight;
    for (let k = 0; k < layers; k++) {
      if (k > 0) x = this.lstm_dropout.forward(x);
      x = concatenate([this.#pass(x, `l${k}`, false), this.#pass(x, `l${k}_reverse`, true)], 1);
    }
    const [first, out] = this.mlp_head;
    return out.forward(first.forward(x).relu());
  }

  /** One layer in one direction: [n, in] -> [n, h] */
  #pass(x: Tensor, layer: string, back: boolean): Tensor {
    const of = (name: string): Tensor => this.lstm_head.get(`${name}_${layer}`)!;
    const recurrent = of("weight_hh").transpose(); // [h, 4h]
    const [n] = x.shape, [h] = recurrent.shape;
    // The share of the inputs, of all positions at once.
    const shares = x.matmul(of("weight_ih").transpose()).add(of("bias_ih")).add(of("bias_hh"));
    let state: Tensor = zeros([1, h]), cell: Tensor = zeros([1, h]);
    const states: Tensor[] = [];
    for (let step = 0; step < n; step++) {
      const t = back ? n - 1 - step : step;
      const gates = shares.slice(0, t, t + 1).add(state.matmul(recurrent)); // [1, 4h]
      const gate = (i: number): Tensor => gates.slice(1, i * h, (i + 1) * h);
      cell = gate(1).sigmoid().mul(cell).add(gate(0).sigmoid().mul(gate(2).tanh()));
      state = gate(3).sigmoid().mul(cell.tanh());
      states[t] = state;
    }
    return concatenate(states, 0);
  }
}
