/**
 * graft: adapting language models where JavaScript runs. This entry is the engine; see also
 * `@graft/ml/nn`, `/peft`, `/optim` and `/data`.
 *
 * @module
 */

export * from "./core/mod.ts";
