/** EVA's start against PEFT: see README.md here. */

import { assert, assertEquals } from "@std/assert";
import { init, openSafetensors } from "@graft/ml";
import { type CausalLM, loadModel } from "@graft/ml/nn";
import { injectFromBase, type LoraConfig, saveAdapter } from "@graft/ml/peft";
import { golden, here, near, shifted } from "./golden.ts";

const modules = ["q_proj", "v_proj", "down_proj"];
const CASES: Readonly<Record<string, LoraConfig>> = {
  plain: { r: 8, target_modules: modules },
  patterns: {
    r: 15,
    target_modules: modules,
    use_rslora: true,
    rank_pattern: { "v_proj": 10, "layers.1.mlp.down_proj": 13 },
    alpha_pattern: { q_proj: 3 },
    eva_config: { rho: 1.1 },
  },
  whiten: {
    r: 18,
    target_modules: ["o_proj", "down_proj"],
    // At most 22.5, which Python rounds to 22.
    eva_config: { rho: 1.25, whiten: true, adjust_scaling_factors: false, use_label_mask: false },
  },
  batches: { r: 8, target_modules: modules },
};

/** Rows of a matrix. */
const rowsOf = (values: Float32Array, size: number): Float32Array[] =>
  Array.from({ length: values.length / size }, (_, r) => values.subarray(r * size, (r + 1) * size));

const dot = (x: Float32Array, y: Float32Array): number => x.reduce((s, v, i) => s + v * y[i], 0);

Deno.test("parity: PEFT's EVA, ranks and α by layer, A, the base's logits", async (t) => {
  const device = await init({ device: "cpu" });
  await using inputs = await golden("peft_eva/inputs.safetensors");
  const ids = await inputs.tensor("input_ids"), targets = shifted(await inputs.tensor("labels"));
  for (const [name, config] of Object.entries(CASES)) {
    await t.step(name, async () => {
      const model = await loadModel(`${here}tiny_llama`) as CausalLM;
      const logits = () => model.logits(model.forward(ids)).data() as Promise<Float32Array>;
      const base = await logits();
      const isExact = name !== "batches", size = isExact ? 4 : 2;
      const batches = [0, 2].filter((row) => row % size === 0).map((row) => ({
        inputs: ids.slice(0, row, row + size),
        targets: targets.slice(0, row, row + size),
      }));
      await injectFromBase(model, {
        lora_alpha: 8,
        task_type: "CAUSAL_LM",
        base_model_name_or_path: "tiny_llama",
        init_lora_weights: "eva",
        ...config,
      }, { batches });
      assertEquals(await logits(), base);

      const out = await Deno.makeTempDir();
      await saveAdapter(model, out);
      const settings = async (folder: string): Promise<Record<string, unknown>> =>
        JSON.parse(await Deno.readTextFile(`${folder}/adapter_config.json`));
      const ours = await settings(out), theirs = await settings(`${here}peft_eva/${name}`);
      // Of several batches PEFT keeps less than all, so that a rank may go to a neighbour.
      const shared = isExact ? {} : { rank_pattern: null, alpha_pattern: null };
      assertEquals({ ...ours, ...shared }, { ...theirs, ...shared });

      await using got = await openSafetensors(`${out}/adapter_model.safetensors`);
      await using want = await golden(`peft_eva/${name}/adapter_model.safetensors`);
      assertEquals(got.names.toSorted(), want.keys.toSorted());
      let difference = 0;
      for (const key of want.keys) {
        const { shape } = got.entries.get(key)!;
        const own = new Float32Array((await got.read(key)).buffer), values = await want.floats(key);
        if (key.includes("lora_B")) {
          assert(own.every((x) => x === 0), key);
        } else if (isExact) {
          // The batch twice has singular values √2 times as large.
          const twice = name === "whiten" ? Math.sqrt(Math.SQRT2) : 1;
          near(key, own.map((x) => x / twice), values, 1e-3);
        } else {
          const a = rowsOf(own, shape[1]), basis = rowsOf(values, shape[1]);
          assert(Math.abs(a.length - basis.length) <= 1, `${key}: ${a.length}, ${basis.length}`);
          difference += a.length - basis.length;
          for (const [i, row] of a.slice(0, basis.length).entries()) {
            const within = basis.reduce((sum, unit) => sum + dot(unit, row) ** 2, 0);
            assert(within > 0.98, `${key}: ${within} of direction ${i} is within PEFT's`);
          }
        }
      }
      assertEquals(difference, 0);
      await Deno.remove(out, { recursive: true });
    });
  }
  await device.close();
});
