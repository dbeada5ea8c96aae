/** The page: its head, its views, and the keyboard. */

import { CONCEPT_COLUMNS, ConceptsView, ConceptView } from "./concept_views";
import type { Index } from "./data";
import { loadIndex } from "./data";
import { fill, h } from "./dom";
import { LAYERS } from "./drawing";
import { ImagesView } from "./images_view";
import { ImageView } from "./image_view";
import type { State } from "./state";
import { address, current, go, start } from "./state";
import { TOKEN_COLUMNS } from "./tokens";

const KEYS = [
  ["← →", "previous and next image, or concept"],
  ["↑ ↓", "previous and next token of the table"],
  ["1 to 6", "image, labels, components, instances, prediction, errors"],
  ["Esc", "deselect the token; back to the images"],
  ["i, c", "all images, all concepts"],
  ["f", "follow the token's concept through all images"],
  ["/", "filter"],
  ["t", "light or dark"],
  ["?", "this help"],
  ["arrows, Enter", "with the focus in an image: move over its cells, choose the token there"],
];

const FILTERS = [
  ["sky", "“sky” is a part of the class, the component or the number"],
  ["mass>5", "any column of numbers, with <, <=, >, >= or =; of several bounds all hold"],
  ["share>90%", "the same as share>0.9"],
  ["class:sky", "“sky” is a part of the class; component:sky asks for the component"],
  ['"a: b"', "a text with :, <, > or = stands in quotes"],
];

const explained = (columns: { key: string; explain: string }[]) =>
  columns.map(({ key, explain }) => [key, explain]);

/** A part of the help: a title, and pairs of a term and what it means. */
function section(title: string, terms: string[][]): HTMLElement[] {
  const pairs = terms.map(([term, text]) => [h("dt", {}, h("kbd", {}, term)), h("dd", {}, text)]);
  return [h("h3", {}, title), h("dl", { class: "keys" }, pairs)];
}

class Page {
  private readonly header = h("header");
  private readonly main = h("main");
  private readonly help: HTMLDialogElement;
  private readonly image: ImageView;
  private readonly views: Record<string, { element: HTMLElement; update: (state: State) => unknown }>;

  constructor(private readonly index: Index) {
    this.image = new ImageView(index);
    this.views = {
      images: new ImagesView(index),
      image: this.image,
      concepts: new ConceptsView(index),
      concept: new ConceptView(index),
    };
    this.help = h(
      "dialog",
      { "aria-labelledby": "help-title" },
      h(
        "div",
        { class: "group" },
        h("h2", { id: "help-title" }, "Help"),
        h("span", { class: "space" }),
        h("button", { type: "button", onclick: () => this.help.close() }, "Close"),
      ),
      section("Keyboard", KEYS),
      section("Filters of tokens and concepts", FILTERS),
      section("Columns of tokens", explained(TOKEN_COLUMNS)),
      section("Columns of concepts", explained(CONCEPT_COLUMNS)),
    );
    document.title = index.title;
    document.body.append(this.header, this.main, this.help);
    document.addEventListener("keydown", (event) => this.key(event));
  }

  update(state: State, before: State): void {
    const view = this.views[Object.hasOwn(this.views, state.view) ? state.view : "images"];
    this.showHeader(state);
    if (this.main.firstElementChild !== view.element) {
      this.main.replaceChildren(view.element);
      window.scrollTo(0, 0);
    } else if (state.view === "concept" && state.token !== before.token) {
      window.scrollTo(0, 0);
    }
    Promise.resolve(view.update(state)).catch((error) => fail(this.main, error));
  }

  private showHeader(state: State): void {
    const link = (text: string, views: string[]) =>
      h(
        "a",
        {
          href: address({ view: views[0] }),
          "data-key": views[0],
          "aria-current": views.includes(state.view) ? "page" : null,
        },
        text,
      );
    fill(
      this.header,
      h("h1", {}, this.index.title),
      h(
        "nav",
        { "aria-label": "views" },
        link("Images", ["images"]),
        link("Image", ["image"]),
        link("Concepts", ["concepts", "concept"]),
      ),
      h("span", { class: "space" }),
      h(
        "button",
        {
          type: "button",
          "data-key": "colors",
          "aria-pressed": String(state.colors === "dataset"),
          title: "the colours of the dataset, which not everybody can tell apart",
          onclick: () => go({ colors: state.colors === "dataset" ? "safe" : "dataset" }),
        },
        "Dataset's colours",
      ),
      h("button", { type: "button", "data-key": "theme", onclick: switchTheme }, "Light / dark"),
      h(
        "button",
        { type: "button", "data-key": "help", onclick: () => this.help.showModal() },
        "Help",
      ),
    );
  }

  private key(event: KeyboardEvent): void {
    const target = event.target as HTMLElement;
    if (event.ctrlKey || event.metaKey || event.altKey || this.help.open) return;
    if (target.matches("input[type=search]")) {
      if (event.key === "Escape") target.blur();
      return;
    }
    // A select uses letters and Escape too.
    if (target.matches("select")) return;
    if (target.matches("input[type=radio]") && event.key.startsWith("Arrow")) return;
    const scrolls = target.closest(".table") && ["ArrowUp", "ArrowDown"].includes(event.key);
    if (scrolls && !target.closest("button")) return;
    if (this.act(event.key, current())) event.preventDefault();
  }

  private act(key: string, state: State): boolean {
    const layer = LAYERS[Number(key) - 1];
    if (layer && state.view === "image") {
      go({ layer: layer[0] });
      return true;
    }
    switch (key) {
      case "ArrowLeft":
      case "ArrowRight":
        return this.step(state, key === "ArrowLeft" ? -1 : 1);
      case "ArrowUp":
      case "ArrowDown":
        return this.stepToken(state, key === "ArrowUp" ? -1 : 1);
      case "Escape":
        if (state.token !== "" && state.view === "image") go({ token: "" });
        else if (state.view === "concept") go({ view: "concepts" });
        else go({ view: "images" });
        return true;
      case "i":
        go({ view: "images" });
        return true;
      case "c":
        go({ view: "concepts" });
        return true;
      case "f":
        if (state.view !== "image" || state.token === "") return false;
        go({ view: "concept" });
        return true;
      case "/":
        document.querySelector<HTMLElement>("input[type=search]")?.focus();
        return true;
      case "t":
        switchTheme();
        return true;
      case "?":
        this.help.showModal();
        return true;
    }
    return false;
  }

  private step(state: State, by: number): boolean {
    if (state.view === "image") {
      const to = this.image.imageOf(state) + by;
      if (to >= 0 && to < this.index.images.length) go({ image: String(to) });
      return true;
    }
    if (state.view !== "concept") return false;
    document.querySelector<HTMLElement>(`[data-key="step${by}"]`)?.click();
    return true;
  }

  private stepToken(state: State, by: number): boolean {
    if (state.view !== "image") return false;
    const tokens = this.image.visible;
    if (!tokens.length) return false;
    const place = state.token === "" ? -1 : tokens.indexOf(Number(state.token));
    const to = place < 0 ? 0 : Math.min(tokens.length - 1, Math.max(0, place + by));
    go({ token: String(tokens[to]) });
    return true;
  }
}

const THEME = "sgr-explorer-theme";

function setTheme(theme: string): void {
  document.documentElement.dataset.theme = theme;
}

function switchTheme(): void {
  const dark = document.documentElement.dataset.theme === "dark";
  setTheme(dark ? "light" : "dark");
  try {
    localStorage.setItem(THEME, dark ? "light" : "dark");
  } catch {
    // Some browsers keep nothing for pages from the file system.
  }
}

function startTheme(): void {
  const preference = matchMedia("(prefers-color-scheme: dark)");
  let chosen: string | null = null;
  try {
    chosen = localStorage.getItem(THEME);
  } catch {
    // As above.
  }
  setTheme(chosen ?? (preference.matches ? "dark" : "light"));
  preference.addEventListener("change", () => setTheme(preference.matches ? "dark" : "light"));
}

function fail(place: Element, error: Error): void {
  fill(place, h("p", { class: "failure", role: "alert" }, `This cannot be shown: ${error.message}`));
}

startTheme();
loadIndex()
  .then((index) => {
    const page = new Page(index);
    start((state, before) => page.update(state, before));
  })
  .catch((error) => {
    const main = h("main");
    document.body.append(main);
    fail(main, error);
  });
