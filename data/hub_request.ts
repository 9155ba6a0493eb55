/** Requests to the hub: where to, as whom, and what an answer other than the wanted one means. */

import { reasonOf } from "./files.ts";

/** What every request for one model shares. */
export interface HubRequest {
  /** The model's id. */
  readonly id: string;
  /** The branch, tag or commit asked for. */
  readonly revision: string;
  /** The hub's address, without a slash at its end. */
  readonly endpoint: string;
  /** Sent as a bearer token. */
  readonly token: string | undefined;
  /** Ends the request. */
  readonly signal: AbortSignal | undefined;
  /** Seconds after which a connection that brings nothing is taken for broken. */
  readonly timeout: number;
}

const GIVE_TOKEN = "option token, or HF_TOKEN";

/**
 * A `fetch` that throws an error with advice where the hub does not answer, or answers with an
 * error. The hub's library would keep only the status, not the header that tells a gated model from
 * an unknown one.
 *
 * @param onResponse sees each good response before it is returned.
 */
export function hubFetch(
  request: HubRequest,
  onResponse?: (response: Response) => void | Promise<void>,
): typeof fetch {
  return async (input: RequestInfo | URL, init?: RequestInit): Promise<Response> => {
    let response: Response;
    try {
      response = await fetch(input, { ...init, signal: request.signal });
    } catch (error) {
      if (!(error instanceof Stalled)) request.signal?.throwIfAborted();
      throw new Error(
        `load ${request.id}: cannot reach ${request.endpoint} (${reasonOf(error)}): check the ` +
          `network and HF_ENDPOINT; without a network, give the path of a folder that holds the ` +
          `model. What was loaded once is taken from the cache, unless option update asks the hub`,
        { cause: error },
      );
    }
    if (!response.ok) throw await refusal(request, response);
    await onResponse?.(response);
    return response;
  };
}

/** Why a request ended that brought nothing for too long. */
class Stalled extends Error {}

/**
 * Runs something with a request that ends when nothing has come for its `timeout`.
 *
 * @param run is given the request, and what to call when something comes.
 */
export async function unlessStalled<T>(
  request: HubRequest,
  run: (request: HubRequest, onAlive: () => void) => Promise<T>,
): Promise<T> {
  const { signal, timeout } = request;
  const stall = new AbortController();
  const end = (): void => stall.abort(new Stalled(`nothing came for ${timeout} seconds`));
  let timer = setTimeout(end, timeout * 1000);
  const onAlive = (): void => {
    clearTimeout(timer);
    timer = setTimeout(end, timeout * 1000);
  };
  const both = signal === undefined ? stall.signal : AbortSignal.any([signal, stall.signal]);
  try {
    return await run({ ...request, signal: both }, onAlive);
  } finally {
    clearTimeout(timer);
  }
}

/** What an answer with an error means, and what to do about it. */
async function refusal(request: HubRequest, response: Response): Promise<Error> {
  const { id, revision, endpoint, token } = request;
  const { status, headers } = response;
  const code = headers.get("X-Error-Code");
  const said = headers.get("X-Error-Message") ?? await messageOf(response);
  const tail = `(HTTP ${status}${said ? `: ${said}` : ""})`;
  const path = decodeURIComponent(new URL(response.url).pathname);
  const because = (text: string): Error => new Error(`load ${id}: ${text} ${tail}`);
  if (code === "GatedRepo") {
    return because(
      token === undefined
        ? `the model is gated: accept its terms at ${endpoint}/${id}, then give a token of that ` +
          `account (${GIVE_TOKEN})`
        : `the model is gated, and the token's account has no access to it: accept its terms at ` +
          `${endpoint}/${id}, or give another token (${GIVE_TOKEN})`,
    );
  }
  if (code === "RevisionNotFound") {
    return because(`there is no revision "${revision}": give a branch, a tag or a commit of it`);
  }
  if (code === "EntryNotFound") {
    return because(`revision "${revision}" has no ${path}: give another revision`);
  }
  // The hub says 401, not 404, for an unknown id to someone without a token.
  if (code === "RepoNotFound" || status === 404 || (status === 401 && token === undefined)) {
    return because(
      `${endpoint} has no such model, or it is private: check the id (owner/name), or give a ` +
        `token that may read it (${GIVE_TOKEN}); a folder's path has to exist`,
    );
  }
  if (status === 401 || status === 403) {
    return because(
      `${endpoint} refuses the token: give one that is valid and may read the model (${GIVE_TOKEN})`,
    );
  }
  if (status === 429) return because(`${endpoint} has had too many requests: wait, then run again`);
  return because(`${endpoint} failed at ${path}: run again later; what is downloaded is kept`);
}

async function messageOf(response: Response): Promise<string> {
  const text = await response.text().catch(() => "");
  try {
    const { error, message } = JSON.parse(text);
    return String(error ?? message ?? "");
  } catch {
    return text.split("\n")[0].slice(0, 200);
  }
}
