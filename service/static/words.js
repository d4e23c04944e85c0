// Sentences of the page that depend on an answer: pure functions from data to text.

const ADVICE = {
  empty_file: ["The file is empty", "The copy may be incomplete. Choose it again, or another one."],
  unsupported_format: [
    "This file is not a photo that can be read",
    "Use JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF. An image viewer can save other files as JPEG or PNG.",
  ],
  truncated: ["The photo is cut off", "Part of the file is missing. Copy or download it again, then try again."],
  undecodable: ["The photo is damaged", "It cannot be opened. Save it again with an image viewer, or choose another one."],
  too_many_bytes: ["The photo is too large", "Try a smaller copy of it."],
  body_too_large: ["The photo is too large", "Try a smaller copy of it."],
  too_many_pixels: ["The photo has too many pixels", "Scale it down and try again."],
  too_small: ["The photo is too small", "Choose a larger one."],
  aspect_ratio: ["The photo is too long and thin", "Crop it and try again."],
  unauthorized: ["A key is needed", "Enter your key for this service."],
  rate_limited: ["Too many photos in a short time", "The service limits the rate."],
  overloaded: ["The service is busy", "Others are using it at the moment."],
  timeout: ["The answer took too long", "The service is busy."],
  resources: ["The service is short of memory", "Try again later, or use a smaller photo."],
  not_ready: ["The model is not ready yet", "It is still being loaded."],
  model_not_found: ["This model is no longer served", "Choose another one at the top of the page."],
  body_too_slow: ["The upload was too slow", "Try it over a faster connection, or with a smaller photo."],
  model_output_invalid: ["The model gave no usable answer", "Please tell the operator of the service."],
  internal: ["Something went wrong in the service", "Try again. If it happens again, tell the operator of the service."],
  network: ["The service cannot be reached", "Check your connection, then try again."],
};

const MAX_SET = 6; // classes named in a prediction set

const PASSING = new Set(["rate_limited", "overloaded", "timeout", "resources", "not_ready", "model_output_invalid", "internal", "network", "body_too_slow", "unauthorized"]);

/** Return whether the same photo may be answered at another time. */
export const passes = (problem) => PASSING.has(problem.code);

/** Describe a problem in plain words: [what happened, what to do]. */
export function problemWords(problem) {
  const [title, advice] = ADVICE[problem.code] ?? [problem.title ?? "This did not work", problem.hint ?? "Try again."];
  if (!problem.retryAfter) return [title, advice];
  return [title, `${advice} Try again in ${duration(problem.retryAfter)}.`];
}

/** Return a duration in words. */
export function duration(seconds) {
  if (seconds < 2) return "a second";
  if (seconds < 100) return `${Math.ceil(seconds)} seconds`;
  return `${Math.ceil(seconds / 60)} minutes`;
}

/** Return a probability as a percentage that is never rounded to 0 or 100. */
export function percent(score) {
  if (score > 0 && score < 0.0005) return "<\u00a00.1\u00a0%";
  if (score < 1 && score >= 0.9995) return ">\u00a099.9\u00a0%";
  return `${(score * 100).toFixed(1)}\u00a0%`;
}

/** Return the same for use inside a sentence. */
const share = (score) => percent(score).replace(/^>./, "over ").replace(/^<./, "less than ");

/** Return a class name with spaces for the underscores of folder names. */
export function className(label) {
  return label.replaceAll("_", " ").trim() || label;
}

/** Describe the model's confidence in an answer: {text, unsure}. */
export function sureness({ known, predictions }) {
  const [first, second] = predictions;
  if (known === false) {
    return { text: `The photo looks like none of the model's classes. Of these, ${className(first.label)} is the nearest.`, unsure: true };
  }
  if (first.score >= 0.95) return { text: "The model is very sure.", unsure: false };
  if (first.score >= 0.8) return { text: "The model is fairly sure.", unsure: false };
  const other = second ? className(second.label) : "";
  if (second && first.score - second.score < 0.15) {
    return { text: `Not sure: ${other} is nearly as likely. The photo may show neither.`, unsure: true };
  }
  if (first.score >= 0.5) return { text: `This is the model's best guess${other ? `; ${other} is possible, too` : ""}.`, unsure: false };
  return { text: "Not sure: this is a guess. The photo may show something that is not among the model's classes.", unsure: true };
}

/** Describe the prediction set of an answer; empty where it has one class, or the model promises nothing. */
export function setWords({ known, prediction_set: set }, coverage) {
  if (!set || !coverage || set.length < 2 || known === false) return "";
  const shown = set.slice(0, MAX_SET).map(className);
  const rest = set.length - shown.length;
  const names = rest > 0 ? `${shown.join(", ")} or ${rest} more` : `${shown.slice(0, -1).join(", ")} or ${shown.at(-1)}`;
  return `It is ${names}: such a set is right for ${percent(coverage)} of photos.`;
}

/** Describe the occlusion map. */
export function lookWords(explanation) {
  const name = className(explanation.label);
  const strongest = Math.max(...explanation.saliency.flat());
  if (strongest === 0) return `No single part decides for ${name}: covering any of them does not lower its score.`;
  const { center_score: before, lowest_score: after } = explanation;
  const where = `The bright part counted most for ${name}, above all ${place(explanation.saliency)}.`;
  if (after > 0.95 * before) return `${where} But no single part decides: whichever is covered, ${share(after)} remain.`;
  const seen = isWhole(explanation) ? "when the whole photo is seen at once" : "in the center crop";
  return `${where} Covering the most important spot lowers ${name} from ${share(before)} to ${share(after)} ${seen}.`;
}

/** Whether the central crop shows the whole photo, as in models of long images. */
export function isWhole({ box: [left, top, right, bottom], width, height }) {
  return left < 0.5 && top < 0.5 && right > width - 0.5 && bottom > height - 0.5;
}

/** Describe the position of the largest value in a grid. */
function place(grid) {
  let best = { value: -1, row: 0, column: 0 };
  grid.forEach((cells, row) => cells.forEach((value, column) => value > best.value && (best = { value, row, column })));
  const down = ["at the top", "", "at the bottom"][Math.floor((best.row * 3) / grid.length)];
  const across = ["left", "", "right"][Math.floor((best.column * 3) / grid[0].length)];
  if (!down) return across ? `on the ${across}` : "in the middle";
  return across ? `${down} ${across}` : down;
}

/** Describe the crops, and whether they agree. */
export function cropWords(answer, explanation) {
  const name = className(explanation.label);
  const scores = explanation.crops.map((crop) => crop.score);
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  const agree = high - low < 0.1 ? "They agree." : `Here they range from ${share(low)} to ${share(high)} for ${name}.`;
  const whole = isWhole(explanation);
  if (answer.views === 1) {
    return `The model used ${whole ? "the whole photo at once" : "the center of the photo alone"}. Other crops, for comparison: ${agree}`;
  }
  const center = whole ? "the whole photo" : "center";
  const counted = answer.views === 10 ? `ten crops of the photo: corners and ${center}, each also mirrored` : "fifty crops of the photo at five scales, ten of which are shown";
  return `The model averaged its answers for ${counted}. ${agree}`;
}

/** Describe the model's test accuracy; "" where its bundle has none. */
export function recordWords(info) {
  const test = info.metrics?.test;
  if (typeof test?.accuracy !== "number" || !test.num_images) return "";
  const right = Math.round(test.accuracy * test.num_images);
  return `In its test, this model was right on ${right} of ${test.num_images} photos that it had not been trained on.`;
}

/** Return the same request as a command for a POSIX shell. */
export function curlCommand(url, fileName, withKey) {
  const plain = /^[\w.][\w.-]*$/.test(fileName);
  const field = plain ? `file=@${fileName}` : `file=@"${(fileName === "-" ? "./-" : fileName).replace(/[\\"]/g, "\\$&")}"`;
  const key = withKey ? ` -H "X-API-Key: $KEY"` : "";
  return `curl${key} -F ${plain ? field : quoted(field)} ${quoted(url)}`;
}

function quoted(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/** Return a number of bytes in words. */
export function bytes(count) {
  return count >= 1e6 ? `${(count / 1e6).toFixed(1)} MB` : `${Math.max(1, Math.round(count / 1e3))} kB`;
}
