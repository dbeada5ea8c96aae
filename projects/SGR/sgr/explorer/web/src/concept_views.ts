/** The concepts of a model over all images, and one of them. */

import type { Color, Concepts, Index, Kind } from "./data";
import { fileNumber, kindOf, loadImage } from "./data";
import type { Bar } from "./dom";
import { bars, fill, FilterField, h, number, percent, select, stepButton, swatch } from "./dom";
import { classColors, drawCrop } from "./drawing";
import type { State } from "./state";
import { address, current, go, numberIn } from "./state";
import type { Column } from "./table";
import { filled, filtered, sorted, table } from "./table";

interface Row {
  model: number;
  kind: Kind;
  concept: number;
  concepts: Concepts;
  className: string | null;
  color: Color | null;
  /** Of the class. */
  share: number | null;
}

export const CONCEPT_COLUMNS: Column<Row>[] = [
  {
    key: "concept",
    explain: "the number of the concept: that of its token in every image",
    digits: 0,
    ascending: true,
    value: ({ concept }) => concept,
    show: ({ model, kind, concept }) =>
      h(
        "a",
        {
          href: address({ view: "concept", model: String(model), kind, token: String(concept) }),
          "data-key": `concept${concept}`,
        },
        concept,
      ),
  },
  {
    key: "class",
    explain: "the class with the largest share over all images",
    names: true,
    ascending: true,
    value: ({ className }) => className,
    show: ({ className, color }) => [swatch(color!), className],
  },
  {
    key: "share",
    explain: "of that class",
    value: ({ share }) => share,
    show: ({ share }) => percent(share),
  },
  {
    key: "images",
    explain: "in which the region passes 0.5 somewhere",
    digits: 0,
    value: ({ concepts, concept }) => concepts.active.data[concept],
  },
  {
    key: "mass",
    explain: "mean over the images, in cells",
    digits: 1,
    value: ({ concepts, concept }) => concepts.mass.data[concept],
  },
  {
    key: "peak",
    explain: "the largest value of the region in any image",
    value: ({ concepts, concept }) => concepts.peak.data[concept],
  },
  {
    key: "S_C",
    explain: "mean entropy of the class histogram of an image, in nats",
    ascending: true,
    value: ({ concepts, concept }) => concepts.semantics.data[concept],
  },
  {
    key: "matched",
    explain: "images in which the matcher gives it a component",
    digits: 0,
    value: ({ concepts, concept }) => concepts.matched.data[concept],
  },
];

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
  private readonly head = h("div", { class: "group" });
  private readonly filter = new FilterField("Filter concepts", "sky images>5 S_C<0.5", (text) =>
    go({ concept_filter: text }),
  );
  private readonly list = h("div");
  readonly element = h(
    "div",
    { class: "concepts-view" },
    h("div", { class: "toolbar" }, this.head, this.filter.element),
    this.list,
  );

  constructor(private readonly index: Index) {}

  update(state: State): void {
    const { index } = this;
    const found = chosen(index, state);
    fill(this.head, h("h2", {}, "Concepts"), pickers(index, state));
    this.filter.element.hidden = !found;
    if (!found) {
      fill(this.list, h("p", { class: "muted" }, "This model has no tokens."));
      return;
    }
    const { model, kind, concepts } = found;
    const colors = classColors(index, state.colors);
    const rows = concepts.classes.map((classes, concept): Row => {
      const [label, share] = classes[0] ?? [null, null];
      const [className, color] = label === null ? [null, null] : [index.classes[label], colors[label]];
      return { model, kind, concept, concepts, className, color, share };
    });
    const columns = filled(CONCEPT_COLUMNS, rows);
    const { rows: passed, problem } = filtered(rows, columns, state.concept_filter);
    this.filter.show(state.concept_filter, `${passed.length} of ${rows.length}`, problem);
    fill(
      this.list,
      table(
        "concepts over all images",
        columns,
        sorted(passed, columns, state.concepts),
        state.concepts,
        (order) => go({ concepts: order }),
      ),
    );
  }
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
    // The address may say "02", or nothing for 0.
    const still = () => current().view === "concept" && Number(current().token) === concept;
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
