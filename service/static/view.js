// Display of the state, which is only read here. Text is inserted as text, so no name can become markup.

import { drawCrop, drawLook } from "./drawing.js";
import { className, cropWords, curlCommand, isWhole, lookWords, passes, percent, problemWords, recordWords, setWords, sureness } from "./words.js";

const MAX_KNOWN = 24;

export const $ = (id) => document.getElementById(id);

/** Create an element with properties and children. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Announce a text to screen readers. */
export function announce(text) {
  $("live").textContent = "";
  requestAnimationFrame(() => ($("live").textContent = text));
}

/** Show one part of the page: "start", "key", "status" or "result". */
export function showPart(part) {
  $("start").hidden = part !== "start";
  $("key-card").hidden = part !== "key";
  $("status-card").hidden = part !== "status";
  $("tray").hidden = $("result").hidden = part !== "result";
}

export function showStatus(title, text, busy) {
  $("status-title").textContent = title;
  $("status-text").textContent = text;
  $("status-card").classList.toggle("busy", busy);
  showPart("status");
}

/** Show the model's classes. */
export function showKnown(info) {
  const names = info?.class_names ?? [];
  $("known").hidden = !names.length;
  $("known-title").textContent = `This model knows ${names.length} classes:`;
  const items = names.map((name) => element("li", { textContent: className(name) }));
  const list = $("known-list");
  list.replaceChildren(...items.slice(0, MAX_KNOWN));
  if (names.length <= MAX_KNOWN) return;
  const more = element("button", { type: "button", className: "more", textContent: `and ${names.length - MAX_KNOWN} more` });
  more.addEventListener("click", () => {
    more.parentElement.remove();
    list.append(...items.slice(MAX_KNOWN));
    items[MAX_KNOWN].tabIndex = -1;
    items[MAX_KNOWN].focus();
  });
  list.append(element("li", { className: "bare" }, more));
}

/** Show the row of images where there are several. */
export function showStrip(entries, selected, onSelect) {
  const strip = $("strip");
  strip.hidden = entries.length < 2;
  const focused = document.activeElement?.dataset?.entry;
  strip.replaceChildren(
    ...entries.map((entry) => {
      const best = entry.answer?.predictions[0];
      const text = best ? className(best.label) : entry.problem ? problemWords(entry.problem)[0] : "Classifying …";
      const thumb = entry.image ? element("img", { src: entry.url, alt: "" }) : element("span", { className: "blank" });
      const button = element("button", { type: "button", title: entry.name }, thumb);
      button.append(element("span", { className: "what", textContent: text }));
      if (best) button.append(element("span", { className: "how-sure", textContent: percent(best.score) }));
      button.classList.toggle("bad", Boolean(entry.problem));
      button.dataset.entry = entry.id;
      if (entry === selected) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => onSelect(entry));
      return element("li", {}, button);
    }),
  );
  if (focused) strip.querySelector(`[data-entry="${focused}"]`)?.focus();
}

/** Show the selected image and its answer. */
export function showEntry(entry, context, actions) {
  showImage(entry);
  $("problem").hidden = !entry.problem;
  $("found").hidden = Boolean(entry.problem);
  $("result").classList.toggle("asking", !entry.answer && !entry.problem);
  if (entry.problem) showProblem(entry.problem);
  else showAnswer(entry, context, actions);
  showLook(entry);
  showCrops(entry);
}

function showImage(entry) {
  const [image, placeholder] = [$("image"), $("placeholder")];
  const unseen = entry.loaded && !entry.image;
  image.hidden = unseen;
  placeholder.hidden = !unseen;
  if (unseen) {
    placeholder.firstElementChild.textContent = entry.answer
      ? `This browser cannot show ${entry.answer.format} files. The service can read them, and the answer is for yours.`
      : entry.problem
        ? "No photo to show"
        : "This browser cannot show this file; the service may be able to read it.";
  } else if (image.src !== entry.url) {
    image.src = entry.url;
    image.alt = entry.name;
  }
  if (entry.image) $("stage").style.setProperty("--aspect", entry.image.naturalWidth / entry.image.naturalHeight);
  if (unseen && entry.answer) $("stage").style.setProperty("--aspect", entry.answer.width / entry.answer.height);
  $("stage").classList.toggle("bad", Boolean(entry.problem));
}

function showProblem(problem) {
  const [title, text] = problemWords(problem);
  $("problem-title").textContent = title;
  $("problem-text").textContent = text;
  $("retry").textContent = passes(problem) ? "Try again" : "Choose another photo";
  const shown = { code: problem.code, detail: problem.detail, status: problem.status, request_id: problem.request_id };
  $("problem-details").textContent = Object.entries(shown)
    .filter(([, value]) => value != null)
    .map(([name, value]) => `${name}: ${value}`)
    .join("\n");
}

function showAnswer(entry, { info, url, keyed }, actions) {
  const { answer } = entry;
  const [headline, bars] = [$("answer"), $("bars")];
  if (!answer) {
    headline.replaceChildren(entry.waiting || "Classifying …");
    $("sure").textContent = $("set").textContent = $("rest").textContent = $("record").textContent = $("timing").textContent = "";
    $("notes").replaceChildren();
    bars.replaceChildren(...[1, 2, 3].map(() => element("li", { className: "ghost" })));
    bars.shown = null;
    return;
  }
  const [best] = answer.predictions;
  headline.replaceChildren(
    element("span", { className: "label", textContent: className(best.label) }),
    " ",
    element("span", { className: "score", textContent: percent(best.score) }),
  );
  const sure = sureness(answer);
  $("sure").textContent = sure.text;
  $("sure").classList.toggle("unsure", sure.unsure);
  $("set").textContent = setWords(answer, info?.coverage);
  if (bars.shown !== answer) {
    bars.shown = answer;
    bars.replaceChildren(...answer.predictions.map((scored) => bar(scored, actions.explain)));
  }
  for (const button of bars.querySelectorAll("button")) button.setAttribute("aria-pressed", button.dataset.label === entry.label);
  const others = (info?.class_names.length ?? 0) - answer.predictions.length;
  const left = 1 - answer.predictions.reduce((sum, { score }) => sum + score, 0);
  const rest = others > 0 ? `${others} other ${others === 1 ? "class" : "classes"} together: ${percent(Math.max(left, 0))}. ` : "";
  $("rest").textContent = `${rest}Choose a class to see where the model looked for it.`;
  const notes = [entry.note, ...answer.warnings].filter(Boolean);
  $("notes").replaceChildren(...notes.map((note) => element("li", { textContent: sentence(note) })));
  $("record").textContent = info ? recordWords(info) : "";
  $("curl").textContent = curlCommand(url, entry.name, keyed);
  const { queue, ...work } = answer.seconds;
  const spent = Object.values(work).reduce((a, b) => a + b, 0);
  $("timing").textContent = `${answer.width} × ${answer.height} pixels, ${answer.format}. Answered in ${Math.round(spent * 1000)} ms by ${answer.model}, version ${answer.model_version}.`;
}

function bar({ label, score }, onChoose) {
  const fill = element("span", { className: "fill" });
  fill.style.setProperty("width", `${score * 100}%`);
  const button = element(
    "button",
    { type: "button", className: "bar" },
    element("span", { className: "label", textContent: className(label) }),
    element("span", { className: "value", textContent: percent(score) }),
    element("span", { className: "rail" }, fill),
  );
  Object.assign(button.dataset, { label, score });
  button.addEventListener("click", () => onChoose(label));
  return element("li", {}, button);
}

function sentence(text) {
  const first = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(first) ? first : `${first}.`;
}

/** Show the occlusion map and its description. */
export function showLook(entry) {
  const found = entry.explanations.get(entry.label);
  const [overlay, look, text] = [$("overlay"), $("look"), $("look-text")];
  const lit = look.getAttribute("aria-checked") === "true";
  look.hidden = Boolean(entry.problem);
  look.disabled = !found;
  overlay.classList.toggle("lit", Boolean(found) && lit);
  if (found && lit && overlay.clientWidth) {
    drawLook(overlay, [found.width, found.height], found.box, found.saliency);
    overlay.dataset.label = found.label;
  }
  const waits = entry.answer && !found && !entry.lookProblem;
  const said = found
    ? lookWords(found)
    : entry.lookProblem
      ? `The occlusion map is not available: ${problemWords(entry.lookProblem).join(". ")}`
      : waits
        ? `Finding out where the model looked for ${className(entry.label)} …`
        : "";
  if (text.textContent !== said) text.textContent = said;
  $("stage").classList.toggle("searching", Boolean(waits));
}

function showCrops(entry) {
  const found = entry.explanations.get(entry.label);
  const [part, list] = [$("crops-part"), $("crops")];
  part.classList.toggle("empty", !found);
  if (!found) {
    if (!entry.answer || !list.shown || list.owner !== entry) {
      $("crops-text").textContent = "";
      list.replaceChildren(...Array.from({ length: 10 }, () => element("span", { className: "ghost" })));
      list.shown = null;
    }
    part.hidden = Boolean(entry.lookProblem) && !list.shown;
    return;
  }
  part.hidden = false;
  $("crops-text").textContent = cropWords(entry.answer, found);
  if (list.shown === found) return;
  const same = list.owner === entry && list.shown;
  const places = ["Upper left", "Upper right", "Lower left", "Lower right", isWhole(found) ? "Whole photo" : "Center"];
  const tabbed = same ? [...list.children].findIndex((child) => child.tabIndex === 0) : 0;
  const focused = same && list.contains(document.activeElement);
  list.shown = found;
  list.owner = entry;
  const size = [found.width, found.height];
  list.replaceChildren(
    ...found.crops.map((crop, index) => {
      const canvas = element("canvas");
      const name = `${places[index % 5]}${crop.mirror ? ", mirrored" : ""}`;
      const button = element("button", { type: "button", className: "crop", title: name }, canvas, percent(crop.score));
      button.setAttribute("aria-label", `${name}: ${percent(crop.score)}`);
      button.tabIndex = index === tabbed ? 0 : -1;
      drawCrop(canvas, entry.image, size, crop);
      button.frame = crop.box.map((value, edge) => value / size[edge % 2]);
      return button;
    }),
  );
  if (focused) list.children[tabbed]?.focus();
}

/** Show the position of a crop on the image; null for none. */
export function showFrame(frame) {
  const shown = $("crop-frame");
  shown.hidden = !frame;
  $("stage").classList.toggle("framed", Boolean(frame));
  if (!frame) return;
  const [left, top, right, bottom] = frame.map((value) => `${value * 100}%`);
  shown.style.setProperty("left", left);
  shown.style.setProperty("top", top);
  shown.style.setProperty("width", `calc(${right} - ${left})`);
  shown.style.setProperty("height", `calc(${bottom} - ${top})`);
}
