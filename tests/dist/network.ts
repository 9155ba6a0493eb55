/**
 * Several hosts on one machine: network namespaces, each with an address and a host name of its own,
 * joined by a bridge. Needs Linux, iproute2 and root.
 *
 * @module
 */

import { jobCommand, type JobOptions, type Launcher } from "./launchers.ts";

const decoder = new TextDecoder();
const address = (host: number) => `10.219.7.${host}`;

/** Runs `ip`; throws what it says where it fails. */
async function ip(...args: string[]): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command("ip", { args }).output();
  if (!success) throw new Error(`ip ${args.join(" ")}: ${decoder.decode(stderr).trim()}`);
  return decoder.decode(stdout);
}

/** Hosts 1 to `size`, and the bridge, each in a namespace. */
export class Network {
  readonly size: number;
  readonly #prefix: string;
  readonly #folder: string;

  private constructor(size: number, prefix: string, folder: string) {
    this.size = size;
    this.#prefix = prefix;
    this.#folder = folder;
  }

  /** Makes the hosts. Throws where it may not. */
  static async open(size: number): Promise<Network> {
    const folder = await Deno.makeTempDir();
    const network = new Network(size, `graft${crypto.randomUUID().slice(0, 8)}-`, folder);
    try {
      await network.#make();
    } catch (error) {
      await network.close();
      throw error;
    }
    return network;
  }

  /** Namespace 0 holds the bridge. */
  #space(host: number): string {
    return this.#prefix + host;
  }

  async #make(): Promise<void> {
    for (let host = 0; host <= this.size; host++) {
      await ip("netns", "add", this.#space(host));
      await ip("-n", this.#space(host), "link", "set", "lo", "up");
    }
    await ip("-n", this.#space(0), "link", "add", "bridge", "type", "bridge");
    await ip("-n", this.#space(0), "link", "set", "bridge", "up");
    for (let host = 1; host <= this.size; host++) {
      const [here, there] = [this.#space(host), this.#space(0)];
      const pair = ["type", "veth", "peer", "name", `port${host}`, "netns", there];
      await ip("-n", here, "link", "add", "eth0", ...pair);
      await ip("-n", here, "addr", "add", `${address(host)}/24`, "dev", "eth0");
      await ip("-n", here, "link", "set", "eth0", "up");
      await ip("-n", there, "link", "set", `port${host}`, "master", "bridge", "up");
    }
    // What a launcher calls in place of ssh: [-x] address command...
    const script = `#!/bin/sh
while [ "\${1#-}" != "$1" ]; do shift; done
host="\${1##*.}"; shift
exec ip netns exec "${this.#prefix}$host" unshare --uts sh -c \\
  'hostname "$0"; exec sh -c "$*"' "host$host" "$@"
`;
    await Deno.writeTextFile(`${this.#folder}/reach`, script, { mode: 0o755 });
  }

  /** The command line of a job with one rank on each host; the launcher runs on the first. */
  command(
    launcher: Launcher,
    program: string,
    args: readonly string[] = [],
    options: JobOptions = {},
  ): string[] {
    const reach = `${this.#folder}/reach`;
    const hosts = Array.from({ length: this.size }, (_, i) => address(i + 1)).join(",");
    const variables = Object.entries({ UCX_TLS: "tcp,self", ...options.env });
    const tcp = ["btl_tcp_if_include", "oob_tcp_if_include"].flatMap(
      (name) => ["--mca", name, "10.219.7.0/24"],
    );
    // Each host has one slot, so that the ranks have no memory in common.
    const launcherArgs = launcher.name === "mpich"
      ? ["-launcher", "ssh", "-launcher-exec", reach, "-hosts", hosts]
      : [
        ...["--mca", "plm_rsh_agent", reach, "--mca", "btl", "tcp,self", "--host", hosts],
        ...tcp,
        ...variables.flatMap(([name]) => ["-x", name]),
      ];
    const job = jobCommand(launcher, this.size, program, args, { ...options, launcherArgs });
    const env = variables.map(([name, value]) => `${name}=${value}`);
    const host = ["ip", "netns", "exec", this.#space(1), "unshare", "--uts", "sh", "-c"];
    return [...host, 'hostname host1; exec env "$@"', "sh", ...env, ...job];
  }

  /** Bytes that have left a host. */
  async sent(host: number): Promise<number> {
    const text = await ip("-s", "-j", "-n", this.#space(host), "link", "show", "eth0");
    return JSON.parse(text)[0].stats64.tx.bytes;
  }

  /** Pulls a host's plug. */
  async cut(host: number): Promise<void> {
    await ip("-n", this.#space(0), "link", "set", `port${host}`, "down");
  }

  /** Kills what runs on the hosts. */
  async killAll(): Promise<void> {
    for (let host = 0; host <= this.size; host++) {
      const running = await ip("netns", "pids", this.#space(host)).catch(() => "");
      for (const pid of running.split("\n").filter((line) => line !== "")) {
        try {
          Deno.kill(Number(pid), "SIGKILL");
        } catch {
          // it has just ended
        }
      }
    }
  }

  /** Takes all of it away, with what still runs there. */
  async close(): Promise<void> {
    await this.killAll();
    for (let host = 0; host <= this.size; host++) {
      await ip("netns", "del", this.#space(host)).catch(() => {});
    }
    await Deno.remove(this.#folder, { recursive: true });
  }
}
