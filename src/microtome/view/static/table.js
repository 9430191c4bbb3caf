// A table that sorts by the column clicked and can be searched. state: {sort, down, find, all}.
import { h, tell } from "./dom.js";
import { cellText, visible } from "./lettering.js";

const FIRST = 200, SEARCHED = 15;

export function mount(el, source, state) {
  const { columns, rows } = source;
  if (!columns.length) return el.append(h("p", { class: "empty" }, "No columns."));
  const texts = rows.map((row) => row.map((cell, c) => cellText(cell, source.exact[c])));
  const numeric = columns.map((_, c) => rows.every((row) => typeof row[c] !== "string"));
  const heads = columns.map((name, c) => h("th", { scope: "col", class: numeric[c] && "number" },
    h("button", { onclick: () => sort(c) }, visible(name))));
  const body = h("tbody"), more = h("button", { class: "more", onclick: () => ((state.all = true), draw()) });
  const find = h("input", { type: "search", placeholder: "Find …", "aria-label": "Find rows", value: state.find ?? "",
    oninput: () => {
      state.find = find.value;
      draw();
      tell(el, state);
    } });
  if (rows.length >= SEARCHED) el.append(h("div", { class: "controls" }, find));
  el.append(h("div", { class: "box", tabindex: 0, role: "region", "aria-label": source.title },
    h("table", {}, h("thead", {}, h("tr", {}, heads)), body)), more);

  function sort(column) {
    state.down = state.sort === column ? !state.down : numeric[column];
    state.sort = column;
    draw();
    tell(el, state);
  }

  function draw() {
    const wanted = (state.find ?? "").toLowerCase();
    const order = rows.map((_, i) => i).filter((i) => !wanted || texts[i].some((text) => text.toLowerCase().includes(wanted)));
    if (state.sort !== undefined) order.sort((a, b) => compare(rows[a][state.sort], rows[b][state.sort], state.down) || a - b);
    const shown = state.all ? order : order.slice(0, FIRST);
    heads.forEach((head, c) => (head.ariaSort = c !== state.sort ? null : state.down ? "descending" : "ascending"));
    body.replaceChildren(...shown.map((i) => h("tr", {}, texts[i].map((text, c) => h("td", { class: numeric[c] && "number" }, text)))));
    if (!order.length) body.append(h("tr", {}, h("td", { colspan: columns.length, class: "empty" }, "No rows.")));
    more.hidden = shown.length === order.length;
    more.textContent = `Show all ${order.length} rows`;
  }

  draw();
}

// Nothing stands last either way; numbers by value, words as a reader would order them.
function compare(a, b, down) {
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === "string" || typeof b === "string" ? String(a).localeCompare(String(b), undefined, { numeric: true }) : a - b;
  return down ? -order : order;
}
