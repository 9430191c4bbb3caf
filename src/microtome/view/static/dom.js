// What all views share of the page: elements, the theme, a tip under the pointer, a legend, a told state.
import { numeral, visible } from "./lettering.js";

const NS = "http://www.w3.org/2000/svg";

const given = (value) => (value ?? false) !== false;

function make(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (given(value)) element.setAttribute(name, value);
  }
  element.append(...children.flat(3).filter(given));
  return element;
}

export const h = (tag, attributes = {}, ...children) => make(document.createElement(tag), attributes, children);
export const s = (tag, attributes = {}, ...children) => make(document.createElementNS(NS, tag), attributes, children);

const dark = matchMedia("(prefers-color-scheme: dark)");
let printing = false;

export const mode = () => (dark.matches && !printing ? "dark" : "light");

// Calls `draw` now, and again when the width of `el`, the theme or the medium changes. Returns a function that stops it.
export function redrawn(el, draw) {
  let width = el.clientWidth;
  const resized = new ResizeObserver(() => {
    if (el.clientWidth !== width) draw((width = el.clientWidth));
  });
  const print = (on) => () => draw((printing = on));
  const heard = [[dark, "change", draw], [window, "beforeprint", print(true)], [window, "afterprint", print(false)]];
  for (const [target, event, listener] of heard) target.addEventListener(event, listener);
  resized.observe(el);
  draw();
  return () => {
    resized.disconnect();
    for (const [target, event, listener] of heard) target.removeEventListener(event, listener);
  };
}

// A small box beside the pointer or the focus, read out to those who listen.
export function tip(el) {
  const box = h("div", { class: "tip", role: "status", hidden: true });
  el.append(box);
  return {
    show(x, y, value, ...lines) {
      box.replaceChildren(h("b", {}, value), ...lines.filter(Boolean).map((line) => h("span", {}, line)));
      box.hidden = false;
      const host = el.getBoundingClientRect();
      const left = x - host.left + 14, top = y - host.top + 14;
      box.style.left = `${Math.max(0, left + box.offsetWidth > el.clientWidth ? left - box.offsetWidth - 28 : left)}px`;
      box.style.top = `${top}px`;
    },
    hide: () => (box.hidden = true),
  };
}

export function legend(scale, unit, missing) {
  return h("div", { class: "legend" },
    h("span", {}, numeral(scale.low)),
    h("span", { class: "ramp", style: `background: ${scale.gradient}` }),
    h("span", {}, numeral(scale.high), " ", visible(unit)),
    missing && h("span", { class: "missing" }, "not measured"));
}

// Buttons of which one is pressed.
export function choice(label, names, chosen, choose) {
  const buttons = names.map((name, i) => h("button", {
    "aria-pressed": String(i === chosen),
    onclick: () => {
      buttons.forEach((button, j) => button.setAttribute("aria-pressed", String(i === j)));
      choose(i);
    },
  }, name));
  return h("div", { class: "choice", role: "group", "aria-label": label }, buttons);
}

// Where an arrow key leads in a row of `size` places; undefined for other keys.
export function along(event, place, size, back = "ArrowLeft", on = "ArrowRight") {
  const to = { [back]: (place ?? 1) - 1, [on]: (place ?? -1) + 1, Home: 0, End: size - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  return Math.min(size - 1, Math.max(0, to));
}

// What makes an element a drawing that is read with the keyboard.
export const drawing = (kind, text) => ({
  tabindex: 0, role: "application", "aria-roledescription": kind, "aria-label": `${text} Arrow keys move.`,
});

// Tells the host that the state has changed: it may put it in the address, or send it to Python.
export const tell = (el, state) => el.dispatchEvent(new CustomEvent("state", { bubbles: true, detail: state }));
