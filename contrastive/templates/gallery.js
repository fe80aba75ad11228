// Sorts, filters and pages the queries. Every word of the data goes into the page as text, never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PER_PAGE = 50;
  const [ROW, ITEM, FIRST, RECIPROCAL, PRECISION, NEAR] = [0, 1, 2, 3, 4, 5];
  const by = id => document.getElementById(id);
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const isolated = (tag, className, text) => {
    const element = make(tag, className);
    element.append(make("bdi", "", text));
    return element;
  };
  const labelOf = item => (data.label[item] < 0 ? null : data.labels[data.label[item]]);
  const nameOf = item => data.name[item] ?? "row " + data.row[item];
  const digits = score => (Math.abs(score) < 10 ? score.toFixed(3) : String(score)).replace("-", "\u2212");

  // A numeric collation puts class 10 behind class 9.
  const collator = new Intl.Collator("en", { numeric: true });
  const keys = {
    row: query => query[ROW],
    label: query => labelOf(query[ITEM]) ?? "",
    first: query => query[FIRST] ?? Infinity,
    reciprocal: query => query[RECIPROCAL],
    precision: query => query[PRECISION],
  };
  const compare = (a, b) => (typeof a === "string" ? collator.compare(a, b) : a < b ? -1 : a > b ? 1 : 0);
  const places = new Map(data.queries.map((query, place) => [query, place])); // worst first: decides what is equal

  const state = { key: "reciprocal", up: true, label: "", wrong: false, pair: null, page: 0 };
  let found = [];

  const wrongAtOne = query => query[NEAR].length === 0 || !query[NEAR][0][2];
  const keep = query => {
    const label = data.label[query[ITEM]];
    if (state.label !== "" && label !== Number(state.label)) return false;
    if (state.wrong && !wrongAtOne(query)) return false;
    if (state.pair === null) return true;
    return label === state.pair.true && query[NEAR].length > 0 && data.label[query[NEAR][0][0]] === state.pair.taken;
  };

  const picture = (item, alt) => {
    const uri = data.image[item];
    if (uri) {
      const image = make("img", data.pixelated ? "pixelated" : "");
      image.src = uri;
      image.alt = alt;
      return image;
    }
    const empty = make("span", "empty");
    empty.setAttribute("role", "img");
    empty.setAttribute("aria-label", alt + ", no picture");
    return empty;
  };
  const pictured = data.image.some(uri => uri !== null);
  const named = data.name.some(name => name !== null);

  const tile = ([item, score, right], place) => {
    const element = make("li", "tile");
    const frame = make("div", "frame " + (right ? "right" : "wrong"));
    const label = labelOf(item);
    const what = nameOf(item) + (label === null ? "" : ", " + label);
    if (pictured) frame.append(picture(item, what));
    const mark = make("span", "mark", right ? "✓" : "✗");
    mark.setAttribute("aria-hidden", "true");
    frame.append(mark);
    element.append(frame);
    const head = make("p", "score", digits(score));
    head.prepend(make("span", "hidden", "Neighbour " + (place + 1) + ", " + (right ? "right" : "wrong") + ", score "));
    element.append(head);
    if (label !== null) element.append(isolated("p", "label", label));
    if (label === null || named) element.append(isolated("p", "name", nameOf(item)));
    element.title = what;
    return element;
  };

  const cell = (className, title, content) => {
    const element = make("td", className);
    element.setAttribute("role", "cell");
    const heading = make("span", "inline", title + " ");
    heading.setAttribute("aria-hidden", "true");
    element.append(heading, content);
    return element;
  };

  const labelled = by("query-table").dataset.labelled === "yes";
  const rowOf = query => {
    const row = make("tr");
    row.setAttribute("role", "row");
    const head = make("th", "query");
    head.scope = "row";
    head.setAttribute("role", "rowheader");
    const label = labelOf(query[ITEM]);
    if (pictured) head.append(picture(query[ITEM], "Query " + nameOf(query[ITEM])));
    const text = make("div");
    text.append(isolated("span", "name", nameOf(query[ITEM])));
    if (data.name[query[ITEM]] !== null) text.append(make("span", "where", "row " + query[ROW]));
    head.append(text);
    row.append(head);
    if (labelled) row.append(cell("of-label", "Class", isolated("span", "", label ?? "")));
    row.append(cell("number", "First relevant", query[FIRST] === null ? "> " + data.depth : String(query[FIRST])));
    row.append(cell("number", "1 / rank", query[RECIPROCAL].toFixed(2)));
    row.append(cell("number", "MAP@R", query[PRECISION].toFixed(2)));
    const near = make("td", "near");
    near.setAttribute("role", "cell");
    const list = make("ol", "strip");
    list.append(...query[NEAR].map(tile));
    near.append(query[NEAR].length ? list : make("p", "score", "nothing found")); // by an approximate index
    row.append(near);
    return row;
  };

  const say = () => {
    const first = state.page * PER_PAGE;
    const last = Math.min(first + PER_PAGE, found.length);
    let text = found.length === 0 ? "No query" : `Queries ${first + 1} to ${last} of ${found.length}`;
    if (state.pair !== null) {
      text += `: of \u2068${state.pair.trueName}\u2069, taken for \u2068${state.pair.takenName}\u2069`;
      if (found.length < state.pair.count) text += `; in the whole evaluation ${state.pair.count}, and the others are not in this page`;
    }
    by("status").textContent = text + ".";
    by("clear").hidden = state.pair === null && state.label === "" && !state.wrong;
    for (const id of ["previous", "previous-below"]) by(id).disabled = state.page === 0;
    for (const id of ["next", "next-below"]) by(id).disabled = last >= found.length;
  };

  const draw = () => {
    const first = state.page * PER_PAGE;
    by("queries-body").replaceChildren(...found.slice(first, first + PER_PAGE).map(rowOf));
    say();
  };

  const refresh = () => {
    const key = keys[state.key];
    const sign = state.up ? 1 : -1;
    found = data.queries.filter(keep);
    found.sort((a, b) => sign * compare(key(a), key(b)) || places.get(a) - places.get(b));
    state.page = 0;
    for (const button of document.querySelectorAll("[data-key]")) {
      const chosen = button.dataset.key === state.key;
      const head = button.closest("th");
      if (chosen) head.setAttribute("aria-sort", state.up ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
      button.querySelector(".arrow").textContent = chosen ? (state.up ? "▲" : "▼") : "";
    }
    for (const button of document.querySelectorAll("[data-true]")) {
      const pair = state.pair;
      const chosen = pair !== null && Number(button.dataset.true) === pair.true && Number(button.dataset.taken) === pair.taken;
      button.setAttribute("aria-pressed", String(chosen));
    }
    draw();
  };

  for (const button of document.querySelectorAll("[data-key]")) {
    button.addEventListener("click", () => {
      const key = button.dataset.key;
      if (state.key === key) state.up = !state.up;
      else {
        state.key = key;
        state.up = key !== "first"; // the worst first, where there is a worst
      }
      refresh();
    });
  }

  const select = by("by-label");
  if (select) {
    const present = [...new Set(data.queries.map(query => data.label[query[ITEM]]))].filter(label => label >= 0);
    present.sort((a, b) => collator.compare(data.labels[a], data.labels[b]));
    for (const label of present) {
      const option = make("option", "", data.labels[label]);
      option.value = String(label);
      select.append(option);
    }
    select.addEventListener("change", () => {
      state.label = select.value;
      state.pair = null;
      refresh();
    });
  }
  by("only-wrong").addEventListener("change", event => {
    state.wrong = event.target.checked;
    refresh();
  });
  by("clear").addEventListener("click", () => {
    Object.assign(state, { label: "", wrong: false, pair: null });
    if (select) select.value = "";
    by("only-wrong").checked = false;
    refresh();
    by("h-queries").focus();
  });

  const turn = (step, focus) => {
    state.page += step;
    draw();
    if (focus) by("h-queries").focus();
  };
  by("previous").addEventListener("click", () => turn(-1, false));
  by("next").addEventListener("click", () => turn(1, false));
  by("previous-below").addEventListener("click", () => turn(-1, true));
  by("next-below").addEventListener("click", () => turn(1, true));

  // Classes: one stop of the tab key, arrows within.
  const cells = [...document.querySelectorAll("[data-true]")];
  for (const button of cells) {
    button.addEventListener("click", () => {
      const wanted = { true: Number(button.dataset.true), taken: Number(button.dataset.taken) };
      const again = state.pair !== null && state.pair.true === wanted.true && state.pair.taken === wanted.taken;
      state.label = "";
      state.wrong = false;
      by("only-wrong").checked = false;
      if (select) select.value = "";
      state.pair = again
        ? null
        : {
            ...wanted,
            count: Number(button.dataset.count),
            trueName: data.labels[wanted.true],
            takenName: data.labels[wanted.taken],
          };
      refresh();
      if (!again) by("h-queries").focus();
    });
  }
  const grid = document.querySelector("table.classes");
  if (grid && cells.length) {
    const reach = button => {
      for (const other of cells) other.tabIndex = other === button ? 0 : -1;
    };
    reach(cells[0]);
    grid.addEventListener("focusin", event => cells.includes(event.target) && reach(event.target));
    grid.addEventListener("keydown", event => {
      const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
      const from = event.target.closest("td");
      if (!from || !(event.key in moves)) return;
      const [down, across] = moves[event.key];
      const rows = [...grid.tBodies[0].rows];
      let row = rows.indexOf(from.parentElement) + down;
      let column = from.cellIndex + across;
      while (rows[row] && column > 0 && rows[row].cells[column]) {
        const button = rows[row].cells[column].querySelector("button");
        if (button) {
          button.focus();
          break;
        }
        row += down;
        column += across;
      }
      event.preventDefault();
    });
  }
  by("tools").hidden = false;
  by("more").hidden = false;
  refresh();
})();
