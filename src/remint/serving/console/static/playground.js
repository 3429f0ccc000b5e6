// The playground: asks the endpoints of the served version, and draws their answers.
"use strict";

const facts = JSON.parse(document.getElementById("facts").textContent);
const isTable = facts.shape === null;
const SAMPLES = isTable ? 8 : 24, STEPS = 17, SLIDERS = 6, COMPLETIONS = 4;
const CHAMPION = { name: "champion", ref: facts.ref, url: `/v1/models/${facts.model}` };
const KINDS = { png: "image/png", npy: "application/x-npy", csv: "text/csv", parquet: "application/vnd.apache.parquet" };

let sides = [CHAMPION];  // those that answer: the champion, and the challenger where a person wants it
const picked = [];  // at most two examples, A and B, each {x, class}
const at = id => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

async function ask(side, method, body, options = {}) {
  const isFile = body instanceof Blob;
  const query = isFile ? "?" + new URLSearchParams(options) : "";
  const answer = await fetch(`${side.url}:${method}${query}`, {
    method: "POST",
    headers: { "content-type": isFile ? KINDS[body.name.split(".").pop().toLowerCase()] || "" : "application/json" },
    body: isFile ? body : JSON.stringify(body),
  }).catch(() => null);
  if (!answer) throw new Error("the server does not answer");
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.detail);
  return said;
}

// Asks each side and shows what `draw` makes of its answer. A later call for the same place overtakes an earlier one.
const latest = new Map();
async function show(place, method, body, draw, options) {
  const turn = Symbol(), box = at(place);
  latest.set(place, turn);
  box.setAttribute("aria-busy", "true");
  const figures = await Promise.all(sides.map(async side => {
    const caption = element("figcaption", { textContent: `${side.name} ${side.ref}` });
    try {
      const said = await ask(side, method, body, options);
      caption.textContent = `${side.name} ${said.model}/${said.version}`;  // it may have been switched
      return element("figure", {}, caption, draw(said, side));
    } catch (error) {
      return element("figure", {}, caption, element("p", { className: "problem", textContent: error.message }));
    }
  }));
  if (latest.get(place) !== turn) return;
  box.replaceChildren(...figures);
  box.setAttribute("aria-busy", "false");
}

// One example: an image on a canvas, a row as a table.
function picture(x, label) {
  return isTable ? rowTable([x]) : paint(element("canvas", { width: facts.shape[2], height: facts.shape[1] }), x, label);
}

function paint(canvas, x, label) {
  const [channels, height, width] = facts.shape, context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height), grey = channels < 3;
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const place = 4 * (row * width + column);
      for (let c = 0; c < 3; c++) pixels.data[place + c] = 255 * x[grey ? 0 : c][row][column] / (facts.levels - 1);
      pixels.data[place + 3] = 255;
    }
  }
  context.putImageData(pixels, 0, 0);
  return Object.assign(canvas, { role: "img", ariaLabel: label });
}

const text = value => value === null ? "missing" : Number.isInteger(value) || typeof value !== "number" ? String(value) : value.toPrecision(4);

function rowTable(rows, first = () => []) {
  const names = Object.keys(rows[0]);
  const line = (tag, place, cell) => element("tr", {}, ...first(place), ...names.map(name => element(tag, { textContent: cell(name) })));
  const body = rows.map((row, place) => line("td", place, name => text(row[name])));
  const table = element("table", {}, element("thead", {}, line("th", -1, name => name)), element("tbody", {}, ...body));
  return element("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "rows" }, table);
}

// A body that carries examples: x of images, rows of a table, and the class where the model needs one.
function examples(...chosen) {
  const given = isTable ? { rows: chosen.map(one => one.x) } : { x: chosen.map(one => one.x) };
  const known = facts.classes.length && chosen.every(one => one.class !== undefined);
  return known ? { ...given, class: chosen.map(one => one.class) } : given;
}

// Samples, and picking two of them.
function drawSamples(said) {
  const chosen = said.values.map((x, place) => ({ x, class: said.classes && said.classes[place] }));
  const button = place => {
    const made = element("button", { className: "pick", type: "button", ariaPressed: "false", ariaLabel: `pick sample ${place + 1}` });
    made.addEventListener("click", () => pick(chosen[place], made));
    return made;
  };
  if (isTable) return rowTable(said.values, place => [place < 0 ? element("th", { textContent: "pick" }) : element("td", {}, button(place))]);
  return element("div", { className: "samples" }, ...chosen.map((one, place) => {
    const made = button(place);
    made.append(picture(one.x, `sample ${place + 1}`));
    return made;
  }));
}

function pick(example, button) {
  const held = picked.findIndex(one => one.button === button);
  if (held >= 0) picked.splice(held, 1);
  else {
    if (picked.length === 2) picked.pop();
    picked.push({ ...example, button });
  }
  for (const each of document.querySelectorAll(".pick")) {
    const place = picked.findIndex(one => one.button === each);
    each.setAttribute("aria-pressed", String(place >= 0));
    each.dataset.letter = place < 0 ? "" : "AB"[place];
  }
  if (at("morph")) at("morph").disabled = picked.length < 2;
  if (at("fill")) startMask();
}

function sample(event) {
  if (event) event.preventDefault();
  const form = new FormData(at("sample")), body = { count: SAMPLES, seed: Number(form.get("seed")) };
  if (form.get("class")) body.class = form.get("class");
  if (form.has("temperature") && form.get("temperature") !== "1") body.temperature = Number(form.get("temperature"));
  picked.length = 0;
  return show("samples", "sample", body, drawSamples).then(() => {
    const buttons = document.querySelectorAll("#samples figure:first-child .pick");
    for (const each of [...buttons].slice(0, 2)) each.click();
  });
}
at("sample").addEventListener("submit", sample);
at("sample").addEventListener("input", event => {
  if (event.target.type !== "range") return;
  event.target.nextElementSibling.textContent = event.target.value;
  sample();
});

// Morph: all steps are asked for at once, and the slider shows one of them.
function morph() {
  const slider = at("step");
  return show("morphed", "interpolate", { ...examples(...picked), steps: STEPS }, said => {
    const frames = said.values.map((x, place) => picture(x, `step ${place} of ${STEPS - 1}`));
    for (const frame of frames) frame.classList.add("frame");
    return element("div", { className: "frames" }, ...frames);
  }).then(() => {
    slider.disabled = false;
    slide();
  });
}

function slide() {
  const now = Number(at("step").value);
  at("step-now").textContent = `${Math.round(100 * now / (STEPS - 1))}% of the way`;
  for (const frames of document.querySelectorAll(".frames")) [...frames.children].forEach((frame, place) => frame.hidden = place !== now);
}

// Latent dimensions: a few sliders over a start.
let start = [];
async function startLatent() {
  const form = new FormData(at("latent"));
  start = new Array(facts.latent_size).fill(0);
  if (form.get("start") === "A" && picked.length) start = (await ask(CHAMPION, "encode", examples(picked[0]))).values[0];
  const from = Math.min(Math.max(1, Number(form.get("first")) || 1), facts.latent_size) - 1;
  const many = Math.min(SLIDERS, facts.latent_size - from);
  at("dimensions").replaceChildren(...Array.from({ length: many }, (_, place) => {
    const slider = element("input", { type: "range", min: -3, max: 3, step: 0.1, value: start[from + place] });
    slider.dataset.dimension = from + place;
    return element("label", {}, `z${from + place + 1} `, slider, element("output", { textContent: start[from + place].toFixed(1) }));
  }));
  return decode();
}

function decode() {
  const z = [...start];
  for (const slider of at("dimensions").querySelectorAll("input")) z[slider.dataset.dimension] = Number(slider.value);
  const body = { z: [z] }, of = new FormData(at("latent")).get("class");
  if (of) body.class = of;
  return show("decoded", "decode", body, said => picture(said.values[0], "decoded latent"));
}

if (at("latent")) {
  at("morph").addEventListener("click", morph);
  at("step").addEventListener("input", slide);
  at("latent").addEventListener("submit", event => event.preventDefault());
  at("latent").addEventListener("input", event => {
    if (event.target.dataset.dimension === undefined) return;
    event.target.nextElementSibling.textContent = Number(event.target.value).toFixed(1);
    decode();
  });
  at("latent").addEventListener("change", event => {
    if (event.target.dataset.dimension === undefined) startLatent();
  });
  startLatent();
}

// Scores of a file.
function score(file) {
  return show("scored", "score", file, said => {
    const shown = said.values.slice(0, 20).map((row, place) => ({
      example: place, score: row.score, "p-value": row.p_value, unusual: row.flagged ? "yes" : "no",
    }));
    const notes = said.notes.map(note => element("p", { textContent: note }));
    const explained = element("img", { src: `data:image/png;base64,${said.explained}`, alt: "what each part adds to the highest scores" });
    const more = said.values.length > shown.length ? [element("p", { textContent: `the first ${shown.length} of ${said.values.length}` })] : [];
    return element("div", {}, ...notes, rowTable(shown), ...more, explained);
  }, { explain: "true" });
}
at("file").addEventListener("change", event => event.target.files.length && score(event.target.files[0]));
at("drop").addEventListener("dragover", event => event.preventDefault());
at("drop").addEventListener("drop", event => {
  event.preventDefault();
  if (event.dataTransfer.files.length) score(event.dataTransfer.files[0]);
});

// Impute: a mask over A, painted on an image, or cells of a row.
let missing = [];  // H x W of an image, a set of names of a row
function startMask() {
  at("fill").disabled = !picked.length;
  if (!picked.length) return at("masked").replaceChildren();
  if (isTable) {
    missing = new Set();
    const table = rowTable([picked[0].x]);
    Object.keys(picked[0].x).forEach((name, place) => {
      const cell = table.querySelectorAll("td")[place];
      const button = element("button", { type: "button", textContent: cell.textContent, ariaPressed: "false", ariaLabel: `${name} is missing` });
      button.addEventListener("click", () => {
        const gone = !missing.delete(name);
        if (gone) missing.add(name);
        button.setAttribute("aria-pressed", String(gone));
      });
      cell.replaceChildren(button);
    });
    return at("masked").replaceChildren(table);
  }
  const [, height, width] = facts.shape;
  missing = Array.from({ length: height }, () => new Array(width).fill(0));
  const canvas = picture(picked[0].x, "sample A with what is missing");
  canvas.className = "paintable";
  const stroke = event => {
    if (!event.buttons) return;
    const box = canvas.getBoundingClientRect();
    const row = Math.floor((event.clientY - box.top) / box.height * height);
    const column = Math.floor((event.clientX - box.left) / box.width * width);
    if (row >= 0 && row < height && column >= 0 && column < width) mask((r, c) => missing[r][c] || (r === row && c === column));
  };
  canvas.addEventListener("pointerdown", stroke);
  canvas.addEventListener("pointermove", stroke);
  at("masked").replaceChildren(canvas);
}

function mask(isGone) {
  const [, height, width] = facts.shape, canvas = at("masked").firstChild;
  missing = missing.map((row, r) => row.map((_, c) => Number(isGone(r, c))));
  paint(canvas, picked[0].x, "sample A with what is missing");
  const context = canvas.getContext("2d");
  context.fillStyle = "#c2410c";
  for (let r = 0; r < height; r++) for (let c = 0; c < width; c++) if (missing[r][c]) context.fillRect(c, r, 1, 1);
}

function fill() {
  const gaps = x => Object.fromEntries(Object.entries(x).map(([name, value]) => [name, missing.has(name) ? null : value]));
  const given = isTable ? examples({ ...picked[0], x: gaps(picked[0].x) }) : { ...examples(picked[0]), missing };
  return show("filled", "impute", { ...given, draws: COMPLETIONS }, said => picture(said.values[0], "sample A, filled"));
}

if (at("fill")) {
  at("fill").addEventListener("click", fill);
  for (const button of document.querySelectorAll("[data-half]")) {
    button.addEventListener("click", () => {
      const [, height, width] = facts.shape, half = button.dataset.half;
      if (picked.length) mask((r, c) => half === "top" ? r < height / 2 : half === "left" ? c < width / 2 : false);
    });
  }
}

// The challenger beside the champion.
at("beside").addEventListener("change", async event => {
  const problem = at("beside-problem");
  problem.hidden = true;
  sides = [CHAMPION];
  if (event.target.checked) {
    const answer = await fetch(`/challengers/${facts.model}`).catch(() => null);
    const said = answer ? await answer.json() : { detail: "the server does not answer" };
    if (answer && answer.ok) sides = [CHAMPION, { name: "challenger", ref: said.ref, url: `/challengers/${facts.model}` }];
    else Object.assign(problem, { hidden: false, textContent: said.detail });
  }
  sample();
  if (at("latent")) decode();
});

sample();
