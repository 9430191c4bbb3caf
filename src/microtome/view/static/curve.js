// Curves with bands, in SVG. state: {hidden: [names], x}; x is the focused place on the axis.
import { along, drawing, h, redrawn, s, tell, tip } from "./dom.js";
import { numeral, visible } from "./lettering.js";
import { powers, ticks } from "./scale.js";

const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
const KINDS = 8;

export function mount(el, source, state) {
  const { series, x_axis, y_axis, logarithmic } = source;
  const size = source.x.flat.length, band = source.band?.flat;
  const order = [...source.x.flat.keys()].filter((i) => isFinite(source.x.flat[i]))
    .sort((a, b) => source.x.flat[a] - source.x.flat[b]);
  if (!order.length || !source.y.flat.some(isFinite)) return el.append(h("p", { class: "empty" }, "No points."));
  const y = (line, i) => source.y.flat[line * size + i];
  const edge = (line, i, side) => band[(line * size + i) * 2 + side];
  state.hidden ??= [];
  const shown = () => series.map((_, line) => line).filter((line) => !state.hidden.includes(series[line]));
  const x = order.map((i) => source.x.flat[i]);
  let place, guide, height;

  const names = series.map((name, line) => h("button", {
    "aria-pressed": String(!state.hidden.includes(name)), style: hue(line),
    onclick: () => {
      state.hidden = state.hidden.includes(name) ? state.hidden.filter((other) => other !== name) : [...state.hidden, name];
      names[line].setAttribute("aria-pressed", String(!state.hidden.includes(name)));
      draw();
      tell(el, state);
    },
  }, s("svg", { width: 26, height: 10, "aria-hidden": "true" }, s("line", { x1: 1, x2: 25, y1: 5, y2: 5, ...look(line) })), visible(name)));
  const svg = s("svg", { class: "plot", ...drawing("line chart", `${source.title}. ${y_axis} by ${x_axis}; ${series.length} curves.`) });
  el.append(h("div", { class: "choice", role: "group", "aria-label": "Curves" }, names), h("div", { class: "box" }, svg));
  const hint = tip(el);

  function draw() {
    const seen = shown(), values = [];
    for (const line of seen.length ? seen : series.keys()) for (const i of order) {
      values.push(y(line, i), ...(band ? [edge(line, i, 0), edge(line, i, 1)] : []));
    }
    const finite = values.filter(isFinite);
    let low = finite.reduce((a, b) => Math.min(a, b), Infinity), high = finite.reduce((a, b) => Math.max(a, b), -Infinity);
    if (low > 0 && low < 0.35 * high) low = 0;
    if (!finite.length || (!low && !high)) [low, high] = [0, 1];
    if (low === high) [low, high] = [low - (Math.abs(low) / 2 || 1), high + (Math.abs(high) / 2 || 1)];
    const width = Math.max(280, el.clientWidth);
    height = Math.round(Math.min(340, Math.max(220, width * 0.42)));
    const left = 58, right = width - 14, top = 26, bottom = height - 44;
    const bent = (value) => (logarithmic ? Math.log(value) : value);
    const [first, last] = [bent(x[0]), bent(x.at(-1))];
    place = (value) => left + (right - left) * (last > first ? (bent(value) - first) / (last - first) : 0.5);
    const up = (value) => bottom - ((bottom - top) * (value - low)) / (high - low);
    const down = ticks(low, high, 5), across = logarithmic ? powers(x[0], x.at(-1)) : ticks(x[0], x.at(-1), width / 110);
    guide = s("line", { class: "guide", y1: top, y2: bottom, visibility: "hidden" });
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    svg.replaceChildren(
      ...down.map((t) => s("g", {},
        s("line", { class: Math.abs(t) < 1e-12 ? "axis" : "rule", x1: left, x2: right, y1: up(t), y2: up(t) }),
        s("text", { x: left - 8, y: up(t) + 4, "text-anchor": "end" }, tick(t)))),
      ...across.map((t) => s("text", { x: place(t), y: bottom + 18, "text-anchor": "middle" }, tick(t))),
      s("text", { class: "name", x: left, y: 12 }, visible(y_axis)),
      s("text", { class: "name", x: (left + right) / 2, y: height - 6, "text-anchor": "middle" },
        visible(x_axis) + (logarithmic ? " (logarithmic)" : "")),
      ...seen.filter(() => band).map((line) => s("path", { class: "band", style: hue(line), d: area(line, up) })),
      ...seen.map((line) => s("path", { ...look(line), d: path(line, up) })),
      ...seen.flatMap((line) => (order.length > 40 ? [] : order.filter((i) => isFinite(y(line, i))).map((i) =>
        s("circle", { class: "dot", style: hue(line), r: 2.6, cx: place(source.x.flat[i]), cy: up(y(line, i)) })))),
      guide);
  }

  const path = (line, up) => order.filter((i) => isFinite(y(line, i))).map((i, nth) =>
    `${nth ? "L" : "M"}${place(source.x.flat[i]).toFixed(1)} ${up(y(line, i)).toFixed(1)}`).join("");

  function area(line, up) {
    const known = order.filter((i) => isFinite(edge(line, i, 0)) && isFinite(edge(line, i, 1)));
    const side = (i, which) => `${place(source.x.flat[i]).toFixed(1)} ${up(edge(line, i, which)).toFixed(1)}`;
    const points = [...known.map((i) => side(i, 1)), ...known.toReversed().map((i) => side(i, 0))];
    return points.length ? `M${points.join("L")}Z` : "";
  }

  function show(nth) {
    const seen = svg.getBoundingClientRect(), at = place(x[nth]), i = order[nth];
    guide.setAttribute("x1", at);
    guide.setAttribute("x2", at);
    guide.setAttribute("visibility", "visible");
    const interval = (line) => (band ? ` (${numeral(edge(line, i, 0))} to ${numeral(edge(line, i, 1))})` : "");
    hint.show(seen.left + at, seen.top + 30, `${visible(x_axis)} ${tick(x[nth])}`,
      ...shown().map((line) => `${visible(series[line])} ${numeral(y(line, i))}${interval(line)}`));
  }

  function hide() {
    guide.setAttribute("visibility", "hidden");
    hint.hide();
  }

  svg.addEventListener("pointermove", (event) => {
    const at = event.clientX - svg.getBoundingClientRect().left;
    show(x.reduce((best, value, i) => (Math.abs(place(value) - at) < Math.abs(place(x[best]) - at) ? i : best), 0));
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const to = along(event, state.x, x.length);
    if (to === undefined) return;
    show((state.x = to));
    tell(el, state);
  });
  return redrawn(el, draw);
}

const hue = (line) => `--c: var(--s${line % KINDS})`;

const look = (line) => ({
  class: "line", style: hue(line), "stroke-dasharray": DASHES[Math.floor(line / KINDS) % DASHES.length],
});

const tick = (value) => (Number.isInteger(value) && Math.abs(value) < 1e6 ? String(value).replace("-", "−")
  : numeral(value).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, ""));
