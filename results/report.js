"use strict";
// Search in the runs, and links to them. The page shows everything without this script, too.

const groups = [...document.querySelectorAll("#all-runs details")].map(group => ({
  group,
  runs: [...group.querySelectorAll("tr[id]")].map(row => ({row, text: textOf(group, row)})),
}));
const total = groups.reduce((sum, {runs}) => sum + runs.length, 0);
const field = document.querySelector("#search input");
const count = document.querySelector("#search output");

// "method=… dataset=… seed=1 … " and the command, in lower case
function textOf(group, row) {
  const titles = [...group.querySelectorAll("thead th")].map(title => title.textContent);
  const cells = [...row.cells].map((cell, i) => `${titles[i]}=${cell.textContent}`);
  const words = [`method=${group.dataset.method}`, ...cells, row.nextElementSibling.textContent];
  return words.join(" ").toLowerCase() + " ";
}

// Every word must be there; a number that a column must have, as in seed=1, is not one of 10.
function fits(text, word) {
  return text.includes(/^\w+=\d+$/.test(word) ? ` ${word} ` : word);
}

function search() {
  const asked = field.value.toLowerCase().replace(/(?<![-\w])(seed|shots)[\s:]+(?=\d)/g, "$1=");
  const words = asked.split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const {group, runs} of groups) {
    let here = 0;
    for (const {row, text} of runs) {
      const hit = words.every(word => fits(text, word));
      row.hidden = row.nextElementSibling.hidden = !hit;
      here += hit;
    }
    group.hidden = !here;
    group.open = words.length > 0 && here > 0;
    shown += here;
  }
  count.textContent = words.length ? `${shown} of ${total} runs` : "";
}

// A run that a link leads to is shown, even if the search had left it out.
function reveal() {
  const row = document.getElementById(location.hash.slice(1));
  const group = row?.closest("#all-runs details");
  if (!group) return;
  if (row.hidden) {
    field.value = "";
    search();
  }
  group.open = true;
  row.scrollIntoView({block: "center"});
}

if (field) {
  document.querySelector("#search").hidden = false;
  field.addEventListener("input", search);
  addEventListener("hashchange", reveal);
  search(); // browsers keep a field's text when a page is loaded again
  reveal();
}
