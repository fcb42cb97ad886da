"use strict";
// Keyboard shortcuts, the time an item is in view, and retries when a verdict did not arrive.
(() => {
  const READ = 250; // ms: faster than anyone reads, so it is a second press of the same key and no verdict
  const RETRY = [500, 1000, 2000, 4000, 8000];
  const $ = (id) => document.getElementById(id);
  const form = () => $("verdict");
  let shownAt = 0, inView = 0, since = null, tries = 0, sent = null, tie = false;

  const show = () => {
    shownAt = performance.now();
    inView = 0;
    since = document.hidden ? null : shownAt;
    tie = false;
    const page = $("page");
    $("status").textContent = page ? page.dataset.status : "";
  };
  const seconds = () => (inView + (since === null ? 0 : performance.now() - since)) / 1000;
  document.addEventListener("visibilitychange", () => {
    const now = performance.now();
    if (document.hidden && since !== null) { inView += now - since; since = null; }
    else if (!document.hidden && since === null) since = now;
  });

  const trouble = (text) => {
    $("trouble").textContent = text;
    $("trouble").hidden = !text;
  };

  // --- ranking: digits give places
  const ranks = () => Array.from(document.querySelectorAll("select[data-rank]"));
  const ranked = [];
  const place = (i) => {
    const all = ranks(), select = all[i];
    if (!select || select.value) return;
    const used = all.map((s) => Number(s.value)).filter((n) => n > 0);
    const last = used.length ? Math.max(...used) : 0;
    select.value = String(tie && last ? last : last + 1);
    tie = false;
    ranked.push(select);
  };

  // --- steps: letters mark
  const marks = { g: "1", n: "0", b: "-1" };
  const unmarked = () => Array.from(document.querySelectorAll(".step"))
    .find((step) => !step.querySelector(":checked"));
  const mark = (step, value) => {
    step.querySelector(`input[value="${value}"]`).checked = true;
    const next = unmarked();
    if (next) next.querySelector("input").focus();
    else step.querySelector(":checked").focus();
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const at = document.activeElement, key = event.key;
    if (at && at.matches("input[type=text], textarea")) {
      if (key === "Escape") at.blur();
      // Enter in the reason does not send: the verdict has its own key.
      if (key === "Enter") { event.preventDefault(); at.blur(); }
      return;
    }
    if (at && at.matches("select") && key !== "Escape") return;
    if (at && at.matches("input[type=radio]") && key.startsWith("Arrow")) return;
    if (key === "Enter" && at && at.matches("button, a")) return;
    if (event.repeat) return;
    const step = at ? at.closest(".step") : null;
    if (step && key in marks) { mark(step, marks[key]); event.preventDefault(); return; }
    if (key === "m" && unmarked()) { unmarked().querySelector("input").focus(); return; }
    if (key === "d") {
      const first = document.querySelector(".dims input, .dims select");
      if (first) { first.focus(); event.preventDefault(); }
      return;
    }
    if (ranks().length) {
      if (key === "=") { tie = true; return; }
      if (key === "Backspace") { const last = ranked.pop(); if (last) last.value = ""; return; }
    }
    const focus = document.querySelector(`[data-focus="${CSS.escape(key)}"]`);
    if (focus) { focus.focus(); event.preventDefault(); return; }
    for (const button of document.querySelectorAll("[data-key]"))
      if (button.dataset.key.split(" ").includes(key)) {
        event.preventDefault();
        button.click();
        return;
      }
  });

  document.addEventListener("click", (event) => {
    const next = event.target.closest("[data-next]");
    if (next) place(Number(next.dataset.next));
  });

  // Too soon after the question appeared: a double click, meant for the previous one.
  document.addEventListener("submit", (event) => {
    if (performance.now() - shownAt < READ && !tries) {
      event.preventDefault();
      event.stopImmediatePropagation();
      return;
    }
    sent = { form: event.target, button: event.submitter };
    if (form()) form().elements.seconds.value = seconds().toFixed(3);
    document.body.classList.add("sending");
  }, true);

  const arrived = () => { tries = 0; sent = null; document.body.classList.remove("sending"); };
  document.addEventListener("htmx:afterSwap", () => {
    arrived();
    trouble("");
    ranked.length = 0;
    show();
    const main = document.querySelector("main");
    if (main && form()) main.focus({ preventScroll: true });
  });
  document.addEventListener("htmx:responseError", (event) => {
    arrived();
    trouble(event.detail.xhr.responseText);
  });
  // Sent again unchanged: the server identifies a verdict by its question, so it counts once.
  const again = () => {
    document.body.classList.remove("sending");
    if (!sent) return;
    const { form: target, button } = sent;
    if (tries >= RETRY.length) {
      tries = 0;
      trouble("The server does not respond, and this verdict was not saved. Give it again when the server is back.");
      return;
    }
    trouble("The server does not respond; trying again.");
    setTimeout(() => target.isConnected && target.requestSubmit(button), RETRY[tries++]);
  };
  document.addEventListener("htmx:sendError", again);
  document.addEventListener("htmx:timeout", again);
  document.addEventListener("DOMContentLoaded", show);
})();
