/**
 * Learning from demonstrations, preferences and rewards: losses and their parts, over a model and a
 * batch, for loops of your own.
 *
 * @module
 */

export { checkScores } from "./scores.ts";
export {
  type AdvantageOptions,
  generalizedAdvantages,
  type PerToken,
  tokenRewards,
  whiten,
} from "./advantages.ts";
export { type Answer, type AnswerBatch, answerBatch, type AnswerRoom } from "./answers.ts";
export {
  type Experience,
  type ExperienceOptions,
  gatherExperience,
  type JobRanks,
  klOf,
  makeExperience,
  type ObjectiveMetrics,
} from "./experience.ts";
export {
  AdaptiveKL,
  type AdaptiveKLOptions,
  FixedKL,
  type KLController,
  type KLState,
} from "./kl.ts";
export { type PolicyPass, policyPass, type PolicyPassOptions, TEMPERATURE } from "./policy_pass.ts";
export {
  minibatches,
  type PPOBatch,
  ppoBatch,
  type PPOLoss,
  ppoLoss,
  type PPOMetrics,
  ppoMetrics,
  type PPOOptions,
} from "./ppo.ts";
export {
  type ClipOptions,
  type PolicyLoss,
  policyLoss,
  type PolicyLossInputs,
  type ValueLoss,
  valueLoss,
  type ValueLossInputs,
} from "./ppo_losses.ts";
export { accumulatePtx, type LanguageModel } from "./ptx.ts";
export {
  measureAnswers,
  type MeasureOptions,
  type Reward,
  type Rollout,
  sampleAnswers,
  type SampleOptions,
} from "./rollout.ts";
export { type Backbone, ValueModel, type ValueModelOptions } from "./value_model.ts";
export { type BestOfN, bestOfN, type BestOfNOptions } from "./best_of_n.ts";
export { type DPOLoss, dpoLoss, type DPOOptions, type PreferencePair } from "./dpo.ts";
export {
  groupAdvantages,
  type GroupOptions,
  type GRPOLoss,
  grpoLoss,
  type GRPOOptions,
  type GRPORow,
} from "./grpo.ts";
export {
  type RankedAnswers,
  type RankingLoss,
  rankingLoss,
  type RankingOptions,
} from "./ranking_loss.ts";
export {
  type RewardBackbone,
  RewardModel,
  type RewardModelOptions,
  type ScoringOptions,
} from "./reward_model.ts";
export { sftLoss, type SFTOptions } from "./sft.ts";
export { type AnswersToRank, readRankings } from "./rankings.ts";
