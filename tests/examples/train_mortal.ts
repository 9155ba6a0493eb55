/** The main job as a rank, of which rank 1 dies after its first checkpoint, unless it was resumed. */

import { initProcessGroup } from "@graft/ml/dist";
import { Progress } from "../../examples/log.ts";
import { FLAGS, readFlags, resumed, settingsOf } from "../../examples/settings.ts";
import { train } from "../../examples/train.ts";

const { given, on } = await readFlags(Deno.args, FLAGS, ["resume"]);
const isResumed = on.has("resume");
const group = await initProcessGroup();
await train(isResumed ? await resumed(given) : settingsOf(given), {
  group,
  log: new Progress(true),
  onEvaluation(step): void {
    if (step === 3 && group.rank === 1 && !isResumed) Deno.kill(Deno.pid, "SIGKILL");
  },
});
await group.close();
Deno.exit(0);
