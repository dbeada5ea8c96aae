/** Tables that are sorted by their heads, and filtered by a text. */

import type { Child } from "./dom";
import { h, number } from "./dom";

export interface Column<Row> {
  /** Its name in the head, in filters and in the address. */
  key: string;
  /** What it holds; the help shows it too. */
  explain: string;
  /** What the column is sorted and filtered by. */
  value: (row: Row) => number | string | null;
  /** By default the value; a number with this many digits. */
  show?: (row: Row) => Child;
  digits?: number;
  /** Whether the smallest comes first at the first click. */
  ascending?: boolean;
  /** Whether it holds names. */
  names?: boolean;
}

const missing = (value: unknown) => value == null || Number.isNaN(value);

/** What a cell of the table shows. */
export function cell<Row>({ show, value, digits }: Column<Row>, row: Row): Child {
  const found = value(row);
  if (missing(found)) return "–";
  if (show) return show(row);
  return typeof found === "string" ? found : number(found, digits);
}

/** The columns in which a row has a value. */
export function filled<Row>(columns: Column<Row>[], rows: Row[]): Column<Row>[] {
  return columns.filter(({ value }) => rows.some((row) => !missing(value(row))));
}

/** "key" or "-key", for descending. */
export function sorted<Row>(rows: Row[], columns: Column<Row>[], order: string): Row[] {
  const column = columns.find(({ key }) => key === order.replace("-", ""));
  if (!column) return rows;
  const sign = order.startsWith("-") ? -1 : 1;
  const keyed = rows.map((row) => [column.value(row), row] as const);
  return keyed
    .sort(([a], [b]) => {
      // What has no value comes last, whatever the order.
      if (missing(a) || missing(b)) return Number(missing(a)) - Number(missing(b));
      return sign * (typeof a === "string" ? a.localeCompare(b as string) : +a! - +b!);
    })
    .map(([, row]) => row);
}

/** A text in quotes, or a column, an operator and a bound: mass>5, S_C < 0.3, class:"traffic sign". */
const TERM = /"([^"]*)"|([^\s"<>=:]+)\s*(<=|>=|[<>=:])\s*("[^"]*"|[^\s"<>=:]*)/g;

/**
 * The rows that pass all bounds of a text, and have what else it says in the first column or in a
 * name; and what of it cannot be understood, which all rows pass.
 */
export function filtered<Row>(
  rows: Row[],
  columns: Column<Row>[],
  text: string,
): { rows: Row[]; problem: string } {
  const tests: ((row: Row) => boolean)[] = [];
  let problem = "";
  const straight = text.replace(/[“”„]/g, '"'); // phones write round quotes
  const rest = straight.replace(TERM, (_, quoted, key, operator, bound) => {
    if (quoted !== undefined) return quoted;
    const column = columns.find((one) => one.key.toLowerCase() === key.toLowerCase());
    const test = column
      ? passes(column, operator, bound.replace(/"/g, ""))
      : `no column “${key}”: there are ${columns.map((one) => one.key).join(", ")}`;
    if (typeof test === "string") problem = test;
    else tests.push(test);
    return "";
  });
  const words = rest.trim().replace(/\s+/g, " ").toLowerCase();
  const searched = columns.filter(({ names }, place) => names || place === 0);
  tests.push((row) =>
    searched.some(({ value }) => String(value(row) ?? "").toLowerCase().includes(words)),
  );
  return { rows: rows.filter((row) => tests.every((test) => test(row))), problem };
}

/** Whether a row passes a bound; or what is wrong with the bound. */
function passes<Row>(
  { key, names, value, digits = 2 }: Column<Row>,
  operator: string,
  bound: string,
): ((row: Row) => boolean) | string {
  if (names) {
    if (!":=".includes(operator)) return `${key} holds names: write ${key}:sky`;
    return (row) => String(value(row) ?? "").toLowerCase().includes(bound.toLowerCase());
  }
  const [, digitsOf, hundredths] = /^(-?[\d.,]+)(%?)$/.exec(bound) ?? [];
  const limit = Number(digitsOf?.replace(",", ".")) / (hundredths ? 100 : 1);
  if (Number.isNaN(limit)) return `${key}${operator} needs a number, as in ${key}>0.5`;
  return (row) => {
    const found = value(row);
    if (typeof found !== "number") return false;
    if (operator === "<") return found < limit;
    if (operator === "<=") return found <= limit;
    if (operator === ">") return found > limit;
    if (operator === ">=") return found >= limit;
    // What is shown is rounded.
    return Math.abs(found - limit) <= 0.5 * 10 ** -digits;
  };
}

/** A table whose heads sort it. */
export function table<Row>(
  label: string,
  columns: Column<Row>[],
  rows: Row[],
  order: string,
  reorder: (order: string) => void,
): HTMLElement {
  const head = columns.map(({ key, explain, ascending }) => {
    const direction = order === key ? "ascending" : order === `-${key}` ? "descending" : null;
    const descend = direction ? direction === "ascending" : !ascending;
    return h(
      "th",
      { scope: "col", "aria-sort": direction },
      h(
        "button",
        {
          type: "button",
          title: explain,
          "data-key": `sort-${key}`,
          onclick: () => reorder(descend ? `-${key}` : key),
        },
        key,
      ),
    );
  });
  return h(
    "div",
    { class: "table", role: "region", tabindex: 0, "aria-label": label, "data-scroll": label },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, head)),
      h(
        "tbody",
        {},
        rows.map((row) => h("tr", {}, columns.map((column) => h("td", {}, cell(column, row))))),
      ),
    ),
  );
}
