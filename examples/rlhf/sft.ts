/**
 * Stage 1: fine-tuning on passages, with a share of general text. Only what follows a prompt is learnt.
 */

import { manualSeed } from "@graft/ml";
import { DataLoader, type DataLoaderState, mix, pack } from "@graft/ml/data";
import { LlamaForCausalLM } from "@graft/ml/nn";
import { AdamW, linearSchedule } from "@graft/ml/optim";
import { inject, mergeAndUnload } from "@graft/ml/peft";
import { sftLoss } from "@graft/ml/rlhf";
import { meanLoss } from "./measure.ts";
import { clippedStep, type Figures, finite, type Host, runSteps } from "./stage.ts";
import { asDocument, ROW, type Texts } from "./texts.ts";

/** Settings of the stage. */
export interface SFTSettings {
  /** Steps of 512 tokens. */
  readonly sftSteps: number;
  /** Decides every random choice. */
  readonly seed: number;
}

/** Fine-tunes the model in `base` with LoRA, and writes the merged model into `folder`. */
export async function fineTune(
  base: string,
  folder: string,
  texts: Texts,
  settings: SFTSettings,
  host: Host,
): Promise<Figures> {
  const { sftSteps: steps, seed } = settings;
  const model = await LlamaForCausalLM.fromPretrained(base);
  const demonstrations = pack(texts.learnt.map(asDocument), ROW, 0, { separate: true });
  const heldOut = pack(texts.heldOut.map(asDocument), ROW, 0, { separate: true });
  // A tenth of general text, as InstructGPT's start for PPO-ptx had it.
  const loader = new DataLoader(mix(demonstrations, texts.general, 0.1, seed), {
    batchSize: 4,
    seed,
  });
  const batches = loader[Symbol.iterator]();
  manualSeed(seed);
  inject(model, { r: 16, lora_alpha: 32, target_modules: "all-linear" });
  const optimizer = new AdamW(model.trainable(), { lr: 1e-3, weightDecay: 0 });
  const schedule = linearSchedule(steps, { warmup: Math.min(5, steps - 1) });
  const losses = async (): Promise<Figures> => ({
    eval_loss: await meanLoss(model, heldOut),
    general_loss: await meanLoss(model, texts.generalHeldOut),
  });
  let before: Figures = {}, after: Figures = {};
  await runSteps<{ loader: DataLoaderState; before: Figures }>({
    name: "SFT",
    folder,
    steps,
    parameters: new Map(model.namedParameters().filter(([, p]) => p.requiresGrad)),
    optimizer,
    begin: async () => before = await losses(),
    async step(number: number): Promise<Figures> {
      model.train();
      const loss = sftLoss(model, batches.next().value!);
      loss.backward();
      optimizer.lr = 1e-3 * schedule(number - 1);
      const grad_norm = await clippedStep(optimizer);
      const figures = await finite({ loss, grad_norm });
      if (number < steps) return figures;
      after = await losses();
      return { ...figures, ...after };
    },
    state: () => ({ loader: loader.state(), before }),
    load: (state) => {
      loader.load(state.loader);
      before = state.before;
    },
  }, host);
  if (after.eval_loss === undefined) after = await losses(); // killed between the last step and here
  await mergeAndUnload(model);
  await model.savePretrained(folder);
  return {
    eval_loss_before: before.eval_loss,
    eval_loss: after.eval_loss,
    general_loss_before: before.general_loss,
    general_loss: after.general_loss,
  };
}
