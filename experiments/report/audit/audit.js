"use strict";
// The list of audit.html: filters, sorting, pages of rows. Texts enter as textContent only.
const data = JSON.parse(document.getElementById("rows").textContent);
const rows = data.rows.map((row) => Object.fromEntries(row.map((v, i) => [data.fields[i], v])));
const find = (id) => document.getElementById(id);
const filters = ["split", "task", "kept", "names_target"];
const STEP = 100;
let shown = STEP, order = { name: "", down: false };

function make(tag, parent, text, kind) {
  const made = parent.appendChild(document.createElement(tag));
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

const word = (value) => (value === true ? "yes" : value === false ? "no" : String(value));

function chosen() {
  const words = find("text").value.toLowerCase().split(/\s+/).filter(Boolean);
  return rows.filter((row) =>
    filters.every((name) => !find(name).value || word(row[name]) === find(name).value) &&
    words.every((w) => row.search.includes(w)));
}

function sorted(list) {
  if (!order.name) return list;
  const sign = order.down ? -1 : 1;
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
  return [...list].sort((left, right) => {
    const a = left[order.name], b = right[order.name];
    if (a === null || b === null) return (a === null) - (b === null); // blanks last, both ways
    return sign * compare(a, b);
  });
}

function fill(cell, column, row) {
  const value = row[column.name];
  cell.className = column.kind;
  if (value === null) return;
  if (column.kind === "picture") {
    const [label, url] = data.shown[row[column.name + "_shown"]];
    if (url) Object.assign(make("img", cell), { src: url, alt: "", loading: "lazy" });
    const right = column.name === "target" || row[column.name + "_right"];
    make("span", cell, label, right ? "yes" : "no");
  } else if (column.name === "answer") {
    make("i", cell, row.thought);
    make("div", cell).append(make("b", cell, value));
  } else if (column.kind === "flag") make("span", cell, word(value), value ? "yes" : "no");
  else cell.textContent = column.digits ? value.toFixed(column.digits) : String(value);
}

function draw() {
  const list = sorted(chosen()), table = find("table");
  const columns = data.columns.filter((column) => list.some((row) => row[column.name] !== null));
  table.replaceChildren();
  const head = make("tr", make("thead", table)), body = make("tbody", table);
  for (const column of columns) {
    const cell = make("th", head), down = order.down ? "descending" : "ascending";
    const mark = order.name === column.name ? (order.down ? " ▼" : " ▲") : "";
    cell.setAttribute("aria-sort", mark ? down : "none");
    const button = make("button", cell, column.title + mark);
    button.title = column.help;
    button.onclick = () => {
      const first = column.kind === "number"; // numbers begin with the largest
      order = { name: column.name, down: mark ? !order.down : first };
      draw();
    };
  }
  for (const row of list.slice(0, shown)) {
    const line = make("tr", body);
    for (const column of columns) fill(make("td", line), column, row);
  }
  find("count").textContent = `${Math.min(shown, list.length)} of ${list.length} rows shown, ${rows.length} in all`;
  find("more").hidden = list.length <= shown;
}

for (const row of rows) row.search = data.text.map((name) => row[name]).join(" ").toLowerCase();
for (const name of filters) {
  const values = new Set(rows.map((row) => row[name]).filter((value) => value !== null).map(word));
  for (const value of [...values].sort()) make("option", find(name), value).value = value;
}
for (const name of ["text", ...filters]) find(name).oninput = () => { shown = STEP; draw(); };
find("more").onclick = () => { shown += 5 * STEP; draw(); };
find("split").value = rows.some((row) => row.split === "train") ? "train" : "";
draw();
