/**
 * Which libraries cannot be ended in order.
 *
 * @module
 */

/**
 * Whether a library, by what it says of itself, may hang in MPI_Finalize when its ranks are on several
 * machines: MPICH before 4.2 over UCX. A rank that waits in the last barrier no longer answers the
 * others, who wait for it to take their connections down
 * (https://github.com/pmodels/mpich/pull/6596).
 */
export function hangsAtTheEnd(version: string): boolean {
  const [, major, minor] = /MPICH Version:\s*(\d+)\.(\d+)/.exec(version) ?? [];
  const old = Number(major) < 4 || (Number(major) === 4 && Number(minor) < 2);
  return old && /ucx/i.test(version);
}
