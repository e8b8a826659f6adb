// The explorer of temperatures: two sliders, and what they make of a few real lists.
(function () {
  "use strict";
  const place = document.getElementById("temperatures");
  if (!place) return;

  function softmax(scores, temperature) {
    const best = Math.max(...scores);
    const powers = scores.map((score) => Math.exp((score - best) / temperature));
    const sum = powers.reduce((a, b) => a + b, 0);
    return powers.map((power) => power / sum);
  }

  function element(name, properties, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  function slider(kind, name, value, changed) {
    // from 0.005 to 1, evenly in its logarithm
    const input = element("input", { type: "range", min: 0, max: 100, value: (100 * Math.log(value / 0.005)) / Math.log(200) });
    const output = element("output", {});
    input.setAttribute("aria-label", name);
    const read = () => 0.005 * Math.pow(200, input.value / 100);
    input.addEventListener("input", () => { output.value = ` ${read().toPrecision(2)}`; changed(); });
    output.value = ` ${value}`;
    return [element("label", {}, element("span", { className: `mark ${kind}` }), `${name} `, input, output), read];
  }

  function bar(kind, share) {
    const made = element("div", { className: `bar ${kind}` });
    made.style.width = `${100 * share}%`;
    return made;
  }

  function show(lists) {
    const choice = element("select", {}, ...lists.map((list, number) =>
      element("option", { value: number }, `${list.set}: ${list.query}`)));
    choice.setAttribute("aria-label", "query");
    const [teacherLabel, teacherTemperature] = slider("teacher", "teacher τ_t", 0.3, draw);
    const [studentLabel, studentTemperature] = slider("student", "student τ_s", 0.05, draw);
    const said = element("p", {});
    const body = element("div", {});
    choice.addEventListener("change", draw);
    place.replaceChildren(choice, teacherLabel, studentLabel, said, body);

    function draw() {
      const list = lists[choice.value];
      const teacher = softmax(list.teacher, teacherTemperature());
      const student = softmax(list.student, studentTemperature());
      const kl = teacher.reduce((sum, p, i) => sum + (p > 0 ? p * Math.log(p / student[i]) : 0), 0);
      const entropy = -teacher.reduce((sum, p) => sum + (p > 0 ? p * Math.log(p) : 0), 0) / Math.log(teacher.length);
      said.textContent = `teacher's first: ${(100 * Math.max(...teacher)).toFixed(0)}% · its entropy: ` +
        `${(100 * entropy).toFixed(0)}% of the highest · KL to the student: ${kl.toFixed(3)}`;
      body.replaceChildren(...list.titles.map((title, i) => element("div", { className: "row" },
        element("div", { className: "title", title }, title),
        element("div", {}, bar("teacher", teacher[i]), bar("student", student[i])),
        element("div", { className: "share" }, `${(100 * teacher[i]).toFixed(0)}% / ${(100 * student[i]).toFixed(0)}%`))));
    }
    draw();
  }

  show(window.temperatureLists);
})();
