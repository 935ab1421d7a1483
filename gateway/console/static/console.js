// The console: looks once a second, makes rates of totals, and shows one of two views (overview, account).

import { showAccount } from "./account.js";
import { el, short, sparkline, stacked } from "./charts.js";
import { accountLink, ask, byId, facts, limitLine, scrolling, table, when } from "./page.js";
import { showCounts, showWebhooks, webhookLog } from "./webhooks.js";

const SECONDS = 1, SLOTS = 121, SLOW_SECONDS = 10;
const MARKS = ["passed", "blocked", "limited", "failed"];
const NAMES = { passed: "answered", blocked: "402 budget", limited: "429 rate", failed: "5xx" };
const RUNGS = [
  ["nothing", "Redis and Postgres answer", "Limits are exact; calls are charged within milliseconds."],
  ["redis", "Redis is away", "Postgres admits: budgets are exact, rate limits count in each worker."],
  ["postgres", "Postgres is away", "Limits are exact; charges wait and are written later."],
  ["both", "Both are away", "Known-exhausted accounts stay blocked; the rest is on_store_failure's."],
];
const first = JSON.parse(byId("first").textContent);
const history = { passed: [], blocked: [], limited: [], failed: [], p50: [], p99: [] };
let before = null, hovered = null, canReplay = first.live.billing;

const sum = (parts) => Object.values(parts).reduce((total, part) => total + part, 0);

function quantile(share, bounds, counts) {
  const total = counts.reduce((all, count) => all + count, 0);
  if (!total) return null;
  let left = share * total;
  for (let index = 0; index < counts.length; index++) {
    if (counts[index] >= left) {
      const low = index ? bounds[index - 1] : 0, high = index < bounds.length ? bounds[index] : low;
      return low + (high - low) * (left / (counts[index] || 1));
    }
    left -= counts[index];
  }
  return bounds[bounds.length - 1];
}

function milliseconds(seconds) {
  if (seconds === null) return "–";
  return seconds < 0.01 ? `${+(seconds * 1000).toFixed(1)}` : `${Math.round(seconds * 1000)}`;
}

// ---- what is shown all the time

function look(now) {
  const at = performance.now() / 1000;
  const totals = {
    passed: sum(now.casts), blocked: sum(now.blocked), limited: sum(now.limited), failed: now.failed,
    latency: now.latency.counts,
  };
  for (const [status, count] of Object.entries(now.casts)) {
    if (status.startsWith("5")) { totals.failed += count; totals.passed -= count; }
  }
  if (before) {
    const span = Math.max(at - before.at, 0.2);
    for (const mark of MARKS) push(mark, Math.max(0, totals[mark] - before.totals[mark]) / span);
    const counts = totals.latency.map((count, index) => count - before.totals.latency[index]);
    push("p50", quantile(0.5, now.latency.bounds_s, counts));
    push("p99", quantile(0.99, now.latency.bounds_s, counts));
  }
  before = { at, totals };
  showPills(now);
  canReplay = now.billing;
  byId("webhook-actions").hidden = !now.billing;
  showCounts(now.webhooks);
  if (!byId("overview").hidden) showOverview(now);
}

function push(name, value) {
  history[name].push(value);
  if (history[name].length > SLOTS) history[name].shift();
}

function showPills(now) {
  const { workers } = now.about;
  const ready = workers.ready === workers.wanted;
  const made = [
    pill(`${workers.ready} of ${workers.wanted} workers`, ready ? "good" : "bad"),
    ...["redis", "postgres"].map((store) => pill(store === "redis" ? "Redis" : "Postgres", now.stores[store] === false ? "bad" : "good",
      now.stores[store] === false ? " is away" : "")),
    pill(now.billing ? "billing on" : "billing off", now.billing ? "" : "warn"),
  ];
  if (now.about.draining) made.unshift(pill("draining", "warn"));
  const text = made.map((one) => one.textContent).join();
  if (byId("pills").dataset.text !== text) {
    byId("pills").dataset.text = text;
    byId("pills").replaceChildren(...made);
  }
}

const pill = (text, kind, more = "") => el("span", { class: `pill ${kind}` }, text + more);

// ---- overview

function buildOverview() {
  const tile = (id, name, mark) => el("dl", { class: `card tile is-${mark}`, id: `tile-${id}` }, el("dt", {}, name), el("dd", {}, "–"));
  byId("overview").replaceChildren(
    el("h1", { class: "skip" }, "Overview"),
    el("div", { class: "tiles" },
      tile("passed", "Casts answered", "passed"), tile("latency", "Latency", "latency"), tile("blocked", "402 · over budget", "blocked"),
      tile("limited", "429 · too fast", "limited"), tile("failed", "5xx · failed", "failed")),
    el("div", { class: "pair" },
      el("section", { class: "card fills", "aria-labelledby": "traffic" },
        el("div", { class: "head" }, el("h2", { id: "traffic" }, "Calls a second"), el("ul", { class: "legend", id: "legend" })),
        document.createElementNS("http://www.w3.org/2000/svg", "svg")),
      el("section", { class: "card", "aria-labelledby": "ladder" }, el("h2", { id: "ladder" }, "What is lost"), el("ol", { class: "rungs", id: "rungs" }))),
    el("div", { class: "pair even" },
      el("section", { class: "card", "aria-labelledby": "near" }, el("h2", { id: "near" }, "Nearest their limits"), el("ul", { class: "bars", id: "near-list" })),
      el("section", { class: "card", "aria-labelledby": "inside" }, el("h2", { id: "inside" }, "Inside this gateway"), el("dl", { class: "facts", id: "facts" }))),
    el("section", { class: "card", id: "policies", hidden: true, "aria-labelledby": "rules" }, el("h2", { id: "rules" }, "Policies in force"), scrolling(el("div", { id: "policy-table" }))),
    webhookLog(slowly),
  );
  const chart = document.querySelector("#overview section svg");
  chart.id = "chart";
  chart.setAttribute("class", "chart");
  chart.setAttribute("role", "img");
  chart.setAttribute("aria-label", "Calls a second of the last two minutes, by what became of them; the tiles above have the numbers of now.");
}

function showOverview(now) {
  const last = (name) => history[name][history[name].length - 1];
  for (const mark of MARKS) setTile(mark, [short(last(mark) ?? 0), el("small", {}, " a second")], history[mark]);
  const recent = (name) => [...history[name]].reverse().find((value) => value !== null) ?? null;
  setTile("latency", recent("p50") === null ? ["–"] : [milliseconds(recent("p50")), el("small", {}, ` ms · p99 ${milliseconds(recent("p99"))} ms`)],
    history.p99.map((value) => value ?? 0));
  drawChart();
  byId("rungs").replaceChildren(...RUNGS.map(([name, title, effect]) =>
    el("li", { "aria-current": now.rung === name ? "true" : null }, el("span", {}, el("b", {}, title), el("span", { class: "small" }, effect)))));
  const { ledger, upstream } = now;
  const delay = quantile(0.99, now.loop_delay.bounds_s, now.loop_delay.counts);
  const versions = Object.keys(now.configurations);
  facts(byId("facts"), [
    ["Ledger, waiting", short(ledger.waiting)], ["Ledger lag", `${+ledger.lag_s.toFixed(1)} s`, ledger.lag_s > 5],
    ["Charged, written", short(ledger.written)], ["Charged, dropped", short(ledger.dropped), ledger.dropped > 0],
    ["Holds open", short(now.holds_open)], ["Clients connected", short(now.connections)],
    ["To the service", `${short(upstream.busy)} busy of ${short(upstream.open)}`], ["Calls that wait", short(upstream.waiting), upstream.waiting > 0],
    ["Event loop, p99", `${milliseconds(delay)} ms`, delay > 0.05], ["Passed in shadow", short(now.shadow)],
    ["Version", now.about.version], ["Policies", versions.length > 1 ? `${versions.length} versions` : (versions[0]?.slice(0, 8) ?? "–"), versions.length > 1],
  ]);
}

function setTile(id, content, values) {
  const tile = byId(`tile-${id}`);
  tile.querySelector("dd").replaceChildren(...content);
  tile.querySelector("svg")?.remove();
  tile.append(sparkline(values.slice(-61), 61));
}

function drawChart() {
  const series = MARKS.map((mark) => ({ mark: `is-${mark}`, values: history[mark] }));
  const index = hovered ?? history.passed.length - 1;
  const legend = () => byId("legend").replaceChildren(...MARKS.map((mark) =>
    el("li", { class: `is-${mark}` }, `${NAMES[mark]} `, el("b", {}, short(history[mark][hovered ?? index] ?? 0)))));
  stacked(byId("chart"), series, SLOTS, SECONDS, (at) => { hovered = at; legend(); });
  legend();
}

async function slowly() {
  if (byId("overview").hidden) return;
  // Each by itself: who is nearest a limit is a search through all accounts, which may take longer than it is given.
  const near = ask("/console/near-limits").then(showNear, (error) => byId("near-list").replaceChildren(el("li", { class: "quiet" }, error.message)));
  await Promise.all([near, ask("/console/webhooks").then((events) => showWebhooks(events, canReplay, slowly))]);
}

function showNear(near) {
  byId("near-list").replaceChildren(...(near.length ? near.map((one) => limitLine(accountLink(one.account), one)) : [el("li", { class: "quiet" }, "Nobody has used anything in an open period.")]));
}

async function showPolicies() {
  const [rules, { history: loadings }] = await Promise.all([ask("/policies"), ask("/policies/history")]);
  byId("policies").hidden = false;
  byId("rules").textContent = `Policies in force · ${rules.version.slice(0, 8)} · ${rules.loaded_by}, ${when(rules.loaded_at)}`;
  const cost = (one) => [one.fixed_cents && `${one.fixed_cents} cents`, ...(one.measured ?? [])].filter(Boolean).join(" + ");
  const limit = ([name, one]) => `${name}: ${one.limit}${one.window ? ` in ${one.window}` : ""}`;
  const changes = (one) => one.problems ? one.problems.join("; ") : one.changes.map((each) => each.key).join(", ") || "nothing";
  byId("policy-table").replaceChildren(
    table(["Policy", "Methods", "Path", "Mode", "Cost", "Rate limits"], Object.entries(rules.policies).map(([name, one]) => [
      name, one.methods.join(", "), { mono: one.path }, one.mode, cost(one.cost), Object.entries(one.rate_limits).map(limit).join("; ") || "none",
    ]), "None: everything is passed on untouched."),
    el("h3", { class: "small quiet" }, "Loaded"),
    table(["When", "By", "Result", "Version", "What changed, or what was wrong"], loadings.map((one) => [
      when(one.at), one.by, one.result, { mono: one.version.slice(0, 8) }, changes(one)]), "Never."));
}

// ---- search, and which view

async function search() {
  const text = byId("search").value.trim(), found = byId("found");
  if (!text) { found.hidden = true; return; }
  const ids = await ask(`/console/accounts?q=${encodeURIComponent(text)}`).catch(() => []);
  if (byId("search").value.trim() !== text) return;
  // Answers to what was typed a moment ago are there already, and one of them may have been chosen by the keyboard.
  const chosen = found.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  found.replaceChildren(...(ids.length ? ids.map(accountLink) : [el("span", { class: "quiet" }, "No account begins so.")]));
  found.hidden = false;
  if (chosen) ([...found.querySelectorAll("a")].find((link) => link.getAttribute("href") === chosen) ?? byId("search")).focus();
}

function route() {
  const match = location.hash.match(/^#\/account\/(.+)$/);
  byId("overview").hidden = Boolean(match);
  byId("account").hidden = !match;
  byId("found").hidden = true;
  if (match) showAccount(decodeURIComponent(match[1]), { canExplain: first.explain, canReplay });
  else slowly().catch(gone);
}

function gone(error) {
  byId("gone").textContent = error ? `The gateway does not answer as it should: ${error.message}` : "";
  byId("gone").hidden = !error;
}

async function tick() {
  try {
    look(await ask("/console/live"));
    gone(null);
  } catch (error) {
    gone(error);
  }
  setTimeout(tick, SECONDS * 1000);
}

buildOverview();
byId("sign-out").hidden = !first.asks;
byId("sign-out").addEventListener("click", () => ask("/console/sign-out", { method: "POST" }).finally(() => location.reload()));
byId("search").addEventListener("input", search);
byId("search").addEventListener("keydown", (event) => {
  if (event.key === "Enter") byId("found").querySelector("a")?.click();
  if (event.key === "ArrowDown") { byId("found").querySelector("a")?.focus(); event.preventDefault(); }
  if (event.key === "Escape") byId("found").hidden = true;
});
byId("found").addEventListener("keydown", (event) => {
  const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  if (step) { (document.activeElement[step] ?? byId("search")).focus(); event.preventDefault(); }
  if (event.key === "Escape") { byId("found").hidden = true; byId("search").focus(); }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !["INPUT", "SELECT"].includes(document.activeElement.tagName)) { byId("search").focus(); event.preventDefault(); }
});
addEventListener("hashchange", () => { route(); byId("content").focus(); });
route();
look(first.live);
if (first.policies) { showPolicies().catch(gone); setInterval(() => showPolicies().catch(gone), 6 * SLOW_SECONDS * 1000); }
setTimeout(tick, SECONDS * 1000);
setInterval(() => slowly().catch(gone), SLOW_SECONDS * 1000);
