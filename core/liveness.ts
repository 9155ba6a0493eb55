/**
 * Buffers by liveness: values whose lifetimes do not overlap share one slot.
 *
 * @module
 */

/** A value of `bytes` that is live from step `first` to step `last`, both included. */
export interface Interval {
  readonly bytes: number;
  readonly first: number;
  readonly last: number;
}

/** The assignment: a slot for each interval, and each slot's size. */
export interface Slots {
  readonly slotOf: readonly number[];
  readonly bytes: readonly number[];
}

/**
 * Assigns slots greedily, largest value first, to the smallest slot that is free all through its
 * lifetime: the scheme that Pisarchyk and Lee (2020, "Efficient memory management for deep neural net
 * inference", section 4.2) call greedy by size.
 */
export function assignSlots(intervals: readonly Interval[]): Slots {
  const order = intervals.map((_, i) => i).sort((a, b) =>
    intervals[b].bytes - intervals[a].bytes || intervals[a].first - intervals[b].first
  );
  const slotOf = new Array<number>(intervals.length).fill(-1);
  const bytes: number[] = [];
  const members: Interval[][] = [];
  for (const i of order) {
    const { first, last } = intervals[i];
    // Slots come in descending size, so the last that fits is the smallest.
    let chosen = -1;
    for (let s = bytes.length - 1; s >= 0 && chosen < 0; s--) {
      if (members[s].every((m) => m.last < first || last < m.first)) chosen = s;
    }
    if (chosen < 0) {
      chosen = bytes.length;
      bytes.push(intervals[i].bytes);
      members.push([]);
    }
    members[chosen].push(intervals[i]);
    slotOf[i] = chosen;
  }
  return { slotOf, bytes };
}
