"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const given = [...body.rows]; // original order, restored by the third click
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const texts = given.map((row) => value(row, column)).filter((text) => text !== "" && text !== "–");
    const numeric = texts.length > 0 && texts.every((text) => !Number.isNaN(Number(text)));
    const turns = numeric ? ["descending", "ascending", null] : ["ascending", "descending", null];
    const next = turns[(turns.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    const empty = (text) => text === "" || text === "–";
    const rows = [...given];
    if (next) {
      head.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      rows.sort((one, other) => {
        const [a, b] = [value(one, column), value(other, column)];
        if (empty(a) || empty(b)) return empty(a) - empty(b); // empty cells stay at the bottom
        return sign * (numeric ? a - b : a.localeCompare(b));
      });
    }
    body.append(...rows);
  }));
}

const reveal = () => { // a link to a figure opens its row
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const details = target?.closest("details");
  if (details) {
    details.open = true;
    target.scrollIntoView({ block: "nearest" });
  }
};
addEventListener("hashchange", reveal);
reveal();

for (const button of document.querySelectorAll("button.enlarge")) {
  button.addEventListener("click", () => {
    const large = button.closest("figure").classList.toggle("large");
    button.setAttribute("aria-pressed", large);
    button.textContent = large ? "Reduce" : "Enlarge";
  });
}

for (const button of document.querySelectorAll(".command button")) {
  button.addEventListener("click", async () => {
    const code = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch { // not allowed: select the text, so that Ctrl+C copies it
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
