// Attention on webgpu, forward and backward, against the textbook formula in double precision: as for
// the device at hand and as for a real GPU.
import { attentionBackwardWgsl, attentionWgsl } from "../../core/ops/attention/wgsl.ts";
import { close, element, gpuTest, kinds, type LabOperand, operand, runCall } from "./webgpu_lab.ts";

interface Case {
  name: string;
  b: number;
  h: number;
  hkv: number;
  tq: number;
  tk: number;
  d: number;
  keys?: number;
  causal?: boolean;
  window?: number;
  masked?: boolean;
  /** Rows begin at multiples of four elements, so that vectors can be read. */
  aligned?: boolean;
  /** Laid out [B, T, H, D]. */
  headsInside?: boolean;
}

const CASES: Case[] = [
  { name: "plain", b: 1, h: 2, hkv: 2, tq: 5, tk: 7, d: 4 },
  {
    name: "causal, several blocks",
    aligned: true,
    b: 2,
    h: 2,
    hkv: 2,
    tq: 70,
    tk: 70,
    d: 16,
    causal: true,
  },
  {
    name: "grouped, heads inside",
    b: 2,
    h: 4,
    hkv: 2,
    tq: 40,
    tk: 40,
    d: 48,
    causal: true,
    headsInside: true,
  },
  {
    name: "window",
    aligned: true,
    b: 1,
    h: 2,
    hkv: 1,
    tq: 80,
    tk: 80,
    d: 8,
    causal: true,
    window: 9,
  },
  {
    name: "one query over a cache",
    aligned: true,
    b: 2,
    h: 4,
    hkv: 2,
    tq: 1,
    tk: 200,
    d: 64,
    causal: true,
    keys: 150,
  },
  {
    name: "a window over a cache",
    b: 1,
    h: 2,
    hkv: 2,
    tq: 2,
    tk: 200,
    d: 20,
    causal: true,
    keys: 190,
    window: 70,
  },
  {
    name: "some queries over a cache",
    b: 1,
    h: 2,
    hkv: 2,
    tq: 10,
    tk: 60,
    d: 32,
    causal: true,
    keys: 50,
  },
  { name: "masked", b: 2, h: 2, hkv: 2, tq: 35, tk: 35, d: 12, masked: true },
  {
    name: "a query with no key",
    b: 1,
    h: 2,
    hkv: 2,
    tq: 6,
    tk: 6,
    d: 8,
    causal: true,
    masked: true,
  },
  { name: "masked, one query", b: 2, h: 2, hkv: 2, tq: 1, tk: 35, d: 12, masked: true },
  { name: "deep", aligned: true, b: 1, h: 1, hkv: 1, tq: 33, tk: 40, d: 132 },
  { name: "depth 1", b: 1, h: 1, hkv: 1, tq: 6, tk: 6, d: 1, causal: true },
];

function inputsOf(c: Case): { q: LabOperand; k: LabOperand; v: LabOperand; mask: LabOperand[] } {
  const order = c.headsInside ? [0, 2, 1, 3] : [0, 1, 2, 3];
  const q = operand([c.b, c.h, c.tq, c.d], order);
  const k = operand([c.b, c.hkv, c.tk, c.d], order, { pad: 4, offset: c.aligned ? 4 : 3 });
  const v = operand([c.b, c.hkv, c.tk, c.d], order, { offset: c.aligned ? 8 : 5 });
  // One mask for all heads and queries; under a causal one, the first query has no key left.
  const mask = c.masked
    ? [operand([c.b, c.h, c.tq, c.tk], [0, 3], { broadcast: [1, 2], dtype: "bool" })]
    : [];
  if (c.masked && c.causal) {
    const values = mask[0].values as number[];
    for (let b = 0; b < c.b; b++) values[b * c.tk] = 0;
  }
  return { q, k, v, mask };
}

/** Weights P and outputs, by the definition. */
function oracle(c: Case): {
  out: number[];
  lse: number[];
  p: (b: number, h: number, i: number) => number[];
} {
  const { q, k, v, mask } = inputsOf(c);
  const keys = c.keys ?? c.tk, scale = 1 / Math.sqrt(c.d), group = c.h / c.hkv;
  const out = new Array<number>(c.b * c.tq * c.h * c.d).fill(0);
  const lse = new Array<number>(c.b * c.h * c.tq).fill(0);
  const rows = new Map<string, number[]>();
  for (let b = 0; b < c.b; b++) {
    for (let h = 0; h < c.h; h++) {
      const hk = Math.floor(h / group);
      for (let i = 0; i < c.tq; i++) {
        const position = keys - c.tq + i;
        const scores: number[] = [];
        for (let t = 0; t < c.tk; t++) {
          const may = t < keys && (!c.causal || t <= position) &&
            (!c.window || t > position - c.window) && (!c.masked || element(mask[0], b, h, i, t));
          let s = 0;
          for (let d = 0; d < c.d; d++) s += element(q, b, h, i, d) * element(k, b, hk, t, d);
          scores.push(may ? s * scale : -Infinity);
        }
        const sum = scores.reduce((a, s) => a + Math.exp(s), 0);
        const p = scores.map((s) => sum > 0 ? Math.exp(s) / sum : 0);
        rows.set(`${b},${h},${i}`, p);
        if (sum > 0) lse[(b * c.h + h) * c.tq + i] = Math.log(sum);
        for (let d = 0; d < c.d; d++) {
          out[((b * c.tq + i) * c.h + h) * c.d + d] = p.reduce(
            (a, w, t) => w ? a + w * element(v, b, hk, t, d) : a,
            0,
          );
        }
      }
    }
  }
  return { out, lse, p: (b, h, i) => rows.get(`${b},${h},${i}`)! };
}

function attrsOf(c: Case): Record<string, number | boolean> {
  return {
    causal: c.causal ?? false,
    window: c.window ?? 0,
    scale: 1 / Math.sqrt(c.d),
    masked: c.masked ?? false,
  };
}

for (const c of CASES) {
  gpuTest(`attention: ${c.name}`, async () => {
    const { q, k, v, mask } = inputsOf(c);
    const { out, lse, p } = oracle(c);
    const keys = c.keys ?? c.tk;
    const dout = operand([c.b, c.h, c.tq, c.d], [0, 2, 1, 3], {
      offset: c.aligned ? 4 : 1,
    });
    const contiguous = (shape: number[], values: number[]): LabOperand => ({
      ...operand(shape),
      values,
    });
    const delta: number[] = [];
    const dq = new Array<number>(out.length).fill(0);
    const dk = new Array<number>(c.b * c.tk * c.hkv * c.d).fill(0), dv = [...dk];
    const scale = 1 / Math.sqrt(c.d), group = c.h / c.hkv;
    for (let b = 0; b < c.b; b++) {
      for (let h = 0; h < c.h; h++) {
        const hk = Math.floor(h / group);
        for (let i = 0; i < c.tq; i++) {
          const row = p(b, h, i);
          let sum = 0;
          for (let d = 0; d < c.d; d++) {
            sum += out[((b * c.tq + i) * c.h + h) * c.d + d] * element(dout, b, h, i, d);
          }
          delta.push(sum);
          row.forEach((w, t) => {
            if (w === 0) return;
            let dp = 0;
            for (let d = 0; d < c.d; d++) dp += element(dout, b, h, i, d) * element(v, b, hk, t, d);
            const ds = w * (dp - sum) * scale;
            for (let d = 0; d < c.d; d++) {
              const at = ((b * c.tk + t) * c.hkv + hk) * c.d + d;
              dq[((b * c.tq + i) * c.h + h) * c.d + d] += ds * element(k, b, hk, t, d);
              dk[at] += ds * element(q, b, h, i, d);
              dv[at] += w * element(dout, b, h, i, d);
            }
          });
        }
      }
    }
    for (const as of kinds) {
      const [gotOut, gotLse] = await runCall({
        wgsl: attentionWgsl,
        inputs: [q, k, v, ...mask],
        outputs: [{ shape: [c.b, c.tq, c.h, c.d] }, { shape: [c.b, c.h, c.tq] }],
        attrs: attrsOf(c),
        scalars: [keys],
        as,
      });
      close(gotOut, out, 1e-5, "out");
      close(gotLse, lse, 1e-5, "lse");

      // With a mask there are more inputs than eight buffers hold: other kernels, or two for one.
      for (const buffers of as === "as on a GPU" || c.masked ? [31, 8] : [31]) {
        const limited = buffers === 8
          ? function attentionBackwardOnEightBuffers(
            ...[call, target]: Parameters<typeof attentionBackwardWgsl>
          ): ReturnType<typeof attentionBackwardWgsl> {
            const program = attentionBackwardWgsl(call, { ...target, maxStorageBuffers: 8 });
            for (const { bindings } of program.passes) {
              const storage = bindings.filter((b) => b.source.kind !== "scalars").length;
              if (storage > 8) throw new Error(`a pass binds ${storage} storage buffers`);
            }
            return program;
          }
          : attentionBackwardWgsl;
        const got = await runCall({
          wgsl: limited,
          inputs: [
            q,
            k,
            v,
            ...mask,
            dout,
            contiguous([c.b, c.h, c.tq], lse),
            contiguous([c.b, c.h, c.tq], delta),
          ],
          outputs: [
            { shape: [c.b, c.tq, c.h, c.d] },
            { shape: [c.b, c.tk, c.hkv, c.d] },
            { shape: [c.b, c.tk, c.hkv, c.d] },
          ],
          attrs: attrsOf(c),
          scalars: [keys],
          as,
        });
        [dq, dk, dv].forEach((want, i) => close(got[i], want, 2e-5, ["dq", "dk", "dv"][i]));
      }
    }
  });
}
