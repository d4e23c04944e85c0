// Images from a drop, the clipboard or a file input, scaled down where the service would refuse them.

import { bytes } from "./words.js";

/** Return the files in the DataTransfer of a drop or a paste. */
export function filesOf(transfer) {
  const files = [...(transfer?.files ?? [])];
  if (files.length) return files;
  return [...(transfer?.items ?? [])].filter((item) => item.kind === "file").map((item) => item.getAsFile()).filter(Boolean);
}

/** Return a file's name; images from the clipboard may have none. */
export function nameOf(file) {
  return file.name || "image.png";
}

/** Load an object URL into an `img`; return null where this browser cannot decode it. */
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
 * Return what to send for a file: itself, or a smaller JPEG where it is over the service's limits and can be decoded here.
 * The result is {blob, note}; `note` describes the change, if any.
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
      const why = heavy ? `accepts at most ${bytes(limits.max_body_bytes)}` : `accepts at most ${Math.floor(limits.max_pixels / 1e6) || 1} megapixels`;
      return { blob, note: `Scaled down before sending (${bytes(file.size)} to ${bytes(blob.size)}): the service ${why}.` };
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
  context.fillStyle = "#fff"; // background of transparent parts, as in the service
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}
