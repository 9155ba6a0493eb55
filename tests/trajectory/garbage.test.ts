/**
 * What a step recorded is garbage after it, and young: no full collection is needed to free it. V8 may
 * all the same place it among the old, where it has lived through the making of a plan; not here.
 */

import { assert } from "@std/assert";

const root = new URL("../../", import.meta.url);

const PROGRAM = `
import { init, manualSeed } from "@graft/ml";
import { LlamaForCausalLM } from "@graft/ml/nn";
import { AdamW } from "@graft/ml/optim";
await init({ device: "cpu", threads: 1 });
manualSeed(0);
const model = new LlamaForCausalLM({
  vocab_size: 32, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 4, num_attention_heads: 2,
});
const optimizer = new AdamW(model.parameters());
const ids = Int32Array.from({ length: 8 }, (_, i) => i);
for (let step = 0; step < 300; step++) {
  const loss = model.loss({ inputs: ids, targets: ids, shape: [1, 8] });
  loss.backward();
  await optimizer.step();
  optimizer.zeroGrad();
  await loss.item();
}
Deno.exit(0);
`;

Deno.test("trajectory: what steps leave behind does not survive a young collection", async () => {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["eval", "--v8-flags=--trace-gc,--no-allocation-site-pretenuring", PROGRAM],
    cwd: root,
  }).output();
  const text = new TextDecoder().decode(stdout);
  assert(code === 0, new TextDecoder().decode(stderr));
  // "Scavenge 28.5 (44.1) -> 15.3 (44.1) MB": before and after, in MiB.
  const heaps = [...text.matchAll(/Scavenge[^\n]*? ([\d.]+) \([\d.]+\) -> ([\d.]+) /g)]
    .map(([, before, after]) => ({ before: Number(before), after: Number(after) }));
  const late = heaps.slice(heaps.length >> 1);
  assert(late.length >= 5, text);
  // Of what came since the last collection: the step at hand may live, those before may not.
  const survives = late.slice(1).map(({ before, after }, i) =>
    (after - late[i].after) / (before - late[i].after)
  );
  const median = survives.toSorted((a, b) => a - b)[survives.length >> 1];
  assert(median < 0.1, `${(100 * median).toFixed(0)} % survive\n${text}`);
});
