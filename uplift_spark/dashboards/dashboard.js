/* The page's behaviour: choice of a campaign, segments, what-if. Texts go into the page as texts, never as markup. */
(async function () {
  const SVG = "http://www.w3.org/2000/svg", started = performance.now();
  const packed = Uint8Array.from(atob(document.getElementById("data").textContent.trim()), (c) => c.charCodeAt(0));
  const text = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  const data = JSON.parse(text), panels = [...document.querySelectorAll("article[data-panel]")];
  const state = new URLSearchParams(location.hash.slice(1));
  const remember = (key, value) => { state.set(key, value); history.replaceState(null, "", "#" + state); };

  function short(value) {  // as in the tables on this page: three digits, thousands with commas
    if (value === null || !Number.isFinite(value)) return "-";
    if (value && Math.abs(value) < 100) {
      const plain = String(Number(value.toPrecision(3)));
      return plain.includes("e") ? value.toFixed(6) : plain;
    }
    return Math.round(value).toLocaleString("en-US");
  }
  function element(name, attributes, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
    node.append(...children.filter((one) => one !== null));
    return node;
  }
  function shape(name, attributes, words) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (words !== undefined) node.textContent = words;
    return node;
  }
  function figure(value, source) {
    return element("data", { value: value === null ? "" : value, "data-of": source, "data-scale": 1 }, short(value));
  }
  function roomFor(box, most) {  // letters stay readable on a phone
    return Math.max(300, Math.min(most, box.clientWidth || most));
  }
  function ticks(low, high, count) {
    if (!(high > low)) return [0, 1];
    const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = power * ([1, 2, 2.5, 5, 10].find((m) => m * power >= raw * 0.999) || 10), out = [];
    for (let k = Math.floor(low / step + 1e-9); k <= Math.ceil(high / step - 1e-9); k++) out.push(Number((k * step).toPrecision(10)));
    return out;
  }
  const finite = (values) => values.filter((v) => v !== null && Number.isFinite(v));

  /* Segments: effects of the buckets of a cut with their intervals. */
  function drawSegments(panel, facts) {
    const pick = (name) => panel.querySelector(`.drill .${name}`);
    if (!pick("level") || !facts.cuts) return;
    const names = Object.keys(facts.cuts);
    pick("level").append(...facts.levels.map((level, k) => element("option", { value: k }, level)));
    pick("cut").append(...names.map((name) => element("option", { value: name }, name === "all" ? "all units" : name.replace(/^segment:/, ""))));
    const first = names.find((name) => name !== "all") || names[0];
    pick("cut").value = names.includes(state.get("cut")) ? state.get("cut") : first;
    pick("level").value = state.has("level") && facts.levels[Number(state.get("level"))] !== undefined ? state.get("level") : String(facts.best);
    const draw = () => segmentsOf(panel, facts, pick);
    for (const name of ["level", "cut", "order"]) {
      pick(name).addEventListener("change", () => { if (name !== "order") remember(name, pick(name).value); draw(); });
    }
    pick("find").addEventListener("input", draw);
    draw();
  }
  function segmentsOf(panel, facts, pick) {
    const cut = facts.cuts[pick("cut").value], rows = cut.levels[Number(pick("level").value)];
    rows.n ??= rows.treated.map((treated, i) => treated + rows.control[i]); // said only where it is another number
    const level = facts.levels[Number(pick("level").value)], wanted = pick("find").value.toLowerCase();
    let order = cut.buckets.map((_, i) => i).filter((i) => rows.n[i] > 0 && cut.buckets[i].toLowerCase().includes(wanted));
    const by = { n: (i) => -rows.n[i], high: (i) => -(rows.effect[i] ?? -Infinity), low: (i) => rows.effect[i] ?? Infinity }[pick("order").value];
    order.sort((a, b) => by(a) - by(b));
    const all = order.length;
    pick("segment-words").textContent = segmentWords(facts, cut, rows, order, level);
    order = order.slice(0, 40);
    const box = pick("segments");
    box.replaceChildren(whiskers(facts, cut, rows, order, box));
    const head = element("tr", {}, ...["segment", `n`, level, facts.control, "effect", "95 % interval", "predicted"].map((h) => element("th", { scope: "col" }, h)));
    const lines = order.map((i) => element("tr", rows.low[i] ? { class: "low" } : {},
      element("td", {}, element("bdi", {}, cut.buckets[i])), element("td", {}, figure(rows.n[i], "lift_table")),
      element("td", {}, figure(rows.treated[i], "lift_table")), element("td", {}, figure(rows.control[i], "lift_table")),
      element("td", {}, figure(rows.effect[i], "lift_table")),
      element("td", {}, ...(rows.lower[i] === null ? ["not known"] : [figure(rows.lower[i], "lift_table"), " to ", figure(rows.upper[i], "lift_table")])),
      element("td", {}, figure(rows.predicted[i], "lift_table"))));
    const more = all > order.length ? element("p", { class: "soft" }, `${all - order.length} more: narrow them down with Find.`) : null;
    pick("segment-table").replaceChildren(element("table", {}, head, ...lines));
    if (more) pick("segment-table").append(more);
  }
  function segmentWords(facts, cut, rows, order, level) {
    const apart = order.filter((i) => rows.apart[i]), few = order.filter((i) => rows.low[i]).length;
    let words;
    if (order.length < 2) words = `All units of the hold-out together, for ${level}.`;
    else if (apart.length) words = `Different from the others for ${level}: ${apart.slice(0, 8).map((i) => cut.buckets[i]).join(", ")}. Choose by it.`;
    else words = `The data do not show that these differ from each other for ${level}: do not choose by this cut.`;
    return few ? `${words} ${few} of ${order.length} have few units.` : words;
  }
  function whiskers(facts, cut, rows, order, box) {
    const known = finite(order.flatMap((i) => [rows.effect[i], rows.lower[i], rows.upper[i]]));
    if (!known.length) return element("p", {}, "Too few units for any effect here.");
    const values = ticks(Math.min(0, ...known), Math.max(0, ...known), 4), step = 24, width = roomFor(box, 560), left = width < 450 ? 120 : 190;
    const height = step * order.length + 40, last = values[values.length - 1];
    const x = (v) => left + ((v - values[0]) / (last - values[0])) * (width - 20 - left);
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `effects by segment, ${facts.unit}` });
    for (const v of values) {
      svg.append(shape("line", { x1: x(v), y1: 4, x2: x(v), y2: height - 34, class: v === 0 ? "zero" : "grid" }));
      svg.append(shape("text", { x: x(v), y: height - 20, class: "tick", "text-anchor": "middle" }, String(v)));
    }
    const title = `effect, ${facts.unit}; bars: 95 % interval`;
    svg.append(shape("text", { x: Math.min((left + width) / 2, width - 3.2 * title.length), y: height - 4, class: "tick", "text-anchor": "middle" }, title));
    const most = width < 450 ? 15 : 24;
    order.forEach((i, number) => {
      const y = 4 + step * number + step / 2, low = rows.low[i];
      const letters = [...cut.buckets[i]], name = letters.length <= most ? cut.buckets[i] : letters.slice(0, most - 1).join("") + "…";
      svg.append(shape("text", { x: left - 10, y: y + 4, class: low ? "name low" : "name", "text-anchor": "end", direction: "ltr" }, "\u2068" + name + "\u2069"));
      if (rows.effect[i] === null) {
        svg.append(shape("text", { x: left + 6, y: y + 4, class: "tick low" }, `n = ${short(rows.n[i])}: too few`));
        return;
      }
      if (rows.lower[i] !== null) svg.append(shape("line", { x1: x(rows.lower[i]), y1: y, x2: x(rows.upper[i]), y2: y, class: low ? "whisker low" : "whisker" }));
      svg.append(shape("circle", { cx: x(rows.effect[i]), cy: y, r: 4.5, class: low ? "hollow" : "dot" }));
    });
    return svg;
  }

  /* What if: sliders to settings, settings to a plan. */
  function wireWhatIf(panel, facts) {
    const box = panel.querySelector(".whatif .sliders");
    if (!box || !facts.whatif) return;
    const sums = filledSums(facts.whatif.sums), base = facts.whatif.settings, names = facts.whatif.names;
    const settings = structuredClone(base);
    const run = () => showPlan(panel, facts, sums, settings, names);
    let due = 0;
    const soon = () => { cancelAnimationFrame(due); due = requestAnimationFrame(run); };
    const slider = (label, most, value, set) => {
      const id = `s${Math.random().toString(36).slice(2)}`, nice = Number(most.toPrecision(2));
      const range = element("input", { type: "range", min: 0, max: nice, step: nice / 200, id, "aria-label": label });
      const number = element("input", { type: "number", min: 0, step: "any", "aria-label": `${label}, exact` });
      range.value = value; number.value = Number(value.toPrecision(6));
      const refusal = element("small", { class: "refusal", role: "alert" });
      range.addEventListener("input", () => { number.value = range.value; range.dataset.used = range.value; number.removeAttribute("aria-invalid"); refusal.textContent = ""; set(Number(range.value)); soon(); });
      number.addEventListener("input", () => {
        const good = number.value !== "" && Number(number.value) >= 0 && Number.isFinite(Number(number.value));
        number.setAttribute("aria-invalid", String(!good));
        refusal.textContent = good ? "" : `Write a number of 0 or more: the plan is still that of ${short(Number(range.dataset.used))}.`;
        if (good) { range.value = number.value; range.dataset.used = number.value; set(Number(number.value)); soon(); }
      });
      range.dataset.used = String(value);
      return element("div", { class: "slider" }, element("label", { for: id }, label), number, range, refusal);
    };
    const whole = planOf(sums, { ...settings, budget: null }).spend;
    const start = base.budget === null ? whole : base.budget;
    settings.budget = start > 0 ? start : null;
    box.append(slider("Budget", Math.max(start, whole * 1.2, 1), start, (v) => { settings.budget = v; }));
    if (settings.net) box.append(slider(`Value of one ${names.outcome}`, Math.max(base.value * 3, 1e-6), base.value, (v) => { settings.value = v; }));
    names.levels.forEach((level, k) => {
      const use = element("input", { type: "checkbox" });
      use.checked = true;
      use.addEventListener("change", () => { settings.levels[k] = use.checked; soon(); });
      const cost = slider(`Cost of one ${level}`, Math.max(base.cost[k] * 3, 1), base.cost[k], (v) => { settings.cost[k] = v; });
      cost.append(element("label", {}, use, ` ${level} may be used`));
      box.append(cost);
    });
    const safe = element("select", {}, element("option", { value: "0" }, "none: predicted effects count"), element("option", { value: "1" }, "full: lower ends of the 95 % intervals count"));
    safe.value = base.safe ? "1" : "0";
    safe.addEventListener("change", () => { settings.safe = safe.value === "1"; soon(); });
    box.append(element("div", { class: "slider" }, element("label", {}, "Margin of safety ", safe)));
    const copy = panel.querySelector(".copy"), conf = panel.querySelector(".conf");
    copy.addEventListener("click", () => { conf.select(); if (navigator.clipboard) navigator.clipboard.writeText(conf.value).catch(() => {}); });
    run();
  }
  function showPlan(panel, facts, sums, settings, names) {
    const begun = performance.now(), plan = planOf(sums, settings), curve = frontierOf(sums, settings, 40);
    const took = performance.now() - begun, unit = facts.whatif.gainUnit;
    const per = (x) => (plan.spend > 0 && x !== null ? (100 * x) / plan.spend : null);
    const item = (label, value, extra) => element("div", {}, element("dt", {}, label), element("dd", {}, short(value), element("small", {}, extra || "")));
    const interval = plan.lower === null ? "interval not known" : `95 % interval ${short(plan.lower)} to ${short(plan.upper)}`;
    const results = panel.querySelector(".results");
    results.replaceChildren(
      item("Units treated", plan.treated, names.levels.map((level, k) => `${level}: ${short(plan.units[k])}`).join(", ")),
      item("Money spent", plan.spend, settings.budget === null ? "no limit" : `of ${short(settings.budget)}`),
      item("Gain, predicted", plan.gain, unit), item("Gain, by the hold-out", plan.observed, interval));
    if (settings.net) results.append(item("ROI, %", per(plan.observed), plan.lower === null ? "interval not known" : `95 % interval ${short(per(plan.lower))} to ${short(per(plan.upper))}`));
    panel.querySelector(".whatif-sentence").textContent = planWords(plan);
    const picture = panel.querySelector(".frontier");
    picture.replaceChildren(frontier(facts, plan, curve, picture));
    panel.querySelector(".conf").textContent = confOf(names, settings);
    panel.dataset.plan = JSON.stringify(plan);
    panel.dataset.took = String(took);
  }
  function planWords(plan) {
    if (!(plan.treated > 0)) return "Nobody is treated: no unit is predicted to bring more than it costs.";
    if (plan.lower === null) return "Too few units of the hold-out got what this plan gives: what it brings is not known.";
    if (plan.lower > 0) {
      const less = plan.gain < plan.lower ? " The prediction is lower than the hold-out shows: decide by the hold-out." : "";
      return "This plan pays: by the hold-out its gain lies above zero with 95 % confidence." + less;
    }
    if (plan.upper < 0) return "This plan loses: by the hold-out its gain lies below zero with 95 % confidence.";
    return "This plan is not proven: the 95 % interval of its gain holds zero.";
  }
  function frontier(facts, plan, curve, box) {
    const dots = facts.whatif.curve, width = roomFor(box, 640), height = 280, left = 64, right = 14, top = 24, bottom = 40;
    const across = finite([...curve.map((p) => p.spend), plan.spend, ...dots.map((d) => d.cost)]);
    const known = finite([...curve.flatMap((p) => [p.gain, p.lower, p.upper]), plan.gain, ...dots.flatMap((d) => [d.observed, d.lower, d.upper])]);
    if (!known.length) return element("p", {}, "No plan spends anything here.");
    const ys = ticks(Math.min(0, ...known), Math.max(0, ...known), 5), xs = ticks(0, Math.max(...across, 1e-9), width < 450 ? 3 : 5);
    const x = (v) => left + (v / xs[xs.length - 1]) * (width - right - left);
    const y = (v) => height - bottom - ((v - ys[0]) / (ys[ys.length - 1] - ys[0])) * (height - bottom - top);
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "gain by money spent, with 95 % band" });
    svg.append(shape("text", { x: 8, y: 14, class: "title" }, `Gain (${facts.whatif.gainUnit}) by money spent`));
    for (const v of ys) svg.append(shape("line", { x1: left, y1: y(v), x2: width - right, y2: y(v), class: v === 0 ? "zero" : "grid" }), shape("text", { x: left - 6, y: y(v) + 4, class: "tick", "text-anchor": "end" }, v.toLocaleString("en-US")));
    for (const v of xs) svg.append(shape("text", { x: x(v), y: height - bottom + 16, class: "tick", "text-anchor": v === xs[xs.length - 1] ? "end" : "middle" }, v.toLocaleString("en-US")));
    svg.append(shape("text", { x: (left + width) / 2, y: height - 6, class: "tick", "text-anchor": "middle" }, "money spent"));
    const banded = curve.filter((p) => p.lower !== null);
    if (banded.length > 1) svg.append(shape("polygon", { class: "band", points: [...banded.map((p) => `${x(p.spend)},${y(p.upper)}`), ...banded.slice().reverse().map((p) => `${x(p.spend)},${y(p.lower)}`)].join(" ") }));
    svg.append(shape("polyline", { class: "curve", points: [`${x(0)},${y(0)}`, ...curve.map((p) => `${x(p.spend)},${y(p.gain)}`)].join(" ") }));
    for (const d of dots) {
      if (d.lower !== null) svg.append(shape("line", { x1: x(d.cost), x2: x(d.cost), y1: y(d.lower), y2: y(d.upper), class: "whisker low" }));
      if (d.observed !== null) svg.append(shape("circle", { cx: x(d.cost), cy: y(d.observed), r: 3.5, class: "here" }));
    }
    svg.append(shape("circle", { cx: x(plan.spend), cy: y(plan.gain), r: 6, class: "hollow" }));
    return svg;
  }

  // The command that explains one unit: its id as a text of SQL, and the whole in the double quotes of a shell.
  const commandOf = (query, id) => {
    const text = id.replace(/\\/g, "\\\\").replace(/'/g, "\\'");
    return `uplift sql --conf CAMPAIGN.yaml "${query.replace("'ID'", () => `'${text}'`).replace(/[\\"$`]/g, "\\$&")}"`;
  };
  function wireWhy(panel) {
    const unit = panel.querySelector(".unit"), query = panel.querySelector(".query"), copy = panel.querySelector(".copy-query");
    if (!query) return;
    const fill = () => { query.textContent = commandOf(query.dataset.query, unit.value || "ID"); };
    unit.addEventListener("input", fill);
    copy.addEventListener("click", () => { query.select(); if (navigator.clipboard) navigator.clipboard.writeText(query.value).catch(() => {}); });
    fill();
  }

  const ready = new Set();
  function show(number) {
    panels.forEach((panel, k) => { panel.hidden = k !== number; });
    if (ready.has(number) || !panels[number]) return;
    ready.add(number);
    drawSegments(panels[number], data.campaigns[number]);
    wireWhatIf(panels[number], data.campaigns[number]);
    wireWhy(panels[number]);
  }
  const pick = document.getElementById("campaign"), named = Number(state.get("campaign") || 0);
  const first = panels[named] ? named : 0;
  pick.value = String(first);
  pick.addEventListener("change", () => { remember("campaign", pick.value); show(Number(pick.value)); });
  show(first);
  document.body.dataset.ready = String(performance.now() - started);
  if (data.version && location.protocol.startsWith("http")) {  // `uplift dashboard serve`: the page follows the tables
    setInterval(async () => {
      try {
        const answer = await fetch("version", { cache: "no-store" });
        if (answer.ok && (await answer.text()) !== data.version) location.reload();
      } catch { /* the server is away: the page stays as it is */ }
    }, 15000);
  }
})();
