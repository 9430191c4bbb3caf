// Which colour does a value get? (See scale.py.)
import { palette } from "./palette.js";

const parse = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

export const css = (colour) => `rgb(${colour.join(" ")})`;

// The span of the finite values, and a colour for each: `{low, high, greatest, colour(value), pixel(value), gradient}`.
export function scale(values, diverging, mode) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (!isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) [low, high] = [diverging ? -1 : 0, 1];
  else if (diverging) {
    high = Math.max(-low, high) || 1;
    low = -high;
  } else {
    [low, high] = [Math.min(low, 0), Math.max(high, 0)];
    if (high <= low) high = 1;
  }
  const hexes = palette[mode][diverging ? "diverging" : "sequential"], anchors = hexes.map(parse);
  const place = (value) => Math.min(1, Math.max(0, (value - low) / (high - low)));
  const colour = (value) => {
    const at = place(value) * (anchors.length - 1);
    const left = Math.min(Math.floor(at), anchors.length - 2);
    return anchors[left].map((part, i) => Math.round(part + (anchors[left + 1][i] - part) * (at - left)));
  };
  // 512 of the colours as pixels, for drawings with a million cells.
  const pixels = Uint32Array.from({ length: 512 }, (_, i) =>
    colour(low + ((high - low) * i) / 511).reduceRight((word, part) => word * 256 + part, 255));
  const pixel = (value) => pixels[Math.round(511 * place(value))];
  return { low, high, greatest: Math.max(-low, high), colour, pixel, gradient: `linear-gradient(90deg, ${hexes})` };
}

// Black or white, whichever reads better on a colour (contrast at least 4.5).
export function ink(colour) {
  const [red, green, blue] = colour.map((part) => {
    const c = part / 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
}

// About `count` round numbers between low and high.
export function ticks(low, high, count = 5) {
  if (!(high > low)) return [low];
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999) * power;
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
  return found;
}

// The powers of ten between low and high, thinned to at most eight.
export function powers(low, high) {
  const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
  const step = Math.ceil((last - first + 1) / 8), found = [];
  for (let n = first; n <= last; n += step) found.push(10 ** n);
  return found;
}
