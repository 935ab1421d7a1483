// An account's page: where it stands, what it used, and what an operator may do about it.

import { days, el } from "./charts.js";
import { ask, byId, card, facted, limitLine, scrolling, table, when } from "./page.js";
import { eventTable } from "./webhooks.js";

const ACTIONS = {
  budget_set: "Budget set", budget_removed: "Budget removed", explained: "Call explained",
  event_replayed: "Event replayed", billing_synced: "Read from Stripe",
};

export async function showAccount(id, { canExplain, canReplay }) {
  const view = byId("account");
  view.replaceChildren(el("p", { class: "quiet" }, "…"));
  try {
    build(view, await ask(pathOf(id)), { canExplain, canReplay });
  } catch (error) {
    view.replaceChildren(el("h1", { class: "title" }, id), el("p", { role: "alert", class: "told bad" }, error.message));
  }
}

const pathOf = (id) => `/console/accounts/${encodeURIComponent(id)}`;

function build(view, picture, can) {
  const told = () => view.querySelector(":scope > .told");
  const say = (text, kind) => Object.assign(told(), { textContent: text, className: `told ${kind}` });
  const change = async (what, done) => {
    try {
      build(view, await what(), can);
      say(done, "good");
    } catch (error) {
      say(error.message, "bad");
    }
  };
  const again = async () => { build(view, await ask(pathOf(picture.account)), can); };
  const audit = card("Audit", scrolling(auditTable(picture.audit)));
  const explained = async () => {
    const { audit: entries } = await ask(pathOf(picture.account));
    audit.querySelector(".scroll").replaceChildren(auditTable(entries));
  };
  view.replaceChildren(
    el("div", {}, el("a", { href: "#/" }, "← Overview"), el("h1", { class: "title mono" }, picture.account)),
    el("p", { class: "told", role: "status" }),
    card("Standing", facted([
      ["Plan", picture.plan], ["Subscription", picture.status], ["Plan kept until", picture.plan_until ? when(picture.plan_until) : "–"],
      ["Stripe customer", picture.stripe_customer ?? "–"], ["Stripe subscription", picture.stripe_subscription ?? "–"]])),
    el("div", { class: "pair" }, card("Cents by day", days(picture.days)), limits(picture, change)),
    el("div", { class: "pair" }, can.canExplain ? explainer(picture.account, explained) : null, holds(picture.holds)),
    card("Newest charged calls", scrolling(table(["When", "Policy", "Status", ">Cents", "Outcome", "Id"],
      picture.casts.map((one) => [when(one.at), one.policy, `${one.status || "none"}`, one.cents, one.outcome, { mono: one.id }]), "None yet."))),
    card("Events from Stripe", scrolling(eventTable(picture.events, { canReplay: can.canReplay, told, again }))),
    audit,
  );
}

function limits(picture, change) {
  const path = `${pathOf(picture.account)}/budget`;
  const period = el("select", { name: "period" }, ...["daily", "weekly", "monthly", "total"].map((one) => el("option", {}, one)));
  const amount = el("input", { name: "hard_limit_cents", inputmode: "decimal", required: true, pattern: "[0-9]+([.][0-9]{1,6})?", title: "cents, with up to six decimals" });
  // What the form does not ask for stays; but a soft limit above the new limit cannot.
  const kept = (name, cents) => {
    const own = picture.budgets.find((one) => one.source === "account" && one.period === name);
    if (!own) return "";
    const soft = own.soft_limit_cents !== null && Number(own.soft_limit_cents) <= Number(cents) ? `, "soft_limit_cents": ${own.soft_limit_cents}` : "";
    return `, "timezone": ${JSON.stringify(own.time_zone)}, "week_start": ${JSON.stringify(own.week_start)}${soft}`;
  };
  const set = (event) => {
    event.preventDefault();
    const body = `{"period": ${JSON.stringify(period.value)}, "hard_limit_cents": ${amount.value}${kept(period.value, amount.value)}}`;
    change(() => ask(path, { method: "PUT", body }), `The ${period.value} budget is ${amount.value} cents, from the next call on.`);
  };
  const remove = (one) => el("button", {
    class: "small", "aria-label": `Remove the ${one.period} budget`,
    onclick: () => change(() => ask(`${path}?period=${one.period}`, { method: "DELETE" }), `The ${one.period} budget is gone.`),
  }, "Remove");
  const line = (one) => limitLine(one.source === "account" ? el("span", {}, `own, ${one.period} `, remove(one)) : el("span", {}, `of the plan, ${one.period}`), one);
  return card("Limits",
    picture.budgets.length ? el("ul", { class: "bars" }, ...picture.budgets.map(line)) : el("p", { class: "quiet" }, "None."),
    el("form", { class: "budget", onsubmit: set }, el("label", {}, "Period", period), el("label", {}, "Cents at most", amount), el("button", { class: "main", type: "submit" }, "Set budget")));
}

// What calls under way hold. Ages are by this browser's clock.
function holds(held) {
  const by = held.source === "redis" ? "by Redis" : "by Postgres, as Redis is away";
  const age = (at) => `${Math.max(0, (Date.now() - new Date(at)) / 1000).toFixed(1)} s`;
  const sum = held.count === null ? "More calls are under way than are looked through."
    : held.count ? `${held.held_cents} cents by ${held.count} ${held.count === 1 ? "call" : "calls"} under way, ${by}${held.count > held.list.length ? `; the ${held.list.length} oldest` : ""}.` : `Nothing is held, ${by}.`;
  return card("Holds", el("p", { class: "quiet" }, sum),
    held.list.length ? scrolling(table(["Since", "Policy", ">Cents", "Worker", "Id"],
      held.list.map((one) => [age(one.at), one.policy, one.cents, { mono: one.worker }, { mono: one.id }]), "")) : null);
}

function auditTable(entries) {
  return table(["When", "What", "Before", "After", "By"], entries.map((one) => [
    when(one.at), ACTIONS[one.action] ?? one.action, worded(one.before), worded(one.after), `${one.token === "none" ? "no token" : one.token}, ${one.address}`,
  ]), "Nothing was done to this account here.");
}

// Facts come in no order; those that matter most are to be read first.
const FIRST = ["ended", "why", "verdict", "result", "event", "path", "method", "soft_limit_cents", "hard_limit_cents", "period"];

function worded(told) {
  if (told === null) return "–";
  const known = Object.entries(told).filter(([, value]) => value !== null);
  known.sort(([one], [other]) => FIRST.indexOf(other) - FIRST.indexOf(one));
  return known.map(([name, value]) => `${name.replaceAll("_", " ")}: ${value}`).join(", ");
}

// What would become of a call of this account, and why; nothing is called and nothing counted.
function explainer(account, done) {
  const method = el("select", {}, ...["POST", "GET", "PUT", "PATCH", "DELETE"].map((one) => el("option", {}, one)));
  const path = el("input", { value: "/v1/cast", required: true });
  const result = el("div", { role: "status" });
  const show = async (event) => {
    event.preventDefault();
    try {
      const found = await ask("/explain", { method: "POST", body: JSON.stringify({ account, method: method.value, path: path.value }) });
      const standings = [
        ...found.budgets.map((one) => [`budget, ${one.period}`, `${one.used_cents} used + ${one.held_cents} held of ${one.limit_cents ?? one.hard_limit_cents} cents`]),
        ...found.rate_limits.map((one) => [`limit, ${one.name}`, `${one.taken} of ${one.limit}${one.blocks ? ", blocks" : ""}`]),
        ...found.notes.map((one) => ["note", one]),
      ];
      result.replaceChildren(el("p", { class: `told ${found.status ? "bad" : "good"}` }, `${found.verdict}${found.status ? ` ${found.status}` : ""}: ${found.why}`), table(["What", "Standing"], standings, ""));
      await done();
    } catch (error) {
      result.replaceChildren(el("p", { class: "told bad" }, error.message));
    }
  };
  return card("What would become of a call",
    el("form", { class: "budget", onsubmit: show }, el("label", {}, "Method", method), el("label", {}, "Path", path), el("button", { type: "submit" }, "Explain")), result);
}
