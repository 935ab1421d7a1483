// What the views share: asking our own server, and the pieces that they are made of.

import { bar, el } from "./charts.js";

export const byId = (id) => document.getElementById(id);

export async function ask(path, options = {}) {
  const headers = options.method ? { "X-Castgate-Console": "1", "Content-Type": "application/json" } : {};
  const answer = await fetch(path, { headers, ...options });
  if (answer.status === 401) location.reload();
  const body = answer.status === 204 ? null : await answer.json();
  if (!answer.ok) throw new Error(body.message || `${answer.status}`);
  return body;
}

export const when = (at) => at ? new Date(at).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" }) : "–";
export const accountLink = (id) => el("a", { href: `#/account/${encodeURIComponent(id)}`, class: "mono" }, id);
export const card = (title, ...children) => el("section", { class: "card", "aria-label": title }, el("h2", {}, title), ...children);
export const scrolling = (...children) => el("div", { class: "scroll", tabindex: "0" }, ...children);

export function facts(node, list) {
  node.replaceChildren(...list.map(([name, value, bad]) => el("div", {}, el("dt", {}, name), el("dd", { class: bad ? "bad" : null }, value))));
}

export function facted(list) {
  const node = el("dl", { class: "facts wide" });
  facts(node, list);
  return node;
}

// A head that begins with ">" is of numbers; a cell {mono} is an id.
export function table(heads, rows, empty) {
  if (!rows.length) return el("p", { class: "quiet" }, empty);
  const cell = (content, index) => {
    if (content?.mono) return el("td", { class: "mono", title: content.mono }, content.mono);
    return el("td", { class: heads[index].startsWith(">") ? "number" : null }, content ?? "–");
  };
  return el("table", {},
    el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col", class: head.startsWith(">") ? "number" : null }, head.replace(">", ""))))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map(cell)))));
}

export function limitLine(left, one) {
  const label = `${one.used_cents} of ${one.limit_cents} cents, ${one.period}`;
  return el("li", {}, el("div", { class: "line" }, left, el("span", { class: "number quiet" }, label)), bar(one.share, `${Math.round(one.share * 100)} % used: ${label}`));
}

// Does what a button is for, once at a time. told() is where to say how it went: a page may be made anew meanwhile.
export async function doing(button, told, what) {
  const say = (text, kind) => Object.assign(told(), { textContent: text, className: `told ${kind}` });
  button.disabled = true;
  say("…", "");
  try {
    say(await what(), "good");
  } catch (error) {
    say(error.message, "bad");
  }
  button.disabled = false;
}
