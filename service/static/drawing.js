// Draws: the light on what the model looked at, and the crops cut out of the image.

const SHADE = 0.68; // how dark the parts are that did not matter
const LEVEL = 0.5; // of the largest effect: where the outline runs
const FADE = 0.12; // of the box: how far beyond it the light fades
const SOFTNESS = 0.55; // cells: standard deviation of the kernel that makes a surface of the grid

/**
 * Light up where the model looked and shade the rest.
 *
 * canvas: over the image, of its size on the screen. size: [width, height] of the image that `box` is in pixels of.
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
      // Outside the box nothing was tried: what was found at its edge fades away there.
      const outside = Math.hypot(Math.max(-across, 0, across - 1), Math.max(-down, 0, down - 1));
      let value = sample(surface, across, down) * Math.max(0, 1 - outside / FADE);
      let edge = 0;
      if (!outside) {
        const step = 1 / (right - left);
        const slope = Math.hypot(sample(surface, across + step, down) - value, sample(surface, across, down + step) - value);
        edge = slope > 1e-5 ? Math.max(0, 1 - Math.abs(value - LEVEL) / slope / line) : 0;
      }
      const dark = SHADE * (1 - rise(value));
      // The outline is amber over whatever shade lies there, so that it shows on dark images as well.
      const alpha = edge + dark * (1 - edge);
      pixels[at] = (255 * edge + 8 * dark * (1 - edge)) / alpha;
      pixels[at + 1] = (196 * edge + 14 * dark * (1 - edge)) / alpha;
      pixels[at + 2] = (92 * edge + 20 * dark * (1 - edge)) / alpha;
      pixels[at + 3] = 255 * alpha;
    }
  }
  context.putImageData(shade, 0, 0);
}

/** From dark to lit: little effect stays dark, half of the largest is fully lit. */
function rise(value) {
  const t = Math.min(Math.max((value - 0.08) / 0.5, 0), 1);
  return t * t * (3 - 2 * t);
}

/** A grid of cells as a smooth surface of `side` by `side` values whose largest is 1 (0 where the grid is). */
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

/** The surface at a place between 0 and 1, linearly between its values. */
function sample(surface, across, down) {
  const side = surface.length;
  const x = Math.min(Math.max(across * side - 0.5, 0), side - 1);
  const y = Math.min(Math.max(down * side - 0.5, 0), side - 1);
  const [column, row] = [Math.min(Math.floor(x), side - 2), Math.min(Math.floor(y), side - 2)];
  const [fx, fy] = [x - column, y - row];
  const [first, second] = [surface[row], surface[row + 1]];
  return (first[column] * (1 - fx) + first[column + 1] * fx) * (1 - fy) + (second[column] * (1 - fx) + second[column + 1] * fx) * fy;
}

/** One crop, as the model saw it, onto a small canvas. `image` null: an empty frame with the place of the crop in it. */
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
