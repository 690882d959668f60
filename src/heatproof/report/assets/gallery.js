/* The cases: filtered, ordered and drawn page by page from the plain data in cases.js. All texts go in as text. */
"use strict";

(function () {
  const PAGE = 12;
  const SVG = "http://www.w3.org/2000/svg";
  const OUTCOMES = { yes: ["right", "✓ correct"], no: ["wrong", "✗ incorrect"], unknown: ["open", "? truth unknown"] };
  const TRUTHS = { yes: "which applies", no: "which does not apply", unknown: "of unknown truth" };
  const data = window.heatproofCases;
  const section = document.getElementById("cases");
  const form = section.querySelector(".filters");
  const fields = form.elements;
  const pagers = Array.from(section.querySelectorAll(".paging"));
  let first = 0;

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    Object.entries(attributes).forEach(([name, value]) => { if (value !== null) element.setAttribute(name, value); });
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  function drawn(tag, attributes) {
    const element = document.createElementNS(SVG, tag);
    Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
    return element;
  }

  /* possible line breaks after underscores */
  function broken(name) {
    return name.split("_").flatMap((part, i) => (i ? ["_", document.createElement("wbr"), part] : [part]));
  }

  function numbered(value) {
    if (value === "") return "–";
    if (value === null) return "undef.";
    if (typeof value !== "number") return value;
    return (value === 0 ? "0" : Math.abs(value) >= 1000 ? value.toFixed(0) : value.toPrecision(3)).replace(/-/g, "−");
  }

  /* ---- which cases, in which order ---- */

  function explainers() {
    const chosen = fields.method.value;
    return data.methods.map((method, m) => m).filter((m) => (chosen ? data.methods[m].name === chosen : !data.methods[m].control));
  }

  function scoreOf(card) {
    const metric = fields.metric.selectedIndex - 1;
    if (metric < 0) return null;
    const values = explainers().map((m) => card.tiles[m].scores[metric]).filter((value) => typeof value === "number");
    return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
  }

  function chosen() {
    const equal = (name, value) => fields[name].value === "" || fields[name].value === value;
    const among = (name, values) => fields[name].value === "" || values.includes(fields[name].value);
    const low = fields.from.value === "" ? -Infinity : Number(fields.from.value);
    const high = fields.to.value === "" ? Infinity : Number(fields.to.value);
    const scored = fields.metric.value !== "";
    const bounded = scored && (low !== -Infinity || high !== Infinity);
    const found = data.cards.filter((card) =>
      equal("model", card.model) && equal("correct", card.correct) && equal("target", card.target) &&
      among("label", card.labels) && among("predicted", card.predicted))
      .map((card) => [card, scoreOf(card)])
      .filter(([, score]) => !bounded || (score !== null && score >= low && score <= high));
    if (scored && fields.order.value) {
      const higher = data.metrics[fields.metric.selectedIndex - 1].higher;
      const sign = (fields.order.value === "best") === higher ? -1 : 1;
      found.sort(([, a], [, b]) => (a === null || b === null ? (a === null) - (b === null) : sign * (a - b)));
    }
    return found.map(([card]) => card);
  }

  /* ---- one case ---- */

  function cardOf(card, number) {
    const shown = data.methods.map((method, m) => m).filter((m) => !fields.method.value || data.methods[m].name === fields.method.value);
    const [kind, words] = OUTCOMES[card.correct];
    return make("article", { class: "card" },
      make("h3", {}, card.sample, " ", make("span", { class: "model" }, card.model)),
      make("p", { class: "verdict" }, make("span", { class: "outcome " + kind }, words), ...said(card)),
      card.outline ? hiddenOutline(card.outline, number) : null,
      make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Maps and scores of " + card.sample },
        make("table", { class: "case" },
          make("thead", {},
            make("tr", {}, make("th", { scope: "col" }, "Image"), ...shown.map((m) => methodHead(data.methods[m]))),
            make("tr", { class: "pictures" }, make("td", {}, ...picture(card, null, number)),
              ...shown.map((m) => make("td", {}, ...picture(card, m, number))))),
          make("tbody", {}, ...data.metrics.map((metric, i) => scoreRow(card, metric, i, shown))))));
  }

  function methodHead(method) {
    return make("th", { scope: "col", class: method.control ? "control" : null }, ...broken(method.name));
  }

  function scoreRow(card, metric, i, shown) {
    return make("tr", { class: metric.name === fields.metric.value ? "chosen" : null },
      make("th", { scope: "row" }, ...broken(metric.name), " ", make("span", { class: "direction", "aria-hidden": "true" }, metric.higher ? "↑" : "↓")),
      ...shown.map(function (m) {
        const value = card.tiles[m].scores[i];
        return make("td", { class: value === "" ? "warn" : value === null ? "undefined" : null }, numbered(value));
      }));
  }

  function named(card, names) {
    if (!names.length) return [make("b", {}, "none")];
    return names.flatMap((name, i) => [i ? ", " : "", make("b", {}, name), " " + card.p[name].toFixed(2)]);
  }

  function said(card) {
    const parts = [" predicted ", ...named(card, card.predicted)];
    if (card.multilabel) {
      parts.push(" · true ", ...named(card, card.labels));
      if (card.target !== null) parts.push(" · maps explain ", ...named(card, [card.target]), ", " + TRUTHS[card.truth]);
    } else {
      parts.push(" · true class ", ...(card.correct === "no" ? named(card, card.labels) : [make("b", {}, card.labels[0])]));
      if (card.target !== null && card.target !== card.predicted[0]) parts.push(" · maps explain ", ...named(card, [card.target]));
    }
    if (card.outline === null) parts.push(" · region not annotated");
    else if (card.outline === "") parts.push(" · region annotated as empty");
    return parts;
  }

  function hiddenOutline(path, number) {
    const svg = drawn("svg", { class: "hidden", "aria-hidden": "true" });
    const defs = drawn("defs", {});
    defs.append(drawn("path", { id: "roi-" + number, d: path }));
    svg.append(defs);
    return svg;
  }

  function picture(card, m, number) {
    const [width, height] = card.size;
    const tile = m === null ? null : card.tiles[m];
    const frame = make("div", { class: "tile" });
    frame.style.aspectRatio = width + " / " + height;
    if (tile && !tile.file) {
      frame.append(make("span", { class: "absent" }, tile.note));
      return [frame];
    }
    const image = (src, alt, kind) => make("img", { src: src, width: width, height: height, loading: "lazy", alt: alt, class: kind });
    frame.append(image(card.image, tile ? "" : "Test image " + card.sample + (card.outline ? " with its annotated region" : ""), null));
    if (tile) frame.append(image(tile.file, "Heatmap of " + data.methods[m].name + " for " + card.sample + ", model " + card.model, "heat"));
    if (card.outline) {
      const svg = drawn("svg", { class: "outline", viewBox: "0 0 " + width + " " + height, "aria-hidden": "true" });
      ["under", "over"].forEach((kind) => svg.append(drawn("use", { href: "#roi-" + number, class: kind })));
      frame.append(svg);
    }
    return tile ? [frame, ...beneath(tile, data.methods[m].signed)] : [frame];
  }

  function beneath(tile, signed) {
    const ends = make("div", { class: "ends" }, make("span", { class: "bar " + (signed ? "signed" : "positive") }), (signed ? "±" : "0 to ") + tile.limit);
    return [tile.limit ? ends : null, tile.note ? make("div", { class: "note warn" }, tile.note) : null].filter(Boolean);
  }

  /* ---- the page ---- */

  function show() {
    const found = chosen();
    first = Math.max(0, Math.min(first, Math.floor((found.length - 1) / PAGE) * PAGE));
    const shown = found.slice(first, first + PAGE);
    section.querySelector(".cards").replaceChildren(...shown.map(cardOf));
    pagers.forEach(function (pager) {
      const last = first + shown.length;
      pager.querySelector("output").textContent = found.length ? first + 1 + " to " + last + " of " + found.length : "No case fits";
      pager.querySelector("[data-step='-1']").disabled = first === 0;
      pager.querySelector("[data-step='1']").disabled = last >= found.length;
    });
  }

  function turn(event) {
    const step = event.target.dataset.step;
    if (!step) return;
    first += PAGE * Number(step);
    show();
    pagers[0].scrollIntoView({ block: "start" });
  }

  function styled() {
    section.style.setProperty("--opacity", fields.opacity.value / 100);
    section.style.setProperty("--tile", fields.tile.value + "px");
  }

  function offer(name, values, none) {
    fields[name].append(make("option", { value: "" }, none), ...values.map((value) => make("option", { value: value }, value)));
  }

  offer("model", data.models, "all");
  ["label", "predicted", "target"].forEach((name) => offer(name, data.classes, "all"));
  offer("method", data.methods.map((method) => method.name), "all");
  offer("metric", data.metrics.map((metric) => metric.name), "any");
  form.addEventListener("input", function (event) {
    if (event.target.type === "range") styled();
    else { first = 0; show(); }
  });
  /* the fields are cleared after the event */
  form.addEventListener("reset", () => setTimeout(() => { first = 0; styled(); show(); }));
  form.addEventListener("submit", (event) => event.preventDefault());
  pagers.forEach((pager) => pager.addEventListener("click", turn));
  [form].concat(pagers).forEach((part) => { part.hidden = false; });
  form.reset();
  show();
})();
