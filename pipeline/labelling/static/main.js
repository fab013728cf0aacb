// The page: views, actions and keys. The server holds the state; what is shown here was answered by it.

import { bytes, get, page, post } from "./api.js";
import { mark } from "./colours.js";
import { drawCurve } from "./curve.js";
import { Grid } from "./grid.js";
import { Map2d } from "./map.js";

const $ = id => document.getElementById(id);
const VIEWS = [["groups", "Groups", "g"], ["unsure", "Unsure", "q"], ["disagreements", "Disagreements", "d"],
  ["strange", "Unlike anything", "o"], ["labelled", "Labelled", "b"], ["audit", "Audit", "y"]];
const KEYS = [["1 to 9", "label the selection, or the image under the cursor, with this class"],
  ["Enter", "in the view of a class: confirm the selection as this class"],
  ["c", "write the name of a class, or a number"], ["0, Backspace", "remove the label (0 with label sets: the empty set)"],
  ["arrows", "move the cursor; with Shift also select"], ["Space", "select or strike out the image under the cursor"],
  ["a, Esc", "select all, select none"], ["n", "next group, or a fresh list"], ["z", "zoom: the image, its key and columns"],
  ["l", "images like this one"], ["w", "search by words, in a cache of a dual encoder"], ["u, r", "undo, redo"],
  ...VIEWS.map(([, title, key]) => [key, `view: ${title}`]), ["Shift+1 to 9", "view: what is taken for this class"]];
const AUDIT_EVERY = 10, CONFIRMED = 40;

let state = null, view = { name: "groups", of: 0 }, touched = false, busy = false, lastAudit = 0, pending = Promise.resolve();
const grid = new Grid($("grid"), {
  changed: showChosen, zoom, classIndex: label => {
    const first = state?.task === "multilabel" ? label.split("|")[0] : label;
    return state?.classes.findIndex(entry => entry.name === first) ?? -1;
  },
});
const map = new Map2d($("map"), rows => show({ name: "picked", of: 0, rows, captions: [], title: `${rows.length} images of the map` }));

function notice(text, ...further) { $("notice").replaceChildren(text, ...further); }

function button(text, key, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.append(text, " ");
  if (key) { const shown = document.createElement("kbd"); shown.textContent = key; made.append(shown); }
  made.addEventListener("click", act);
  return made;
}

// One request after the other: an action never overtakes the one before it.
function queue(work) {
  pending = pending.then(work).catch(error => {
    notice(`${error.message}`);
    if (error.status === 409) return reload();
  });
  return pending;
}

// --- state ------------------------------------------------------------------------------------------------------

function setState(found) {
  const others = found.pages > 1 ? "Another page shows this session as well. Only what is newest can be labelled." : "";
  state = found;
  document.title = `Label ${found.cache}`;
  $("title").textContent = `Label ${found.cache}: ${found.labelled} of ${found.rows} images have a label`;
  for (const name of ["undo", "redo"]) {
    $(name).disabled = found[name] === null;
    $(name).title = found[name] ?? "";
  }
  $("searching").hidden = !found.words;
  $("table").textContent = `Labels are in ${found.table}`;
  $("nameof").textContent = found.task === "regression" ? "The number of the selection is" : "Label the selection as";
  showClasses();
  showFigure();
  if (found.problem) notice(`The table cannot be written: ${found.problem}`);
  else if (others) notice(others);
  else if (auditIsDue()) notice("An audit is due: ten images drawn at random tell how right the head is.", button("Audit", "y", () => open("audit")));
}

function auditIsDue() {
  return state.fitted && view.name !== "audit" && state.actions - lastAudit >= AUDIT_EVERY && state.audit.rows < state.audit.held;
}

function showClasses() {
  $("classes").replaceChildren(...state.classes.map((entry, k) => {
    const line = document.createElement("div");
    const use = button("", "", () => label(k));
    use.replaceChildren(mark(k), entry.name);
    use.title = `Label the selection as ${entry.name}`;
    const counts = button(`${entry.labelled} / ${entry.predicted ?? "–"}`, "", () => open("class", k));
    counts.className = "show";
    counts.title = `${entry.labelled} labelled, ${entry.predicted ?? "not yet"} predicted: show what is taken for ${entry.name}`;
    line.append(use, counts);
    return line;
  }));
  $("names").replaceChildren(...state.classes.map(entry => new Option("", entry.name)));
}

function showFigure() {
  const { audit, changed, task } = state, isShare = task !== "regression", percent = x => `${(x * 100).toFixed(1)} %`;
  const shown = isShare ? percent : x => x.toPrecision(3);
  $("figure").textContent = audit.value === null || !audit.rows
    ? `Not known yet. ${audit.held} images drawn at random are held back for the audit; no head is fitted on them.`
    : `${isShare ? "Right on" : "Mean error"} ${shown(audit.value)}` +
      (audit.low === null ? "" : ` (${shown(audit.low)} to ${shown(audit.high)})`) + `, from ${audit.rows} audited images.`;
  $("changed").textContent = changed === null ? "" :
    `${changed.rows} images would be labelled otherwise than ${changed.since} actions ago.`;
  const now = audit.rows ? [{ labels: state.labelled - audit.rows, ...audit }] : [];
  drawCurve($("curve"), [...state.history, ...now], isShare);
}

function showChosen() {
  $("chosen").textContent = grid.rows.length ? `${grid.selected.size} of ${grid.rows.length} selected` : "";
}

async function colours() {
  map.colours = new Uint8Array(await bytes("colours"));
  map.shown = grid.rows.slice(0, 200);
  requestAnimationFrame(() => map.draw());
}

async function reload() {
  setState(await get(`state?page=${page}`));
  await Promise.all([grid.refresh(), colours()]);
}

// --- views ------------------------------------------------------------------------------------------------------

function open(name, of = 0) {
  return queue(async () => { show(await get(`view/${name}?of=${of}`)); });
}

function search(text) {
  notice("Searching: the first search loads the network.");
  return queue(async () => {
    const found = await get(`words?text=${encodeURIComponent(text)}`);
    notice("");
    show({ ...found, text });
  });
}

function show(found) {
  view = found;
  touched = false;
  if (found.name === "audit") { lastAudit = state.actions; notice(""); }
  $("what").textContent = found.title;
  for (const shown of $("views").children) shown.setAttribute("aria-pressed", shown.dataset.name === found.name);
  $("groups").hidden = !found.list?.length;
  $("groups").replaceChildren(...(found.list ?? []).map((group, k) => {
    const made = button("", "", () => open("groups", k)), image = document.createElement("img");
    image.src = `thumb/${group.rows[0]}`;
    image.alt = "";
    made.replaceChildren(image, String(group.size));
    made.setAttribute("aria-label", `Group ${k + 1}, ${group.size} images`);
    made.setAttribute("aria-pressed", k === found.of);
    return made;
  }));
  grid.show(found.rows, found.captions, found.name === "groups" ? found.rows.length : found.name === "class" ? CONFIRMED : 0);
  map.shown = found.rows.slice(0, 200);
  map.draw();
}

function next() {
  if (view.name === "picked") return open("unsure");
  if (view.name === "words") return search(view.text);
  return open(view.name, view.name === "groups" && !touched ? view.of + 1 : view.of);
}

// --- actions ----------------------------------------------------------------------------------------------------

function act(action) {
  const started = performance.now();
  return queue(async () => {
    setState(await post("act", { action, seen: state.actions, page }));
    await Promise.all([grid.refresh(), colours()]);
    document.documentElement.dataset.milliseconds = Math.round(performance.now() - started);
    document.documentElement.dataset.actions = state.actions;
  });
}

function give(make) {
  const rows = grid.chosen, single = !grid.selected.size;
  if (!rows.length) return;
  touched = true;
  act(make(rows)).then(() => {
    grid.selected.clear();
    if (single) grid.move(1); else grid.update();
  });
}

function label(k) {
  const entry = state.classes[k];
  if (!entry) return notice(`There is no class ${k + 1} yet: press c and write its name`);
  name(entry.name);
}

function name(value) {
  if (state.task === "regression") {
    const number = Number(value.replace(",", "."));
    // JSON has no NaN: it would become null, which removes labels.
    if (!Number.isFinite(number)) return notice(`Expected a number, found ${value}: write a number such as 2.5`);
    return give(rows => ({ do: "label", rows, value: number }));
  }
  if (state.task === "multilabel") {
    const has = row => (grid.captions.get(row)?.[0] ?? "").split("|").includes(value);
    return give(rows => ({ do: rows.every(has) ? "drop" : "add", rows, value }));
  }
  give(rows => ({ do: "label", rows, value }));
}

function zoom(row = grid.focused) {
  if (row === undefined) return;
  get(`item/${row}`).then(item => {
    $("key").textContent = item.key;
    $("large").src = `image/${row}`;
    const facts = { label: item.label ?? "none", ...(item.guess === null ? {} : { guess: item.guess }), ...item.facts };
    $("facts").replaceChildren(...Object.entries(facts).flatMap(([what, value]) => {
      const dt = document.createElement("dt"), dd = document.createElement("dd");
      dt.textContent = what;
      dd.textContent = value;
      return [dt, dd];
    }));
    if (!$("zoom").open) $("zoom").showModal();
  }).catch(error => notice(error.message));
}

async function run() {
  $("run").disabled = true;
  try {
    let status = await post("run");
    while (status.state === "working") {
      showLines(status);
      await new Promise(done => setTimeout(done, 500));
      status = await get("run");
    }
    showLines(status);
  } catch (error) {
    notice(error.message);
  }
  $("run").disabled = false;
}

function showLines(status) {
  $("lines").hidden = false;
  const last = { working: "…", done: `${status.run} written`, failed: `error: ${status.error}` }[status.state] ?? "";
  $("lines").textContent = [...status.lines, last].join("\n");
}

// --- keys -------------------------------------------------------------------------------------------------------

function pressed(event) {
  if (event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -grid.columns, ArrowDown: grid.columns };
  const digit = /^Digit([0-9])$/.exec(event.code)?.[1] ?? (/^[0-9]$/.test(event.key) ? event.key : undefined);
  const inButton = event.target.matches("button") && [" ", "Enter"].includes(event.key);
  if (inButton) return;
  const found = VIEWS.find(([, , key]) => key === event.key);
  if (event.key in steps) { grid.move(steps[event.key], event.shiftKey); if ($("zoom").open) zoom(); }
  else if (digit > 0 && event.shiftKey) state.classes[digit - 1] && open("class", digit - 1);
  else if (digit > 0) label(digit - 1);
  else if (digit === "0" && state.task === "multilabel") give(rows => ({ do: "label", rows, value: [] }));
  else if (digit === "0" || event.key === "Backspace") give(rows => ({ do: "label", rows, value: null }));
  else if (event.key === " ") grid.rows.length && grid.toggle(grid.cursor);
  else if (event.key === "Enter") { if (view.name === "class") label(view.of); else zoom(); }
  else if (event.key === "a") grid.all();
  else if (event.key === "Escape") { if ($("zoom").open) return; grid.none(); }
  else if (event.key === "n") next();
  else if (event.key === "z") zoom();
  else if (event.key === "c") $("name").focus();
  else if (event.key === "w" && state.words) $("words").focus();
  else if (event.key === "u") $("undo").click();
  else if (event.key === "r") $("redo").click();
  else if (event.key === "l") like();
  else if (event.key === "?") $("keys").showModal();
  else if (found) open(found[0]);
  else return;
  event.preventDefault();
}

function like() {
  const row = grid.focused;
  $("zoom").close();
  if (row !== undefined) open("like", row);
}

$("undo").addEventListener("click", () => act({ do: "undo" }));
$("redo").addEventListener("click", () => act({ do: "redo" }));
$("help").addEventListener("click", () => $("keys").showModal());
$("all").addEventListener("click", () => grid.all());
$("none").addEventListener("click", () => grid.none());
$("next").addEventListener("click", next);
$("audit").addEventListener("click", () => open("audit"));
$("run").addEventListener("click", run);
$("like").addEventListener("click", like);
$("shut").addEventListener("click", () => $("zoom").close());
$("shutkeys").addEventListener("click", () => $("keys").close());
$("naming").addEventListener("submit", event => {
  event.preventDefault();
  const value = $("name").value.trim();
  $("name").value = "";
  $("grid").focus();
  if (value) name(value);
});
$("searching").addEventListener("submit", event => {
  event.preventDefault();
  const text = $("words").value.trim();
  $("grid").focus();
  if (text) search(text);
});
for (const id of ["name", "words"]) $(id).addEventListener("keydown", event => {
  if (event.key === "Escape") { $(id).value = ""; $("grid").focus(); }
});
addEventListener("keydown", pressed);

$("views").append(...VIEWS.map(([id, title, key]) => {
  const made = button(title, key, () => open(id));
  made.dataset.name = id;
  return made;
}));
$("keylist").append(...KEYS.flatMap(([key, what]) => {
  const dt = document.createElement("dt"), dd = document.createElement("dd");
  dt.textContent = key;
  dd.textContent = what;
  return [dt, dd];
}));

queue(async () => {
  setState(await get(`state?page=${page}`));
  lastAudit = state.actions;
  map.setPlaces(new Float32Array(await bytes("map")));
  show(await get(`view/${state.fitted ? "unsure" : "groups"}?of=0`));
  await colours();
  $("grid").focus();
  document.documentElement.dataset.ready = "yes";
});
setInterval(() => {
  if (document.hidden) return;
  get(`state?page=${page}`).then(found => {
    if (state && found.actions !== state.actions) queue(reload); else if (state) setState(found);
  }).catch(() => notice("The server does not answer: its terminal says why."));
}, 5000);
