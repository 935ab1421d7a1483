// What Stripe told, and handling one of its events again.

import { el } from "./charts.js";
import { accountLink, ask, byId, doing, scrolling, table, when } from "./page.js";

const SAID = {
  applied: "It took effect now", duplicate: "It was known already", stale: "It is older than what is known",
  recorded: "It is noted; nothing follows from it", unmatched: "It is of no account that we know",
};

// The table of events; `again` is called once one was replayed.
export function eventTable(events, { withAccount, canReplay, told, again }) {
  const replayed = (one) => {
    const button = el("button", { class: "small", "aria-label": `Replay ${one.id}` }, "Replay");
    button.addEventListener("click", () => doing(button, told, async () => {
      const said = await replay(one.id);
      await again?.();
      return said;
    }));
    return button;
  };
  const heads = ["When", "Event", ...(withAccount ? ["Account"] : []), "Says", "Handled", "Id", ...(canReplay ? [""] : [])];
  return table(heads, events.map((one) => [
    when(one.at), one.type, ...(withAccount ? [one.account ? accountLink(one.account) : "nobody's"] : []), one.status, when(one.handled_at),
    { mono: one.id }, ...(canReplay ? [replayed(one)] : []),
  ]), "None yet.");
}

async function replay(id) {
  const done = await ask(`/console/webhooks/${encodeURIComponent(id)}/replay`, { method: "POST" });
  const read = done.subscription_read === "applied" ? `; its subscription ${done.subscription} was read from Stripe and taken over as it is` : "";
  return `${SAID[done.result] ?? done.result}${read}.`;
}

// The log on the overview; `reload` reads it again.
export function webhookLog(reload) {
  const told = () => byId("webhook-told");
  const id = el("input", { name: "event", required: true, pattern: "evt_[A-Za-z0-9_]+", placeholder: "evt_…", title: "the id of an event, as Stripe shows it", autocomplete: "off", spellcheck: "false" });
  const replayById = (event) => {
    event.preventDefault();
    doing(event.submitter ?? event.target.querySelector("button"), told, async () => {
      const said = await replay(id.value.trim());
      await reload();
      return said;
    });
  };
  const sync = (event) => doing(event.target, told, async () => {
    const report = await ask("/console/sync", { method: "POST" });
    await reload();
    return `${report.events_missed} missed events handled of ${report.events_seen}, ${report.subscriptions_repaired} subscriptions repaired of ${report.subscriptions_seen}.`;
  });
  return el("section", { class: "card", "aria-labelledby": "events" },
    el("div", { class: "head" }, el("h2", { id: "events" }, "Webhooks from Stripe"), el("ul", { class: "legend plain", id: "webhook-counts" })),
    el("div", { class: "actions", id: "webhook-actions" },
      el("form", { class: "budget", onsubmit: replayById }, el("label", {}, "Event", id), el("button", { type: "submit" }, "Replay")),
      el("button", { id: "sync", onclick: sync }, "Read all from Stripe again")),
    el("p", { class: "told", id: "webhook-told", role: "status" }),
    scrolling(el("div", { id: "event-table" })));
}

export function showWebhooks(events, canReplay, reload) {
  byId("event-table").replaceChildren(eventTable(events, { withAccount: true, canReplay, told: () => byId("webhook-told"), again: reload }));
}

// How many deliveries came to what, since the gateway started.
export function showCounts(counts) {
  const list = Object.entries(counts).sort();
  byId("webhook-counts").replaceChildren(...list.map(([result, count]) => el("li", {}, `${result.replace("_", " ")} `, el("b", {}, `${count}`))));
}
