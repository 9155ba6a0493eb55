import type { CallKernel, Operand } from "../../kernel.ts";
import { kernel, type KernelOp, recordKernel, scalar } from "../../op.ts";
import { show } from "../../shape.ts";
import type { Tensor } from "../../tensor.ts";
import { dropout } from "../dropout.ts";
import { iota } from "../iota.ts";
import { where } from "../where.ts";
import { attentionBackwardWasm, attentionWasm } from "./wasm.ts";
import { attentionBackwardWgsl, attentionWgsl } from "./wgsl.ts";

/** Settings of {@linkcode attention}. */
export interface AttentionOptions {
  /** A query attends to keys at its own position and before. Default false. */
  readonly causal?: boolean;
  /** With a window w, a query at position p attends to keys in (p - w, p]; 0: no limit. */
  readonly window?: number;
  /** Factor of the scores; default 1 / √D. */
  readonly scale?: number;
  /** Bool, broadcast to [B, H, Tq, Tk]: true where a query may attend. */
  readonly mask?: Tensor;
  /** How many keys take part, from the first on; default all. A per-step value. */
  readonly keys?: number;
  /** Probability with which a weight is set to 0, as in training. Above 0 all weights are held. Default 0. */
  readonly dropout?: number;
}

interface Settings {
  readonly causal: boolean;
  readonly window: number;
  readonly scale: number;
  readonly masked: boolean;
}

const lastIsTight = ({ shape, strides }: Operand): boolean =>
  strides[shape.length - 1] === 1 || shape[shape.length - 1] === 1;

/** The op: q, k, v, (mask), keys → out [B, Tq, H, D] and the log-sum-exp [B, H, Tq] of the scores. */
export const attentionOp: KernelOp = kernel({
  code: {
    name: "attention",
    accepts: (index: number, operand: Operand) => index > 2 || lastIsTight(operand),
    epilogue: false,
    wgsl: (call: CallKernel, target) => attentionWgsl(call, target),
    wasm: (call: CallKernel, target) => attentionWasm(call, target),
  },
  numbers: 1,
  gradient: ({ g, gs, inputs, outs, attrs }) => {
    const settings = attrs as unknown as Settings;
    if (gs[1]) throw new Error("attention: the log-sum-exp has no gradient");
    const [q, k, v] = inputs;
    const mask = settings.masked ? [inputs[3]] : [];
    const keys = inputs[inputs.length - 1];
    const dout = g.permute(0, 2, 1, 3); // [B, H, Tq, D]
    const delta = g.mul(outs[0]).sum(-1).permute(0, 2, 1); // [B, H, Tq]
    const grads = recordKernel(
      attentionBackwardOp,
      [q, k, v, ...mask, dout, outs[1], delta, keys],
      [
        { shape: [q.shape[0], q.shape[2], q.shape[1], q.shape[3]], dtype: "f32" },
        { shape: [k.shape[0], k.shape[2], k.shape[1], k.shape[3]], dtype: "f32" },
        { shape: [v.shape[0], v.shape[2], v.shape[1], v.shape[3]], dtype: "f32" },
      ],
      { ...settings },
    ).map((d) => d.permute(0, 2, 1, 3));
    return [...grads, ...mask.map(() => null), null];
  },
  samples: [
    sample("plain", 1, 2, 2, 5, 5, 4, {}),
    sample("causal", 2, 2, 2, 7, 7, 8, { causal: true }),
    sample("grouped-query", 1, 4, 2, 6, 6, 4, { causal: true }),
    sample("window", 1, 2, 1, 9, 9, 4, { causal: true, window: 3 }),
    sample("one query over a cache", 2, 2, 2, 1, 12, 8, { causal: true, keys: 9 }),
    sample("longer than a block", 1, 1, 1, 70, 70, 16, { causal: true }, false),
    {
      name: "masked",
      inputs: [
        { shape: [2, 2, 5, 4] },
        { shape: [2, 2, 5, 4] },
        { shape: [2, 2, 5, 4] },
        { shape: [2, 1, 1, 5], dtype: "bool" },
      ],
      call: (q, k, v, mask) => attention(q, k, v, { mask: firstAlways(mask) }),
      reference: (q, k, v, mask) => composed(q, k, v, { mask: firstAlways(mask) }),
    },
  ],
});

/** The gradient's op; its own gradient is the composed function's. */
export const attentionBackwardOp: KernelOp = kernel({
  code: {
    name: "attentionBackward",
    accepts: (_index: number, operand: Operand) => lastIsTight(operand),
    epilogue: false,
    wgsl: (call: CallKernel, target) => attentionBackwardWgsl(call, target),
    wasm: (call: CallKernel, target) => attentionBackwardWasm(call, target),
  },
  numbers: 1,
  gradient: () => {
    throw new Error(
      "attention: its kernel has a first derivative only; for higher ones use composedAttention()",
    );
  },
  samples: [],
});

/** Keeps every row with at least one key, as a causal mask would. */
function firstAlways(mask: Tensor): Tensor {
  return mask.or(iota(mask.shape, mask.rank - 1, "i32", mask.device).eq(0));
}

function sample(
  name: string,
  b: number,
  h: number,
  hkv: number,
  tq: number,
  tk: number,
  d: number,
  options: AttentionOptions,
  differentiable = true,
): KernelOp["samples"][number] {
  return {
    name,
    inputs: [{ shape: [b, h, tq, d] }, { shape: [b, hkv, tk, d] }, { shape: [b, hkv, tk, d] }],
    call: (q, k, v) => attention(q, k, v, options),
    reference: (q, k, v) => composed(q, k, v, options),
    differentiable,
  };
}

function check(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions): number {
  const shapes = `q ${show(q.shape)}, k ${show(k.shape)}, v ${show(v.shape)}`;
  if (q.rank !== 4 || k.rank !== 4 || v.rank !== 4) {
    throw new RangeError(`attention: needs q, k and v of [B, H, T, D], got ${shapes}`);
  }
  const [b, h, tq, d] = q.shape;
  const [kb, hkv, tk, kd] = k.shape;
  if (kb !== b || kd !== d || h % hkv !== 0 || v.shape.some((n, i) => n !== k.shape[i])) {
    throw new RangeError(
      `attention: needs one B and D, k and v alike, and H a multiple of their heads, got ${shapes}`,
    );
  }
  const keys = options.keys ?? tk;
  if (!Number.isInteger(keys) || keys < 1 || keys > tk) {
    throw new RangeError(`attention: needs keys in [1, ${tk}], got ${keys}`);
  }
  if (options.causal && tq > keys) {
    throw new RangeError(`attention: causal needs at least as many keys as queries, got ${shapes}`);
  }
  const window = options.window ?? 0;
  if (!Number.isInteger(window) || window < 0 || (window > 0 && !options.causal)) {
    throw new RangeError(`attention: a window is a whole number and needs causal, got ${window}`);
  }
  return keys;
}

/**
 * Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1), blocked so that no [Tq, Tk] matrix
 * is ever held (Dao et al. 2022, "FlashAttention"); backward recomputes the scores.
 *
 * q [B, H, Tq, D], k and v [B, Hkv, Tk, D] with H a multiple of Hkv: query head h uses key head
 * ⌊h · Hkv / H⌋ (Ainslie et al. 2023). Query i stands at position keys - Tq + i. Returns
 * [B, H, Tq, D], laid out so that `.permute(0, 2, 1, 3).reshape(B, Tq, H · D)` moves no data. A query
 * with no key to attend to gives 0.
 */
export function attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: AttentionOptions = {},
): Tensor {
  // No kernel draws random numbers.
  if (options.dropout) return composed(q, k, v, options);
  const keys = check(q, k, v, options);
  for (const t of [q, k, v]) {
    if (t.dtype !== "f32") {
      throw new TypeError(`attention: needs f32, got ${t.dtype}; convert with .to("f32")`);
    }
  }
  const [b, h, tq, d] = q.shape;
  const mask = options.mask ? [options.mask.expand(b, h, tq, k.shape[2])] : [];
  const settings: Settings = {
    causal: options.causal ?? false,
    window: options.window ?? 0,
    scale: options.scale ?? 1 / Math.sqrt(d),
    masked: mask.length > 0,
  };
  const [out] = recordKernel(
    attentionOp,
    [q, k, v, ...mask, scalar(keys, "i32", q.device)],
    [{ shape: [b, tq, h, d], dtype: "f32" }, { shape: [b, h, tq], dtype: "f32" }],
    { ...settings },
  );
  return out.permute(0, 2, 1, 3);
}

/** The same, composed of other ops: it holds all scores, and can be differentiated any number of times. */
export function composedAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: AttentionOptions = {},
): Tensor {
  return composed(q, k, v, options);
}

function composed(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions): Tensor {
  const keys = check(q, k, v, options);
  const [b, h, tq, d] = q.shape;
  const [, hkv, tk] = k.shape;
  const wide = (t: Tensor): Tensor =>
    t.unsqueeze(2).expand(b, hkv, h / hkv, tk, d).reshape(b, h, tk, d);
  const scores = q.matmul(wide(k).transpose()).mul(options.scale ?? 1 / Math.sqrt(d));
  const key = iota([tq, tk], 1, "i32", q.device);
  const position = iota([tq, tk], 0, "i32", q.device).add(keys - tq);
  let may = key.lt(keys);
  if (options.causal) may = may.and(key.le(position));
  if (options.window) may = may.and(key.gt(position.sub(options.window)));
  if (options.mask) may = may.and(options.mask);
  const weights = where(may, where(may, scores, -1e30).softmax(-1), 0); // [B, H, Tq, Tk]
  return dropout(weights, options.dropout ?? 0).matmul(wide(v));
}
