/**
 * The soft prompts of a model, by name.
 *
 * @module
 */

import { type Module, type PromptHost, type PromptPass, SoftPrompt } from "../../nn/mod.ts";
import type { PromptAdapter } from "./adapter.ts";

/** The soft prompts of a model; what stands in its field `prompt`. */
export class PromptAdapters extends SoftPrompt {
  /** Attached prompts by name. */
  readonly adapters: Map<string, PromptAdapter> = new Map();
  #active: readonly string[] = [];

  /** The name of the one that takes part, or nothing. */
  get active(): readonly string[] {
    return this.#active;
  }
  /** Throws an `Error` on more than one name: prompts do not add up. */
  set active(names: readonly string[]) {
    if (names.length > 1) {
      throw new Error(
        `setActive: one soft prompt can be active at a time, got ${names.join(", ")}`,
      );
    }
    this.#active = names;
  }

  get #current(): PromptAdapter | undefined {
    return this.adapters.get(this.#active[0]);
  }

  /** Virtual tokens of the active prompt; 0 where none is. */
  override get length(): number {
    return this.#current?.config.num_virtual_tokens ?? 0;
  }

  /** What goes before the tokens, or null where no prompt is active. */
  override pass(): PromptPass | null {
    return this.#current?.pass() ?? null;
  }
}

/** The soft prompts of a model, or null. */
export function promptsOf(model: Module): PromptAdapters | null {
  const { prompt } = model as Partial<PromptHost>;
  return prompt instanceof PromptAdapters ? prompt : null;
}

/** Takes all soft prompts away. */
export function removePrompts(model: Module): void {
  if (promptsOf(model)) (model as Partial<PromptHost>).prompt = null;
}
