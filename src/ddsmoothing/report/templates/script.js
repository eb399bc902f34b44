"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const make = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    if (text !== null) element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };

  // ---- tiles: the figures of the run and at the radius that are chosen --------------------------------------------
  const { tiles } = data;
  const choice = document.getElementById("choose");
  const fill = (name, text) => {
    for (const place of document.querySelectorAll(`[data-tile="${name}"]`)) place.textContent = text;
  };
  const tell = (name, [value, interval]) => {
    fill(name, value);
    fill(`${name}-interval`, interval);
  };
  for (const [name, texts] of [["run", data.names.run], ["radius", tiles.radii]]) {
    choice.elements[name].append(...texts.map((text, value) => make("option", text, { value })));
    choice.elements[name].value = tiles[name];
  }
  choice.addEventListener("input", () => {
    const [run, radius] = [Number(choice.elements.run.value), Number(choice.elements.radius.value)];
    const chosen = tiles.runs[run];
    fill("what", chosen.what);
    fill("mean", chosen.mean);
    fill("radius", tiles.radii[radius]);
    tell("zero", chosen.accuracy[0]);
    tell("chosen", chosen.accuracy[radius]);
    tell("acr", chosen.acr);
    tell("abstained", chosen.abstained);
    document.getElementById("trust").textContent = chosen.trust;
    document.getElementById("which").textContent = data.names.run[run];
  });
  choice.addEventListener("submit", (event) => event.preventDefault());
  choice.elements.run.parentElement.hidden = tiles.runs.length === 1;
  choice.hidden = false;
  document.getElementById("which").classList.add("printed");

  // ---- curves: a cursor that reads every curve at a drawn point -------------------------------------------------
  for (const curves of data.curves) {
    const plot = document.getElementById(curves.id);
    const [left, top, right, bottom] = curves.box;
    const cursor = make("div", null, { class: "cursor" });
    const readout = make("output", null, { class: "readout" });
    cursor.style.top = `${100 * top}%`;
    cursor.style.height = `${100 * (bottom - top)}%`;
    plot.tabIndex = 0;
    plot.setAttribute("role", "group");
    plot.setAttribute("aria-label", "Curves; the left and right arrow keys read them");
    plot.append(cursor);
    plot.after(readout);
    let at = 0;
    const show = (index) => {
      at = Math.min(Math.max(index, 0), curves.x.length - 1);
      cursor.style.left = `${100 * (left + ((right - left) * at) / (curves.x.length - 1))}%`;
      const cells = [make("span", `${curves.axis} ${curves.x[at]}`)];
      for (const line of curves.lines) {
        const cell = make("span", line.label);
        cell.append(make("b", `${line.y[at].toFixed(1)} %`));
        cells.push(cell);
      }
      readout.replaceChildren(...cells);
    };
    const point = (event) => {
      const frame = plot.getBoundingClientRect();
      const share = ((event.clientX - frame.left) / frame.width - left) / (right - left);
      show(Math.round(share * (curves.x.length - 1)));
    };
    plot.addEventListener("pointermove", point);
    plot.addEventListener("pointerdown", point);
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      show(at + step * (event.shiftKey ? 20 : 4));
    });
    show(0);
  }

  // ---- the table of inputs ----------------------------------------------------------------------------------------
  const PER_PAGE = 25;
  const { rows, names } = data;
  const total = rows.id.length;
  const region = document.getElementById("rows");
  const body = region.querySelector("tbody");
  const heads = [...region.querySelectorAll("th")];
  const columns = heads.map((head) => head.dataset.column);
  const form = document.getElementById("filters");
  const pager = document.getElementById("pager");
  const status = document.getElementById("status");
  const [previous, next] = pager.querySelectorAll("button");
  let shown = Uint32Array.from({ length: total }, (_, i) => i);
  let order = shown;
  let page = 0;

  const titles = Object.fromEntries(heads.map((head) => [head.dataset.column, head.textContent.trim()]));
  const named = (value) => (data.classes[value] === undefined ? String(value) : `${value} ${data.classes[value]}`);
  const text = (column, i) => {
    const value = rows[column][i];
    if (value === null) return "";
    if (names[column]) return names[column][value];
    if (column === "label" || column === "prediction") return named(value);
    if (column === "sigma" || column === "radius") return value.toFixed(data.digits);
    return String(value);
  };
  const cell = (column, i) => {
    const kind = { "data-column": column, "data-label": titles[column], role: "cell" };
    if (column !== "clean" && column !== "noisy") return make("td", text(column, i), kind);
    const box = make("td", null, kind);
    const picture = rows[column][i];
    if (picture !== null) {
      const what = column === "clean" ? `Input ${rows.id[i]}` : `Input ${rows.id[i]}, noise at sigma ${text("sigma", i)}, radius ${text("radius", i)}`;
      box.append(make("img", null, { src: `data:image/png;base64,${data.pictures[picture]}`, alt: what, title: what }));
    }
    return box;
  };
  const show = () => {
    const pages = Math.max(1, Math.ceil(shown.length / PER_PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const part = Array.from(shown.subarray(page * PER_PAGE, (page + 1) * PER_PAGE));
    body.replaceChildren(
      ...part.map((i) => {
        const row = make("tr", null, { role: "row" });
        row.append(...columns.map((column) => cell(column, i)));
        return row;
      }),
    );
    const count = (n) => n.toLocaleString("en");
    const start = page * PER_PAGE;
    status.textContent = part.length
      ? `Rows ${count(start + 1)} to ${count(start + part.length)} of ${count(shown.length)}`
      : "No row matches.";
    if (part.length && shown.length < total) status.textContent += `, chosen from ${count(total)}`;
    previous.disabled = page === 0;
    next.disabled = page === pages - 1;
  };

  const sort = (head) => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const sign = down ? -1 : 1;
    const keys = Float64Array.from(rows[head.dataset.column], (value) => (value === null ? Infinity : sign * Number(value)));
    order = Uint32Array.from({ length: total }, (_, i) => i).sort((a, b) => (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : a - b));
    choose();
  };

  const choose = () => {
    const wanted = Object.fromEntries(new FormData(form));
    const radius = wanted.radius === "" ? -Infinity : Number(wanted.radius);
    const reason = wanted.reason.toLowerCase();
    const reasons = names.reason.map((name) => name.toLowerCase().includes(reason));
    const id = wanted.id.trim();
    const same = ["run", "outcome", "label", "prediction"].filter((column) => wanted[column] !== "");
    shown = order.filter(
      (i) =>
        rows.radius[i] >= radius &&
        reasons[rows.reason[i]] &&
        (id === "" || String(rows.id[i]) === id) &&
        same.every((column) => String(rows[column][i]) === wanted[column]),
    );
    page = 0;
    show();
  };

  for (const column of ["run", "outcome", "label", "prediction"]) {
    const select = form.elements[column];
    select.append(make("option", "any", { value: "" }));
    const values = [...new Set(rows[column])].filter((value) => value !== null).sort((a, b) => a - b);
    for (const value of values) select.append(make("option", names[column] ? names[column][value] : named(value), { value }));
  }
  for (const head of heads) {
    const button = head.querySelector("button");
    if (button) button.addEventListener("click", () => sort(head));
  }
  form.addEventListener("input", choose);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(choose));
  pager.addEventListener("click", (event) => {
    if (!event.target.dataset.step) return;
    page += Number(event.target.dataset.step);
    show();
  });
  for (const part of [form, region, pager]) part.hidden = false;
  sort(heads[columns.indexOf("id")]);
})();
