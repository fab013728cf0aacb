// The images of a view as a virtual list: only tiles that can be seen exist. Selection by click, range, band and keys.

import { post } from "./api.js";
import { mark } from "./colours.js";

const WIDTH = 120, HEIGHT = 138, PAD = 4;

export class Grid {
  constructor(element, { changed, zoom, classIndex }) {
    this.element = element;
    this.space = element.querySelector("#space");
    this.band = element.querySelector("#band");
    this.changed = changed;
    this.zoom = zoom;
    this.classIndex = classIndex;
    this.rows = [];
    this.captions = new Map();
    this.selected = new Set();
    this.cursor = 0;
    this.anchor = 0;
    this.tiles = new Map();
    element.addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.draw()).observe(element);
    element.addEventListener("pointerdown", event => this.press(event));
    element.addEventListener("dblclick", event => {
      const at = this.at(event.target);
      if (at >= 0) this.zoom(this.rows[at]);
    });
  }

  get columns() { return Math.max(1, Math.floor((this.element.clientWidth - PAD) / WIDTH)); }

  get focused() { return this.rows[this.cursor]; }

  // The rows that an action is about: the selection, or the image under the cursor.
  get chosen() {
    if (this.selected.size) return this.rows.filter(row => this.selected.has(row));
    return this.rows.length ? [this.focused] : [];
  }

  show(rows, captions, preselected = 0) {
    this.rows = rows;
    this.captions = new Map(captions.map((caption, i) => [rows[i], caption]));
    this.selected = new Set(rows.slice(0, preselected));
    this.cursor = this.anchor = 0;
    this.element.scrollTop = 0;
    for (const tile of this.tiles.values()) tile.remove();
    this.tiles.clear();
    this.draw();
    this.changed();
  }

  // Ask for the labels and guesses of what is seen again.
  async refresh() {
    const [first, last] = this.visible();
    const rows = this.rows.slice(first, last);
    this.captions.clear();
    await this.load(rows);
  }

  async load(rows) {
    if (!rows.length) return;
    const found = await post("captions", { rows });
    rows.forEach((row, i) => this.captions.set(row, found.captions[i]));
    for (const [at, tile] of this.tiles) this.fill(tile, at);
  }

  visible() {
    const top = this.element.scrollTop, height = this.element.clientHeight || 600;
    const first = Math.max(0, Math.floor((top - height / 2) / HEIGHT)) * this.columns;
    const last = Math.ceil((top + height * 1.5) / HEIGHT) * this.columns;
    return [first, Math.min(last, this.rows.length)];
  }

  draw() {
    const columns = this.columns;
    this.space.style.height = `${Math.ceil(this.rows.length / columns) * HEIGHT + PAD}px`;
    const [first, last] = this.visible();
    for (const [at, tile] of this.tiles) if (at < first || at >= last) { tile.remove(); this.tiles.delete(at); }
    const unknown = [];
    for (let at = first; at < last; at++) {
      let tile = this.tiles.get(at);
      if (!tile) { tile = this.make(at); this.tiles.set(at, tile); this.element.append(tile); }
      tile.style.transform = `translate(${PAD + at % columns * WIDTH}px, ${PAD + Math.floor(at / columns) * HEIGHT}px)`;
      tile.style.left = tile.style.top = "0";
      if (!this.captions.has(this.rows[at])) unknown.push(this.rows[at]);
      this.fill(tile, at);
    }
    if (unknown.length) {
      clearTimeout(this.wait);
      this.wait = setTimeout(() => this.load(unknown).catch(() => {}), 40);
    }
    if (this.rows.length) this.element.setAttribute("aria-activedescendant", `tile-${this.cursor}`);
    else this.element.removeAttribute("aria-activedescendant");
  }

  make(at) {
    const tile = document.createElement("div");
    tile.className = "tile";
    tile.id = `tile-${at}`;
    tile.setAttribute("role", "option");
    tile.dataset.at = at;
    tile.setAttribute("aria-posinset", at + 1);
    tile.setAttribute("aria-setsize", this.rows.length);
    const image = document.createElement("img");
    image.alt = "";
    image.draggable = false;
    image.decoding = "async";
    image.src = `thumb/${this.rows[at]}`;
    image.addEventListener("error", () => {
      const gone = document.createElement("span");
      gone.className = "gone";
      gone.textContent = "cannot be read";
      image.replaceWith(gone);
    });
    const text = document.createElement("span");
    text.className = "text";
    tile.append(image, text);
    return tile;
  }

  fill(tile, at) {
    const row = this.rows[at], [label, guess, certainty] = this.captions.get(row) ?? [null, null, null];
    const text = tile.lastChild, own = label !== null, shown = own ? label : guess;
    tile.setAttribute("aria-selected", this.selected.has(row));
    tile.classList.toggle("cursor", at === this.cursor);
    text.className = own ? "text own" : "text guess";
    const percent = own || certainty === null ? "" : ` ${Math.round(certainty * 100)} %`;
    const k = shown === null ? -1 : this.classIndex(shown);
    text.replaceChildren(...(k >= 0 ? [mark(k)] : []), shown === null ? "" : shown + percent);
    const spoken = own ? `label ${label}` : guess === null ? "no label" : `guess ${guess}${percent}`;
    tile.setAttribute("aria-label", `Image ${at + 1}, ${spoken}`);
  }

  at(target) {
    const tile = target.closest?.(".tile");
    return tile ? Number(tile.dataset.at) : -1;
  }

  update() {
    for (const [at, tile] of this.tiles) this.fill(tile, at);
    this.element.setAttribute("aria-activedescendant", `tile-${this.cursor}`);
    this.changed();
  }

  toggle(at) {
    const row = this.rows[at];
    if (!this.selected.delete(row)) this.selected.add(row);
    this.cursor = this.anchor = at;
    this.update();
  }

  // Give all images from the last one to this one the state of the last one.
  range(at) {
    const on = this.selected.has(this.rows[this.anchor]);
    const [low, high] = [Math.min(at, this.anchor), Math.max(at, this.anchor)];
    for (const row of this.rows.slice(low, high + 1)) if (on) this.selected.add(row); else this.selected.delete(row);
    this.cursor = at;
    this.update();
  }

  all() { this.rows.forEach(row => this.selected.add(row)); this.update(); }

  none() { this.selected.clear(); this.update(); }

  move(step, extend) {
    if (!this.rows.length) return;
    const to = Math.min(Math.max(this.cursor + step, 0), this.rows.length - 1);
    if (extend) { this.selected.add(this.rows[this.cursor]); this.selected.add(this.rows[to]); }
    this.cursor = this.anchor = to;
    const top = Math.floor(to / this.columns) * HEIGHT;
    if (top < this.element.scrollTop) this.element.scrollTop = top;
    else if (top + HEIGHT > this.element.scrollTop + this.element.clientHeight) {
      this.element.scrollTop = top + HEIGHT - this.element.clientHeight;
    }
    this.draw();
    this.update();
  }

  press(event) {
    if (event.button !== 0 || event.pointerType === "touch" && this.at(event.target) < 0) return;
    const box = this.element.getBoundingClientRect();
    if (event.clientX > box.left + this.element.clientWidth) return;  // the scroll bar
    const place = e => [e.clientX - box.left, e.clientY - box.top + this.element.scrollTop];
    const start = place(event), at = this.at(event.target), before = new Set(this.selected);
    let dragged = false;
    this.element.focus({ preventScroll: true });
    const moved = e => {
      const end = place(e);
      if (event.pointerType === "touch" || !dragged && Math.hypot(end[0] - start[0], end[1] - start[1]) < 6) return;
      dragged = true;
      this.drag(start, end, before);
    };
    const up = e => {
      removeEventListener("pointermove", moved);
      this.band.hidden = true;
      if (!dragged && at >= 0 && e.type === "pointerup") if (e.shiftKey) this.range(at); else this.toggle(at);
    };
    addEventListener("pointermove", moved);
    addEventListener("pointerup", up, { once: true });
    addEventListener("pointercancel", up, { once: true });
  }

  drag([x0, y0], [x1, y1], before) {
    const [left, right, top, bottom] = [Math.min(x0, x1), Math.max(x0, x1), Math.min(y0, y1), Math.max(y0, y1)];
    Object.assign(this.band.style, {
      left: `${left}px`, top: `${top}px`, width: `${right - left}px`, height: `${bottom - top}px`,
    });
    this.band.hidden = false;
    this.selected = new Set(before);
    const columns = this.columns;
    for (let line = Math.max(0, Math.floor((top - PAD) / HEIGHT)); line * HEIGHT + PAD < bottom; line++) {
      for (let column = Math.max(0, Math.floor((left - PAD) / WIDTH)); column < columns && column * WIDTH + PAD < right; column++) {
        const row = this.rows[line * columns + column];
        if (row !== undefined) this.selected.add(row);
      }
    }
    this.update();
  }
}
