// State and events of the page. view.js displays, api.js sends requests, words.js makes sentences.

import { address, download, key, read, send, ServiceError } from "./api.js";
import { filesOf, fitting, load, nameOf } from "./images.js";
import { $, announce, element, showEntry, showFrame, showKnown, showLook, showPart, showStatus, showStrip } from "./view.js";
import { className, passes, percent, problemWords, sureness } from "./words.js";

const AT_ONCE = 2; // requests in flight
const MAX_ENTRIES = 24; // photos in the row
const RETRY = new Set(["unauthorized", "model_not_found", "not_ready"]); // may be solved once the page has a model
const POLL = 1500; // milliseconds between two checks for a model that is not ready

const state = {
  models: [],
  model: null, // name of the model in use
  info: null, // its answer to GET /info
  entries: [], // newest first
  selected: null,
  running: 0,
  keyed: false, // whether the service needs a key
};
let number = 0;
let timer = 0;

// Models

async function start() {
  clearTimeout(timer);
  try {
    state.models = (await read("models")).models;
    const known = (name) => state.models.find((model) => model.name === name && model.version);
    const chosen = known(state.model) ?? state.models.find((model) => model.default && model.version) ?? state.models.find((model) => model.version);
    showChooser(chosen);
    if (!chosen) return state.entries.length ? void (timer = setTimeout(start, POLL)) : unready();
    await choose(chosen);
    if (state.models.some(coming)) timer = setTimeout(start, POLL);
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    const { problem } = error;
    if (problem.code === "unauthorized") return askForKey();
    if (!state.entries.length) showStatus(...problemWords({ ...problem, retryAfter: 0 }), true);
    timer = setTimeout(start, POLL * 2);
  }
}

const coming = (model) => model.phase === "loading" || model.phase === "warming";

function unready() {
  const refused = state.models.find((model) => model.refused)?.refused;
  if (state.models.some(coming)) showStatus("The model is being loaded", "This takes a moment.", true);
  else if (refused) showStatus("The model could not be loaded", refused.detail, false);
  else showStatus("No model is served yet", "Fit one with “transferapp fit” and put it into the service's folder of models.", true);
  timer = setTimeout(start, POLL);
}

function showChooser(chosen) {
  const served = state.models.filter((model) => model.version);
  $("chooser").hidden = served.length < 2;
  const shown = [...$("model").options].map((option) => option.value);
  if (shown.join("\n") === served.map((model) => model.name).join("\n") && $("model").value === chosen?.name) return;
  $("model").replaceChildren(...served.map(({ name }) => element("option", { value: name, textContent: name, selected: name === chosen?.name })));
}

async function choose({ name, version }) {
  if (state.info?.name !== name || state.info.version !== version) {
    state.info = await read("info", { model: name });
  }
  state.model = name;
  $("name").textContent = state.models.filter((model) => model.version).length > 1 ? "transferapp" : name;
  $("report").hidden = !state.info.report;
  $("report").href = address("report", { model: name });
  showKnown(state.info);
  if (!state.entries.length) return showPart("start");
  showPart("result");
  for (const entry of state.entries) if (entry.asked !== name || RETRY.has(entry.problem?.code)) reset(entry);
  select(state.selected); // also requests its explanation, if it has none yet
  work();
}

function askForKey() {
  state.keyed = true;
  const wrong = Boolean(key.get());
  key.forget();
  $("key-text").textContent = wrong
    ? "That key is not one of the service's. Check it and enter it again."
    : "Ask the operator of the service for one. It is kept in this tab until you close it.";
  showPart("key");
  $("key").focus();
  if (wrong) announce($("key-text").textContent);
}

// Photos, from their choice to their answer

function add(files) {
  if (!files.length) return;
  const added = files.slice(0, MAX_ENTRIES).map((file) => {
    const entry = { id: String(++number), file, name: nameOf(file), url: URL.createObjectURL(file), image: null, loaded: false };
    entry.loading = load(entry.url).then((image) => {
      Object.assign(entry, { image, loaded: true });
      refresh(entry);
      return image;
    });
    return reset(entry);
  });
  state.entries = [...added, ...state.entries];
  for (const entry of state.entries.splice(MAX_ENTRIES)) discard(entry);
  const lost = $("start").contains(document.activeElement);
  if (!$("start").hidden || !$("result").hidden) showPart("result");
  select(added[0]);
  if (lost) $("again").focus({ preventScroll: true });
  if (files.length > MAX_ENTRIES) announce(`Only the first ${MAX_ENTRIES} of ${files.length} photos are classified.`);
  work();
}

function reset(entry) {
  entry.controller?.abort();
  entry.looking?.abort();
  return Object.assign(entry, { controller: null, asked: null, answer: null, problem: null, lookProblem: null, label: null, note: "", waiting: "", explanations: new Map() });
}

function discard(entry) {
  reset(entry);
  entry.gone = true;
  URL.revokeObjectURL(entry.url);
}

function select(entry) {
  if (state.selected !== entry) state.selected?.looking?.abort();
  state.selected = entry;
  showFrame(null);
  show();
  if (entry.answer) explain(entry, entry.label);
}

/** Request answers for new photos, the selected one first. */
function work() {
  if (!state.info) return; // called again once the model is known
  const waiting = state.entries.filter((entry) => !entry.answer && !entry.problem && !entry.controller);
  waiting.sort((a, b) => (b === state.selected) - (a === state.selected));
  for (const entry of waiting.slice(0, AT_ONCE - state.running)) {
    state.running++;
    ask(entry).finally(() => {
      state.running--;
      work();
    });
  }
}

async function ask(entry) {
  const { signal } = (entry.controller = new AbortController());
  const model = (entry.asked = state.model);
  const { limits } = state.info;
  const onWait = (seconds) => {
    entry.waiting = `The service is busy; trying again in ${Math.ceil(seconds)} s …`;
    refresh(entry);
  };
  try {
    entry.blob = entry.file;
    if (entry.file.size > limits.max_body_bytes) await shrink(entry, limits);
    try {
      entry.answer = await send("predict", { model }, entry.blob, signal, onWait);
    } catch (error) {
      // The number of pixels is known only once the photo is decoded, and ordinary ones need not wait for that.
      if (error.problem?.code !== "too_many_pixels" || entry.note) throw error;
      await shrink(entry, { ...limits, ...error.problem.limit });
      if (!entry.note) throw error;
      entry.answer = await send("predict", { model }, entry.blob, signal, onWait);
    }
    if (signal.aborted) return;
    entry.label = entry.answer.predictions[0].label;
    said(entry);
  } catch (error) {
    if (signal.aborted) return;
    failed(entry, error);
  }
  refresh(entry);
  if (entry === state.selected && entry.answer) explain(entry, entry.label);
}

async function shrink(entry, limits) {
  const { blob, note } = await fitting(entry.file, await entry.loading, limits);
  Object.assign(entry, { blob, note });
}

function failed(entry, error) {
  if (!(error instanceof ServiceError)) console.error(error);
  entry.problem = error.problem ?? { code: "internal", title: "This did not work", detail: String(error) };
  if (entry.problem.code === "unauthorized") return askForKey();
  if (entry.problem.code === "model_not_found") start();
  if (entry === state.selected) announce(problemWords(entry.problem).join(". "));
}

function said(entry) {
  if (entry !== state.selected) return;
  const [best] = entry.answer.predictions;
  announce(`${className(best.label)}, ${percent(best.score)}. ${sureness(entry.answer).text}`);
}

/** Request the explanation of a class, unless it is there. */
async function explain(entry, label) {
  if (entry.label === label && entry.looking && !entry.looking.signal.aborted) return; // it is being requested
  entry.looking?.abort();
  Object.assign(entry, { label, lookProblem: null });
  refresh(entry);
  if (entry.explanations.has(label)) return;
  const looking = (entry.looking = new AbortController());
  const { signal } = looking;
  const { answer } = entry;
  try {
    const found = await send("explain", { label, model: answer.model }, entry.blob, signal);
    if (entry.answer === answer) entry.explanations.set(label, found);
  } catch (error) {
    if (signal.aborted) return;
    if (error.problem?.code === "unauthorized") return askForKey();
    entry.lookProblem = error.problem ?? { code: "internal", detail: String(error) };
  } finally {
    if (entry.looking === looking) entry.looking = null;
  }
  refresh(entry);
}

// Display

function refresh(entry) {
  if (!entry.gone && state.entries.includes(entry)) show();
}

function show() {
  const entry = state.selected;
  showStrip(state.entries, entry, select);
  if (!entry) return;
  const byDefault = state.models.find((model) => model.default)?.name === state.model;
  const url = address("predict", byDefault ? {} : { model: state.model });
  showEntry(entry, { info: state.info, url, keyed: state.keyed }, { explain: (label) => explain(entry, label) });
  const best = entry.answer?.predictions[0];
  document.title = best ? `${className(best.label)} ${percent(best.score)}` : "What is in the photo?";
}

function clear() {
  for (const entry of state.entries) discard(entry);
  Object.assign(state, { entries: [], selected: null });
  $("image").removeAttribute("src");
  document.title = "What is in the photo?";
  showPart("start");
  $("choose").focus();
}

// Events

for (const id of ["choose", "photograph"]) {
  $(id).addEventListener("change", (event) => {
    add([...event.target.files]);
    event.target.value = ""; // so that the same file can be chosen again
  });
}
$("again").addEventListener("click", () => $("choose").click());
$("photo-again").addEventListener("click", () => $("photograph").click());
$("clear").addEventListener("click", clear);
$("retry").addEventListener("click", () => {
  if (!passes(state.selected.problem)) return $("choose").click();
  reset(state.selected);
  show();
  $("answer").focus({ preventScroll: true });
  work();
});

document.addEventListener("paste", (event) => {
  const files = filesOf(event.clipboardData);
  if (!files.length) return;
  event.preventDefault();
  add(files);
});

let depth = 0; // dragenter and dragleave occur for every element on the way
const carries = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => {
  if (!carries(event)) return;
  event.preventDefault();
  $("veil").hidden = ++depth < 1;
});
addEventListener("dragover", (event) => {
  if (carries(event)) event.preventDefault();
});
addEventListener("dragleave", (event) => {
  if (carries(event)) $("veil").hidden = --depth < 1;
});
addEventListener("drop", (event) => {
  depth = 0;
  $("veil").hidden = true;
  if (!carries(event)) return;
  event.preventDefault();
  add(filesOf(event.dataTransfer));
});

$("model").addEventListener("change", async (event) => {
  state.model = event.target.value;
  await start();
});

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = $("key").value.trim();
  $("key").value = "";
  key.set(given);
  if (/[^\x21-\x7e]/.test(given)) askForKey(); // it fits no header, so it cannot be a valid key
  else start();
});

$("report").addEventListener("click", async (event) => {
  if (!key.get()) return; // a link sends no key, so the page fetches the report and offers it as a file
  event.preventDefault();
  try {
    const url = URL.createObjectURL(await download("report", { model: state.model }));
    element("a", { href: url, download: `${state.model}-report.html` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  } catch (error) {
    announce(error.problem ? problemWords(error.problem).join(". ") : "The report could not be fetched.");
  }
});

$("look").addEventListener("click", () => {
  $("look").setAttribute("aria-checked", String($("look").getAttribute("aria-checked") !== "true"));
  showLook(state.selected);
});
new ResizeObserver(() => state.selected && showLook(state.selected)).observe($("stage"));

const crops = $("crops");
const cropOf = (event) => event.target.closest?.(".crop");
for (const type of ["pointerover", "focusin", "click"]) crops.addEventListener(type, (event) => cropOf(event) && showFrame(cropOf(event).frame));
for (const type of ["pointerleave", "focusout"]) crops.addEventListener(type, () => showFrame(null));
crops.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 5, ArrowUp: -5 }[event.key];
  const all = [...crops.querySelectorAll(".crop")];
  const next = all[all.indexOf(cropOf(event)) + step];
  if (!step || !next) return;
  event.preventDefault();
  for (const crop of all) crop.tabIndex = crop === next ? 0 : -1;
  next.focus();
});

$("copy").addEventListener("click", async () => {
  const copied = await copy($("curl"));
  $("copy").textContent = copied ? "Copied" : "Select it and copy";
  announce(copied ? "Copied" : "It could not be copied");
  setTimeout(() => ($("copy").textContent = "Copy"), 2000);
});

async function copy(source) {
  try {
    await navigator.clipboard.writeText(source.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(source); // the clipboard API needs HTTPS
    return document.execCommand("copy");
  }
}

// Update the models when the tab becomes visible again.
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible" && $("key-card").hidden) start();
});

start();
