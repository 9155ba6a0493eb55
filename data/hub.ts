import { cacheDirectory, fileSystem, reasonOf, writeWhole } from "./files.ts";
import { downloadHubFile, type HubFile, sizeOf } from "./hub_download.ts";
import { hubFetch, type HubRequest, unlessStalled } from "./hub_request.ts";

/** How far a download is. */
export interface HubProgress {
  /** The file that comes now. */
  readonly path: string;
  /** Bytes of all files that are there. */
  readonly loaded: number;
  /** Bytes of all files. */
  readonly total: number;
}

/** What {@linkcode loadModelFolder} does with an id. */
export interface HubOptions {
  /** The branch, tag or commit; `main` by default. */
  readonly revision?: string;
  /** Ask the hub what commit the revision is now, also where one is in the cache. */
  readonly update?: boolean;
  /** Make no request: the model has to be in the cache. By default, if `HF_HUB_OFFLINE` is 1. */
  readonly offline?: boolean;
  /** An access token, which begins with `hf_`; by default `HF_TOKEN`. */
  readonly token?: string;
  /** The hub's address; by default `HF_ENDPOINT`, or `https://huggingface.co`. */
  readonly endpoint?: string;
  /** The cache folder; by default `GRAFT_CACHE`, `XDG_CACHE_HOME/graft` or `~/.cache/graft`. */
  readonly cache?: string;
  /** Is called as bytes arrive. */
  readonly onProgress?: (progress: HubProgress) => void;
  /** Ends the download; what has come is kept for the next call. */
  readonly signal?: AbortSignal;
  /** Seconds after which a connection that brings nothing is taken for broken; 60 by default. */
  readonly timeout?: number;
}

/** What is loaded of a model where it has it, besides its weights. */
const SMALL_FILES = [
  "config.json",
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "chat_template.jinja",
  "adapter_config.json",
];

/**
 * Brings a model of the Hugging Face hub as a folder: config.json, generation_config.json,
 * tokenizer.json, tokenizer_config.json, chat_template.jinja, and the safetensors with their index,
 * whichever it has; of an adapter, adapter_config.json and its weights. The files are kept in the
 * cache, and later calls make no request. A path of a folder is returned as it is.
 *
 * A file is checked against the size and checksum that the hub lists before it gets its name. A
 * download that broke off goes on where it was.
 *
 * @param idOrFolder `owner/name`, or a folder that exists.
 * @returns the folder's path.
 * @throws Error if there is no such model, revision or folder, the model needs a token or has no
 * safetensors, the hub cannot be reached and the cache has not got it, or what came is damaged; the
 * message says what to do.
 *
 * @example
 * ```ts
 * import { loadModelFolder, loadStories15M } from "@graft/ml/data";
 *
 * // loadModelFolder("HuggingFaceTB/SmolLM2-135M", { revision: "main" }) would bring it from the hub.
 * const folder = await loadStories15M();
 * console.assert(await loadModelFolder(folder) === folder);
 * ```
 */
export async function loadModelFolder(
  idOrFolder: string,
  options: HubOptions = {},
): Promise<string> {
  const fs = fileSystem(`load ${idOrFolder}`);
  if (await isFolder(idOrFolder)) return idOrFolder;
  const id = checkId(idOrFolder);
  const revision = options.revision ?? "main";
  const model = `${options.cache ?? cacheDirectory()}/hub/models--${id.replace("/", "--")}`;
  // A revision may hold slashes.
  const reference = `${model}/refs/${encodeURIComponent(revision)}`;
  const known = isCommit(revision) ? revision : await readText(reference);
  if (known !== undefined && !options.update && await isWhole(`${model}/${known}`)) {
    return `${model}/${known}`;
  }
  if (options.offline ?? fs.env.get("HF_HUB_OFFLINE") === "1") {
    throw new Error(
      `load ${id}: revision "${revision}" is not whole in the cache ${model}, and offline no ` +
        `request is made: load it once without offline (HF_HUB_OFFLINE), or give a folder's path`,
    );
  }
  const request = requestOf(id, revision, options);
  const commit = await unlessStalled(request, commitOf);
  const folder = `${model}/${commit}`;
  if (!await isWhole(folder)) await download(request, commit, folder, options.onProgress);
  if (!isCommit(revision)) {
    await fs.mkdir(`${model}/refs`, { recursive: true });
    await writeWhole(reference, new TextEncoder().encode(commit));
  }
  return folder;
}

async function download(
  request: HubRequest,
  commit: string,
  folder: string,
  onProgress?: (progress: HubProgress) => void,
): Promise<void> {
  const fs = fileSystem(`load ${request.id}`);
  const listed = await unlessStalled(request, (request) => list(request, commit));
  const loaded = new Map<string, number>();
  const bring = async (files: HubFile[], total: number): Promise<void> => {
    for (const file of files) {
      const { path, size } = file;
      const told = (count: number): void => {
        loaded.set(path, count);
        const sum = loaded.values().reduce((a, b) => a + b, 0);
        onProgress?.({ path, loaded: sum, total });
      };
      const there = await sizeOf(`${folder}/${path}`);
      if (there === size) {
        told(size);
        continue;
      }
      // Somebody cut or changed it since.
      if (there !== undefined) await fs.remove(`${folder}/${path}`);
      await downloadHubFile(request, commit, file, folder, told);
    }
  };
  try {
    await fs.mkdir(folder, { recursive: true });
  } catch (error) {
    throw new Error(`load ${request.id}: cannot write to the cache ${folder}: ${reasonOf(error)}`, {
      cause: error,
    });
  }
  const small = SMALL_FILES.flatMap((path) => listed.get(path) ?? []);
  // The index says which parts there are, so it comes before the sum of bytes is known.
  const index = weightIndex(request, listed);
  if (index !== undefined) await bring([index], index.size);
  const weights = await weightsOf(request, listed, index, folder);
  const all = [...small, ...(index === undefined ? [] : [index]), ...weights];
  await bring(all, all.reduce((sum, { size }) => sum + size, 0));
  // Written last: a folder without it is not whole.
  const sizes = Object.fromEntries(all.map(({ path, size }) => [path, size]));
  await writeWhole(`${folder}.json`, new TextEncoder().encode(JSON.stringify(sizes)));
}

/** True if everything that was to be loaded of a commit is there, with its size. */
async function isWhole(folder: string): Promise<boolean> {
  const text = await readText(`${folder}.json`);
  if (text === undefined) return false;
  let sizes: Record<string, number>;
  try {
    sizes = JSON.parse(text);
  } catch {
    return false;
  }
  for (const [path, size] of Object.entries(sizes)) {
    if (await sizeOf(`${folder}/${path}`) !== size) return false;
  }
  return true;
}

/** The files at the top of a commit. */
async function list(request: HubRequest, commit: string): Promise<Map<string, HubFile>> {
  const { listFiles } = await import("@huggingface/hub");
  const files = new Map<string, HubFile>();
  const entries = listFiles({
    repo: request.id,
    revision: commit,
    hubUrl: request.endpoint,
    accessToken: request.token,
    fetch: hubFetch(request),
  });
  for await (const { type, path, size, oid, lfs } of entries) {
    const checksum = lfs?.oid ?? oid ?? "";
    // The names become paths here, so nothing but a plain name or a plain checksum goes on.
    if (type !== "file" || !/^[\w.-]+$/.test(path)) continue;
    if (!/^([0-9a-f]{40}|[0-9a-f]{64})$/.test(checksum)) {
      throw new Error(`load ${request.id}: ${request.endpoint} lists ${path} without a checksum`);
    }
    files.set(path, { path, size: lfs?.size ?? size, checksum });
  }
  if (!files.has("config.json") && !files.has("adapter_config.json")) {
    throw new Error(
      `load ${request.id}: revision "${request.revision}" has no config.json, nor an ` +
        `adapter_config.json: it is no model in the Hugging Face layout; give another id or revision`,
    );
  }
  return files;
}

/** The index of weights in parts, where they are not in one file. */
function weightIndex(request: HubRequest, listed: Map<string, HubFile>): HubFile | undefined {
  if (listed.has("model.safetensors") || listed.has("adapter_model.safetensors")) return undefined;
  const index = listed.get("model.safetensors.index.json");
  if (index !== undefined) return index;
  const others = [...listed.keys()].filter((path) => /\.(bin|pt|pth|h5|gguf|msgpack)$/.test(path));
  throw new Error(
    `load ${request.id}: revision "${request.revision}" has no model.safetensors and no ` +
      `model.safetensors.index.json${others.length ? `, only ${others.join(", ")}` : ""}: give a ` +
      `revision with safetensors, or convert it (save_pretrained) and give the folder`,
  );
}

/** The safetensors to load: others may be the same weights in another form. */
async function weightsOf(
  request: HubRequest,
  listed: Map<string, HubFile>,
  index: HubFile | undefined,
  folder: string,
): Promise<HubFile[]> {
  if (index === undefined) {
    return ["model.safetensors", "adapter_model.safetensors"].flatMap((path) =>
      listed.get(path) ?? []
    );
  }
  let parts: string[];
  try {
    const { weight_map } = JSON.parse(await readText(`${folder}/${index.path}`) ?? "");
    parts = [...new Set(Object.values(weight_map) as string[])].sort();
  } catch (error) {
    throw new Error(`load ${request.id}: ${index.path} is not an index: ${reasonOf(error)}`, {
      cause: error,
    });
  }
  return parts.map((path) => {
    const part = listed.get(path);
    if (part === undefined) {
      throw new Error(
        `load ${request.id}: ${index.path} names ${path}, which revision "${request.revision}" ` +
          `does not have: give another revision, or tell the model's owner`,
      );
    }
    return part;
  });
}

/** The commit that the revision is now. */
async function commitOf(request: HubRequest): Promise<string> {
  const { modelInfo } = await import("@huggingface/hub");
  const { sha } = await modelInfo({
    name: request.id,
    revision: request.revision,
    additionalFields: ["sha"],
    hubUrl: request.endpoint,
    accessToken: request.token,
    fetch: hubFetch(request),
  });
  if (!isCommit(sha)) {
    throw new Error(`load ${request.id}: ${request.endpoint} gives "${sha}" for a commit`);
  }
  return sha;
}

function requestOf(id: string, revision: string, options: HubOptions): HubRequest {
  const { env } = fileSystem(`load ${id}`);
  const token = (options.token ?? env.get("HF_TOKEN"))?.trim() || undefined;
  if (token !== undefined && !token.startsWith("hf_")) {
    const from = options.token === undefined ? "HF_TOKEN" : "the option token";
    throw new Error(`load ${id}: ${from} needs an access token, which begins with "hf_"`);
  }
  const endpoint = options.endpoint || env.get("HF_ENDPOINT") || "https://huggingface.co";
  if (!URL.canParse(endpoint)) {
    throw new Error(
      `load ${id}: "${endpoint}" (option endpoint, or HF_ENDPOINT) is not an address, such as ` +
        `https://huggingface.co`,
    );
  }
  const { signal, timeout = 60 } = options;
  if (!(timeout > 0 && timeout < 1e6)) {
    throw new RangeError(`load ${id}: timeout needs seconds, got ${timeout}`);
  }
  return { id, revision, endpoint: endpoint.replace(/\/+$/, ""), token, signal, timeout };
}

function checkId(id: string): string {
  const isId = /^([\w.-]+\/)?[\w.-]+$/.test(id) && !/\.\.|--|(^|\/)[.-]|[.-]($|\/)/.test(id);
  if (!isId) {
    throw new Error(
      `load ${id}: there is no such folder, and it is no id of the hub, which is owner/name: ` +
        `check the path`,
    );
  }
  return id;
}

function isCommit(revision: string): boolean {
  return /^[0-9a-f]{40}$/.test(revision);
}

async function isFolder(path: string): Promise<boolean> {
  try {
    return (await fileSystem("look for a folder").stat(path)).isDirectory;
  } catch {
    return false;
  }
}

async function readText(path: string): Promise<string | undefined> {
  try {
    return new TextDecoder().decode(await fileSystem("read").readFile(path));
  } catch {
    return undefined;
  }
}
