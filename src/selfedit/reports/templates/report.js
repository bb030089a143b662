"use strict";
// Searches, filters, sorts and opens the list of documents.  Its words and figures stand in the page.
(() => {
  const list = document.getElementById("list");
  if (!list) return;
  const $ = (id) => document.getElementById(id);
  const rows = [...list.children];
  const figure = (row, name) => Number(row.dataset[name].split(" ")[$("column").value]);
  const by = (name, sign) => (x, y) => sign * (figure(x, name) - figure(y, name));
  const title = (row) => row.querySelector(".name").textContent;
  const ORDERS = {
    order: () => 0,
    title: (x, y) => title(x).localeCompare(title(y), "en"),
    high: by("score", -1),
    low: by("score", 1),
    learned: by("learned", -1),
    lost: by("lost", -1),
  };
  const SEARCHED = ".name, .source, .ask, .said, .text";
  const texts = new Map();
  function has(row, word) {
    if (!texts.has(row)) texts.set(row, [...row.querySelectorAll(SEARCHED)].map((node) => node.textContent).join("\n").toLowerCase());
    return texts.get(row).includes(word);
  }
  function kept(row, filter) {
    if (filter === "all") return true;
    return filter in row.dataset ? figure(row, filter) > 0 : row.dataset.flags.split(" ").includes(filter);
  }
  function show() {
    const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !(kept(row, $("filter").value) && words.every((word) => has(row, word)));
    const shown = rows.filter((row) => !row.hidden).length;
    $("found").textContent = (shown < rows.length ? shown + " of " : "") + rows.length + (rows.length === 1 ? " document" : " documents");
  }
  function sort() {
    list.replaceChildren(...[...rows].sort(ORDERS[$("sort").value]));
  }
  function judge() {
    for (const told of list.querySelectorAll(".delta")) told.hidden = told.dataset.column !== $("column").value;
    show();
    sort();
  }
  function openAll(open) {
    for (const row of rows) if (!row.hidden) row.open = open;
    $("toggle-all").textContent = open ? "Close all" : "Open all";
  }
  $("search").addEventListener("input", show);
  $("filter").addEventListener("change", show);
  $("sort").addEventListener("change", sort);
  $("column").addEventListener("change", judge);
  $("toggle-all").addEventListener("click", () => openAll($("toggle-all").textContent === "Open all"));
  document.querySelector(".tools").hidden = false;
  // A browser that comes back to the page keeps what was chosen, and so does the list.
  judge();
  // report.html#all opens everything, for printing and for searching with the browser.
  if (location.hash === "#all") {
    openAll(true);
    for (const box of document.querySelectorAll("details")) box.open = true;
  }
})();
