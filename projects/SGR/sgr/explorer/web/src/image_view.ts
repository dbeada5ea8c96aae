/** One image: stages of the models, the pointer, the token, and the table of tokens. */

import type { Color, Histograms, ImageData_, Index, Kind, Tokens, Values } from "./data";
import { closestToken, fileNumber, histogramOf, kindOf, loadImage, mainLabel, ownersAt, tokenCount } from "./data";
import { bars, fill, FilterField, h, number, percent, select, stepButton, swatch } from "./dom";
import { classColors, LAYERS, layerMap, valueAt } from "./drawing";
import type { Partner } from "./stage";
import { Stage } from "./stage";
import type { State } from "./state";
import { address, current, go, numberIn } from "./state";
import { cell, filled, filtered, sorted, table } from "./table";
import type { TokenRow } from "./tokens";
import { TOKEN_COLUMNS, tokenRows } from "./tokens";

export function shownModels(index: Index, state: State): number[] {
  const chosen = state.models.split(",").map(Number);
  const known = index.models.map((_, model) => model);
  const shown = state.models === "" ? known : known.filter((model) => chosen.includes(model));
  return shown.length ? shown : known;
}

export class ImageView {
  readonly element: HTMLElement;
  private readonly toolbar = h("div", { class: "toolbar" });
  private readonly stages = h("div", { class: "stages" });
  private readonly legend = h("div");
  private readonly pointer = h("section", { class: "pane pointer" });
  private readonly detail = h("section", { class: "pane" });
  private readonly listHead = h("div");
  private readonly filter = new FilterField("Filter tokens", "sky mass>5 S_C<0.5", (filter) =>
    go({ filter }),
  );
  private readonly list = h("div");
  private readonly made = new Map<number, Stage>();
  private image: ImageData_ | null = null;
  private shown = -1;
  private place: [number, number] | null = null;
  /** The tokens in the order of the table, for the keyboard; and what the table depends on. */
  visible: number[] = [];
  private listed = "";

  constructor(private readonly index: Index) {
    this.element = h(
      "div",
      { class: "image-view" },
      this.toolbar,
      h("div", { class: "main" }, this.stages, this.legend),
      h("div", { class: "side" }, this.pointer, this.detail),
      h("section", { class: "pane list" }, this.listHead, this.filter.element, this.list),
    );
  }

  async update(state: State): Promise<void> {
    if (!this.index.images.length) {
      fill(this.element, h("p", { class: "muted" }, "There are no images yet."));
      return;
    }
    const image = this.imageOf(state);
    // At once, since the data of another image takes a while.
    if (image !== this.shown) this.showToolbar(state, image);
    const data = await loadImage(image);
    if (this.imageOf(current()) !== image || current().view !== "image") return;
    if (this.shown !== image) {
      this.place = null;
      this.shown = image;
    }
    this.image = data;
    this.draw(current(), image);
    const next = image + 1;
    if (next < this.index.images.length) setTimeout(() => void loadImage(next).catch(() => {}), 300);
  }

  imageOf(state: State): number {
    return numberIn(state.image, this.index.images.length) ?? 0;
  }

  private tokensOf(model: number, state: State): Tokens | null {
    const kinds = this.image!.models[model].kinds;
    const kind = kindOf(kinds, state.kind);
    return kind && kinds[kind]!;
  }

  private active(state: State): number {
    const shown = shownModels(this.index, state);
    return shown.includes(Number(state.model)) ? Number(state.model) : shown[0];
  }

  private selected(state: State): number | null {
    const tokens = this.tokensOf(this.active(state), state);
    return tokens && numberIn(state.token, tokenCount(tokens));
  }

  private showToolbar(state: State, image: number): void {
    const { images, models } = this.index;
    const step = (by: -1 | 1) =>
      stepButton(by, "image", image, images.length, (to) => go({ image: String(to) }));
    const shown = shownModels(this.index, state);
    const drawn = this.layerOf(state);
    const toggles = models.map((model, number_) =>
      h(
        "label",
        { class: "check" },
        h("input", {
          type: "checkbox",
          "data-key": `model${number_}`,
          checked: shown.includes(number_),
          onchange: (event) => {
            const next = event.target.checked
              ? [...shown, number_].sort((a, b) => a - b)
              : shown.filter((one) => one !== number_);
            go({ models: next.length === models.length ? "" : next.join(",") });
          },
        }),
        model.name,
      ),
    );
    fill(
      this.toolbar,
      h(
        "div",
        { class: "group" },
        step(-1),
        h("h2", {}, images[image].name),
        h("span", { class: "muted" }, `${image + 1} of ${images.length}`),
        step(1),
      ),
      h(
        "fieldset",
        { class: "choices" },
        h("legend", {}, "Layer"),
        LAYERS.map(([layer, title], position) =>
          h(
            "label",
            {},
            h("input", {
              type: "radio",
              name: "layer",
              value: layer,
              "data-key": `layer-${layer}`,
              checked: drawn === layer,
              disabled: !this.hasLayer(layer),
              onchange: () => go({ layer }),
            }),
            h("span", { title: `key ${position + 1}` }, title),
          ),
        ),
      ),
      models.length > 1 &&
        h("fieldset", { class: "choices" }, h("legend", {}, "Models"), toggles),
      h(
        "fieldset",
        { class: "choices" },
        h("legend", {}, "Region"),
        [
          { key: "cells", on: "cells", off: "smooth", text: "as cells" },
          { key: "scale", on: "peak", off: "one", text: "brightest at its peak" },
        ].map(({ key, on, off, text }) =>
          h(
            "label",
            { class: "check" },
            h("input", {
              type: "checkbox",
              "data-key": key,
              checked: state[key as keyof State] === on,
              onchange: (event) => go({ [key]: event.target.checked ? on : off }),
            }),
            text,
          ),
        ),
      ),
    );
  }

  private hasLayer(layer: string): boolean {
    if (layer === "image" || !this.image) return true;
    const colors = this.index.colors.safe;
    return this.image.models.some(
      (_, model) => layerMap(layer, this.index, this.image!, model, colors) !== null,
    );
  }

  /** The layer that is shown: the chosen one, or another one where the image does not have it. */
  private layerOf({ layer }: State): string {
    return [layer, "prediction"].find((one) => this.hasLayer(one)) ?? "image";
  }

  private draw(state: State, image: number): void {
    this.showToolbar(state, image);
    const shown = shownModels(this.index, state);
    const active = this.active(state);
    const token = this.selected(state);
    const colors = classColors(this.index, state.colors);
    const elements = shown.map((model) => {
      let stage = this.made.get(model);
      if (!stage) {
        stage = new Stage(
          this.index,
          this.index.models[model].name,
          (x, y) => this.point(x, y),
          (x, y) => this.choose(model, x, y),
        );
        this.made.set(model, stage);
      }
      this.drawStage(stage, model, image, state, colors, active, token);
      return stage.element;
    });
    const same = elements.every((element, position) => this.stages.children[position] === element);
    if (!same || this.stages.children.length !== elements.length)
      this.stages.replaceChildren(...elements);
    this.stages.classList.toggle("several", elements.length > 1);
    this.showLegend(state, colors);
    this.showPointer(state);
    const tokens = this.tokensOf(active, state);
    const rows = tokens ? tokenRows(this.index, this.image!, active, tokens, colors) : [];
    this.showDetail(state, active, token, rows, colors);
    this.showList(state, active, token, rows);
  }

  private drawStage(
    stage: Stage,
    model: number,
    image: number,
    state: State,
    colors: Color[],
    active: number,
    token: number | null,
  ): void {
    const entry = this.index.images[image];
    const tokens = this.tokensOf(model, state);
    const own = this.tokensOf(active, state);
    let shownToken: number | null = null;
    let note = "";
    if (token !== null && model === active) {
      shownToken = token;
      note = `${kindWord(this.image!.models[model].kinds, state)} ${token}`;
    } else if (token !== null && tokens && own) {
      const [near, overlap] = closestToken(own, token, tokens);
      const word = kindWord(this.image!.models[model].kinds, state);
      shownToken = overlap >= 0.01 ? near : null;
      note =
        shownToken === null
          ? `no ${word} is near`
          : `closest: ${word} ${near}, overlap ${percent(overlap)}`;
    }
    stage.showImage(`images/${fileNumber(image)}.jpg`, entry.name, entry.size);
    const layer = this.layerOf(state);
    const map = layerMap(layer, this.index, this.image!, model, colors);
    stage.showMap(map, {
      labels: layer === "errors" ? this.image!.labels : null,
      only: ["labels", "prediction", "errors"].includes(layer) ? state.only : "",
      bordersOnly: shownToken !== null,
    });
    const partners: Partner[] =
      model === active && token !== null && tokens
        ? partnersOf(tokens, token, "to", state)
        : [];
    stage.showToken(tokens, shownToken, state, partners);
    const figures = entry.models[model];
    fill(
      stage.caption,
      h("b", {}, this.index.models[model].name),
      note && h("span", { class: "note" }, note),
      figures.miou !== null && h("span", { class: "muted" }, `mIoU ${percent(figures.miou)}`),
    );
    if (this.place) stage.showPointer(...this.place);
  }

  private point(x: number, y: number): void {
    this.place = [x, y];
    for (const model of shownModels(this.index, current())) this.made.get(model)?.showPointer(x, y);
    this.showPointer(current());
  }

  private choose(model: number, x: number, y: number): void {
    this.place = [x, y];
    const tokens = this.tokensOf(model, current());
    const owner = tokens && ownersAt(tokens, x, y, 1)[0];
    if (owner) go({ model: String(model), token: String(owner.token) });
    this.point(x, y);
  }

  private showLegend(state: State, colors: Color[]): void {
    const layer = this.layerOf(state);
    if (!["labels", "prediction", "errors"].includes(layer)) {
      fill(this.legend);
      return;
    }
    const present = new Set<number>();
    for (const map of [this.image!.labels, ...this.image!.models.map((one) => one.prediction)])
      if (map) for (const value of map.data) present.add(value - 1);
    present.delete(-1);
    fill(
      this.legend,
      h(
        "ul",
        { class: "legend", "aria-label": "classes in this image" },
        [...present]
          .sort((a, b) => a - b)
          .map((label) =>
            h(
              "li",
              {},
              h(
                "button",
                {
                  type: "button",
                  "data-key": `class${label}`,
                  "aria-pressed": String(state.only === String(label)),
                  title: "show this class alone",
                  onclick: () => go({ only: state.only === String(label) ? "" : String(label) }),
                },
                swatch(colors[label]),
                this.index.classes[label],
              ),
            ),
          ),
      ),
    );
  }

  private showPointer(state: State): void {
    if (!this.place) {
      fill(
        this.pointer,
        h("h3", {}, "Under the pointer"),
        h("p", { class: "muted" }, "Point at the image to see which tokens own a cell."),
      );
      return;
    }
    const [x, y] = this.place;
    const image = this.image!;
    const nameAt = (map: Values, names: string[]) => names[valueAt(map, x, y) - 1] ?? "none";
    const blocks = shownModels(this.index, state).map((model) => {
      const one = image.models[model];
      const tokens = this.tokensOf(model, state);
      const components = one.components;
      return h(
        "div",
        { class: "owners" },
        h("h4", {}, this.index.models[model].name),
        one.prediction &&
          h(
            "p",
            { class: "small" },
            `predicts ${nameAt(one.prediction, this.index.classes)}`,
            components && `, component ${nameAt(components.map, components.names)}`,
          ),
        tokens
          ? bars(
              `owners of the cell, ${this.index.models[model].name}`,
              ownersAt(tokens, x, y).map(({ token, value, share }) => ({
                name: String(token),
                share,
                color: this.colorOf(tokens, token, state),
                action: this.tokenButton(model, token, tokens, `value ${value.toFixed(2)}`),
              })),
            )
          : h("p", { class: "muted" }, "This model has no tokens."),
      );
    });
    fill(
      this.pointer,
      h("h3", {}, "Under the pointer"),
      h(
        "p",
        { class: "small" },
        [
          image.labels && `label ${nameAt(image.labels, this.index.classes)}`,
          image.instances && `instance ${nameAt(image.instances.map, image.instances.names)}`,
        ]
          .filter(Boolean)
          .join(", "),
      ),
      blocks,
    );
  }

  private colorOf(tokens: Tokens, token: number, state: State): readonly number[] {
    const main = mainLabel(tokens.classes, token);
    return main ? classColors(this.index, state.colors)[main[0]] : [140, 140, 140];
  }

  private tokenButton(model: number, token: number, tokens: Tokens, note = ""): HTMLElement {
    const main = mainLabel(tokens.classes, token);
    const name = main && this.index.classes[main[0]];
    return h(
      "button",
      {
        type: "button",
        class: "token",
        "data-key": `token-${model}-${token}-${note}`,
        onclick: () => go({ model: String(model), token: String(token) }),
      },
      `${token}`,
      name && h("span", { class: "muted" }, ` ${name}`),
      note && h("span", { class: "muted" }, ` · ${note}`),
    );
  }

  private showDetail(
    state: State,
    model: number,
    token: number | null,
    rows: TokenRow[],
    colors: Color[],
  ): void {
    const tokens = this.tokensOf(model, state);
    if (token === null || !tokens) {
      fill(
        this.detail,
        h("h3", {}, "Token"),
        h("p", { class: "muted" }, "Click a token, or a place in the image."),
      );
      return;
    }
    const kinds = this.image!.models[model].kinds;
    const kind = kindOf(kinds, state.kind)!;
    const histogram = (
      title: string,
      values: Histograms,
      names: string[],
      binColors: (readonly number[])[],
    ) => [
      h("h4", {}, title),
      bars(
        title,
        histogramOf(values, token).map((share, bin) => ({
          name: names[bin],
          share,
          color: binColors[bin % binColors.length],
        })),
      ),
    ];
    const { classes, instances } = tokens;
    fill(
      this.detail,
      h(
        "div",
        { class: "group" },
        h("h3", {}, `${kindWord(kinds, state)} ${token} of ${this.index.models[model].name}`),
        h(
          "button",
          { type: "button", "data-key": "deselect", onclick: () => go({ token: "" }) },
          "Deselect",
        ),
      ),
      h(
        "p",
        {},
        h(
          "a",
          {
            href: address({ view: "concept", model: String(model), kind, token: String(token) }),
            "data-key": "follow",
          },
          `Follow concept ${token} through all images`,
        ),
      ),
      tokens.coarse?.tokens.data.includes(token) &&
        h(
          "p",
          { class: "small" },
          `Its region is stored in cells ${tokens.coarse.factor} times as wide and high, because ` +
            "the image uses other tokens more.",
        ),
      h(
        "dl",
        { class: "figures" },
        filled(TOKEN_COLUMNS.slice(1), rows).map((column) => [
          h("dt", { title: column.explain }, column.key),
          h("dd", {}, cell(column, rows[token])),
        ]),
      ),
      classes &&
        histogram(
          "Classes",
          classes,
          classes.labels.map((label) => this.index.classes[label]),
          classes.labels.map((label) => colors[label]),
        ),
      instances &&
        this.image!.instances &&
        histogram("Instances", instances, this.image!.instances.names, this.index.segments),
      this.attention(state, model, token, tokens),
    );
  }

  private attention(state: State, model: number, token: number, tokens: Tokens): HTMLElement {
    const title = h("h4", {}, "Attention");
    if (!tokens.attention)
      return h("div", {}, title, h("p", { class: "muted" }, "No attention mixes these tokens."));
    const [layers, heads] = tokens.attention.to.tokens.shape;
    const [layer, head] = attentionPlace(tokens, state);
    const choose = (next: number[]) => go({ attention: next.join(".") });
    const lists = (["to", "from"] as const).map((direction) => {
      const partners = partnersOf(tokens, token, direction, state);
      const name = direction === "to" ? "attends to" : "is attended to by";
      return h(
        "div",
        {},
        h("h5", {}, name),
        partners.length
          ? bars(
              name,
              partners.map((partner) => ({
                name: String(partner.token),
                share: partner.weight,
                color: this.colorOf(tokens, partner.token, state),
                action: this.tokenButton(model, partner.token, tokens),
              })),
            )
          : h("p", { class: "muted" }, "not stored: one of the 64 tokens used most has it"),
      );
    });
    return h(
      "div",
      {},
      title,
      h(
        "div",
        { class: "group" },
        select(
          "layer",
          [...Array(layers).keys()].map((one) => [String(one), String(one + 1)] as const),
          String(layer),
          (value) => choose([Number(value), head]),
        ),
        select(
          "head",
          [...Array(heads).keys()].map(
            (one) => [String(one), one === heads - 1 ? "mean" : String(one + 1)] as const,
          ),
          String(head),
          (value) => choose([layer, Number(value)]),
        ),
      ),
      h("div", { class: "two" }, lists),
    );
  }

  private showList(state: State, model: number, token: number | null, rows: TokenRow[]): void {
    const tokens = this.tokensOf(model, state);
    const kinds = this.image!.models[model].kinds;
    fill(
      this.listHead,
      h("h3", {}, "Tokens"),
      h(
        "div",
        { class: "group" },
        this.index.models.length > 1 &&
          select(
            "of the model",
            shownModels(this.index, state).map(
              (one) => [String(one), this.index.models[one].name] as const,
            ),
            String(model),
            (value) => go({ model: value, token: "" }),
          ),
        Object.keys(kinds).length > 1 &&
          select(
            "kind",
            Object.keys(kinds).map((one) => [one, one] as const),
            kindOf(kinds, state.kind)!,
            (value) => go({ kind: value, token: "" }),
          ),
        tokens &&
          select(
            "show",
            [
              ["", "all"],
              ["active", "active"],
              ["matched", "matched"],
            ],
            state.active,
            (value) => go({ active: value }),
          ),
      ),
    );
    this.filter.element.hidden = !tokens;
    // A table of many tokens takes a while, and most changes leave it as it is.
    const { filter, active, order, kind, colors } = state;
    const key = JSON.stringify([this.shown, model, kind, filter, active, order, colors]);
    if (key !== this.listed) this.showTable(state, tokens, rows);
    this.listed = key;
    this.list.querySelectorAll("tbody tr").forEach((row, place) => {
      const current = String(this.visible[place] === token);
      row.setAttribute("aria-current", current);
      row.querySelector("button")!.setAttribute("aria-pressed", current);
    });
  }

  private showTable(state: State, tokens: Tokens | null, rows: TokenRow[]): void {
    if (!tokens) {
      this.visible = [];
      fill(this.list, h("p", { class: "muted" }, "This model has no tokens."));
      return;
    }
    const columns = filled(TOKEN_COLUMNS, rows);
    const chosen = rows.filter(
      ({ token, component }) =>
        state.active === "" ||
        (state.active === "active" ? tokens.peak.data[token] > 0.5 : component !== null),
    );
    const found = filtered(chosen, columns, state.filter);
    this.filter.show(state.filter, `${found.rows.length} of ${rows.length}`, found.problem);
    const shown = sorted(found.rows, columns, state.order);
    this.visible = shown.map(({ token }) => token);
    const means = Object.entries({ C: tokens.classes, I: tokens.instances }).flatMap(
      ([letter, of]) =>
        of ? [`S_${letter} ${number(of.S, 3)}`, `D_${letter} ${number(of.D, 3)}`] : [],
    );
    fill(
      this.list,
      means.length > 0 && h("p", { class: "small" }, `mean of all tokens: ${means.join(", ")}`),
      table("tokens of this image", columns, shown, state.order, (order) => go({ order })),
    );
  }
}

function kindWord(kinds: Partial<Record<Kind, unknown>>, state: State): string {
  return kindOf(kinds, state.kind) === "queries" ? "query" : "token";
}

function attentionPlace(tokens: Tokens, state: State): [number, number] {
  const [layers, heads] = tokens.attention!.to.tokens.shape;
  const [layer, head] = state.attention.split(".");
  return [numberIn(layer, layers) ?? layers - 1, numberIn(head ?? "", heads) ?? heads - 1];
}

/** The tokens to or from which the attention of a token is largest. */
function partnersOf(
  tokens: Tokens,
  token: number,
  direction: "to" | "from",
  state: State,
): Partner[] {
  if (!tokens.attention) return [];
  const place = tokens.attention.tokens.data.indexOf(token);
  if (place < 0) return [];
  const { tokens: partners, weights } = tokens.attention[direction];
  const [, heads, count, most] = partners.shape;
  const [layer, head] = attentionPlace(tokens, state);
  const start = ((layer * heads + head) * count + place) * most;
  return [...Array(most).keys()].map((one) => ({
    token: partners.data[start + one],
    weight: weights.data[start + one] / 255,
  }));
}
