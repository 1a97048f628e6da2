"use strict";
/* Plans from sums of groups of units: `planOf` and `frontierOf`. No browser is needed here.

sums      what `whatif_sums` gives: plain and safe (n, benefit, arms), units, leastUnits
settings  {budget (null: none), value, cost: [by level], levels: [true where it may be used], safe: lower ends count,
           net: costs are taken off the gain}
*/
const NORMAL_95 = 1.959963984540054;

const FIELDS = ["n", "w", "wy", "ww", "wwy", "wwyy"], F = FIELDS.length;

/* Sums in typed arrays, each group's fields side by side; equal weights leave w, ww and wwy out. */
function filledSums(sums) {
  for (const part of [sums.plain, sums.safe]) {
    const C = part.n.length;
    part.n = Float64Array.from(part.n);
    part.benefit = part.benefit.map((column) => Float64Array.from(column));
    part.held = new Float64Array(C);
    part.arms = part.arms.map((arm) => {
      const all = { w: arm.n, ww: arm.n, wwy: arm.wy, ...arm }, packed = new Float64Array(C * F);
      for (let c = 0; c < C; c++) {
        for (let f = 0; f < F; f++) packed[c * F + f] = all[FIELDS[f]][c];
        part.held[c] += arm.n[c];
      }
      return packed;
    });
  }
  return sums;
}

/* The groups that a plan starts from. */
function groupsOf(sums, settings) {
  return { ...(settings.safe ? sums.safe : sums.plain), units: sums.units, leastUnits: sums.leastUnits };
}

/* Each group's best level at a price of money, or -1; its units, spend and gain in all. */
function choiceAt(sums, settings, price, chosen) {
  const C = sums.n.length, used = settings.cost.map((_, k) => k).filter((k) => settings.levels[k]);
  const best = new Float64Array(C), value = settings.value;
  chosen.fill(-1);
  for (const k of used) {
    const benefit = sums.benefit[k], less = (settings.net ? settings.cost[k] : 0) + price * settings.cost[k];
    for (let c = 0; c < C; c++) {
      const net = value * benefit[c] - less;
      if (net > best[c]) { best[c] = net; chosen[c] = k; }
    }
  }
  let spend = 0, gain = 0;
  for (let c = 0; c < C; c++) {
    const k = chosen[c];
    if (k < 0) continue;
    const cost = settings.cost[k];
    spend += sums.n[c] * cost;
    gain += sums.n[c] * (value * sums.benefit[k][c] - (settings.net ? cost : 0));
  }
  return { price, spend, gain, chosen };
}

/* The highest price that anybody might pay. */
function highestPrice(sums, settings) {
  let most = 0;
  settings.cost.forEach((cost, k) => {
    if (!settings.levels[k] || !(cost > 0)) return;
    for (const benefit of sums.benefit[k]) most = Math.max(most, (settings.value * benefit) / cost);
  });
  return most + 1e-9;
}

/* Shares [group] of two choices: what is cheaper, and what passes the budget, so that the budget is used up. */
function planOf(every, settings) {
  const sums = groupsOf(every, settings);
  const C = sums.n.length, cheap = new Int8Array(C), dear = new Int8Array(C);
  let low = choiceAt(sums, settings, 0, dear);
  if (settings.budget === null || low.spend <= settings.budget) return totals(sums, settings, dear, dear, 0);
  let from = 0, to = highestPrice(sums, settings);
  let high = choiceAt(sums, settings, to, cheap);
  for (let step = 0; step < 60 && to - from > 1e-12 * to; step++) {
    const middle = (from + to) / 2, trial = new Int8Array(C), one = choiceAt(sums, settings, middle, trial);
    if (one.spend > settings.budget) { from = middle; low = one; } else { to = middle; high = one; }
    if (high.spend === low.spend) break;
  }
  const gap = low.spend - high.spend;
  const share = gap > 0 ? Math.max(0, Math.min(1, (settings.budget - high.spend) / gap)) : 0;
  return totals(sums, settings, high.chosen, low.chosen, share);
}

/* What a plan has, uses and brings: (1 - share) of one choice, share of the other. */
function totals(sums, settings, one, other, share) {
  const K = settings.cost.length, from = sums.benefit;
  const units = new Array(K).fill(0);
  let spend = 0, gain = 0;
  for (const [chosen, part] of [[one, 1 - share], [other, share]]) {
    if (!part) continue;
    for (let c = 0; c < sums.n.length; c++) {
      const k = chosen[c];
      if (k < 0) continue;
      const n = part * sums.n[c];
      units[k] += n;
      spend += n * settings.cost[k];
      gain += n * (settings.value * from[k][c] - (settings.net ? settings.cost[k] : 0));
    }
  }
  return { units, treated: units.reduce((a, b) => a + b, 0), spend, gain, ...observedOf(sums, settings, one) };
}

/* What the hold-out's outcomes say of a choice: gain with its 95 % interval; null where too few units tell. */
function observedOf(sums, settings, chosen) {
  const none = { observed: null, lower: null, upper: null };
  if (!sums.arms.length) return none;
  const K = settings.cost.length, C = sums.n.length, control = sums.arms[0], total = new Float64Array(2 * K * F);
  const got = new Float64Array(K);
  let held = 0;
  for (let c = 0; c < C; c++) {
    held += sums.held[c];
    const k = chosen[c];
    if (k < 0) continue;
    got[k] += sums.held[c];
    const treated = sums.arms[k + 1], at = 2 * k * F, from = c * F;
    for (let f = 0; f < F; f++) {
      total[at + f] += treated[from + f];
      total[at + F + f] += control[from + f];
    }
  }
  if (!held) return none;
  let gain = 0, square = 0;
  for (let k = 0; k < K; k++) {
    if (!got[k]) continue;
    const n = (got[k] * sums.units) / held;
    const a = meanOf(total, 2 * k * F, sums.leastUnits), b = meanOf(total, (2 * k + 1) * F, sums.leastUnits);
    gain += n * settings.value * (a.mean - b.mean) - (settings.net ? n * settings.cost[k] : 0);
    const error = Math.sqrt(a.square + b.square);
    square += error > 0 ? (n * settings.value * error) ** 2 : NaN;
  }
  const half = NORMAL_95 * Math.sqrt(square), known = (x) => (Number.isFinite(x) ? x : null);
  return { observed: known(gain), lower: known(gain - half), upper: known(gain + half) };
}

/* Weighted mean and its squared standard error, as `stats.moments` has them, of the sums from `at` on. */
function meanOf(total, at, least) {
  const [n, w, wy, ww, wwy, wwyy] = total.subarray(at, at + F);
  if (n < least) return { mean: NaN, square: NaN };
  const mean = wy / w;
  let spread = wwyy - 2 * mean * wwy + mean * mean * ww;
  if (spread <= 1e-9 * wwyy) spread = 0;
  return { mean, square: (n * spread) / ((n - 1) * w * w) };
}

/* Plans of rising budgets: the frontier, each with its interval. */
function frontierOf(every, settings, steps) {
  const sums = groupsOf(every, settings);
  const chosen = () => new Int8Array(sums.n.length);
  const top = highestPrice(sums, settings), plans = [];
  for (let step = 0; step <= steps; step++) {  // closer where prices are low, as there most is spent
    const price = top * (1 - step / steps) ** 2, one = choiceAt(sums, settings, price, chosen());
    if (!plans.length || one.spend > plans[plans.length - 1].spend * (1 + 1e-9)) {
      plans.push({ spend: one.spend, gain: one.gain, ...observedOf(sums, settings, one.chosen) });
    }
  }
  return plans;
}

/* The lines of a configuration that plan this scenario. */
function confOf(names, settings) {
  const code = (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0");  // YAML folds or refuses these as they are
  const word = (text) => JSON.stringify(String(text)).replace(/[\u007f-\u009f\u2028\u2029\ufeff\ufffe\uffff]/g, code), lines = ["scenarios:", "  what_if:"];
  const number = (x) => String(Number(x.toPrecision(10)));
  lines.push(`    budget: ${settings.budget === null ? "null" : number(settings.budget)}`);
  const used = names.levels.filter((_, k) => settings.levels[k]);
  if (used.length < names.levels.length) lines.push(`    levels: [${used.map(word).join(", ")}]`);
  lines.push(`    cost: {${names.levels.map((level, k) => `${word(level)}: ${number(settings.cost[k])}`).join(", ")}}`);
  if (settings.net) lines.push(`    value: {${word(names.outcome)}: ${number(settings.value)}}`);
  lines.push("policy:", `  bound: ${settings.safe ? "lower" : "expected"}`);
  return lines.join("\n") + "\n";
}

if (typeof module !== "undefined") module.exports = { confOf, filledSums, frontierOf, planOf };
