/** What the scripts in data/ hold, and how it is loaded and unpacked. */

export interface Packed {
  type: "u1" | "u2" | "i2" | "f4";
  shape: number[];
  data: string;
}

export interface Values {
  shape: number[];
  data: Uint8Array | Uint16Array | Int16Array | Float32Array;
}

/** In T, every packed array has become its values. */
type Unpacked<T> = T extends Packed
  ? Values
  : T extends object
    ? { [Key in keyof T]: Unpacked<T[Key]> }
    : T;

export type Kind = "tokens" | "queries";
export type Color = [number, number, number];

interface PackedConcepts {
  count: number;
  mass: Packed;
  peak: Packed;
  semantics: Packed;
  active: Packed;
  matched: Packed;
  /** For each concept pairs of a class and its share, the largest first. */
  classes: [number, number][][];
  best: Packed;
  boxes: Packed;
}

export interface Figures {
  accuracy: number | null;
  miou: number | null;
  /** Class, intersection and union in pixels. */
  iou: [number, number, number][];
  kinds: Partial<Record<Kind, Record<string, number | null>>>;
}

export interface ImageEntry {
  name: string;
  size: [number, number];
  models: Figures[];
  /** Two models, and the share of the pixels where they differ. */
  differ: [number, number, number][];
}

interface PackedIndex {
  title: string;
  classes: string[];
  colors: { safe: Color[]; dataset: Color[] };
  segments: Color[];
  heat: Packed;
  models: { name: string; kinds: Partial<Record<Kind, PackedConcepts>> }[];
  images: ImageEntry[];
}

interface PackedHistograms {
  labels: number[];
  values: Packed;
  semantics: Packed;
  diversity: Packed;
  share: Packed;
  S: number | null;
  D: number | null;
}

interface PackedPartners {
  tokens: Packed;
  weights: Packed;
}

interface PackedTokens {
  stride: number;
  /** Pixels of the input along a cell in which centroids are counted. */
  cell: number;
  input: [number, number];
  /** In the files, only those of the tokens that the image uses most, if there are coarse ones. */
  regions: Packed;
  coarse: { tokens: Packed; factor: number; regions: Packed } | null;
  mass: Packed;
  peak: Packed;
  centroids: Packed;
  components: Packed | null;
  /** IoU of a region and its component. */
  overlaps: Packed | null;
  classes: PackedHistograms | null;
  instances: PackedHistograms | null;
  attention: { tokens: Packed; to: PackedPartners; from: PackedPartners } | null;
}

interface PackedSegments {
  map: Packed;
  names: string[];
}

interface PackedImage {
  labels: Packed | null;
  instances: PackedSegments | null;
  models: {
    prediction: Packed | null;
    components: (PackedSegments & { classes: number[] }) | null;
    kinds: Partial<Record<Kind, PackedTokens>>;
  }[];
}

export type Index = Unpacked<PackedIndex>;
export type Concepts = Unpacked<PackedConcepts>;
export type Tokens = Unpacked<PackedTokens>;
export type Histograms = Unpacked<PackedHistograms>;
export type ImageData_ = Unpacked<PackedImage>;

const ARRAYS = { u1: Uint8Array, u2: Uint16Array, i2: Int16Array, f4: Float32Array };

async function unpackArray(packed: Packed): Promise<Values> {
  const bytes = Uint8Array.from(atob(packed.data), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return {
    shape: packed.shape,
    data: new ARRAYS[packed.type](await new Response(stream).arrayBuffer()),
  };
}

async function unpack<T>(content: T): Promise<Unpacked<T>> {
  const pending: Promise<void>[] = [];
  const walk = (node: unknown): unknown => {
    if (node === null || typeof node !== "object") return node;
    if (Array.isArray(node)) return typeof node[0] === "object" ? node.map(walk) : node;
    const copy: Record<string, unknown> = {};
    for (const [key, value] of Object.entries(node)) {
      if (value !== null && typeof value === "object" && "type" in value && "data" in value) {
        pending.push(unpackArray(value as Packed).then((values) => void (copy[key] = values)));
      } else {
        copy[key] = walk(value);
      }
    }
    return copy;
  };
  const result = walk(content);
  await Promise.all(pending);
  return result as Unpacked<T>;
}

type Receivers = {
  explorerIndex?: (content: PackedIndex | null) => void;
  explorerImage?: (number: number, content: PackedImage) => void;
};
const receivers = window as unknown as Receivers;

/** Run a script beside the page, which calls one of the functions above. */
function run(path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = path;
    script.onload = () => (script.remove(), resolve());
    script.onerror = () => (script.remove(), reject(new Error(`${path} cannot be read`)));
    document.head.append(script);
  });
}

export async function loadIndex(): Promise<Index> {
  let received: PackedIndex | null = null;
  receivers.explorerIndex = (content) => (received = content);
  await run("data/index.js");
  if (!received) throw new Error("this explorer was not written to its end: make it again");
  return unpack<PackedIndex>(received);
}

export const fileNumber = (image: number) => String(image).padStart(5, "0");

/** Lay coarse regions among the others, as regions with the same cells. */
function joined(image: ImageData_): ImageData_ {
  for (const tokens of image.models.flatMap(({ kinds }) => Object.values(kinds))) {
    const { regions, coarse } = tokens;
    if (!coarse) continue;
    const [fine, rows, columns] = regions.shape;
    const [few, coarseRows, coarseColumns] = coarse.regions.shape;
    const cells = rows * columns;
    const cellOf = Uint16Array.from({ length: cells }, (_, cell) => {
      const row = Math.floor(cell / columns / coarse.factor);
      return row * coarseColumns + Math.floor((cell % columns) / coarse.factor);
    });
    const data = new Uint8Array((fine + few) * cells);
    for (let token = 0, place = 0; token < fine + few; token++) {
      const region = data.subarray(token * cells, (token + 1) * cells);
      if (coarse.tokens.data[place] === token) {
        const start = place++ * coarseRows * coarseColumns;
        for (let cell = 0; cell < cells; cell++)
          region[cell] = coarse.regions.data[start + cellOf[cell]];
      } else {
        const start = (token - place) * cells;
        region.set(regions.data.subarray(start, start + cells));
      }
    }
    tokens.regions = { shape: [fine + few, rows, columns], data };
  }
  return image;
}

const KEPT = 24;
const kept = new Map<number, Promise<ImageData_>>();
const arrived = new Map<number, PackedImage>();
receivers.explorerImage = (number, content) => void arrived.set(number, content);

/** The data of an image. The latest ones are kept. */
export function loadImage(image: number): Promise<ImageData_> {
  const known = kept.get(image);
  kept.delete(image);
  const loading =
    known ??
    run(`data/${fileNumber(image)}.js`).then(() => {
      const content = arrived.get(image);
      arrived.delete(image);
      if (!content) throw new Error(`data/${fileNumber(image)}.js holds no image ${image}`);
      return unpack(content).then(joined);
    });
  kept.set(image, loading);
  loading.catch(() => kept.delete(image));
  for (const oldest of kept.keys()) {
    if (kept.size <= KEPT) break;
    kept.delete(oldest);
  }
  return loading;
}

/** The kind of tokens that a model shows: the chosen one where it has it. */
export function kindOf(kinds: Partial<Record<Kind, unknown>>, chosen: string): Kind | null {
  if (Object.hasOwn(kinds, chosen)) return chosen as Kind;
  return (Object.keys(kinds)[0] as Kind) ?? null;
}

export const tokenCount = (tokens: Tokens) => tokens.regions.shape[0];

/** Row and column of the cell at a place, (x, y) in shares of the image. */
export function cellAt(tokens: Tokens, x: number, y: number): [number, number] {
  const [, rows, columns] = tokens.regions.shape;
  const [height, width] = tokens.input;
  const at = (share: number, length: number, count: number) =>
    Math.min(count - 1, Math.max(0, Math.floor((share * length) / tokens.stride)));
  return [at(y, height, rows), at(x, width, columns)];
}

export interface Owner {
  token: number;
  value: number;
  share: number;
}

/** The tokens with the largest values in the cell at a place, and their shares of all values. */
export function ownersAt(tokens: Tokens, x: number, y: number, count = 5): Owner[] {
  const [total, rows, columns] = tokens.regions.shape;
  const [row, column] = cellAt(tokens, x, y);
  const values = [];
  let sum = 0;
  for (let token = 0; token < total; token++) {
    const value = tokens.regions.data[(token * rows + row) * columns + column];
    sum += value;
    if (value) values.push({ token, value });
  }
  return values
    .sort((a, b) => b.value - a.value || a.token - b.token)
    .slice(0, count)
    .map(({ token, value }) => ({ token, value: value / 255, share: value / sum }));
}

/** One row of (K, N) fractions. */
export function histogramOf(histograms: Histograms, token: number): number[] {
  const count = histograms.labels.length;
  const row = histograms.values.data.subarray(token * count, (token + 1) * count);
  return Array.from(row, (value) => value / 65535);
}

/** The label with the largest share under a token, and the share; null where there is none. */
export function mainLabel(histograms: Histograms | null, token: number): [number, number] | null {
  if (!histograms) return null;
  const row = histogramOf(histograms, token);
  const share = Math.max(...row);
  return share > 0 ? [histograms.labels[row.indexOf(share)], share] : null;
}

/** The token of ``others`` whose region is nearest: the sum of the minima over that of the maxima. */
export function closestToken(tokens: Tokens, token: number, others: Tokens): [number, number] {
  const [total, rows, columns] = others.regions.shape;
  const cells = rows * columns;
  const [, ownRows, ownColumns] = tokens.regions.shape;
  const own = new Float32Array(cells);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const x = ((column + 0.5) * others.stride) / others.input[1];
      const y = ((row + 0.5) * others.stride) / others.input[0];
      const [ownRow, ownColumn] = cellAt(tokens, x, y);
      own[row * columns + column] =
        tokens.regions.data[(token * ownRows + ownRow) * ownColumns + ownColumn];
    }
  }
  let best = 0;
  let overlap = -1;
  for (let other = 0; other < total; other++) {
    let smaller = 0;
    let larger = 0;
    for (let cell = 0, at = other * cells; cell < cells; cell++, at++) {
      const value = others.regions.data[at];
      if (value < own[cell]) {
        smaller += value;
        larger += own[cell];
      } else {
        smaller += own[cell];
        larger += value;
      }
    }
    const share = larger ? smaller / larger : 0;
    if (share > overlap) [best, overlap] = [other, share];
  }
  return [best, overlap];
}
