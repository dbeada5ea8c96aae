/** What is known of each token of an image: the columns of their table, and the details of one. */

import type { Color, ImageData_, Index, Tokens } from "./data";
import { mainLabel, tokenCount } from "./data";
import { h, percent, swatch } from "./dom";
import { go } from "./state";
import type { Column } from "./table";

export interface TokenRow {
  model: number;
  token: number;
  tokens: Tokens;
  className: string | null;
  color: Color | null;
  /** Of the class. */
  share: number | null;
  component: string | null;
}

export function tokenRows(
  index: Index,
  image: ImageData_,
  model: number,
  tokens: Tokens,
  colors: Color[],
): TokenRow[] {
  const names = image.models[model].components?.names;
  return [...Array(tokenCount(tokens)).keys()].map((token) => {
    const [label, share] = mainLabel(tokens.classes, token) ?? [null, null];
    return {
      model,
      token,
      tokens,
      className: label === null ? null : index.classes[label],
      color: label === null ? null : colors[label],
      share,
      component: names?.[tokens.components?.data[token] ?? -1] ?? null,
    };
  });
}

/** A figure of each token's histogram of classes or instances. */
const figure =
  (kind: "classes" | "instances", key: "semantics" | "diversity" | "share") =>
  ({ tokens, token }: TokenRow) =>
    tokens[kind] && tokens[kind]![key].data[token];

export const TOKEN_COLUMNS: Column<TokenRow>[] = [
  {
    key: "token",
    explain: "the number of the token, or of the query",
    digits: 0,
    ascending: true,
    value: ({ token }) => token,
    show: ({ model, token }) =>
      h(
        "button",
        {
          type: "button",
          class: "token",
          "data-key": `row${token}`,
          onclick: () => go({ model: String(model), token: String(token) }),
        },
        token,
      ),
  },
  {
    key: "class",
    explain: "the class with the largest share of the region's weight",
    names: true,
    ascending: true,
    value: ({ className }) => className,
    show: ({ className, color }) => [swatch(color!), className],
  },
  {
    key: "share",
    explain: "that class's share of the weight on labelled pixels",
    value: ({ share }) => share,
    show: ({ share }) => percent(share),
  },
  {
    key: "component",
    explain: "the component of the labels to which the matcher gives the token",
    names: true,
    ascending: true,
    value: ({ component }) => component,
  },
  {
    key: "IoU",
    explain:
      "of the region and that component: the sum of the smaller of both over the sum of the larger",
    value: ({ tokens, token }) => tokens.overlaps && tokens.overlaps.data[token],
  },
  {
    key: "used",
    explain: "mass times peak",
    digits: 1,
    value: ({ tokens, token }) => tokens.mass.data[token] * tokens.peak.data[token],
  },
  {
    key: "mass",
    explain: "the sum of the region over the cells",
    digits: 1,
    value: ({ tokens, token }) => tokens.mass.data[token],
  },
  {
    key: "peak",
    explain: "the largest value of the region; a token is active above 0.5",
    value: ({ tokens, token }) => tokens.peak.data[token],
  },
  {
    key: "S_C",
    explain: "semantics: entropy of the token's class histogram in nats; lower is purer",
    ascending: true,
    value: figure("classes", "semantics"),
  },
  {
    key: "D_C",
    explain:
      "diversity: squared distance of the token's class histogram to the mean histogram of the " +
      "image's tokens; D_C of an image is the mean of it; higher is more diverse",
    value: figure("classes", "diversity"),
  },
  {
    key: "S_I",
    explain: "S_C with instances in the place of classes",
    ascending: true,
    value: figure("instances", "semantics"),
  },
  {
    key: "D_I",
    explain: "D_C with instances in the place of classes",
    value: figure("instances", "diversity"),
  },
  {
    key: "share_I",
    explain: "share of the region's weight that lies on instances; S_I and D_I are about that part",
    value: figure("instances", "share"),
    show: (row) => percent(figure("instances", "share")(row)),
  },
  {
    key: "x",
    explain: "column of the centroid, in cells counted from 1",
    digits: 1,
    ascending: true,
    value: ({ tokens, token }) => tokens.centroids.data[2 * token],
  },
  {
    key: "y",
    explain: "row of the centroid, in cells counted from 1",
    digits: 1,
    ascending: true,
    value: ({ tokens, token }) => tokens.centroids.data[2 * token + 1],
  },
];
