/** Elements without HTML in strings: a text from a file is only ever a text. */

export type Child = Node | string | number | null | undefined | false | Child[];

type Properties = {
  [name: string]: string | number | boolean | null | undefined | ((event: any) => void);
};

/**
 * Make an element. Properties that begin with "on" are listeners, and the others attributes: true
 * stands for an attribute without a value, and false, null and undefined for none.
 */
export function h<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  properties: Properties = {},
  ...children: Child[]
): HTMLElementTagNameMap[Tag] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, String(value));
  }
  append(element, children);
  return element;
}

function append(element: Element, children: Child[]): void {
  for (const child of children) {
    if (Array.isArray(child)) append(element, child);
    else if (child != null && child !== false)
      element.append(typeof child === "number" ? String(child) : child);
  }
}

/**
 * Replace what an element holds. The focus stays at the element with the same data-key, and the
 * element keeps how far it is scrolled.
 */
export function fill(element: Element, ...children: Child[]): void {
  const focused = document.activeElement;
  const key = element.contains(focused) ? focused?.getAttribute("data-key") : null;
  const scrolled = new Map<string, number>();
  for (const part of element.querySelectorAll("[data-scroll]"))
    scrolled.set(part.getAttribute("data-scroll")!, part.scrollTop);
  element.replaceChildren();
  append(element, children);
  for (const part of element.querySelectorAll("[data-scroll]"))
    part.scrollTop = scrolled.get(part.getAttribute("data-scroll")!) ?? 0;
  if (key == null) return;
  const again = element.querySelector<HTMLElement>(`[data-key="${CSS.escape(key)}"]`);
  again?.focus({ preventScroll: true });
}

export function number(value: number | null | undefined, digits = 2): string {
  return value == null || Number.isNaN(value) ? "–" : value.toFixed(digits);
}

export function percent(share: number | null | undefined, digits = 0): string {
  return share == null || Number.isNaN(share) ? "–" : `${(100 * share).toFixed(digits)} %`;
}

export const css = (color: readonly number[]) => `rgb(${color.join(",")})`;

/** A small square in a colour. */
export function swatch(color: readonly number[]): HTMLElement {
  const element = h("span", { class: "swatch", "aria-hidden": "true" });
  element.style.background = css(color);
  return element;
}

/** A choice out of a list. */
export function select(
  label: string,
  options: readonly (readonly [string, string])[],
  value: string,
  change: (value: string) => void,
): HTMLElement {
  const choice = h(
    "select",
    {
      "aria-label": label,
      "data-key": label,
      onchange: (event) => change(event.target.value),
    },
    options.map(([key, text]) => h("option", { value: key, selected: key === value }, text)),
  );
  return h("label", { class: "field" }, h("span", {}, label), choice);
}

/**
 * A button to the image or concept (`what`) before or behind. At the end it does nothing, but it is
 * not disabled, because a disabled button loses the focus.
 */
export function stepButton(
  by: -1 | 1,
  what: string,
  from: number,
  count: number,
  step: (to: number) => void,
): HTMLElement {
  const to = from + by;
  const atEnd = to < 0 || to >= count;
  return h(
    "button",
    {
      type: "button",
      "data-key": `step${by}`,
      "aria-disabled": String(atEnd),
      "aria-label": `${by < 0 ? "previous" : "next"} ${what}`,
      onclick: () => atEnd || step(to),
    },
    by < 0 ? "←" : "→",
  );
}

/**
 * A field whose text narrows a list down. It stays in the page while somebody types, because phones
 * would hide their keyboard, and input methods lose what is begun.
 */
export class FilterField {
  readonly element: HTMLElement;
  private readonly input: HTMLInputElement;
  private readonly count = h("span", { class: "muted", role: "status" });
  private readonly problem = h("span", { class: "problem", role: "status" });

  constructor(label: string, placeholder: string, change: (text: string) => void) {
    this.input = h("input", {
      type: "search",
      "aria-label": label,
      placeholder,
      autocapitalize: "off",
      autocomplete: "off",
      spellcheck: "false",
      oninput: () => change(this.input.value),
    });
    const field = h("label", { class: "field" }, h("span", {}, label), this.input);
    this.element = h("div", { class: "group" }, field, this.count, this.problem);
  }

  /** Show a text, what it leaves, and what of it cannot be understood. */
  show(text: string, count: string, problem = ""): void {
    if (this.input.value !== text) this.input.value = text;
    this.count.textContent = count;
    this.input.setAttribute("aria-invalid", String(problem !== ""));
    this.problem.textContent = problem;
  }
}

export interface Bar {
  name: string;
  share: number;
  color?: readonly number[];
  action?: HTMLElement;
}

/** Bars with names and shares; the longest ones first, and the others summed up. */
export function bars(label: string, items: Bar[], most = 8): HTMLElement {
  const sorted = [...items].sort((a, b) => b.share - a.share).filter(({ share }) => share > 0.0005);
  const shown: Bar[] = sorted.length > most ? sorted.slice(0, most - 1) : sorted;
  if (sorted.length > most) {
    const share = sorted.slice(most - 1).reduce((sum, item) => sum + item.share, 0);
    shown.push({ name: `${sorted.length - most + 1} others`, share, color: [140, 140, 140] });
  }
  return h(
    "ul",
    { class: "bars", "aria-label": label },
    shown.map((item) => {
      const bar = h("span", { class: "bar", "aria-hidden": "true" }, h("span"));
      const inner = bar.firstElementChild as HTMLElement;
      inner.style.width = `${100 * Math.min(1, item.share)}%`;
      if (item.color) inner.style.background = css(item.color);
      const name = h("span", { class: "name" }, item.action ?? item.name);
      return h("li", {}, name, bar, h("span", { class: "value" }, percent(item.share, 1)));
    }),
  );
}
