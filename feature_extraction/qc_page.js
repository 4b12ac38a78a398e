"use strict";
const cards = [...document.querySelectorAll("article")];
const list = document.getElementById("slides");
const order = document.getElementById("order");
const find = document.getElementById("find");
const striking = document.getElementById("striking");
const shown = document.getElementById("shown");
const first = new Map(cards.map((card, place) => [card, place]));

function show() {
  const words = find.value.toLowerCase();
  let n = 0;
  for (const card of cards) {
    card.hidden = (striking.checked && !card.classList.contains("striking")) || !card.dataset.find.toLowerCase().includes(words);
    n += card.hidden ? 0 : 1;
  }
  shown.textContent = `${n} shown`;
}

function sort() {
  const [key, sign] = order.value.split(" ");
  const value = key === "id" ? (card) => card.dataset.id : (card) => Number(card.dataset[key] || -1);
  const compare = key === "first"
    ? (a, b) => first.get(a) - first.get(b)
    : (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : first.get(a) - first.get(b)) * Number(sign);
  list.append(...[...cards].sort(compare));
}

order.addEventListener("change", sort);
find.addEventListener("input", show);
striking.addEventListener("change", show);
document.getElementById("tools").hidden = false;
show();
