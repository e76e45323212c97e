let unsaved = false;
addEventListener("input", () => { unsaved = true; });
addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); }); // the browser asks first

document.querySelector("button").onclick = () => {
  const quoted = (text) => '"' + text.replaceAll('"', '""') + '"';
  const rows = [...document.querySelectorAll("input")].map((input) =>
    quoted(input.dataset.path) + "," + quoted(input.value.trim()));
  const table = new Blob(["path,class_id\n" + rows.join("\n") + "\n"], { type: "text/csv" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(table);
  link.download = "labels.csv";
  link.click();
  unsaved = false;
};
