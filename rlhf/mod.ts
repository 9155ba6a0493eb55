/**
 * Learning from demonstrations, preferences and rewards: losses and their parts, over a model and a
 * batch, for loops of your own.
 *
 * @module
 */

export { checkScores } from "./scores.ts";
