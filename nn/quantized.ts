/**
 * Weights that are held in packed form.
 *
 * @module
 */

import { fromBytes, QuantizedMatrix, type QuantizedOptions, type Tensor } from "../core/mod.ts";
import type { Node } from "../core/graph.ts";
import { Parameter } from "./module.ts";

/** Options of {@linkcode QuantizedParameter.from}. */
export interface QuantizedParameterOptions extends QuantizedOptions {
  /** Whether the weight is [in, out], as GPT-2's are. Default false: [out, in]. */
  readonly turned?: boolean;
}

/**
 * A frozen weight in 8 or 4 bits, under the same key as the floats it stands for. Layers multiply by its
 * packed form; read as a tensor, saved or copied, it is its floats, and what is loaded or assigned is
 * packed. It has no gradient.
 *
 * @example
 * ```ts
 * import { init, tensor } from "@graft/ml";
 * import { Linear, QuantizedParameter } from "@graft/ml/nn";
 *
 * await init({ device: "cpu" });
 * const layer = new Linear(64, 32);
 * layer.weight = QuantizedParameter.from(layer.weight, { format: "nf4" });
 * const y = layer.forward(tensor(new Float32Array(64), { shape: [1, 64] }));
 * console.log(y.shape, layer.stateDict().get("weight")!.shape); // [1, 32] [32, 64]
 * ```
 */
export class QuantizedParameter extends Parameter<"f32"> {
  /** The packed form, [out, in] */
  readonly matrix: QuantizedMatrix;
  /** Whether the weight is its transpose. */
  readonly turned: boolean;

  /** The weight that `matrix` [out, in] holds. */
  constructor(matrix: QuantizedMatrix, turned = false) {
    super(floats(matrix, turned), { requiresGrad: false, computed: true });
    this.matrix = matrix;
    this.turned = turned;
  }

  /**
   * A packed copy of `weight`.
   *
   * Throws a `RangeError` where its rows hold no whole words of codes.
   */
  static from(weight: Tensor, options: QuantizedParameterOptions = {}): QuantizedParameter {
    const { turned = false } = options;
    const matrix = QuantizedMatrix.from(turned ? weight.transpose() : weight, options);
    return new QuantizedParameter(matrix, turned);
  }

  /**
   * The floats, as a recipe: they are computed where they are used.
   *
   * @internal
   */
  override get node(): Node {
    // The base's constructor runs before the fields are there.
    return this.matrix ? floats(this.matrix, this.turned).node : super.node;
  }

  /** False: codes have no gradient. */
  override get requiresGrad(): boolean {
    return false;
  }
  /** Throws a `TypeError` where it is set to true. */
  override set requiresGrad(value: boolean) {
    if (!value) return;
    throw new TypeError(
      `requiresGrad: ${this.name ?? "the weight"} is held in ${this.matrix.format} and cannot be ` +
        "trained; train adapters beside it, or call dequantize(model) first",
    );
  }

  /** Bytes on the device. */
  get bytes(): number {
    return this.matrix.bytes;
  }

  /**
   * Records that `value`, rounded to the nearest codes, takes its place.
   *
   * Throws a `RangeError` on another shape.
   */
  override assign(value: Tensor<"f32">): this {
    this.matrix.assign(this.turned ? value.transpose() : value);
    return this;
  }

  /** `value` rounded to the nearest codes: what `assign(value)` would make of it, as floats. */
  round(value: Tensor): Tensor<"f32"> {
    const rounded = this.matrix.round(this.turned ? value.transpose() : value);
    return this.turned ? rounded.transpose() : rounded;
  }

  /** Throws a `TypeError`: a slice cannot be packed by itself. */
  override update(): never {
    throw new TypeError(
      `update: ${
        this.name ?? "the weight"
      } is held in ${this.matrix.format}; assign a whole weight`,
    );
  }

  /**
   * Packs host data, row-major, and waits until it is done.
   *
   * Throws a `RangeError`, and changes nothing, where an element is not finite.
   */
  override async write(data: ArrayBufferView): Promise<void> {
    const { buffer, byteOffset } = data;
    const values = new Float32Array(buffer as ArrayBuffer, byteOffset, this.size);
    for (let i = 0; i < values.length; i++) {
      if (Number.isFinite(values[i])) continue;
      throw new RangeError(
        `quantize: element ${i} of ${this.name ?? "the weight"} is ${values[i]}`,
      );
    }
    this.assign(fromBytes(values, this.shape, "f32", this.device));
    await this.device.flush();
  }

  /** As {@linkcode write}: packed whole, not block by block. */
  override async fill(make: (into: Uint8Array, at: number) => void): Promise<void> {
    const bytes = new Uint8Array(4 * this.size);
    make(bytes, 0);
    await this.write(bytes);
  }

  /** Frees the memory now. */
  override dispose(): void {
    this.matrix.dispose();
    super.dispose();
  }
}

function floats(matrix: QuantizedMatrix, turned: boolean): Tensor<"f32"> {
  const value = matrix.dequantize();
  return turned ? value.transpose() : value;
}

/**
 * What a layer does with its weight: x Wᵀ for W [out, in], or, where it is `turned`, x W for W [in, out].
 * From the packed form where that is what holds it.
 */
export function layerProduct(x: Tensor, weight: Tensor, turned = false): Tensor {
  if (weight instanceof QuantizedParameter) return weight.matrix.multiply(x);
  return x.matmul(turned ? weight : weight.transpose());
}
