// Above each long table, a field that keeps the rows with all the words in it.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("article table")) {
    const rows = [...table.tBodies[0].rows]
    if (rows.length < 40) continue
    const field = Object.assign(document.createElement("input"), { type: "search", className: "filter" })
    field.placeholder = `Search ${rows.length} rows`
    field.setAttribute("aria-label", field.placeholder)
    const texts = rows.map((row) => row.textContent.toLowerCase())
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/)
      rows.forEach((row, index) => (row.hidden = !words.every((word) => texts[index].includes(word))))
    })
    table.before(field)
  }
})
