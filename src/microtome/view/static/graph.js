// Nodes in layers from bottom to top, signed arcs between them, in SVG. state: {arcs, node, arc}; `arcs` is how many of
// the strongest are drawn, `node` the id of the one looked at, `arc` the place of an arc looked at, by strength.
import { h, s, tell } from "./dom.js";
import { measured, numeral, visible } from "./lettering.js";

const FEW = 80, TALL = 26, GAP = 14, RISE = 62;

export function mount(el, source, state) {
  const { nodes, unit } = source;
  if (!nodes.length) return el.append(h("p", { class: "empty" }, "No nodes."));
  const arcs = source.arcs.toSorted((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
  const greatest = Math.abs(arcs[0]?.weight) || 1, heaviest = Math.max(...nodes.map((node) => Math.abs(node.weight))) || 1;
  state.arcs = Math.min(state.arcs ?? FEW, arcs.length);
  const { places, width, height } = layout(nodes, arcs, el.clientWidth);
  const sign = (weight) => (weight < 0 ? "negative" : "positive");
  const weight = (value) => (value > 0 ? "+" : "") + measured(value, unit, 3);
  const kind = (arc) => arc.kind && ` (${visible(arc.kind)})`;
  const label = new Map(nodes.map((node) => [node.id, visible(node.label)]));

  const told = (arc) => `${label.get(arc.source)} → ${label.get(arc.target)}${kind(arc)}: ${weight(arc.weight)}`;
  const lines = arcs.map((arc, i) => s("path", {
    class: `arc ${sign(arc.weight)}`, d: bend(places.get(arc.source), places.get(arc.target)),
    "stroke-width": 0.75 + 5 * Math.abs(arc.weight) / greatest, onclick: () => look(undefined, i),
  }, s("title", {}, told(arc))));
  const boxes = new Map(nodes.map((node) => {
    const { x, y, wide } = places.get(node.id);
    return [node.id, s("g", {
      class: `node ${node.weight ? sign(node.weight) : ""}`, "data-kind": node.kind, transform: `translate(${x - wide / 2} ${y - TALL / 2})`,
      tabindex: -1, role: "button", "aria-label": label.get(node.id) + (node.weight ? " " + weight(node.weight) : ""),
      onclick: () => look(node.id), onfocus: () => look(node.id),
      onpointerenter: () => light(node.id), onpointerleave: () => light(state.node),
    }, s("rect", { width: wide, height: TALL, rx: 6 }),
      s("rect", { class: "fill", width: wide, height: TALL, rx: 6, "fill-opacity": 0.5 * Math.abs(node.weight) / heaviest }),
      s("text", { x: wide / 2, y: TALL / 2 + 4, "text-anchor": "middle" }, label.get(node.id)))];
  }));
  const svg = s("svg", { class: "graph", width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${source.title}. Arrow keys move.` },
    s("g", {}, lines.toReversed()), s("g", {}, [...boxes.values()]));
  const shown = h("output", {}), about = h("div", { class: "about", "aria-live": "polite" });
  const slider = h("input", {
    type: "range", min: 0, max: arcs.length, value: state.arcs, "aria-label": "How many arcs, strongest first",
    oninput: () => {
      state.arcs = Number(slider.value);
      thin();
      tell(el, state);
    },
  });
  const legend = h("div", { class: "legend" }, h("i", { class: "positive" }), "positive", h("i", { class: "negative" }), "negative");
  el.append(h("div", { class: "controls" }, h("label", {}, "Arcs ", slider, shown), legend), h("div", { class: "box" }, svg), about);
  svg.addEventListener("keydown", (event) => {
    const to = step(places, state.node, event.key);
    if (event.key === "Escape") look();
    else if (to) boxes.get(to).focus();
    else return;
    event.preventDefault();
  });

  const drawn = () => arcs.slice(0, state.arcs);

  function thin() {
    lines.forEach((line, i) => line.classList.toggle("off", i >= state.arcs));
    const used = new Set(drawn().flatMap((arc) => [arc.source, arc.target]));
    boxes.forEach((box, id) => box.classList.toggle("idle", arcs.length > 0 && !used.has(id)));
    const least = state.arcs && Math.abs(arcs[state.arcs - 1].weight);
    shown.textContent = state.arcs ? `${state.arcs} of ${arcs.length}, magnitude ${numeral(least)} or more` : `none of ${arcs.length}`;
    light(state.node);
  }

  function light(id) {
    const near = new Set([id]);
    arcs.forEach((arc, i) => {
      const on = i < state.arcs && (arc.source === id || arc.target === id || i === state.arc);
      lines[i].classList.toggle("on", on);
      if (on) near.add(arc.source).add(arc.target);
    });
    svg.classList.toggle("lit", near.size > 1);
    boxes.forEach((box, other) => box.classList.toggle("near", near.has(other)));
  }

  function look(id, arc) {
    [state.node, state.arc] = [id, arc];
    describe(id);
    tell(el, state);
  }

  function describe(id) {
    boxes.forEach((box, other) => box.setAttribute("tabindex", other === (id ?? nodes[0].id) ? 0 : -1));
    const node = nodes.find((other) => other.id === id), way = arcs[state.arc];
    const list = (name, some, end) => some.length > 0 && h("div", {}, h("h5", {}, name),
      h("ul", {}, some.map((arc) => h("li", {}, h("span", { class: sign(arc.weight) }, weight(arc.weight)), " ", label.get(arc[end]), kind(arc)))));
    about.replaceChildren(h("div", {}, node ? [
      h("h4", {}, label.get(id), h("small", {}, " ", visible(node.kind), " ", node.weight ? weight(node.weight) : "")),
      node.note && h("p", {}, visible(node.note)),
      h("div", { class: "ends" }, list("from", drawn().filter((arc) => arc.target === id), "source"),
        list("to", drawn().filter((arc) => arc.source === id), "target")),
    ] : way ? [h("h4", {}, told(way)), h("p", {}, visible(way.note))] : h("p", { class: "hint" }, "Choose a node or arc.")));
    light(id);
  }

  if (!boxes.has(state.node)) state.node = undefined;
  thin();
  describe(state.node);
}

// Layers become rows. Across, nodes are drawn to their neighbours and pushed off whatever stands close in the rows
// around, so that arcs find room; then each row is put in order without overlaps. The same graph always looks the same.
function layout(nodes, arcs, room) {
  const layers = [...new Set(nodes.map((node) => node.layer))].sort((a, b) => b - a);
  const rows = layers.map((layer) => nodes.filter((node) => node.layer === layer)), places = new Map();
  const width = Math.max(room, ...rows.map((row) => row.reduce((sum, node) => sum + wide(node) + GAP, 32)));
  rows.forEach((row, n) => row.forEach((node, i) => places.set(node.id, {
    row: n, y: 20 + n * RISE, wide: wide(node), x: width * ((i + 0.5 + 0.3 * Math.sin(2.4 * n)) / row.length),
  })));
  const all = [...places.values()];
  for (let sweep = 0; sweep < 80; sweep++) {
    for (const place of all) [place.pull, place.weight] = [0, 1];
    for (const arc of arcs) {
      const a = places.get(arc.source), b = places.get(arc.target), force = 0.3 + Math.abs(arc.weight / arcs[0].weight || 0);
      pull(a, b.x - a.x, force);
      pull(b, a.x - b.x, force);
      for (const place of all) {
        const part = (place.row - a.row) / (b.row - a.row);
        if (part > 0 && part < 1) push(place, a.x + part * (b.x - a.x), place.wide / 2 + 14, force);
      }
    }
    for (const place of all) for (const other of all) {
      if (place !== other && Math.abs(place.row - other.row) < 4) push(place, other.x, (place.wide + other.wide) / 2 + 40, 2);
    }
    for (const place of all) place.x += (0.6 * place.pull) / place.weight;
    rows.forEach((row) => spread(row.map((node) => places.get(node.id)), width));
  }
  const left = Math.min(...all.map((place) => place.x - place.wide / 2)), right = Math.max(...all.map((place) => place.x + place.wide / 2));
  for (const place of all) place.x = width / 2 + (place.x - (left + right) / 2) * Math.min(1.5, (width - 32) / (right - left));
  return { places, width, height: 40 + RISE * (rows.length - 1) };
}

function pull(place, off, force) {
  place.pull += force * off;
  place.weight += force;
}

function push(place, x, reach, force) {
  const off = place.x - x || 0.01 * (place.row % 2 ? -1 : 1);
  if (Math.abs(off) < reach) pull(place, Math.sign(off) * (reach - Math.abs(off)), force);
}

const wide = (node) => Math.min(220, Math.max(40, 18 + 6.6 * visible(node.label).length));

// Keeps the order of a row, its gaps, and its ends within the drawing.
function spread(row, width) {
  row.sort((a, b) => a.x - b.x);
  let edge = 16;
  for (const place of row) {
    place.x = Math.max(place.x, edge + place.wide / 2);
    edge = place.x + place.wide / 2 + GAP;
  }
  edge = width - 16;
  for (const place of row.toReversed()) {
    place.x = Math.min(place.x, edge - place.wide / 2);
    edge = place.x - place.wide / 2 - GAP;
  }
}

function bend(from, to) {
  if (from.row === to.row) {
    const y = from.y - TALL / 2;
    return `M${from.x} ${y}C${from.x} ${y - 26} ${to.x} ${y - 26} ${to.x} ${y}`;
  }
  const up = Math.sign(from.row - to.row), y1 = from.y - (up * TALL) / 2, y2 = to.y + (up * TALL) / 2;
  const pull = (y1 - y2) * 0.45;
  return `M${from.x} ${y1}C${from.x} ${y1 - pull} ${to.x} ${y2 + pull} ${to.x} ${y2}`;
}

const WAYS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

// The node an arrow key leads to: the next in the row, or the nearest in the row above or below.
function step(places, id, key) {
  if (!WAYS[key]) return;
  const here = places.get(id), [rows, side] = WAYS[key];
  if (!here) return places.keys().next().value;
  const off = (place) => Math.abs(place.x - here.x);
  return [...places].filter(([, p]) => p.row === here.row + rows && (rows || side * (p.x - here.x) > 0))
    .sort(([, a], [, b]) => off(a) - off(b))[0]?.[0];
}
