/** The concepts of a model over all images, and one of them. */

import type { Concepts, Index, Kind } from "./data";
import { fileNumber, loadImage } from "./data";
import type { Bar, Column } from "./dom";
import { bars, fill, filterField, h, number, percent, select, sorted, stepButton, swatch, table } from "./dom";
import { classColors, drawCrop } from "./drawing";
import { kindOf } from "./image_view";
import type { State } from "./state";
import { address, current, go, numberIn } from "./state";

interface Row {
  concept: number;
  label: number;
  className: string;
  share: number;
  active: number;
  mass: number;
  semantics: number;
  matched: number;
}

const modelOf = (index: Index, state: State) => numberIn(state.model, index.models.length) ?? 0;

/** The model, the kind of its tokens, and their summary; null where it has no tokens. */
function chosen(index: Index, state: State): { model: number; kind: Kind; concepts: Concepts } | null {
  const model = modelOf(index, state);
  const kind = kindOf(index.models[model].kinds, state.kind);
  return kind && { model, kind, concepts: index.models[model].kinds[kind]! };
}

function pickers(index: Index, state: State): HTMLElement {
  const model = modelOf(index, state);
  const { kinds } = index.models[model];
  return h(
    "div",
    { class: "group" },
    index.models.length > 1 &&
      select(
        "Model",
        index.models.map(({ name }, one) => [String(one), name] as const),
        String(model),
        (value) => go({ model: value }),
      ),
    Object.keys(kinds).length > 1 &&
      select(
        "Kind",
        Object.keys(kinds).map((one) => [one, one] as const),
        kindOf(kinds, state.kind)!,
        (value) => go({ kind: value }),
      ),
  );
}

export class ConceptsView {
  readonly element = h("div", { class: "concepts-view" });

  constructor(private readonly index: Index) {}

  update(state: State): void {
    const { index } = this;
    const found = chosen(index, state);
    if (!found) {
      fill(
        this.element,
        h("h2", {}, "Concepts"),
        pickers(index, state),
        h("p", { class: "muted" }, "This model has no tokens."),
      );
      return;
    }
    const { model, kind, concepts } = found;
    const colors = classColors(index, state.colors);
    const rows = rowsOf(index, concepts);
    const columns: Column<Row>[] = [
      {
        key: "concept",
        title: "concept",
        ascending: true,
        value: (row) => row.concept,
        show: (row) =>
          h(
            "a",
            {
              href: address({
                view: "concept",
                model: String(model),
                kind,
                token: String(row.concept),
              }),
              "data-key": `concept${row.concept}`,
            },
            row.concept,
          ),
      },
      {
        key: "class",
        title: "class",
        ascending: true,
        explain: "the class with the largest share over all images",
        value: (row) => row.className || null,
        show: (row) => row.label >= 0 && [swatch(colors[row.label]), row.className],
      },
      {
        key: "share",
        title: "share",
        explain: "of that class",
        value: (row) => row.share,
        show: (row) => percent(row.share),
      },
      {
        key: "images",
        title: "images",
        explain: "in which the region passes 0.5 somewhere",
        digits: 0,
        value: (row) => row.active,
      },
      {
        key: "mass",
        title: "mass",
        explain: "mean over the images, in cells",
        digits: 1,
        value: (row) => row.mass,
      },
      {
        key: "S",
        title: "S",
        ascending: true,
        explain: "mean entropy of the class histogram of an image, in nats",
        value: (row) => row.semantics,
      },
      {
        key: "matched",
        title: "matched",
        explain: "images in which the matcher gives it a component",
        digits: 0,
        value: (row) => row.matched,
      },
    ];
    const text = state.concept_filter.toLowerCase();
    const shown = sorted(
      rows.filter((row) => `${row.concept} ${row.className}`.toLowerCase().includes(text)),
      columns,
      state.concepts,
    );
    fill(
      this.element,
      h(
        "div",
        { class: "toolbar" },
        h("h2", {}, "Concepts"),
        pickers(index, state),
        filterField("Filter concepts", state.concept_filter, (value) =>
          go({ concept_filter: value }),
        ),
        h("span", { class: "muted", role: "status" }, `${shown.length} of ${rows.length}`),
      ),
      table(
        "concepts over all images",
        columns,
        shown,
        state.concepts,
        (order) => go({ concepts: order }),
        () => false,
      ),
    );
  }
}

function rowsOf(index: Index, concepts: Concepts): Row[] {
  return concepts.classes.map((classes, concept) => {
    const [label, share] = classes[0] ?? [-1, 0];
    return {
      concept,
      label,
      className: label >= 0 ? index.classes[label] : "",
      share,
      active: concepts.active.data[concept],
      mass: concepts.mass.data[concept],
      semantics: concepts.semantics.data[concept],
      matched: concepts.matched.data[concept],
    };
  });
}

export class ConceptView {
  readonly element = h("div", { class: "concept-view" });

  constructor(private readonly index: Index) {}

  update(state: State): void {
    const { index } = this;
    const found = chosen(index, state);
    const concept = found && numberIn(state.token || "0", found.concepts.count);
    if (!found || concept === null) {
      fill(
        this.element,
        h("h2", {}, "Concept"),
        pickers(index, state),
        h("p", { class: "muted" }, `This model has no concept ${state.token}.`),
      );
      return;
    }
    const { model, kind, concepts } = found;
    const colors = classColors(index, state.colors);
    const shares: Bar[] = concepts.classes[concept].map(([label, share]) => ({
      name: index.classes[label],
      share,
      color: colors[label],
    }));
    const step = (by: -1 | 1) =>
      stepButton(by, "concept", concept, concepts.count, (to) => go({ token: String(to) }));
    const figure = (name: string, value: string) => [h("dt", {}, name), h("dd", {}, value)];
    const most = concepts.best.shape[1];
    fill(
      this.element,
      h(
        "div",
        { class: "toolbar" },
        step(-1),
        h("h2", {}, `Concept ${concept} of ${index.models[model].name}`),
        step(1),
        pickers(index, state),
        h("a", { href: address({ view: "concepts" }), "data-key": "all" }, "All concepts"),
      ),
      h(
        "div",
        { class: "two" },
        h(
          "section",
          { class: "pane" },
          h("h3", {}, "Over all images"),
          h(
            "dl",
            { class: "figures" },
            figure("active in", `${concepts.active.data[concept]} of ${index.images.length} images`),
            figure("matched in", `${concepts.matched.data[concept]} images`),
            figure("mean mass", `${number(concepts.mass.data[concept], 1)} cells`),
            figure("largest peak", number(concepts.peak.data[concept])),
            figure("mean S", number(concepts.semantics.data[concept])),
          ),
        ),
        h(
          "section",
          { class: "pane" },
          h("h3", {}, "Classes"),
          shares.length
            ? bars("classes over all images", shares, 12)
            : h("p", { class: "muted" }, "no labels lie under it"),
        ),
      ),
      h("h3", {}, "Where it is strongest"),
      h(
        "ul",
        { class: "crops", "aria-label": "images where the concept is strongest" },
        [...Array(most).keys()].map((rank) => {
          const image = concepts.best.data[concept * most + rank];
          const start = 4 * (concept * most + rank);
          const box = Array.from(concepts.boxes.data.subarray(start, start + 4), (v) => v / 65535);
          return this.crop(model, kind, concept, image, box);
        }),
      ),
    );
  }

  private crop(
    model: number,
    kind: Kind,
    concept: number,
    image: number,
    box: number[],
  ): HTMLElement {
    const canvas = h("canvas", { width: 320, height: 240, "aria-hidden": "true" });
    const picture = new Image();
    picture.src = `images/${fileNumber(image)}.jpg`;
    const still = () => current().view === "concept" && current().token === String(concept);
    const show = async () => {
      await drawCrop(canvas, picture, box, null);
      if (!still()) return;
      const tokens = (await loadImage(image)).models[model].kinds[kind];
      if (!tokens || !still()) return;
      await drawCrop(canvas, picture, box, { tokens, token: concept, heat: this.index.heat });
      canvas.dataset.heat = "true";
    };
    show().catch((error) => canvas.replaceWith(h("p", {}, String(error.message))));
    return h(
      "li",
      {},
      h(
        "a",
        {
          href: address({
            view: "image",
            image: String(image),
            model: String(model),
            kind,
            token: String(concept),
          }),
          "data-key": `crop${image}`,
        },
        canvas,
        h("span", { class: "name" }, this.index.images[image].name),
      ),
    );
  }
}
