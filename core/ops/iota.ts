import { currentDevice, type Device } from "../device.ts";
import type { DType } from "../dtype.ts";
import { Node } from "../graph.ts";
import { defineOp, type IotaOp } from "../op.ts";
import type { Shape } from "../shape.ts";
import { Tensor } from "../tensor.ts";

const op: IotaOp = defineOp<IotaOp>({ kind: "iota", name: "iota", gradient: null, samples: [] });

/** The index along dimension `dim`, at each place of `shape`. It takes no memory. */
export function iota(
  shape: Shape,
  dim: number,
  dtype: DType = "i32",
  device: Device = currentDevice(),
): Tensor {
  return new Tensor(new Node(op, [], { shape, dtype }, { dim }, device, false, null, null));
}
