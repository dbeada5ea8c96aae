/** One image with a layer and a region over it, and the pointer. */

import type { Index, Tokens, Values } from "./data";
import { cellAt } from "./data";
import { h } from "./dom";
import { centroidOf, drawHeat, drawMap, LabelMap, placeCells } from "./drawing";

/** A token to or from which another one attends, and how much. */
export interface Partner {
  token: number;
  weight: number;
}

const SVG = "http://www.w3.org/2000/svg";

export class Stage {
  readonly element: HTMLElement;
  readonly caption = h("figcaption");
  private readonly picture = h("img", { alt: "", decoding: "async" });
  private readonly map = h("canvas", { class: "map" });
  private readonly heat = h("canvas", { class: "heat" });
  private readonly marks = document.createElementNS(SVG, "svg");
  private readonly cell = h("div", { class: "cell", hidden: true });
  private readonly frame: HTMLElement;
  private tokens: Tokens | null = null;
  private place: [number, number] = [0.5, 0.5];

  /**
   * @param point called with the place under the pointer, (x, y) in shares of the image.
   * @param choose called with the place of a click.
   */
  constructor(
    private readonly index: Index,
    name: string,
    private readonly point: (x: number, y: number) => void,
    private readonly choose: (x: number, y: number) => void,
  ) {
    this.marks.setAttribute("viewBox", "0 0 100 100");
    this.marks.setAttribute("preserveAspectRatio", "none");
    this.marks.setAttribute("aria-hidden", "true");
    this.frame = h(
      "div",
      {
        class: "frame",
        role: "application",
        tabindex: 0,
        "aria-label": `${name}: arrow keys move over the cells, Enter chooses a token`,
        "aria-roledescription": "image",
        onpointermove: (event: PointerEvent) => this.point(...this.at(event)),
        onclick: (event: PointerEvent) => this.choose(...this.at(event)),
        onkeydown: (event: KeyboardEvent) => this.key(event),
        onfocus: () => this.point(...this.place),
      },
      this.picture,
      this.map,
      this.heat,
      this.cell,
    );
    this.frame.append(this.marks);
    this.element = h("figure", { class: "stage" }, this.caption, this.frame);
  }

  private at(event: PointerEvent): [number, number] {
    const box = this.frame.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  private key(event: KeyboardEvent): void {
    const steps: Record<string, [number, number]> = {
      ArrowLeft: [-1, 0],
      ArrowRight: [1, 0],
      ArrowUp: [0, -1],
      ArrowDown: [0, 1],
    };
    if (event.key === "Enter") this.choose(...this.place);
    else if (event.key in steps) {
      const [dx, dy] = steps[event.key];
      const [x, y] = this.place;
      // One cell, or a fortieth of the image where there are none.
      const [stepX, stepY] = this.tokens
        ? [this.tokens.stride / this.tokens.input[1], this.tokens.stride / this.tokens.input[0]]
        : [1 / 40, 1 / 40];
      const inside = (value: number) => Math.min(0.999, Math.max(0, value));
      this.point(inside(x + dx * stepX), inside(y + dy * stepY));
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  showImage(source: string, name: string, [height, width]: readonly number[]): void {
    if (this.picture.getAttribute("src") !== source) this.picture.src = source;
    this.picture.alt = name;
    this.frame.style.aspectRatio = `${width} / ${height}`;
    // So that a tall image is not higher than the window.
    this.frame.style.maxWidth = `${(85 * width) / height}vh`;
  }

  showMap(
    map: LabelMap | null,
    options: { labels: Values | null; only: string; bordersOnly: boolean },
  ): void {
    drawMap(this.map, map, options);
  }

  /** Show the region of a token, its centroid, and lines to the tokens that it attends to. */
  showToken(
    tokens: Tokens | null,
    token: number | null,
    options: { cells: string; scale: string },
    partners: Partner[],
  ): void {
    this.tokens = tokens;
    const shown = tokens !== null && token !== null;
    this.frame.classList.toggle("grey", shown);
    this.heat.hidden = !shown;
    this.heat.classList.toggle("cells", options.cells === "cells");
    this.marks.replaceChildren();
    if (!shown) return;
    drawHeat(this.heat, tokens, token, this.index.heat, options.scale === "peak");
    placeCells(this.heat, tokens);
    const [x, y] = centroidOf(tokens, token);
    for (const partner of partners) {
      const [toX, toY] = centroidOf(tokens, partner.token);
      for (const kind of ["halo", "line"]) {
        const line = document.createElementNS(SVG, "line");
        const ends = { x1: x, y1: y, x2: toX, y2: toY };
        for (const [key, value] of Object.entries(ends)) line.setAttribute(key, `${100 * value}`);
        line.setAttribute("class", kind);
        line.style.strokeWidth = `${(kind === "halo" ? 2 : 0) + 1 + 8 * partner.weight}px`;
        this.marks.append(line);
      }
    }
    for (const kind of ["halo", "dot"]) {
      const dot = document.createElementNS(SVG, "line");
      // A line without a length and with round ends is a circle whatever the picture's shape is.
      for (const key of ["x1", "x2"]) dot.setAttribute(key, `${100 * x}`);
      for (const key of ["y1", "y2"]) dot.setAttribute(key, `${100 * y}`);
      dot.setAttribute("class", kind);
      dot.style.strokeWidth = kind === "halo" ? "12px" : "8px";
      this.marks.append(dot);
    }
  }

  /** Outline the cell at a place. */
  showPointer(x: number, y: number): void {
    this.place = [x, y];
    this.cell.hidden = false;
    const { style } = this.cell;
    if (!this.tokens) {
      [style.width, style.height] = ["0", "0"];
      [style.left, style.top] = [`${100 * x}%`, `${100 * y}%`];
      return;
    }
    const [row, column] = cellAt(this.tokens, x, y);
    const { stride, input } = this.tokens;
    style.left = `${(100 * column * stride) / input[1]}%`;
    style.top = `${(100 * row * stride) / input[0]}%`;
    style.width = `${(100 * stride) / input[1]}%`;
    style.height = `${(100 * stride) / input[0]}%`;
  }
}
