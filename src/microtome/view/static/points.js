// Points that move from frame to frame, in SVG, one plane beside another. state: {frame}.
import { along, drawing, h, redrawn, s, tell } from "./dom.js";
import { numeral, visible } from "./lettering.js";

const BEAT = 700;
const LOOK = { class: "point", "text-anchor": "middle", style: "fill: var(--s0); font-size: 11px" };

export function mount(el, source, state) {
  const { frames, planes, labels, frame_axis } = source, flat = source.values.flat;
  if (!flat.length) return el.append(h("p", { class: "empty" }, "No points."));
  const at = (frame, plane, point, axis) => flat[((frame * planes.length + plane) * labels.length + point) * 2 + axis];
  const span = planes.map((_, plane) => {
    let most = 0;
    for (const frame of frames.keys()) for (const point of labels.keys()) for (const axis of [0, 1]) {
      const value = Math.abs(at(frame, plane, point, axis));
      if (value > most) most = value;
    }
    return most || 1;
  });
  state.frame = Math.min(state.frame ?? frames.length - 1, frames.length - 1);
  let playing;

  const play = h("button", { "aria-pressed": "false", onclick: () => (playing ? stop() : start()) }, "Play");
  const slider = h("input", {
    type: "range", style: "flex: 1; max-width: 24rem", min: 0, max: frames.length - 1, value: state.frame, "aria-label": visible(frame_axis),
    oninput: () => { stop(); show(Number(slider.value)); },
  });
  const told = h("output", {});
  const svg = s("svg", { class: "plot", ...drawing("moving points", `${source.title}. ${labels.length} points, ${frames.length} frames.`) });
  el.append(h("div", { class: "choice" }, play, slider, told), h("div", { class: "box" }, svg));

  function draw() {
    const width = Math.max(280, el.clientWidth), gap = 16;
    const across = Math.max(1, Math.min(planes.length, Math.floor(width / 260)));
    const side = Math.min(360, (width - gap * (across - 1)) / across), head = 24;
    const rows = Math.ceil(planes.length / across), height = rows * (side + head + gap);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    svg.replaceChildren(...planes.map((name, plane) => {
      const left = (plane % across) * (side + gap), top = Math.floor(plane / across) * (side + head + gap) + head;
      const place = (value) => (side / 2) * (1 + (0.93 * value) / span[plane]);
      return s("g", { transform: `translate(${left} ${top})` },
        s("text", { x: 0, y: -9 }, `${visible(name)}, axes from ${numeral(-span[plane])} to ${numeral(span[plane])}`),
        s("rect", { class: "rule", fill: "none", x: 0, y: 0, width: side, height: side }),
        s("line", { class: "rule", x1: 0, x2: side, y1: side / 2, y2: side / 2 }),
        s("line", { class: "rule", x1: side / 2, x2: side / 2, y1: 0, y2: side }),
        labels.map((label, point) => {
          const [x, y] = [at(state.frame, plane, point, 0), at(state.frame, plane, point, 1)];
          return isFinite(x) && isFinite(y) && s("text", { ...LOOK, x: place(x), y: side - place(y) + 4 }, visible(label));
        }));
    }));
    told.textContent = `${visible(frame_axis)} ${visible(frames[state.frame])}`;
    slider.value = state.frame;
  }

  function show(frame) {
    state.frame = frame;
    draw();
    tell(el, state);
  }

  function start() {
    if (state.frame === frames.length - 1) show(0);
    play.setAttribute("aria-pressed", "true");
    playing = setInterval(() => (state.frame < frames.length - 1 ? show(state.frame + 1) : stop()), BEAT);
  }

  function stop() {
    clearInterval(playing);
    playing = undefined;
    play.setAttribute("aria-pressed", "false");
  }

  svg.addEventListener("keydown", (event) => {
    const to = along(event, state.frame, frames.length);
    if (to === undefined) return;
    stop();
    show(to);
  });
  const still = redrawn(el, draw);
  return () => {
    stop();
    still();
  };
}
