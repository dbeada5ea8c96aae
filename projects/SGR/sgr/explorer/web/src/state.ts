/** What the page shows. It is in the address, so that a link leads to the same view. */

const DEFAULTS = {
  /** images, image, concepts or concept. */
  view: "images",
  image: "0",
  /** The models that are shown, by their numbers; "" stands for all. */
  models: "",
  /** The model whose tokens are listed. */
  model: "0",
  kind: "tokens",
  token: "",
  /** image, labels, components, instances, prediction or errors. */
  layer: "labels",
  /** The class that alone has a colour. */
  only: "",
  colors: "safe",
  /** How a region is drawn: smooth or cells; brightest at one, or at its peak. */
  cells: "smooth",
  scale: "one",
  /** Layer and head of the attention; "" stands for the last layer and the mean over heads. */
  attention: "",
  /** Orders and filters of tokens, concepts and images. */
  order: "-used",
  filter: "",
  active: "",
  concepts: "-images",
  concept_filter: "",
  images: "set",
  image_filter: "",
};

export type State = typeof DEFAULTS;
export type Change = Partial<State>;

let state: State = { ...DEFAULTS };
let listener: (state: State, before: State) => void = () => {};

export const current = (): State => state;

function read(): State {
  const found = { ...DEFAULTS };
  for (const [key, value] of new URLSearchParams(location.hash.slice(1)))
    if (Object.hasOwn(DEFAULTS, key)) found[key as keyof State] = value;
  return found;
}

/** The number that a text of an address says, if it is one of `count`, from 0; else null. */
export function numberIn(text: string, count: number): number | null {
  return /^\d+$/.test(text) && Number(text) < count ? Number(text) : null;
}

/** The address of a state, without what is as by default. It is not empty: "#" leads nowhere. */
export function address(change: Change): string {
  const parameters = new URLSearchParams();
  for (const [key, value] of Object.entries({ ...state, ...change }))
    if (value !== DEFAULTS[key as keyof State]) parameters.set(key, value);
  return `#${parameters}` === "#" ? "#view=images" : `#${parameters}`;
}

/** Change the state. Another view or image is a step in the browser's history. */
export function go(change: Change): void {
  const step = ["view", "image", "token"].some(
    (key) => key in change && change[key as keyof State] !== state[key as keyof State],
  );
  history[step ? "pushState" : "replaceState"](null, "", address(change));
  update();
}

function update(): void {
  const before = state;
  state = read();
  listener(state, before);
}

export function start(listen: (state: State, before: State) => void): void {
  listener = listen;
  state = read();
  window.addEventListener("popstate", update);
  listen(state, state);
}
