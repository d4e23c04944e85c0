// Drawing of the occlusion map over an image, and of crops.

const SHADE = 0.68; // opacity of the shade over parts that did not matter
const LEVEL = 0.5; // level of the outline, as a fraction of the largest effect
const FADE = 0.12; // width of the fade outside the box, as a fraction of it
const SOFTNESS = 0.55; // standard deviation of the smoothing kernel, in cells

/**
 * Shade the parts of an image that did not matter, and outline those that did.
 *
 * canvas: over the image, of its size on the screen. size: [width, height] of the image, in whose pixels `box` is.
 * grid: rows from the top, 0 to 1, covering `box` (left, top, right, bottom).
 */
export function drawLook(canvas, size, box, grid) {
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const width = (canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio)));
  const height = (canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio)));
  const context = canvas.getContext("2d");
  const [left, top, right, bottom] = box.map((value, index) => (value / size[index % 2]) * (index % 2 ? height : width));
  const surface = smooth(grid, 84);
  const shade = context.createImageData(width, height);
  const pixels = shade.data;
  const line = 1.3 * ratio;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = 4 * (y * width + x);
      const across = (x + 0.5 - left) / (right - left);
      const down = (y + 0.5 - top) / (bottom - top);
      // Nothing was measured outside the box; the values at its edge fade there.
      const outside = Math.hypot(Math.max(-across, 0, across - 1), Math.max(-down, 0, down - 1));
      let value = sample(surface, across, down) * Math.max(0, 1 - outside / FADE);
      let edge = 0;
      if (!outside) {
        const step = 1 / (right - left);
        const slope = Math.hypot(sample(surface, across + step, down) - value, sample(surface, across, down + step) - value);
        edge = slope > 1e-5 ? Math.max(0, 1 - Math.abs(value - LEVEL) / slope / line) : 0;
      }
      const dark = SHADE * (1 - rise(value));
      // The outline is amber over the shade, so that it is visible on dark images as well.
      const alpha = edge + dark * (1 - edge);
      pixels[at] = (255 * edge + 8 * dark * (1 - edge)) / alpha;
      pixels[at + 1] = (196 * edge + 14 * dark * (1 - edge)) / alpha;
      pixels[at + 2] = (92 * edge + 20 * dark * (1 - edge)) / alpha;
      pixels[at + 3] = 255 * alpha;
    }
  }
  context.putImageData(shade, 0, 0);
}

/** Return the brightness for an effect: small ones stay dark, half of the largest is fully bright. */
function rise(value) {
  const t = Math.min(Math.max((value - 0.08) / 0.5, 0), 1);
  return t * t * (3 - 2 * t);
}

/** Return a grid of cells as a smooth surface of `side` by `side` values with maximum 1 (or all 0). */
function smooth(grid, side) {
  const rows = grid.length;
  const columns = grid[0].length;
  const weights = (count) =>
    Array.from({ length: side }, (_, i) => {
      const place = ((i + 0.5) / side) * count - 0.5;
      const row = Array.from({ length: count }, (_, j) => Math.exp(-((place - j) ** 2) / (2 * SOFTNESS ** 2)));
      const sum = row.reduce((a, b) => a + b);
      return row.map((weight) => weight / sum);
    });
  const [down, across] = [weights(rows), weights(columns)];
  const surface = down.map((wy) =>
    across.map((wx) => wy.reduce((sum, a, i) => sum + a * wx.reduce((inner, b, j) => inner + b * grid[i][j], 0), 0)),
  );
  const largest = Math.max(...surface.flat());
  return largest > 0 ? surface.map((row) => row.map((value) => value / largest)) : surface;
}

/** Interpolate the surface linearly at a position between 0 and 1. */
function sample(surface, across, down) {
  const side = surface.length;
  const x = Math.min(Math.max(across * side - 0.5, 0), side - 1);
  const y = Math.min(Math.max(down * side - 0.5, 0), side - 1);
  const [column, row] = [Math.min(Math.floor(x), side - 2), Math.min(Math.floor(y), side - 2)];
  const [fx, fy] = [x - column, y - row];
  const [first, second] = [surface[row], surface[row + 1]];
  return (first[column] * (1 - fx) + first[column + 1] * fx) * (1 - fy) + (second[column] * (1 - fx) + second[column + 1] * fx) * fy;
}

/** Draw a crop onto a small canvas; without an image, a frame with the position of the crop. */
export function drawCrop(canvas, image, size, crop) {
  const side = (canvas.width = canvas.height = 128);
  const context = canvas.getContext("2d");
  const [left, top, right, bottom] = crop.box;
  if (!image) {
    const scale = side / Math.max(...size);
    const [x, y] = [(side - size[0] * scale) / 2, (side - size[1] * scale) / 2];
    context.strokeStyle = context.fillStyle = getComputedStyle(canvas).color;
    context.globalAlpha = 0.35;
    context.fillRect(x + left * scale, y + top * scale, (right - left) * scale, (bottom - top) * scale);
    context.globalAlpha = 1;
    context.strokeRect(x + 0.5, y + 0.5, size[0] * scale - 1, size[1] * scale - 1);
    return;
  }
  if (crop.mirror) {
    context.translate(side, 0);
    context.scale(-1, 1);
  }
  const [across, down] = [image.naturalWidth / size[0], image.naturalHeight / size[1]];
  context.imageSmoothingQuality = "high";
  context.drawImage(image, left * across, top * down, (right - left) * across, (bottom - top) * down, 0, 0, side, side);
}
