/** Label maps and regions as pictures. */

import type { Color, ImageData_, Index, Tokens, Values } from "./data";

export const LAYERS = [
  ["image", "Image"],
  ["labels", "Labels"],
  ["components", "Components"],
  ["instances", "Instances"],
  ["prediction", "Prediction"],
  ["errors", "Errors"],
] as const;

export type Layer = (typeof LAYERS)[number][0];

/** A map of numbers, 0 for none, with the name and the colour of each number less one. */
export interface LabelMap {
  values: Values;
  names: string[];
  colors: readonly (readonly number[])[];
}

export function classColors(index: Index, choice: string): Color[] {
  return choice === "dataset" ? index.colors.dataset : index.colors.safe;
}

/** The map of a layer, or null where the image has none. */
export function layerMap(
  layer: string,
  index: Index,
  image: ImageData_,
  model: number,
  colors: Color[],
): LabelMap | null {
  const of = (map: { map: Values; names: string[] } | null) =>
    map && {
      values: map.map,
      names: map.names,
      colors: map.names.map((_, number) => index.segments[number % index.segments.length]),
    };
  const classes = (values: Values | null) => values && { values, names: index.classes, colors };
  switch (layer) {
    case "labels":
      return classes(image.labels);
    case "components":
      return of(image.models[model].components);
    case "instances":
      return of(image.instances);
    case "prediction":
      return classes(image.models[model].prediction);
    case "errors":
      return image.labels && classes(image.models[model].prediction);
    default:
      return null;
  }
}

export function valueAt(values: Values, x: number, y: number): number {
  const [height, width] = values.shape;
  const row = Math.min(height - 1, Math.max(0, Math.floor(y * height)));
  const column = Math.min(width - 1, Math.max(0, Math.floor(x * width)));
  return values.data[row * width + column];
}

/**
 * Draw a label map: colours over the image with light borders, or only the borders. Of the errors,
 * wrong pixels show what is predicted, and the others are dark.
 */
export function drawMap(
  canvas: HTMLCanvasElement,
  map: LabelMap | null,
  options: { labels: Values | null; only: string; bordersOnly: boolean },
): void {
  if (!map) {
    canvas.width = canvas.height = 0;
    return;
  }
  const [height, width] = map.values.shape;
  const values = map.values.data;
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d")!;
  const picture = context.createImageData(width, height);
  const pixels = new Uint32Array(picture.data.buffer);
  const word = (color: readonly number[], alpha: number) =>
    ((alpha << 24) | (color[2] << 16) | (color[1] << 8) | color[0]) >>> 0;
  const dark = word([16, 16, 16], 170);
  const only = options.only === "" ? -1 : Number(options.only);
  // Number 0 is no label.
  const words = new Uint32Array([
    options.bordersOnly ? 0 : dark,
    ...map.colors.map((color, number) => {
      if (options.bordersOnly) return 0;
      return only >= 0 && only !== number ? dark : word(color, 165);
    }),
  ]);
  const border = word([255, 255, 255], 230);
  const labels = options.labels?.data;
  for (let row = 0, at = 0; row < height; row++) {
    for (let column = 0; column < width; column++, at++) {
      const value = values[at];
      const differs =
        (column + 1 < width && values[at + 1] !== value) ||
        (row + 1 < height && values[at + width] !== value);
      let color = differs ? border : words[value];
      if (labels) {
        if (labels[at] === 0) color = 0;
        else if (labels[at] === value) color = dark;
        else color = words[value];
      }
      pixels[at] = color;
    }
  }
  context.putImageData(picture, 0, 0);
}

/** Draw a region, one pixel per cell; it is as opaque as it is high, relative to one or its peak. */
export function drawHeat(
  canvas: HTMLCanvasElement,
  tokens: Tokens,
  token: number,
  heat: Values,
  toPeak = false,
): void {
  const [, rows, columns] = tokens.regions.shape;
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d")!;
  const picture = context.createImageData(columns, rows);
  const start = token * rows * columns;
  const region = tokens.regions.data.subarray(start, start + rows * columns);
  const factor = toPeak ? 255 / Math.max(1, ...region) : 1;
  for (let cell = 0; cell < rows * columns; cell++) {
    const value = Math.round(factor * region[cell]);
    for (let channel = 0; channel < 3; channel++)
      picture.data[4 * cell + channel] = heat.data[3 * value + channel];
    picture.data[4 * cell + 3] = Math.round(0.8 * 255 * Math.sqrt(value / 255));
  }
  context.putImageData(picture, 0, 0);
}

/** Lay the cells of a feature map over the image: they may reach beyond it. */
export function placeCells(canvas: HTMLElement, tokens: Tokens): void {
  const [, rows, columns] = tokens.regions.shape;
  canvas.style.width = `${(100 * columns * tokens.stride) / tokens.input[1]}%`;
  canvas.style.height = `${(100 * rows * tokens.stride) / tokens.input[0]}%`;
}

/** The centroid of a token in shares of the image, from cells counted from 1. */
export function centroidOf(tokens: Tokens, token: number): [number, number] {
  const [x, y] = tokens.centroids.data.subarray(2 * token, 2 * token + 2);
  const share = (place: number, length: number) => ((place - 0.5) * tokens.cell) / length;
  return [share(x, tokens.input[1]), share(y, tokens.input[0])];
}

/** Draw a part of an image, (left, top, right, bottom) in shares, with a margin; and a region. */
export async function drawCrop(
  canvas: HTMLCanvasElement,
  picture: HTMLImageElement,
  box: ArrayLike<number>,
  region: { tokens: Tokens; token: number; heat: Values } | null,
): Promise<void> {
  await picture.decode();
  const { naturalWidth: width, naturalHeight: height } = picture;
  const ratio = canvas.width / canvas.height;
  let w = Math.max(0.25 * width, 1.6 * (box[2] - box[0]) * width);
  let h = Math.max(0.25 * height, 1.6 * (box[3] - box[1]) * height);
  if (w < ratio * h) w = ratio * h;
  else h = w / ratio;
  // No more than the image has along the longer side.
  const shrink = Math.min(1, Math.max(width / w, height / h));
  w *= shrink;
  h *= shrink;
  const place = (low: number, high: number, size: number, length: number) =>
    size >= length
      ? (length - size) / 2
      : Math.min(length - size, Math.max(0, ((low + high) / 2) * length - size / 2));
  const x = place(box[0], box[2], w, width);
  const y = place(box[1], box[3], h, height);
  const scale = canvas.width / w;
  const context = canvas.getContext("2d")!;
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.setTransform(scale, 0, 0, scale, -x * scale, -y * scale);
  context.filter = region ? "grayscale(1)" : "none";
  context.drawImage(picture, 0, 0);
  context.filter = "none";
  if (region) {
    const cells = document.createElement("canvas");
    drawHeat(cells, region.tokens, region.token, region.heat);
    const [, rows, columns] = region.tokens.regions.shape;
    const [inputHeight, inputWidth] = region.tokens.input;
    context.beginPath();
    context.rect(0, 0, width, height);
    context.clip();
    const cellWidth = (region.tokens.stride * width) / inputWidth;
    const cellHeight = (region.tokens.stride * height) / inputHeight;
    context.drawImage(cells, 0, 0, columns * cellWidth, rows * cellHeight);
  }
  context.setTransform(1, 0, 0, 1, 0, 0);
}
