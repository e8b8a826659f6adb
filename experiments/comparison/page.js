// A table is sorted by the first number in a cell, else by its text.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => {
      const text = row.cells[column].textContent.replace(/,(?=\d{3})/g, "");
      const number = column ? parseFloat(text.replace(/^[<\[]/, "")) : NaN;
      return [number, text];
    };
    const order = (a, b) => {
      const [x, s] = key(a), [y, t] = key(b);
      if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
      return (isNaN(x) ? s.localeCompare(t) : x - y) * (down ? -1 : 1);
    };
    body.append(...[...body.rows].sort(order));
  }));
}
