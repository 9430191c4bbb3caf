// Brings the figures of a page to life: reads each one's source, mounts its view, keeps its state in the address.
// `views` is written above it, when a page is made: the modules of the kinds that the page shows.
import { read } from "./source.js";

// `#figure-3:{"panel":1}`, percent-encoded, opens the page with that figure in that state.
function saved(id) {
  try {
    const hash = decodeURIComponent(location.hash);
    return id && hash.startsWith("#" + id + ":") ? JSON.parse(hash.slice(id.length + 2)) : {};
  } catch {
    return {};
  }
}

async function enliven(figure) {
  const stage = figure.querySelector(".stage"), numbers = figure.querySelector("details");
  try {
    const source = await read(JSON.parse(figure.querySelector("script").textContent));
    const state = { ...JSON.parse(figure.dataset.state ?? "{}"), ...saved(figure.id) };
    stage.replaceChildren();
    figure.dataset.live = "yes";
    if (numbers) numbers.open = false;
    views[figure.dataset.kind].mount(stage, source, state);
    if (!figure.id) return;
    if (Object.keys(saved(figure.id)).length) figure.scrollIntoView();
    stage.addEventListener("state", (event) => {
      history.replaceState(null, "", `#${figure.id}:${encodeURIComponent(JSON.stringify(event.detail))}`);
    });
  } catch (error) {
    figure.dataset.live = "no";
    if (numbers) numbers.open = true;
    console.error(error);
  }
}

for (const figure of document.querySelectorAll("figure.microtome:not([data-live])")) {
  await enliven(figure);
  await new Promise((resume) => setTimeout(resume));
}
dispatchEvent(new Event("drawn"));
