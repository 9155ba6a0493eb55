// Stands in for jsr:@std/cli where JSR is out of reach.
export * from "./parse_args.ts";
