// The map: every image as a point, in the colour of its label or guess; a dragged rectangle gives its images.

import { colour } from "./colours.js";

const MOST = 2000;

export class Map2d {
  constructor(canvas, picked) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.picked = picked;
    this.places = new Float32Array();
    this.colours = new Uint8Array();
    this.shown = [];
    this.rectangle = null;
    canvas.addEventListener("pointerdown", event => this.press(event));
  }

  setPlaces(places) {
    this.places = new Float32Array(places.length);
    for (const axis of [0, 1]) {
      const values = places.filter((_, i) => i % 2 === axis).sort();
      const low = values[Math.floor(values.length * .002)], high = values[Math.ceil((values.length - 1) * .998)];
      const size = axis ? this.canvas.height : this.canvas.width, scale = (size - 16) / (high - low || 1);
      for (let i = axis; i < places.length; i += 2) {
        const at = 8 + Math.min(Math.max((places[i] - low) * scale, -4), size - 12);
        this.places[i] = axis ? size - at : at;
      }
    }
  }

  draw() {
    const { context, canvas, places, colours } = this;
    context.clearRect(0, 0, canvas.width, canvas.height);
    const count = places.length / 2, size = count > 20000 ? 2 : count > 3000 ? 3 : 6;
    const by = new Map();
    for (let i = 0; i < count; i++) {
      const k = colours[i] ?? 0;
      if (k === 255) continue;  // held back for the audit
      const some = by.get(k);
      if (some) some.push(i); else by.set(k, [i]);
    }
    for (const [k, some] of [...by].sort((a, b) => a[0] - b[0])) {
      context.fillStyle = k ? colour(k - 1) : "#c3c9d2";
      for (const i of some) context.fillRect(places[2 * i] - size / 2, places[2 * i + 1] - size / 2, size, size);
    }
    context.strokeStyle = "#111";
    for (const i of this.shown) context.strokeRect(places[2 * i] - 4, places[2 * i + 1] - 4, 8, 8);
    if (this.rectangle) context.strokeRect(...this.rectangle);
  }

  press(event) {
    const box = this.canvas.getBoundingClientRect(), scale = this.canvas.width / box.width;
    const place = e => [(e.clientX - box.left) * scale, (e.clientY - box.top) * scale];
    const [x0, y0] = place(event);
    const moved = e => {
      const [x, y] = place(e);
      this.rectangle = [Math.min(x0, x), Math.min(y0, y), Math.abs(x - x0), Math.abs(y - y0)];
      requestAnimationFrame(() => this.draw());
    };
    addEventListener("pointermove", moved);
    addEventListener("pointerup", () => {
      removeEventListener("pointermove", moved);
      const found = this.rectangle;
      this.rectangle = null;
      this.draw();
      if (found && found[2] > 3 && found[3] > 3) this.picked(this.inside(found).slice(0, MOST));
    }, { once: true });
  }

  inside([left, top, width, height]) {
    const rows = [];
    for (let i = 0; i < this.places.length / 2; i++) {
      const x = this.places[2 * i], y = this.places[2 * i + 1];
      if (this.colours[i] !== 255 && x >= left && x <= left + width && y >= top && y <= top + height) rows.push(i);
    }
    return rows;
  }
}
