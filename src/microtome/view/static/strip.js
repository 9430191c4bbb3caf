// Text with a value for every token. state: {series, token}.
import { along, choice, drawing, h, legend, mode, redrawn, tell, tip } from "./dom.js";
import { measured, visible } from "./lettering.js";
import { css, ink, scale } from "./scale.js";

export function mount(el, source, state) {
  const { tokens, series, unit } = source, flat = source.values.flat;
  if (!tokens.length || !series.length) return el.append(h("p", { class: "empty" }, "No tokens."));
  const at = (line, token) => flat[line * tokens.length + token];
  state.series = Math.min(state.series ?? 0, series.length - 1);
  const text = h("div", { class: "tokens", ...drawing("text with values", `${source.title}. ${tokens.length} tokens.`) });
  const spans = tokens.map((token, i) => {
    const span = h("span", {}, token === "\n" && isNaN(at(0, i)) ? "" : visible(token));
    text.append(span, ...(token.includes("\n") ? [h("br")] : []));
    return span;
  });
  const foot = h("div", { class: "foot" });
  if (series.length > 1) {
    el.append(choice("Series", series.map(visible), state.series, (i) => {
      state.series = i;
      draw();
      tell(el, state);
    }));
  }
  el.append(h("div", { class: "box" }, text), foot);
  const hint = tip(el);

  function draw() {
    const colours = scale(flat, flat.some((value) => value < 0), mode());
    spans.forEach((span, token) => {
      const value = at(state.series, token), known = !isNaN(value);
      span.style.background = known ? css(colours.colour(value)) : "none";
      span.style.color = known ? ink(colours.colour(value)) : "inherit";
    });
    foot.replaceChildren(legend(colours, unit));
  }

  function show(token) {
    const seen = spans[token].getBoundingClientRect();
    const line = (i) => measured(at(i, token), unit);
    hint.show(seen.left, seen.bottom - 8, line(state.series), `token ${token}, “${visible(tokens[token])}”`,
      ...series.map((name, i) => i !== state.series && `${visible(name)} ${line(i)}`));
  }

  function focus(token) {
    spans[state.token]?.classList.remove("focus");
    state.token = token;
    spans[token].classList.add("focus");
    show(token);
    tell(el, state);
  }

  text.addEventListener("pointerover", (event) => {
    const token = spans.indexOf(event.target);
    token < 0 ? hint.hide() : show(token);
  });
  text.addEventListener("pointerleave", hint.hide);
  text.addEventListener("blur", hint.hide);
  text.addEventListener("click", (event) => spans.includes(event.target) && focus(spans.indexOf(event.target)));
  text.addEventListener("keydown", (event) => {
    const to = along(event, state.token, tokens.length);
    if (to !== undefined) focus(to);
  });
  if (state.token !== undefined) spans[state.token]?.classList.add("focus");
  return redrawn(el, draw);
}
