// How are numbers and tokens written, the same in every view? (See lettering.py.)

export function numeral(value, digits = 3) {
  if (isNaN(value)) return "–";
  if (!isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e-4 && size < 1e6
    ? value.toFixed(Math.max(0, digits - 1 - Math.floor(Math.log10(size))))
    : value.toExponential(digits - 1).replace("e+", "e");
  return text.replaceAll("-", "−");
}

// A number for a small cell, with as many decimals as give the greatest magnitude two or three digits: .12 for 0.12.
export function short(value, greatest) {
  if (isNaN(value)) return "";
  if (!isFinite(value) || greatest < 1e-4 || greatest >= 1e5) return numeral(value, 2);
  const text = value.toFixed(Math.max(0, 2 - Math.floor(Math.log10(greatest) + 0.7)));
  return (Number(text) ? text : text.replace("-", "")).replace(/^(-?)0\./, "$1.").replace("-", "−");
}

// A table's cell; `exact` columns hold no floats, and their integers stay whole.
export function cellText(cell, exact) {
  if (cell === null) return "–";
  if (typeof cell === "boolean") return cell ? "yes" : "no";
  if (typeof cell === "number") return exact ? String(cell).replace("-", "−") : numeral(cell);
  return visible(cell);
}

// A number with its unit.
export const measured = (value, unit, digits = 4) => `${numeral(value, digits)} ${visible(unit)}`.trimEnd();

const NAMED = { "\n": "⏎", "\t": "⇥", "\r": "␍" };

export function visible(text) {
  if (!text.replaceAll(" ", "")) return "␣".repeat(text.length);
  return text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Cn}\p{Zl}\p{Zp}]/gu, (character) => {
    if (NAMED[character]) return NAMED[character];
    const code = character.codePointAt(0).toString(16).toUpperCase();
    return code.length < 3 ? `⟨0x${code.padStart(2, "0")}⟩` : `⟨U+${code.padStart(4, "0")}⟩`;
  });
}
