"""The live page of the application: the airlines, and the planes in the air, as they change."""

from starlette.requests import Request
from starlette.responses import HTMLResponse

from app import app

__all__ = ["PAGE", "board"]

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Flights from New York, 2013</title>
<style>
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
  body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
  table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
  th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #8884; }
  th:first-child, td:first-child { text-align: left; }
  tr.new { background: #2a92; }
</style>
<h1>Flights from New York, 2013</h1>
<p><b id="air">0</b> planes in the air. <a href="tables">All tables</a></p>
<table>
  <thead><tr><th>Airline</th><th>Departed</th><th>Cancelled</th><th>Landed</th>
  <th>Mean delay, minutes</th></tr></thead>
  <tbody id="carriers"></tbody>
</table>
<script>
  const body = document.getElementById("carriers"), rows = new Map(), air = new Set();
  function show(key, value) {
    let row = rows.get(key);
    if (!row) {
      row = document.createElement("tr");
      rows.set(key, row);
      const after = [...rows.keys()].sort().filter(other => other > key)[0];
      body.insertBefore(row, after ? rows.get(after) : null);
    }
    const mean = value.landed ? (value.arrival_delay_sum / value.landed).toFixed(1) : "";
    row.replaceChildren(...[key, value.departed, value.cancelled, value.landed, mean].map(text => {
      const cell = document.createElement("td");
      cell.textContent = text;
      return cell;
    }));
    row.classList.add("new");
    setTimeout(() => row.classList.remove("new"), 300);
  }
  function fly(key, gone) {
    gone ? air.delete(key) : air.add(key);
    document.getElementById("air").textContent = air.size;
  }
  async function follow(name, put) {
    const changes = new EventSource(`tables/${name}/changes`);
    changes.onmessage = message => {
      const change = JSON.parse(message.data);
      put(change.key, change.deleted ? null : change.value);
    };
    for (let after = ""; after !== null;) {
      const query = after ? `&after=${encodeURIComponent(after)}` : "";
      const page = await (await fetch(`tables/${name}?limit=500${query}`,
        { headers: { Accept: "application/json" } })).json();
      for (const row of page.rows) put(row.key, row.value);
      after = page.next;
    }
  }
  follow("carriers", (key, value) => value && show(key, value));
  follow("airborne", (key, value) => fly(key, value === null));
</script>
"""


@app.page("/board")
async def board(request: Request) -> HTMLResponse:
    """Show the totals of each airline, and how many planes are in the air."""
    return HTMLResponse(PAGE)
