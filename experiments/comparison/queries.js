// Single queries: a list of which only the rows in view are in the document, and two rankings of the chosen query.
{
  const ROW = 60, SPARE = 8; // pixels of a row, as in queries.css; rows kept above and below those in view
  const data = JSON.parse(document.getElementById("view-data").textContent);
  const part = name => document.getElementById(`view-${name}`);
  const list = part("list"), rows = list.firstElementChild, detail = part("query"), search = part("search").lastChild;
  const [setMenu, armMenu, orderMenu] = ["set", "arm", "order"].map(name => part(name).querySelector("select"));
  let set, arm, shown = [], chosen = 0, watched = null, note = "";

  // Text is only ever set as text: what corpora, queries and configurations hold is no markup.
  const make = (tag, properties = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name === "text") element.textContent = value;
      else if (name === "class") element.className = value;
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  };
  const signed = x => (x > 0 ? "+" : x < 0 ? "−" : "±") + Math.abs(x).toFixed(3);
  const way = x => x > 0 ? "up" : x < 0 ? "down" : "even";
  const difference = n => arm.values[1][n] - arm.values[0][n];
  const pairs = flat => new Map(Array.from({length: flat.length / 2}, (_, n) => [flat[2 * n], flat[2 * n + 1]]));
  const choices = (menu, names) => menu.replaceChildren(...names.map((name, n) => make("option", {value: n, text: name})));

  function select() { // a data set
    set = data.sets[setMenu.value];
    choices(armMenu, set.arms.map(each => each.name));
    set.found ??= set.queries.map(([id, text]) => `${id} ${text}`.toLowerCase());
    selectArm();
  }

  function selectArm() {
    arm = set.arms[armMenu.value];
    filter();
  }

  function filter() { // the queries that have all the words, in the order that is asked for
    const kept = shown.length ? shown[chosen] : -1;
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const key = {loss: difference, gain: n => -difference(n), change: n => -Math.abs(difference(n)), id: n => n};
    const order = key[orderMenu.value];
    shown = [...set.queries.keys()].filter(n => words.every(word => set.found[n].includes(word)));
    shown.sort((a, b) => order(a) - order(b) || a - b);
    const count = sign => shown.filter(n => Math.sign(difference(n)) === sign).length;
    part("count").textContent = `${shown.length} of ${set.queries.length} queries: ${count(1)} better than `
      + `${arm.base}, ${count(0)} equal, ${count(-1)} worse.`;
    list.scrollTop = 0;
    rows.style.height = `${shown.length * ROW}px`;
    choose(words.length && shown.includes(kept) ? shown.indexOf(kept) : 0);
  }

  function drawRows() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - SPARE);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE);
    rows.replaceChildren(...shown.slice(first, last).map((n, i) => {
      const [id, text] = set.queries[n], place = first + i;
      const row = make("div", {role: "option", id: `view-row-${place}`, "aria-selected": place === chosen,
        "aria-setsize": shown.length, "aria-posinset": place + 1},
        make("span", {class: "clamped", dir: "auto", text: text || id}),
        make("span", {class: `values ${way(difference(n))}`, text: signed(difference(n))}));
      row.style.top = `${place * ROW}px`;
      row.addEventListener("click", () => choose(place));
      return row;
    }));
    if (chosen >= first && chosen < last) list.setAttribute("aria-activedescendant", `view-row-${chosen}`);
    else list.removeAttribute("aria-activedescendant");
  }

  function choose(place) { // a row, which comes into view
    chosen = Math.max(0, Math.min(place, shown.length - 1));
    const top = chosen * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    drawRows();
    drawQuery();
  }

  function drawQuery() {
    watched?.disconnect();
    if (!shown.length) return detail.replaceChildren(make("p", {class: "faint", text: "No query has these words."}));
    const n = shown[chosen], [id, text, overlap] = set.queries[n];
    const values = ([before, after]) => `${before[n].toFixed(3)} → ${after[n].toFixed(3)} (${signed(after[n] - before[n])})`;
    const of = set.relevant[n];
    const lines = [make("p", {}, "nDCG@10 ", make("b", {class: way(difference(n)), text: values(arm.values)}),
      make("span", {class: "faint", dir: "auto", text: ` query ${id}`
        + (of ? `, ${of} relevant passage${of === 1 ? "" : "s"}` : "")}))];
    if (arm.seed !== null) lines.push(make("p", {class: "faint", text: `The figures above are means over seeds; the `
      + `rankings are those of seed ${arm.seed} alone: ${values(arm.shown)}.`}));
    if (overlap) lines.push(make("p", {class: "faint", dir: "auto", text: `Overlap with training: it ${overlap}.`}));
    for (const said of [note, set.missing]) if (said) lines.push(make("p", {class: "faint", text: said}));
    const steps = [["← Previous", -1], ["Next →", 1]].map(([label, step]) => {
      const button = make("button", {type: "button", text: label});
      button.disabled = !(chosen + step in shown);
      button.addEventListener("click", () => {
        choose(chosen + step);
        const again = detail.querySelectorAll("nav button")[step < 0 ? 0 : 1];
        (again.disabled ? list : again).focus();
      });
      return button;
    });
    const sides = arm.sides.map(side => set.rankings[side][n]);
    detail.replaceChildren(make("h3", {dir: "auto", text: text || id}), ...lines, make("nav", {}, ...steps),
      rankings(n, sides), ...below(n, sides));
    connect();
    watched = new ResizeObserver(connect);
    watched.observe(detail.querySelector(".ranks"));
  }

  const ranksOf = ([first, others]) => new Map([...first.map((p, i) => [p, i + 1]), ...pairs(others)]);
  const isRelevant = grade => grade !== undefined && grade >= set.level;

  function mark(grade) {
    if (grade === undefined) return [];
    const graded = set.graded ??= set.grades.some(flat => flat.some((g, i) => i % 2 && g !== 0 && g !== 1));
    const words = (isRelevant(grade) ? "relevant" : "judged not relevant") + (graded ? `, grade ${grade}` : "");
    return [make("span", {class: isRelevant(grade) ? "mark" : "mark none", text: ` ${words}`})];
  }

  function moved(before, after, side, grade) { // in words, of a passage's rank on one side
    const [own, other] = side ? [after, before] : [before, after];
    if (own === other) return make("span", {class: "even", text: " ="});
    const word = !other ? side ? "new" : "out" : side ? `from ${other}` : `to ${other}`;
    const up = !before || (after && after < before);
    const arrow = make("span", {"aria-hidden": "true", text: up ? " ▲ " : " ▼ "});
    return make("span", {class: isRelevant(grade) ? way(up ? 1 : -1) : "even"}, arrow, word);
  }

  function rankings(n, sides) {
    const ranks = sides.map(ranksOf), grades = pairs(set.grades[n]);
    const scores = set.scores.length ? pairs(set.scores[n]) : new Map();
    const columns = sides.map(([first], side) => {
      const title = side ? arm.name : arm.base;
      const items = first.map((p, i) => {
        const [name, body] = set.words?.[p] ?? [];
        const head = make("summary", {}, make("span", {class: "rank", text: i + 1}),
          moved(ranks[0].get(p), ranks[1].get(p), side, grades.get(p)), ...mark(grades.get(p)),
          make("span", {class: "clamped", dir: "auto", text: name || body || set.passages[p]}));
        const facts = `id ${set.passages[p]}` + (scores.has(p) ? `; the teacher's score ${scores.get(p)}` : "");
        const open = make("details", {}, head, make("p", {dir: "auto", text: body ?? ""}),
          make("p", {class: "faint", dir: "auto", text: facts}));
        const item = make("li", {"data-passage": p, class: isRelevant(grades.get(p)) ? "relevant" : ""}, open);
        if (scores.has(p)) head.insertBefore(make("span", {class: "faint", text: ` teacher ${scores.get(p)}`}), head.lastChild);
        for (const [kind, lit] of [["mouseenter", true], ["mouseleave", false], ["focusin", true], ["focusout", false]])
          item.addEventListener(kind, () => detail.querySelectorAll(`[data-passage="${p}"]`).forEach(
            element => element.classList.toggle("lit", lit)));
        return item;
      });
      const none = items.length ? [] : [make("p", {class: "faint", text: "No passage."})];
      return make("div", {}, make("h4", {dir: "auto", text: title}), make("ol", {"aria-label": title}, ...items), ...none);
    });
    const lines = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    lines.setAttribute("aria-hidden", "true"); // what they show, each passage says in words
    return make("div", {class: "ranks"}, ...columns, lines);
  }

  function connect() { // a line for each passage that both sides have
    const box = detail.querySelector(".ranks"), lines = box.querySelector("svg"), at = box.getBoundingClientRect();
    const [left, right] = [...box.querySelectorAll("ol")].map(column => [...column.children]);
    lines.replaceChildren(...left.flatMap((item, i) => {
      const j = right.findIndex(other => other.dataset.passage === item.dataset.passage);
      if (j < 0) return [];
      const [from, to] = [item, right[j]].map(each => each.getBoundingClientRect());
      const [x, y, X, Y] = [from.right - at.left, from.top - at.top + 24, to.left - at.left, to.top - at.top + 24];
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("d", `M${x} ${y}C${(x + X) / 2} ${y} ${(x + X) / 2} ${Y} ${X} ${Y}`);
      path.setAttribute("class", item.classList.contains("relevant") ? `of-relevant ${way(i - j)}` : "even");
      path.dataset.passage = item.dataset.passage;
      return [path];
    }));
  }

  function below(n, sides) { // relevant passages that neither side has among its first
    const first = new Set(sides.flatMap(([each]) => each)), ranks = sides.map(ranksOf);
    const items = [...pairs(set.grades[n])].filter(([p, grade]) => isRelevant(grade) && !first.has(p)).map(([p, grade]) => {
      const [before, after] = ranks.map(each => each.get(p)), [name, body] = set.words?.[p] ?? [];
      const words = make("span", {dir: "auto", text: name || body || set.passages[p]});
      return make("li", {class: "relevant"}, make("b", {text: `${before ?? "–"} → ${after ?? "–"}`}),
        ...(before && after ? [moved(before, after, 1, grade)] : []), ...mark(grade), " ", words);
    });
    if (!items.length) return [];
    return [make("h4", {text: "Relevant, but in neither's first ten"}),
      make("p", {class: "faint", text: "Ranks of both; – where the rankings that were kept do not reach so far."}),
      make("ul", {class: "below"}, ...items)];
  }

  const take = words => data.sets.forEach((each, n) => each.words = words[n]);

  function loadTexts() { // from the file beside the page
    const file = document.createElement("script");
    const done = said => { note = said; drawQuery(); };
    note = "Loading the passages' words…";
    file.src = data.texts;
    file.addEventListener("error", () => done(`${data.texts} is not beside this page, so passages are shown by their ids alone.`));
    file.addEventListener("load", () => {
      const found = globalThis.comparisonTexts;
      if (found?.key !== data.key) return done(`${data.texts} is of another comparison, so passages are shown by their ids alone.`);
      take(found.words);
      done("");
    });
    document.head.append(file);
  }

  list.addEventListener("keydown", event => {
    const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
    const to = {ArrowDown: chosen + 1, ArrowUp: chosen - 1, PageDown: chosen + page, PageUp: chosen - page,
      Home: 0, End: shown.length - 1}[event.key];
    if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    choose(to);
  });
  search.addEventListener("keydown", event => {
    if (event.key !== "ArrowDown" && event.key !== "Enter") return;
    event.preventDefault();
    list.focus();
  });
  list.addEventListener("scroll", drawRows, {passive: true});
  new ResizeObserver(drawRows).observe(list);
  setMenu.addEventListener("change", select);
  armMenu.addEventListener("change", selectArm);
  orderMenu.addEventListener("change", filter);
  search.addEventListener("input", filter);
  choices(setMenu, data.sets.map(each => each.name));
  document.getElementById("view").hidden = false;
  if (data.texts) loadTexts();
  else take(data.words);
  select();
}
