// Classifies images with the network in this page. `prepared` does what transferapp/images/views.py does.

const metadata = JSON.parse(text("metadata"));
const names = metadata.class_names;
const { geometry = "crop", crop_share: share, padding, image_size: [HEIGHT, WIDTH] } = metadata.preparation;
const SHOWN = 5;
const element = id => document.getElementById(id);

function text(id) {
  return document.getElementById(id).textContent;
}

// Bytes of an embedded file, base64 of gzip. Its element is emptied, because the text takes more memory than the file.
async function unpacked(id) {
  const packed = atob(text(id));
  element(id).remove();
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function load() {
  const glue = URL.createObjectURL(new Blob([await unpacked("runtime")], { type: "text/javascript" }));
  const ort = await import(glue);
  ort.env.wasm.numThreads = 1; // a page from a file may not share memory between threads
  ort.env.wasm.wasmBinary = (await unpacked("wasm")).buffer;
  const session = await ort.InferenceSession.create(await unpacked("model"), { executionProviders: ["wasm"] });
  const novelty = await loadNovelty();
  let queue = Promise.resolve(); // the runtime takes one call at a time
  return pixels => {
    const answer = queue.then(async () => {
      const outputs = await session.run({ pixels: new ort.Tensor("uint8", pixels, [1, HEIGHT, WIDTH, 3]) });
      return {
        probabilities: Array.from(outputs.probabilities.data),
        novelty: novelty && novelty(outputs.features.data),
      };
    });
    queue = answer.catch(() => {});
    return answer;
  };
}

// The score of transferapp/bundle/novelty.py as a function of an image's features; null where the bundle has none.
async function loadNovelty() {
  if (!metadata.novelty) return null;
  const { neighbors, num_features: count } = metadata.novelty;
  const rows = Float32Array.from(new Uint16Array((await unpacked("features")).buffer), half);
  const heldOut = new Float32Array((await unpacked("similarities")).buffer);
  return features => {
    const length = Math.hypot(...features), cosines = new Float32Array(rows.length / count);
    for (let row = 0; row < cosines.length; row++) {
      let sum = 0;
      for (let k = 0, p = row * count; k < count; k++, p++) sum += rows[p] * features[k];
      cosines[row] = sum / length;
    }
    const nearest = cosines.sort().subarray(-neighbors);
    const similarity = nearest.reduce((a, b) => a + b, 0) / nearest.length;
    return heldOut.filter(each => each >= similarity).length / (heldOut.length + 1);
  };
}

function half(bits) {
  const exponent = (bits >> 10) & 31, fraction = (bits & 1023) / 1024;
  return (bits >> 15 ? -1 : 1) * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
}

// The box that the network sees, in pixels of the image; in the geometry "pad" it reaches out of the image.
function boxOf(width, height) {
  const sides = [width / WIDTH, height / HEIGHT];
  const scale = (geometry === "pad" ? Math.max(...sides) : Math.min(...sides)) * share;
  const [w, h] = geometry === "resize" ? [width, height] : [WIDTH * scale, HEIGHT * scale];
  return [(width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2];
}

function bicubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

// Weights of each output pixel on the input pixels from `first`, as Pillow's antialiased resize computes them.
function weights(size, low, high, count) {
  const scale = (high - low) / count, spread = Math.max(scale, 1);
  return Array.from({ length: count }, (_, index) => {
    const center = low + (index + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - 2 * spread + 0.5));
    const last = Math.min(size, Math.trunc(center + 2 * spread + 0.5));
    const values = Array.from({ length: last - first }, (_, k) => bicubic((k + first - center + 0.5) / spread));
    const sum = values.reduce((a, b) => a + b, 0);
    return { first, values: Float64Array.from(values, value => value / sum) };
  });
}

// RGBA to RGB: a box of the image scaled to (width, height), rows and then columns, rounded in between as Pillow does.
function resized({ data, width: columns, height: rows }, [left, top, right, bottom], width, height) {
  const across = weights(columns, left, right, width), down = weights(rows, top, bottom, height);
  const from = down[0].first, until = down[height - 1].first + down[height - 1].values.length;
  const narrow = new Uint8ClampedArray((until - from) * width * 3);
  for (let y = from, at = 0; y < until; y++) {
    for (const { first, values } of across) {
      let r = 0, g = 0, b = 0;
      for (let k = 0, p = 4 * (y * columns + first); k < values.length; k++, p += 4) {
        r += values[k] * data[p];
        g += values[k] * data[p + 1];
        b += values[k] * data[p + 2];
      }
      narrow[at++] = r;
      narrow[at++] = g;
      narrow[at++] = b;
    }
  }
  const pixels = new Uint8ClampedArray(height * width * 3);
  for (let y = 0, at = 0; y < height; y++) {
    const { first, values } = down[y];
    for (let x = 0; x < 3 * width; x++) {
      let sum = 0;
      for (let k = 0, p = 3 * width * (first - from) + x; k < values.length; k++, p += 3 * width) sum += values[k] * narrow[p];
      pixels[at++] = sum;
    }
  }
  return pixels;
}

// Pixels of the network's input. `source` is anything that a canvas draws.
function prepared(source, width, height) {
  const box = boxOf(width, height);
  const inside = [Math.max(0, box[0]), Math.max(0, box[1]), Math.min(width, box[2]), Math.min(height, box[3])];
  const margin = Math.ceil(2 * Math.max(1, (inside[2] - inside[0]) / WIDTH, (inside[3] - inside[1]) / HEIGHT)) + 1;
  const x = Math.max(0, Math.floor(inside[0]) - margin), y = Math.max(0, Math.floor(inside[1]) - margin);
  const w = Math.min(width, Math.ceil(inside[2]) + margin) - x, h = Math.min(height, Math.ceil(inside[3]) + margin) - y;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [w, h];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff"; // behind transparent parts
  context.fillRect(0, 0, w, h);
  context.drawImage(source, x, y, w, h, 0, 0, w, h);
  const image = context.getImageData(0, 0, w, h);
  const part = [inside[0] - x, inside[1] - y, inside[2] - x, inside[3] - y];
  if (geometry !== "pad") return Uint8Array.from(resized(image, part, WIDTH, HEIGHT));
  const span = (axis, length) => {
    const place = edge => Math.round(length * (edge - box[axis]) / (box[axis + 2] - box[axis]));
    const first = Math.min(place(inside[axis]), length - 1);
    return [first, Math.max(place(inside[axis + 2]), first + 1)];
  };
  const [l, r] = span(0, WIDTH), [t, b] = span(1, HEIGHT);
  const scaled = resized(image, part, r - l, b - t), pixels = new Uint8Array(HEIGHT * WIDTH * 3).fill(padding);
  for (let row = t; row < b; row++) pixels.set(scaled.subarray(3 * (row - t) * (r - l), 3 * (row - t + 1) * (r - l)), 3 * (row * WIDTH + l));
  return pixels;
}

const loading = load();

// Probabilities of the classes, in the order of their names, and novelty, for the bytes of an image file.
async function classify(blob) {
  const bitmap = await createImageBitmap(blob);
  try {
    return await (await loading)(prepared(bitmap, bitmap.width, bitmap.height));
  } finally {
    bitmap.close();
  }
}

function show(place, { probabilities, novelty }) {
  const order = probabilities.map((_, index) => index).sort((a, b) => probabilities[b] - probabilities[a]);
  const list = document.createElement("ol"), unknown = document.createElement("p");
  unknown.className = "unknown";
  unknown.textContent = "Looks like none of these classes.";
  place.replaceChildren(...(novelty !== null && novelty >= metadata.novelty.unknown_from ? [unknown] : []), list);
  list.append(...order.slice(0, SHOWN).map(index => {
    const row = document.createElement("li"), name = document.createElement("span");
    const score = document.createElement("span"), bar = document.createElement("i");
    row.className = "bar";
    Object.assign(row.dataset, { label: names[index], score: probabilities[index] });
    name.textContent = names[index];
    score.textContent = `${(100 * probabilities[index]).toFixed(1)}%`;
    bar.style.backgroundSize = `${100 * probabilities[index]}% 100%`;
    row.append(name, score, bar);
    return row;
  }));
}

async function add(files) {
  for (const file of files) {
    const item = document.createElement("li"), image = new Image(), answer = document.createElement("div");
    const caption = document.createElement("p");
    caption.className = "file";
    caption.textContent = file.name || "Pasted image";
    image.src = URL.createObjectURL(file);
    image.alt = "";
    image.onload = image.onerror = () => URL.revokeObjectURL(image.src);
    item.append(caption, image, answer);
    element("results").prepend(item);
    try {
      show(answer, await classify(file));
    } catch {
      image.remove();
      answer.textContent = "This browser cannot read the file as an image.";
    }
  }
}

let stream = null;

async function camera() {
  const button = element("camera"), video = element("video");
  if (stream) {
    for (const track of stream.getTracks()) track.stop();
    stream = video.srcObject = null;
    element("live").hidden = true;
    button.textContent = "Use the camera";
    return;
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    element("status").textContent = `The camera cannot be used: ${error.message}.`;
    return;
  }
  video.srcObject = stream;
  await video.play();
  element("live").hidden = false;
  button.textContent = "Stop the camera";
  const run = await loading;
  while (stream) {
    const answer = await run(prepared(video, video.videoWidth, video.videoHeight));
    if (stream) show(element("seen"), answer);
    await new Promise(resolve => setTimeout(resolve, 100)); // time for the page to react
  }
}

element("classes").textContent = names.length <= 30 ? names.join(", ") : `${names.length} classes`;
element("choose").addEventListener("change", event => {
  add([...event.target.files]);
  event.target.value = "";
});
element("camera").addEventListener("click", camera);
element("camera").hidden = !navigator.mediaDevices?.getUserMedia;
document.addEventListener("paste", event => add([...event.clipboardData.files]));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, event => {
    event.preventDefault();
    element("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") add([...event.dataTransfer.files]);
  });
}
globalThis.network = { // for the comparison with the bundle
  fromPixels: async pixels => (await loading)(pixels),
  fromFile: bytes => classify(new Blob([bytes])),
};
loading.then(
  () => {
    element("status").textContent = "";
    element("choose").disabled = element("camera").disabled = false;
  },
  error => {
    element("status").textContent = `This browser cannot run the network: ${error.message}`;
  },
);
