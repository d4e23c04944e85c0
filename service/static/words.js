// What the page says: every sentence that depends on an answer, as pure functions from data to text.

const ADVICE = {
  empty_file: ["The file is empty", "It may not have been copied whole. Choose it again, or another one."],
  unsupported_format: [
    "This is not an image that can be read",
    "JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF work. Open the file in an image viewer and save it as JPEG or PNG.",
  ],
  truncated: ["The image is cut off", "Part of the file is missing. Copy or download it again, then try once more."],
  undecodable: ["The image is damaged", "It cannot be opened. Save it anew from an image viewer, or choose another one."],
  too_many_bytes: ["The image is too large", "Save a smaller copy of it and try that."],
  body_too_large: ["The image is too large", "Save a smaller copy of it and try that."],
  too_many_pixels: ["The image has too many pixels", "Scale it down and try that."],
  too_small: ["The image is too small", "There is too little to see in it. Choose a larger one."],
  aspect_ratio: ["The image is too long and thin", "Cut out the part that matters and try that."],
  unauthorized: ["A key is needed", "Enter the key that you were given for this service."],
  rate_limited: ["That was a lot of images in a short time", "The service takes only so many at a time."],
  overloaded: ["The service is busy", "Others are asking at the same moment."],
  timeout: ["The answer took too long", "The service is busy."],
  resources: ["The service is short of memory", "Try again later, or use a smaller image."],
  not_ready: ["The model is not ready yet", "It is still being loaded."],
  model_not_found: ["This model is no longer served", "Choose another one at the top of the page."],
  body_too_slow: ["The upload was too slow", "Try it over a faster connection, or with a smaller image."],
  model_output_invalid: ["The model gave no usable answer", "Whoever runs the service should look at the model."],
  internal: ["Something went wrong in the service", "Try again. If it keeps happening, tell whoever runs it."],
  network: ["The service cannot be reached", "Check your connection, then try again."],
};

const PASSING = new Set(["rate_limited", "overloaded", "timeout", "resources", "not_ready", "model_output_invalid", "internal", "network", "body_too_slow", "unauthorized"]);

/** Whether the same image may well be answered at another time. */
export const passes = (problem) => PASSING.has(problem.code);

/** A problem in plain words: [what happened, what to do]. */
export function problemWords(problem) {
  const [title, advice] = ADVICE[problem.code] ?? [problem.title ?? "That did not work", problem.hint ?? "Try again."];
  if (!problem.retryAfter) return [title, advice];
  return [title, `${advice} Try again in ${duration(problem.retryAfter)}.`];
}

/** Seconds for people. */
export function duration(seconds) {
  if (seconds < 2) return "a second";
  if (seconds < 100) return `${Math.ceil(seconds)} seconds`;
  return `${Math.ceil(seconds / 60)} minutes`;
}

/** A probability as a percentage that is never rounded to certainty. */
export function percent(score) {
  if (score > 0 && score < 0.0005) return "<\u00a00.1\u00a0%";
  if (score < 1 && score >= 0.9995) return ">\u00a099.9\u00a0%";
  return `${(score * 100).toFixed(1)}\u00a0%`;
}

/** The same inside a sentence. */
const share = (score) => percent(score).replace(/^>./, "over ").replace(/^<./, "less than ");

/** A class as people write it: folders are often named with underscores for spaces. */
export function className(label) {
  return label.replaceAll("_", " ").trim() || label;
}

/** How sure the model is, in a sentence, and whether that is little: {text, unsure}. */
export function sureness(scores) {
  const [first, second] = scores;
  if (first.score >= 0.95) return { text: "The model is very sure.", unsure: false };
  if (first.score >= 0.8) return { text: "The model is fairly sure.", unsure: false };
  const other = second ? className(second.label) : "";
  if (second && first.score - second.score < 0.15) {
    return { text: `Not sure: ${other} is nearly as likely. Perhaps the image shows neither.`, unsure: true };
  }
  if (first.score >= 0.5) return { text: `This is its best guess${other ? `; ${other} is possible, too` : ""}.`, unsure: false };
  return { text: "Not sure: this is a guess. Perhaps the image shows something that the model was not taught.", unsure: true };
}

/** What the map means. */
export function lookWords(explanation) {
  const name = className(explanation.label);
  const strongest = Math.max(...explanation.saliency.flat());
  if (strongest === 0) return `No single spot speaks for ${name}: covering any part of the image does not lower its score.`;
  const { center_score: before, lowest_score: after } = explanation;
  const where = `The bright part spoke most for ${name}, above all ${place(explanation.saliency)}.`;
  if (after > 0.95 * before) return `${where} But no single spot decides: whichever is covered, ${share(after)} remain.`;
  return `${where} Covering its most telling spot lowers ${name} from ${share(before)} to ${share(after)} in the middle crop.`;
}

/** Where in a grid its largest value is, as one would say it. */
function place(grid) {
  let best = { value: -1, row: 0, column: 0 };
  grid.forEach((cells, row) => cells.forEach((value, column) => value > best.value && (best = { value, row, column })));
  const down = ["at the top", "", "at the bottom"][Math.floor((best.row * 3) / grid.length)];
  const across = ["left", "", "right"][Math.floor((best.column * 3) / grid[0].length)];
  if (!down) return across ? `on the ${across}` : "in the middle";
  return across ? `${down} ${across}` : down;
}

/** What the crops are for, and whether they agree. */
export function cropWords(answer, explanation) {
  const name = className(explanation.label);
  const scores = explanation.crops.map((crop) => crop.score);
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  const agree = high - low < 0.1 ? "They agree." : `Here they range from ${share(low)} to ${share(high)} for ${name}.`;
  if (answer.views === 1) return `The model judged the middle of the image alone. Other crops, and mirrored, for comparison: ${agree}`;
  const counted = answer.views === 10 ? "ten crops of the image: corners and middle, each also mirrored" : "fifty crops of the image, from close up to far, ten of which are here";
  return `The model looked at ${counted}. It averaged what it found, so that no single crop decides. ${agree}`;
}

/** How the model did when it was tested; "" where its bundle does not say. */
export function recordWords(info) {
  const test = info.metrics?.test;
  if (typeof test?.accuracy !== "number" || !test.num_images) return "";
  const right = Math.round(test.accuracy * test.num_images);
  return `In its test this model was right about ${right} of ${test.num_images} images that it had never seen.`;
}

/** The command that asks the same: for a POSIX shell. */
export function curlCommand(url, fileName, withKey) {
  const plain = /^[\w.][\w.-]*$/.test(fileName);
  const field = plain ? `file=@${fileName}` : `file=@"${(fileName === "-" ? "./-" : fileName).replace(/[\\"]/g, "\\$&")}"`;
  const key = withKey ? ` -H "X-API-Key: $KEY"` : "";
  return `curl${key} -F ${plain ? field : quoted(field)} ${quoted(url)}`;
}

function quoted(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/** Bytes for people. */
export function bytes(count) {
  return count >= 1e6 ? `${(count / 1e6).toFixed(1)} MB` : `${Math.max(1, Math.round(count / 1e3))} kB`;
}
