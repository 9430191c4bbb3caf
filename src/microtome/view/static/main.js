// Brings the figures of a page to life: reads each one's source, mounts its view, keeps its state in the address.
// `views` is written above it, when a page is made: the modules of the kinds that the page shows.
import { read } from "./source.js";

// `#figure-3:{"panel":1}`, percent-encoded, opens the page with that figure in that state.
function saved(id) {
  try {
    const hash = decodeURIComponent(location.hash);
    if (id && hash.startsWith("#" + id + ":")) return JSON.parse(hash.slice(id.length + 2));
  } catch {}
}

async function enliven(figure) {
  const stage = figure.querySelector(".stage"), numbers = figure.querySelector("details"), plain = [...stage.childNodes];
  figure.dataset.live = "yes";
  if (numbers) numbers.open = false;
  try {
    const source = await read(JSON.parse(figure.querySelector("script").textContent));
    const from = saved(figure.id), state = { ...JSON.parse(figure.dataset.state ?? "{}"), ...from };
    stage.replaceChildren();
    views[figure.dataset.kind].mount(stage, source, state);
    if (!figure.id) return;
    if (from) figure.scrollIntoView();
    stage.addEventListener("state", (event) => {
      history.replaceState(null, "", `#${figure.id}:${encodeURIComponent(JSON.stringify(event.detail))}`);
    });
  } catch (error) {
    stage.replaceChildren(...plain);
    if (numbers) numbers.open = true;
    console.error(error);
  }
}

// A notebook holds many pieces, each with its script: a figure belongs to the first that can draw it.
for (const figure of document.querySelectorAll("figure.microtome")) {
  if (figure.dataset.live || !views[figure.dataset.kind]) continue;
  await enliven(figure);
  await new Promise((resume) => setTimeout(resume));
}
dispatchEvent(new Event("drawn"));
