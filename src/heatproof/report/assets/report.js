/* Sorting of tables and copying of texts. The page is complete without it. */
"use strict";

(function () {
  function sortable(table) {
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach(function (head, column) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      while (head.firstChild) button.appendChild(head.firstChild);
      head.appendChild(button);
      button.addEventListener("click", function () {
        const before = head.getAttribute("aria-sort");
        /* of numbers the largest first, of texts the alphabet */
        const first = head.classList.contains("number") ? "descending" : "ascending";
        const second = first === "descending" ? "ascending" : "descending";
        const now = before === first ? second : first;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", now);
        Array.from(table.tBodies).forEach((body) => sortBody(body, column, now === "ascending" ? 1 : -1));
      });
    });
  }

  function sortBody(body, column, sign) {
    const rows = Array.from(body.rows).filter((row) => row.cells.length > 1);
    rows.sort((a, b) => compare(keyOf(a.cells[column]), keyOf(b.cells[column]), sign));
    rows.forEach((row) => body.appendChild(row));
  }

  function keyOf(cell) {
    if (!cell) return "";
    const text = cell.dataset.sort !== undefined ? cell.dataset.sort : cell.textContent.trim();
    const number = text === "inf" ? Infinity : text === "-inf" ? -Infinity : Number(text);
    return text !== "" && !Number.isNaN(number) ? number : text;
  }

  /* numbers before texts, what is empty last in both directions */
  function compare(a, b, sign) {
    if (a === "" || b === "") return (a === "") - (b === "");
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    if (typeof a === "string") return sign * a.localeCompare(b);
    return a === b ? 0 : sign * (a - b);
  }

  function copying(button) {
    const source = document.getElementById(button.dataset.copy);
    const label = button.textContent;
    button.hidden = false;
    button.addEventListener("click", function () {
      const say = (text) => { button.textContent = text; setTimeout(() => { button.textContent = label; }, 2000); };
      const select = function () {
        getSelection().selectAllChildren(source);
        say("Selected: press Ctrl or ⌘ and C");
      };
      if (navigator.clipboard) navigator.clipboard.writeText(source.textContent).then(() => say("Copied"), select);
      else select();
    });
  }

  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll("button.copy").forEach(copying);
})();
