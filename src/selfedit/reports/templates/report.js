"use strict";
// Draws the list of documents from the JSON in the page.  Everything is written as text (textContent), never as HTML;
// a document's body is drawn when it is first opened.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const list = document.getElementById("list");
  if (!list) return;
  const { groups, base, documents } = data;
  const $ = (id) => document.getElementById(id);
  const SIGNS = { right: "✓", wrong: "✗", ungraded: "?", "": "…" };
  const WORDS = { right: "right", wrong: "wrong", ungraded: "ungraded", "": "no grade yet" };

  function el(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }
  function add(parent, ...children) {
    for (const child of children) if (child) parent.append(child);
    return parent;
  }
  function svg(tag, attributes) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  }
  const percent = (share) => (100 * share).toFixed(1) + " %";
  const plural = (n, one, many) => n.toLocaleString("en") + " " + (n === 1 ? one : many);

  // Whether more than half of a group's graded answers are right; undefined where none is graded.
  function known(question, group) {
    let right = 0, graded = 0;
    for (const [g, , value, , n] of question.a) {
      if (g !== group || (value !== "right" && value !== "wrong")) continue;
      graded += n;
      if (value === "right") right += n;
    }
    return graded ? 2 * right > graded : undefined;
  }
  function change(question, group) {
    if (base < 0 || group === base) return "";
    const before = known(question, base), after = known(question, group);
    if (before === false && after === true) return "learned";
    if (before === true && after === false) return "lost";
    return "";
  }
  for (const doc of documents) {
    doc.score = groups.map(() => 0);
    doc.graded = groups.map(() => 0);
    doc.learned = groups.map(() => 0);
    doc.lost = groups.map(() => 0);
    for (const question of doc.questions) {
      for (const [g, , value, score, n] of question.a) {
        if (value === "ungraded") doc.ungraded = true;
        if (score !== null) { doc.score[g] += n * score; doc.graded[g] += n; }
      }
      for (let g = 0; g < groups.length; g++) {
        const what = change(question, g);
        if (what) doc[what][g]++;
      }
    }
    doc.score = doc.score.map((score, g) => (doc.graded[g] ? score / doc.graded[g] : null));
    doc.failed = doc.fits.some((fit) => fit[3]);
    doc.cut = doc.edits.some((edit) => edit.cut);
  }

  // Documents are judged by one group at a time: at first by the one that has most right.
  const means = groups.map((_, g) => {
    const graded = documents.reduce((sum, doc) => sum + doc.graded[g], 0);
    return graded ? documents.reduce((sum, doc) => sum + doc.score[g], 0) / graded : -1;
  });
  let group = Math.max(0, means.indexOf(Math.max(...means)));
  groups.forEach((name, g) => {
    const option = el("option", "", name);
    option.value = String(g);
    option.selected = g === group;
    $("group").append(option);
  });
  const examined = groups.filter((_, g) => documents.some((doc) => doc.graded[g]));
  const estimated = documents.some((doc) => doc.questions.some((q) => q.a.some((a) => a[3] > 0 && a[3] < 1)));
  $("legend").textContent = examined.length
    ? "Small bars: " + (estimated ? "estimated accuracy" : "share of right answers") + ", in this order: " + examined.join(", ") + ". Open a document for its edits, training sequences and answers." +
      (estimated ? " A number behind an answer is the score that the grader gives it." : "")
    : "Open a document for its edits and training sequences.";

  // Bars of documents of one split stand under each other; groups that never examined the split take no room.
  const examinedBySplit = new Map(
    [...new Set(documents.map((doc) => doc.split))].map((split) => [
      split,
      groups.map((_, g) => g).filter((g) => documents.some((doc) => doc.split === split && doc.graded[g])),
    ]),
  );

  function spark(doc) {
    const shown = examinedBySplit.get(doc.split);
    const width = Math.max(3, Math.min(12, Math.floor(100 / Math.max(1, shown.length)) - 2));
    const chart = svg("svg", { width: 104, height: 22, role: "img" });
    chart.append(svg("line", { class: "grid", x1: 0, x2: 104, y1: 21.5, y2: 21.5 }));
    const told = [];
    shown.forEach((g, index) => {
      if (doc.score[g] === null) return;
      told.push(groups[g] + " " + percent(doc.score[g]));
      const height = Math.max(1, 20 * doc.score[g]);
      chart.append(svg("rect", { class: g === base ? "fill base" : "fill", x: index * (width + 2), y: 21 - height, width, height }));
    });
    const title = svg("title", {});
    title.textContent = told.join("\n");
    chart.append(title);
    return chart;
  }

  function answerLine(value, text, score, n, note) {
    const line = el("div");
    const sign = el("span", "v " + (value || "open"), SIGNS[value]);
    sign.setAttribute("role", "img");
    sign.setAttribute("aria-label", WORDS[value]);
    sign.title = score === null ? WORDS[value] : WORDS[value] + ", score " + score;
    add(line, sign, text === "" ? el("span", "quiet", "(empty answer)") : el("span", "", text));
    const extra = [n > 1 ? "×" + n : "", note, score !== null && score > 0 && score < 1 ? score.toFixed(2) : ""].filter(Boolean);
    if (extra.length) add(line, el("span", "more", "  " + extra.join(" · ")));
    return line;
  }
  function questionBlock(question) {
    const block = el("div", "q");
    add(block, el("p", "ask", question.q), el("p", "gold", "Gold answer: " + question.gold.join(" / ")));
    const answers = el("dl");
    groups.forEach((name, g) => {
      const given = question.a.filter((answer) => answer[0] === g);
      if (!given.length) return;
      const term = el("dt", "", g === base ? "before (" + name + ")" : name);
      const what = change(question, g);
      if (what) term.append(el("span", "badge " + what, what === "learned" ? "newly learned" : "forgotten"));
      const body = el("dd");
      for (const [, text, value, score, n, note] of given) body.append(answerLine(value, text, score, n, note));
      add(answers, term, body);
    });
    return add(block, answers);
  }
  function sequenceBox(sequences) {
    const box = add(el("details"), el("summary", "", plural(sequences.length, "training sequence", "training sequences")));
    box.addEventListener("toggle", () => {
      if (box.childElementCount > 1) return;
      const items = el("ol", "seqs");
      for (const text of sequences) items.append(el("li", "", text));
      box.append(items);
    });
    return box;
  }
  function fitLines(parent, seqs, fits) {
    const seen = new Set();
    for (const [, , replicate, failed, s, tokens, steps, first, last, seconds] of fits) {
      const parts = ["fit " + (replicate + 1)];
      if (failed) parts.push("failed: " + failed);
      else {
        parts.push(tokens.toLocaleString("en") + " tokens", steps + " steps");
        if (first !== null && last !== null) parts.push("loss " + first.toFixed(2) + " → " + last.toFixed(2));
        parts.push(seconds.toFixed(1) + " s");
      }
      parent.append(el("div", failed ? "caption failed" : "caption", parts.join(" · ")));
      seen.add(s);
    }
    for (const s of seen) if (seqs[s].length) parent.append(sequenceBox(seqs[s]));
  }
  function editBlock(doc, edit, index) {
    const block = el("div", "edit");
    const notes = [groups[edit.g] + ", edit " + (edit.i + 1)];
    if (edit.prompt) notes.push("prompt " + edit.prompt);
    if (edit.tokens) notes.push(edit.tokens.toLocaleString("en") + " tokens");
    if (edit.score !== null) notes.push("scored " + percent(edit.score));
    if (edit.kept) notes.push("kept");
    if (edit.cut) notes.push("cut off, used up to its last whole line");
    if (edit.dropped) notes.push(plural(edit.dropped, "line", "lines") + " dropped");
    add(block, el("p", "caption", notes.join(" · ")), el("div", "text", edit.text));
    fitLines(block, doc.seqs, doc.fits.filter((fit) => fit[1] === index));
    return block;
  }
  function body(doc) {
    const box = el("div", "body");
    add(box, el("div", "source", doc.text));
    if (doc.questions.length) add(box, el("h3", "", "Exam"), ...doc.questions.map(questionBlock));
    if (doc.edits.length) {
      add(box, el("h3", "", "Edits"));
      // Step B: the best and the worst edit of each round side by side, before the whole list.
      for (const g of new Set(doc.edits.map((edit) => edit.g))) {
        const rewarded = doc.edits.filter((edit) => edit.g === g && edit.kept !== null && edit.score !== null);
        if (rewarded.length < 2) continue;
        const sorted = [...rewarded].sort((x, y) => y.score - x.score || x.i - y.i);
        const [best, worst] = [sorted[0], sorted[sorted.length - 1]];
        if (best.score === worst.score) continue;
        const pair = el("div", "pair example");
        for (const [name, edit] of [["Best", best], ["Worst", worst]]) {
          add(pair, add(el("div"), el("p", "caption", name + " of " + groups[g] + " · scored " + percent(edit.score)), el("div", "text", edit.text)));
        }
        box.append(pair);
      }
      add(box, ...doc.edits.map((edit, index) => editBlock(doc, edit, index)));
    }
    const bare = doc.fits.filter((fit) => fit[1] < 0);
    if (bare.length) {
      add(box, el("h3", "", "Fits without an edit"));
      for (const g of new Set(bare.map((fit) => fit[0]))) {
        const block = add(el("div", "edit"), el("p", "caption", groups[g]));
        fitLines(block, doc.seqs, bare.filter((fit) => fit[0] === g));
        box.append(block);
      }
    }
    return box;
  }

  const rows = documents.map((doc, order) => {
    const row = el("details", "doc");
    const name = el("span", "name", doc.title);
    if (doc.split !== "exam") name.append(el("span", "quiet", " " + doc.split));
    const delta = el("span", "delta");
    row.append(add(el("summary"), name, delta, spark(doc)));
    row.addEventListener("toggle", () => { if (row.open) draw(); });
    function draw() { if (row.childElementCount === 1) row.append(body(doc)); }
    let haystack = null;
    return {
      doc, order, row, draw,
      judge() {
        const told = [];
        if (doc.learned[group]) told.push("+" + doc.learned[group] + " learned");
        if (doc.lost[group]) told.push("−" + doc.lost[group] + " forgotten");
        delta.textContent = told.join(", ");
      },
      has(words) {
        haystack ??= [doc.title, doc.text, ...doc.questions.flatMap((q) => [q.q, ...q.gold, ...q.a.map((a) => a[1])]), ...doc.edits.map((e) => e.text)].join("\n").toLowerCase();
        return words.every((word) => haystack.includes(word));
      },
    };
  });

  const score = (entry) => entry.doc.score[group] ?? -1;
  const ORDERS = {
    order: () => 0,
    title: (x, y) => x.doc.title.localeCompare(y.doc.title, "en"),
    high: (x, y) => score(y) - score(x),
    low: (x, y) => score(x) - score(y),
    learned: (x, y) => y.doc.learned[group] - x.doc.learned[group],
    lost: (x, y) => y.doc.lost[group] - x.doc.lost[group],
  };
  const FILTERS = {
    all: () => true,
    learned: (doc) => doc.learned[group] > 0,
    lost: (doc) => doc.lost[group] > 0,
    failed: (doc) => doc.failed,
    cut: (doc) => doc.cut,
    ungraded: (doc) => Boolean(doc.ungraded),
  };
  function refresh() {
    const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const keep = FILTERS[$("filter").value], order = ORDERS[$("sort").value];
    let shown = 0;
    for (const entry of rows) {
      entry.row.hidden = !(keep(entry.doc) && (!words.length || entry.has(words)));
      if (!entry.row.hidden) shown++;
      entry.judge();
    }
    list.replaceChildren(...[...rows].sort((x, y) => order(x, y) || x.order - y.order).map((entry) => entry.row));
    $("found").textContent = shown === rows.length ? plural(shown, "document", "documents") : shown + " of " + plural(rows.length, "document", "documents");
  }
  function openAll(open) {
    for (const entry of rows) {
      if (entry.row.hidden) continue;
      if (open) entry.draw();
      entry.row.open = open;
    }
    $("toggle-all").textContent = open ? "Close all" : "Open all";
  }
  $("search").addEventListener("input", refresh);
  for (const id of ["sort", "filter"]) $(id).addEventListener("change", refresh);
  $("group").addEventListener("change", () => { group = Number($("group").value); refresh(); });
  $("toggle-all").addEventListener("click", () => openAll($("toggle-all").textContent === "Open all"));
  refresh();

  if (data.shared.fits.length) {
    const box = add(el("div", "edit"), el("h3", "", "One adapter for all documents"));
    for (const g of new Set(data.shared.fits.map((fit) => fit[0]))) {
      add(box, el("p", "caption", groups[g]));
      fitLines(box, data.shared.seqs, data.shared.fits.filter((fit) => fit[0] === g));
    }
    list.after(box);
  }
  // report.html#all opens every document, for printing and for searching with the browser.
  if (location.hash === "#all") {
    openAll(true);
    document.querySelectorAll("#documents details, details.plain").forEach((box) => { box.open = true; });
  }
})();
