/** SFT, reward model, DPO and GRPO go the same way on cpu and webgpu, and broken off as unbroken. */

import { assert, assertEquals } from "@std/assert";
import {
  defaultGenerator,
  type Device,
  Generator,
  init,
  manualSeed,
  type Tensor,
  useDevice,
} from "@graft/ml";
import { DataLoader, mix, pack } from "@graft/ml/data";
import { LlamaForCausalLM, LlamaForSequenceClassification, type Module } from "@graft/ml/nn";
import { AdamW, clipGradNorm, loadCheckpoint, saveCheckpoint } from "@graft/ml/optim";
import { inject } from "@graft/ml/peft";
import {
  type Answer,
  dpoLoss,
  groupAdvantages,
  grpoLoss,
  measureAnswers,
  rankingLoss,
  RewardModel,
  sampleAnswers,
  sftLoss,
} from "@graft/ml/rlhf";
import { forEachDevice } from "../devices.ts";

const CONFIG = {
  vocab_size: 33,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  max_position_embeddings: 32,
  initializer_range: 0.3,
  eos_token_id: 2,
};
const LORA = { r: 4, lora_dropout: 0.1, target_modules: ["q_proj", "v_proj"] };
const ROOM = { total: 16, answer: 6 };

/** What a stage trains, and what it does in a step; the state is what a checkpoint holds of it. */
interface Stage {
  readonly model: Module;
  step(number: number): Promise<Tensor>;
  state(): unknown;
  load(state: unknown): void;
}

const stateless = { state: (): unknown => null, load: (): void => {} };

function policy(): LlamaForCausalLM {
  return inject(new LlamaForCausalLM(CONFIG), LORA);
}

/** An answer of up to six tokens, with an end or without. */
function answer(seed: number): number[] {
  const length = 1 + seed % 6;
  const tokens = Array.from({ length }, (_, t) => 3 + (seed * 7 + t * 11) % 30);
  if (seed % 2 === 0) tokens[length - 1] = 2;
  return tokens;
}

const STAGES: Readonly<Record<string, (sampled: boolean) => Stage>> = {
  SFT: () => {
    const model = policy();
    const documents = Array.from({ length: 40 }, (_, i) => ({
      ids: Int32Array.from([1, ...answer(i), ...answer(i + 9), 2]),
      promptLength: 2 + i % 2,
    }));
    const general = { ids: Int32Array.from({ length: 200 }, (_, i) => i % 33), promptLength: 1 };
    const loader = new DataLoader(
      mix(pack(documents, 16, 0, { separate: true }), pack([general], 16), 0.2),
      { batchSize: 4, seed: 2 },
    );
    return {
      model,
      step: () => Promise.resolve(sftLoss(model, loader[Symbol.iterator]().next().value)),
      state: () => loader.state(),
      load: (state) => loader.load(state as ReturnType<typeof loader.state>),
    };
  },
  "reward model": () => {
    const config = { ...CONFIG, num_labels: 1 };
    const classifier = new LlamaForSequenceClassification(config);
    const model = new RewardModel(inject(classifier, { ...LORA, task_type: "SEQ_CLS" }));
    const group = (seed: number) => ({
      prompt: [1, 4],
      answers: [0, 1, 2, 3].map((k) => answer(seed * 5 + k)),
      ranks: [seed % 3, 1, 0, 2], // with a tie now and then
    });
    return {
      model,
      step: (n) =>
        Promise.resolve(rankingLoss(model, [group(n), group(n + 50)], { width: 16 }).loss),
      ...stateless,
    };
  },
  DPO: () => {
    const model = policy();
    const pair = (seed: number) => ({
      prompt: [1, 4 + seed % 5],
      chosen: answer(seed),
      rejected: answer(seed + 3),
    });
    return {
      model,
      step: (n) => Promise.resolve(dpoLoss(model, [pair(n), pair(n + 20)], { room: ROOM }).loss),
      ...stateless,
    };
  },
  GRPO: (sampled) => {
    const model = policy();
    const sampling = new Generator(1);
    return {
      model,
      step: async (n) => {
        const prompts = [0, 0, 1, 1].map((p) => [1, 4 + p]);
        const given = prompts.map((prompt, i): Answer => ({
          prompt,
          tokens: answer(n * 4 + i),
          ended: (n * 4 + i) % 2 === 0,
        }));
        // Where it samples, rounding could decide a token: across devices answers are given.
        const answers = sampled
          ? await sampleAnswers(model, prompts, { maxTokens: 6, generator: sampling })
          : given;
        const scores = answers.map(({ tokens }) => tokens.reduce((a, b) => a + b) % 17);
        const advantages = groupAdvantages(scores, 2);
        const rows = await measureAnswers(model, answers, { room: ROOM });
        return grpoLoss(
          model,
          rows.map((row, i) => ({ ...row, advantage: advantages[i] })),
          { beta: 0.1, room: ROOM },
        ).loss;
      },
      state: () => sampling.state(),
      load: (state) => sampling.load(state as ReturnType<typeof sampling.state>),
    };
  },
};

interface Run {
  steps(count: number): Promise<number[]>;
  save(path: string): Promise<void>;
  load(path: string): Promise<void>;
}

function start(name: string, sampled = false): Run {
  manualSeed(7);
  const stage = STAGES[name](sampled);
  const parameters = new Map(stage.model.namedParameters().filter(([, p]) => p.requiresGrad));
  const optimizer = new AdamW(stage.model.trainable(), { lr: 0.02 });
  let taken = 0;
  return {
    async steps(count): Promise<number[]> {
      const values: number[] = [];
      for (let i = 0; i < count; i++) {
        const loss = await stage.step(taken++);
        loss.backward();
        clipGradNorm(optimizer.parameters, 1);
        await optimizer.step();
        optimizer.zeroGrad();
        values.push(await loss.item());
      }
      return values;
    },
    save: (path) =>
      saveCheckpoint(path, { parameters, optimizer }, {
        taken,
        stage: stage.state(),
        generator: defaultGenerator().state(),
      }),
    async load(path): Promise<void> {
      const at = await loadCheckpoint(path, { parameters, optimizer }) as {
        taken: number;
        stage: unknown;
        generator: { seed: number; counter: number };
      };
      taken = at.taken;
      stage.load(at.stage);
      defaultGenerator().load(at.generator);
    },
  };
}

// One test a device, so that the stages share what is compiled.
forEachDevice(
  "rlhf: stages go the same way on every device, and on from a checkpoint",
  async (device, t) => {
    for (const name of Object.keys(STAGES)) {
      await t.step(name, async () => {
        const run = start(name);
        const values = await run.steps(2);
        const { buffers, pipelines, bindings } = device.counters;
        values.push(...await run.steps(4));
        const { counters } = device;
        assertEquals(
          [counters.buffers, counters.pipelines, counters.bindings],
          [buffers, pipelines, bindings],
          "from step 3 on, nothing new is made on the device",
        );
        assert(new Set(values).size > 3, `it moves: ${values}`);
        if (device.name !== "cpu") await likeCpu(name, values, device);
        await resumes(name);
      });
    }
  },
);

async function likeCpu(name: string, values: readonly number[], device: Device): Promise<void> {
  const cpu = await init({ device: "cpu" });
  const expected = await start(name).steps(values.length);
  await cpu.close();
  values.forEach((value, i) => {
    const difference = Math.abs(value - expected[i]);
    assert(difference < 1e-3, `step ${i + 1}: ${value}, on cpu ${expected[i]}`);
  });
  useDevice(device);
}

async function resumes(name: string): Promise<void> {
  const path = `${await Deno.makeTempDir()}/state.safetensors`;
  const unbroken = await start(name, true).steps(5);
  const first = start(name, true);
  const values = await first.steps(2);
  await first.save(path);
  const second = start(name, true);
  await second.load(path);
  assertEquals([...values, ...await second.steps(3)], unbroken);
  await Deno.remove(path);
}
