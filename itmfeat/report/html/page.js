// Draws the charts, sorts the tables, filters, and shows the gallery. All data stands in the page.
"use strict";

const data = (name) => JSON.parse(document.getElementById(name).textContent);
const every = (selector, within = document) => [...within.querySelectorAll(selector)];

/** An element with properties and children; text stays text. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Calls `then` once for each element when it comes near the screen. */
function whenNear(then) {
  const watcher = new IntersectionObserver((entries) => {
    for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
      watcher.unobserve(target);
      then(target);
    }
  }, { rootMargin: "400px" });
  return watcher;
}

// --- charts ---

const charts = data("charts");
const chosen = {}; // parameter -> value, for charts that are yet to be drawn
const views = new Map();

const look = {
  background: null,
  font: "system-ui, sans-serif",
  view: { stroke: null },
  axis: {
    labelColor: "var(--soft)", titleColor: "var(--soft)", domainColor: "var(--line)", tickColor: "var(--line)",
    gridColor: "var(--line)", labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", labelPadding: 6,
  },
  axisX: { grid: false },
  axisY: { domain: false, ticks: false, tickCount: 5 },
  text: { fill: "var(--ink)" },
};

async function draw(box) {
  const chart = structuredClone(charts[box.dataset.chart]);
  for (const parameter of chart.params) {
    if (parameter.name in chosen) parameter.value = chosen[parameter.name];
  }
  const tooltip = { disableDefaultStyle: true };
  const quiet = { actions: false, defaultStyle: false, logLevel: 1 }; // errors, not that a filter left nothing
  const options = { ...quiet, ast: true, config: look, renderer: "svg", tooltip };
  const { view } = await vegaEmbed(box, chart, options);
  views.set(box, view);
  for (const parameter of chart.params) set(box, view, parameter.name);
  await view.runAsync();
}

function set(box, view, name) {
  const known = charts[box.dataset.chart].params.some((parameter) => parameter.name === name);
  if (known && name in chosen) view.signal(name, chosen[name]);
}

/** Small charts go where they have nothing to show: their method is not shown, or has no run of that noise. */
function tidy() {
  every(".multiples .panel").forEach((panel) => {
    const chart = charts[panel.querySelector(".chart").dataset.chart];
    const noise = chart.params.map(({ name }) => name).find((name) => name.startsWith("noise_"));
    const met = !noise || chart.data.values.some((record) => record.noise === (chosen[noise] ?? record.noise));
    panel.hidden = !met || (chosen.shown && !chosen.shown.includes(panel.dataset.method));
  });
  window.dispatchEvent(new Event("resize")); // a chart that was hidden had no width
}

function choose(name, value) {
  chosen[name] = value;
  tidy();
  for (const [box, view] of views) {
    set(box, view, name);
    view.runAsync();
  }
}

const drawing = whenNear(draw);
every(".chart").forEach((box) => drawing.observe(box));
every("select[data-signal]").forEach((menu) => {
  const tell = () => choose(menu.dataset.signal, JSON.parse(menu.value));
  menu.addEventListener("change", tell);
  tell(); // a browser may keep a choice over a reload
});

// --- methods ---

const boxes = every("input[name=method]");

function filter() {
  const shown = boxes.filter((box) => box.checked).map((box) => box.value);
  choose("shown", shown);
  every("tr[data-method]").forEach((row) => {
    row.hidden = !shown.includes(row.dataset.method);
  });
  every(".sortable").forEach(markBlocks);
}

boxes.forEach((box) => box.addEventListener("change", filter));

// --- tables ---

/** A line above each first row of a noise ratio, as long as rows of a ratio stand together. */
function markBlocks(table) {
  const rows = every("tbody tr", table).filter((row) => !row.hidden);
  const noise = rows.map((row) => row.cells[0].dataset.value);
  const changes = noise.map((value, place) => place > 0 && value !== noise[place - 1]);
  const together = changes.filter(Boolean).length < new Set(noise).size;
  rows.forEach((row, place) => row.classList.toggle("block", together && changes[place]));
}

function sort(table, column, head) {
  const body = table.tBodies[0];
  const words = head.classList.contains("word");
  const before = head.getAttribute("aria-sort");
  const up = before ? before === "descending" : words || column === 0;
  const value = (row) => row.cells[column].dataset.value;
  const compare = (one, other) => (words ? value(one).localeCompare(value(other)) : value(one) - value(other));
  every("[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  body.append(...[...body.rows].sort((one, other) => (up ? compare(one, other) : compare(other, one))));
  markBlocks(table);
}

every(".sortable").forEach((table) => {
  const heads = [...table.tHead.rows[1].cells];
  heads.forEach((head, column) => {
    head.firstElementChild.addEventListener("click", () => sort(table, column, head));
  });
});
filter();

// --- gallery ---

const TEN = 10, PAGE = 8;
const galleries = data("galleries");
const thumbnails = data("thumbnails");
const WAYS = { t2i: "captions", i2t: "images" };

const loading = whenNear((image) => {
  image.src = `data:image/webp;base64,${image.dataset.picture}`;
  delete image.dataset.picture;
});

function picture(of, id) {
  const [file, caption] = galleries[of].images[id];
  const small = thumbnails[of][id];
  if (!small) return make("span", { className: "name", textContent: file });
  const image = make("img", { alt: caption, title: caption, width: 96, height: 96 });
  image.dataset.picture = small;
  loading.observe(image);
  return image;
}

function mark(place, right) {
  const said = make("span", { className: "hidden-text", textContent: right ? " right" : " wrong" });
  return make("span", { className: "mark" }, `${place + 1} ${right ? "✓" : "✗"}`, said);
}

/** Whether a hit is right: the two ways ask the same of a caption and an image. */
function isRight(space, way, query, hit) {
  return way === "t2i" ? space.captions[query.id][1] === hit : space.captions[hit][1] === query.id;
}

function firstRight(space, way, query, run) {
  const place = query.found[run].findIndex((hit) => isRight(space, way, query, hit));
  return place < 0 ? TEN : place;
}

function list(of, way, query, run, letter) {
  const space = galleries[of];
  const first = firstRight(space, way, query, run);
  const told = first === TEN ? "none of ten is right" : `first right one at ${first + 1}`;
  const badge = make("span", { className: first === TEN ? "badge" : "badge hit", textContent: told });
  const items = query.found[run].map((hit, place) => {
    const right = isRight(space, way, query, hit);
    const shown = way === "t2i" ? picture(of, hit) : space.captions[hit][0];
    const kind = right ? "right" : "wrong";
    return make("li", { className: way === "t2i" ? `tile ${kind}` : kind }, mark(place, right), shown);
  });
  const title = make("h4", {}, `${letter}: ${space.runs[run].name}`, badge);
  return make("div", {}, title, make("ol", { className: way === "t2i" ? "tiles" : "texts" }, ...items));
}

function card(of, way, query, runs) {
  const space = galleries[of];
  const image = way === "t2i" ? space.captions[query.id][1] : query.id;
  const file = space.images[image][0].split("/").pop();
  const title = way === "t2i" ? space.captions[query.id][0] : `Image ${file}`;
  const why = query.drawn ? "drawn at random" : "chosen because runs disagree";
  const lists = runs.map(([letter, run]) => list(of, way, query, run, letter));
  const about = make("figcaption", { textContent: way === "t2i" ? "the image it belongs to" : "the query" });
  return make(
    "article", { className: `card ${way}` },
    make("h3", { textContent: title }),
    make("p", { className: "meta", textContent: `${way === "t2i" ? "caption" : "image"} ${query.id} of the split, ${why}` }),
    make("figure", {}, picture(of, image), about),
    make("div", { className: "lists" }, ...lists),
  );
}

function menu(label, options, value = 0) {
  const select = make("select", {}, ...options.map(([key, name]) => make("option", { value: key, textContent: name })));
  select.value = value;
  return [make("label", { className: "choice" }, make("span", { textContent: label }), select), select];
}

/** A run of the last table row's noise for each of two methods, where there are two. */
function rivals(space) {
  const last = space.runs.length - 1;
  const noise = (run) => space.runs[run].noise, method = (run) => space.runs[run].method;
  const others = space.runs.map((_, run) => run).filter((run) => noise(run) === noise(last));
  const other = others.find((run) => method(run) !== method(last));
  return [other ?? Math.max(0, last - 1), last];
}

function showcase(place) {
  const [spaceLabel, space] = menu("Dataset", galleries.map((each, of) => [of, each.dataset]));
  spaceLabel.hidden = galleries.length < 2;
  const [wayLabel, way] = menu("Queries", [["t2i", "captions, answered by images"], ["i2t", "images, answered by captions"]], "t2i");
  const [aLabel, a] = menu("Run A", []);
  const [bLabel, b] = menu("Run B", []);
  const [showLabel, show] = menu("Show", [
    ["all", "all"], ["a", "where A beats B"], ["b", "where B beats A"], ["neither", "where both miss"],
    ["both", "where both are right at 1"], ["drawn", "drawn at random"],
  ], "all");
  const search = make("input", { type: "search", placeholder: "words in the query" });
  const searchLabel = make("label", { className: "choice" }, make("span", { textContent: "Find" }), search);
  const score = make("p", { className: "score" });
  const count = make("p", { className: "hint" });
  count.setAttribute("role", "status");
  const cards = make("div");
  const more = make("button", { type: "button", className: "plain", textContent: "Show more" });
  let queries = [], drawn = 0;

  function wanted(query) {
    const at = galleries[space.value];
    const [one, other] = [a, b].map((run) => firstRight(at, way.value, query, run.value));
    const words = query.own.map((id) => at.captions[id][0]).join(" ").toLowerCase();
    const fits = {
      all: true, a: one < other, b: other < one, neither: one === TEN && other === TEN,
      both: one === 0 && other === 0, drawn: query.drawn,
    };
    return fits[show.value] && words.includes(search.value.trim().toLowerCase());
  }

  function grow() {
    const runs = a.value === b.value ? [["A", a.value]] : [["A", a.value], ["B", b.value]];
    const next = queries.slice(drawn, drawn + PAGE);
    const made = next.map((query) => card(space.value, way.value, query, runs));
    cards.append(...made);
    drawn += next.length;
    more.parentElement.hidden = drawn >= queries.length;
    return made[0];
  }

  function refresh() {
    const at = galleries[space.value], all = at.totals[way.value], wins = at.wins[way.value];
    const [one, other] = [wins[a.value][b.value], wins[b.value][a.value]];
    const bold = (number) => make("b", { textContent: number.toLocaleString("en") });
    const piece = (text, number) => make("span", {}, `${text} `, bold(number));
    score.replaceChildren(
      make("span", {}, "Over all ", bold(all), ` ${WAYS[way.value]} of the split:`),
      piece("A is right earlier in", one), piece("B in", other), piece("no difference in", all - one - other),
    );
    score.hidden = a.value === b.value;
    queries = at.queries[way.value].filter(wanted);
    count.textContent = `${queries.length} of ${at.queries[way.value].length} queries in this page`;
    drawn = 0;
    cards.replaceChildren();
    grow();
  }

  function restock() {
    const at = galleries[space.value];
    const names = at.runs.map((run, number) => make("option", { value: number, textContent: run.name }));
    a.replaceChildren(...names);
    b.replaceChildren(...names.map((option) => option.cloneNode(true)));
    [a.value, b.value] = rivals(at);
    refresh();
  }

  const intro = make("p", {
    className: "hint",
    textContent: "Two of three queries are those about which the runs disagree most, the third is drawn at random, "
      + "so their shares say nothing about the recall: the counts over the whole split do. "
      + "A beats B where its first right hit stands earlier among the ten.",
  });
  place.append(
    intro,
    make("div", { className: "tools" }, spaceLabel, wayLabel, showLabel, searchLabel),
    make("div", { className: "pair" }, aLabel, bLabel), score, count, cards, make("p", { className: "more" }, more),
  );
  [way, a, b, show].forEach((each) => each.addEventListener("change", refresh));
  search.addEventListener("input", refresh);
  space.addEventListener("change", restock);
  more.addEventListener("click", () => {
    const first = grow();
    first.tabIndex = -1;
    first.focus({ preventScroll: true }); // the keyboard goes on where the new ones begin
  });
  restock();
}

every("#showcase").forEach(showcase);
