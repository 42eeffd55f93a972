"use strict";
// Keeps a page current: tables by server-sent events, everything else by asking again.
// The page is whole without it.

const base = document.body.dataset.base;
const POLL_MS = 2000;
const REFILL_MS = 400;

const json = async (path) => {
  const answer = await fetch(base + path, { headers: { Accept: "application/json" } });
  if (!answer.ok) throw new Error(answer.status);
  return answer.json();
};
const number = (value) => (value == null ? "–" : value.toLocaleString("en-US"));
const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));
const milliseconds = (value) => (value == null ? "–" : `${value.toFixed(1)} ms`);

function put(cell, shown) {
  if (!cell || cell.textContent === shown) return false;
  cell.textContent = shown;
  return true;
}

function flash(cell) {
  cell.classList.remove("changed");
  void cell.offsetWidth; // start the animation anew
  cell.classList.add("changed");
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// numbers of the app -----------------------------------------------------------------------------

const samples = new Map();

// What a counter grew by in a second, over the last few times that it was read.
function rate(name, count) {
  const seen = samples.get(name) ?? { points: [], rates: [] };
  samples.set(name, seen);
  const now = performance.now();
  seen.points.push([now, count]);
  if (seen.points.length > 3) seen.points.shift();
  const [then, before] = seen.points[0];
  if (now === then) return null;
  const found = Math.max(0, ((count - before) * 1000) / (now - then));
  seen.rates.push(found);
  if (seen.rates.length > 40) seen.rates.shift();
  return found;
}

const shownRate = (value) => (value == null ? "–" : number(value < 10 ? Math.round(value * 10) / 10 : Math.round(value)));

function spark(svg, name) {
  const rates = samples.get(name)?.rates ?? [];
  const top = Math.max(...rates, 1);
  const points = rates.map((r, i) => `${60 - (rates.length - 1 - i) * 1.5},${15 - (r / top) * 14}`);
  let line = svg.firstChild;
  if (!line) {
    line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    svg.append(line);
  }
  line.setAttribute("points", points.join(" "));
}

const rowsOf = (grid) => new Map([...grid.tBodies[0].rows].map((row) => [row.dataset.id, row]));
const field = (row, name) => row.querySelector(`[data-field="${name}"]`);
const tile = (name) => document.querySelector(`[data-tile="${name}"]`);

const refresh = {
  async agents(grid) {
    const rows = rowsOf(grid);
    let total = null, lag = 0;
    for (const agent of (await json("agents")).rows) {
      const speed = rate(`agent ${agent.name}`, agent.processed);
      lag += agent.lag;
      if (!agent.internal && speed != null) total = (total ?? 0) + speed;
      const row = rows.get(agent.name);
      if (!row) continue;
      put(field(row, "rate"), shownRate(speed));
      put(field(row, "lag"), number(agent.lag));
      field(row, "lag").classList.toggle("behind", agent.lag > 0);
      spark(row.querySelector(".spark"), `agent ${agent.name}`);
    }
    put(tile("rate")?.firstChild, shownRate(total));
    put(tile("lag")?.firstChild, number(lag));
  },
  async topics(grid) {
    const rows = rowsOf(grid);
    for (const topic of (await json("topics")).rows) {
      const end = Object.values(topic.end).reduce((sum, offset) => sum + offset, 0);
      const speed = rate(`topic ${topic.name}`, end);
      const row = rows.get(topic.name);
      if (!row) continue;
      put(field(row, "records"), number(topic.records));
      put(field(row, "rate"), shownRate(speed));
    }
  },
  async workers(grid) {
    const found = (await json("workers")).rows;
    const rows = rowsOf(grid);
    const known = (worker) => rows.get(worker.member || worker.url);
    if (found.length !== rows.size || !found.every(known)) return location.reload();
    let ready = 0, count = 0;
    for (const worker of found) {
      const row = known(worker);
      put(field(row, "commits"), number(worker.commits));
      put(field(row, "p50"), milliseconds(worker.commit_ms?.p50));
      put(field(row, "p99"), milliseconds(worker.commit_ms?.p99));
      put(field(row, "trouble"), worker.error ?? worker.why ?? "");
      field(row, "shards").replaceChildren(...worker.shards.map((shard) => element("i", {
        className: shard.ready ? "ready" : "waiting",
        title: `shard ${shard.number} of ${shard.count}`,
      })));
      count += worker.shards.length;
      ready += worker.shards.filter((shard) => shard.ready).length;
      if (worker.here && tile("commit")) {
        put(tile("commit").firstChild, milliseconds(worker.commit_ms?.p50));
        put(tile("commit").lastChild, `a commit, p99 ${milliseconds(worker.commit_ms?.p99)}`);
      }
    }
    put(tile("shards")?.firstChild, `${ready}/${count}`);
    put(tile("shards")?.lastChild, `shards ready, ${found.length} worker${found.length === 1 ? "" : "s"}`);
  },
};

async function poll(grid) {
  const look = refresh[grid.dataset.live];
  for (;;) {
    if (!document.hidden) await look(grid).catch(() => {}); // it restarts, or goes on
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

// tables ------------------------------------------------------------------------------------------

// In the zone in which the windows are cut: sv-SE writes 2013-01-01 10:00:00.
function moment(ms, zone) {
  const whole = new Date(ms).toLocaleString("sv-SE", { timeZone: zone });
  if (ms % 1000) return `${whole}.${String(((ms % 1000) + 1000) % 1000).padStart(3, "0")}`;
  return whole.endsWith(":00") ? whole.slice(0, 16) : whole;
}

function windowed({ start, end }, zone) {
  const [from, to] = [moment(start, zone), moment(end, zone)];
  const time = element("time", { dateTime: new Date(start).toISOString() }, from);
  return [time, ` – ${from.slice(0, 10) === to.slice(0, 10) ? to.slice(11) : to}`];
}

class Grid {
  constructor(grid) {
    this.grid = grid;
    this.columns = JSON.parse(grid.dataset.columns);
    this.table = encodeURIComponent(grid.dataset.table);
    this.key = grid.dataset.key;
    this.query = grid.dataset.query;
    this.zone = grid.dataset.zone;
    this.refilling = null;
  }

  id(row) {
    return text(row.key) + (row.window ? `@${row.window.start}-${row.window.end}` : "");
  }

  values(value) {
    if (!this.columns.length) return [value];
    return this.columns.map((name) => value?.[name] ?? null);
  }

  cells(row) {
    return row.querySelectorAll("td.value code");
  }

  update(row, entry) {
    this.values(entry.value).forEach((value, i) => {
      const cell = this.cells(row)[i];
      if (put(cell, text(value))) flash(cell.parentElement);
    });
  }

  make(entry) {
    const row = element("tr");
    row.dataset.id = this.id(entry);
    if (this.key === undefined) {
      const link = element("a", { href: `${base}tables/${this.table}/keys/${encodeURIComponent(text(entry.key))}` }, text(entry.key));
      row.append(element("th", { scope: "row" }, link));
    }
    if (entry.window) row.append(element("td", {}, ...windowed(entry.window, this.zone)));
    for (const value of this.values(entry.value)) {
      const className = typeof value === "number" ? "value number" : "value";
      row.append(element("td", { className }, element("code", {}, text(value))));
    }
    return row;
  }

  take(change) {
    const row = rowsOf(this.grid).get(this.id(change));
    if (row && !change.deleted) this.update(row, change);
    else if (row || !change.deleted) this.refill();
  }

  // Read the page again, once for all the changes of a moment.
  refill() {
    this.refilling ??= setTimeout(async () => {
      try {
        const path = this.key === undefined ? "" : `/keys/${encodeURIComponent(this.key)}`;
        const page = await json(`tables/${this.table}${path}?${this.query}`);
        this.fill(page.rows);
      } catch (problem) {
        if (problem.message === "404") this.fill([]);
      }
      this.refilling = null;
    }, REFILL_MS);
  }

  fill(entries) {
    const columns = entries.length ? Object.keys(entries[0].value ?? {}).join() : "";
    const whole = !this.grid.tBodies[0].rows.length && columns && typeof entries[0].value === "object";
    if (whole && columns !== this.columns.join()) return location.reload(); // now there is something to show
    const before = rowsOf(this.grid);
    const rows = entries.map((entry) => {
      const row = before.get(this.id(entry));
      if (!row) return this.make(entry);
      this.update(row, entry);
      return row;
    });
    const body = this.grid.tBodies[0];
    const focused = document.activeElement;
    body.replaceChildren(...rows);
    if (body.contains(focused)) focused.focus();
    if (before.size) rows.filter((row) => !before.has(row.dataset.id)).forEach(flash);
    this.grid.nextElementSibling.hidden = rows.length > 0;
  }
}

class Value {
  constructor(shown) {
    this.shown = shown;
    this.path = `tables/${encodeURIComponent(shown.dataset.table)}/keys/${encodeURIComponent(shown.dataset.key)}?${shown.dataset.query}`;
  }

  take() {
    this.refill();
  }

  async refill() {
    const answer = await json(this.path).catch(() => null);
    const value = answer ? JSON.stringify(answer.value, null, 2) : "deleted";
    if (put(this.shown, value)) flash(this.shown);
    const position = Object.entries(answer?.position ?? {}).map(([tp, at]) => `${tp}@${at}`);
    put(document.querySelector('[data-field="position"]'), position.join(", "));
  }
}

function follow(view, { table, key }) {
  const pulse = document.querySelector("[data-pulse]");
  const tell = (state, words) => {
    pulse.className = `pulse ${state}`;
    put(pulse, words);
  };
  const which = key === undefined ? "" : `?key=${encodeURIComponent(key)}`;
  const source = new EventSource(`${base}tables/${encodeURIComponent(table)}/changes${which}`);
  source.addEventListener("message", (event) => view.take(JSON.parse(event.data)));
  source.addEventListener("missed", () => view.refill());
  source.addEventListener("ready", () => {
    tell("live", "live");
    view.refill(); // what was committed since the page was drawn
  });
  source.addEventListener("error", () => tell("lost", "connection lost, trying again"));
}

for (const shown of document.querySelectorAll("[data-live]")) {
  const kind = shown.dataset.live;
  if (kind === "table") follow(new Grid(shown), shown.dataset);
  else if (kind === "value") follow(new Value(shown), shown.dataset);
  else poll(shown);
}

// "/" goes to the search field
document.addEventListener("keydown", (event) => {
  const field = document.querySelector("form[role=search] input");
  if (event.key !== "/" || !field || /^(input|textarea)$/i.test(event.target.tagName)) return;
  event.preventDefault();
  field.focus();
});
