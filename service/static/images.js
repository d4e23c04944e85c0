// Images on their way in: out of a drop, the clipboard or a file input; and smaller where the service would refuse them.

import { bytes } from "./words.js";

/** The files in a DataTransfer of a drop or a paste. */
export function filesOf(transfer) {
  const files = [...(transfer?.files ?? [])];
  if (files.length) return files;
  return [...(transfer?.items ?? [])].filter((item) => item.kind === "file").map((item) => item.getAsFile()).filter(Boolean);
}

/** A name for people and for a command line; images out of a clipboard come with none worth keeping. */
export function nameOf(file) {
  return file.name || "image.png";
}

/** Load an object URL; the `img` that shows it, or null where this browser cannot. */
export async function load(url) {
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    return null;
  }
  return image.naturalWidth ? image : null;
}

/**
 * What to send for a file: itself, or a smaller JPEG of it where it is over the service's limits and can be decoded here.
 * Returns {blob, note}; `note` says what was done, if anything.
 */
export async function fitting(file, image, limits) {
  if (!image || !limits) return { blob: file, note: "" };
  const pixels = image.naturalWidth * image.naturalHeight;
  const heavy = file.size > limits.max_body_bytes;
  if (!heavy && pixels <= limits.max_pixels) return { blob: file, note: "" };
  let side = Math.min(2048, Math.floor(Math.sqrt(limits.max_pixels)));
  for (;;) {
    const blob = await scaled(image, side);
    if (!blob) return { blob: file, note: "" };
    if (blob.size <= limits.max_body_bytes || side < 256) {
      const why = heavy ? `takes at most ${bytes(limits.max_body_bytes)}` : `takes at most ${Math.floor(limits.max_pixels / 1e6) || 1} megapixels`;
      return { blob, note: `Made smaller before sending (${bytes(file.size)} to ${bytes(blob.size)}): the service ${why}.` };
    }
    side = Math.floor(side / 1.5);
  }
}

async function scaled(image, side) {
  const factor = Math.min(1, side / Math.max(image.naturalWidth, image.naturalHeight));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.naturalWidth * factor));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * factor));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // where the image is transparent, as the service does it
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}
