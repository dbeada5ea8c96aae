/** All images: sorted by what fails, and by where models differ. */

import type { ImageEntry, Index } from "./data";
import { fileNumber } from "./data";
import { fill, FilterField, h, number, percent, select, swatch } from "./dom";
import { classColors } from "./drawing";
import type { State } from "./state";
import { address, go } from "./state";

interface Order {
  title: string;
  value: (image: ImageEntry) => number | null;
  show: (value: number) => string;
  /** Whether the largest comes first. */
  descending: boolean;
}

function orders(index: Index): Map<string, Order> {
  const found = new Map<string, Order>();
  const several = index.models.length > 1;
  index.models.forEach(({ name, kinds }, model) => {
    const of = several ? `, ${name}` : "";
    const measured = index.images.some((image) => image.models[model].miou !== null);
    if (measured) {
      found.set(`miou.${model}`, {
        title: `lowest mIoU${of}`,
        value: (image) => image.models[model].miou,
        show: (value) => percent(value, 1),
        descending: false,
      });
      found.set(`accuracy.${model}`, {
        title: `lowest accuracy${of}`,
        value: (image) => image.models[model].accuracy,
        show: (value) => percent(value, 1),
        descending: false,
      });
    }
    for (const kind of Object.keys(kinds) as (keyof typeof kinds)[])
      for (const [key, descending] of [
        ["S_C", true],
        ["D_C", false],
        ["S_I", true],
        ["D_I", false],
        ["active", true],
      ] as const) {
        if (!index.images.some((image) => image.models[model].kinds[kind]?.[key] != null)) continue;
        const which = kind === "queries" ? " of queries" : "";
        const title = key === "active" ? "most active tokens" : `worst ${key}`;
        found.set(`${key}.${model}.${kind}`, {
          title: `${title}${which}${of}`,
          value: (image) => image.models[model].kinds[kind]?.[key] ?? null,
          show: (value) => number(value, key === "active" ? 0 : 3),
          descending,
        });
      }
  });
  const pairs = new Set(index.images.flatMap((image) => image.differ.map(([a, b]) => `${a}.${b}`)));
  for (const pair of pairs) {
    const [a, b] = pair.split(".").map(Number);
    found.set(`differ.${pair}`, {
      title: `models differ most: ${index.models[a].name}, ${index.models[b].name}`,
      value: (image) => image.differ.find(([one, two]) => one === a && two === b)?.[2] ?? null,
      show: (value) => `${percent(value, 1)} differ`,
      descending: true,
    });
  }
  return found;
}

/** IoU of a class in an image, or null where neither labels nor prediction have it. */
function classIoU(image: ImageEntry, model: number, label: number): number | null {
  const found = image.models[model].iou.find(([one]) => one === label);
  return found ? found[1] / found[2] : null;
}

/** "iou.CLASS.MODEL" in the address; other orders are in the map. */
function orderOf(index: Index, known: Map<string, Order>, key: string): Order | null {
  const [what, label, model] = key.split(".");
  if (what !== "iou" || !index.classes[+label] || !index.models[+model]) return known.get(key) ?? null;
  return {
    title: `lowest IoU of ${index.classes[+label]}`,
    value: (image) => classIoU(image, +model, +label),
    show: (value) => `IoU ${percent(value, 1)}`,
    descending: false,
  };
}

export class ImagesView {
  private readonly head = h("div", { class: "group" });
  private readonly filter = new FilterField("Filter images", "name", (text) =>
    go({ image_filter: text }),
  );
  private readonly list = h("div");
  readonly element = h(
    "div",
    {},
    h("div", { class: "toolbar" }, this.head, this.filter.element),
    this.list,
  );
  private readonly known: Map<string, Order>;
  /** For each model and class, intersection and union over all images. */
  private readonly sums: [number, number][][];
  private classesOpen = false;

  constructor(private readonly index: Index) {
    this.known = orders(index);
    this.sums = index.models.map((_, model) => {
      const sum = index.classes.map((): [number, number] => [0, 0]);
      for (const image of index.images)
        for (const [label, intersection, union] of image.models[model].iou) {
          sum[label][0] += intersection;
          sum[label][1] += union;
        }
      return sum;
    });
  }

  update(state: State): void {
    const { images } = this.index;
    const order = orderOf(this.index, this.known, state.images);
    const text = state.image_filter.toLowerCase();
    const rows = images
      .map((image, place) => ({ image, place, value: order ? order.value(image) : place }))
      .filter(({ image, value }) => value !== null && image.name.toLowerCase().includes(text));
    if (order) {
      const sign = order.descending ? -1 : 1;
      rows.sort((a, b) => sign * (a.value! - b.value!) || a.place - b.place);
    }
    const choices: [string, string][] = [["set", "order of the dataset"]];
    for (const [key, { title }] of this.known) choices.push([key, title]);
    if (order && !this.known.has(state.images)) choices.push([state.images, order.title]);
    fill(
      this.head,
      h("h2", {}, "Images"),
      select("Sort images", choices, order ? state.images : "set", (value) =>
        go({ images: value }),
      ),
    );
    this.filter.show(state.image_filter, `${rows.length} of ${images.length}`);
    fill(
      this.list,
      this.classTable(state),
      h(
        "ul",
        { class: "gallery", "aria-label": "images" },
        rows.map(({ image, place, value }) =>
          h(
            "li",
            {},
            h(
              "a",
              { href: this.target(place, state), "data-key": `image${place}` },
              h("img", {
                src: `thumbnails/${fileNumber(place)}.jpg`,
                alt: "",
                loading: "lazy",
                width: 160,
                height: Math.round((160 * image.size[0]) / image.size[1]),
              }),
              h("span", { class: "name" }, image.name),
              order && h("span", { class: "value" }, order.show(value!)),
            ),
          ),
        ),
      ),
    );
  }

  /** An image that fails is shown with its errors. */
  private target(place: number, state: State): string {
    const [what, label] = state.images.split(".");
    const errors = ["miou", "accuracy", "iou", "differ"].includes(what);
    return address({
      view: "image",
      image: String(place),
      token: "",
      ...(errors ? { layer: what === "differ" ? "prediction" : "errors" } : {}),
      ...(what === "iou" ? { only: label, layer: "prediction" } : {}),
    });
  }

  private classTable(state: State): HTMLElement | null {
    const { sums } = this;
    const { models, classes } = this.index;
    const colors = classColors(this.index, state.colors);
    const labels = classes.map((_, label) => label).filter((label) => sums.some((sum) => sum[label][1]));
    if (!labels.length) return null;
    return h(
      "details",
      {
        open: this.classesOpen,
        ontoggle: (event) => {
          if (event.target.isConnected) this.classesOpen = event.target.open;
        },
      },
      h("summary", {}, "IoU of the classes: where does one fail?"),
      h(
        "div",
        { class: "table", role: "region", tabindex: 0, "aria-label": "IoU of the classes" },
        h(
          "table",
          {},
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              h("th", { scope: "col" }, "class"),
              models.map(({ name }) => h("th", { scope: "col" }, name)),
            ),
          ),
          h(
            "tbody",
            {},
            labels.map((label) =>
              h(
                "tr",
                {},
                h("th", { scope: "row" }, swatch(colors[label]), classes[label]),
                models.map(({ name }, model) => {
                  const [intersection, union] = sums[model][label];
                  const key = `iou.${label}.${model}`;
                  return h(
                    "td",
                    {},
                    h(
                      "button",
                      {
                        type: "button",
                        "data-key": key,
                        "aria-pressed": String(state.images === key),
                        "aria-label": `images with the lowest IoU of ${classes[label]}, ${name}`,
                        onclick: () => go({ images: state.images === key ? "set" : key }),
                      },
                      percent(union ? intersection / union : null, 1),
                    ),
                  );
                }),
              ),
            ),
          ),
        ),
      ),
    );
  }
}
