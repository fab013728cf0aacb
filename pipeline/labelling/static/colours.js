// Okabe and Ito's colours, which people tell apart who do not see red, green or blue; the number of a class is shown too.

export const COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#000000", "#999999"];
const DARK = new Set(["#009E73", "#0072B2", "#D55E00", "#000000"]);

export const colour = k => COLOURS[k % COLOURS.length];

export function mark(k, text = k < 9 ? String(k + 1) : "") {
  const found = document.createElement("span");
  found.className = "mark";
  found.ariaHidden = "true";
  found.style.background = colour(k);
  found.style.color = DARK.has(colour(k)) ? "#fff" : "#000";
  found.textContent = text;
  return found;
}
