/* Sorting of tables, filtering and paging of cases. The page is complete without it. */
"use strict";

(function () {
  const PAGE = 12;

  function sortable(table) {
    const heads = table.tHead.rows[0].cells;
    Array.from(heads).forEach(function (head, column) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      while (head.firstChild) button.appendChild(head.firstChild);
      head.appendChild(button);
      button.addEventListener("click", function () {
        const down = head.getAttribute("aria-sort") === "descending";
        Array.from(heads).forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "ascending" : "descending");
        Array.from(table.tBodies).forEach((body) => sortBody(body, column, down ? 1 : -1));
      });
    });
  }

  function sortBody(body, column, sign) {
    const rows = Array.from(body.rows).filter((row) => row.cells.length > column && row.cells.length > 1);
    rows.sort((a, b) => compare(keyOf(a.cells[column]), keyOf(b.cells[column]), sign));
    rows.forEach((row) => body.appendChild(row));
  }

  function keyOf(cell) {
    const text = cell.dataset.sort !== undefined ? cell.dataset.sort : cell.textContent.trim();
    const number = Number(text);
    return text !== "" && !Number.isNaN(number) ? number : text;
  }

  /* numbers before texts, what is empty last in both directions */
  function compare(a, b, sign) {
    if (a === "" || b === "") return (a === "") - (b === "");
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
  }

  function gallery(section) {
    const cards = Array.from(section.querySelectorAll(".card"));
    const form = section.querySelector(".filters");
    const pagers = Array.from(section.querySelectorAll(".paging"));
    let first = 0;

    function chosen() {
      const wanted = ["model", "label", "predicted", "correct"].map((name) => [name, form.elements[name].value]);
      return cards.filter((card) => wanted.every(([name, value]) => value === "" || card.dataset[name] === value));
    }

    function show() {
      const found = chosen();
      first = Math.max(0, Math.min(first, Math.floor((found.length - 1) / PAGE) * PAGE));
      const shown = new Set(found.slice(first, first + PAGE));
      cards.forEach((card) => { card.hidden = !shown.has(card); });
      pagers.forEach(function (pager) {
        const last = Math.min(first + PAGE, found.length);
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
      section.querySelector(".paging").scrollIntoView({ block: "start" });
    }

    form.addEventListener("input", function (event) {
      if (event.target.name === "opacity") section.style.setProperty("--opacity", event.target.value / 100);
      else if (event.target.name === "tile") section.style.setProperty("--tile", event.target.value + "px");
      else { first = 0; show(); }
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    pagers.forEach((pager) => pager.addEventListener("click", turn));
    [form].concat(pagers).forEach((part) => { part.hidden = false; });
    form.reset();
    show();
  }

  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll("#cases").forEach(gallery);
})();
