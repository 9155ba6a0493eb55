// Stands in for jsr:@std/assert where JSR is out of reach: the same library, as npm carries it.
// @ts-types="./mod.d.ts"
export * from "npm:deno-std@1.4.0/assert/mod.js";
