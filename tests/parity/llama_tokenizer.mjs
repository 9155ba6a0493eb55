// Writes llama_tokenizer.json: ids of Llama 2's vocabulary by an independent implementation.
//
//     npm i llama-tokenizer-js@1.2.2 && node llama_tokenizer.mjs
import { writeFileSync } from "node:fs";
// @ts-ignore: installed where this runs, no dependency of the project
import llama from "llama-tokenizer-js";

const texts = [
  "Once upon a time",
  "To be, or not to be: that is the question:\nWhether 'tis nobler in the mind to suffer",
  " leading space,  two  inside,     five, trailing   ",
  "\n\ttabs\tand\r\nline ends\n\n\n",
  "Ünïcödé — “quotes” … 中文字符 日本語 кириллица 𝄞 👩‍👩‍👧‍👦 \u0000\u0001",
  "function f(x) { return x ** 2; } // 3.14159e-10",
  "x",
  "▁ already here",
  "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa                                   b",
];
const golden = texts.map((text) => ({ text, ids: llama.encode(text, false) }));
writeFileSync(
  new URL("llama_tokenizer.json", import.meta.url),
  "[\n" + golden.map((entry) => "  " + JSON.stringify(entry)).join(",\n") + "\n]\n",
);
