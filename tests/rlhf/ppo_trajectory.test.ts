/** PPO goes the same way on cpu and webgpu, and broken off in the middle as unbroken. */

import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { type Device, Generator, init, manualSeed } from "@graft/ml";
import { LlamaForCausalLM } from "@graft/ml/nn";
import { AdamW, clipGradNorm, loadCheckpoint, saveCheckpoint } from "@graft/ml/optim";
import { inject } from "@graft/ml/peft";
import {
  accumulatePtx,
  AdaptiveKL,
  type Answer,
  makeExperience,
  measureAnswers,
  minibatches,
  ppoBatch,
  type PPOLoss,
  ppoLoss,
  ppoMetrics,
  sampleAnswers,
  ValueModel,
} from "@graft/ml/rlhf";
import { forEachDevice } from "../devices.ts";

type Step = Record<string, number>;

/** What a checkpoint holds beside the tensors. */
interface Place {
  readonly step: number;
  readonly sampling: { seed: number; counter: number };
  readonly order: { seed: number; counter: number };
  readonly kl: { coefficient: number };
}

interface Run {
  steps(count: number): Promise<Step[]>;
  save(path: string): Promise<void>;
  load(path: string): Promise<void>;
}

const ROWS = 4, LENGTH = 5;

/** Answers that do not come from the model: where it samples, rounding could decide a token. */
function given(step: number): Answer[] {
  return Array.from({ length: ROWS }, (_, b) => {
    const length = 1 + (step + b) % LENGTH;
    const tokens = Array.from({ length }, (_, t) => 3 + (step * 7 + b * 5 + t * 11) % 30);
    if (b % 2 === 0) tokens[length - 1] = 2;
    return { prompt: [1, ...Array(1 + b).fill(4 + b)], tokens, ended: b % 2 === 0 };
  });
}

/** PPO-ptx with LoRA and a shared value model, on answers that are given or sampled. */
function start(answersOf: "given" | "sampled"): Run {
  manualSeed(7);
  const model = inject(
    new LlamaForCausalLM({
      vocab_size: 33,
      hidden_size: 16,
      intermediate_size: 24,
      num_hidden_layers: 1,
      num_attention_heads: 2,
      max_position_embeddings: 32,
      initializer_range: 0.3,
      eos_token_id: 2,
    }),
    { r: 4, target_modules: ["q_proj", "v_proj"] },
  );
  const value = new ValueModel(16);
  const optimizer = new AdamW([...model.trainable(), ...value.trainable()], { lr: 0.02 });
  const kl = new AdaptiveKL({ coefficient: 0.1, target: 0.5, horizon: 20 });
  const sampling = new Generator(1), order = new Generator(2);
  const cache = model.createCache(ROWS, 16 + LENGTH);
  const parameters = new Map([
    ...model.namedParameters().filter(([, p]) => p.requiresGrad),
    ...value.namedParameters().map(([name, p]) => [`value.${name}`, p] as const),
  ]);
  const room = { total: 16, answer: LENGTH };
  let step = 0;
  const take = async (): Promise<Step> => {
    const prompts = given(step).map(({ prompt }) => prompt);
    const answers = answersOf === "given"
      ? given(step)
      : await sampleAnswers(model, prompts, { maxTokens: LENGTH, generator: sampling, cache });
    const rollouts = await measureAnswers(model, answers, { value, room });
    const scores = answers.map(({ tokens }) => tokens.filter((id) => id < 16).length);
    const { rows, metrics } = makeExperience(rollouts, scores, {
      beta: kl.coefficient,
      missingEndPenalty: 0.5,
    });
    const losses: PPOLoss[] = [];
    for (const batch of minibatches(rows, 2, 2, order)) {
      const result = ppoLoss(model, value, ppoBatch(batch, room));
      result.loss.backward();
      accumulatePtx(model, [{
        inputs: Int32Array.of(1, 8, 9, 10),
        targets: Int32Array.of(8, 9, 10, 11),
        shape: [1, 4],
      }], 0.2);
      clipGradNorm(optimizer.parameters, 1);
      await optimizer.step();
      optimizer.zeroGrad();
      losses.push(result);
    }
    kl.update(metrics["objective/kl"], ROWS);
    step++;
    return { ...metrics, ...await ppoMetrics(losses), beta: kl.coefficient };
  };
  return {
    async steps(count: number): Promise<Step[]> {
      const steps: Step[] = [];
      for (let i = 0; i < count; i++) steps.push(await take());
      return steps;
    },
    save: (path) => {
      const place: Place = {
        step,
        sampling: sampling.state(),
        order: order.state(),
        kl: kl.state(),
      };
      return saveCheckpoint(path, { parameters, optimizer }, place);
    },
    async load(path: string): Promise<void> {
      const place = await loadCheckpoint(path, { parameters, optimizer }) as Place;
      step = place.step;
      sampling.load(place.sampling);
      order.load(place.order);
      kl.load(place.kl);
    },
  };
}

forEachDevice("PPO: a trajectory is the same on every device as on cpu", async (device: Device) => {
  const run = start("given");
  const steps = await run.steps(2);
  const { buffers, pipelines, bindings } = device.counters;
  steps.push(...await run.steps(4));
  const { counters } = device;
  assertEquals(
    [counters.buffers, counters.pipelines, counters.bindings],
    [buffers, pipelines, bindings],
    "from step 3 on, nothing new is made on the device",
  );
  const cpu = await init({ device: "cpu" });
  const expected = await start("given").steps(6);
  await cpu.close();
  assert(expected.at(-1)!["val/ratio_var"] > 0 && expected.at(-1)!["objective/kl"] !== 0);
  steps.forEach((step, i) => {
    for (const [key, x] of Object.entries(step)) {
      assertAlmostEquals(x, expected[i][key], 2e-3, `step ${i + 1}: ${key}`);
    }
  });
});

forEachDevice("PPO: resumed in the middle is the unbroken run to the bit", async () => {
  const path = `${await Deno.makeTempDir()}/state.safetensors`;
  const unbroken = await start("sampled").steps(5);
  const first = start("sampled");
  const steps = await first.steps(2);
  await first.save(path);
  const second = start("sampled");
  await second.load(path);
  assertEquals([...steps, ...await second.steps(3)], unbroken);
  assert(new Set(unbroken.map((s) => s["objective/scores"])).size > 1, "the answers do differ");
  await Deno.remove(path);
});
