"use strict";
// Tables sort by a click on a header: numbers by their data-v, missing values last, text as text.
for (const button of document.querySelectorAll("table.sortable th button")) {
  button.addEventListener("click", () => {
    const header = button.closest("th");
    const table = header.closest("table");
    const column = [...header.parentNode.children].indexOf(header);
    const numeric = !header.classList.contains("text");
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    const key = (row) => {
      const cell = row.children[column];
      const value = cell.dataset.v ?? cell.textContent;
      return numeric ? parseFloat(value) : value;
    };
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (!numeric) return (ascending ? 1 : -1) * x.localeCompare(y, undefined, { numeric: true });
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return ascending ? x - y : y - x;
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(compare));
    for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  });
}
// Contours of reference and prediction can be hidden.
for (const box of document.querySelectorAll("input[data-hide]")) {
  box.addEventListener("change", () => {
    document.getElementById("pictures").classList.toggle(box.dataset.hide, !box.checked);
  });
}
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.from);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "copied";
    } catch {
      // Pages opened from disk may not write to the clipboard; the text is then selected for the keyboard.
      getSelection().selectAllChildren(source);
      button.textContent = "selected: press Ctrl+C";
    }
  });
}
