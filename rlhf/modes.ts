/**
 * Passes that are only looked at: without dropout, and without gradients.
 *
 * @module
 */

import { noGrad } from "../core/mod.ts";
import type { Module } from "../nn/mod.ts";

/** Runs `fn` with all of `module` in evaluation mode, and without recording gradients. */
export function evaluating<T>(module: Module, fn: () => T): T {
  const modes = module.modules().map((m) => [m, m.training] as const);
  module.eval();
  try {
    return noGrad(fn);
  } finally {
    for (const [m, training] of modes) m.training = training;
  }
}
