"use strict";
(() => {
  const root = document.documentElement;
  const get = (id) => document.getElementById(id);
  root.classList.add("script");

  // Light or dark: what the system asks for, or what was chosen here.
  const theme = get("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("gwm-theme"); } catch { /* not allowed here: nothing is remembered */ }
  const paint = () => {
    root.style.colorScheme = chosen ?? "light dark";
    theme.setAttribute("aria-pressed", String((chosen ?? (system.matches ? "dark" : "light")) === "dark"));
  };
  theme.addEventListener("click", () => {
    chosen = theme.getAttribute("aria-pressed") === "true" ? "light" : "dark";
    try { localStorage.setItem("gwm-theme", chosen); } catch { /* as above */ }
    paint();
  });
  system.addEventListener("change", paint);
  paint();

  const grid = get("grid");
  if (!grid) return;
  const index = JSON.parse(get("index").textContent); // [title, score] of each sample, the lowest score first
  const perPage = Number(grid.dataset.perPage);
  const pages = [[...grid.children].map((figure) => figure.outerHTML)];
  let order = index.map((_, number) => number);
  let page = 0;
  let shown = 0; // place in `order` of the sample in the dialog

  // Samples lie in the file as text, some in each script element; those that are asked for become a part of the page.
  const figure = (number) => {
    const group = Math.floor(number / perPage);
    pages[group] ??= get(`page-${group}`)?.textContent.trim().split("\n");
    return pages[group]?.[number % perPage] ?? "";
  };
  const numPages = () => Math.max(1, Math.ceil(order.length / perPage));
  const draw = () => {
    grid.innerHTML = order.slice(page * perPage, (page + 1) * perPage).map(figure).join("");
    const samples = order.length === 1 ? "sample" : "samples";
    get("place").textContent = `${page + 1} of ${numPages()} (${order.length.toLocaleString("en")} ${samples})`;
    get("previous").setAttribute("aria-disabled", String(page === 0));
    get("next").setAttribute("aria-disabled", String(page >= numPages() - 1));
  };
  const turn = (step) => {
    const wanted = Math.min(Math.max(page + step, 0), numPages() - 1);
    if (wanted === page) return;
    page = wanted;
    draw();
  };
  get("previous").addEventListener("click", () => turn(-1));
  get("next").addEventListener("click", () => turn(1));

  const collator = new Intl.Collator("en", { numeric: true });
  const byName = (a, b) => collator.compare(index[a][0], index[b][0]);
  const byScore = (a, b) => (index[b][1] ?? -1) - (index[a][1] ?? -1);
  const arrange = () => {
    const words = get("find").value.toLowerCase();
    order = index.map((_, number) => number).filter((number) => index[number][0].toLowerCase().includes(words));
    if (get("order").value === "name") order.sort(byName);
    if (get("order").value === "best") order.sort(byScore);
    page = 0;
    draw();
  };
  get("order").addEventListener("change", arrange);
  get("find").addEventListener("input", arrange);

  // One place of the slider for the page and the dialog.
  const sliders = document.querySelectorAll("input.layer");
  const show = (layer) => {
    for (const slider of sliders) {
      const ticks = slider.parentElement.querySelectorAll(".ticks span");
      slider.value = layer;
      slider.setAttribute("aria-valuetext", ticks[layer].textContent);
      ticks.forEach((tick, number) => tick.classList.toggle("now", number === Number(layer)));
    }
    grid.dataset.layer = get("large").dataset.layer = layer;
  };
  for (const slider of sliders) {
    slider.addEventListener("input", () => show(slider.value));
    slider.parentElement.querySelectorAll(".ticks span").forEach((tick, number) => {
      tick.addEventListener("click", () => show(number));
    });
  }
  const titles = [...sliders[0].parentElement.querySelectorAll(".ticks span")].map((tick) => tick.textContent);
  show(Math.max(0, titles.indexOf("mask"), titles.indexOf("after")));

  // One sample, large.
  const large = get("large");
  const enlarge = (place) => {
    if (place < 0 || place >= order.length) return;
    shown = place;
    const holder = document.createElement("div");
    holder.innerHTML = figure(order[place]);
    get("picture").replaceChildren(holder.querySelector(".layers"));
    get("large-title").textContent = holder.querySelector(".name").textContent;
    const rest = [...holder.querySelectorAll(".rank, .note")].map((part) => part.textContent);
    get("caption").textContent = rest.join("; ");
    get("back").setAttribute("aria-disabled", String(place === 0));
    get("forth").setAttribute("aria-disabled", String(place === order.length - 1));
    if (!large.open) large.showModal();
  };
  grid.addEventListener("click", (event) => {
    const found = event.target.closest(".layers, .open")?.closest("figure");
    if (found) enlarge(order.indexOf(Number(found.dataset.number)));
  });
  get("back").addEventListener("click", () => enlarge(shown - 1));
  get("forth").addEventListener("click", () => enlarge(shown + 1));
  get("close").addEventListener("click", () => large.close());
  large.addEventListener("keydown", (event) => {
    if (event.key === "PageUp") enlarge(shown - 1);
    else if (event.key === "PageDown") enlarge(shown + 1);
    else return;
    event.preventDefault();
  });
  large.addEventListener("close", () => {
    const wanted = Math.floor(shown / perPage);
    if (wanted !== page) {
      page = wanted;
      draw();
    }
    grid.querySelector(`[data-number="${order[shown]}"] .open`)?.focus();
  });
  draw();
  document.addEventListener("DOMContentLoaded", () => { if (page) draw(); }); // turned before the file had arrived
})();
