// A heat map on a canvas. state: {panel, row, column}; row and column are the focused cell.
import { along, choice, drawing, h, legend, mode, redrawn, tell, tip } from "./dom.js";
import { measured, short, visible } from "./lettering.js";
import { ink, scale } from "./scale.js";

const FONT = "11px ui-sans-serif, system-ui, 'Liberation Sans', sans-serif";
const LARGEST = 8192;

export function mount(el, source, state) {
  const { row_axis, column_axis, unit, panels, diverging } = source;
  const [count, rows, columns] = source.values.shape, flat = source.values.flat;
  if (!flat.length) return el.append(h("p", { class: "empty" }, "No cells."));
  const rowLabels = source.row_labels.map(visible), columnLabels = source.column_labels.map(visible);
  const at = (row, column) => flat[(state.panel * rows + row) * columns + column];
  state.panel = Math.min(state.panel ?? 0, count - 1);
  const thumbs = [];
  let colours, cell, origin;

  const canvas = h("canvas", drawing("heat map", `${source.title}. ${rows} by ${columns} cells, ${row_axis} down, ${column_axis} across.`));
  const box = h("div", { class: "box" }, canvas), foot = h("div", { class: "foot" });
  if (panels.length) {
    const faces = panels.map((name) => {
      const thumb = h("canvas", { width: columns, height: rows, "aria-hidden": "true" });
      thumbs.push(thumb);
      return [thumb, h("span", {}, visible(name))];
    });
    const strip = choice("Panels", faces, state.panel, (i) => {
      state.panel = i;
      paint();
      tell(el, state);
    });
    strip.classList.add("thumbs");
    el.append(strip);
  }
  el.append(box, foot);
  const hint = tip(el);

  // One pixel a cell; what is not measured stays transparent.
  function image(panel) {
    const data = new ImageData(columns, rows), pixels = new Uint32Array(data.data.buffer), from = panel * rows * columns;
    for (let i = 0; i < pixels.length; i++) if (!isNaN(flat[from + i])) pixels[i] = colours.pixel(flat[from + i]);
    return data;
  }

  function draw() {
    colours = scale(flat, diverging, mode());
    thumbs.forEach((thumb, i) => thumb.getContext("2d").putImageData(image(i), 0, 0));
    foot.replaceChildren(legend(colours, unit, flat.some(isNaN)));
    paint();
  }

  function paint() {
    const pen = canvas.getContext("2d");
    pen.font = FONT;
    const widest = (labels) => Math.ceil(Math.max(...labels.map((label) => pen.measureText(label).width)));
    const left = Math.min(150, Math.max(widest(rowLabels), 8)) + 26, across = widest(columnLabels);
    const most = Math.floor(LARGEST / Math.max(rows, columns));
    const wide = Math.max(1, Math.min(most, 54, Math.max(3, Math.floor((el.clientWidth - left - 2) / columns))));
    const high = Math.min(wide, 26);
    const upright = across + 8 > wide, top = (upright ? Math.min(across, 96) : 12) + 28;
    const ratio = Math.min(window.devicePixelRatio || 1, LARGEST / Math.max(wide * columns, high * rows, 1));
    const width = left + wide * columns + 2, height = top + high * rows + 2;
    [cell, origin] = [[wide, high], [left, top]];
    [canvas.width, canvas.height] = [Math.ceil(width * ratio), Math.ceil(height * ratio)];
    [canvas.style.width, canvas.style.height] = [`${width}px`, `${height}px`];
    pen.scale(ratio, ratio);
    pen.font = FONT;
    const style = getComputedStyle(el), [paper, soft, strong] = ["paper", "soft", "ink"].map((name) => style.getPropertyValue("--" + name));

    pen.fillStyle = paper;
    pen.fillRect(0, 0, width, height);
    pen.clearRect(left, top, wide * columns, high * rows);
    const small = new OffscreenCanvas(columns, rows);
    small.getContext("2d").putImageData(image(state.panel), 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(small, left, top, wide * columns, high * rows);
    if (wide >= 10) {
      pen.strokeStyle = paper;
      pen.beginPath();
      for (let i = 0; i <= columns; i++) pen.rect(left + i * wide - 0.5, top, 0, high * rows);
      for (let i = 0; i <= rows; i++) pen.rect(left, top + i * high - 0.5, wide * columns, 0);
      pen.stroke();
    }
    if (wide >= 33 && high >= 16) {
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
        const value = at(row, column);
        if (isNaN(value)) continue;
        pen.fillStyle = ink(colours.colour(value));
        pen.globalAlpha = Math.abs(value) < colours.greatest / 20 ? 0.55 : 0.95;
        pen.fillText(short(value, colours.greatest), left + (column + 0.5) * wide, top + (row + 0.5) * high + 0.5);
      }
      pen.globalAlpha = 1;
    }
    label(pen, rowLabels, high, (i, text) => {
      pen.textAlign = "right";
      pen.textBaseline = "middle";
      pen.fillStyle = i === state.row ? strong : soft;
      pen.fillText(text, left - 7, top + (i + 0.5) * high + 0.5, left - 30);
    });
    label(pen, columnLabels, wide, (i, text) => {
      pen.fillStyle = i === state.column ? strong : soft;
      pen.save();
      pen.translate(left + (i + 0.5) * wide, top - 7);
      if (upright) pen.rotate(-Math.PI / 2);
      pen.textAlign = upright ? "left" : "center";
      pen.textBaseline = upright ? "middle" : "alphabetic";
      pen.fillText(text, 0, upright ? 0.5 : 0, upright ? top - 28 : wide);
      pen.restore();
    });
    pen.fillStyle = soft;
    pen.font = FONT.replace("11px", "italic 11px");
    pen.textAlign = "left";
    pen.textBaseline = "top";
    pen.fillText(`${column_axis} →`, left, 2);
    pen.save();
    pen.translate(2, top);
    pen.rotate(-Math.PI / 2);
    pen.textAlign = "right";
    pen.fillText(`← ${row_axis}`, 0, 0);
    pen.restore();
    if (state.row !== undefined) {
      pen.lineWidth = 2;
      pen.strokeStyle = strong;
      pen.strokeRect(left + state.column * wide - 1, top + state.row * high - 1, wide + 1, high + 1);
    }
  }

  function tellCell(row, column) {
    const seen = canvas.getBoundingClientRect();
    const x = seen.left + origin[0] + (column + 0.5) * cell[0], y = seen.top + origin[1] + (row + 0.5) * cell[1];
    const value = at(row, column);
    hint.show(x, y, isNaN(value) ? "not measured" : measured(value, unit),
      `${row_axis} ${named(row, rowLabels)}`, `${column_axis} ${named(column, columnLabels)}`,
      panels.length > 0 && visible(panels[state.panel]));
  }

  function under(event) {
    const seen = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - seen.left - origin[0]) / cell[0]);
    const row = Math.floor((event.clientY - seen.top - origin[1]) / cell[1]);
    return row >= 0 && row < rows && column >= 0 && column < columns ? [row, column] : undefined;
  }

  function focus(row, column) {
    [state.row, state.column] = [row, column];
    paint();
    tellCell(row, column);
    tell(el, state);
  }

  canvas.addEventListener("pointermove", (event) => {
    const seen = under(event);
    seen ? tellCell(...seen) : hint.hide();
  });
  canvas.addEventListener("pointerleave", hint.hide);
  canvas.addEventListener("blur", hint.hide);
  canvas.addEventListener("click", (event) => under(event) && focus(...under(event)));
  canvas.addEventListener("keydown", (event) => {
    const column = along(event, state.column, columns);
    if (column !== undefined) return focus(state.row ?? 0, column);
    const row = along(event, state.row, rows, "ArrowUp", "ArrowDown");
    if (row !== undefined) focus(row, state.column ?? 0);
  });
  return redrawn(el, draw);
}

// Every label where there is room, else every second, fifth … one.
function label(pen, labels, room, write) {
  const step = Math.max(1, Math.ceil(13 / room));
  labels.forEach((text, i) => i % step === 0 && write(i, text));
}

const named = (place, labels) => (labels[place].trim() === String(place) ? place : `${place}, “${labels[place]}”`);
